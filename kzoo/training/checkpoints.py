"""The callback that saves checkpoints during `fit` and resumes from the newest one."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import grain
import keras
from orbax.checkpoint import multihost

from kzoo.errors import InputError, Preempted
from kzoo.training.checkpoint import Store
from kzoo.training.preemption import Notice, is_in_fit
from kzoo.training.stream import Stream, read_ahead
from kzoo.typing import Model, Path
from kzoo.values import interval, is_count, plain

log = logging.getLogger("kzoo")

# A true value of Keras's `stop_training` that this callback sets and takes back: it ends the epoch
# that was resumed in its midst, and not the training.
_END_OF_RESUMED_EPOCH = "the resumed epoch has made its steps"
# Where several processes train together, saving by the clock goes by the clock of the first one,
# which the others ask for after every 16th call of a train step.
_CALLS_BETWEEN_CLOCKS = 16


class Checkpoints(keras.callbacks.Callback):
    """Keeps a run's last checkpoints, and goes on from the newest one when it is run again.

    A checkpoint holds weights, optimizer, step, the state of dropout's generators, the running
    metrics, and the position in the data. Orbax writes it while training goes on, and a process
    that is killed at any moment leaves whole ones: the same script, run again, makes the steps
    that are left, with the same losses (on a CPU to the last bit). SIGTERM, which machines send
    before they are taken away, and SIGHUP, which comes where a terminal is closed, save at the end
    of the step and raise `kzoo.errors.Preempted`: the process exits with status 75. Checkpoints
    restore onto another number of devices.
    (On torch, a Dropout of Keras without a seed draws from torch's own generator, which is not
    kept; kzoo's layers have seeds.)

    The last checkpoint is the trained model's state; it stays, and so more `epochs` go on from it.
    Keras's other callbacks and `History` keep no state in it. It stands last among the callbacks,
    so that the others have seen the step that is saved. What comes at an epoch's end (validation)
    is not made up for where a run is stopped between an epoch's last step and that.

    Args:
        directory: where checkpoints go, a folder for each step; one run's own.
        every: optimizer steps between two checkpoints, an integer; or seconds, such as "60s".
            By the clock, none is begun while one is being written.
        keep: how many are kept, 1 or more; with 2 or more, damage to one does not end the run.
        settings: what else must be the same when the run goes on; a dict that JSON can hold.
            The config of a kzoo model, and every model's variables and shapes, are compared
            anyway.

    Raises:
        InputError: for another `every` or `keep`. By `fit`: if the folder's checkpoints belong to
            another model or settings, or none is whole; before the first step, if the folder
            cannot be written or has too little space; if a checkpoint cannot be written.
            Checkpoints that are there stay as they are.

    Example:
        >>> checkpoints = kzoo.training.Checkpoints("runs/nano", every=10, keep=3)
        >>> model.fit(checkpoints.data(train), epochs=2, callbacks=[checkpoints])
    """

    def __init__(
        self,
        directory: Path,
        *,
        every: int | str = "60s",
        keep: int = 3,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._steps, self._seconds = interval(every)
        if not is_count(keep):
            raise InputError(f"keep is a positive integer. Received: {keep!r}")
        self._store = Store(directory, int(keep))
        self._extra = plain(settings or {})
        self._notice = Notice()
        self._stream: Stream | None = None
        self._in_fit = False  # an `evaluate` of the user's calls the hooks of tests too

    def data(self, dataset: Any) -> Any:
        """The data for `fit`, which then goes on at the batch where the run stopped.

        Without it, and with data of other kinds, a run that goes on begins the epoch's data anew.

        Args:
            dataset: `grain.MapDataset` or `grain.IterDataset` of batches, the same in every
                start of the run.

        Returns:
            A `grain.IterDataset` of the same batches.

        Raises:
            InputError: for anything else, since its position is not known.
        """
        if isinstance(dataset, grain.MapDataset):
            dataset = read_ahead(dataset)
        if not isinstance(dataset, grain.IterDataset):
            raise InputError(
                "the position is known in Grain's MapDataset and IterDataset; give other data to "
                "fit as they are, and a run that goes on begins them anew. "
                f"Received: {type(dataset).__name__}"
            )
        self._stream = Stream(dataset)
        return self._stream

    # The run: what `fit` and `kzoo.training.train` are built on --------------------------------

    def begin(
        self,
        model: Model,
        settings: Mapping[str, Any],
        training: Callable[[Any], bool] = lambda frame: True,
    ) -> Any:
        """Restore the newest checkpoint into a compiled model, and note signals from now on.

        Returns:
            `(step, progress)` of the checkpoint; `(0, None)` where there is none.
        """
        self._store.close()
        self._settings = {**settings, **self._extra}
        step, progress = self._store.restore(model, self._settings) or (0, None)
        if progress is not None:
            log.info("going on from step %d, the checkpoint in %s", step, self._store.directory)
        self._store.check_room(model)
        self._saved_step, self._saved_time = step, time.monotonic()
        self._calls = step  # of a train step; several steps can be made in one
        self._processes = _processes(model)
        self._notice = Notice(training)
        if self._processes == 1:
            self._notice.begin()
        return step, progress

    def after_step(self, step: int, model: Model, progress: Any) -> Any:
        """Save if it is time to.

        Args:
            step: optimizer steps made so far.
            model: being trained.
            progress: function without arguments; what `begin` is to return.

        Raises:
            Preempted: if a signal has come, when the checkpoint is written.
            KeyboardInterrupt: if Ctrl-C has come, and was dropped where it was raised.
            InputError: if a checkpoint cannot be written.
        """
        if self._notice.interrupted:
            raise KeyboardInterrupt
        self._calls += 1
        asked = self.asked_to_end
        if self._processes > 1:
            # A signal reaches the processes at different steps. JAX tells all of them, and agrees
            # with them on the next call that none has made yet; there each process saves.
            asked = multihost.reached_preemption(self._calls) and "SIGTERM"
        if asked or self._due(step):
            self._save(step, model, progress())
        else:
            self._store.check()
        if asked:
            self.end()
            message = (
                f"asked to end by {asked}: step {step} is saved in {self._store.directory}; the "
                "same run, started again, goes on from there"
            )
            logging.getLogger("kzoo.preemption").warning("%s", message)
            raise Preempted(message)

    @property
    def asked_to_end(self) -> Any:
        """The signal that has come, or None. Several processes agree on the step, and not here."""
        return self._notice.received

    def end(self) -> None:
        """Wait for what is being written, and leave the signals to what they were."""
        self._notice.end()
        self._store.close()

    def _due(self, step):
        """Whether a checkpoint is to be saved after this step."""
        if self._steps is not None:
            return step // self._steps > self._saved_step // self._steps
        seconds = time.monotonic() - self._saved_time
        due = seconds >= self._seconds and not self._store.busy
        if self._processes == 1:
            return due
        if self._calls % _CALLS_BETWEEN_CLOCKS:
            return False
        return bool(multihost.broadcast_one_to_all(due))  # what the first process found

    def _save(self, step, model, progress):
        if step == self._saved_step:
            return
        if hasattr(model, "jax_state_sync"):
            model.jax_state_sync()  # within `fit` on JAX, variables are empty until then
        self._store.save(step, model, self._settings, progress)
        self._saved_step, self._saved_time = step, time.monotonic()

    # The hooks of `fit` -----------------------------------------------------------------------

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        model = self.model
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        config = getattr(model, "config", None)  # a task's is JSON; a backbone's, and others', not
        settings = {"config": config} if isinstance(config, dict) else {}
        self._step, position = self.begin(model, settings, is_in_fit(model))
        self._epoch, self._batch = 0, 0  # the epoch, and how many of its steps have been made
        self._resumed, self._metrics = 0, None  # how many of them before this `fit`; see below
        self._iterator: Any = None
        self._drawn = 0  # of the data, and how many batches came from it
        self._in_fit = True
        if position is not None:
            self._resume(position)

    def _resume(self, position):
        """Go on from a checkpoint's position: in the epoch, and, where it is known, in the data.

        `position` is what `_position` returned when the checkpoint was saved.
        """
        steps = self.params["steps"]  # of an epoch; None: as many as there are data
        self._epoch, self._batch = position["epoch"], position["batch"]
        data_known = position["data"] is not None and self._stream is not None
        if self._batch and steps is None and data_known:
            ended = self._stream.is_end(position["data"])
        else:
            ended = self._batch == steps
        if ended:
            self._epoch, self._batch = self._epoch + 1, 0
        # Where `fit` was given no `steps_per_epoch`, every epoch reads the data from the start; so
        # only an epoch that was begun goes on within them.
        if data_known and (self._batch or steps is not None):
            self._stream.start = position["data"]
        if data_known and self._batch:
            self._resumed = self._batch
            # The checkpoint's running metrics, which Keras sets to zero when the epoch begins.
            self._metrics = list(map(keras.ops.copy, self.model.metrics_variables))
        elif self._batch:
            log.warning(
                "epoch %d begins anew, with the weights of step %d: the position in the data is "
                "known for Grain's datasets that go through Checkpoints.data",
                *(self._epoch + 1, self._step),
            )
        self.model._initial_epoch = self._epoch  # as Keras's BackupAndRestore does

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self.model._initial_epoch = None  # it was for this `fit` alone
        self._epoch, self._batch = epoch, self._resumed
        if self._metrics is not None:
            for variable, value in zip(self.model.metrics_variables, self._metrics, strict=True):
                variable.assign(value)
            self._metrics = None

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        steps = self.params["steps"]
        # How many steps this call has made. With several steps in a call, Keras counts the last
        # call of an epoch as a full one, so the count is bounded by the epoch's steps and, below,
        # by the batches that came from the data.
        made = self._resumed + batch + 1
        made = (made if steps is None else min(made, steps)) - self._batch
        ended = self._batch + made == steps
        if self._stream is not None:
            if self._stream.iterator is not self._iterator:  # a new epoch has begun to read
                self._iterator, self._stream.start, self._drawn = self._stream.iterator, None, 0
            made = min(made, self._iterator.count - self._drawn)
            self._drawn += made
            self._iterator.forget(self._drawn)
            ended = ended or self._iterator.ends_at(self._drawn)
        self._batch += made
        self._step += made
        # Without this, Keras would learn the number of steps in an epoch from the resumed one, of
        # which only the rest is made here.
        if self._resumed and ended and not self.model.stop_training:
            self.model.stop_training = _END_OF_RESUMED_EPOCH
        self.after_step(self._step, self.model, self._position)

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._in_fit:  # validation, which comes when the epoch's steps are made
            self._epoch, self._batch = self._epoch + 1, 0

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._in_fit and self._notice.received:
            self.after_step(self._step, self.model, self._position)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch, self._batch, self._resumed = epoch + 1, 0, 0
        if self.model.stop_training == _END_OF_RESUMED_EPOCH:
            self.model.stop_training = False

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._in_fit = False
        self._save(self._step, self.model, self._position())
        self.end()

    def _position(self):
        """Where the run is, to be kept in a checkpoint: a dict that JSON can hold."""
        data = None if self._stream is None else self._stream.position(self._drawn)
        return {"epoch": self._epoch, "batch": self._batch, "data": data}


def _processes(model):
    """How many processes train the model together."""
    if keras.backend.backend() != "jax":
        return 1
    devices = model.trainable_variables[0].value.sharding.device_set
    return len({device.process_index for device in devices})
