"""Orders defined outside the package, as users would."""

import dataclasses

from keras import ops

from kzoo import masks


@masks.register
@dataclasses.dataclass(frozen=True)
class ReversedBlock(masks.Order):
    size: int
    name = "reversed_block"
    descending = True

    def level(self, sequence):
        return -(sequence.position // self.size)


@masks.register
@dataclasses.dataclass(frozen=True)
class Strided(masks.Order):
    """Declares none of its properties."""

    step: int = 3
    name = "strided"

    def level(self, sequence):
        return sequence.position % self.step


@masks.register
@dataclasses.dataclass(frozen=True)
class FromTheMiddle(masks.Order):
    name = "from_the_middle"
    grouped = False

    def level(self, sequence):
        return ops.abs(3 * sequence.position - 10)


@masks.register
@dataclasses.dataclass(frozen=True)
class PrefixOfPairs(masks.Order):
    name = "prefix_of_pairs"
    needs_source = True
    ascending = True

    def level(self, sequence):
        return ops.where(sequence.in_source, 0, 1 + sequence.position // 2)


@masks.register
@dataclasses.dataclass(frozen=True)
class BareCausal(masks.Order):
    """The causal order, without declaring any property."""

    name = "bare_causal"

    def level(self, sequence):
        return sequence.position


OURS = (
    "bidirectional",
    "causal",
    "reversed",
    "prefix",
    {"block": {"size": 3}},
    {"permuted": {"seed": 1}},
)
THEIRS = (
    {"reversed_block": {"size": 3}},
    {"strided": {"step": 3}},
    "from_the_middle",
    "prefix_of_pairs",
    "bare_causal",
    {"reversed_block": {"size": 1}},
)
