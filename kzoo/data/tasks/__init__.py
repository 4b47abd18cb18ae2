"""Synthetic tasks: generated pairs of a source and its target.

A task of one's own is one class, and then the source `"synthetic:reverse"`:

    @kzoo.data.tasks.register
    class Reverse(kzoo.data.tasks.Task):
        name = "reverse"
        count: int = 1000

        def pairs(self):
            return [(f"{i}", f"{i}"[::-1]) for i in range(self.count)]
"""

from kzoo.data.tasks.base import Task, get, names, register
from kzoo.data.tasks.copying import Copy

__all__ = ["Copy", "Task", "get", "names", "register"]
