"""Models and attention in float64, in which small singular values and residuals are more than
rounding."""

import contextlib

import keras
import numpy as np
from keras import ops

from kzoo.errors import InputError


def float64():
    """A context in which the backend computes in float64 where it is asked to (JAX: nowhere else).

    Example:
        >>> with float64():
        ...     keras.backend.standardize_dtype(keras.ops.ones(2, "float64").dtype)
        'float64'
    """
    if keras.backend.backend() != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


def copied(backbone):
    """A copy of a backbone that computes in float64, to be called inside `float64()`.

    LoRA matrices are part of its kernels. The backbone itself stays as it is.

    Raises:
        InputError: for quantised weights, and LoRA with alpha other than its rank.
    """
    from kzoo.models.weights import LORA, by_path, check_factors

    modes = {layer.quantization_mode for layer in backbone._flatten_layers()} - {None}
    if modes:
        raise InputError(
            "parts of a model are left out in float64, which quantised weights are not: analyse "
            "the model before quantize, or without this measure of its collapse (--measures "
            f"spectrum, measures='spectrum'). Received: {', '.join(sorted(modes))}"
        )
    check_factors(backbone)
    with float64():
        copy = type(backbone).from_config({**backbone.get_config(), "dtype": "float64"})
        values = {path: numpy(variable) for path, variable in by_path(backbone).items()}
        for path in list(values):
            parent, _, name = path.rpartition("/")
            if name in LORA:
                second, whole = (f"{parent}/{name}" for name in LORA[name])
                values[whole] = values[whole] + values[path] @ values[second]
        for path, variable in by_path(copy).items():
            variable.assign(values[path])
    return copy


def numpy(x):
    """A tensor of any backend and dtype as a float64 array."""
    if keras.backend.standardize_dtype(x.dtype) != "float64":
        x = ops.cast(x, "float32")  # NumPy has no bfloat16
    return ops.convert_to_numpy(x).astype(np.float64)
