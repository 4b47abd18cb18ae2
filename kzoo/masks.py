"""Who sees whom.

A mask is an order of positions: the query i sees the key j exactly when

    level[j] <= level[i]  and  document[i] == document[j] != 0

where the level of a token depends on its position t within its document:

    bidirectional    0
    causal           t
    reversed         -t
    prefix           0 in the document's initial run of source tokens, then t + 1
    block(b)         t // b
    permuted(seed)   hash(seed, t)

A mask's structure is static: hashable, comparable and JSON (`get`, `get_config`).
What differs from example to example comes as two integer tensors [batch, time]: `source_mask`
(1 is source) and `padding_mask` (0 is padding; each run of another number is a document, so that
an ordinary 0/1 mask is one). Padding, also inside a document, changes nothing for the rest.

Where a token stands is found by `kzoo.sequence`. Neither needs more than `keras.ops`, and that
only where tensors are made.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping

from kzoo import levels
from kzoo.errors import InputError, unknown
from kzoo.sequence import sequence_info
from kzoo.values import is_integer


class Mask:
    """Base of all masks. Build one with a factory of this module or with `get(spec)`.

    Attributes:
        needs_source: whether a model with this mask takes a `source_mask`.
        autoregressive: whether no position sees a later one outside the source, so that
            a next-token loss on the positions after the source is not shown its answer.
        is_full: whether every token sees its whole document.
        is_causal: whether every token sees itself and what comes before it, no more and no less.
        is_order: whether it is an `Order`: given by levels, the same for all heads.
        pattern_size: the number of heads after which it repeats.
    """

    needs_source = False
    autoregressive = False
    is_full = False
    is_causal = False
    is_order = False
    pattern_size = 1

    def get_config(self):
        """The JSON spec of this mask: `get(mask.get_config()) == mask`."""
        raise NotImplementedError

    def per_head(self, num_heads):
        """The mask of each head, a tuple of `num_heads` masks.

        Raises:
            InputError: if the pattern of heads does not tile `num_heads`.
        """
        return (self,) * num_heads

    def dense(
        self,
        query_time,
        key_time=None,
        *,
        query_offset=0,
        num_heads=None,
        padding_mask=None,
        source_mask=None,
        key_padding_mask=None,
    ):
        """Every (query, key) pair as a boolean: True where the query sees the key.

        What `keras.layers.MultiHeadAttention` takes as `attention_mask`.

        Args:
            query_time: number of queries.
            key_time: number of keys; the same as `query_time` by default.
            query_offset: the first query's position among the keys; if traced, moved among them.
            num_heads: repeat a pattern of heads to this number; by default it stands once.
            padding_mask: integers [batch, key_time], 0 for padding, k for the k-th document.
                Beside a `key_padding_mask` it speaks of the queries: [batch, query_time].
            source_mask: integers [batch, key_time], 1 for source tokens.
            key_padding_mask: integers [batch, key_time], where keys and queries are two
                sequences (cross-attention). A document of one sees the same of the other.

        Returns:
            Booleans [batch or 1, heads or 1, query_time, key_time].

        Raises:
            InputError: if shapes disagree, the heads do not tile, a prefix has no
                `source_mask`, or the mask differs by layer (`per_layer` takes it apart).

        Example:
            >>> causal().dense(3)[0, 0]
            [[ True, False, False], [ True,  True, False], [ True,  True,  True]]
        """
        queries, keys = sequence_info(
            self,
            query_time,
            key_time,
            query_offset=query_offset,
            padding_mask=padding_mask,
            source_mask=source_mask,
            key_padding_mask=key_padding_mask,
        )
        return self.between(queries, keys, num_heads)

    def between(self, queries, keys, num_heads=None):
        """`dense` for the `SequenceInfo` of queries and of keys."""
        from keras import ops

        heads = _pattern(self) if num_heads is None else self.per_head(num_heads)
        heads = heads[:1] if len(set(heads)) == 1 else heads
        visible = {head: head.visible(queries, keys) for head in set(heads)}
        visible = ops.stack([visible[head] for head in heads], axis=1)
        if queries.segment is not None:
            query, key = queries.segment[:, None, :, None], keys.segment[:, None, None, :]
            visible = ops.logical_and(visible, ops.logical_and(query == key, key != 0))
        return visible

    def visible(self, queries, keys):
        """Booleans [batch or 1, query_time, key_time] of one head, documents left aside."""
        raise NotImplementedError

    def orders(self):
        """The orders that each show all that the mask of a head shows, a tuple."""
        return ()

    def __and__(self, other):
        if not isinstance(other, Mask):
            return NotImplemented
        for outer, inner in ((self, other), (other, self)):
            if isinstance(outer, Layers | Heads):
                if isinstance(inner, type(outer)) or isinstance(inner, Layers):
                    continue
                return type(outer)(tuple(mask & inner for mask in outer.masks))
        if isinstance(self, Layers | Heads):
            raise InputError(
                "two masks that both differ by head or by layer do not combine; combine their "
                f"parts. Received: {self.get_config()!r} & {other.get_config()!r}"
            )
        parts = [m.masks if isinstance(m, And) else (m,) for m in (self, other)]
        return And(parts[0] + parts[1])

    def __bool__(self):
        raise InputError(
            "a mask has no truth value: write `a & b` for `a and b`, `mask is None` for "
            f"`not mask`, `mask.dense(time)` for its booleans. Received: bool of {self!r}"
        )

    def __or__(self, other):
        raise InputError(f"masks combine by & only. Received: {self!r} | {other!r}")

    def __invert__(self):
        raise InputError(f"masks combine by & only; use `reversed()`? Received: ~{self!r}")


# Orders ---------------------------------------------------------------------------------


class Order(Mask):
    """A mask given by levels: what linear attention can follow in linear time.

    `level` is all that it needs: every kernel then follows it, by sorting time. What it declares
    besides lets kernels do without, and is checked against `level` (`kzoo.levels`).

    Attributes:
        ascending: declares that levels never fall along a document.
        descending: declares that they never rise.
        grouped: False declares that no two positions of a document share a level.
        lookahead: declares that a token sees at most so many tokens ahead; None for no bound.
        resumable: declares that, wherever a sequence is cut in two, the second part sees all of
            the first, so that a state of linear attention can go on.
        time_reversed: whether a token sees itself and what comes after it.
    """

    is_order = True
    ascending = False
    descending = False
    grouped = True
    lookahead = None

    def level(self, sequence):
        """The level of each position.

        Args:
            sequence: a `kzoo.sequence.SequenceInfo`. A position's level depends on its own
                `sequence.position` and, where `needs_source`, `sequence.in_source` alone.

        Returns: Integers [batch or 1, time], within int32.
        """
        raise NotImplementedError

    @property
    def is_full(self):
        return self.ascending and self.descending

    @property
    def is_causal(self):
        return self.ascending and not self.grouped

    @property
    def time_reversed(self):
        return self.descending and not self.grouped

    @property
    def resumable(self):
        return self.is_full or self.is_causal

    def levels(self, sequence):
        """`level` as int32, of the shape of `sequence.position`."""
        from keras import ops

        return ops.cast(self.level(sequence), "int32") + ops.zeros_like(sequence.position)

    def visible(self, queries, keys):
        return self.levels(keys)[:, None, :] <= self.levels(queries)[:, :, None]

    def orders(self):
        return (self,)

    def get_config(self):
        if _ORDERS.get(getattr(self, "name", None)) is not type(self):
            raise InputError(
                "an order has JSON once `kzoo.masks.register` knows its name. "
                f"Received: {self!r}, not registered"
            )
        fields = dataclasses.asdict(self)
        return {self.name: fields} if fields else self.name


_ORDERS = {}


def register(order):
    """Give a class of orders its name, so that `get`, configs, presets and studies take it.

    Args:
        order: a subclass of `Order`, a frozen dataclass whose fields are its arguments in JSON,
            with a `name`. It is returned, so that this is a decorator. What is no such class, or
            has another's name, is refused (`InputError`).

    Example:
        >>> @register
        ... @dataclasses.dataclass(frozen=True)
        ... class OddLast(Order):
        ...     name = "odd_last"
        ...     def level(self, sequence):
        ...         return sequence.position % 2
        >>> get("odd_last")
        OddLast()
    """
    if not isinstance(order, type) or not issubclass(order, Order):
        raise InputError(f"a subclass of `kzoo.masks.Order` is registered. Received: {order!r}")
    levels.check_class(order)
    name = levels.check_name(order)
    known = _ORDERS.get(name, order)
    again = (known.__module__, known.__qualname__) == (order.__module__, order.__qualname__)
    if not again or name in _NAMED or name in _LISTS:  # a cell of a notebook may run again
        raise InputError(
            f"a mask called {name!r} exists already; give this one another name. Received: {order}"
        )
    _ORDERS[name] = order
    return order


@dataclasses.dataclass(frozen=True)
class Bidirectional(Order):
    name = "bidirectional"
    ascending = descending = True

    def level(self, sequence):
        return sequence.position * 0


@dataclasses.dataclass(frozen=True)
class Causal(Order):
    name = "causal"
    ascending = autoregressive = True
    grouped = False
    lookahead = 0

    def level(self, sequence):
        return sequence.position


@dataclasses.dataclass(frozen=True)
class Reversed(Order):
    name = "reversed"
    descending = True
    grouped = False

    def level(self, sequence):
        return -sequence.position


@dataclasses.dataclass(frozen=True)
class Prefix(Order):
    name = "prefix"
    ascending = autoregressive = resumable = True
    needs_source = True

    def level(self, sequence):
        from keras import ops

        return ops.where(sequence.in_source, 0, sequence.position + 1)


@dataclasses.dataclass(frozen=True)
class Block(Order):
    size: int
    name = "block"
    ascending = True

    def __post_init__(self):
        if not is_integer(self.size) or self.size < 1:
            raise InputError(f"a block's size is an integer of at least 1. Received: {self.size!r}")
        object.__setattr__(self, "size", int(self.size))  # NumPy's is no JSON

    @property
    def lookahead(self):
        return self.size - 1

    def level(self, sequence):
        return sequence.position // self.size


@dataclasses.dataclass(frozen=True)
class Permuted(Order):
    seed: int = 0
    name = "permuted"
    grouped = False

    def __post_init__(self):
        if not is_integer(self.seed):
            raise InputError(f"a permutation's seed is an integer. Received: {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    def level(self, sequence):
        return levels.scattered(sequence.position, self.seed)


# Compositions ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Custom(Mask):
    """Any boolean function of (query, key) positions; softmax attention only, dense."""

    function: Callable

    def visible(self, queries, keys):
        query, key = queries.position[:, :, None], keys.position[:, None, :]
        return self.function(query + 0 * key, key + 0 * query)  # it may use one of them only

    def get_config(self):
        raise InputError(
            f"a custom mask is code and has no JSON. Received: custom({self.function!r})"
        )


@dataclasses.dataclass(frozen=True)
class _Several(Mask):
    masks: tuple

    @property
    def needs_source(self):
        return any(mask.needs_source for mask in self.masks)


@dataclasses.dataclass(frozen=True)
class And(_Several):
    """What all of several orders or custom masks show; softmax attention only, dense."""

    @property
    def autoregressive(self):
        return any(mask.autoregressive for mask in self.masks)

    def orders(self):
        return sum((mask.orders() for mask in self.masks), ())

    def visible(self, queries, keys):
        from keras import ops

        first, *others = (mask.visible(queries, keys) for mask in self.masks)
        for other in others:
            first = ops.logical_and(first, other)
        return first

    def get_config(self):
        return {"and": [mask.get_config() for mask in self.masks]}


@dataclasses.dataclass(frozen=True)
class _Pattern(_Several):
    def __post_init__(self):
        if not self.masks:
            raise InputError(f"a pattern of {self.name} has at least one mask. Received: []")
        for mask in self.masks:
            if isinstance(mask, self.forbidden):
                raise InputError(
                    "heads stand inside layers, and neither inside itself. "
                    f"Received: {mask.get_config()!r} inside {self.name}"
                )

    @property
    def autoregressive(self):
        return all(mask.autoregressive for mask in self.masks)

    def get_config(self):
        return {self.name: [mask.get_config() for mask in self.masks]}

    def _tiled(self, number):
        if number % len(self.masks):
            raise InputError(
                f"a pattern of {len(self.masks)} {self.name} does not tile {number} {self.name}; "
                f"use a multiple of {len(self.masks)}. Received: {self.get_config()!r}"
            )
        return self.masks * (number // len(self.masks))


@dataclasses.dataclass(frozen=True)
class Heads(_Pattern):
    name = "heads"

    @property
    def pattern_size(self):
        return len(self.masks)

    def per_head(self, num_heads):
        return self._tiled(num_heads)


@dataclasses.dataclass(frozen=True)
class Layers(_Pattern):
    name = "layers"

    def per_head(self, num_heads):
        raise InputError(
            "a mask that differs by layer has no heads of its own; take one of "
            f"`per_layer(mask, num_layers)`. Received: {self.get_config()!r}"
        )


Heads.forbidden = (Heads, Layers)
Layers.forbidden = (Layers,)


# Factories ------------------------------------------------------------------------------


def bidirectional():
    """Every position sees every position of its document."""
    return Bidirectional()


def causal():
    """A position sees itself and what comes before it."""
    return Causal()


def reversed():
    """A position sees itself and what comes after it."""
    return Reversed()


def prefix():
    """Source tokens see each other, later tokens see what comes before them (UniLM).

    The source is the initial run of 1s of the `source_mask` in each document; a source
    token after a target counts as target. Source: Dong et al. 2019, arXiv:1905.03197.
    """
    return Prefix()


def block(size):
    """Causal between blocks of `size` positions, bidirectional inside each."""
    return Block(size)


def permuted(seed=0):
    """Causal in a random order of the positions: triangular, full rank, undirected.

    The same two positions stand in the same order whatever the length, padding or packing.
    """
    return Permuted(seed)


def custom(visible):
    """Any mask, for softmax attention only.

    Args:
        visible: function of two integer tensors that broadcast, the query's and the key's
            position within their document, to booleans: whether the query sees the key.

    Example:
        >>> window = causal() & custom(lambda query, key: query - key < 128)
    """
    if not callable(visible):
        raise InputError(f"`visible` is a function of (query, key). Received: {visible!r}")
    return Custom(visible)


def heads(*specs):
    """A mask for each head, repeated over the heads of a layer."""
    return Heads(tuple(get(spec) for spec in specs))


def layers(*specs):
    """A mask for each layer, repeated over the layers of a stack."""
    return Layers(tuple(get(spec) for spec in specs))


def half_heads():
    """Half of the heads forward, half backward (kexue.fm 9529)."""
    return heads(causal(), reversed())


def alternating():
    """Forward and backward layers in turn (kexue.fm 9529)."""
    return layers(causal(), reversed())


_NAMED = {"half_heads": half_heads, "alternating": alternating}
_LISTS = {"heads": heads, "layers": layers, "and": lambda *specs: _all(specs)}
_BUILT_IN = {
    register(order) for order in (Bidirectional, Causal, Reversed, Prefix, Block, Permuted)
}


def get(spec):
    """The mask that a spec names.

    Args:
        spec: a name (`"causal"`), JSON (`{"heads": ["causal", "reversed"]}`,
            `{"layers": [...]}`, `{"and": [...]}`, `{"block": {"size": 16}}`,
            `{"permuted": {"seed": 3}}`) or a `Mask`, which comes back as it is.

    Returns:
        A `Mask`.

    Raises:
        InputError: for an unknown name, a wrong argument or nesting, or a false declaration.

    Example:
        >>> get({"heads": ["causal", "reversed"]}) == half_heads()
        True
    """
    if isinstance(spec, Mask):
        _check_orders(spec)
        return spec
    if isinstance(spec, str):
        name, arguments = spec, {}
    elif isinstance(spec, Mapping) and len(spec) == 1:
        ((name, arguments),) = spec.items()
    else:
        raise InputError(f"a mask is a name or a JSON object with one key. Received: {spec!r}")
    if name in _LISTS:
        if not isinstance(arguments, list | tuple) or not arguments:
            raise InputError(f"{name!r} takes a list of masks. Received: {spec!r}")
        return _LISTS[name](*arguments)
    if name not in _ORDERS and name not in _NAMED:
        raise unknown("mask", name, [*_ORDERS, *_NAMED, *_LISTS])
    if not isinstance(arguments, Mapping):
        raise InputError(f"the arguments of {name!r} are a JSON object. Received: {spec!r}")
    if name in _ORDERS:
        return get(levels.make(_ORDERS[name], arguments))
    if arguments:
        raise levels.no_such_arguments(name, [], spec)
    return _NAMED[name]()


def _check_orders(mask):
    """`InputError` unless all orders in it are what they declare; ours are, by tests."""
    for part in getattr(mask, "masks", ()):
        _check_orders(part)
    if isinstance(mask, Order) and type(mask) not in _BUILT_IN:
        levels.check(mask)


def per_layer(spec, num_layers):
    """The mask of each layer: a list of `num_layers` masks, none of which differs by layer.

    Raises:
        InputError: if the pattern of layers does not tile `num_layers`.

    Example:
        >>> per_layer("alternating", 4) == [causal(), reversed(), causal(), reversed()]
        True
    """
    mask = get(spec)
    return list(mask._tiled(num_layers)) if isinstance(mask, Layers) else [mask] * num_layers


def _all(specs):
    return functools.reduce(operator.and_, map(get, specs))


def _pattern(mask):
    """The shortest tuple of head masks that `mask` repeats."""
    return mask.per_head(mask.pattern_size)
