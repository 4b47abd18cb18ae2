"""Masks given by levels: an order of positions."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

from kzoo import levels
from kzoo.errors import InputError
from kzoo.masks.base import Mask
from kzoo.sequence import SequenceInfo
from kzoo.typing import Tensor
from kzoo.values import is_integer


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
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # of every order that is registered
    name: ClassVar[str]
    is_order = True
    ascending = False
    descending = False
    grouped = True
    lookahead: int | None = None

    def level(self, sequence: SequenceInfo) -> Tensor:
        """The level of each position.

        Args:
            sequence: a `kzoo.sequence.SequenceInfo`. A position's level depends on its own
                `sequence.position` and, where `needs_source`, `sequence.in_source` alone.

        Returns: Integers [batch or 1, time], within int32.
        """
        raise NotImplementedError

    @property
    def is_full(self) -> bool:
        return self.ascending and self.descending

    @property
    def is_causal(self) -> bool:
        return self.ascending and not self.grouped

    @property
    def time_reversed(self) -> bool:
        return self.descending and not self.grouped

    @property
    def resumable(self) -> bool:
        return self.is_full or self.is_causal

    def levels(self, sequence: SequenceInfo) -> Tensor:
        """`level` as int32, of the shape of `sequence.position`."""
        from kzoo.load_keras import ops

        return ops.cast(self.level(sequence), "int32") + ops.zeros_like(sequence.position)

    def visible(self, queries: SequenceInfo, keys: SequenceInfo) -> Tensor:
        return self.levels(keys)[:, None, :] <= self.levels(queries)[:, :, None]

    def orders(self) -> tuple[Mask, ...]:
        return (self,)

    def get_config(self) -> Any:
        if ORDERS.get(getattr(self, "name", "")) is not type(self):
            raise InputError(
                "an order has JSON once `kzoo.masks.register` knows its name. "
                f"Received: {self!r}, not registered"
            )
        fields = dataclasses.asdict(self)
        return {self.name: fields} if fields else self.name


# Of what cannot take any mask of pairs, in words for its user.
ORDERS_ONLY = "follows orders (bidirectional, causal, reversed, prefix, block, permuted), not "
ORDERS_ONLY += "custom masks or &"


def no_order(heads: Iterable[Mask]) -> Mask | None:
    """The first of the masks of heads that is no order, or None where all are."""
    return next((head for head in heads if not head.is_order), None)


def not_one_way(heads: Iterable[Mask]) -> str | None:
    """Why what goes through time in one direction cannot follow the masks of heads, in words for
    its user; None if it can."""
    for head in heads:
        if not (head.is_causal or head.time_reversed):
            return (
                "the delta rule goes through time in one direction, so each head is causal or "
                "reversed. A next-token loss takes mask='causal'; for masked tokens "
                "mask='half_heads' has heads of both, mask='alternating' layers of both. "
                f"Received: {head!r}"
            )
    return None


def not_along_time(heads: Iterable[Mask]) -> str | None:
    """Why what decays with the tokens between two cannot follow the masks of heads, in words for
    its user; None if it can."""
    for head in heads:
        if not (isinstance(head, Order) and (head.ascending or head.descending)):
            return (
                "a decay counts the tokens between query and key, so it needs a mask that goes "
                "through time (bidirectional, causal, reversed, prefix, block); use softmax or "
                f"linear attention. Received: {head!r}"
            )
    return None


ORDERS: dict[str, type[Order]] = {}  # the registered classes, by name


@dataclasses.dataclass(frozen=True)
class Bidirectional(Order):
    """Every position sees every position of its document."""

    name = "bidirectional"
    ascending = descending = True

    def level(self, sequence: SequenceInfo) -> Tensor:
        return sequence.position * 0


@dataclasses.dataclass(frozen=True)
class Causal(Order):
    """A position sees itself and what comes before it."""

    name = "causal"
    ascending = autoregressive = True
    grouped = False
    lookahead = 0

    def level(self, sequence: SequenceInfo) -> Tensor:
        return sequence.position


@dataclasses.dataclass(frozen=True)
class Reversed(Order):
    """A position sees itself and what comes after it."""

    name = "reversed"
    descending = True
    grouped = False

    def level(self, sequence: SequenceInfo) -> Tensor:
        return -sequence.position


@dataclasses.dataclass(frozen=True)
class Prefix(Order):
    """Source tokens see each other, later tokens see what comes before them."""

    name = "prefix"
    ascending = autoregressive = resumable = True
    needs_source = True

    def level(self, sequence: SequenceInfo) -> Tensor:
        from kzoo.load_keras import ops

        return ops.where(sequence.in_source, 0, sequence.position + 1)


@dataclasses.dataclass(frozen=True)
class Block(Order):
    """Causal between blocks of `size` positions, bidirectional inside each."""

    size: int
    name = "block"
    ascending = True

    def __post_init__(self):
        if not is_integer(self.size) or self.size < 1:
            raise InputError(f"a block's size is an integer of at least 1. Received: {self.size!r}")
        object.__setattr__(self, "size", int(self.size))  # NumPy's is no JSON

    @property
    def lookahead(self) -> int:
        return self.size - 1

    def level(self, sequence: SequenceInfo) -> Tensor:
        return sequence.position // self.size


@dataclasses.dataclass(frozen=True)
class Permuted(Order):
    """Causal in a random order of the positions, that of `seed`."""

    seed: int = 0
    name = "permuted"
    grouped = False

    def __post_init__(self):
        if not is_integer(self.seed):
            raise InputError(f"a permutation's seed is an integer. Received: {self.seed!r}")
        object.__setattr__(self, "seed", int(self.seed))

    def level(self, sequence: SequenceInfo) -> Tensor:
        return levels.scattered(sequence.position, self.seed)
