"""The batch axis on many devices."""

import keras


def split_by_example(x):
    """The same tensor, split by examples over the mesh axis "data" where there is one.

    Where parameters are split over "data" too, XLA might rather split the features of what they
    are multiplied with, and have every device compute all examples.

    Args:
        x: a tensor [batch, ...]; one that does not divide is left alone.
    """
    if keras.backend.backend() != "jax":
        return x
    from kzoo.ops.kernels.mesh import rows_on_devices

    return rows_on_devices(x)
