"""What a mechanism of attention says of itself and computes; and the registry of mechanisms.

A mechanism is everything between the projections of q, k and v and the output projection. To add
one, subclass `Mechanism`, and register it:

    @kzoo.mechanisms.register
    class Uniform(kzoo.mechanisms.Mechanism):
        name = "uniform"

        def attend(self, q, k, v, extras, mask, **call):
            ...

Layers, configs, caches, counts of parameters and FLOPs, layouts over devices and the commands ask
the mechanism; none of them knows it by name.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from kzoo import masks
from kzoo.errors import InputError
from kzoo.masks import Mask
from kzoo.masks.orders import ORDERS_ONLY, no_order
from kzoo.registry import Part, Registry
from kzoo.typing import MechanismSpec, Tensor


@dataclasses.dataclass(frozen=True)
class HeadSizes:
    """The heads of an attention.

    Attributes:
        num_heads: number of heads of queries.
        kv_heads: number of heads of keys and values, a divisor of `num_heads`.
        head_dim: size of a head of queries, keys and values.
        cross: whether keys and values are those of a second sequence.
    """

    num_heads: int
    kv_heads: int
    head_dim: int
    cross: bool = False


class Extras(NamedTuple):
    """What a mechanism has beside q, k and v.

    Attributes:
        projected: of `Mechanism.projections`, by name: floats [batch, key_time, size].
        variables: of `Mechanism.variables`, by name: tensors.
    """

    projected: Mapping = {}
    variables: Mapping = {}


@dataclasses.dataclass(frozen=True)
class Mechanism(Part):
    """Base of all mechanisms; build one with `get(spec)`.

    A subclass must give `name`, and either `attend` or, where its weights are to be seen or it has
    no faster way, `attend_with_weights`. What it inherits decodes with a cache of all keys and
    values, and has no parameters of its own.

    In all methods q is floats [batch, query_time, num_heads, head_dim], k and v are floats
    [batch, key_time, kv_heads, head_dim], and `extras` holds what it asked for by `projections` and
    `variables`.

    Attributes:
        name: the name in JSON.
        orders_only: whether it follows orders alone (`kzoo.masks.Order`), not any mask of pairs.
        takes_bias: whether a bias is added to scores of its own (relative positions).
        across: what is different over a second sequence, a sentence for the user; None for nothing.
        own_qk_norm: the `qk_norm` that the mechanism has of itself and needs; None for none.
        exports_to_tensorflow: whether its program can be exported by the TensorFlow backend.
        sharding: of its variables and of the kernels and biases of its projections: the end of
            the path below the attention, a regular expression, to the mesh axes ("model", "data"
            or None) of the dimensions. What is not named is whole on every device.
    """

    orders_only: ClassVar[bool] = False
    takes_bias: ClassVar[bool] = False
    across: ClassVar[str | None] = None
    own_qk_norm: ClassVar[str | None] = None
    exports_to_tensorflow: ClassVar[bool] = True
    sharding: ClassVar[Mapping[str, tuple[str | None, ...]]] = {}

    # What it says of itself, without Keras ---------------------------------------------------

    @classmethod
    def lacks(cls) -> str:
        methods = "attend", "attend_with_weights"
        known = any(getattr(cls, name) is not getattr(Mechanism, name) for name in methods)
        return "" if known else "`attend` or `attend_with_weights`"

    def check(self, heads: Iterable[masks.Mask], *, bias: bool = False) -> None:
        """Refuse what the mechanism cannot follow, before any weight is made.

        Args:
            heads: the mask of each head, an iterable of `Mask`.
            bias: whether a bias is to be added to the scores, as by relative positions.

        Raises:
            InputError: for a mask or a bias that it cannot follow.
        """
        if bias and not self.takes_bias:
            raise InputError(
                "a bias on the scores, as of relative positions, needs a mechanism that has scores "
                f"({_those('takes_bias')}); use the positions 'rotary', 'learned', 'sinusoidal' or "
                f"'none'. Received: mechanism={self.get_config()!r} with relative positions"
            )
        other = no_order(heads) if self.orders_only else None
        if other is not None:
            raise InputError(
                f"{self.name} attention {ORDERS_ONLY}; use softmax. Received: {other!r}"
            )

    def check_cross(self) -> None:
        """Refuse attention over a second sequence, before any weight is made.

        Raises:
            InputError: where the mechanism goes through one sequence alone.
        """

    def projections(self, sizes: HeadSizes) -> dict[str, int]:
        """The projections that it needs beyond q, k and v: sizes by name.

        Each is a dense layer on the tokens of the keys.

        Args:
            sizes: a `HeadSizes`.
        """
        return {}

    def variables(self, sizes: HeadSizes) -> dict[str, np.ndarray]:
        """Its own variables: the initial values by name, float32 NumPy arrays."""
        return {}

    def variable_shapes(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]]:
        """The shapes of `variables` by name."""
        return {name: values.shape for name, values in self.variables(sizes).items()}

    def parameters(self, sizes: HeadSizes, width: int, use_bias: bool = True) -> int:
        """The number of parameters that it adds to those of q, k, v and the output.

        Args:
            sizes: a `HeadSizes`.
            width: of the tokens that its projections read.
            use_bias: whether its projections have biases.
        """
        projected = sum((width + use_bias) * size for size in self.projections(sizes).values())
        return projected + sum(math.prod(s) for s in self.variable_shapes(sizes).values())

    def flops(
        self,
        sizes: HeadSizes,
        heads: Iterable[masks.Mask],
        time: int,
        key_time: int | None = None,
    ) -> int:
        """Floating-point operations on one example of `time` tokens, projections aside.

        By default those of a score and a weighted value for each pair that the mask shows:
        4 · head_dim (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

        Args:
            sizes: a `HeadSizes`.
            heads: the mask of each head.
            time: number of tokens, all of one document.
            key_time: number of tokens of the second sequence, of which each query sees all; None:
                there is none.
        """
        if key_time is not None:
            return 4 * sizes.head_dim * time * key_time * len(tuple(heads))
        return 4 * sizes.head_dim * sum(visible_pairs(head, time) for head in heads)

    def state_shape(self, sizes: HeadSizes) -> dict[str, tuple[int, ...]] | None:
        """The shapes, by name and without the batch, of the state that a call can return and go on
        from; None where none sums up the keys in a fixed size."""
        return None

    # What it computes ------------------------------------------------------------------------

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        *,
        rotary: bool = False,
        bias: Tensor | None = None,
        initial_state: Mapping[str, Tensor] | None = None,
        return_state: bool = False,
        implementation: str = "auto",
        **sequence: Any,
    ) -> Any:
        """What the heads gather: floats [batch, query_time, num_heads, head_dim].

        Args:
            q, k, v, extras: as of the class.
            mask: a `Mask` that `check` passed.
            rotary: whether q and k are rotated by their position within the document.
            bias: floats [batch or 1, num_heads or 1, query_time, key_time], if it `takes_bias`.
            initial_state: the state that an earlier call returned, batch first.
            return_state: whether to return the output and the state.
            implementation: a kernel by name (`kzoo.ops.dispatch`), or `"auto"`.
            **sequence: `padding_mask`, `source_mask`, `key_padding_mask` and `query_offset`, as in
                `Mask.dense`; those that are given.

        Returns:
            The output, in the dtype of v; exactly 0 at padded queries and at those that see no
            key. With `return_state` also the state.
        """
        return self.attend_with_weights(
            q, k, v, extras, mask, rotary=rotary, bias=bias, **sequence
        )[0]

    def attend_with_weights(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        *,
        rotary: bool = False,
        bias: Tensor | None = None,
        **sequence: Any,
    ) -> tuple[Tensor, Tensor]:
        """`attend`, and its dense weights: floats [batch, num_heads, query_time, key_time]."""
        raise InputError(f"{self.name} attention gives no weights. Received: a call that asks them")

    def definition(
        self,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        extras: Extras,
        mask: Mask,
        *,
        rotary: bool = False,
        **sequence: Any,
    ) -> np.ndarray:
        """What `attend` computes, by its definition: in NumPy and float64, without a kernel.

        `kzoo doctor` compares what the machine's devices compute with it. A mechanism without one
        is not compared.

        Args:
            q, k, v, extras, mask, rotary, **sequence: as of `attend`, NumPy arrays.

        Returns:
            float64 [batch, query_time, num_heads, head_dim].
        """
        raise InputError(
            f"{self.name} attention states no `definition` here. Received: {self.get_config()!r}"
        )

    def kernel(self, spec: Any, implementation: str = "auto") -> str:
        """The name of the kernel that computes a call; `"ops"` where it has no kernels.

        Args:
            spec: the `kzoo.ops.dispatch.Spec` of the call.
            implementation: as in `attend`.
        """
        from kzoo.ops import dispatch

        known = dispatch.kernels(self.name, spec.backend)
        return dispatch.kernel_for(self.name, spec, implementation) if known else "ops"

    # Decoding --------------------------------------------------------------------------------

    def init_cache(self, sizes: HeadSizes, batch: int, time: int, dtype: str) -> dict:
        """The cache of no tokens: a dict of zeros, batch first.

        Args:
            sizes: a `HeadSizes`.
            batch: number of examples.
            time: the most tokens of one.
            dtype: of keys and values.
        """
        from kzoo.load_keras import ops

        heads = (batch, time, sizes.kv_heads, sizes.head_dim)
        cache = {name: ops.zeros(heads, dtype) for name in ("key", "value")}
        for name, size in self.projections(sizes).items():
            cache[name] = ops.zeros((batch, time, size), dtype)
        return cache

    def cached_time(self, cache: Mapping[str, Tensor]) -> int:
        """How many keys a cache has room for; of mechanisms that take a bias."""
        return cache["key"].shape[1]

    def decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        cache: Mapping[str, Tensor],
        window: Any,
        *,
        rotary: bool = False,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The attention of new columns of examples whose earlier columns are in a cache.

        Args:
            q, k, v, extras: of the new columns alone.
            mask: the layer's `Mask`.
            cache: from `init_cache` or an earlier call.
            window: the `kzoo.ops.decoding.Window` of the new columns.
            rotary: whether q and k are rotated by their position within the document.
            bias: floats [1, num_heads, window.size, window.key_time(cached_time)].

        Returns:
            Floats [batch, window.size, num_heads, head_dim], and the cache with the new columns.
        """
        from kzoo.load_keras import ops
        from kzoo.ops.rotary import rotate

        queries = window.queries()
        if rotary:
            q, k = (rotate(ops.cast(x, "float32"), queries.position) for x in (q, k))
        new = {"key": k, "value": v, **extras.projected}
        cache = {name: window.write(cache[name], x) for name, x in new.items()}
        time = window.key_time(self.cached_time(cache))
        past = {name: x[:, :time] for name, x in cache.items()}
        key, value = past.pop("key"), past.pop("value")
        extras = extras._replace(projected=past)
        return self.attend_to_cache(q, key, value, extras, mask, window, bias), cache

    def attend_to_cache(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        window: Any,
        bias: Tensor | None = None,
    ) -> Tensor:
        """What `decode` computes of rotated queries and all keys and values so far."""
        keys = window.keys(k.shape[1])
        sequence = {"query_offset": window.index, **masks_of(keys, mask)}
        return self.attend(q, k, v, extras, mask, bias=bias, **sequence)

    def init_cross_cache(
        self,
        sizes: HeadSizes,
        k: Tensor,
        v: Tensor,
        extras: Extras,
        mask: Mask,
        key_padding_mask: Tensor,
    ) -> dict[str, Tensor]:
        """What `cross_attend` needs of another sequence: a dict of tensors, batch first.

        Args:
            sizes: a `HeadSizes`.
            k, v, extras: of the other sequence.
            mask: the layer's `Mask`.
            key_padding_mask: integers [batch, key_time], 0 for padding.
        """
        from kzoo.load_keras import ops

        padding_mask = ops.cast(key_padding_mask, "int32")
        cache = {"key": k, "value": v, **extras.projected}
        for name, x in cache.items():  # zeros, not whatever stands in padding: 0 · NaN is NaN
            real = ops.reshape(padding_mask != 0, (*padding_mask.shape, *[1] * (len(x.shape) - 2)))
            cache[name] = ops.where(real, x, ops.zeros_like(x))
        return {**cache, "padding_mask": padding_mask}

    def cross_attend(
        self, q: Tensor, extras: Extras, mask: Mask, cache: Mapping[str, Tensor]
    ) -> Tensor:
        """The attention of queries over another sequence, of which `init_cross_cache` made a cache.

        Returns:
            Floats [batch, query_time, num_heads, head_dim].
        """
        cache = dict(cache)
        k, v, padding_mask = (cache.pop(name) for name in ("key", "value", "padding_mask"))
        extras = extras._replace(projected=cache)
        return self.attend(q, k, v, extras, mask, key_padding_mask=padding_mask)


REGISTRY = Registry("mechanism", Mechanism)
register = REGISTRY.register


def get(spec: MechanismSpec) -> Mechanism:
    """The mechanism of a name, of JSON (`{"linear": {"feature_map": "relu"}}`), or `spec` if it is
    one.

    Raises:
        InputError: for an unknown name or field, or a value that the mechanism refuses.

    Example:
        >>> get({"linear": {"feature_map": "relu"}}).feature_map.size(dim=32)
        32
    """
    return REGISTRY.get(spec)


def names() -> tuple[str, ...]:
    """The names of all mechanisms, in the order in which they were registered: a tuple.

    Example:
        >>> "linear" in names()
        True
    """
    return REGISTRY.names


def with_fields(spec: MechanismSpec, **fields: Any) -> Mechanism:
    """The mechanism of a spec with some of its fields given beside it; None stands for not given.

    Raises:
        InputError: for a field that the mechanism has not, or one that the spec gives as well.

    Example:
        >>> with_fields("linear", feature_map="relu").get_config()
        {'linear': {'feature_map': 'relu'}}
    """
    mechanism = get(spec)
    fields = {name: value for name, value in fields.items() if value is not None}
    valid = {field.name: field.default for field in dataclasses.fields(mechanism)}
    for name, value in fields.items():
        if name not in valid:
            raise InputError(
                f"{name} belongs to {_those(name)} attention. "
                f"Received: mechanism={mechanism.get_config()!r} with {name}={value!r}"
            )
        made = dataclasses.replace(mechanism, **{name: value})
        if getattr(mechanism, name) not in (valid[name], getattr(made, name)):
            raise InputError(
                f"{name} is given once, inside the mechanism or beside it. "
                f"Received: mechanism={mechanism.get_config()!r} with {name}={value!r}"
            )
        mechanism = made
    return mechanism


# Helpers ---------------------------------------------------------------------------------------


def visible_pairs(order: masks.Mask, time: int) -> int:
    """Pairs of a query and a key that it sees, of one head and a document of `time` tokens.

    Of a prefix mask the fewest, those of an empty source; of a mask that is no order all.
    """
    whole = order.is_full or not isinstance(order, masks.Order)
    return time * time if whole else time * (time + 1) // 2


def masks_of(sequence, mask):
    """The `padding_mask` and `source_mask` of a `SequenceInfo`, as a call takes them."""
    from kzoo.load_keras import ops

    source = ops.cast(sequence.in_source, "int32") if mask.needs_source else None
    return {"padding_mask": sequence.segment, "source_mask": source}


def _those(word):
    """The names of the mechanisms that have a field or a property, for messages."""
    having = [
        name
        for name in names()
        if getattr(REGISTRY[name], word, None)
        or word in (field.name for field in dataclasses.fields(REGISTRY[name]))
    ]
    return " or ".join(having)
