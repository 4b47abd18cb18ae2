"""Copying, and what is close to it: reversing, sorting, picking out. What attention looks up."""

import math
import random

from kzoo.data.tasks.base import SYMBOLS, Task, check_count, check_sources, register, texts_of
from kzoo.errors import InputError


@register
class Copy(Task):
    """Sources of random symbols, targets the same.

    How soon it is learned depends on the setting: learning rate and kind of positions decide
    between hundreds of steps and none of it in as many. All sources have one length, so that
    rotary positions allow a shortcut: to look back a fixed distance. `copy_varying` has none.

    Attributes:
        count: pairs, distinct ones.
        length: symbols of a source.
    """

    count: int = 20000
    length: int = 16

    name = "copy"

    def __post_init__(self):
        check_count(self, "count", "length")
        if self.count > len(SYMBOLS) ** self.length:
            raise InputError(
                f"there are {len(SYMBOLS) ** self.length} texts of that length. "
                f"Received: count={self.count}, length={self.length}"
            )

    def draw(self, rng: random.Random) -> tuple[str, str]:
        text = "".join(rng.choices(SYMBOLS, k=self.length))
        return text, text


class _Varying(Task):
    """Sources of random symbols, of `least` to `most` of them, each length as often as another."""

    count: int = 20000
    least: int = 8
    most: int = 16

    def __post_init__(self):
        check_lengths(self)
        check_sources(self, texts_of(range(self.least, self.most + 1)))

    def draw(self, rng):
        text = "".join(rng.choices(SYMBOLS, k=rng.randint(self.least, self.most)))
        return text, self.answer(text)


@register
class CopyVarying(_Varying):
    """Copying of varying length: the distance back to a symbol is not the same in all examples.

    Attributes:
        count: pairs, distinct ones.
        least, most: symbols of a source.

    Example:
        >>> source, target = CopyVarying(count=10).pairs()[0]
        >>> source == target
        True
    """

    count: int = 20000
    least: int = 8
    most: int = 16

    name = "copy_varying"

    def answer(self, text: str) -> str:
        return text


@register
class Reverse(_Varying):
    """Targets are the sources from their end to their beginning.

    Attributes:
        count: pairs, distinct ones.
        least, most: symbols of a source.
    """

    count: int = 20000
    least: int = 8
    most: int = 16

    name = "reverse"

    def answer(self, text: str) -> str:
        return text[::-1]


@register
class Sort(_Varying):
    """Targets are the symbols of the sources in the order of their bytes, digits first.

    Attributes:
        count: pairs, distinct ones.
        least, most: symbols of a source.
    """

    count: int = 20000
    least: int = 8
    most: int = 16

    name = "sort"

    def answer(self, text: str) -> str:
        return "".join(sorted(text))


@register
class SelectiveCopy(Task):
    """Symbols at random places among dots; targets are the symbols in their order.

    Source: Gu and Dao 2023, arXiv:2312.00752, section 3.1 and figure 2; the answer follows the
    separator, not a run of place holders.

    Attributes:
        count: pairs, distinct ones.
        length: of a source, dots included.
        symbols: of a source and its target.
    """

    count: int = 20000
    length: int = 32
    symbols: int = 8

    name = "selective_copy"

    def __post_init__(self):
        check_count(self, "count", "length", "symbols")
        if self.symbols > self.length:
            raise InputError(
                "the symbols of the task 'selective_copy' stand among the `length` of a source. "
                f"Received: symbols={self.symbols}, length={self.length}"
            )
        places = math.comb(self.length, self.symbols)
        check_sources(self, places * len(SYMBOLS) ** self.symbols)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        text = ["."] * self.length
        target = rng.choices(SYMBOLS, k=self.symbols)
        at = sorted(rng.sample(range(self.length), self.symbols))
        for position, symbol in zip(at, target, strict=True):
            text[position] = symbol
        return "".join(text), "".join(target)


def check_lengths(task) -> None:
    """`InputError` unless `least` and `most` of a task are lengths, in this order."""
    check_count(task, "count", "least", "most")
    if task.least > task.most:
        raise InputError(
            f"least is at most `most` in the task {task.name!r}. "
            f"Received: least={task.least}, most={task.most}"
        )
