"""Gradients of a function of tensors, compiled as the backend has it."""

from collections.abc import Callable

import keras
import numpy as np


def value_and_gradients(
    function: Callable, floats: dict, cotangent: np.ndarray, dtype: str
) -> tuple[np.ndarray, dict]:
    """`function(floats)`, and by name its gradients with a cotangent: float64 NumPy arrays.

    Args:
        function: of a dict of tensors.
        floats: that dict, of arrays.
        cotangent: an array of the output's shape.
        dtype: in which the backend computes.
    """
    convert = keras.ops.convert_to_tensor
    tensors = {name: convert(x.astype("float32"), dtype=dtype) for name, x in floats.items()}
    cotangent = convert(cotangent.astype("float32"), dtype=dtype)
    out, gradients = _BY_BACKEND[keras.backend.backend()](function, tensors, cotangent)
    zeros = {name: np.zeros(x.shape) for name, x in floats.items()}  # of what changes nothing
    return _numpy(out), zeros | {n: _numpy(x) for n, x in gradients.items() if x is not None}


def _jax(function, tensors, cotangent):
    import jax

    @jax.jit
    def run(tensors, cotangent):
        out, pull = jax.vjp(function, tensors)
        return out, pull(cotangent.astype(out.dtype))[0]

    return run(tensors, cotangent)


def _torch(function, tensors, cotangent):
    tensors = {name: x.detach().requires_grad_() for name, x in tensors.items()}
    out = function(tensors)
    out.backward(cotangent.to(out.dtype))
    return out, {name: x.grad for name, x in tensors.items()}


def _tensorflow(function, tensors, cotangent):
    import tensorflow as tf

    @tf.function
    def run(tensors, cotangent):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            out = function(tensors)
        cotangent = tf.cast(cotangent, out.dtype)
        return out, tape.gradient(out, tensors, output_gradients=cotangent)

    return run(tensors, cotangent)


_BY_BACKEND = {"jax": _jax, "torch": _torch, "tensorflow": _tensorflow}


def _numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).astype("float64")
