"""Absolute positions, added to the embeddings, which restart in every document; and relative
ones, added to the scores of softmax attention.

Rotary positions live in the attention (`kzoo.ops.rotary`).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from kzoo.errors import InputError
from kzoo.layers.arguments import check
from kzoo.layers.initializers import SeededNormal, derive_seed
from kzoo.layers.keras_arguments import counted
from kzoo.sequence import document_positions
from kzoo.typing import Shape, Stddev, Tensor


class _AddedPositions(keras.layers.Layer):
    """Adds a vector for each position within the document.

    Call arguments:
        inputs: floats [batch, time, hidden_dim].
        padding_mask: integers [batch, time]: 0 padding, k the k-th document of the example.
            Without it, and without a mask of Keras's, the example is one document. What either
            hides is padding, and counts as no position.

    Returns:
        The same shape.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_shape(
        self, inputs_shape: Shape, padding_mask_shape: Shape | None = None
    ) -> Shape:
        return tuple(inputs_shape)

    def compute_output_spec(self, inputs: Tensor, *args: Any, **kwargs: Any) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def call(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
        inputs_mask: Tensor | None = None,
    ) -> Tensor:
        padding_mask = counted(padding_mask, inputs_mask if mask is None else mask)
        if padding_mask is None:
            return self.add(inputs, ops.arange(ops.shape(inputs)[1], dtype="int32")[None])
        return self.add(inputs, document_positions(padding_mask))

    def add(self, inputs: Tensor, position: Tensor) -> Tensor:
        """The same for tokens at `position`, integers [batch or 1, time]."""
        return inputs + ops.cast(self.vectors(position), inputs.dtype)


@keras.saving.register_keras_serializable(package="kzoo")
class LearnedPositions(_AddedPositions):
    """One trained vector for each position below `max_length`.

    Args:
        max_length: number of positions.
        stddev: of the initial values; 1/√hidden_dim by default.
        seed: integer from which the initial values derive.

    Example:
        >>> LearnedPositions(16)(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    def __init__(
        self, max_length: int, stddev: Stddev = None, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check(max_length=max_length, stddev=stddev, seed=seed)
        self.max_length = max_length
        self.stddev = stddev
        self.seed = seed

    def build(self, inputs_shape: Shape, padding_mask_shape: Shape | None = None) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length, inputs_shape[-1]),
            initializer=SeededNormal(
                self.stddev or inputs_shape[-1] ** -0.5, derive_seed(self.seed, "embeddings")
            ),
        )

    def vectors(self, position: Tensor) -> Tensor:
        return ops.take(self.embeddings * 1.0, position, axis=0)

    def get_config(self) -> dict[str, Any]:
        own = {"max_length": self.max_length, "stddev": self.stddev, "seed": self.seed}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="kzoo")
class SinusoidalPositions(_AddedPositions):
    """Sines and cosines of geometric wavelengths (arXiv:1706.03762, section 3.5).

    Scaled so that their root mean square equals that of the initial token embeddings, which
    they would drown otherwise.

    Example:
        >>> SinusoidalPositions()(np.zeros((2, 10, 64))).shape
        (2, 10, 64)
    """

    MAX_WAVELENGTH = 10_000

    def build(self, inputs_shape: Shape, padding_mask_shape: Shape | None = None) -> None:
        self.hidden_dim = inputs_shape[-1]

    def vectors(self, position: Tensor) -> Tensor:
        half = (self.hidden_dim + 1) // 2
        wave = self.MAX_WAVELENGTH ** (-ops.arange(half, dtype="float32") / half)
        angle = ops.cast(position, "float32")[..., None] * wave
        both = ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
        return both[..., : self.hidden_dim] * (2 / self.hidden_dim) ** 0.5


@keras.saving.register_keras_serializable(package="kzoo")
class RelativeBias(keras.layers.Layer):
    """A trained number for each head and bucket of distances, to be added to the scores.

    Half of the buckets hold one distance each, the others ranges that grow by a constant factor
    up to `max_distance`, from which on all distances share the last. Distances count
    columns, so padding must stand between documents or at the ends of an example, never inside a
    document.
    Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1.

    Args:
        num_heads: number of heads.
        buckets: number of buckets.
        max_distance: the distance from which on all share a bucket.
        bidirectional: whether keys after the query have buckets of their own, half of them all;
            otherwise they share the bucket of distance 0 (a causal mask hides them).
        seed: integer from which the initial values derive.

    Call arguments:
        x: floats [batch, time, hidden_dim], of which the time counts.

    Returns:
        Floats [1, heads, time, time].

    Raises:
        InputError: for too few buckets, or a distance that they reach one by one.

    Example:
        >>> RelativeBias(4)(np.zeros((1, 10, 64))).shape
        (1, 4, 10, 10)
    """

    def __init__(
        self,
        num_heads: int,
        buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(num_heads=num_heads, buckets=buckets, max_distance=max_distance)
        check(bidirectional=bidirectional, seed=seed)
        self.num_heads = num_heads
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.seed = seed
        one_side = buckets // 2 if bidirectional else buckets
        if one_side < 2 or max_distance <= one_side // 2:
            raise InputError(
                "relative positions need 4 buckets or more, and a distance beyond those that have "
                f"a bucket each. Received: buckets={buckets}, max_distance={max_distance}"
            )
        self.bucket_of = tuple(_buckets(one_side, max_distance))

    def build(self, x_shape: Shape) -> None:
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.buckets, self.num_heads),
            initializer=SeededNormal(x_shape[-1] ** -0.5, derive_seed(self.seed, "embeddings")),
        )

    def compute_output_shape(self, x_shape: Shape) -> Shape:
        return (1, self.num_heads, x_shape[1], x_shape[1])

    def compute_output_spec(self, x: Tensor) -> Any:
        return keras.KerasTensor(self.compute_output_shape(x.shape), dtype=self.compute_dtype)

    def compute_mask(self, x: Tensor, previous_mask: Tensor | None = None) -> Tensor | None:
        return None  # a bias of pairs has no tokens to hide

    def call(self, x: Tensor) -> Tensor:
        time = ops.arange(ops.shape(x)[1], dtype="int32")
        return self.between(time, time)

    def between(self, query: Tensor, key: Tensor) -> Tensor:
        """The bias of queries and keys at the positions `query` and `key`, integers [time].

        Within a document columns differ as positions do, so columns of the example serve.
        """
        after = key[None, :] - query[:, None]
        distance = ops.abs(after) if self.bidirectional else ops.maximum(-after, 0)
        bucket_of = ops.convert_to_tensor(np.array(self.bucket_of, "int32"))
        bucket = ops.take(bucket_of, ops.minimum(distance, self.max_distance))
        if self.bidirectional:
            bucket = bucket + ops.where(after > 0, self.buckets // 2, 0)
        bias = ops.take(self.embeddings * 1.0, bucket, axis=0)  # [query_time, key_time, heads]
        return ops.cast(ops.transpose(bias, (2, 0, 1))[None], self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "buckets": self.buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "seed": self.seed,
        }


def _buckets(count, max_distance):
    """The bucket of each distance from 0 to `max_distance`, a list of integers."""
    single = count // 2
    distance = np.arange(max_distance + 1)
    # In float32, in which the published weights were trained: rounding decides at boundaries.
    grown = np.log(np.maximum(distance, 1).astype("float32") / np.float32(single))
    grown /= np.float32(np.log(max_distance / single))
    spread = single + (grown * np.float32(count - single)).astype("int32")
    bucket = np.where(distance < single, distance, spread)
    return np.minimum(bucket, count - 1).tolist()
