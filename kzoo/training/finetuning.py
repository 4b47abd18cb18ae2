"""Fine-tuning: which weights of a pretrained model train."""

import logging
import math

from kzoo.errors import InputError
from kzoo.typing import Model
from kzoo.values import is_count

log = logging.getLogger("kzoo")


def train_last_layers(model: Model, count: int) -> None:
    """Freeze a model but for its last blocks and what stands above them. Compile it afterwards.

    Above them are the final norm, a pooler, and the weights of a head. The embeddings are frozen,
    and with them an output matrix that is tied to them.

    Args:
        model: a task.
        count: how many blocks train, of each stack; 0 for what stands above them alone (a linear
            probe, of a classifier).

    Raises:
        InputError: for more blocks than there are.

    Example:
        >>> model = kzoo.presets.load("bert_nano", objective="classification")
        >>> train_last_layers(model, 0)
        >>> [variable.path for variable in model.trainable_variables][-1]
        'classes/bias'
    """
    backbone = model.backbone
    if not is_count(count, least=0) or count > backbone.num_layers:
        raise InputError(
            f"the number of layers that train is an integer from 0 to {backbone.num_layers}. "
            f"Received: {count!r}"
        )
    for layer in backbone._flatten_layers(include_self=False):
        layer.trainable = False
    for stack in backbone.stacks.values():
        for block in stack.blocks[len(stack.blocks) - count :]:
            block.trainable = True
        if stack.final_norm is not None:
            stack.final_norm.trainable = True
    if backbone.pooler is not None:
        backbone.pooler.trainable = True


def say_what_trains(model: Model) -> None:
    """Log how many of a model's parameters train.

    Args:
        model: a task.
    """
    trained = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    log.info("%s of %s parameters train", f"{trained:,}", f"{model.count_params():,}")
