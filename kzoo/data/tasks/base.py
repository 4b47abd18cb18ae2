"""What a synthetic task is."""

from kzoo.errors import InputError
from kzoo.registry import Part, Registry
from kzoo.values import is_count


class Task(Part):
    """Base of the synthetic tasks; a subclass is one file, or one class in a user's script.

    Its fields are what can be chosen, such as lengths; from the same fields come the same pairs.

    Attributes:
        name: the task is the source `"synthetic:NAME"`.
    """

    def pairs(self) -> list[tuple[str, str]]:
        """A list of (source, target), two strings each."""
        raise NotImplementedError


def check_count(task, *fields):
    """`InputError` unless fields of a task are positive integers."""
    for field in fields:
        value = getattr(task, field)
        if not is_count(value):
            raise InputError(
                f"{field} of the task {task.name!r} is a positive integer. Received: {value!r:.60}"
            )


_registry = Registry("synthetic task", Task)
register, get = _registry.register, _registry.get


def names() -> tuple[str, ...]:
    """The names of the tasks: a tuple."""
    return _registry.names
