"""`model.fit` in segments: after each, the held-out set is measured and the state is kept."""

import dataclasses
import math
import time

import grain
import keras
from keras import ops

from kzoo.training import checkpoint
from kzoo.training.optimizer import adamw


class _Recorder(keras.callbacks.Callback):
    """Keeps each step's loss, reports it, and stops at one that is not finite.

    Keras logs the mean over the steps of this `fit`; a step's own loss is the difference of
    two such sums (to about 1e-5 nats), which spares the train step a metric.
    """

    def __init__(self, losses, on_step):
        super().__init__()
        self.losses = losses
        self.on_step = on_step

    def on_epoch_begin(self, epoch, logs=None):
        self.total = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = float(logs["loss"]) * (batch + 1)
        loss = total - self.total
        self.total = total
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


@dataclasses.dataclass(frozen=True)
class Program:
    """A task made ready for training, and what its compiled steps are reused with.

    Attributes:
        model: the task, compiled to train; it keeps no metric but the loss.
        evaluator: the same layers, compiled to measure bits per scored byte.
        optimizer_values: the optimizer's initial state.
    """

    model: keras.Model
    evaluator: keras.Model
    optimizer_values: list

    def restart(self, fresh):
        """Take the state of `fresh`, a model of the same shape, and a new optimizer state.

        The compiled steps stay, so that seeds of one arm share a compilation.
        """
        for name in ("trainable_variables", "non_trainable_variables"):
            pairs = zip(getattr(self.model, name), getattr(fresh, name), strict=True)
            for variable, other in pairs:
                variable.assign(ops.convert_to_numpy(other))
        pairs = zip(self.model.optimizer.variables, self.optimizer_values, strict=True)
        for variable, value in pairs:
            variable.assign(value)

    def bits(self, valid):
        """Bits per scored byte over all of `valid`, a dataset of batches."""
        logs = self.evaluator.evaluate(_read(valid), steps=len(valid), verbose=0, return_dict=True)
        return float(logs["bits_per_byte"])


def prepare(model, learning_rate, steps):
    """The `Program` of a task: compiled with `adamw(learning_rate, steps)`."""
    optimizer = adamw(learning_rate, steps)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer, weighted_metrics=[])
    # Its own task over the same layers: compiled, as every task is, with its loss and bits.
    evaluator = model.twin()
    values = [ops.convert_to_numpy(variable) for variable in optimizer.variables]
    return Program(model, evaluator, values)


def train(program, splits, steps, *, evaluations=1, path=None, on_step=lambda step, loss: None):
    """Train a model, measuring the held-out set at even intervals.

    Args:
        program: a `Program`, from `prepare`.
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
        outcome = Outcome(**checkpoint.restore(path, program.model))
    recorder = _Recorder(outcome.train_loss, on_step)
    bounds = [steps * (i + 1) // evaluations for i in range(evaluations)]
    for end in bounds:
        start = outcome.steps
        if end <= start:
            continue
        begin = time.perf_counter()
        batches = _read(splits.train.repeat()[start:end])
        program.model.fit(batches, steps_per_epoch=end - start, callbacks=[recorder], verbose=0)
        outcome.seconds += time.perf_counter() - begin
        if not outcome.finite:
            break
        outcome.held_out.append([end, program.bits(splits.valid)])
        if path is not None:
            checkpoint.save(path, program.model, dataclasses.asdict(outcome))
    return outcome


def _read(batches):
    """Batches read ahead by one thread: encoding one takes a millisecond, a step tens."""
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
