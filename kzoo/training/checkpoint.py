"""A run's last checkpoints, written by Orbax beside the training and checked when they are read.

A checkpoint is a folder named after its step. Orbax writes it under another name and renames it
when it is whole, so that a process that is killed leaves whole checkpoints only. Each folder
lists the SHA-256 of its files, since Orbax itself reads damaged values without a word.
"""

import contextlib
import copy
import hashlib
import json
import logging
import math
import re
import shutil
import signal
import threading
from pathlib import Path

import keras
import numpy as np
import orbax.checkpoint as ocp

from kzoo import migrations
from kzoo.config import CHECKPOINT_BESIDES
from kzoo.errors import InputError
from kzoo.files import check_folder, numbered, reason, taken
from kzoo.training import optimizer
from kzoo.values import differences

log = logging.getLogger("kzoo")

_SUMS = "sha256.json"
_STATE, _FACTS = "state", "facts"
# Orbax numbers what is written by one counter of the process, which its parts read on their own:
# of two saves begun at once in two threads, one would wait for signals that the other was sent.
_BEGINNING = threading.Lock()


class _Summed:
    """A handler of Orbax that lists the sums of its files before they become a checkpoint."""

    def finalize(self, directory):
        super().finalize(directory)
        if ocp.multihost.is_primary_host(0):
            directory = Path(directory)
            files = sorted(file for file in directory.rglob("*") if file.is_file())
            sums = {str(file.relative_to(directory)): _sum(file) for file in files}
            (directory / _SUMS).write_text(json.dumps(sums))


class _Arrays(_Summed, ocp.PyTreeCheckpointHandler):
    pass


class _Json(_Summed, ocp.JsonCheckpointHandler):
    pass


# Orbax finds handlers by the class of what they are asked to do.
@ocp.args.register_with_handler(_Arrays, for_save=True, for_restore=True)
class _SaveArrays(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_Json, for_save=True, for_restore=True)
class _SaveJson(ocp.args.JsonSave):
    pass


def state_variables(model):
    """All variables that training changes, by a name that is the same in every process.

    Keras numbers optimizers, metrics and dropout's generators anew in each, so all go by their
    order.
    """
    groups = {
        "weight": model.trainable_variables,
        "state": model.non_trainable_variables,
        "optimizer": optimizer.state_variables(model.optimizer),
        "metric": model.metrics_variables,
    }
    return {
        f"{kind} {i}": variable
        for kind, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def settings_of(path):
    """The settings that a checkpoint, a folder, was saved with: a dict.

    Raises:
        InputError: if it is damaged.
    """
    damage = _damage(Path(path))
    if damage is not None:
        raise InputError(f"the checkpoint is damaged ({damage}). Received: {path}")
    return json.loads((Path(path) / _FACTS / "metadata").read_text())["settings"]


def read_weights(path, model):
    """Put the weights of a checkpoint, a folder, into a model, and nothing of what trained them.

    Raises:
        InputError: if it is damaged, or of a model with other variables. Nothing has changed then.
    """
    path = Path(path).absolute()
    settings_of(path)
    saved = json.loads((path / _FACTS / "metadata").read_text())["variables"]
    of_weights = ("weight ", "state ")
    variables = {n: v for n, v in state_variables(model).items() if n.startswith(of_weights)}
    kinds = {name: _kind(variable) for name, variable in variables.items()}
    if kinds != {name: kind for name, kind in saved.items() if name.startswith(of_weights)}:
        other = list(differences(saved, {**saved, **kinds})) or ["it has more of them"]
        raise InputError(
            f"the checkpoint is of a model with other variables: {other[0]}. Received: {path}"
        )
    values = {name: _value(variable) for name, variable in variables.items()}
    how = ocp.checkpoint_utils.construct_restore_args(values)
    args = ocp.args.PyTreeRestore(values, restore_args=how, partial_restore=True)
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        values = reader.restore(path / _STATE, args=args)
    for name, variable in variables.items():
        variable.assign(values[name])


class Store:
    """The last checkpoints in a folder.

    Args:
        directory: of the checkpoints; made when the first is saved.
        keep: how many are kept.
    """

    def __init__(self, directory, keep):
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._manager = None
        self._writing = None  # step and bytes of the last save

    def restore(self, model, settings):
        """Put the newest whole checkpoint into `model`, to the bit.

        It may have been saved from another number of devices. Damaged checkpoints that are newer
        are named on the logger "kzoo" and renamed to `STEP.damaged`.

        Args:
            model: compiled, with its optimizer built.
            settings: a dict that JSON can hold; the checkpoint's are the same.

        Returns:
            `(step, progress)`, or None where there is no checkpoint.

        Raises:
            InputError: if all checkpoints are damaged, or they belong to other settings or to a
                model with other variables. Nothing has changed then.
        """
        damaged = {}
        steps = numbered(self.directory)
        for step in steps:
            damage = _damage(self.directory / str(step))
            if damage is None:
                break
            damaged[step] = damage
        else:
            if not steps:
                return None
            raise InputError(
                f"none of the checkpoints is whole ({damaged[steps[0]]}). "
                f"Received: {self.directory}"
            )
        path = self.directory / str(step)
        facts = json.loads((path / _FACTS / "metadata").read_text())
        variables = state_variables(model)
        self._check(facts, settings, variables)
        for broken, damage in damaged.items():
            log.warning(
                "the checkpoint of step %d is damaged (%s); going on from step %d. It is now %s",
                *(broken, damage, step, self._damaged(broken)),
            )
        # All have looked at them before one renames them, and it has before others go on.
        ocp.multihost.sync_global_processes("kzoo:checkpoints_checked")
        if ocp.multihost.is_primary_host(0):
            for broken in damaged:
                shutil.rmtree(self._damaged(broken), ignore_errors=True)
                (self.directory / str(broken)).rename(self._damaged(broken))
        ocp.multihost.sync_global_processes("kzoo:checkpoints_renamed")

        values = {name: _value(variable) for name, variable in variables.items()}
        # Each array is read to where the variable's is now: its dtype, its sharding.
        how = ocp.checkpoint_utils.construct_restore_args(values)
        with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
            values = reader.restore(
                path / _STATE, args=ocp.args.PyTreeRestore(values, restore_args=how)
            )
        for name, variable in variables.items():
            variable.assign(values[name])
        return step, facts["progress"]

    def save(self, step, model, settings, progress):
        """Begin to write a checkpoint; the arrays are the model's own again when this returns.

        Args:
            step: optimizer steps that the model has made.
            model: compiled, its optimizer built.
            settings: as in `restore`.
            progress: what else to keep; anything that JSON can hold.

        Raises:
            InputError: if this checkpoint or the one before cannot be written.
        """
        variables = state_variables(model)
        facts = {
            "settings": settings,
            "variables": {name: _kind(variable) for name, variable in variables.items()},
            "progress": copy.deepcopy(progress),  # it is written later
        }
        values = {name: _value(variable) for name, variable in variables.items()}
        if keras.backend.backend() != "jax":
            values = {name: np.array(value) for name, value in values.items()}
        with self._writes():
            if self._manager is None:
                self._manager = self._open()
            self._manager.wait_until_finished()
            self._writing = step, _size(variables)
            if self._free() < self._writing[1]:
                raise OSError("too little space")
            args = ocp.args.Composite(**{_STATE: _SaveArrays(values), _FACTS: _SaveJson(facts)})
            with _BEGINNING, _uninterrupted():
                self._manager.save(step, force=True, args=args)

    def check_room(self, model):
        """`InputError` unless the folder can be written and has room for what is kept in it."""
        needed = (self.keep + 1) * _size(state_variables(model)) - taken(self.directory)
        check_folder(self.directory, needed, "A smaller `keep` needs less.")

    @property
    def busy(self):
        """Whether a checkpoint is being written."""
        return self._manager is not None and self._manager.is_saving_in_progress()

    def check(self):
        """`InputError` if the checkpoint that is being written has failed."""
        if self._manager is not None:
            with self._writes():
                self._manager.check_for_errors()

    def close(self):
        """Wait for what is being written.

        Raises:
            InputError: if it cannot be written.
        """
        if self._manager is not None:
            with self._writes():
                self._manager.wait_until_finished()
                self._manager.close()
            self._manager = None

    def _open(self):
        return ocp.CheckpointManager(
            self.directory,
            item_handlers={_STATE: _Arrays(), _FACTS: _Json()},
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self.keep, cleanup_tmp_directories=True
            ),
        )

    @contextlib.contextmanager
    def _writes(self):
        """Say of an error in writing what a user must know, and clear away what was begun."""
        try:
            yield
        except Exception as error:
            manager, self._manager = self._manager, None
            with contextlib.suppress(Exception):
                manager.close()
            for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            if self._writing is None:
                raise
            step, needed = self._writing
            saved = numbered(self.directory)
            rest = f"Step {saved[0]} is saved" if saved else "None is saved"
            raise InputError(
                f"the checkpoint of step {step} could not be written ({reason(error)}): it takes "
                f"about {needed:,} bytes, and {self._free():,} are free. {rest}, and the run "
                f"{'goes on from there' if saved else 'begins anew'}. Received: {self.directory}"
            ) from error

    def _free(self):
        return next(
            shutil.disk_usage(folder).free
            for folder in (self.directory, *self.directory.parents)
            if folder.exists()
        )

    def _damaged(self, step):
        return self.directory / f"{step}.damaged"

    def _check(self, facts, settings, variables):
        # Through JSON, where a tuple is a list.
        before, now = migrations.record(facts["settings"]), json.loads(json.dumps(settings))
        found = list(differences(before, now))
        if found:
            raise InputError(
                f"the checkpoints are another run's: {'; '.join(found)}. Received: {self.directory}"
            )
        saved = facts["variables"]
        for name, variable in variables.items():
            if saved.get(name) != _kind(variable):
                raise InputError(
                    f"the checkpoints are another model's: {variable.path} is {_kind(variable)} "
                    f"here and {saved.get(name, 'missing')} there. Received: {self.directory}"
                )
        if len(saved) > len(variables):
            raise InputError(
                f"the checkpoints are another model's, which has {len(saved)} variables and this "
                f"one {len(variables)}. Received: {self.directory}"
            )


@contextlib.contextmanager
def _uninterrupted():
    """Ctrl-C inside it comes at its end: Orbax would lose sight of what it has begun to write."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = []
    signal.signal(signal.SIGINT, lambda *received: came.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def _size(variables):
    """Bytes of a checkpoint, about."""
    total = CHECKPOINT_BESIDES
    for variable in variables.values():
        bits = re.search(r"\d+", keras.backend.standardize_dtype(variable.dtype))
        total += math.prod(variable.shape) * (int(bits[0]) if bits else 8) // 8
    return total


def _value(variable):
    """What Orbax writes: on JAX the array where it is, else one of NumPy."""
    if keras.backend.backend() == "jax":
        return variable.value
    return keras.ops.convert_to_numpy(variable)


def _kind(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return f"{dtype}[{', '.join(map(str, variable.shape))}]"


def _sum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path):
    """What is wrong with a checkpoint's files; None if nothing is."""
    for item in (_STATE, _FACTS):
        try:
            sums = json.loads((path / item / _SUMS).read_text())
            for name, sum_ in sums.items():
                if _sum(path / item / name) != sum_:
                    return f"{item}/{name} is not what was written"
        except FileNotFoundError as error:
            return f"{Path(error.filename).relative_to(path)} is missing"
        except ValueError:
            return f"{item}/{_SUMS} is not what was written"
    return None
