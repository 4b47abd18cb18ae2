"""`model.fit` in segments: after each, the held-out set is measured and the state is kept."""

import dataclasses
import math
import time

import grain
import keras
from keras import ops

from kzoo.models.scoring import BitsPerByte, token_loss
from kzoo.training import checkpoint
from kzoo.training.optimizer import adamw


class BatchLoss(keras.metrics.Metric):
    """The loss of the last batch alone, nats per scored token (Keras logs a running mean)."""

    def __init__(self, name="batch_loss", **kwargs):
        super().__init__(name=name, **kwargs)
        self.last = self.add_variable((), "zeros", name="last")
        self.loss = token_loss()

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.last.assign(self.loss(y_true, ops.cast(y_pred, "float32"), sample_weight))

    def result(self):
        return self.last * 1.0

    def reset_state(self):
        self.last.assign(0.0)


class _Recorder(keras.callbacks.Callback):
    """Keeps each step's loss, reports it, and stops at one that is not finite."""

    def __init__(self, losses, on_step):
        super().__init__()
        self.losses = losses
        self.on_step = on_step

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["batch_loss"])
        self.losses.append(loss)
        self.on_step(len(self.losses), loss)
        if not math.isfinite(loss):
            self.model.stop_training = True


@dataclasses.dataclass
class Outcome:
    """What a training measured.

    Attributes:
        train_loss: nats per scored token, one per step.
        held_out: [step, bits per scored byte over the whole held-out set] pairs.
        seconds: spent in training steps, compilation included, evaluation not.
    """

    train_loss: list = dataclasses.field(default_factory=list)
    held_out: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self):
        return len(self.train_loss)

    @property
    def finite(self):
        return all(map(math.isfinite, self.train_loss[-1:]))


def prepare(model, learning_rate, steps):
    """Compile a task for `train` and remember the optimizer's initial state.

    Returns:
        The optimizer's initial values, for `restart`.
    """
    optimizer = adamw(learning_rate, steps)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, weighted_metrics=[BatchLoss(), BitsPerByte()])
    return [ops.convert_to_numpy(variable) for variable in optimizer.variables]


def restart(model, fresh, optimizer_values):
    """Give `model` the state of `fresh`, a model of the same shape, and a new optimizer state.

    The compiled step of `model` stays, so that seeds of one arm share a compilation.
    """
    for name in ("trainable_variables", "non_trainable_variables"):
        for variable, other in zip(getattr(model, name), getattr(fresh, name), strict=True):
            variable.assign(ops.convert_to_numpy(other))
    for variable, value in zip(model.optimizer.variables, optimizer_values, strict=True):
        variable.assign(value)


def train(model, splits, steps, *, evaluations=1, path=None, on_step=lambda step, loss: None):
    """Train a prepared model, measuring the held-out set at even intervals.

    Args:
        model: a task after `prepare`.
        splits: `kzoo.data.Splits`.
        steps: optimizer steps in all.
        evaluations: how often the held-out set is measured; the last time at the end.
        path: file that keeps the state after each segment; if it is there, training goes on
            from it, with the same losses to the last bit on CPU.
        on_step: called with (step, loss) after each step.

    Returns:
        An `Outcome`; where a loss was not finite, `finite` is False and training has stopped.
    """
    outcome = Outcome()
    if path is not None and path.exists():
        outcome = Outcome(**checkpoint.restore(path, model))
    recorder = _Recorder(outcome.train_loss, on_step)
    bounds = [steps * (i + 1) // evaluations for i in range(evaluations)]
    for end in bounds:
        start = outcome.steps
        if end <= start:
            continue
        begin = time.perf_counter()
        batches = _read(splits.train.repeat()[start:end])
        fit = {"callbacks": [recorder], "shuffle": False, "verbose": 0}
        model.fit(batches, steps_per_epoch=end - start, **fit)
        outcome.seconds += time.perf_counter() - begin
        if not outcome.finite:
            break
        outcome.held_out.append([end, evaluate(model, splits.valid)])
        if path is not None:
            checkpoint.save(path, model, dataclasses.asdict(outcome))
    return outcome


def evaluate(model, valid):
    """Bits per scored byte over the whole held-out set, of a prepared model."""
    logs = model.evaluate(_read(valid), steps=len(valid), verbose=0, return_dict=True)
    return float(logs["bits_per_byte"])


def _read(batches):
    """Batches read ahead by one thread: encoding one takes a millisecond, a step tens."""
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
