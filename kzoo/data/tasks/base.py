"""What a synthetic task is."""

import random
from collections.abc import Iterator

from kzoo.errors import InputError
from kzoo.registry import Part, Registry
from kzoo.values import is_count

SYMBOLS = "abcdefghijklmnopqrstuvwxyz012345"


class Task(Part):
    """Base of the synthetic tasks; a subclass is one file, or one class in a user's script.

    Its fields are what can be chosen, such as lengths; from the same fields come the same pairs.
    A subclass defines `draw` and has a field `count`, which `check_sources` checks; or it defines
    `pairs` alone.

    Attributes:
        name: the task is the source `"synthetic:NAME"`.
    """

    @classmethod
    def lacks(cls) -> str:
        drawn = cls.draw is not Task.draw and "count" in cls.__dataclass_fields__
        known = drawn or cls.pairs is not Task.pairs
        return "" if known else "`draw` and a field `count`, or `pairs`"

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """One example, (source, target), drawn with `rng` and nothing else.

        The target is a `kzoo.data.tasks.PartlyScored` where not all of it is scored.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither draw nor pairs")

    def endless(self, seed: int = 0) -> Iterator[tuple[str, str]]:
        """Examples without an end, the same for the same seed; some may come twice.

        Args:
            seed: an integer. `pairs` has the different ones among the first of seed 0.

        Example:
            >>> import itertools
            >>> list(itertools.islice(get("reverse").endless(seed=1), 1))
            [('szcdypmgp2', '2pgmpydczs')]
        """
        rng = random.Random(seed)
        while True:
            yield self.draw(rng)

    def pairs(self) -> list[tuple[str, str]]:
        """A list of `count` pairs (source, target) of strings, with different sources."""
        found: dict[str, str] = {}  # in the order in which they were drawn
        examples = self.endless()
        while len(found) < self.count:  # type: ignore[attr-defined]
            source, target = next(examples)
            found.setdefault(source, target)
        return list(found.items())


def check_count(task: Task, *fields: str) -> None:
    """`InputError` unless fields of a task are positive integers."""
    for field in fields:
        value = getattr(task, field)
        if not is_count(value):
            raise InputError(
                f"{field} of the task {task.name!r} is a positive integer. Received: {value!r:.60}"
            )


def check_sources(task, sources: int) -> None:
    """`InputError` unless a task has as many different sources as its `count` asks for.

    Drawing them takes longer the fewer are left: half of them at most are asked for where there
    are fewer than a million, or all where they are a hundred or fewer.

    Args:
        task: a `Task` with a field `count`.
        sources: how many there are.
    """
    most = sources if sources <= 100 or sources >= 10**6 else sources // 2
    if task.count > most:
        fields = ", ".join(f"{name}={value!r}" for name, value in vars(task).items())
        raise InputError(
            f"the task {task.name!r} has {most} different sources of that size to give at most. "
            f"Received: {fields}"
        )


def texts_of(lengths: range, symbols: int = len(SYMBOLS)) -> int:
    """How many texts of some symbols there are, of any of some lengths.

    Example:
        >>> texts_of(range(1, 3), symbols=2)
        6
    """
    return sum(symbols**length for length in lengths)


_registry = Registry("synthetic task", Task)
register, get = _registry.register, _registry.get


def names() -> tuple[str, ...]:
    """The names of the tasks: a tuple."""
    return _registry.names
