"""What a library may leave changed in its process: a picture of it, and what differs.

It knows nothing of kzoo but its name.
"""

import enum
import gc
import locale
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import types
import warnings

import numpy as np

LIBRARIES = ("keras", "keras_hub", "jax", "numpy", "matplotlib", "grain", "logging", "warnings")
PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum)


def library(name):
    return name.partition(".")[0] in LIBRARIES


def value(x):
    """What can be compared: plain values, and nests of them; anything else is itself."""
    if isinstance(x, PLAIN):
        return x
    if isinstance(x, list | tuple):
        return (type(x), tuple(map(value, x)))
    if isinstance(x, types.FunctionType):
        return (x, x.__code__, value(x.__defaults__))
    return x


def classes_and_names():
    """The names of every module of the libraries, and the bases and attributes of its classes."""
    for name, module in list(sys.modules.items()):
        if not library(name) or not isinstance(module, types.ModuleType):
            continue
        for key, x in list(vars(module).items()):
            if key.startswith("__") or isinstance(x, types.ModuleType):
                continue
            yield f"{name}.{key}", value(x)
            if isinstance(x, type) and x.__module__ == name:
                yield f"{name}.{key}.__bases__", x.__bases__
                for attribute, inner in list(vars(x).items()):
                    if attribute not in ("__dict__", "__weakref__"):
                        yield f"{name}.{key}.{attribute}", value(inner)


def settings():
    """The settings of the process and of the libraries by their own accessors."""
    import jax
    import keras
    import matplotlib
    import matplotlib.pyplot as plt
    from keras.src.backend.common import global_state

    yield from ((f"jax.config.{name}", x) for name, x in jax.config.values.items())
    for name in (
        "backend",
        "floatx",
        "epsilon",
        "image_data_format",
        "is_traceback_filtering_enabled",
        "is_interactive_logging_enabled",
        "max_epochs",
        "max_steps_per_epoch",
    ):
        yield f"keras.config.{name}", getattr(keras.config, name)()
    yield "keras.config.dtype_policy", keras.config.dtype_policy().name
    yield "keras.distribution", keras.distribution.distribution()
    for name, x in vars(global_state.GLOBAL_STATE_TRACKER).items():
        if name != "object_name_uids":  # of the names that Keras gives to all that is made
            held = sorted(map(repr, x)) if isinstance(x, dict | set) else x
            yield f"keras state {name}", value(held)
    objects = keras.saving.get_custom_objects()
    yield from ((f"keras object {name}", x) for name, x in objects.items() if "kzoo>" not in name)
    yield from ((f"rcParams {name}", value(x)) for name, x in dict.items(matplotlib.rcParams))
    yield "matplotlib figures", tuple(plt.get_fignums())
    yield "random", random.getstate()
    yield "numpy random", str(np.random.get_state())
    yield "numpy errors", str(np.geterr())
    yield "numpy print", str(np.get_printoptions())


def process():
    yield from ((f"environment {name}", x) for name, x in os.environ.items())
    for name in ("path", "meta_path", "path_hooks", "argv"):
        yield f"sys.{name}", value(getattr(sys, name))
    for name in ("excepthook", "displayhook", "unraisablehook", "stdin", "stdout", "stderr"):
        yield f"sys.{name}", getattr(sys, name)
    yield "recursion limit", sys.getrecursionlimit()
    yield "switch interval", sys.getswitchinterval()
    yield "trace", (sys.gettrace(), sys.getprofile(), threading.excepthook)
    yield "garbage collector", (gc.isenabled(), gc.get_threshold(), gc.get_debug())
    yield "folder", os.getcwd()
    yield "temporary files", tuple(sorted(os.listdir(tempfile.gettempdir())))
    yield "locale", locale.setlocale(locale.LC_ALL)
    yield "threads", tuple(sorted(thread.name for thread in threading.enumerate()))
    for number in signal.valid_signals():
        yield f"signal {number!r}", signal.getsignal(number)
    yield "warnings", (value(warnings.filters), warnings.showwarning, warnings.formatwarning)
    yield (
        "logging",
        (logging.root.manager.disable, logging.getLoggerClass(), logging.raiseExceptions),
    )
    for name, log in [("root", logging.root), *logging.root.manager.loggerDict.items()]:
        if isinstance(log, logging.Logger) and not name.startswith("kzoo"):
            handlers, filters = value(log.handlers), value(log.filters)
            yield f"logger {name}", (log.level, log.propagate, log.disabled, handlers, filters)


def picture():
    """A dict of everything above; what it holds stays alive, so that identity means something."""
    return {name: x for part in (classes_and_names, settings, process) for name, x in part()}


def differs(a, b):
    if a is b:
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) != len(b) or any(map(differs, a, b))
    if isinstance(a, PLAIN) and isinstance(b, PLAIN):
        return type(a) is not type(b) or (a != b and not (a != a and b != b))
    return True


def changes(before, after):
    """What differs, and what is gone; of what is new, what is no module that loaded meanwhile."""
    known = {name for name in before if not library(name)}
    kinds = {name.partition(" ")[0] for name in known} - {"logger"}
    new = [name for name in after if name not in before and name.partition(" ")[0] in kinds]
    gone = [name for name in before if name not in after]
    other = [name for name in before if name in after and differs(before[name], after[name])]
    return sorted(
        [
            *(f"new: {name}" for name in new),
            *(f"gone: {name}" for name in gone),
            *(f"changed: {name}" for name in other),
        ]
    )
