"""What every analysis starts from: a model's blocks, and what each of them received."""

import functools
import json
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from kzoo.errors import InputError


def look_inside(model, batch):
    """A model's blocks and the hidden states between them, for one batch.

    Args:
        model: a task (`kzoo.presets.load`) or its backbone.
        batch: a dict of integer arrays [batch, time] with the model's inputs (`token_ids`,
            `padding_mask` and, under a prefix mask, `source_mask`), or a tuple that begins
            with one, as `kzoo.data.load` yields. Further arrays are left aside.

    Returns:
        `(blocks, states, who)`: the list of blocks; a list of arrays [batch, time,
        hidden_dim], `states[i]` what block i receives and `states[-1]` what the last one
        returns; a dict of NumPy arrays `padding_mask` and `source_mask` (None without one).

    Raises:
        InputError: if the model has no blocks, or the batch lacks one of its inputs.
    """
    backbone = getattr(model, "backbone", model)
    blocks = getattr(backbone, "transformer_layers", None)
    if not blocks:
        raise InputError(
            f"an analysis takes a kzoo task or backbone. Received: {type(model).__name__}"
        )
    x = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(x, Mapping) or not set(backbone.input) <= set(x):
        received = ", ".join(x) if isinstance(x, Mapping) else type(x).__name__
        raise InputError(
            f"a batch is a dict with {', '.join(backbone.input)}, or a tuple that begins with "
            f"one. Received: {received}"
        )
    x = {name: np.asarray(x[name]) for name in backbone.input}
    states = _states_model(backbone).predict_on_batch(x)
    return list(blocks), states, {name: x.get(name) for name in ("padding_mask", "source_mask")}


@functools.lru_cache(maxsize=1)  # compiled once, where one model is looked into repeatedly
def _states_model(backbone):
    blocks = backbone.transformer_layers
    return keras.Model(backbone.input, [blocks[0].input[0], *(block.output for block in blocks)])


def numpy(x):
    """A tensor of any backend and dtype as a float64 array."""
    return ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")


def compact(mask):
    """A mask's JSON spec as a short string: `causal`, `{"block": {"size": 16}}`."""
    try:
        spec = mask.get_config()
    except InputError:  # code has no JSON
        return "custom"
    return spec if isinstance(spec, str) else json.dumps(spec)
