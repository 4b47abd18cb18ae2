"""Layer normalisation."""

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
