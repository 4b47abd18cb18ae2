"""The dense weights of each attention of a model, in float64: what spectra and maps are of."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from kzoo.analysis.activations import activations, compact
from kzoo.analysis.float64 import float64, numpy
from kzoo.analysis.memory import check_fits
from kzoo.errors import InputError
from kzoo.typing import Model


class LayerWeights:
    """The weights of one layer's self-attention, for one batch.

    Attributes:
        stack: `"encoder"` or `"decoder"`; empty for a single stack.
        layer: from 0.
        attention: the `kzoo.layers.Attention`.
        real: booleans [batch, time]: the tokens that are no padding.
        examples: the indices of the examples that an analysis is of: those without padding, if
            there are any; else all that are not empty.
    """

    def __init__(self, stack, layer):
        block, state = stack.blocks[layer], stack.states[layer]
        self.stack, self.layer, self.attention = stack.name, layer, block.attention
        self._inputs = ops.convert_to_tensor(block.attention_inputs(state))
        self._call = {**stack.masks, **stack.bias}
        self.real = stack.masks["padding_mask"] != 0
        whole = self.real.all(1)
        self.examples = np.flatnonzero(whole if whole.any() else self.real.any(1))

    @property
    def masks(self):
        """The mask of each head, as short strings."""
        return [compact(mask) for mask in self.attention.mask.per_head(self.attention.num_heads)]

    def of(self, example: int, mask: Any = None) -> np.ndarray:
        """The weights among the tokens of one example, without its padding.

        Args:
            example: index in the batch.
            mask: a `Mask` in place of the layer's own.

        Returns:
            Floats [heads, tokens, tokens]; float64, unless the mechanism gives float32 weights
            whatever it is given.
        """
        inputs = self._inputs[example : example + 1]
        call = {name: _one(x, example) for name, x in self._call.items()}
        with float64():
            weights = self.attention.attention_weights(inputs, mask=mask, dtype="float64", **call)
            dtype = keras.backend.standardize_dtype(weights.dtype)
            weights = numpy(weights)[0]
        real = self.real[example]
        weights = weights[:, real][:, :, real]
        return weights if dtype == "float64" else weights.astype("float32")

    def follows(self, mask: Any) -> bool:
        """Whether the attention's mechanism can follow a `Mask` in place of its own."""
        try:
            heads = mask.per_head(self.attention.num_heads)
            self.attention.mechanism.check(heads, bias=self.attention.relative)
        except InputError:
            return False
        return True


def layer_weights(model: Model, batch: Any) -> Iterator[LayerWeights]:
    """The `LayerWeights` of every layer of a model, stack by stack.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them.

    Raises:
        InputError: if the model has no blocks, the batch lacks one of its inputs, or so many
            tokens do not fit into memory. While the weights are made: if a mechanism has none.
    """
    check_fits(model, batch)
    for stack in activations(model, batch):
        for layer in range(len(stack.blocks)):
            yield LayerWeights(stack, layer)


def _one(x, example):
    """What concerns one example of a batch; a bias [1, ...] serves all."""
    if x is None or x.shape[0] == 1:
        return x
    return x[example : example + 1]
