"""Softmax attention by torch's `scaled_dot_product_attention`."""

from keras import ops

NAME, MECHANISM = "sdpa", "softmax"


def preferred(spec):
    """Whether "auto" takes it: everywhere."""
    return True


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention: it can compute every one."""
    return None


def run(q, k, v, queries, keys, spec, *, scale, bias=None):
    """softmax(scale · q kᵀ + bias) v over the visible keys, as `kzoo.ops.kernels.dense.run`.

    Flags are used where they say exactly what the mask says, else a mask tensor. On a GPU 16-bit
    q, k and v are multiplied as they are, and summed in float32; on a CPU with AVX2 torch takes
    five times as long for bfloat16 as for float32. Heads of keys and values are not repeated.
    """
    import torch

    narrow = spec.platform == "gpu" and bias is None and spec.dtype != spec.wide_dtype
    q, k, v = (ops.cast(x, spec.dtype if narrow else spec.wide_dtype) for x in (q, k, v))
    if not narrow:  # a narrow q would be rounded
        q, scale = q * scale, 1.0
    heads = spec.mask.per_head(q.shape[2])
    whole = keys.segment is None and bias is None
    causal = whole and queries is keys and all(head.is_causal for head in heads)
    seen = None
    if not causal and not (whole and all(head.is_full for head in heads)):
        seen = spec.mask.between(queries, keys, q.shape[2])
    some = None if seen is None else seen.any(dim=-1, keepdim=True)
    if bias is not None:
        seen = bias.masked_fill(~seen, float("-inf"))
    if some is not None:
        # A query of nothing but hidden keys has no softmax: it sees all, and is hidden after.
        seen = torch.where(some, seen, torch.zeros_like(seen) if bias is not None else True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=causal, scale=scale, enable_gqa=k.shape[1] < q.shape[1]
    )
    if some is not None:
        out = torch.where(some, out, torch.zeros_like(out))
    return out.transpose(1, 2)
