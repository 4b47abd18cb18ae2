"""Layer normalisation on JAX with a gradient of its own.

The gradient is written in the normalised input, which is formed again from the input, a mean and
a deviation per token. What JAX derives keeps several arrays of the input's size, and goes over
them once for each of the terms that cancel.
"""

import jax
import jax.numpy as jnp

from kzoo.ops.kernels.derivatives import by_hand


def layer_norm(x, scale, offset, epsilon):
    """See `kzoo.ops.normalization.layer_norm`."""
    return _layer_norm(epsilon, (x, scale, offset), None)


def _forward(epsilon, floats, _):
    x, scale, offset = floats
    tokens = _float32(x)
    mean = tokens.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(tokens - mean).mean(-1, keepdims=True) + epsilon)
    y = (tokens - mean) * inverse * scale + offset
    return y.reshape(x.shape).astype(x.dtype), (mean, inverse)


def _backward(epsilon, floats, _, saved, slope):
    x, scale, offset = floats
    mean, inverse = saved
    normal = (_float32(x) - mean) * inverse
    slope = _float32(slope)
    by_scale, by_offset = (slope * normal).sum(0), slope.sum(0)
    slope = slope * scale
    along = (slope * normal).mean(-1, keepdims=True)
    by_x = inverse * (slope - slope.mean(-1, keepdims=True) - normal * along)
    by_x = by_x.reshape(x.shape).astype(x.dtype)
    return by_x, by_scale.astype(scale.dtype), by_offset.astype(offset.dtype)


_layer_norm = by_hand(lambda *arrays: _forward(*arrays)[0], _forward, _backward)


def _float32(x):
    """[..., width] as [tokens, width], in float32 at least."""
    return x.reshape(-1, x.shape[-1]).astype(jnp.promote_types(x.dtype, "float32"))
