"""Absolute positions, added to the embeddings. They restart in every document.

Rotary positions live in the attention (`kzoo.ops.rotary`).
"""

import keras
from keras import ops

from kzoo.layers.initializers import SeededNormal, derive_seed
from kzoo.places import document_positions


class _AddedPositions(keras.layers.Layer):
    """Adds a vector for each place within the document.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time]: 0 padding, k the k-th document of the row.

    Returns:
        The same shape.
    """

    def compute_output_spec(self, inputs, padding_mask):
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs, padding_mask):
        return inputs + ops.cast(self.vectors(document_positions(padding_mask)), inputs.dtype)


@keras.saving.register_keras_serializable(package="kzoo")
class LearnedPositions(_AddedPositions):
    """One trained vector for each position below `max_length`.

    Args:
        max_length: number of positions.
        seed: integer from which the initial values derive.
    """

    def __init__(self, max_length, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.max_length = max_length
        self.seed = seed

    def build(self, inputs_shape, padding_mask_shape=None):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length, inputs_shape[-1]),
            initializer=SeededNormal(
                inputs_shape[-1] ** -0.5, derive_seed(self.seed, "embeddings")
            ),
        )

    def vectors(self, position):
        return ops.take(self.embeddings * 1.0, position, axis=0)

    def get_config(self):
        return {**super().get_config(), "max_length": self.max_length, "seed": self.seed}


@keras.saving.register_keras_serializable(package="kzoo")
class SinusoidalPositions(_AddedPositions):
    """Sines and cosines of geometric wavelengths (arXiv:1706.03762, section 3.5).

    Scaled so that their root mean square equals that of the initial token embeddings, which
    they would drown otherwise.
    """

    MAX_WAVELENGTH = 10_000

    def build(self, inputs_shape, padding_mask_shape=None):
        self.hidden_dim = inputs_shape[-1]

    def vectors(self, position):
        half = (self.hidden_dim + 1) // 2
        wave = self.MAX_WAVELENGTH ** (-ops.arange(half, dtype="float32") / half)
        angle = ops.cast(position, "float32")[..., None] * wave
        both = ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
        return both[..., : self.hidden_dim] * (2 / self.hidden_dim) ** 0.5
