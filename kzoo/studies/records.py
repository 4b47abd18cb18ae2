"""The files of a study: what was asked, and a line for each finished run."""

import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from kzoo import migrations
from kzoo.errors import InputError
from kzoo.files import read_json
from kzoo.studies import modules

log = logging.getLogger("kzoo")

STUDY_FILE, RESULTS_FILE, REPORT_FILE = "study.json", "results.jsonl", "report.html"
VERDICTS_FILE, TUNING_FILE, CONTROL_FILE = "verdicts.json", "tuning.jsonl", "control.json"
_OF_A_STUDY: dict[str, Any] = {
    **{"name": str, "description": str, "arms": dict, "data": list, "seeds": list},
    **{"steps": int, "batch_size": int, "learning_rate": int | float | None},
}
_OF_A_RUN = ("run", "arm", "data", "seed")
# Facts that tell data apart.
OF_DATA = ("sha256", "row_length", "train_rows", "valid_rows", "tokenizer_sha256")


def read(directory):
    """A study's files: `(study, records)`, the records in the study's order.

    Args:
        directory: that holds `study.json` and `results.jsonl`.

    Returns:
        A dict, and a list of dicts, one per run; a line that is none, such as one that a kill
        cut short while it was being written, is left out with a warning.

    Raises:
        InputError: if one of the files is missing, `study.json` is no JSON of a study, one of its
            modules cannot be imported, or a record is not what was written.
    """
    directory = Path(directory)
    for name in (STUDY_FILE, RESULTS_FILE):
        if not (directory / name).is_file():
            raise InputError(
                f"a study's directory has {STUDY_FILE} and {RESULTS_FILE}; {name} is missing. "
                f"Received: {directory}"
            )
    study = read_json(directory / STUDY_FILE)
    if not isinstance(study, dict) or any(
        not isinstance(study.get(field), kind) for field, kind in _OF_A_STUDY.items()
    ):
        raise InputError(
            f"a study has {', '.join(_OF_A_STUDY)}. Received: {directory / STUDY_FILE}"
        )
    study, runs = migrations.study(study), _lines(directory / RESULTS_FILE)
    modules.load(study, directory)
    arms = list(study["arms"])

    def place(record):
        of = (
            (study["data"], record["data"]),
            (arms, record["arm"]),
            (study["seeds"], record["seed"]),
        )
        return [order.index(x) if x in order else len(order) for order, x in of]

    return study, sorted(runs.values(), key=place)


def read_tuning(directory, name=TUNING_FILE):
    """The records of the runs on which a study chose its rates: a list, empty without any."""
    path = Path(directory) / name
    return list(_lines(path).values()) if path.is_file() else []


def checksum(record):
    """SHA-256 of a record's other fields, in hexadecimal, which tells that it was edited.

    Example:
        >>> checksum({"bits": 2.5}) == checksum({"bits": 2.5, "checksum": "ab"})
        True
    """
    fields = {name: value for name, value in record.items() if name != "checksum"}
    text = json.dumps(fields, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _lines(path):
    """Name -> record of each run in a file; any other line is left out with a warning."""
    runs, sealed = {}, False
    # At line feeds alone: a name may hold what Python takes for the end of a line.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(filter(None, lines), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not set(_OF_A_RUN) <= set(record):
            warn_once(f"{path}: line {number} is no record of a run and left out")
            continue
        # Older records have no checksum; once one has, those after it do.
        sealed = sealed or "checksum" in record
        if sealed and record.get("checksum") != checksum(record):
            raise InputError(
                "records stay what was written, which their checksums tell; take the line out, and "
                f"the run is made again. Received: {path}, line {number}, the run {record['run']!r}"
            )
        runs[record["run"]] = migrations.record(record)
    return runs


@functools.cache
def warn_once(message):
    """Logs a warning that would be the same again only the first time."""
    log.warning(message)


def programs(study):
    """(data, label) of every program of a study's JSON, in order; each runs once per seed."""
    return [
        (data, label)
        for data in study["data"]
        for label, arm in study["arms"].items()
        if data in arm.get("data", study["data"])
    ]


def run_name(source, label, seed):
    """The name of a run in the records."""
    return f"{source}/{label}/{seed}"


def append(directory, record, name=RESULTS_FILE):
    """Add a run's record to a file, which reaches the disk, whole, before this returns.

    What a kill left of a line that was being written is cut off first.

    Returns:
        The record with its checksum.

    Raises:
        OSError: if it cannot be written; the file is then what it was.
    """
    record = {**record, "checksum": checksum(record)}
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    path = Path(directory) / name
    with open(path, "ab+", buffering=0) as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        try:
            left = line.encode()
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError as error:  # of a full disk; a part of the line may stand there
            os.ftruncate(file.fileno(), whole)
            raise OSError(error.errno, error.strerror, str(path)) from error
    return record
