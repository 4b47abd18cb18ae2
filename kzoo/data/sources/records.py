"""Examples that are read where they lie, by random access, and not held in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

CHUNK = 1024  # that are read at once


class Records(Sequence):
    """Documents (bytes), texts or pairs of strings, of which any can be read at any time.

    A subclass defines `__len__` and `__getitems__`.

    Attributes:
        size: in bytes, about.
        identity: strings that say which data these are, in which version; none if nothing does.
    """

    size: int = 0
    identity: tuple[str, ...] = ()

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of some indices, read at once."""
        raise NotImplementedError

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return self.__getitems__([range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), CHUNK):
            yield from self.__getitems__(range(start, min(start + CHUNK, len(self))))


def take(items: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """Some items of a sequence, read at once where it can be.

    Example:
        >>> take("abc", [2, 0])
        ['c', 'a']
    """
    at_once = getattr(items, "__getitems__", None)
    return at_once(indices) if at_once else [items[i] for i in indices]
