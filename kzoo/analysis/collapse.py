"""Whether tokens become alike with depth."""

from typing import Any

import numpy as np

from kzoo.analysis.activations import activations, inputs_of
from kzoo.analysis.float64 import copied, float64, numpy
from kzoo.errors import unknown
from kzoo.typing import Model

NORMS = {
    "frobenius": np.linalg.norm,
    "composite": lambda x: np.sqrt(np.linalg.norm(x, 1) * np.linalg.norm(x, np.inf)),
}


def collapse(
    model: Model,
    batch: Any,
    *,
    norm: str = "frobenius",
    skips: bool = True,
    feed_forward: bool = True,
    norms: bool = True,
) -> list[dict[str, Any]]:
    """How far the hidden states X of a sequence are from one vector repeated.

    The relative residual ‖X − 1xᵀ‖ / ‖X‖ of Dong et al. 2021 (arXiv:2103.03404), with x the mean
    of the tokens' vectors, which minimises it in the Frobenius norm: 0 when all tokens are the
    same, at most 1. Under a causal mask the first tokens attend to few keys and keep the residual
    high, so it is also measured on the last half of the tokens alone, with their own mean.

    Parts of the blocks can be left out, as in their section 4, to see which of them keeps tokens
    apart: attention alone makes them alike doubly exponentially. A copy of the model is computed
    then, in float64; the model itself stays as it is.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them.
        norm: `"frobenius"`, or `"composite"`: √(‖·‖₁‖·‖∞), that of the paper.
        skips: whether what a part computes is added to what it received, or replaces it.
        feed_forward: whether blocks have their feed-forward networks.
        norms: whether blocks have their normalisations.

    Returns:
        A list of num_layers + 1 dicts for each stack: `stack` ("encoder" or "decoder"; empty
        for a single stack), `layer` (the number of blocks before: 0 is the embeddings), `norm`,
        `without` (the parts left out, such as "skips, feed_forward"; empty for none), `residual`
        and `residual_last_half`, means over the examples without their padding; NaN where the
        states of an example are all 0, or some are beyond float64, as happens without norms.

    Raises:
        InputError: for an unknown norm; if the model has no blocks, or the batch lacks one of its
            inputs; if parts of a model with quantised weights are left out.

    Example:
        >>> [round(depth["residual"], 2) for depth in collapse(model, valid[0])]
        >>> alone = collapse(model, valid[0], skips=False, feed_forward=False, norms=False)
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    parts = {"skips": skips, "feed_forward": feed_forward, "norms": norms}
    without = ", ".join(name for name, kept in parts.items() if not kept)
    if without:
        stacks = _reduced(model, batch, **parts)
    else:
        stacks = [
            (stack.name, [numpy(x) for x in stack.states], stack.masks["padding_mask"])
            for stack in activations(model, batch)
        ]
    return [
        {"stack": name, "layer": layer, "norm": norm, "without": without}
        | _residuals(state, padding_mask != 0, NORMS[norm])
        for name, states, padding_mask in stacks
        for layer, state in enumerate(states)
    ]


def _residuals(states, real, norm):
    """Means over the examples of a batch; one that is all padding is left out."""
    tokens = [x[keep] for x, keep in zip(states, real, strict=True) if keep.any()]
    halves = [x[len(x) // 2 :] for x in tokens]
    names = {"residual": tokens, "residual_last_half": halves}
    return {name: float(np.mean([_residual(x, norm) for x in xs])) for name, xs in names.items()}


def _residual(x, norm):
    # Without norms, states can grow until their squares overflow; a factor changes no residual.
    greatest = np.abs(x).max()
    if not 0 < greatest < np.inf:
        return np.nan
    x = x / greatest
    return norm(x - x.mean(0)) / norm(x)


def _reduced(model, batch, **parts):
    """(name, states, padding mask) of each stack of a copy whose blocks lack parts."""
    backbone, x = inputs_of(model, batch)
    copy, found, encoded = copied(backbone), [], {}
    with float64():
        for name, stack in copy.stacks.items():
            prefix = f"{name}_" if name else ""
            own = [x.get(prefix + each) for each in ("token_ids", "padding_mask", "segment_ids")]
            states = [copy.embeddings(*own)]
            call = {"padding_mask": own[1]}
            if f"{prefix}source_mask" in x:
                call["source_mask"] = x[f"{prefix}source_mask"]
            if stack.relative_bias is not None:
                call["bias"] = stack.relative_bias(states[0])
            for block in stack.blocks:
                states.append(_through(block, states[-1], call, encoded, **parts))
            last = stack.final_norm if parts["norms"] else None
            encoded = {
                "value": states[-1] if last is None else last(states[-1]),
                "key_padding_mask": own[1],
            }
            # Read here: outside, the backend would round them.
            found.append((name, [numpy(state) for state in states], own[1]))
    return found


def _through(block, x, call, encoded, *, skips, feed_forward, norms):
    """A block without some of its parts; `kzoo.layers.Block.assemble` is the whole one."""
    parts = [(block.attention_norm, lambda x: block.attention(x, **call))]
    if block.cross_attention is not None:
        cross, of_queries = block.cross_attention, {"padding_mask": call["padding_mask"]}
        parts.append((block.cross_attention_norm, lambda x: cross(x, **encoded, **of_queries)))
    if feed_forward:
        parts.append((block.feed_forward_norm, block.feed_forward))
    before = norms and block.norm_placement == "pre"
    after = norms and block.norm_placement == "post"
    for norm, part in parts:
        added = part(norm(x) if before else x)
        x = x + added if skips else added
        x = norm(x) if after else x
    return x
