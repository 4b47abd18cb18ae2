"""Normalisation over the last axis."""

import keras
from keras import ops


def layer_norm(x, scale, offset, epsilon):
    """scale · (x - mean) / √(variance + epsilon) + offset, over the last axis.

    Source: Ba et al. 2016, arXiv:1607.06450, equation 3 with the statistics of equation 4.

    Args:
        x: floats [..., width].
        scale, offset: floats [width].
        epsilon: float.

    Returns:
        The shape and dtype of x; statistics and sums are in float32 at least.

    Example:
        >>> layer_norm(np.eye(4), np.ones(4), np.zeros(4), 1e-5).shape
        (4, 4)
    """
    x, scale, offset = (ops.convert_to_tensor(value) for value in (x, scale, offset))
    if keras.backend.backend() != "jax":
        return ops.layer_normalization(x, scale, offset, -1, epsilon)
    from kzoo.ops.kernels.layer_norm import layer_norm

    return layer_norm(x, scale, offset, epsilon)


def rms_norm(x, scale, epsilon=1e-6):
    """scale · x / √(mean of x² + epsilon), over the last axis.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.

    Args:
        x: floats [..., dim].
        scale: floats [dim].
        epsilon: float.

    Returns:
        The shape and dtype of x, computed in float32 at least.
    """
    y, dtype = _wide(x)
    # Divided, not times `rsqrt`: of that XLA on a CPU (JAX 0.10.2) compiles a wrong Jacobian.
    power = ops.mean(ops.square(y), axis=-1, keepdims=True)
    return ops.cast(y / ops.sqrt(power + epsilon) * ops.cast(scale, y.dtype), dtype)


def unit(x, epsilon=1e-6):
    """x / √(sum of x² + epsilon), over the last axis: of length 1. As `rms_norm` otherwise."""
    y, dtype = _wide(x)
    power = ops.sum(ops.square(y), axis=-1, keepdims=True)
    return ops.cast(y / ops.sqrt(power + epsilon), dtype)


def _wide(x):
    x = ops.convert_to_tensor(x)
    return (x if "float64" in str(x.dtype) else ops.cast(x, "float32")), x.dtype
