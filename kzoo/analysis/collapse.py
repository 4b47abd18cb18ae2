"""Whether tokens become alike with depth."""

from typing import Any

import numpy as np

from kzoo.analysis.activations import activations, numpy
from kzoo.typing import Model


def collapse(model: Model, batch: Any) -> list[dict[str, Any]]:
    """How far the hidden states X of a sequence are from one vector repeated.

    The relative residual ‖X − 1xᵀ‖ / ‖X‖ of Dong et al. 2021 (arXiv:2103.03404), here with
    the Frobenius norm (theirs is √(‖·‖₁‖·‖∞)) and with x the mean of the tokens' vectors, which
    minimises it: 0 when all tokens are the same, at most 1. Under a causal mask the first tokens
    attend to few keys and keep the residual high, so it is also measured on the last half of the
    tokens alone, with their own mean.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them.

    Returns:
        A list of num_layers + 1 dicts for each stack: `stack` ("encoder" or "decoder"; empty
        for a single stack), `layer` (the number of blocks before: 0 is the embeddings),
        `residual` and `residual_last_half`, means over the examples without their padding.

    Raises:
        InputError: if the model has no blocks, or the batch lacks one of its inputs.

    Example:
        >>> [round(depth["residual"], 2) for depth in collapse(model, valid[0])]
    """
    return [figures for stack in activations(model, batch) for figures in _of_stack(stack)]


def _of_stack(stack):
    real = stack.masks["padding_mask"] != 0
    for layer, state in enumerate(stack.states):
        tokens = [x[keep] for x, keep in zip(numpy(state), real, strict=True) if keep.any()]
        yield {
            "stack": stack.name,
            "layer": layer,
            "residual": float(np.mean([_residual(x) for x in tokens])),
            "residual_last_half": float(np.mean([_residual(x[len(x) // 2 :]) for x in tokens])),
        }


def _residual(x):
    return np.linalg.norm(x - x.mean(0)) / max(np.linalg.norm(x), np.finfo("float64").tiny)
