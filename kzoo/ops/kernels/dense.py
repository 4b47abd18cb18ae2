"""Softmax attention by its definition, on every backend: memory quadratic in time."""

from keras import ops

from kzoo.ops.tensors import masked_softmax, repeat_heads

NAME, MECHANISM = "dense", "softmax"


def preferred(spec):
    """Whether "auto" takes it: where no other kernel does."""
    return True


def unsupported_reason(spec) -> str | None:
    """Why it cannot compute an attention: it can compute every one."""
    return None


def run(q, k, v, queries, keys, spec, *, scale, bias=None):
    """softmax(scale · q kᵀ + bias) v over the visible keys, computed in float32 at least.

    All kernels of softmax attention take these arguments.

    Args:
        q: floats [batch, query_time, heads, dim], zero at padding.
        k: floats [batch, key_time, kv_heads, dim], zero at padding.
        v: floats [batch, key_time, kv_heads, value_dim], zero at padding.
        queries, keys: their `SequenceInfo`.
        spec: a `kzoo.ops.dispatch.Spec` whose `unsupported_reason` is None.
        scale: a number, the factor on q·k.
        bias: floats [batch or 1, heads or 1, query_time, key_time], or None.

    Returns:
        Floats [batch, query_time, heads, value_dim] in any dtype of at least that of v; 0 for
        queries that see no key.
    """
    q, k, v = (ops.cast(x, spec.wide_dtype) for x in (q, k, v))
    k, v = (repeat_heads(x, q.shape[2]) for x in (k, v))
    scores = ops.einsum("bqhd,bkhd->bhqk", q * scale, k)
    visible = spec.mask.between(queries, keys, num_heads=q.shape[2])
    return ops.einsum("bhqk,bkhd->bqhd", masked_softmax(scores, visible, bias), v)
