"""Synthetic tasks as sources."""

from typing import Any

from kzoo.data import tasks
from kzoo.data.sources.base import Source, register
from kzoo.data.tasks import Task
from kzoo.errors import InputError
from kzoo.files import parse_json


@register
class Synthetic(Source):
    """`"synthetic:copy"`: the pairs of a synthetic task.

    Fields of the task follow its name: `"synthetic:copy_varying,least=4,most=8"`.

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
    def of(cls, text: str) -> "Synthetic":
        name, *options = text.split(",")
        pairs = [option.partition("=") for option in options]
        if not all(field and value for field, _, value in pairs):
            raise InputError(
                "fields of a task are written as 'synthetic:NAME,FIELD=VALUE,FIELD=VALUE'. "
                f"Received: 'synthetic:{text}'"
            )
        fields = {field: _value(value) for field, _, value in pairs}
        return cls(tasks.get({name: fields} if fields else name))

    @classmethod
    def form(cls) -> str:
        return "synthetic:NAME"

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return tuple(f"{cls.name}:{task}" for task in tasks.names())


def _value(text):
    """A number or a word of JSON, or else the text."""
    try:
        return parse_json(text)
    except ValueError:
        return text
