"""In what precision matrices are multiplied where float32 is promised.

A TPU multiplies float32 matrices in bfloat16, and an NVIDIA GPU in TF32, unless a program says
otherwise. What stands in bfloat16 loses nothing by it: its products are exact, and summed in
float32. So precision is asked for where operands are float32 of their own, or where a sum that is
kept in float32 is multiplied again. On a TPU such a product takes six passes instead of one.
"""

import contextlib


@contextlib.contextmanager
def float32_products(dtype="float32"):
    """A context in which JAX multiplies float32 matrices in float32 on every platform.

    It also decorates functions. Derivatives of what is done inside keep it, but not the custom
    ones of JAX, which say it themselves. On other backends it changes nothing: torch multiplies in
    float32 by default, and TensorFlow on a GPU as
    `tf.config.experimental.enable_tensor_float_32_execution` says.

    Args:
        dtype: of the operands before they were cast; of 16-bit ones nothing is asked.

    Example:
        >>> from keras import ops
        >>> q = k = np.ones((1, 3, 2, 4))
        >>> with float32_products():
        ...     scores = ops.einsum("bqhd,bkhd->bhqk", q, k)
    """
    from kzoo.load_keras import keras

    wide = keras.backend.standardize_dtype(dtype) in ("float32", "float64")
    if not wide or keras.backend.backend() != "jax":
        yield
        return
    import jax

    with jax.default_matmul_precision("highest"):
        yield
