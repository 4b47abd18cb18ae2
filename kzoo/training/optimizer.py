"""Optimizers and schedules: Keras's own, with what is decayed and clipped settled."""

import copy
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kzoo.errors import InputError, unknown
from kzoo.typing import Tensor
from kzoo.values import is_count, is_number

# Biases, and the scales of norms. Every other variable is a matrix.
_NOT_DECAYED = ("bias", "beta", "gamma", "scale")
_LEAST = 0.1  # of the peak: where schedules end
WARMUP = 0.1  # of the steps


def warmup_cosine(learning_rate: float, steps: int, warmup: float = WARMUP) -> Any:
    """Linear warmup over a tenth of the steps, then half a cosine down to a tenth of the peak.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5, without restarts.

    Args:
        learning_rate: the peak.
        steps: of the whole training.
        warmup: the part of the steps that warm up; 0 for none.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Example:
        >>> rate = warmup_cosine(0.01, 100)
        >>> [round(float(rate(step)), 4) for step in (0, 10, 55, 100)]
        [0.001, 0.01, 0.0055, 0.001]
    """
    rising = _rising(steps, warmup)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / rising,
        max(1, steps - rising),
        alpha=_LEAST,
        warmup_target=learning_rate,
        warmup_steps=rising,
    )


def _rising(steps, warmup):
    return max(1, int(steps * warmup))


def warmup_stable_decay(learning_rate: float, steps: int, warmup: float = WARMUP) -> Any:
    """Linear warmup over a tenth of the steps, the peak, and in the last tenth linear decay.

    What is trained up to the decay can be trained on, towards a later end. Source: Hu et al. 2024
    (MiniCPM), arXiv:2404.06395, section 4.2; the decay is a line instead of their exponential.

    Args:
        learning_rate: the peak; the decay ends at a tenth of it.
        steps: of the whole training.
        warmup: the part of the steps that warm up; 0 for none.

    Returns:
        A `WarmupStableDecay`.

    Example:
        >>> rate = warmup_stable_decay(0.01, 100)
        >>> [round(float(rate(step)), 4) for step in (0, 10, 90, 95, 100)]
        [0.001, 0.01, 0.01, 0.0055, 0.001]
    """
    return WarmupStableDecay(learning_rate, steps, _rising(steps, warmup), max(1, steps // 10))


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
    warmup: float = WARMUP,
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
        warmup: the part of the steps in which the rate rises.
        weight_decay: the part of a matrix that a step takes away, times the learning rate.
        clip: the greatest norm of all gradients together; longer ones are scaled down to it.

    Returns:
        A `keras.optimizers.AdamW`.

    Raises:
        InputError: for an unknown schedule, or a rate or steps that are not positive.

    Example:
        >>> model.compile(optimizer=adamw(3e-3, steps=1000, schedule="wsd"))
    """
    rate = schedule_of(schedule, learning_rate, steps, warmup)
    return AdamW(rate, weight_decay=weight_decay, beta_2=0.98, global_clipnorm=clip)


def muon(
    learning_rate: float,
    steps: int,
    schedule: str = "cosine",
    *,
    warmup: float = WARMUP,
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
        learning_rate, steps, schedule, warmup, weight_decay, clip: as in `adamw`.

    Returns:
        A `keras.optimizers.Muon`.

    Raises:
        InputError: for an unknown schedule, or a rate or steps that are not positive.

    Example:
        >>> model.compile(optimizer=muon(3e-3, steps=1000))
    """
    return Muon(
        schedule_of(schedule, learning_rate, steps, warmup),
        weight_decay=weight_decay,
        adam_weight_decay=weight_decay,
        adam_beta_2=0.98,
        global_clipnorm=clip,
        # What is an attention's own, and not a projection's: the mechanism's variables.
        exclude_layers=[r"attention(_\d+)?/[^/]+$"],
    )


OPTIMIZERS = {"adamw": adamw, "muon": muon}


def schedule_of(name: str, learning_rate: float, steps: int, warmup: float = WARMUP) -> Any:
    """The schedule of a name; `InputError` for an unknown one, or a rate or steps that are not
    positive."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    if not is_number(learning_rate) or learning_rate <= 0:
        raise InputError(
            f"learning_rate is a positive number, such as 0.003. Received: {learning_rate!r}"
        )
    if not is_count(steps):
        raise InputError(f"steps is a positive integer, such as 1000. Received: {steps!r}")
    return SCHEDULES[name](learning_rate, steps, warmup)


# Rates as variables ---------------------------------------------------------------------------

_RATES = ("learning_rate", "initial_learning_rate", "warmup_target")  # numbers of schedules


class VariableRate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose rates are variables of its optimizer, so that others compile nothing anew.

    Every rate has the bits that it would have from the schedule itself. `state_variables` leaves
    these variables out: they are settings, and what training changes is the same as without.

    Args:
        make: function of a peak that returns the schedule; all schedules that it makes differ
            only in their rates.
        learning_rate: the first peak.

    Attributes:
        schedule: the one that is followed now, with plain numbers.
        variables: list of the variables, for the optimizer to track.
    """

    def __init__(self, make: Callable[[float], Any], learning_rate: float) -> None:
        super().__init__()
        self.make = make
        self.schedule = make(learning_rate)
        self._followed = copy.copy(self.schedule)
        self._names = [name for name in _RATES if name in self.schedule.get_config()]
        self.variables = [
            keras.Variable(getattr(self.schedule, name), dtype="float32", trainable=False)
            for name in self._names
        ]
        for name, variable in zip(self._names, self.variables, strict=True):
            setattr(self._followed, name, variable)

    def __call__(self, step: Any) -> Tensor:
        return self._followed(step)

    def set_peak(self, learning_rate: float) -> None:
        """Follow the schedule with another peak."""
        self.schedule = self.make(learning_rate)
        for name, variable in zip(self._names, self.variables, strict=True):
            variable.assign(getattr(self.schedule, name))

    def get_config(self) -> dict[str, Any]:
        return self.schedule.get_config()


def with_variable_rate(optimizer: Any, make: Callable[[float], Any], learning_rate: float) -> Any:
    """Give a built optimizer a `VariableRate`, which is returned."""
    rate = VariableRate(make, learning_rate)
    optimizer.learning_rate = rate
    for variable in rate.variables:
        optimizer._track_variable(variable)
    return rate


def state_variables(optimizer: Any) -> list[Any]:
    """The variables of an optimizer that training changes."""
    rate = getattr(optimizer, "_learning_rate", None)  # one that scales losses has none
    settings = rate.variables if isinstance(rate, VariableRate) else ()
    return [v for v in optimizer.variables if all(v is not setting for setting in settings)]
