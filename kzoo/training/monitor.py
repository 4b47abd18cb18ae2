"""What a training shows of itself: log.jsonl, the best weights, TensorBoard, and overfitting."""

import json
import logging
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
from keras import ops

from kzoo import presets
from kzoo.errors import missing_package
from kzoo.files import read_json, write
from kzoo.typing import Model

log = logging.getLogger("kzoo")

LOG_FILE, BEST, TENSORBOARD = "log.jsonl", "best", "tensorboard"
_BEST_FILE = "best.json"
_RISEN = 1.01  # times the best held-out bits, at two measurements: more than the noise of one


class Monitor(keras.callbacks.Callback):
    """Writes a log of a run, keeps its best weights, and says when it begins to overfit.

    In its directory:

    - `log.jsonl`, one JSON object a line: `step`, `loss` (nats per scored token, the mean over
      the steps since the line before), `held_out_bits` (where they were measured), the
      `learning_rate` of that step, `tokens_per_second` and `seconds` (of training, measurements
      of held-out bits left out). A run that goes on from a checkpoint leaves out the lines after
      it, so that no step stands twice.
    - `best`, a folder for `kzoo.presets.load`: the model with the fewest held-out bits, replaced
      by renaming, with the step and the bits in its `best.json`.
    - `tensorboard`, the same numbers for TensorBoard, if asked for.

    Once in a run a warning on the logger "kzoo" says that held-out bits have risen, at two
    measurements in a row and by more than 1% of the best, while the training loss fell.

    In `fit` it writes a line at the end of each epoch, with the validation's `bits_per_byte`
    (`steps_per_epoch` makes epochs as short as wanted); `kzoo.training.train` writes more. Among
    callbacks it stands before `Checkpoints`. A run that begins at step 0 begins the log anew, and
    replaces `best` at its first measurement.

    Args:
        directory: of the run; made if missing.
        tokens: of one batch, for `tokens_per_second`; None leaves it out.
        tensorboard: whether to write for TensorBoard, which needs the package tensorboardX.

    Attributes:
        best: `{"step": ..., "held_out_bits": ...}`, or None before the first measurement.
        lines: the lines of the log, a list of dicts.

    Raises:
        InputError: if tensorboardX is asked for and not installed.

    Example:
        >>> monitor = kzoo.training.Monitor("runs/nano")
        >>> model.fit(train, validation_data=valid, epochs=2, callbacks=[monitor])
        >>> best = kzoo.presets.load("runs/nano/best")
    """

    def __init__(
        self, directory: Path, *, tokens: int | None = None, tensorboard: bool = False
    ) -> None:
        super().__init__()
        self.directory = Path(directory)
        self.tokens = tokens
        self.tensorboard = tensorboard
        if tensorboard:
            _summary_writer()
        self.best, self.lines = None, []
        self._told = False  # that it overfits
        self._writer = None

    # What `kzoo.training.train` calls, and the hooks of `fit` below ----------------------------

    def begin(self, step: int) -> None:
        """Open the log of a run that has made `step` steps; lines after that are left out."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.lines = _read(self.directory / LOG_FILE)
        self._cut(step)
        _restore(self.directory / BEST)
        best = self.directory / BEST / _BEST_FILE
        self.best = read_json(best) if step and best.is_file() else None
        self._told = overfits(self.lines) is not None
        if self.tensorboard:
            folder = str(self.directory / TENSORBOARD)
            self._writer = _summary_writer()(folder, purge_step=step + 1)

    def write(
        self,
        model: Model,
        step: int,
        loss: float,
        seconds: float,
        learning_rate: float,
        held_out_bits: float | None = None,
    ) -> None:
        """Append a line; with held-out bits also keep the weights, if these are the best.

        Args:
            model: as it is after `step`.
            step: optimizer steps made.
            loss: nats per scored token since the last line.
            seconds: of training so far.
            learning_rate: of the last step.
            held_out_bits: where they have been measured after `step`.
        """
        if self.line_before(step) < self.last("step"):
            self._cut(step - 1)
        line = {"step": step, "loss": loss if math.isfinite(loss) else None}  # JSON has no NaN
        if held_out_bits is not None:
            line["held_out_bits"] = held_out_bits
        line["learning_rate"] = learning_rate
        if self.tokens is not None:
            tokens = self.tokens * (step - self.last("step"))
            line["tokens_per_second"] = tokens / max(seconds - self.last("seconds"), 1e-9)
        line["seconds"] = seconds
        self.lines.append(line)
        with open(self.directory / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name in line.keys() - {"step", "seconds"}:
                self._writer.add_scalar(name, line[name], step)
            self._writer.flush()
        if held_out_bits is not None:
            self._measured(model, step, loss, held_out_bits)

    def last(self, name: str) -> Any:
        """A number of the last line; 0 where there is none yet."""
        return self.lines[-1][name] if self.lines else 0

    def line_before(self, step: int) -> Any:
        """The step of the last line that stays when one of `step` is written.

        A line of that very step is replaced: with what has been measured since it was written.
        """
        return next((line["step"] for line in self.lines[::-1] if line["step"] < step), 0)

    def end(self) -> None:
        """Close what is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _measured(self, model, step, loss, bits):
        if self.best is None or bits < self.best["held_out_bits"]:
            best = {"step": step, "held_out_bits": bits}
            _replace(model, self.directory / BEST, best)
            self.best = best
        log.info(
            "step %s: loss %.3f nats, held out %.3f bits%s",
            *(f"{step:,}", loss, bits),
            "" if self.best["step"] == step else f" (the best: {_told(self.best)})",
        )
        best = overfits(self.lines)
        if best is not None and not self._told:
            self._told = True
            log.warning(
                "held-out bits have risen since step %s, from %.3f to %.3f, while the training "
                "loss fell: the model is learning its training text by heart. The weights of step "
                "%s are kept in %s",
                *(f"{best['step']:,}", best["held_out_bits"], bits),
                *(f"{self.best['step']:,}", self.directory / BEST),
            )

    def _cut(self, step):
        """Leave out the lines after `step`."""
        kept = [line for line in self.lines if line["step"] <= step]
        path = self.directory / LOG_FILE
        if len(kept) < len(self.lines) or path.is_file():
            write(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.lines = kept

    # The hooks of `fit` -----------------------------------------------------------------------

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._begun = False  # a checkpoint may come back only after this

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if not self._begun:
            self.begin(int(self.model.optimizer.iterations))
            self._seconds, self._begun = self.last("seconds"), True
        self._since = time.perf_counter()

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._lap()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._lap()
        optimizer, logs = self.model.optimizer, logs or {}
        step = int(optimizer.iterations)
        rate = float(ops.convert_to_numpy(optimizer.learning_rate))
        bits = logs.get("val_bits_per_byte")
        bits = None if bits is None else float(bits)
        self.write(self.model, step, float(logs["loss"]), self._seconds, rate, bits)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.end()

    def _lap(self):
        """Count the seconds of the epoch, up to its validation."""
        if getattr(self, "_since", None) is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None


def overfits(lines):
    """The best measurement, if held-out bits have risen since while the training loss fell.

    They have risen if the last two measurements are both more than 1% above the best one. The
    training loss of a measurement is the mean of the lines since the one before.

    Args:
        lines: of a log, as `Monitor` writes them.

    Returns:
        The line of the best measurement, or None.

    Example:
        >>> lines = [{"step": 100 * i, "loss": 3 - 0.1 * i, "held_out_bits": bits}
        ...          for i, bits in enumerate([4.0, 3.5, 3.6, 3.7])]
        >>> overfits(lines)["step"]
        100
    """
    measured, losses = [], []  # of measurements: the line, and the training loss up to it
    for line in lines:
        losses.append(math.inf if line["loss"] is None else line["loss"])
        if "held_out_bits" in line:
            measured.append((line, sum(losses) / len(losses)))
            losses = []
    if len(measured) < 3:
        return None
    best, loss = min(measured, key=lambda pair: pair[0]["held_out_bits"])
    *_, before, (last, last_loss) = measured
    least = _RISEN * best["held_out_bits"]
    risen = min(before[0]["held_out_bits"], last["held_out_bits"]) > least
    since = before[0]["step"] > best["step"]
    return best if since and risen and last_loss < loss else None


def _told(best):
    return f"{best['held_out_bits']:.3f} at step {best['step']:,}"


def _replace(model, folder, facts):
    """Save a model in the place of a folder, by renaming; `_restore` mends what a kill leaves."""
    new, old = (folder.with_name(f"{folder.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    presets.save(model, new)
    write(new / _BEST_FILE, json.dumps(facts) + "\n")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _restore(folder):
    """Undo a replacement that was interrupted."""
    new, old = (folder.with_name(f"{folder.name}.{kind}") for kind in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for rest in (new, old):
        shutil.rmtree(rest, ignore_errors=True)


def _read(path):
    """The lines of a log; one that a kill cut short while it was written is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def _summary_writer():
    """The class of tensorboardX that writes for TensorBoard; Keras's own needs TensorFlow."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise missing_package(error.name, "writing for TensorBoard") from None
    return SummaryWriter
