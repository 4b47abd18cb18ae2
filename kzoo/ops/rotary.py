"""Rotary position embedding."""

import keras
import numpy as np
from keras import ops

from kzoo.errors import InputError
from kzoo.values import is_integer

MAX_WAVELENGTH = 10_000


def rotate(x, position, bound=None):
    """Rotate each pair of entries by an angle proportional to the position.

    Entry i is paired with entry i + dim/2 and rotated by position · 10000^(-2i/dim), so that
    the product of two rotated vectors depends on the distance of their positions only.
    Source: Su et al. 2021, arXiv:2104.09864, equation 34.

    Args:
        x: floats [batch, time, heads, dim], dim even.
        position: integers [batch or 1, time].
        bound: an integer that all positions are below, where one is known; see `sin_cos`.

    Returns:
        The same shape and dtype; angles are computed in float32 at least.

    Raises:
        InputError: if dim is odd.
    """
    return apply_rotary(x, sin_cos(position, x.shape[-1], x.dtype, bound))


def sin_cos(position, dim, dtype="float32", bound=None):
    """The sines and cosines of `rotate`, [batch or 1, time, dim / 2] each, in `dtype`.

    Below a known bound they are looked up: XLA would fuse their computation into every use, and
    do it again for each head.
    """
    if dim % 2:
        raise InputError(f"rotary positions need an even head size. Received: {dim}")
    dtype = keras.backend.standardize_dtype(dtype)
    if is_integer(bound):
        angles = np.arange(bound)[:, None] * _frequencies(dim)
        # As one table, so that one lookup finds both.
        table = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
        return ops.split(ops.take(ops.convert_to_tensor(table, dtype), position, axis=0), 2, -1)
    precise = "float64" if dtype == "float64" else "float32"
    frequencies = ops.convert_to_tensor(_frequencies(dim), precise)
    angle = ops.cast(position, precise)[..., None] * frequencies
    return ops.cast(ops.sin(angle), dtype), ops.cast(ops.cos(angle), dtype)


def apply_rotary(x, sin_cos):
    """`x` [batch, time, heads, dim] rotated by the sines and cosines of `sin_cos`."""
    sine, cosine = (table[:, :, None] for table in sin_cos)
    first, second = ops.split(x, 2, axis=-1)
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def _frequencies(dim):
    return MAX_WAVELENGTH ** (-np.arange(0, dim, 2) / dim)
