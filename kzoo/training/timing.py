"""How long a training takes, found by a few of its steps before it starts."""

import dataclasses
import time
from typing import Any

from keras import ops

from kzoo.training.stream import read_ahead
from kzoo.typing import Model

_ENOUGH = 2.0  # seconds of steps: beside them what a call of `fit` costs is small


@dataclasses.dataclass(frozen=True)
class Timing:
    """What `measure` found, in seconds.

    Attributes:
        compiling: until the first steps were made, less the steps themselves.
        step: one optimizer step.
        evaluation: the whole held-out set, once.
    """

    compiling: float
    step: float
    evaluation: float

    def minutes(self, steps: int, evaluations: int = 0) -> float:
        """Predicted minutes of a training, compilation left out.

        Example:
            >>> Timing(compiling=90.0, step=0.2, evaluation=3.0).minutes(600, evaluations=10)
            2.5
        """
        return (steps * self.step + evaluations * self.evaluation) / 60


def measure(
    model: Model, train: Any, valid: Any = None, *, steps: int, evaluator: Any = None
) -> Timing:
    """Make the first steps of a training and take them back.

    The model keeps what was compiled, so that `fit`, called next, begins at once. Weights,
    optimizer and random states are what they were.

    Args:
        model: a compiled task.
        train: `grain.MapDataset` of batches, such as `kzoo.data.load(...).train`.
        valid: the held-out batches, if they are measured too.
        steps: of the training to come; no more than these are made.
        evaluator: measures `valid` instead of the model; see `kzoo.training.Program`.

    Returns:
        A `Timing`.

    Example:
        >>> timing = measure(model, splits.train, splits.valid, steps=1000)
        >>> print(f"about {timing.minutes(1000, evaluations=5):.0f} minutes")
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
    ]
    values = [ops.convert_to_numpy(variable) for variable in variables]

    def fit(count):
        batches = read_ahead(train.repeat()[:count])
        model.fit(batches, steps_per_epoch=count, verbose=0)

    count = min(steps, 2 * model.steps_per_execution)
    first = _seconds(fit, count)
    taken = _seconds(fit, count)
    compiling, step, fewest = first - taken, taken / count, (count, taken)
    while count < steps and taken - fewest[1] < _ENOUGH:
        count = min(steps, 4 * count)
        taken = _seconds(fit, count)
        # What a call costs besides its steps is not in the difference of two.
        step = max(0.0, taken - fewest[1]) / (count - fewest[0])
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)

    evaluation = 0.0
    if valid is not None:
        evaluator = evaluator or model
        some = valid[: 16 * evaluator.steps_per_execution]

        def evaluate():
            evaluator.evaluate(read_ahead(some), steps=len(some), verbose=0)

        first = _seconds(evaluate)
        evaluation = _seconds(evaluate)
        compiling += first - evaluation
        evaluation *= len(valid) / len(some)
    return Timing(max(0.0, compiling), step, evaluation)


def _seconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)  # `fit` and `evaluate` return when the device is done
    return time.perf_counter() - start
