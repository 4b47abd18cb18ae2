"""Compiled programs of a process, which runs share: arms of one shape, all rates, all seeds."""

import json
import threading

import keras

from kzoo import presets
from kzoo.config import count_parameters
from kzoo.studies import tokenizers
from kzoo.training import prepare

MOST = 20_000_000  # parameters of the programs that are kept; the newest is kept whatever its size
_COMPILED = ("optimizer", "schedule", "warmup")  # of the training fields
# Keras may change base classes of models while it makes one, which no two threads should do.
making = threading.Lock()
_of_thread = threading.local()  # a program stands on the device of its thread


def program(config, training, steps, tokenizer=None):
    """The `kzoo.training.Program` of a config, whatever its seed and its learning rate.

    Args:
        config: JSON of the model's config.
        training: the training fields, a dict.
        steps: optimizer steps.
        tokenizer: of `kzoo.studies.tokenizers.packed`, which the model reads texts with.
    """
    kept, size = _kept(), count_parameters(config)
    key = shape(config, training, steps) + keras.config.dtype_policy().name, tokenizer
    if key not in kept:
        while kept and size + sum(other for _, other in kept.values()) > MOST:
            del kept[next(iter(kept))]
        with making:
            built = presets.build(config, tokenizer=tokenizers.unpacked(tokenizer))
            how = {name: training[name] for name in _COMPILED}
            made = prepare(built, training["learning_rate"], steps, **how, variable_rate=True)
        kept[key] = made, size
    return kept[key][0]


def shape(config, training, steps):
    """What decides on a compiled program: a string, equal where runs share one."""
    model = {name: value for name, value in config.items() if name != "seed"}
    how = {name: training[name] for name in _COMPILED}
    return json.dumps([model, how, steps], sort_keys=True)


def forget():
    """Free the programs of this thread."""
    _kept().clear()


def _kept():
    if not hasattr(_of_thread, "programs"):
        _of_thread.programs = {}
    return _of_thread.programs
