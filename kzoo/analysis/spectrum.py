"""How much of its rank an attention matrix uses, and how concentrated it is."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kzoo import masks
from kzoo.analysis.weights import LayerWeights, layer_weights
from kzoo.errors import InputError
from kzoo.masks import Mask
from kzoo.typing import Model, Tensor
from kzoo.values import is_number

FLOAT64_EPSILON = float(np.finfo("float64").eps)


def spectrum(matrix: Tensor, epsilon: float | None = None) -> dict[str, Any]:
    """Figures of the singular values σ₁ ≥ σ₂ ≥ … of a matrix, in float64.

    - `numerical_rank`: how many σ exceed n · ε · σ₁. By rounding, singular values of a matrix
      whose entries have the precision ε move by up to about that much; smaller ones say nothing.
    - `entropy_rank`: exp(−Σ p log p) with p = σ / Σσ (Roy and Vetterli 2007).
    - `stable_rank`: Σσ² / σ₁².
    - `k99`: how many of the largest σ hold 99% of the energy Σσ².
    - `condition`: σ₁ / σₙ, at most 2⁵² (of a singular matrix it measures rounding).
    - `concentration`: E|x| / √E[x²] over all entries x, hidden ones included: 1 where all
      are equal, 1/√n where every query attends to one key (low is concentrated).

    Args:
        matrix: floats [..., n, n].
        epsilon: ε; by default that of the matrix's dtype, 2⁻⁵² for float64, 2⁻²³ for float32.

    Returns:
        A dict of float64 arrays [...]; all NaN for a matrix that holds a NaN or infinity,
        and 0 (condition 1) for one of zeros.

    Example:
        >>> float(spectrum(np.eye(4))["entropy_rank"])
        4.0
    """
    epsilon = epsilon_of(matrix) if epsilon is None else epsilon
    matrix = np.asarray(matrix, "float64")
    n = max(matrix.shape[-2:])
    finite = np.isfinite(matrix).all((-2, -1))
    matrix = np.where(finite[..., None, None], matrix, 0)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    largest = sigma[..., 0]
    unit = sigma / np.where(largest > 0, largest, 1)[..., None]
    p = unit / np.maximum(unit.sum(-1, keepdims=True), 1)
    energy = np.cumsum(unit**2, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0).sum(-1)
        mean_square = np.sqrt((matrix**2).mean((-2, -1)))
        concentration = np.abs(matrix).mean((-2, -1)) / np.where(mean_square > 0, mean_square, 1)
    some = largest > 0
    figures = {
        "numerical_rank": (unit > n * epsilon).sum(-1),
        "entropy_rank": some * np.exp(entropy),
        "stable_rank": energy[..., -1],
        "k99": some * (1 + (energy < 0.99 * energy[..., -1:]).sum(-1)),
        "condition": np.where(some, 1 / np.maximum(unit[..., -1], FLOAT64_EPSILON), 1),
        "concentration": concentration,
    }
    return {name: np.where(finite, figure, np.nan) for name, figure in figures.items()}


def epsilon_of(matrix):
    """The precision of a matrix's entries: the ε of its dtype; float64's for integers."""
    dtype = getattr(matrix, "dtype", np.dtype("float64"))
    known = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
    return known.get(str(dtype).rpartition(".")[2], FLOAT64_EPSILON)


def attention_spectrum(model: Model, batch: Any) -> list[dict[str, Any]]:
    """The `spectrum` of every head's attention matrix.

    q, k and v are what the model computes in its own dtype; their weights are computed in
    float64. The examples without padding are used, if there are any; otherwise all, without their
    padded queries and keys. Figures are means over examples; `condition`, which spans decades, is a
    geometric mean. Linear attention with rotary positions has signed weights that do not sum to 1.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them.

    Returns:
        A list of dicts, one per layer and head, in that order: `stack` ("encoder" or "decoder";
        empty for a single stack), `layer`, `head`, `mask` (the head's mask, its JSON as a
        string), `tokens` (mean size of the matrices), the figures of `spectrum` as floats, and
        the `epsilon` of the numerical rank. Cross-attention is not analysed.

    Raises:
        InputError: if the model has no blocks, its mechanism has no weights, the batch lacks one
            of its inputs, or so many tokens do not fit into memory.

    Example:
        >>> attention_spectrum(model, valid[0])[0]["entropy_rank"]
    """
    return [head for layer in layer_weights(model, batch) for head in _heads(layer, layer.of)]


def control_spectrum(
    model: Model, batch: Any, *, identity: float = 0.1, seed: int = 0
) -> list[dict[str, Any]]:
    """`attention_spectrum` with the same q, k and v under masks and mixtures that take rank and
    direction apart.

    A causal softmax matrix is triangular, so it has full rank, and it looks one way. These have
    one of the two without the other:

    - `"as it is"`: the attention itself.
    - `"permuted"`: causal in a random order of the positions: full rank, undirected.
    - `"identity mix"`: (1-ε)A + εI: full rank also where A is bidirectional.
    - `"random half"`: each query sees itself and a random half of the keys: not triangular.

    A control that the mechanism cannot follow is left out, such as `"random half"` for linear
    attention.

    Args:
        model, batch: as in `attention_spectrum`.
        identity: ε, between 0 and 1.
        seed: of the random order and the random half.

    Returns:
        The list of `attention_spectrum` with the name of the `control` in each dict.

    Raises:
        InputError: as `attention_spectrum`; or if `identity` is not between 0 and 1.

    Example:
        >>> {head["control"] for head in control_spectrum(model, valid[0])} >= {"permuted"}
        True
    """
    if not (is_number(identity) and 0 < identity < 1):
        raise InputError(f"identity is a number between 0 and 1. Received: {identity!r}")

    found = []
    for layer in layer_weights(model, batch):
        makers: dict[str, Callable] = {
            "as it is": layer.of,
            "identity mix": functools.partial(_mixed, layer, identity),
        }
        others = {"permuted": masks.permuted(seed), "random half": _half(layer, seed)}
        for name, mask in others.items():
            if layer.follows(mask):
                makers[name] = functools.partial(layer.of, mask=mask)
        for name, weights in makers.items():
            found += [{"control": name, **head} for head in _heads(layer, weights)]
    return found


def _heads(layer: LayerWeights, weights):
    """The figures of each head, means over examples; `weights(i)` gives those of example i."""
    figures, sizes = [], []
    for example in layer.examples:
        matrix = weights(example)
        epsilon = epsilon_of(matrix)
        figures.append(spectrum(matrix))
        sizes.append(matrix.shape[-1])
    each = {name: np.stack([figure[name] for figure in figures]) for name in figures[0]}
    each["condition"] = np.log(each["condition"])
    means = {name: values.mean(0) for name, values in each.items()}
    means["condition"] = np.exp(means["condition"])
    for head, mask in enumerate(layer.masks):
        yield {
            "stack": layer.stack,
            "layer": layer.layer,
            "head": head,
            "mask": mask,
            "tokens": float(np.mean(sizes)),
            **{name: float(mean[head]) for name, mean in means.items()},
            "epsilon": epsilon,
        }


def _mixed(layer, identity, example):
    """(1-ε)A + εI for the weights A of each head."""
    weights = layer.of(example)
    return (1 - identity) * weights + identity * np.eye(weights.shape[-1], dtype=weights.dtype)


def _half(layer, seed) -> Mask:
    """Each query sees itself and half of the other keys, drawn once."""
    from keras import ops

    time = layer.real.shape[1]
    seen = (np.random.default_rng(seed).random((time, time)) < 0.5) | np.eye(time, dtype=bool)
    seen = seen.ravel()
    return masks.custom(
        lambda query, key: ops.take(ops.convert_to_tensor(seen), query * time + key)
    )
