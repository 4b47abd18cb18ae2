"""Which objectives, masks and stacks go together; and the task that they make."""

from typing import Any

from kzoo.errors import InputError
from kzoo.objectives.base import Objective
from kzoo.objectives.layouts import layout


def task_name(stack: str, objective: Objective) -> str:
    """The class in `kzoo.models` that trains a stack with an objective.

    Args:
        stack: a config's `stack`.
        objective: an `Objective`.

    Returns:
        `"CausalLM"`, `"MaskedLM"`, `"Seq2SeqLM"` or `"TextClassifier"`.

    Example:
        >>> task_name("single", kzoo.objectives.get("masked_lm"))
        'MaskedLM'
    """
    if objective.labels is not None:
        return "TextClassifier"
    if stack != "single":
        return "Seq2SeqLM"
    return "CausalLM" if objective.next_token else "MaskedLM"


def check(stack: str, mask: Any, objective: Objective) -> None:
    """`InputError` unless a stack under a mask can learn an objective.

    A leak test does not find a mask that shows the objective its answer: it allows what it shows.

    Args:
        stack: a config's `stack`.
        mask: a `kzoo.masks.Mask`; of an encoder and a decoder the encoder's.
        objective: an `Objective`.

    Example:
        >>> check("single", kzoo.masks.causal(), kzoo.objectives.get("causal_lm"))
    """
    if stack != "single" and objective.labels is not None:
        raise InputError(
            "a classifier is a single stack; an encoder and a decoder learn to write the label, "
            f"with 'prefix_lm' on the same pairs. Received: stack={stack!r} with "
            f"objective={objective.get_config()!r}"
        )
    layout(stack).check(objective)
    if stack != "single":
        return
    received = f"Received: mask={_spec(mask)!r} with objective={objective.get_config()!r}"
    if objective.next_token and not mask.autoregressive:
        raise InputError(
            "this mask would show a next-token loss its answer; every head and layer must be "
            f"causal or prefix, or the objective 'masked_lm'. {received}"
        )
    scores_source = objective.next_token and objective.scored() == "all"
    if mask.needs_source and (not objective.has_source or scores_source):
        raise InputError(
            "a prefix mask shows the source whole, so only the target can be scored; "
            f"use the objective 'prefix_lm', or the mask 'causal'. {received}"
        )


def check_two_stacks(config: Any) -> None:
    """`InputError` for what an encoder and a decoder cannot have.

    Args:
        config: a `kzoo.config.BackboneConfig`; its mask is the encoder's.

    Example:
        >>> check_two_stacks(kzoo.config.get(kzoo.presets.config("t5_nano")))
    """
    if config.mask.needs_source:
        raise InputError(
            "the mask is the encoder's, which holds the source alone; use 'bidirectional' for a "
            f"prefix. Received: mask={_spec(config.mask)!r}"
        )
    for field in ("num_segments", "pooler"):
        if value := getattr(config, field):
            raise InputError(f"only a single stack has {field}. Received: {field}={value!r}")


def _spec(mask):
    try:
        return mask.get_config()
    except InputError:  # a custom mask has no JSON
        return mask
