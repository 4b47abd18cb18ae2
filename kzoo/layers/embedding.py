"""Token embedding and output matrix."""

from typing import Any

import keras
from keras import ops

from kzoo.layers.arguments import check
from kzoo.layers.initializers import SeededNormal, derive_seed
from kzoo.typing import Shape, Stddev, Tensor


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
        stddev: of the initial values, instead of 1/√hidden_dim.
        seed: integer from which the initial values derive.

    Example:
        >>> embedding = TokenEmbedding(384, 64)
        >>> hidden = embedding(np.zeros((2, 10), int))
        >>> hidden.shape, embedding(hidden, reverse=True).shape
        ((2, 10, 64), (2, 10, 384))
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_dim: int,
        tie_weights: bool = True,
        stddev: Stddev = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check(vocabulary_size=vocabulary_size, hidden_dim=hidden_dim, tie_weights=tie_weights)
        check(stddev=stddev, seed=seed)
        self.stddev = stddev or hidden_dim**-0.5
        super().__init__(
            vocabulary_size,
            hidden_dim,
            tie_weights=tie_weights,
            embeddings_initializer=SeededNormal(self.stddev, derive_seed(seed, "embeddings")),
            reverse_dtype="float32",
            **kwargs,
        )
        self.seed = seed

    def build(self, input_shape: Shape | None = None) -> None:
        super().build(input_shape)
        if not self.tie_weights and self.quantization_mode is None:
            draw = SeededNormal(self.stddev, derive_seed(self.seed, "reverse_embeddings"))
            self.reverse_embeddings.assign(draw(self.reverse_embeddings.shape))

    def call(self, inputs: Tensor, reverse: bool = False) -> Tensor:
        if reverse or self.quantization_mode is not None:
            return super().call(inputs, reverse=reverse)
        vectors = ops.take(self.embeddings * 1.0, inputs, axis=0)
        return ops.cast(vectors, self.compute_dtype)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        ids = not keras.backend.is_float_dtype(inputs.dtype)
        return ops.not_equal(inputs, 0) if self.mask_zero and ids else previous_mask

    def compute_output_spec(self, inputs: Tensor, reverse: bool = False) -> Any:
        if reverse:
            return keras.KerasTensor((*inputs.shape[:-1], self.input_dim), dtype="float32")
        return super().compute_output_spec(inputs)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("input_dim", "output_dim", "embeddings_initializer", "reverse_dtype"):
            del config[name]
        return {
            **config,
            "vocabulary_size": self.input_dim,
            "hidden_dim": self.output_dim,
            "stddev": self.stddev,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="kzoo")
class SegmentEmbedding(keras.layers.Layer):
    """Adds a vector for the kind of text that a token stands in: the first of a pair, say.

    Args:
        num_segments: number of kinds.
        stddev: of the initial values; 1/√hidden_dim by default.
        seed: integer from which the initial values derive.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        segment_ids: integers [batch, time] in [0, num_segments).

    Returns:
        The shape of `inputs`.

    Example:
        >>> SegmentEmbedding(2)(np.zeros((2, 10, 64)), np.ones((2, 10), int)).shape
        (2, 10, 64)
    """

    def __init__(
        self, num_segments: int, stddev: Stddev = None, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check(num_segments=num_segments, stddev=stddev, seed=seed)
        self.num_segments = num_segments
        self.stddev = stddev
        self.seed = seed
        self.supports_masking = True

    def build(self, inputs_shape: Shape, segment_ids_shape: Shape | None = None) -> None:
        width = inputs_shape[-1]
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_segments, width),
            initializer=SeededNormal(
                self.stddev or width**-0.5, derive_seed(self.seed, "embeddings")
            ),
        )

    def compute_output_shape(
        self, inputs_shape: Shape, segment_ids_shape: Shape | None = None
    ) -> Shape:
        return tuple(inputs_shape)

    def compute_output_spec(self, inputs: Tensor, segment_ids: Tensor) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(self, inputs: Tensor, segment_ids: Tensor) -> Tensor:
        vectors = ops.take(self.embeddings * 1.0, segment_ids, axis=0)
        return inputs + ops.cast(vectors, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"num_segments": self.num_segments, "stddev": self.stddev, "seed": self.seed}
        return {**super().get_config(), **own}
