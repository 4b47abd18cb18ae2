"""The analysis of a study: its arms at their initial values, along runs, and what records hold."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kzoo import presets
from kzoo.analysis import snapshots
from kzoo.analysis.analyse import DEFAULT, Analysis, check, cut, facts, measure
from kzoo.errors import InputError
from kzoo.studies import tokenizers
from kzoo.studies.records import STUDY_FILE, read
from kzoo.studies.runner import checkpoint_folder, load_splits, run_name
from kzoo.studies.study import Study

SPECTRUM = "spectrum"


def analyse_study(
    directory: str | Path,
    *,
    measures: Iterable[str] = DEFAULT,
    examples: int = 4,
    length: int | None = None,
) -> Analysis:
    """`kzoo.analysis.analyse` for every arm of a study, on its own data.

    Each arm is measured at the initial values of the study's first seed, and at the checkpoints of
    its runs that are under way. A finished run has left no weights; its record has the spectrum at
    its end, which is given as it stands there, of each seed.

    Args:
        directory: of the study.
        measures, examples, length: as in `kzoo.analysis.analyse`.

    Returns:
        An `Analysis`, whose records also have `data`, `arm` and `seed`.

    Raises:
        InputError: as `kzoo.analysis.analyse`, or if the directory holds no study.

    Example:
        >>> found = analyse_study("runs/quick", measures=["spectrum"])
    """
    directory, measures = Path(directory), check(measures, examples, length)
    read(directory)  # refuses what is no study
    study = tokenizers.settled(Study.from_json(directory / STUDY_FILE), directory)
    _, runs = read(directory)
    records: dict[str, list] = {name: [] for name in measures}
    about: dict[str, Any] = {"source": str(directory), "study": study.to_dict()}
    for source, label, arm in study.runs():
        config = arm.config(study.seeds[0])
        model = presets.build(config)
        splits = load_splits(study, source, arm)
        x, y, weight = splits.valid[0]
        few = {name: array[:examples] for name, array in x.items()}, y[:examples], weight[:examples]
        batch = cut(few, length)
        for seed in study.seeds:
            folder = checkpoint_folder(directory, run_name(source, label, seed))
            found = snapshots.checkpoints(folder)
            if seed == study.seeds[0]:
                found.insert(0, snapshots.Snapshot(snapshots.INITIAL, 0))
            for snapshot in snapshots.place(model, found):
                own = {"data": source, "arm": label, "seed": seed}
                own |= {"snapshot": snapshot.name, "step": snapshot.step}
                measure(model, batch, records, own)
        if SPECTRUM in records:
            records[SPECTRUM] += _recorded(runs, source, label)
        about |= facts(model, batch)
    if not any(records.values()):
        raise InputError(f"the study has no arms to analyse. Received: {directory}")
    return Analysis(json.loads(json.dumps(about)), records)


def _recorded(runs, source, label):
    """The spectra at the end of the finished runs of an arm."""
    for run in runs:
        if (run["data"], run["arm"]) == (source, label):
            own = {"data": source, "arm": label, "seed": run["seed"]}
            own |= {"snapshot": snapshots.LAST, "step": run.get("steps")}
            yield from ({**own, **head} for head in run.get("spectrum", ()))
