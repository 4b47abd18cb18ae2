"""Softmax attention."""

import keras
from keras import ops

from kzoo.ops.dispatch import kernel_for, kernels, spec_of
from kzoo.ops.qkv import nothing, prepare
from kzoo.ops.rotary import rotate
from kzoo.ops.tensors import softmax_scale
from kzoo.precision import float32_products
from kzoo.typing import MaskSpec, Tensor


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: MaskSpec = "bidirectional",
    *,
    padding_mask: Tensor | None = None,
    source_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    query_offset: int | Tensor = 0,
    scale: float | None = None,
    bias: Tensor | None = None,
    rotary: bool = False,
    implementation: str = "auto",
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v over the visible keys (arXiv:1706.03762, equation 1).

    Products are summed, and statistics kept, in float32 whatever the dtype of q, k and v. Of
    float32 ones JAX is told to form them in float32 too (`kzoo.precision`): on a TPU
    in six passes instead of one. Of 16-bit q, k, v and weights they take one.
    Under the kernels `native` and `blockwise` memory is linear in time for the output and its
    gradient, and quadratic for forward mode and for derivatives of the gradient.

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask`.
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`.
        scale: factor on q·k; 1/√dim by default.
        bias: floats [batch or 1, heads or 1, query_time, key_time], added to the scores.
        rotary: rotate q and k by the position within the document.
        implementation: for tests and benchmarks, a kernel by name (`kzoo.ops.dispatch`).

    Returns:
        [batch, query_time, heads, value_dim] in the dtype of v. Padded queries, and queries
        that see no key, give exactly 0.

    Raises:
        InputError: if shapes disagree, the heads of the mask do not tile those of q, a
            prefix has no `source_mask`, or the named kernel does not apply.

    Example:
        >>> out = softmax_attention(q, k, v, {"heads": ["causal", "reversed"]})
    """
    zeros = nothing(q, k, v)
    if zeros is not None:
        return zeros
    dtype = keras.backend.standardize_dtype(ops.convert_to_tensor(v).dtype)
    q, k, v, mask, queries, keys = prepare(
        q,
        k,
        v,
        mask,
        padding_mask=padding_mask,
        source_mask=source_mask,
        key_padding_mask=key_padding_mask,
        query_offset=query_offset,
    )
    spec = spec_of(
        q,
        k,
        v,
        mask,
        padded=keys.segment is not None,
        same_sequence=queries is keys,
        bias=bias is not None,
        dtype="float64" if keras.backend.standardize_dtype(q.dtype) == "float64" else dtype,
    )
    if rotary:
        bound = q.shape[1] if queries is keys else None
        q = rotate(ops.cast(q, spec.wide_dtype), queries.position, bound)
        k = rotate(ops.cast(k, spec.wide_dtype), keys.position, bound)
    bias = bias if bias is None else ops.cast(bias, spec.wide_dtype)
    name = kernel_for("softmax", spec, implementation)
    run = kernels("softmax", spec.backend)[name].run
    with float32_products(dtype):
        out = run(q, k, v, queries, keys, spec, scale=softmax_scale(q, scale), bias=bias)
        return ops.cast(out, dtype)
