"""How much of its rank an attention matrix uses, and how concentrated it is."""

from typing import Any

import numpy as np

from kzoo.analysis.activations import activations, compact, numpy
from kzoo.typing import Model, Tensor

FLOAT32_EPSILON = float(np.finfo("float32").eps)
FLOAT64_EPSILON = float(np.finfo("float64").eps)


def spectrum(matrix: Tensor) -> dict[str, Any]:
    """Figures of the singular values σ₁ ≥ σ₂ ≥ … of a matrix, in float64.

    - `numerical_rank`: how many σ exceed n · 2⁻²³ · σ₁. Weights come in float32, whose
      rounding moves a singular value by up to about that much, so smaller ones say nothing.
    - `entropy_rank`: exp(−Σ p log p) with p = σ / Σσ (Roy and Vetterli 2007).
    - `stable_rank`: Σσ² / σ₁².
    - `k99`: how many of the largest σ hold 99% of the energy Σσ².
    - `condition`: σ₁ / σₙ, at most 2⁵² (of a singular float32 matrix it measures rounding).
    - `concentration`: E|x| / √E[x²] over all entries x, hidden ones included: 1 where all
      are equal, 1/√n where every query attends to one key (low is concentrated).

    Args:
        matrix: floats [..., n, n].

    Returns:
        A dict of float64 arrays [...]; all NaN for a matrix that holds a NaN or infinity,
        and 0 (condition 1) for one of zeros.

    Example:
        >>> float(spectrum(np.eye(4))["entropy_rank"])
        4.0
    """
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
        "numerical_rank": (unit > n * FLOAT32_EPSILON).sum(-1),
        "entropy_rank": some * np.exp(entropy),
        "stable_rank": energy[..., -1],
        "k99": some * (1 + (energy < 0.99 * energy[..., -1:]).sum(-1)),
        "condition": np.where(some, 1 / np.maximum(unit[..., -1], FLOAT64_EPSILON), 1),
        "concentration": concentration,
    }
    return {name: np.where(finite, figure, np.nan) for name, figure in figures.items()}


def attention_spectrum(model: Model, batch: Any) -> list[dict[str, Any]]:
    """The `spectrum` of every head's attention matrix.

    The examples without padding are used, if there are any; otherwise all, without their padded
    queries and keys. Figures are means over examples; `condition`, which spans decades, is a
    geometric mean. Linear attention with rotary positions has signed weights that do not sum to 1.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them.

    Returns:
        A list of dicts, one per layer and head, in that order: `stack` ("encoder" or "decoder";
        empty for a single stack), `layer`, `head`, `mask` (the head's mask, its JSON as a
        string), `tokens` (mean size of the matrices) and the figures of `spectrum` as floats.
        Cross-attention is not analysed.

    Raises:
        InputError: if the model has no blocks, or the batch lacks one of its inputs.

    Example:
        >>> attention_spectrum(model, valid[0])[0]["entropy_rank"]
    """
    return [figures for stack in activations(model, batch) for figures in _of_stack(stack)]


def _of_stack(stack):
    real = stack.masks["padding_mask"] != 0
    whole = real.all(1)
    examples = np.flatnonzero(whole if whole.any() else real.any(1))
    for layer, (block, state) in enumerate(zip(stack.blocks, stack.states[:-1], strict=True)):
        attention, x = block.attention, block.attention_inputs(state)
        weights = numpy(attention.attention_weights(x, **stack.masks, **stack.bias))
        matrices = [weights[i][:, real[i]][:, :, real[i]] for i in examples]
        batches = [np.stack(matrices)] if whole.any() else [matrix[None] for matrix in matrices]
        figures = [spectrum(matrices) for matrices in batches]
        figures = {name: np.concatenate([f[name] for f in figures]) for name in figures[0]}
        figures["condition"] = np.log(figures["condition"])
        means = {name: figure.mean(0) for name, figure in figures.items()}
        means["condition"] = np.exp(means["condition"])
        for head, mask in enumerate(attention.mask.per_head(attention.num_heads)):
            yield {
                "stack": stack.name,
                "layer": layer,
                "head": head,
                "mask": compact(mask),
                "tokens": float(real[examples].sum(1).mean()),
                **{name: float(mean[head]) for name, mean in means.items()},
            }
