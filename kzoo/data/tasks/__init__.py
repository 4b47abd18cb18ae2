"""Synthetic tasks: generated pairs of a source and its target.

A task of one's own is one class, and then the source `"synthetic:squares"`:

    @kzoo.data.tasks.register
    class Squares(kzoo.data.tasks.Task):
        name = "squares"
        count: int = 1000

        def pairs(self):
            return [(f"{i}", f"{i * i}") for i in range(self.count)]

A target that is not scored whole is a `PartlyScored`.
"""

from kzoo.data.tasks.arithmetic import Addition
from kzoo.data.tasks.association import MQAR, Capacity
from kzoo.data.tasks.base import Task, get, names, register
from kzoo.data.tasks.copying import Copy, CopyVarying, Reverse, SelectiveCopy, Sort
from kzoo.data.tasks.recall import Induction, Mapping
from kzoo.data.tasks.regression import LinearRegression
from kzoo.encoder import PartlyScored

__all__ = [
    "MQAR",
    "Addition",
    "Capacity",
    "Copy",
    "CopyVarying",
    "Induction",
    "LinearRegression",
    "Mapping",
    "PartlyScored",
    "Reverse",
    "SelectiveCopy",
    "Sort",
    "Task",
    "get",
    "names",
    "register",
]
