"""Text and pairs as Grain datasets of batches, split once into train and held-out.

`sources` and `tasks` need no Grain, so that a source is checked before Grain loads, which takes
seconds; the rest loads when it is named.
"""

import importlib

from kzoo.data import sources, tasks

_LATER = {
    "Splits": "pipeline",
    "labels": "classes",
    "load": "pipeline",
    "train_tokenizer": "tokenizer_training",
}
__all__ = [*_LATER, "sources", "tasks"]


def __getattr__(name):
    if name in _LATER:
        return getattr(importlib.import_module(f"kzoo.data.{_LATER[name]}"), name)
    raise AttributeError(f"module 'kzoo.data' has no attribute {name!r}")
