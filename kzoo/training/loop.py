"""`model.fit` in segments: after each, the held-out set is measured."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kzoo.errors import unknown
from kzoo.training.optimizer import (
    OPTIMIZERS,
    WARMUP,
    VariableRate,
    schedule_of,
    state_variables,
    with_variable_rate,
)
from kzoo.training.stream import read_ahead
from kzoo.typing import Model

STEPS_PER_EXECUTION = 16  # of models for whose steps Python is slow:
_SMALL = 10_000_000  # parameters
LINES = 200  # of a run's log, besides those of measurements


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
    def steps(self) -> int:
        return len(self.train_loss)

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.train_loss[-1:]))


@dataclasses.dataclass(frozen=True)
class Program:
    """A task made ready for training, and what its compiled steps are reused with.

    Attributes:
        model: the task, compiled to train; it keeps no metric but the loss.
        evaluator: the same layers, compiled to measure bits per scored byte.
        optimizer_values: the optimizer's initial state.
        rate: the learning rate of a step, counted from 0, a schedule of Keras.
        config: by which checkpoints know their run; None for the model's.
    """

    model: keras.Model
    evaluator: keras.Model
    optimizer_values: list
    rate: keras.optimizers.schedules.LearningRateSchedule
    config: Mapping[str, Any] | None = None

    @property
    def schedule(self) -> keras.optimizers.schedules.LearningRateSchedule:
        """The learning rate as a schedule of plain numbers."""
        return self.rate.schedule if isinstance(self.rate, VariableRate) else self.rate

    def restart(self, fresh: Model, learning_rate: float | None = None) -> None:
        """Take the state of `fresh`, a model of the same shape, and a new optimizer state.

        The compiled steps stay, so that seeds of one arm share a compilation, and so do learning
        rates of a program that was prepared with `variable_rate`.

        Args:
            fresh: a task.
            learning_rate: another peak of the schedule.
        """
        if learning_rate is not None:
            self.rate.set_peak(learning_rate)
        for name in ("trainable_variables", "non_trainable_variables"):
            pairs = zip(getattr(self.model, name), getattr(fresh, name), strict=True)
            for variable, other in pairs:
                variable.assign(ops.convert_to_numpy(other))
        pairs = zip(state_variables(self.model.optimizer), self.optimizer_values, strict=True)
        for variable, value in pairs:
            variable.assign(value)

    def bits(self, valid: Any, callbacks: Any = None) -> float:
        """Bits per scored byte over all of `valid`, a dataset of batches; of a classifier, bits per
        label."""
        return self.measure(valid, callbacks)[self.model.bits_name]

    def measure(self, valid: Any, callbacks: Any = None) -> dict[str, float]:
        """What the task measures by default over all of `valid`: a number for each name."""
        logs = self.evaluator.evaluate(
            read_ahead(valid), steps=len(valid), callbacks=callbacks, verbose=0, return_dict=True
        )
        return {name: float(value) for name, value in logs.items()}


def prepare(
    model: Model,
    learning_rate: float,
    steps: int,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    *,
    warmup: float = WARMUP,
    variable_rate: bool = False,
) -> Program:
    """The `Program` of a task, compiled to train.

    Args:
        model: a task.
        learning_rate, steps, schedule, warmup: as in `kzoo.training.adamw`.
        optimizer: `"adamw"` or `"muon"`.
        variable_rate: whether `Program.restart` may change the learning rate, which is then a
            variable of the optimizer. Models that are saved with their optimizers do without.

    Returns:
        A `Program`. On JAX a model of less than 10 million parameters makes 16 steps in a call.

    Raises:
        InputError: for an unknown optimizer or schedule.

    Example:
        >>> program = prepare(kzoo.presets.load("gpt_nano"), learning_rate=0.003, steps=8)
    """
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    made = OPTIMIZERS[optimizer](learning_rate, steps, schedule, warmup=warmup)
    made.build(model.trainable_variables)
    values = [ops.convert_to_numpy(variable) for variable in made.variables]
    rate = schedule_of(schedule, learning_rate, steps, warmup)
    if variable_rate:

        def make(peak):
            return schedule_of(schedule, peak, steps, warmup)

        rate = with_variable_rate(made, make, learning_rate)
    # Elsewhere Keras has its own loops, which tell of the last step only (and on torch, none).
    size = steps_of_a_call(model.count_params()) if keras.backend.backend() == "jax" else 1
    model.compile(optimizer=made, weighted_metrics=[], steps_per_execution=size)
    # Its own task over the same layers: compiled, as every task is, with its loss and bits.
    evaluator = model.twin()
    return Program(model, evaluator, values, rate)


def steps_of_a_call(parameters: int) -> int:
    """How many steps a model of so many parameters makes in a call on JAX."""
    return STEPS_PER_EXECUTION if parameters < _SMALL else 1


class _Recorder(keras.callbacks.Callback):
    """Keeps each step's loss, reports it, and stops at one that is not finite.

    Keras logs the mean over the steps of a segment; a step's own loss is the difference of two
    such sums (to about 1e-5 nats), which spares the train step a metric. The losses of an
    execution are read while the device makes the next one, so that it need not wait, and the
    steps after one that is not finite are made, and not counted.
    """

    def __init__(self, task, outcome, on_step, checkpoints, lines):
        super().__init__()
        self.task = task  # `self.model` is set by Keras, also to the evaluator
        self.outcome = outcome
        self.on_step = on_step
        self.checkpoints = checkpoints
        self.lines = lines
        self.begin()

    def begin(self, start=0, total=0.0, metrics=None):
        """A segment, of which the steps from `start` to now are made, with losses of `total`."""
        self.start, self.total, self.metrics = start, total, metrics
        self.clock = time.perf_counter()

    def go_on(self, progress, model):
        """From what `progress` has said, with the checkpoint's values in the model."""
        vars(self.outcome).update(progress["outcome"])
        metrics = list(map(ops.copy, model.metrics_variables))
        self.begin(progress["start"], progress["total"], metrics)

    def fit_until(self, end, batches):
        """Make the steps that are left until step `end`, on a dataset of one epoch's batches."""
        made = self.outcome.steps
        left = read_ahead(batches.repeat()[made:end])
        self.task.fit(left, steps_per_epoch=end - made, callbacks=[self], verbose=0)
        self.lap()

    def on_epoch_begin(self, epoch, logs=None):
        if self.metrics is not None:  # Keras has set them to zero
            for variable, value in zip(self.model.metrics_variables, self.metrics, strict=True):
                variable.assign(value)
        self.made = self.outcome.steps
        self.unread, self.last = collections.deque(), self.model.train_function.logs

    # Not `on_train_batch_end`: for that Keras waits until the logs are there.
    def on_train_batch_begin(self, batch, logs=None):
        self._note(most=1)

    def on_epoch_end(self, epoch, logs=None):
        self._note(most=0)
        self._read(most=0)

    def _note(self, most):
        """Note the last execution, and read the losses of all but `most`."""
        executed = self.model.train_function.logs
        if executed is self.last:
            return
        self.last = executed
        self.unread.append(executed)
        self.made += sum(count for _, count in executed)
        self._read(most)
        if self.checkpoints is not None and self.outcome.finite:
            self.checkpoints.after_step(self.made, self.model, self.progress)

    def _read(self, most):
        outcome = self.outcome
        while len(self.unread) > most:
            for logs, count in self.unread.popleft():
                for mean in np.ravel(ops.convert_to_numpy(logs["loss"]))[:count].tolist():
                    if not outcome.finite:
                        return
                    total = mean * (outcome.steps + 1 - self.start)
                    loss = total - self.total
                    self.total = total
                    outcome.train_loss.append(loss)
                    self.on_step(outcome.steps, loss)
                    if self.lines is not None and self.lines.due():
                        self.lap()
                        self.lines.write()
                    if not math.isfinite(loss):
                        self.model.stop_training = True

    def on_test_batch_end(self, batch, logs=None):
        if self.checkpoints is not None and self.checkpoints.asked_to_end:
            self.model.stop_evaluating = True

    def progress(self):
        """What a checkpoint keeps besides the variables."""
        self._read(0)
        self.lap()
        outcome = dataclasses.asdict(self.outcome)
        return {"outcome": outcome, "start": self.start, "total": self.total}

    def lap(self):
        """Count the seconds since the last time."""
        now = time.perf_counter()
        self.outcome.seconds += now - self.clock
        self.clock = now


class _Lines:
    """Writes the lines of a `Monitor` from an outcome."""

    def __init__(self, monitor, program, outcome, steps):
        self.monitor, self.program, self.outcome = monitor, program, outcome
        self.every = max(1, steps // LINES)

    def due(self):
        """Whether a line is written after this step, whatever is measured."""
        return self.outcome.steps % self.every == 0 or not self.outcome.finite

    def write(self, held_out_bits=None):
        outcome, step = self.outcome, self.outcome.steps
        since = outcome.train_loss[self.monitor.line_before(step) :]
        rate = float(ops.convert_to_numpy(self.program.schedule(step - 1)))
        self.monitor.write(
            *(self.program.model, step, sum(since) / len(since), outcome.seconds, rate),
            held_out_bits,
        )


def train(
    program: Program,
    splits: Any,
    steps: int,
    *,
    evaluations: int = 1,
    checkpoints: Any = None,
    monitor: Any = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Outcome:
    """Train a model, measuring the held-out set at even intervals.

    Args:
        program: a `Program`, from `prepare`.
        splits: `kzoo.data.Splits`.
        steps: optimizer steps in all.
        evaluations: how often the held-out set is measured; the last time at the end.
        checkpoints: a `kzoo.training.Checkpoints`. If its folder holds a checkpoint, training
            goes on from there, with the same losses to the last bit on CPU. They stay at the end.
        monitor: a `kzoo.training.Monitor`, which gets a line every 200th part of the steps, and
            with every measurement.
        on_step: called with (step, loss) after each step.

    Returns:
        An `Outcome`; where a loss was not finite, `finite` is False and training has stopped.

    Raises:
        InputError: see `Checkpoints`; and if its folder's checkpoints are of another run: another
            config, optimizer, backend, data, or number of steps or evaluations.
        Preempted: if SIGTERM comes and there are checkpoints; the run is saved.

    Example:
        >>> program = prepare(kzoo.presets.load("gpt_nano"), 0.003, steps=8)
        >>> outcome = train(program, splits, steps=8)
        >>> outcome.steps, outcome.finite
        (8, True)
    """
    outcome = Outcome()
    lines = None if monitor is None else _Lines(monitor, program, outcome, steps)
    recorder = _Recorder(program.model, outcome, on_step, checkpoints, lines)
    model = program.model
    with contextlib.ExitStack() as stack:
        if checkpoints is not None:
            stack.callback(checkpoints.end)
            settings = _settings(program, splits, steps, evaluations)
            _, progress = checkpoints.begin(model, settings)
            if progress is not None:
                recorder.go_on(progress, model)
        if lines is not None:
            monitor.begin(outcome.steps)
            stack.callback(monitor.end)
        for end in [steps * (i + 1) // evaluations for i in range(evaluations)]:
            if end <= (outcome.held_out[-1][0] if outcome.held_out else 0):
                continue
            if outcome.steps < end and outcome.finite:
                recorder.fit_until(end, splits.train)
            if not outcome.finite:
                break
            bits = program.bits(splits.valid, [recorder])
            if checkpoints is not None and checkpoints.asked_to_end:
                checkpoints.after_step(outcome.steps, model, recorder.progress)
            outcome.held_out.append([end, bits])
            if lines is not None:
                lines.write(bits)
            recorder.begin(end)
    return outcome


def _settings(program, splits, steps, evaluations):
    """What decides on the losses of a run: a dict that JSON can hold."""
    optimizer = keras.saving.serialize_keras_object(program.model.optimizer)["config"]
    optimizer["learning_rate"] = keras.saving.serialize_keras_object(program.schedule)
    return {
        "config": program.config or program.model.config,
        "optimizer": {name: value for name, value in optimizer.items() if name != "name"},
        "backend": keras.backend.backend(),
        "steps": steps,
        "evaluations": evaluations,
        "data": {name: splits.facts[name] for name in ("sha256", "row_length", "train_rows")},
        "batches": len(splits.train),
    }
