"""Synthetic tasks as sources."""

from typing import Any

from kzoo.data import tasks
from kzoo.data.sources.base import Source, register
from kzoo.data.tasks import Task


@register
class Synthetic(Source):
    """`"synthetic:copy"`: the pairs of a synthetic task.

    Attributes:
        task: a `kzoo.data.tasks.Task`, its name or its JSON.
    """

    task: Task

    name = "synthetic"

    def __post_init__(self):
        object.__setattr__(self, "task", tasks.get(self.task))

    def read(self) -> list[Any]:
        return self.task.pairs()

    @classmethod
    def form(cls) -> str:
        return "synthetic:NAME"

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return tuple(f"{cls.name}:{task}" for task in tasks.names())
