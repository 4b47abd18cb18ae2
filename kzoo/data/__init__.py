"""Text and pairs as Grain datasets of batches, split once into train and held-out.

`sources` and `tasks` need no Grain, so that a source is checked before Grain loads, which takes
seconds; the rest loads when it is named.
"""

import importlib

from kzoo.data import sources, tasks

_OF_PIPELINE = ("Splits", "load")
__all__ = [*_OF_PIPELINE, "sources", "tasks"]


def __getattr__(name):
    if name in _OF_PIPELINE:
        return getattr(importlib.import_module("kzoo.data.pipeline"), name)
    raise AttributeError(f"module 'kzoo.data' has no attribute {name!r}")
