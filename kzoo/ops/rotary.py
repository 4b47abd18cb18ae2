"""Rotary position embedding."""

import keras
from keras import ops

from kzoo.errors import InputError

MAX_WAVELENGTH = 10_000


def rotate(x, position):
    """Turn each pair of entries by an angle proportional to the position.

    Entry i is paired with entry i + dim/2 and turned by position · 10000^(-2i/dim), so that
    the product of two rotated vectors depends on the distance of their positions only.
    Source: Su et al. 2021, arXiv:2104.09864, equation 34.

    Args:
        x: floats [batch, time, heads, dim], dim even.
        position: integers [batch or 1, time].

    Returns:
        The same shape and dtype; angles are computed in float32 at least.

    Raises:
        InputError: if dim is odd.
    """
    dim = x.shape[-1]
    if dim % 2:
        raise InputError(f"rotary positions need an even head size. Received: {dim}")
    dtype = "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"
    frequency = MAX_WAVELENGTH ** (-ops.arange(0, dim, 2, dtype=dtype) / dim)
    angle = (ops.cast(position, dtype)[..., None] * frequency)[:, :, None, :]
    sine, cosine = ops.cast(ops.sin(angle), x.dtype), ops.cast(ops.cos(angle), x.dtype)
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
