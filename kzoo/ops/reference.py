"""Softmax, linear and gated linear attention written down densely, on tensors with gradients.

Weights and tests come from here. Memory is quadratic in time. `kzoo.ops.oracle` is the definition
in NumPy that shares nothing.
"""

from collections.abc import Mapping

import keras
from keras import ops

from kzoo import feature_maps
from kzoo.errors import InputError, unknown
from kzoo.ops import gates
from kzoo.ops.features import features_of
from kzoo.ops.kernels.decays import between
from kzoo.ops.qkv import nothing, prepare, widened
from kzoo.ops.rotary import rotate
from kzoo.ops.tensors import hide, masked_softmax, ratio, softmax_scale
from kzoo.precision import float32_products
from kzoo.typing import FeatureMapSpec, MaskSpec, Tensor


@float32_products()
def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskSpec = "bidirectional",
    *,
    mechanism: str,
    padding_mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    query_offset: int | Tensor = 0,
    scale: float | None = None,
    bias: Tensor | None = None,
    feature_map: FeatureMapSpec | None = "elu1",
    feature_weights: Mapping[str, Tensor] | None = None,
    rotary: bool = False,
    log_decay: Tensor | None = None,
    normalize: bool = True,
    dtype: str | None = None,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention by its definition: out_i = Σ_j w_ij v_j over the keys j that i sees.

    softmax:  w_ij = exp(s_ij) / Σ_l exp(s_il),  s_ij = scale · q_i·k_j + bias_ij
    linear:   w_ij = φ(q_i)·φ(k_j) / Σ_l φ(q_i)·φ(k_l)
    gated_linear:  as `kzoo.ops.gated_linear_attention` says

    With `rotary`, q and k (softmax) or φ(q) and φ(k) in the numerator only (linear) are
    rotated (arXiv:2104.09864, equations 16 and 19).

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim].
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask`.
        mechanism: `"softmax"`, `"linear"` or `"gated_linear"`.
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`.
        scale: softmax, and gated_linear without a denominator; 1/√dim by default.
        bias: softmax only; floats [batch or 1, heads or 1, query_time, key_time].
        feature_map: linear ones only; a name, JSON or `FeatureMap` of `kzoo.feature_maps`; None
            for q and k as they are.
        feature_weights: linear only; the tensors of a learned feature map, by name.
        rotary: rotate by the position within the document.
        log_decay, normalize: of gated_linear, as in `kzoo.ops.gated_linear_attention`.
        dtype: of the computation, e.g. `"float64"`; by default that of q, float32 at least.
        return_weights: also return the weights.

    Returns:
        Floats [batch, query_time, heads, value_dim] in `dtype`; with `return_weights` also
        [batch, heads, query_time, key_time]. Padded queries, and queries that see no key,
        have weights of exactly 0.

    Raises:
        InputError: if shapes disagree, a name is unknown, or the backend has no such dtype
            (float64 on JAX needs `jax.config.update("jax_enable_x64", True)`).

    Example:
        >>> out, w = reference_attention(q, k, v, "causal", mechanism="linear",
        ...                              return_weights=True)
    """
    known = ["softmax", "linear", "gated_linear"]
    if mechanism not in known:
        raise unknown("mechanism", mechanism, known)
    phi = None if feature_map is None else feature_maps.get(feature_map)
    zeros = nothing(q, k, v)
    if zeros is not None:
        shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        return (zeros, ops.zeros(shape, zeros.dtype)) if return_weights else zeros
    q, k, v, whole, queries, keys = prepare(
        q,
        k,
        v,
        mask,
        padding_mask=padding_mask,
        source_mask=source_mask,
        key_padding_mask=key_padding_mask,
        query_offset=query_offset,
    )
    q, k, v = widened(q, k, v, dtype)
    if dtype is not None and keras.backend.standardize_dtype(q.dtype) != dtype:
        raise InputError(f"the backend computes in {q.dtype} here. Received: dtype={dtype!r}")
    visible = whole.between(queries, keys, q.shape[2])

    if mechanism == "softmax":
        if rotary:
            q, k = rotate(q, queries.position), rotate(k, keys.position)
        scores = ops.einsum("bqhd,bkhd->bhqk", q, k)
        weights = masked_softmax(scores * softmax_scale(q, scale), visible, bias)
    else:
        divided = mechanism == "linear" or normalize
        products, norms = _linear(
            phi, rotary, q, k, feature_weights, log_decay, queries, keys, visible
        )
        weights = ratio(products, norms) if divided else products * softmax_scale(q, scale)
    out = ops.einsum("bhqk,bkhd->bqhd", weights, v)
    return (out, weights) if return_weights else out


def _linear(phi, rotary, q, k, feature_weights, log_decay, queries, keys, visible):
    """φ(q_i)·φ(k_j) with the decay between them, and the sum over j that divides it."""
    features, q, k = features_of(phi, rotary, q, k, feature_weights, keys.segment)
    shown = None if keys.segment is None else keys.segment != 0
    sin_cos = [features.sin_cos(x.position, q.shape[3], q.dtype) for x in (queries, keys)]
    q, k, q_norm, k_norm = features(q, k, feature_weights, sin_cos[0], shown, sin_cos[1])
    products = norms = hide(ops.einsum("bqhd,bkhd->bhqk", q, k), visible)
    if q_norm is not None:
        norms = hide(ops.einsum("bqhd,bkhd->bhqk", q_norm, k_norm), visible)
    if log_decay is not None:
        log_decay = gates.of_tokens(gates.given(log_decay, q), q, queries, keys)
        decay = between(ops.swapaxes(log_decay, 1, 2))
        products, norms = products * decay, norms * decay
    return products, ops.sum(norms, axis=-1, keepdims=True)
