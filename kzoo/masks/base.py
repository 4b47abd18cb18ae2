"""What a mask is, and how masks combine: by head, by layer and by `&`."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from kzoo.errors import InputError
from kzoo.sequence import SequenceInfo, sequence_info
from kzoo.typing import Tensor


class Mask:
    """Base of all masks. Build one with a factory of this module or with `get(spec)`.

    Attributes:
        needs_source: whether a model with this mask takes a `source_mask`.
        autoregressive: whether no position sees a later one outside the source, so that
            a next-token loss on the positions after the source is not shown its answer.
        is_full: whether every token sees its whole document.
        is_causal: whether every token sees itself and what comes before it, no more and no less.
        time_reversed: whether every token sees itself and what comes after it, no more and no less.
        is_order: whether it is an `Order`: given by levels, the same for all heads.
        pattern_size: the number of heads after which it repeats.
    """

    needs_source = False
    autoregressive = False
    is_full = False
    is_causal = False
    time_reversed = False
    is_order = False
    pattern_size = 1

    def get_config(self) -> Any:
        """The JSON spec of this mask: `get(mask.get_config()) == mask`."""
        raise NotImplementedError

    def per_head(self, num_heads: int) -> "tuple[Mask, ...]":
        """The mask of each head, a tuple of `num_heads` masks.

        Raises:
            InputError: if the pattern of heads does not tile `num_heads`.
        """
        return (self,) * num_heads

    def dense(
        self,
        query_time: int,
        key_time: int | None = None,
        *,
        query_offset: int | Tensor = 0,
        num_heads: int | None = None,
        padding_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
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
            >>> kzoo.masks.causal().dense(3)[0, 0].tolist()
            [[True, False, False], [True, True, False], [True, True, True]]
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

    def between(
        self, queries: SequenceInfo, keys: SequenceInfo, num_heads: int | None = None
    ) -> Tensor:
        """`dense` for the `SequenceInfo` of queries and of keys."""
        from kzoo.load_keras import ops

        heads = _pattern(self) if num_heads is None else self.per_head(num_heads)
        heads = heads[:1] if len(set(heads)) == 1 else heads
        visible = {head: head.visible(queries, keys) for head in set(heads)}
        visible = ops.stack([visible[head] for head in heads], axis=1)
        if queries.segment is not None:
            query, key = queries.segment[:, None, :, None], keys.segment[:, None, None, :]
            visible = ops.logical_and(visible, ops.logical_and(query == key, key != 0))
        return visible

    def visible(self, queries: SequenceInfo, keys: SequenceInfo) -> Tensor:
        """Booleans [batch or 1, query_time, key_time] of one head, documents left aside."""
        raise NotImplementedError

    def orders(self) -> "tuple[Mask, ...]":
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


# How masks combine ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Custom(Mask):
    """Any boolean function of (query, key) positions; softmax attention only, dense."""

    function: Callable

    def visible(self, queries: SequenceInfo, keys: SequenceInfo) -> Tensor:
        query, key = queries.position[:, :, None], keys.position[:, None, :]
        return self.function(query + 0 * key, key + 0 * query)  # it may use one of them only

    def get_config(self) -> Any:
        raise InputError(
            f"a custom mask is code and has no JSON. Received: custom({self.function!r})"
        )


@dataclasses.dataclass(frozen=True)
class _Several(Mask):
    masks: tuple

    @property
    def needs_source(self) -> bool:
        return any(mask.needs_source for mask in self.masks)


@dataclasses.dataclass(frozen=True)
class And(_Several):
    """What all of several orders or custom masks show; softmax attention only, dense."""

    @property
    def autoregressive(self) -> bool:
        return any(mask.autoregressive for mask in self.masks)

    def orders(self) -> "tuple[Mask, ...]":
        return sum((mask.orders() for mask in self.masks), ())

    def visible(self, queries: SequenceInfo, keys: SequenceInfo) -> Tensor:
        from kzoo.load_keras import ops

        first, *others = (mask.visible(queries, keys) for mask in self.masks)
        for other in others:
            first = ops.logical_and(first, other)
        return first

    def get_config(self) -> Any:
        return {"and": [mask.get_config() for mask in self.masks]}


@dataclasses.dataclass(frozen=True)
class _Pattern(_Several):
    name: ClassVar[str]
    forbidden: ClassVar[tuple[type, ...]]

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
    def autoregressive(self) -> bool:
        return all(mask.autoregressive for mask in self.masks)

    def get_config(self) -> Any:
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
    """A mask for each head, repeated over the heads of a layer."""

    name = "heads"

    @property
    def pattern_size(self) -> int:
        return len(self.masks)

    def per_head(self, num_heads: int) -> "tuple[Mask, ...]":
        return self._tiled(num_heads)


@dataclasses.dataclass(frozen=True)
class Layers(_Pattern):
    """A mask for each layer, repeated over the layers of a stack."""

    name = "layers"

    def per_head(self, num_heads: int) -> "tuple[Mask, ...]":
        raise InputError(
            "a mask that differs by layer has no heads of its own; take one of "
            f"`per_layer(mask, num_layers)`. Received: {self.get_config()!r}"
        )


Heads.forbidden = (Heads, Layers)
Layers.forbidden = (Layers,)


def _pattern(mask):
    """The shortest tuple of head masks that `mask` repeats."""
    return mask.per_head(mask.pattern_size)
