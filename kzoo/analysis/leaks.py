"""Which inputs each head really depends on, against what its mask says."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from kzoo.analysis.inside import look_inside, numpy
from kzoo.typing import Model

# How far an input is moved, in multiples of the inputs' root mean square: enough for one key
# of a hundred to move its query's output by a tenth, and too little to overflow exp.
DISTANCE = 10.0
# How much of the largest output of a head counts as a change, in units of rounding. A hidden
# input meets exact zeros only, and outputs are compared at the same place of an equal batch, so
# that sums run in the same order: on a CPU the change is exactly 0. Some kernels of
# accelerators sum in no fixed order, hence a margin.
ROUNDINGS = 16
EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
DIRECTIONS = 2


@dataclasses.dataclass(frozen=True)
class LayerLeaks:
    """Where the attention of one layer and its mask disagree; nowhere, it is hoped.

    Attributes:
        layer: from 0.
        stack: `"encoder"` or `"decoder"`; empty where there is one.
        hidden: list of (row, head, i, j): the output at i depends on the input at j, which
            the mask hides from it.
        unused: list of (row, head, i, j): the mask shows j to i, without any effect.
    """

    layer: int
    hidden: list
    unused: list
    stack: str = ""


def leaks(model: Model, batch: Any) -> list[LayerLeaks]:
    """Compare what each head depends on with what its mask shows, layer by layer.

    Every input of an attention is moved in turn, far, in random directions and back; what its
    heads gather (before the output projection) changes or does not. Each layer is tested
    alone: after two mixed layers everything depends on everything. An output depends on its
    own input through its query too, so a mask that hides a token from itself passes, and a
    kernel that forgets a token's own key is seen only where the query sees no other.

    Quadratic in memory and cubic in time: give it short sequences.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them. Rows may be padded
            and packed; padding is moved like all else, and must have no effect.

    Returns:
        A list with a `LayerLeaks` for each layer, stack by stack; a decoder's look at its
        encoder is left aside.

    Raises:
        InputError: if the model has no blocks, or the batch lacks one of its inputs.

    Example:
        >>> [(layer.hidden, layer.unused) for layer in leaks(model, valid[0])]  # of one layer
        [([], [])]
    """
    return [found for inside in look_inside(model, batch) for found in _of_stack(inside)]


def _of_stack(inside):
    who = inside.who
    for layer, (block, state) in enumerate(zip(inside.blocks, inside.states[:-1], strict=True)):
        inputs, attention = numpy(block.attention_inputs(state)), block.attention
        rows = _rows(inputs, who)
        depends = np.stack([_depends(attention, x, {**masks, **inside.bias}) for x, masks in rows])
        visible = attention.mask.dense(inputs.shape[1], num_heads=attention.num_heads, **who)
        visible = np.broadcast_to(ops.convert_to_numpy(visible), depends.shape)
        real = (who["padding_mask"] != 0)[:, None, :, None]
        itself = real & np.eye(inputs.shape[1], dtype=bool)
        hidden, unused = depends & ~visible & ~itself, visible & ~depends
        yield LayerLeaks(layer, _places(hidden), _places(unused), inside.name)


def _rows(inputs, who):
    """Each row of the batch alone, once for each of its positions: [time, time, ...]."""
    for row, x in enumerate(inputs):
        time = len(x)
        masks = {
            name: None if mask is None else np.repeat(mask[row : row + 1], time, axis=0)
            for name, mask in who.items()
        }
        yield np.repeat(x[None], time, axis=0), masks


def _depends(attention, x, masks):
    """Booleans [heads, time, time]: whether output i of a head depends on input j.

    Args:
        attention: the layer.
        x: floats [time, time, hidden_dim], the same row again and again.
        masks: `padding_mask` and `source_mask`, [time, time] or None.
    """

    def attend(x):
        x = ops.convert_to_tensor(x.astype("float32"), dtype=attention.compute_dtype)
        return numpy(attention.attend(x, **masks))

    rng = np.random.default_rng(0)
    time = len(x)
    before = attend(x)
    epsilon = EPSILON.get(attention.compute_dtype, 2.0**-24)
    threshold = ROUNDINGS * epsilon * np.abs(before).max((0, 1, 3))[:, None, None]
    depends = np.zeros((attention.num_heads, time, time), bool)
    for _ in range(DIRECTIONS):
        step = DISTANCE * np.sqrt((x[0] ** 2).mean()) * rng.normal(size=x.shape[1:])
        for sign in (1, -1):
            moved = x.copy()
            moved[np.arange(time), np.arange(time)] += sign * step
            change = np.abs(attend(moved) - before).max(-1)  # [j, i, heads]
            depends |= ~(change.transpose(2, 1, 0) <= threshold)  # NaN is a change
    return depends


def _places(disagree):
    return [tuple(place) for place in np.argwhere(disagree).tolist()]
