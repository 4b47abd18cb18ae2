"""Token embedding and output matrix."""

import keras
from keras import ops

from kzoo.layers.initializers import SeededNormal, derive_seed


@keras.saving.register_keras_serializable(package="kzoo")
class TokenEmbedding(keras.layers.ReversibleEmbedding):
    """Token ids to vectors, and with `reverse=True` vectors to float32 logits.

    Entries have the standard deviation 1/√hidden_dim, so that normalised hidden states give
    initial logits of unit scale at every width.

    As `keras.layers.ReversibleEmbedding`, with two differences: the free output matrix has
    initial values of its own, and the gradient is dense on every backend (TensorFlow's sparse
    one makes Adam update a token once per occurrence, and so trains differently).

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: size of a vector.
        tie_weights: whether the output matrix is the transposed embedding.
        seed: integer from which the initial values derive.
    """

    def __init__(self, vocabulary_size, hidden_dim, tie_weights=True, seed=0, **kwargs):
        super().__init__(
            vocabulary_size,
            hidden_dim,
            tie_weights=tie_weights,
            embeddings_initializer=SeededNormal(hidden_dim**-0.5, derive_seed(seed, "embeddings")),
            reverse_dtype="float32",
            **kwargs,
        )
        self.seed = seed

    def build(self, input_shape=None):
        super().build(input_shape)
        if not self.tie_weights and self.quantization_mode is None:
            draw = SeededNormal(self.output_dim**-0.5, derive_seed(self.seed, "reverse_embeddings"))
            self.reverse_embeddings.assign(draw(self.reverse_embeddings.shape))

    def call(self, inputs, reverse=False):
        if reverse or self.quantization_mode is not None:
            return super().call(inputs, reverse=reverse)
        vectors = ops.take(self.embeddings * 1.0, inputs, axis=0)
        return ops.cast(vectors, self.compute_dtype)

    def compute_output_spec(self, inputs, reverse=False):
        if reverse:
            return keras.KerasTensor((*inputs.shape[:-1], self.input_dim), dtype="float32")
        return super().compute_output_spec(inputs)

    def get_config(self):
        config = super().get_config()
        for name in ("input_dim", "output_dim", "embeddings_initializer", "reverse_dtype"):
            del config[name]
        return {
            **config,
            "vocabulary_size": self.input_dim,
            "hidden_dim": self.output_dim,
            "seed": self.seed,
        }
