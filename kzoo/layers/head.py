"""From hidden states to logits."""

from typing import Any

import keras
from keras import ops

from kzoo.errors import unknown
from kzoo.layers.arguments import check
from kzoo.layers.embedding import TokenEmbedding
from kzoo.layers.feed_forward import FUNCTIONS
from kzoo.layers.initializers import by_token, dense
from kzoo.layers.normalization import norm
from kzoo.names import ACTIVATIONS
from kzoo.precision import float32_products
from kzoo.typing import Shape, Stddev, Tensor


@keras.saving.register_keras_serializable(package="kzoo")
class Head(keras.layers.Layer):
    """Hidden states to float32 logits, by the output matrix of a `TokenEmbedding`.

    With `transform` a dense layer, an activation and a norm stand before the matrix, and a bias
    after it (Devlin et al. 2019's masked LM).

    Args:
        embedding: a built `TokenEmbedding`.
        transform: whether there is more than the matrix.
        activation: of the transform, one of `FeedForward`'s without a gate.
        normalization, epsilon: of the transform's norm, as in `Block`.
        stddev: of the initial kernel, as in `dense`.
        scale: factor on what the matrix receives.
        dense_dtype: the dtype policy of the dense layer; the layer's own by default.
        seed: integer from which the initial values derive.

    Call arguments:
        hidden: floats [batch, time, hidden_dim].

    Returns:
        float32 [batch, time, vocabulary_size].

    Example:
        >>> embedding = kzoo.layers.TokenEmbedding(384, 64)
        >>> Head(embedding)(embedding(np.zeros((2, 10), int))).shape
        (2, 10, 384)
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        transform: bool = False,
        activation: str = "gelu",
        normalization: str = "layer_norm",
        epsilon: float = 1e-5,
        stddev: Stddev = None,
        scale: float | None = 1.0,
        dense_dtype: str | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(transform=transform, epsilon=epsilon, stddevs=stddev, seed=seed)
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        self.embedding = embedding
        self.transform = transform
        self.function = FUNCTIONS[ACTIVATIONS[activation].function]
        self.normalization = normalization
        self.epsilon = epsilon
        self.stddev = stddev
        self.scale = scale
        self.dense_dtype = dense_dtype
        self.seed = seed
        self.supports_masking = True

    def build(self, hidden_shape: Shape) -> None:
        if not self.transform:
            return
        width, dtype = hidden_shape[-1], self.dtype_policy
        own = self.dense_dtype or dtype
        self.dense = dense(width, width, self.seed, "dense", self.stddev, dtype=own)
        self.norm = norm(self.normalization, self.epsilon, name="norm", dtype=dtype)
        self.norm.build(hidden_shape)
        self.bias = self.add_weight(
            name="bias", shape=(self.embedding.input_dim,), initializer="zeros"
        )

    def compute_output_shape(self, hidden_shape: Shape) -> Shape:
        return (*hidden_shape[:-1], self.embedding.input_dim)

    def compute_output_spec(self, hidden: Tensor) -> Any:
        return keras.KerasTensor(self.compute_output_shape(hidden.shape), dtype="float32")

    def call(self, hidden: Tensor) -> Tensor:
        logits = by_token(self._logits, self._transformed(hidden))
        return logits + ops.cast(self.bias, "float32") if self.transform else logits

    def _logits(self, hidden):
        with float32_products(hidden.dtype):  # the logits of the loss
            return self.embedding(hidden, reverse=True)

    def operands(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors whose product is the logits: [batch, time, n] and [vocabulary_size, n]."""
        embedding, hidden = self.embedding, self._transformed(hidden)
        tied = embedding.tie_weights
        kernel = embedding.embeddings if tied else ops.transpose(embedding.reverse_embeddings)
        kernel = ops.cast(kernel, embedding.compute_dtype)  # as a call of the layer does
        if not self.transform:
            return hidden, kernel
        bias = ops.cast(self.bias, kernel.dtype)[:, None]
        ones = ops.ones_like(hidden[..., :1])
        return ops.concatenate([hidden, ones], -1), ops.concatenate([kernel, bias], -1)

    def _transformed(self, hidden):
        if self.transform:
            hidden = self.norm(self.function(by_token(self.dense, hidden)))
        return hidden if self.scale == 1.0 else hidden * self.scale
