"""Feature maps φ of linear attention: the weight of (query, key) is φ(q)·φ(k), normalised.

A map is static, hashable and JSON (`get`, `get_config`). It takes floats [batch, time, heads, dim]
to [batch, time, heads, size(dim)] in the same dtype, and computes in float32 at least. Only ratios
of weights count, so a query's features may carry any factor of their own (here, some sum to 1: no
query is too long for floating point), while the factor of a key's features is its importance and
must not depend on later keys. φ(0) is not 0, so whoever has padding hides φ(k) there.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kzoo.errors import InputError
from kzoo.precision import float32_products
from kzoo.registry import Part, Registry
from kzoo.sequence import document_index
from kzoo.typing import FeatureMapSpec, Tensor
from kzoo.values import is_integer


@dataclasses.dataclass(frozen=True)
class FeatureMap(Part):
    """Base of all feature maps. Build one with `get(spec)`; register a class of your own.

    A subclass defines `of_query`, `size` where it is not `dim`, and `of_key` where keys differ.

    Attributes:
        name: the name in JSON.
        whole_sequence: whether a key's features depend on all keys of its document.
        learned: whether it takes weights.
        elementwise: whether each feature depends on one entry alone, the same way for all.
        of_products: whether φ(q)·φ(k) is about a function of q·k, so that rotary positions turn
            q and k before the map, as under softmax, and not its features.
    """

    whole_sequence = False
    learned = False
    elementwise = False
    of_products = False

    @classmethod
    def lacks(cls) -> str:
        return "`of_query`" if cls.of_query is FeatureMap.of_query else ""

    def size(self, dim: int) -> int:
        """The number of features of a head of size `dim`."""
        return dim

    def weight_shapes(self, num_heads: int, dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights by name; `num_heads` is the number of heads of x."""
        return {}

    def initial_weights(self, num_heads: int, dim: int) -> dict[str, np.ndarray]:
        """Their initial values, float32 NumPy arrays by name: identities."""
        shapes = self.weight_shapes(num_heads, dim)
        return {name: np.tile(np.eye(dim, dtype="float32"), (num_heads, 1, 1)) for name in shapes}

    def query(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """The features [batch, time, heads, size(dim)], in the dtype of x, of queries.

        Args:
            x: floats [batch, time, heads, dim].
            weights: tensors by name, of `weight_shapes`; None unless the map is learned.

        Raises:
            InputError: if the shape, the dtype or the names of the weights are wrong.
        """
        return self._features(x, weights, "query_kernel", self.of_query)

    def key(
        self, x: Tensor, weights: Mapping[str, Tensor] | None = None, segment: Tensor | None = None
    ) -> Tensor:
        """The features of keys; as `query`.

        Args:
            segment: integers [batch or 1, time], 0 for padding, k for the k-th document, None
                for one document. Only a map of the whole sequence looks at it.
        """
        features = functools.partial(self.of_key, segment=segment)
        return self._features(x, weights, "key_kernel", features)

    def check(self, orders: Iterable[Any]) -> None:
        """`InputError` if the map cannot stand under one of `orders`, the masks of the heads."""
        for order in orders:
            if self.whole_sequence and not order.is_full:
                raise InputError(
                    f"the feature map {self.name!r} normalises keys over time, so a key's weight "
                    "would depend on later keys, or on others that the query must not see; it "
                    f"needs a bidirectional mask. Received: {order!r}"
                )

    def _features(self, x, weights, kernel, features):
        from kzoo.load_keras import keras, ops

        x = ops.convert_to_tensor(x)
        dtype = keras.backend.standardize_dtype(x.dtype)
        if len(x.shape) != 4 or not keras.backend.is_float_dtype(dtype):
            raise InputError(
                "features are of floats [batch, time, heads, dim]. "
                f"Received: {dtype}, shape {list(x.shape)}"
            )
        names, received = sorted(self.weight_shapes(*x.shape[2:])), sorted(weights or {})
        if received != names:
            raise InputError(
                f"the feature map {self.name!r} takes the weights {names}. Received: {received}"
            )
        x = ops.cast(x, "float64" if dtype == "float64" else "float32")
        arguments = [x, ops.cast(weights[kernel], x.dtype)] if self.learned else [x]
        with float32_products():  # a projection, and a choice of entries
            return ops.cast(features(*arguments), dtype)

    # What a subclass defines ------------------------------------------------------------------

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        """The features [batch, time, heads, size(dim)] of queries.

        Args:
            x: floats [batch, time, heads, dim], float32 at least.
            kernel: of a `learned` map, its weights for queries, in the dtype of x.
        """
        raise NotImplementedError

    def of_key(self, x: Tensor, *kernel: Tensor, segment: Tensor | None = None) -> Tensor:
        """The features of keys, by default as of queries; `segment` is that of `key`."""
        return self.of_query(x, *kernel)


REGISTRY = Registry("feature map", FeatureMap)
register = REGISTRY.register


def get(spec: FeatureMapSpec) -> FeatureMap:
    """The feature map of a name, of JSON (`{"favor": {"features": 64}}`), or `spec` if it is one.

    Raises:
        InputError: for an unknown name or a wrong field.

    Example:
        >>> get({"favor": {"seed": 1}}).size(dim=32)
        64
    """
    return REGISTRY.get(spec)


def names() -> tuple[str, ...]:
    """The names of all feature maps, in the order in which they were registered: a tuple.

    Example:
        >>> "elu1" in names()
        True
    """
    return REGISTRY.names


@register
@dataclasses.dataclass(frozen=True)
class Elu1(FeatureMap):
    """φ(x) = elu(x) + 1 (Katharopoulos et al. 2020, Transformers are RNNs: Fast Autoregressive
    Transformers with Linear Attention, arXiv:2006.16236, equation 7).
    """

    name = "elu1"
    elementwise = True

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        # Not elu(x) + 1, which rounds exp(x) to 0 below -17; the inner `where` keeps the branch
        # that is not taken, and its gradient, finite.
        return ops.where(x > 0, x + 1, ops.exp(ops.where(x > 0, ops.zeros_like(x), x)))


@register
@dataclasses.dataclass(frozen=True)
class Relu(FeatureMap):
    """φ(x) = max(x, 0) (Qin et al. 2022, cosFormer: Rethinking Softmax in Attention,
    arXiv:2202.08791, without its cosine weights; Performer-ReLU projects at random first).

    A query that shares no positive entry with a visible key attends to nothing and gives 0.
    """

    name = "relu"
    elementwise = True

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        return ops.relu(x)


@register
@dataclasses.dataclass(frozen=True)
class SquaredRelu(FeatureMap):
    """φ(x) = max(x, 0)² (So et al. 2021, Primer: Searching for Efficient Transformers for
    Language Modeling, arXiv:2109.08668, which has it in the feed-forward layer).

    As a feature map it is the power p = 2 of Han et al. 2023, FLatten Transformer: Vision
    Transformer using Focused Linear Attention, arXiv:2308.00442, without the rescaling there.
    """

    name = "squared_relu"
    elementwise = True

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        return ops.square(ops.relu(x))


@register
@dataclasses.dataclass(frozen=True)
class Exp(FeatureMap):
    """φ(x) = exp(x), entry by entry (Zhang et al. 2024, The Hedgehog & the Porcupine: Expressive
    Linear Attentions with Softmax Mimicry, arXiv:2402.04347, one of the maps compared there).

    A query's features are scaled to the sum 1. An entry of a key overflows float32 above 88.
    """

    name = "exp"

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        return ops.softmax(x, axis=-1)

    def of_key(self, x: Tensor, *kernel: Tensor, segment: Tensor | None = None) -> Tensor:
        from kzoo.load_keras import ops

        return ops.exp(x)


@register
@dataclasses.dataclass(frozen=True)
class Softmax(FeatureMap):
    """Queries: softmax over the features; keys: softmax over the time of their document
    (Shen et al. 2018, Efficient Attention: Attention with Linear Complexities, arXiv:1812.01243:
    E(Q, K, V) = ρ_q(Q) (ρ_k(K)ᵀ V), ρ_q the softmax of each row, ρ_k that of each column).

    The weights φ(q)·φ(k) sum to 1 by themselves. Padding gets the feature 0.
    """

    name = "softmax"
    whole_sequence = True

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        return ops.softmax(x, axis=-1)

    def of_key(self, x: Tensor, *kernel: Tensor, segment: Tensor | None = None) -> Tensor:
        from kzoo.load_keras import ops

        return ops.softmax(x, axis=1) if segment is None else _softmax_of_documents(x, segment)


@register
@dataclasses.dataclass(frozen=True)
class Taylor2(FeatureMap):
    """φ(q)·φ(k) = 1 + s + s²/2 with s = q·k/√dim, which is exp(s) to the second order, and at
    least 1/2 (Arora et al. 2024, Simple linear attention language models balance the
    recall-throughput tradeoff (Based), arXiv:2402.18668).

    The features are 1, y and y_i y_j for i <= j, with y = x / dim^(1/4). A pair i < j, which
    occurs twice in y⊗y, carries a factor √2 more than a square. Some features are negative.
    """

    name = "taylor2"
    of_products = True

    def size(self, dim: int) -> int:
        return 1 + dim + dim * (dim + 1) // 2

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        y = x * x.shape[-1] ** -0.25
        # Products that choose the entries, since the gradient of indexing is a slow scatter.
        first, second = (ops.matmul(y, ops.cast(m, y.dtype)) for m in _pairs(y.shape[-1]))
        return ops.concatenate([ops.ones_like(y[..., :1]), y, first * second], axis=-1)


@register
@dataclasses.dataclass(frozen=True)
class Favor(FeatureMap):
    """Random features whose φ(q)·φ(k) estimates exp(q·k/√dim): φ(x)_r = exp(ω_r·y − |y|²/2) /
    √features, y = x / dim^(1/4) (Choromanski et al. 2021, Rethinking Attention with Performers,
    arXiv:2009.14794, Lemma 1), ω normal and orthogonal within each block of `dim` directions.

    A query's features are scaled to the sum 1. A key's are not stabilised: a maximum over keys
    would let a position depend on later ones. So a key with |y| above about 13 vanishes.

    Args:
        features: number of features; the variance falls as 1 / features.
        seed: integer of at least 0 from which NumPy draws ω, the same for all heads and backends.
    """

    features: int = 64
    seed: int = 0
    name = "favor"
    of_products = True

    def __post_init__(self):
        for value, least, field in ((self.features, 1, "features"), (self.seed, 0, "seed")):
            if not is_integer(value) or value < least:
                raise InputError(f"{field} is an integer of at least {least}. Received: {value!r}")
            object.__setattr__(self, field, int(value))

    def size(self, dim: int) -> int:
        return self.features

    def directions(self, dim: int) -> np.ndarray:
        """ω: a float64 NumPy array [features, dim]."""
        return _directions(self.features, dim, self.seed).copy()

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        return ops.softmax(self._project(x)[0], axis=-1)  # |y|² and √features cancel

    def of_key(self, x: Tensor, *kernel: Tensor, segment: Tensor | None = None) -> Tensor:
        from kzoo.load_keras import ops

        projected, y = self._project(x)
        shift = (ops.sum(ops.square(y), axis=-1, keepdims=True) + math.log(self.features)) / 2
        return ops.exp(projected - shift)

    def _project(self, x):
        from kzoo.load_keras import ops

        y = x * x.shape[-1] ** -0.25
        return ops.matmul(y, ops.cast(self.directions(y.shape[-1]).T, y.dtype)), y


@register
@dataclasses.dataclass(frozen=True)
class Hedgehog(FeatureMap):
    """φ(x) = [softmax(xW), softmax(−xW)] over the features, with a learned W [dim, dim] for the
    queries and one for the keys of each head, at first the identity (Zhang et al. 2024, The
    Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry, arXiv:2402.04347).
    """

    name = "hedgehog"
    learned = True

    def size(self, dim: int) -> int:
        return 2 * dim

    def weight_shapes(self, num_heads: int, dim: int) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("query_kernel", "key_kernel"), (num_heads, dim, dim))

    def of_query(self, x: Tensor, *kernel: Tensor) -> Tensor:
        from kzoo.load_keras import ops

        x = ops.einsum("bthd,hdf->bthf", x, *kernel)
        return ops.concatenate([ops.softmax(x, axis=-1), ops.softmax(-x, axis=-1)], axis=-1)


# Helpers ------------------------------------------------------------------------------------


def _softmax_of_documents(x, segment):
    """Softmax over the time of each document; x [batch, time, ..], padding becomes 0."""
    from kzoo.load_keras import ops

    segment = ops.cast(segment, "int32")
    segment = segment + ops.zeros((ops.shape(x)[0], 1), dtype="int32")
    count = ops.shape(x)[1] + 1
    document = document_index(segment)

    def row(elements):
        x, document, real = elements
        real = ops.reshape(real, (-1,) + (1,) * (len(x.shape) - 1))

        def of_document(reduce, x):
            return ops.take(reduce(x, document, num_segments=count), document, axis=0)

        lowest = ops.where(real, x, ops.full_like(x, -1e30))
        highest = of_document(ops.segment_max, ops.stop_gradient(lowest))
        zeros = ops.zeros_like(x)  # before exp as well as after: 0 · ∞ has no gradient
        powers = ops.where(real, ops.exp(ops.where(real, x - highest, zeros)), zeros)
        total = of_document(ops.segment_sum, powers)
        return powers / ops.where(real, total, ops.ones_like(x))

    return ops.vectorized_map(row, (x, document, segment != 0))


@functools.cache
def _pairs(dim):
    """Two matrices [dim, pairs] that choose the x_i and x_j of each i <= j, and their factor."""
    i, j = np.triu_indices(dim)
    identity = np.eye(dim)
    return identity[:, i] * np.where(i == j, 2**-0.5, 1), identity[:, j]


@functools.cache
def _directions(features, dim, seed):
    """Normal vectors [features, dim], orthogonal within each block of `dim` rows.

    Rows of a random rotation, with the lengths of independent normal vectors.
    """
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-features // dim)):
        rotation, triangle = np.linalg.qr(rng.standard_normal((dim, dim)))
        rotation = rotation * np.sign(np.diag(triangle))  # else the factor is not uniform
        lengths = np.linalg.norm(rng.standard_normal((dim, dim)), axis=1)
        blocks.append(lengths[:, None] * rotation.T)
    return np.concatenate(blocks)[:features]
