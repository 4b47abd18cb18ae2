"""The weights of a model at initialisation and along its training, from what a run left."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kzoo import migrations, presets
from kzoo.errors import InputError
from kzoo.files import numbered, read_json
from kzoo.typing import Model

log = logging.getLogger("kzoo")

INITIAL, CHECKPOINT, BEST, LAST = "initial", "checkpoint", "best", "last"
# What `kzoo train` writes; its room stands above this one.
RUN_FILE, CHECKPOINTS, BEST_FILE = "training.json", "checkpoints", "best.json"


class Snapshot(NamedTuple):
    """Weights of a run.

    Attributes:
        name: `"initial"` (values), `"checkpoint"`, `"best"` (by held-out bits along the run) or
            `"last"`.
        step: optimizer steps made; None where the folder does not say.
        folder: of a checkpoint or of a saved model; None for initial values.
    """

    name: str
    step: int | None
    folder: Path | None = None


def find(source: Any, **overrides: Any) -> tuple[Model, list[Snapshot]]:
    """A model, and the snapshots of it that a folder holds, by step.

    Args:
        source: the folder of `kzoo train` (finished, or stopped), of `kzoo.presets.save`, or of
            `kzoo.training.Checkpoints`; or what else `kzoo.presets.load` takes, such as the name of
            a preset, at its initial values.
        **overrides: fields that replace a preset's.

    Returns:
        A task, and a list of `Snapshot`, to be put into it by `place`.

    Raises:
        InputError: as `kzoo.presets.load`, or for overrides of a folder.
    """
    folder = Path(source if isinstance(source, str | Path) else "")  # another library's model
    steps = _steps(folder) if folder.is_dir() else []
    saved = (folder / presets.TASK_FILE).is_file()
    if overrides and (steps or saved):
        raise InputError(
            "a folder's model is analysed as it was trained; overrides are of a preset. "
            f"Received: {', '.join(overrides)} for {folder}"
        )
    if not saved and not steps:
        name = INITIAL if str(source) in presets.names() or ".json:" in str(source) else LAST
        return presets.load(source, **overrides), [Snapshot(name, 0 if name == INITIAL else None)]
    run = read_json(folder / RUN_FILE) if (folder / RUN_FILE).is_file() else {}
    model = presets.load(folder) if saved else presets.build(_config(run, steps[0]))
    found = [Snapshot(INITIAL, 0)] if run else []
    found += steps
    best = folder / BEST / BEST_FILE
    if best.is_file():
        found.append(Snapshot(BEST, read_json(best)["step"], best.parent))
    if saved:
        found.append(Snapshot(LAST, (run.get("result") or {}).get("steps"), folder))
    return model, sorted(found, key=lambda each: (each.step is None, each.step, each.name == LAST))


def place(model: Model, snapshots: list[Snapshot]) -> Iterator[Snapshot]:
    """Put one snapshot after the other into a model, and yield it.

    One that is damaged, or is removed meanwhile by a run that goes on, is left out with a warning.
    """
    from kzoo.training.checkpoint import read_weights

    for snapshot in snapshots:
        if snapshot.name == CHECKPOINT:
            try:
                read_weights(snapshot.folder, model)
            except (InputError, FileNotFoundError) as error:
                log.warning("step %d is left out: %s", snapshot.step, error)
                continue
        elif snapshot.folder is not None:
            _assign(model, presets.load(snapshot.folder))
        elif snapshot.name == INITIAL:
            _assign(model, presets.build(model.config, tokenizer=_tokenizer(model)))
        yield snapshot


def checkpoints(folder: Path) -> list[Snapshot]:
    """The checkpoints in a folder of `kzoo.training.Checkpoints`, by step."""
    return [Snapshot(CHECKPOINT, step, folder / str(step)) for step in numbered(folder)[::-1]]


def _steps(folder):
    return checkpoints(folder / CHECKPOINTS) or checkpoints(folder)


def _config(run, checkpoint):
    """The config of a model of which only checkpoints are there."""
    from kzoo.training.checkpoint import settings_of

    try:
        config = run.get("settings", {}).get("config") or settings_of(checkpoint.folder)["config"]
    except (OSError, KeyError, json.JSONDecodeError):
        raise InputError(
            "checkpoints of a kzoo model hold its config; these do not. "
            f"Received: {checkpoint.folder.parent}"
        ) from None
    return migrations.config(config)


def _tokenizer(model):
    return model.preprocessor and model.preprocessor.tokenizer


def _assign(model, other):
    from kzoo.models.weights import by_path

    values = by_path(other)
    for path, variable in by_path(model).items():
        variable.assign(values[path])
