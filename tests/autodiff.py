"""Values and gradients of a function of arrays, on whichever backend runs, as NumPy."""

import contextlib

import keras
import numpy as np


def precision(dtype):
    """A context in which the backend computes in `dtype` (JAX has float64 only if asked)."""
    if keras.backend.backend() == "jax" and dtype == "float64":
        import jax

        return jax.enable_x64(True)
    return contextlib.nullcontext()


def value_and_gradients(function, arrays, cotangent, dtype="float32"):
    """`function(*arrays)` and its vector-Jacobian product with `cotangent`, compiled on JAX.

    Returns:
        The value and a list of gradients, one per array, as float64 NumPy arrays.
    """
    backend = keras.backend.backend()
    with precision(dtype):
        arrays = [keras.ops.convert_to_tensor(np.asarray(x), dtype=dtype) for x in arrays]
        if backend == "jax":
            import jax

            @jax.jit
            def run(arrays, cotangent):
                value, pull = jax.vjp(function, *arrays)
                return value, pull(cotangent.astype(value.dtype))

            value, gradients = run(arrays, keras.ops.convert_to_tensor(cotangent))
        elif backend == "torch":
            arrays = [x.detach().requires_grad_() for x in arrays]
            value = function(*arrays)
            cotangent = keras.ops.convert_to_tensor(cotangent, dtype=value.dtype)
            value.backward(cotangent)
            gradients = [x.grad for x in arrays]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(arrays)
                value = function(*arrays)
            cotangent = tf.cast(cotangent, value.dtype)
            gradients = tape.gradient(value, arrays, output_gradients=cotangent)
        return numpy(value), [numpy(x) for x in gradients]


def computed(function):
    """The tensors that `function()` returns, in any nest, as NumPy arrays, float32 if bfloat16.

    On JAX they come of one program, where each operation of each shape would otherwise compile
    one of its own. Layers that have no weights yet get them first.
    """
    if keras.backend.backend() == "jax":
        import jax

        with keras.StatelessScope():  # in which weights are made, and initialised when it ends
            jax.eval_shape(function)
        function = jax.jit(function)
    return keras.tree.map_structure(_array, function())


def _array(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32") if _is_bf16(x) else x)


def numpy(x):
    """A tensor of any backend and dtype as a float64 array."""
    return _array(x).astype("float64")


def _is_bf16(x):
    return keras.backend.standardize_dtype(x.dtype) == "bfloat16"
