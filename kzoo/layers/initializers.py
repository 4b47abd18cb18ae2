"""Initial values that depend on (seed, path of the variable) and on nothing else."""

import hashlib
from typing import Any

import keras
import numpy as np
from keras import ops

from kzoo.typing import Shape, Tensor

# Of the projections that write to the residual stream, so that every block begins close to the
# identity. Not a function of the depth: one more layer must not move the others.
RESIDUAL_SCALE = 0.2


def derive_seed(seed: int, path: str) -> int:
    """The seed of the variable or layer at `path` within a layer whose seed is `seed`.

    A layer derives its children's seeds from its own, so that every variable's seed follows
    from the model's seed and the variable's path: one more layer somewhere moves no other.

    Args:
        seed: integer.
        path: string, e.g. `"block_0"` or `"query/kernel"`.

    Returns:
        An integer in [0, 2^31).

    Example:
        >>> derive_seed(0, "block_0") == derive_seed(0, "block_0") != derive_seed(0, "block_1")
        True
    """
    digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@keras.saving.register_keras_serializable(package="kzoo")
class SeededNormal(keras.initializers.Initializer):
    """Normal values of mean 0, drawn by NumPy: the same on every backend and device.

    Args:
        stddev: standard deviation.
        seed: integer; the same seed and shape give the same values.

    Example:
        >>> SeededNormal(0.02, seed=3)((4, 2)).shape
        (4, 2)
    """

    def __init__(self, stddev: float, seed: int = 0) -> None:
        self.stddev = stddev
        self.seed = seed

    def __call__(self, shape: Shape, dtype: str | None = None, layout: Any = None) -> Tensor:
        values = np.random.default_rng(self.seed).standard_normal(shape, "float32")
        values = ops.cast(values * np.float32(self.stddev), dtype or keras.config.floatx())
        if layout is None:
            return values
        # Keras passes the layout of a variable on a mesh of devices; without an argument for it,
        # it would compile the values of a large one into a program of its own, for many seconds.
        mesh = keras.distribution.distribution().device_mesh
        layout = keras.distribution.TensorLayout(tuple(layout.spec), mesh)
        return keras.distribution.distribute_tensor(values, layout)

    def get_config(self) -> dict[str, Any]:
        return {"stddev": self.stddev, "seed": self.seed}


def stddevs(initialization, num_layers):
    """The standard deviations of initial kernels under a config's `initialization`.

    `"gpt2"` draws all kernels with 0.02, and those that write to the residual stream with that
    over √(2 num_layers) (Radford et al. 2019, section 2.3).

    Returns:
        A pair of floats, for `dense`; None for `"fan_in"`.
    """
    return None if initialization == "fan_in" else (0.02, 0.02 * (2 * num_layers) ** -0.5)


def dense(inputs, units, seed, name, stddev=None, residual=False, **kwargs):
    """A built Dense layer whose initial kernel follows from its parent's seed and its name.

    Args:
        inputs, units: sizes.
        seed: the parent's.
        name: the layer's.
        stddev: two standard deviations, of other kernels and of those that write to the residual
            stream; by default 1/√inputs, which keeps the size of the outputs at every width
            (LeCun et al. 1998, Efficient BackProp, equation 16), and `RESIDUAL_SCALE` times it.
        residual: whether it writes to the residual stream.
        **kwargs: of `keras.layers.Dense`.
    """
    stddev = stddev or (inputs**-0.5, RESIDUAL_SCALE * inputs**-0.5)
    initializer = SeededNormal(stddev[residual], derive_seed(seed, f"{name}/kernel"))
    layer = keras.layers.Dense(units, kernel_initializer=initializer, name=name, **kwargs)
    layer.build((None, inputs))
    return layer


def by_token(function, x):
    """`function` of [batch · time, width] on x, [batch, time, width]: the same, and faster.

    A kernel's gradient then sums over one axis. Over two, XLA on a CPU transposes the outputs'
    gradient first, and for that computes the residual stream's gradient above it once more: 0.6
    times the time of a train step in four layers, and the less the more there are.
    """
    lead = ops.shape(x)[:-1]
    y = function(ops.reshape(x, (-1, x.shape[-1])))
    return ops.reshape(y, (*lead, y.shape[-1]))
