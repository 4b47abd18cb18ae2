"""Comparisons in a notebook: `kzoo.compare(["gpt_tiny", "unilm_tiny"])`."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kzoo.errors import InputError
from kzoo.studies import prediction
from kzoo.studies.page import plot, report, table
from kzoo.studies.runner import run
from kzoo.studies.study import Study


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study measured.

    Attributes:
        records: one dict per run, as in `results.jsonl`.
        directory: `Path` of the study's files.
    """

    records: list
    directory: Path

    def table(self):
        """One row per arm and group, a `pandas.DataFrame`; see `kzoo.studies.page.table`."""
        return table(self.records)

    def plot(self):
        """Held-out bits along training, a `matplotlib.figure.Figure`, shown inline."""
        return plot(self.records)

    def report(self):
        """Write the self-contained page; its `Path`."""
        return report(self.directory)


def compare(arms, data="pydoc", *, seeds=2, steps=300, directory=None, progress=True, **settings):
    """Train several models under equal conditions, in this process.

    Args:
        arms: list of preset names, or `{label: (name, overrides)}`.
        data: a source, or a list of sources, as `kzoo.data.load` takes them by name.
        seeds: a number of seeds, or a list of them.
        steps: optimizer steps of each run.
        directory: where the files go; a new temporary folder by default. A directory that
            holds the same study is gone on with.
        progress: whether to show progress bars.
        **settings: further fields of `kzoo.studies.Study`: `batch_size`, `learning_rate`,
            `valid`, `evaluations`, `name`, `description`.

    Returns:
        `Results`.

    Raises:
        InputError: for unknown presets, overrides or settings, unusable data, or a directory
            that holds something else.

    Example:
        >>> results = compare({"softmax": ("gpt_nano", {}),
        ...                    "linear": ("gpt_nano", {"mechanism": "linear"})}, steps=50)
        >>> results.table()[["arm", "mean"]]
    """
    study = _study(arms, data, seeds, steps, settings)
    directory = Path(directory or tempfile.mkdtemp(prefix="kzoo-"))
    return Results(run(study, directory, progress=progress), directory)


def predict(arms, data="pydoc", *, seeds=2, steps=300, directory=None, **settings):
    """How long `compare` with the same arguments would take, measured by some steps of each arm.

    It compiles every arm, which takes as long as it does in `compare`.

    Returns:
        A `kzoo.studies.prediction.Prediction`: print it, or take its `minutes`.

    Raises:
        InputError: as `compare`.

    Example:
        >>> print(predict(["gpt_nano", "unilm_nano"], steps=1000))
        about 5 minutes for 4 runs on 1 device, compilation included
    """
    return prediction.predict(_study(arms, data, seeds, steps, settings), directory)


def _study(arms, data, seeds, steps, settings):
    if not isinstance(arms, Mapping):
        if isinstance(arms, str) or not all(isinstance(name, str) for name in arms):
            raise InputError(
                "arms are a list of preset names or {label: (name, overrides)}. "
                f"Received: {arms!r}"
            )
        arms = {name: (name, {}) for name in arms}
    fields = {}
    for label, arm in arms.items():
        arm = (arm, {}) if isinstance(arm, str) else arm
        if not isinstance(arm, tuple | list) or len(arm) != 2:
            raise InputError(f"the arm {label!r} is a pair (name, overrides). Received: {arm!r}")
        fields[label] = {"preset": arm[0], "overrides": arm[1]}
    return Study.from_dict(
        {"arms": fields, "data": data, "seeds": seeds, "steps": steps, **settings}
    )
