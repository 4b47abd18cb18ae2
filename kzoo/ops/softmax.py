"""Softmax attention."""

from keras import ops

from kzoo.ops.operands import prepare
from kzoo.ops.reference import masked_softmax, softmax_scale
from kzoo.ops.rotary import rotate


def softmax_attention(
    q,
    k,
    v,
    mask="bidirectional",
    *,
    padding_mask=None,
    source_mask=None,
    key_padding_mask=None,
    query_offset=0,
    scale=None,
    bias=None,
    rotary=False,
):
    """softmax(scale · q kᵀ + bias) v over the visible keys (arXiv:1706.03762, equation 1).

    Products and statistics are in float32 whatever the dtype of the operands.

    Args:
        q: floats [batch, query_time, heads, dim].
        k: floats [batch, key_time, kv_heads, dim], heads a multiple of kv_heads.
        v: floats [batch, key_time, kv_heads, value_dim].
        mask: a mask spec or `Mask`.
        padding_mask, source_mask, key_padding_mask, query_offset: as in `Mask.dense`.
        scale: factor on q·k; 1/√dim by default.
        bias: floats [batch or 1, heads or 1, query_time, key_time], added to the scores.
        rotary: rotate q and k by the place within the document.

    Returns:
        [batch, query_time, heads, value_dim] in the dtype of v. Padded queries, and queries
        that see no key, give exactly 0.

    Raises:
        InputError: if shapes disagree, the heads of the mask do not tile those of q, or a
            prefix has no `source_mask`.

    Example:
        >>> out = softmax_attention(q, k, v, {"heads": ["causal", "reversed"]})
    """
    dtype = ops.convert_to_tensor(v).dtype
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
    if rotary:
        q, k = rotate(q, queries.position), rotate(k, keys.position)
    scores = ops.einsum("bqhd,bkhd->bhqk", q * softmax_scale(q, scale), k)
    visible = mask.between(queries, keys, num_heads=q.shape[2])
    weights = masked_softmax(scores, visible, bias)
    return ops.cast(ops.einsum("bhqk,bkhd->bqhd", weights, v), dtype)
