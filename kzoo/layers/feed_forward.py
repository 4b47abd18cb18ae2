"""The position-wise feed-forward network."""

from typing import Any

import keras
from keras import activations

from kzoo.errors import unknown
from kzoo.layers.arguments import check
from kzoo.layers.initializers import by_token, dense
from kzoo.names import ACTIVATIONS
from kzoo.ops.sharding import shard_batch
from kzoo.typing import Shape, Stddev, Tensor


def _gelu(x):
    return activations.gelu(x, approximate=False)


def _gelu_tanh(x):
    return activations.gelu(x, approximate=True)


# The functions that `kzoo.names.ACTIVATIONS` names.
FUNCTIONS = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": activations.relu,
    "silu": activations.silu,
}


@keras.saving.register_keras_serializable(package="kzoo")
class FeedForward(keras.layers.Layer):
    """W₂ f(W₁ x), or W₂ (f(W_g x) · W₁ x) for the gated activations.

    Source: Shazeer 2020, arXiv:2002.05202, equations 1 and 6.

    Args:
        intermediate_dim: size of the inner layer.
        activation: `"gelu"`, `"relu"`, `"geglu"` or `"swiglu"`; `"gelu_tanh"` and `"geglu_tanh"`
            approximate the first and third (Hendrycks & Gimpel 2016, arXiv:1606.08415).
        use_bias: whether the projections have biases.
        stddev: of initial kernels, as in `kzoo.layers.initializers.dense`.
        seed: integer from which the initial values derive.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].

    Returns:
        The same shape.

    Raises:
        InputError: for an unknown activation.

    Example:
        >>> FeedForward(256)(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str = "gelu",
        use_bias: bool = True,
        stddev: Stddev = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        check(intermediate_dim=intermediate_dim, use_bias=use_bias, stddevs=stddev, seed=seed)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.stddev = stddev and tuple(stddev)
        self.seed = seed
        self.function = FUNCTIONS[ACTIVATIONS[activation].function]
        self.gated = ACTIVATIONS[activation].gated
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        width, inner = input_shape[-1], self.intermediate_dim

        def project(inputs, units, name, residual=False):
            kwargs = {"use_bias": self.use_bias, "dtype": self.dtype_policy}
            return dense(inputs, units, self.seed, name, self.stddev, residual, **kwargs)

        self.gate = project(width, inner, "gate") if self.gated else None
        self.intermediate = project(width, inner, "intermediate")
        self.output_dense = project(inner, width, "output_dense", residual=True)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return tuple(input_shape)

    def compute_output_spec(self, inputs: Tensor, **kwargs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs: Tensor) -> Tensor:
        return shard_batch(by_token(self._transformed, inputs))

    def _transformed(self, inputs):
        x = self.intermediate(inputs)
        x = self.function(x) if self.gate is None else self.function(self.gate(inputs)) * x
        return self.output_dense(x)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "stddev": self.stddev,
            "seed": self.seed,
        }
