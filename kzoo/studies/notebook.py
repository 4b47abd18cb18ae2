"""Comparisons in a notebook: `kzoo.compare(["gpt_tiny", "unilm_tiny"])`."""

import dataclasses
import hashlib
import html
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kzoo.data import sources
from kzoo.errors import InputError
from kzoo.files import write
from kzoo.studies import prediction
from kzoo.studies.page import plot, report, table
from kzoo.studies.page.tables import costs, runs
from kzoo.studies.records import read
from kzoo.studies.runner import run
from kzoo.studies.study import ARM_FIELDS, Study


@dataclasses.dataclass(frozen=True)
class Results:
    """What a study measured.

    Attributes:
        records: one dict per run, as in `results.jsonl`.
        directory: `Path` of the study's files.
    """

    records: list
    directory: Path

    def __repr__(self):
        arms = {record["arm"] for record in self.records}
        said = [f"{len(arms)} arm{'s' * (len(arms) != 1)}", self._runs()]
        return f"Results({', '.join(said)}, directory={str(self.directory)!r})"

    def _runs(self):
        """How many runs there are, and how many of them failed."""
        runs = len(self.records)
        failed = sum(record["status"] != "finished" for record in self.records)
        return f"{runs} run{'s' * (runs != 1)}" + (f" ({failed} not finite)" if failed else "")

    def _repr_html_(self):
        """The verdicts and the table, as a notebook shows them."""
        verdicts = "".join(
            f"<li><b>{html.escape(verdict.hypothesis.name)}</b>: {html.escape(str(verdict))}</li>"
            for verdict in self.verdicts()
        )
        shown = self.table()[["group", "arm", "mean", "min", "max", "finished", "seconds"]]
        about = f"{self._runs()} in {self.directory}; .plot() draws them, .report() writes a page."
        rows = shown.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="–")
        return f"<ul>{verdicts}</ul>{rows}<p>{html.escape(about)}</p>"

    def table(self) -> Any:
        """One row per arm and group, a `pandas.DataFrame`.

        Its columns are those of `kzoo.studies.page.table`, and what each arm takes: those of
        `kzoo.studies.page.tables.costs`.
        """
        rows = table(self.records)
        more = costs(self.records)
        new = [name for name in more if name not in rows or name in ("group", "arm")]
        return rows.merge(more[new], on=["group", "arm"], how="left")

    def plot(self) -> Any:
        """Held-out bits along training, shown inline; see `kzoo.studies.page.plot`.

        Example:
            >>> results.plot().save("curves.svg").name
            'curves.svg'
        """
        return plot(self.records)

    def report(self) -> Path:
        """Write the self-contained page; its `Path`."""
        return report(self.directory)

    def to_csv(self, path: Path | None = None) -> str | None:
        """One line per run, as CSV: what its record says in single values, metrics included.

        The page has more tables beside it; `table().to_csv()` has a line per arm.

        Args:
            path: of the file to write; without one, the CSV is returned.

        Returns:
            The CSV, a string; None if it was written.

        Raises:
            OSError: if the file cannot be written.

        Example:
            >>> results.to_csv().splitlines()[0][:19]
            'run,data,group,meas'
        """
        text = runs(self.records).to_csv(index=False)
        if path is None:
            return text
        write(path, text)
        return None

    def verdicts(self) -> list[Any]:
        """What the study says of its hypotheses: a list of `kzoo.studies.verdicts.Verdict`.

        Print one for its sentence. The list is empty for a study without hypotheses.

        Example:
            >>> for verdict in results.verdicts():
            ...     print(verdict)
        """
        from kzoo.studies.evidence import draw  # which loads the statistics

        return draw(read(self.directory)[0], self.records)


def compare(
    arms: Any,
    data: Any = "pydoc",
    *,
    seeds: int | Sequence[int] = 2,
    steps: int = 300,
    directory: Path | None = None,
    hypotheses: Any = None,
    tuning: Any = None,
    looks: Any = None,
    budget: str | None = None,
    tokenizer: Any = None,
    minutes: float | None = None,
    progress: bool = True,
    **settings: Any,
) -> Results:
    """Train several models under equal conditions, in this process.

    Args:
        arms: list of preset names, or `{label: (name, overrides)}`; instead of the pair a dict
            `{"preset": name, "overrides": {...}, "training": {...}}`, whose `training` replaces
            training fields of the study, such as `learning_rate`, for that arm; it may have a
            `tokenizer` of its own too.
        data: a source as `kzoo.data.load` takes it, by name or in memory (texts, pairs, or
            `{"prompts": [...], "responses": [...]}`), or a list of such sources.
        seeds: a number of seeds, or a list of them.
        steps: optimizer steps of each run.
        directory: where the files go; a new temporary folder by default. A directory that
            holds the same study is gone on with; seeds, hypotheses and looks may be added.
        hypotheses: what the study asks, and ends in verdicts on: a list of dicts or of
            `kzoo.studies.hypotheses.Hypothesis`.
        tuning: how training fields are chosen for each arm, on other seeds: `{"seeds": [...],
            "grid": {"learning_rate": [...]}}`.
        looks: the numbers of seeds at which verdicts are drawn, where it may stop.
        budget: what all arms have the same amount of: `"steps"`, `"scored_tokens"` or `"flops"`.
        tokenizer: of all arms: `"bytes"` (the default), `{"bpe": 4096}` or `{"unigram": 4096}`,
            trained on the training part of the data, or the path of a `tokenizer.json`.
        minutes: after which it stops, between two runs where it can.
        progress: whether to show progress bars.
        **settings: further fields of `kzoo.studies.Study`, such as `batch_size`,
            `learning_rate`, `valid`, `packing`, `evaluations`, `name`, `imports`.

    Returns:
        `Results`.

    Raises:
        InputError: for unknown presets, overrides or settings, unusable data, or a directory
            that holds something else.

    Example:
        >>> arms = {"softmax": ("gpt_nano", {}), "linear": ("gpt_nano", {"mechanism": "linear"})}
        >>> results = compare(arms, "synthetic:copy", seeds=1, steps=20)
        >>> sorted(results.table()["arm"])
        ['linear', 'softmax']
    """
    protocol = {"hypotheses": hypotheses, "tuning": tuning, "looks": looks, "budget": budget}
    protocol["tokenizer"] = tokenizer
    settings |= {name: value for name, value in protocol.items() if value is not None}
    study = _study(arms, data, seeds, steps, settings)
    directory = Path(directory or tempfile.mkdtemp(prefix="kzoo-"))
    return Results(run(study, directory, progress=progress, minutes=minutes), directory)


def predict(
    arms: Any,
    data: Any = "pydoc",
    *,
    seeds: int | Sequence[int] = 2,
    steps: int = 300,
    directory: Path | None = None,
    **settings: Any,
) -> prediction.Prediction:
    """How long `compare` with the same arguments would take, measured by some steps of each arm.

    It compiles every arm, which takes as long as it does in `compare`.

    Args:
        arms: as of `compare`, like `data`, `seeds`, `steps`, `directory` and the `settings`.

    Returns:
        A `kzoo.studies.prediction.Prediction`: print it, or take its `minutes`.

    Raises:
        InputError: as `compare`.

    Example:
        >>> print(predict(["gpt_nano"], "synthetic:copy", steps=1000))
        about 1 minute for 2 runs on 1 device, compilation included
    """
    return prediction.predict(_study(arms, data, seeds, steps, settings), directory)


def _study(arms, data, seeds, steps, settings):
    if not isinstance(arms, Mapping):
        if isinstance(arms, str) or not all(isinstance(name, str) for name in arms):
            raise InputError(
                "arms are a list of preset names or {label: (name, overrides)}. "
                f"Received: {arms!r:.120}"
            )
        arms = {name: (name, {}) for name in arms}
    fields = {}
    for label, arm in arms.items():
        arm = (arm, {}) if isinstance(arm, str) else arm
        if isinstance(arm, Mapping):
            fields[label] = dict(arm)
            continue
        if not isinstance(arm, tuple | list) or len(arm) != 2:
            raise InputError(
                f"the arm {label!r} is a pair (name, overrides), or a dict of "
                f"{', '.join(ARM_FIELDS)}. Received: {arm!r:.120}"
            )
        fields[label] = {"preset": arm[0], "overrides": arm[1]}
    names, given = _sources(data)
    settings = {**settings, "given": given} if given else settings
    return Study.from_dict(
        {"arms": fields, "data": names, "seeds": seeds, "steps": steps, **settings}
    )


def _sources(data):
    """The names of sources, and what those in memory hold: a list and a dict of lists."""
    if isinstance(data, str | os.PathLike):
        return [str(data)], {}
    if isinstance(data, list | tuple) and not _is_in_memory(data):
        parts = [_sources(source) for source in data]
        given = {name: rows for _, held in parts for name, rows in held.items()}
        return [name for names, _ in parts for name in names], given
    rows = data
    if isinstance(data, Mapping) and set(data) == {"prompts", "responses"}:
        if any(isinstance(texts, str) for texts in data.values()):
            raise InputError("prompts and responses are lists of strings. Received: a string")
        counts = len(data["prompts"]), len(data["responses"])
        if counts[0] != counts[1]:
            raise InputError(
                "there are as many prompts as responses. "
                f"Received: {counts[0]} prompts, {counts[1]} responses"
            )
        rows = list(zip(data["prompts"], data["responses"], strict=True))
    if not isinstance(rows, list | tuple):
        raise InputError(
            "data is a source or a list of them, and one in memory a list of texts or pairs. "
            f"Received: {type(data).__name__}"
        )
    rows = [row if isinstance(row, str) else list(row) for row in rows]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    name = f"list:{digest[:8]}"
    return [name], {name: rows}


def _is_in_memory(data):
    """Whether a list is one of texts or pairs, and none of sources. Strings of which one at least
    names a source, or a single one, are sources."""
    if all(isinstance(row, str) for row in data):
        return len(data) > 1 and not any(_names_source(row) for row in data)
    return all(
        isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(x, str) for x in row)
        for row in data
    )


def _names_source(text):
    return sources.named(text) is not None or os.path.exists(text)
