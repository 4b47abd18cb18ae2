"""Softmax attention by cuDNN's fused kernel on an NVIDIA GPU, through `jax.nn`."""

import jax
import jax.numpy as jnp

NAME, MECHANISM = "cudnn", "softmax"
DTYPES = ("float16", "bfloat16")
LARGEST_DIM = 128  # of heads, on every GPU that has the kernel
CAPABILITY = 8.0  # that of Ampere


def preferred(spec):
    """Whether "auto" takes it: on NVIDIA GPUs."""
    return spec.platform == "gpu"


def unsupported_reason(spec) -> str | None:
    """Why cuDNN cannot compute an attention, in words for its user, or None if it can.

    The conditions are those that `jax.nn.dot_product_attention` checks, for training too.
    """
    if spec.bias:
        return "cuDNN's kernel adds no bias that is learned; use 'dense'"
    if spec.dtype not in DTYPES:
        return f"cuDNN's kernel computes in {' or '.join(DTYPES)}, not in {spec.dtype}"
    dim, value_dim = spec.dim, spec.value_dim
    if dim != value_dim or dim > LARGEST_DIM or dim % 8:
        return (
            f"cuDNN takes heads of 8, 16, … {LARGEST_DIM} dimensions, the same in q, k and v, "
            f"not {dim} and {value_dim}"
        )
    times = spec.query_time, spec.key_time
    flags = _flags(spec.mask, spec.num_heads, spec.same_sequence and not spec.padded)
    if flags is None and any(time is None or time % 2 for time in times):
        return f"cuDNN takes a mask for even times only, not for {times[0]} and {times[1]}"
    capability = _capability()
    if capability is not None and capability < CAPABILITY:
        return f"cuDNN's kernel needs a GPU of compute capability {CAPABILITY}, not {capability}"
    return None


def run(q, k, v, queries, keys, spec, *, scale, bias=None):
    """softmax(scale · q kᵀ) v over the visible keys, as `kzoo.ops.kernels.dense.run`.

    Flags are used where they say exactly what the mask says, else a mask tensor. Where there is
    no GPU, XLA computes the same, for tests. Source: Dao et al. 2022, arXiv:2205.14135, as cuDNN
    has it.
    """
    mask = spec.mask
    flags = _flags(mask, q.shape[2], queries is keys and keys.segment is None)
    seen = some = None
    if flags is None:
        flags = {}
        seen = mask.between(queries, keys, q.shape[2])
        some = seen.any(axis=-1, keepdims=True)
        # A query of nothing but hidden keys has no softmax: it sees all, and is hidden after.
        seen = seen | ~some
    # It multiplies 16-bit floats and sums in float32; wider ones would only take more memory.
    q, k, v = (x.astype(spec.dtype) for x in (q, k, v))
    implementation = "cudnn" if spec.platform == "gpu" else "xla"
    out = jax.nn.dot_product_attention(
        q, k, v, mask=seen, scale=scale, implementation=implementation, **flags
    )
    return out if some is None else jnp.where(jnp.swapaxes(some, 1, 2), out, 0)


def _flags(mask, num_heads, whole):
    """What says the mask without a tensor: arguments of `jax.nn`'s function; None if nothing."""
    heads = mask.per_head(num_heads)
    causal, full = all(head.is_causal for head in heads), all(head.is_full for head in heads)
    return {"is_causal": causal} if whole and (causal or full) else None


def _capability():
    """Of this process's GPU; None where there is none, and programs are made for another."""
    if jax.default_backend() != "gpu":
        return None
    try:
        return float(jax.local_devices()[0].compute_capability)
    except ValueError:  # AMD's have names
        return 0.0
