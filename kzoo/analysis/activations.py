"""The hidden states between the blocks of a model, from which every analysis starts."""

import functools
import json
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from kzoo.errors import InputError


class Activations(NamedTuple):
    """The hidden states of one stack of a model, for one batch.

    Attributes:
        name: `"encoder"` or `"decoder"`; empty for a single stack.
        blocks: list of its blocks.
        states: list of arrays [batch, time, hidden_dim]; `states[i]` is what block i receives,
            `states[-1]` what the last one returns.
        masks: dict of integer arrays [batch, time], `padding_mask` and `source_mask`; None for
            one that the stack does not have.
        bias: {"bias": floats [1, heads, time, time]}, which relative positions add to the
            attention scores; empty under other positions.
    """

    name: str
    blocks: list
    states: list
    masks: dict
    bias: dict


def activations(model, batch):
    """The hidden states before, between and after the blocks of a model, for one batch.

    Args:
        model: a task (`kzoo.presets.load`) or its backbone.
        batch: a dict of integer arrays [batch, time] with the model's inputs (`token_ids`,
            `padding_mask` and, under a prefix mask, `source_mask`), or a tuple that begins
            with one, as `kzoo.data.load` yields. Other entries are ignored.

    Returns:
        A list with an `Activations` for each stack.

    Raises:
        InputError: if the model has no blocks, or the batch lacks one of its inputs.
    """
    backbone, x = inputs_of(model, batch)
    states = _states_model(backbone).predict_on_batch(x)
    return [_of_stack(name, stack, states[name], x) for name, stack in backbone.stacks.items()]


def inputs_of(model, batch):
    """The backbone of a model, and the inputs of a batch that it takes: a dict of arrays.

    Raises:
        InputError: as `activations`.
    """
    backbone = getattr(model, "backbone", model)
    if not getattr(backbone, "stacks", None):
        raise InputError(
            f"the model must be a kzoo task or backbone. Received: {type(model).__name__}"
        )
    x = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(x, Mapping) or not set(backbone.input) <= set(x):
        received = ", ".join(x) if isinstance(x, Mapping) else type(x).__name__
        raise InputError(
            f"the batch must be a dict with {', '.join(backbone.input)}, or a tuple that begins "
            f"with one. Received: {received}"
        )
    return backbone, {name: np.asarray(x[name]) for name in backbone.input}


def _of_stack(name, stack, states, x):
    prefix = f"{name}_" if name else ""
    masks = {mask: x.get(prefix + mask) for mask in ("padding_mask", "source_mask")}
    relative = stack.relative_bias
    bias = {} if relative is None else {"bias": relative(ops.convert_to_tensor(states[0]))}
    return Activations(name, list(stack.blocks), states, masks, bias)


@functools.lru_cache(maxsize=1)  # analyses of one model compile it once
def _states_model(backbone):
    states = {
        name: [stack.blocks[0].input[0], *(block.output for block in stack.blocks)]
        for name, stack in backbone.stacks.items()
    }
    return keras.Model(backbone.input, states)


def compact(mask):
    """A mask's JSON spec as a short string: `causal`, `{"block": {"size": 16}}`."""
    try:
        spec = mask.get_config()
    except InputError:  # a custom mask is a Python function, which has no JSON
        return "custom"
    return spec if isinstance(spec, str) else json.dumps(spec)
