"""The weights of each head, to be looked at."""

from typing import Any

from kzoo.analysis.weights import layer_weights
from kzoo.errors import InputError
from kzoo.typing import Model
from kzoo.values import is_count


def attention_maps(model: Model, batch: Any, example: int = 0) -> list[dict[str, Any]]:
    """The attention weights of every head for one example, in float64.

    Args:
        model: a task or backbone.
        batch: its inputs, [batch, time], or a tuple that begins with them.
        example: which one of the batch, from 0.

    Returns:
        A list of dicts, one per layer and head: `stack`, `layer`, `head` and `mask` as in
        `attention_spectrum`, and `weights`, floats [tokens, tokens] (a row for each query) among
        the tokens of the example that are no padding.

    Raises:
        InputError: as `attention_spectrum`, or for an example that the batch has not.

    Example:
        >>> attention_maps(model, valid[0])[0]["weights"].sum(axis=1).round(6)[:2]
        array([1., 1.])
    """
    found = []
    for layer in layer_weights(model, batch):
        if not is_count(example, least=0) or example >= len(layer.real):
            raise InputError(
                f"example is one of the batch, 0 to {len(layer.real) - 1}. Received: {example!r}"
            )
        weights = layer.of(example)
        for head, mask in enumerate(layer.masks):
            place = {"stack": layer.stack, "layer": layer.layer, "head": head, "mask": mask}
            found.append({**place, "weights": weights[head]})
    return found
