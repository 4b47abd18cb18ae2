"""Softmax attention by torch's `scaled_dot_product_attention`."""

import torch


def sdpa(q, k, v, mask, queries, keys, bias=None):
    """softmax(q kᵀ + bias) v over the visible keys.

    Flags are used where they say exactly what the mask says, else a mask tensor.

    Args:
        q: floats [batch, query_time, heads, dim], scaled.
        k: floats [batch, key_time, heads, dim].
        v: floats [batch, key_time, heads, value_dim].
        mask: a `Mask` that does not differ by layer.
        queries, keys: their `SequenceInfo`.
        bias: floats [batch or 1, heads or 1, query_time, key_time], or None.

    Returns:
        Floats [batch, query_time, heads, value_dim]; 0 for queries that see no key.
    """
    heads = mask.per_head(q.shape[2])
    whole = keys.segment is None and bias is None
    causal = whole and queries is keys and all(head.is_causal for head in heads)
    seen = None
    if not causal and not (whole and all(head.is_full for head in heads)):
        seen = mask.between(queries, keys, q.shape[2])
    some = None if seen is None else seen.any(dim=-1, keepdim=True)
    if bias is not None:
        seen = bias.masked_fill(~seen, float("-inf"))
    if some is not None:
        # A row of nothing but hidden keys has no softmax: it sees all, and is hidden after.
        seen = torch.where(some, seen, torch.zeros_like(seen) if bias is not None else True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=causal, scale=1.0
    )
    if some is not None:
        out = torch.where(some, out, torch.zeros_like(out))
    return out.transpose(1, 2)
