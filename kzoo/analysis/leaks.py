"""Which inputs each head really depends on, against what its mask says."""

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from kzoo.analysis.activations import activations
from kzoo.analysis.float64 import numpy
from kzoo.typing import Model

# How far an input is changed, in multiples of the inputs' root mean square: enough for one key
# of a hundred to move its query's output by a tenth, and too little to overflow exp.
DISTANCE = 10.0
# How much of the largest output of a head counts as a change, in units of rounding. A hidden
# input meets exact zeros only, and outputs are compared at the same index of an equal batch, so
# that sums run in the same order: on a CPU the change is exactly 0. Some kernels of
# accelerators sum in no fixed order, hence a margin.
ROUNDINGS = 16
EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
DIRECTIONS = 2


@dataclasses.dataclass(frozen=True)
class LayerLeaks:
    """Where the attention of one layer disagrees with its mask. A correct layer has empty lists.

    Attributes:
        layer: from 0.
        stack: `"encoder"` or `"decoder"`; empty for a single stack.
        hidden: list of (example, head, i, j): the output at i depends on the input at j, which
            the mask hides from it.
        unused: list of (example, head, i, j): the mask shows the input at j to the
            query at i, but the output at i does not depend on it.
    """

    layer: int
    hidden: list
    unused: list
    stack: str = ""


def leaks(model: Model, batch: Any) -> list[LayerLeaks]:
    """Compare what each head depends on with what its mask shows, layer by layer.

    The input of an attention layer is changed far at one position after the other, in random
    directions and their opposites, and the outputs of its heads (before the output projection)
    change or do not. Each layer is tested alone, since after two layers of mixed masks everything
    depends on everything. An output depends on the input at its own position through its query
    too. So a dependence on a token's own key is never reported as a leak, and a kernel that omits
    it is noticed only where the query sees no other key.

    Quadratic in memory and cubic in time: give it short sequences.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them. Examples may be
            padded and packed; padding is changed like all else, and must have no effect.

    Returns:
        A list with a `LayerLeaks` for each layer, stack by stack. Cross-attention is not
        tested.

    Raises:
        InputError: if the model has no blocks, or the batch lacks one of its inputs.

    Example:
        >>> [(layer.hidden, layer.unused) for layer in leaks(model, valid[0])]  # of one layer
        [([], [])]
    """
    return [found for stack in activations(model, batch) for found in _of_stack(stack)]


def _of_stack(stack):
    for layer, (block, state) in enumerate(zip(stack.blocks, stack.states[:-1], strict=True)):
        inputs, attention = numpy(block.attention_inputs(state)), block.attention
        depends = np.stack(
            [
                _depends(attention, x, {**masks, **stack.bias})
                for x, masks in _examples(inputs, stack.masks)
            ]
        )
        visible = attention.mask.dense(
            inputs.shape[1], num_heads=attention.num_heads, **stack.masks
        )
        visible = np.broadcast_to(ops.convert_to_numpy(visible), depends.shape)
        real = (stack.masks["padding_mask"] != 0)[:, None, :, None]
        itself = real & np.eye(inputs.shape[1], dtype=bool)
        hidden, unused = depends & ~visible & ~itself, visible & ~depends
        yield LayerLeaks(layer, _indices(hidden), _indices(unused), stack.name)


def _examples(inputs, masks):
    """Each example and its masks, repeated once for each position: [time, time, ...]."""
    for i, x in enumerate(inputs):
        time = len(x)
        repeated = {
            name: None if mask is None else np.repeat(mask[i : i + 1], time, axis=0)
            for name, mask in masks.items()
        }
        yield np.repeat(x[None], time, axis=0), repeated


def _depends(attention, x, masks):
    """Booleans [heads, time, time]: whether output i of a head depends on input j.

    Args:
        attention: the layer.
        x: floats [time, time, hidden_dim], one example repeated.
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


def _indices(disagree):
    return [tuple(index) for index in np.argwhere(disagree).tolist()]
