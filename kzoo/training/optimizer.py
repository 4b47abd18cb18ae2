"""Optimizers and schedules: Keras's own, with what is decayed and clipped settled."""

from typing import Any

import keras
from keras import ops

from kzoo.errors import InputError, unknown
from kzoo.typing import Tensor
from kzoo.values import is_count, is_number

# Biases, and the scales of norms. Every other variable is a matrix.
_NOT_DECAYED = ("bias", "beta", "gamma", "scale")
_LEAST = 0.1  # of the peak: where schedules end


def warmup_cosine(learning_rate: float, steps: int) -> Any:
    """Linear warmup over a tenth of the steps, then half a cosine down to a tenth of the peak.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts.

    Args:
        learning_rate: the peak.
        steps: of the whole training.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Example:
        >>> rate = warmup_cosine(0.01, 100)
        >>> [round(float(rate(step)), 4) for step in (0, 10, 55, 100)]
        [0.001, 0.01, 0.0055, 0.001]
    """
    warmup = max(1, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / warmup,
        max(1, steps - warmup),
        alpha=_LEAST,
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )


def warmup_stable_decay(learning_rate: float, steps: int) -> Any:
    """Linear warmup over a tenth of the steps, the peak, and in the last tenth linear decay.

    What is trained up to the decay can be trained on, towards a later end. Source: Hu et al. 2024
    (MiniCPM), arXiv:2404.06395, section 4.2; the decay is a line instead of their exponential.

    Args:
        learning_rate: the peak; the decay ends at a tenth of it.
        steps: of the whole training.

    Returns:
        A `WarmupStableDecay`.

    Example:
        >>> rate = warmup_stable_decay(0.01, 100)
        >>> [round(float(rate(step)), 4) for step in (0, 10, 90, 95, 100)]
        [0.001, 0.01, 0.01, 0.0055, 0.001]
    """
    part = max(1, steps // 10)
    return WarmupStableDecay(learning_rate, steps, part, part)


@keras.saving.register_keras_serializable(package="kzoo")
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises, stays and falls, each linearly; see `warmup_stable_decay`.

    Args:
        learning_rate: the peak.
        steps: after which the rate is the least.
        warmup_steps: from the peak over their number up to the peak.
        decay_steps: the last ones, down to a tenth of the peak.

    Example:
        >>> round(float(WarmupStableDecay(0.01, 100, 10, 20)(50)), 4)
        0.01
    """

    def __init__(
        self, learning_rate: float, steps: int, warmup_steps: int, decay_steps: int
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.decay_steps = decay_steps

    def __call__(self, step: Any) -> Tensor:
        step = ops.cast(step, "float32")
        first = 1 / self.warmup_steps
        risen = ops.minimum(1.0, first + (1 - first) * step / self.warmup_steps)
        fallen = ops.clip((step - self.steps) / self.decay_steps + 1, 0.0, 1.0)
        return self.learning_rate * risen * (1 - (1 - _LEAST) * fallen)

    def get_config(self) -> dict[str, Any]:
        names = ("learning_rate", "steps", "warmup_steps", "decay_steps")
        return {name: getattr(self, name) for name in names}


class _DecaysMatrices:
    # Set where it is made: Keras's configs of optimizers do not tell what is not decayed.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exclude_from_weight_decay(var_names=list(_NOT_DECAYED))


@keras.saving.register_keras_serializable(package="kzoo")
class AdamW(_DecaysMatrices, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` that decays no biases and no norms."""


@keras.saving.register_keras_serializable(package="kzoo")
class Muon(_DecaysMatrices, keras.optimizers.Muon):
    """`keras.optimizers.Muon` that decays no biases and no norms."""


SCHEDULES = {"cosine": warmup_cosine, "wsd": warmup_stable_decay}


def adamw(
    learning_rate: float,
    steps: int,
    schedule: str = "cosine",
    *,
    weight_decay: float = 0.01,
    clip: float = 1.0,
) -> Any:
    """AdamW with a schedule, weight decay of matrices, and clipped gradients.

    β₂ is 0.98. Embeddings and kernels are decayed, biases and norms are not. Source: Loshchilov &
    Hutter 2019, arXiv:1711.05101.

    Args:
        learning_rate: the peak.
        steps: of the whole training.
        schedule: `"cosine"`, which is `warmup_cosine`, or `"wsd"`, `warmup_stable_decay`.
        weight_decay: the part of a matrix that a step takes away, times the learning rate.
        clip: the greatest norm of all gradients together; longer ones are scaled down to it.

    Returns:
        A `keras.optimizers.AdamW`.

    Raises:
        InputError: for an unknown schedule, or a rate or steps that are not positive.

    Example:
        >>> model.compile(optimizer=adamw(3e-3, steps=1000, schedule="wsd"))
    """
    rate = _rate(learning_rate, steps, schedule)
    return AdamW(rate, weight_decay=weight_decay, beta_2=0.98, global_clipnorm=clip)


def muon(
    learning_rate: float,
    steps: int,
    schedule: str = "cosine",
    *,
    weight_decay: float = 0.01,
    clip: float = 1.0,
) -> Any:
    """Muon for the kernels of all projections, AdamW for what is left.

    Muon's step is the momentum's nearest orthogonal matrix, about: by five Newton-Schulz steps.
    It is scaled to the size of AdamW's steps, so that a learning rate and a decay of AdamW suit
    it. AdamW, as in `adamw`, takes embeddings, output matrices, biases, norms, and the variables
    of mechanisms, such as learned feature maps, whose matrices hold one for each head. Sources:
    Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982, for
    the scale.

    Args:
        learning_rate, steps, schedule, weight_decay, clip: as in `adamw`.

    Returns:
        A `keras.optimizers.Muon`.

    Raises:
        InputError: for an unknown schedule, or a rate or steps that are not positive.

    Example:
        >>> model.compile(optimizer=muon(3e-3, steps=1000))
    """
    return Muon(
        _rate(learning_rate, steps, schedule),
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_beta_2=0.98,
        global_clipnorm=clip,
        # What is an attention's own, and not a projection's: the mechanism's variables.
        exclude_layers=[r"attention(_\d+)?/[^/]+$"],
    )


OPTIMIZERS = {"adamw": adamw, "muon": muon}


def _rate(learning_rate, steps, schedule):
    """The rate along a training of `steps`."""
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if not is_number(learning_rate) or learning_rate <= 0:
        raise InputError(
            f"learning_rate is a positive number, such as 0.003. Received: {learning_rate!r}"
        )
    if not is_count(steps):
        raise InputError(f"steps is a positive integer, such as 1000. Received: {steps!r}")
    return SCHEDULES[schedule](learning_rate, steps)
