"""Comparisons under control: arms that differ in one choice, run, measured and reported.

`Study` needs no Keras, so that a study is checked before Keras loads; the rest loads when named.
"""

import importlib

from kzoo.studies.study import QUICK, Study

_ROOMS = {
    "Results": "notebook",
    "compare": "notebook",
    "predict": "notebook",
    "report": "page",
    "run": "runner",
}
__all__ = ["QUICK", "Study", *_ROOMS]


def __getattr__(name):
    if name in _ROOMS:
        return getattr(importlib.import_module(f"kzoo.studies.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'kzoo.studies' has no attribute {name!r}")
