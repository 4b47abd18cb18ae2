"""A Keras 3 model zoo for controlled comparisons of attention masks and mechanisms.

Submodules load when they are first named: `import kzoo` loads neither Keras nor keras-hub, so
that the backend is the user's to choose until a model is made.
"""

import importlib

__version__ = "0.1.0"

_SUBMODULES = (
    "analysis",
    "config",
    "convert",
    "data",
    "evaluation",
    "feature_maps",
    "layers",
    "masks",
    "mechanisms",
    "models",
    "objectives",
    "ops",
    "presets",
    "studies",
    "training",
)
__all__ = [*_SUBMODULES, "check", "compare", "distribute", "evaluate_choices"]


def __getattr__(name):
    if name in _SUBMODULES:
        return importlib.import_module(f"kzoo.{name}")
    if name == "check":
        return importlib.import_module("kzoo.analysis.check").check
    if name == "compare":
        return importlib.import_module("kzoo.studies").compare
    if name == "distribute":
        return importlib.import_module("kzoo.training.distribution").distribute
    if name == "evaluate_choices":
        return importlib.import_module("kzoo.evaluation").evaluate_choices
    raise AttributeError(f"module 'kzoo' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
