"""The position-wise feed-forward network."""

import keras
from keras import activations

from kzoo.errors import unknown
from kzoo.layers.initializers import RESIDUAL_SCALE, dense

# Name -> (function, whether it gates a second projection).
ACTIVATIONS = {
    "gelu": (lambda x: activations.gelu(x, approximate=False), False),
    "relu": (activations.relu, False),
    "geglu": (lambda x: activations.gelu(x, approximate=False), True),
    "swiglu": (activations.silu, True),
}


@keras.saving.register_keras_serializable(package="kzoo")
class FeedForward(keras.layers.Layer):
    """W₂ f(W₁ x), or W₂ (f(W_g x) · W₁ x) for the gated activations.

    Source: Shazeer 2020, arXiv:2002.05202, equations 1 and 6.

    Args:
        intermediate_dim: size of the inner layer.
        activation: `"gelu"`, `"relu"`, `"geglu"` or `"swiglu"`.
        use_bias: whether the projections have biases.
        seed: integer from which the initial values derive.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].

    Returns:
        The same shape.

    Raises:
        InputError: for an unknown activation.
    """

    def __init__(self, intermediate_dim, activation="gelu", use_bias=True, seed=0, **kwargs):
        super().__init__(**kwargs)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.use_bias = use_bias
        self.seed = seed
        self.function, self.gated = ACTIVATIONS[activation]

    def build(self, input_shape):
        width, inner = input_shape[-1], self.intermediate_dim

        def project(inputs, units, name, scale=1.0):
            kwargs = {"use_bias": self.use_bias, "dtype": self.dtype_policy}
            return dense(inputs, units, self.seed, name, scale, **kwargs)

        self.gate = project(width, inner, "gate") if self.gated else None
        self.intermediate = project(width, inner, "intermediate")
        self.output_dense = project(inner, width, "output_dense", RESIDUAL_SCALE)

    def compute_output_spec(self, inputs, **kwargs):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs):
        x = self.intermediate(inputs)
        x = self.function(x) if self.gate is None else self.function(self.gate(inputs)) * x
        return self.output_dense(x)

    def get_config(self):
        return {
            **super().get_config(),
            "intermediate_dim": self.intermediate_dim,
            "activation": self.activation,
            "use_bias": self.use_bias,
            "seed": self.seed,
        }
