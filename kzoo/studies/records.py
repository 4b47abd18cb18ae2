"""The files of a study: what was asked, and a line for each finished run."""

import json
import logging
import os
from pathlib import Path

from kzoo.errors import InputError

log = logging.getLogger("kzoo")

STUDY_FILE, RESULTS_FILE, REPORT_FILE = "study.json", "results.jsonl", "report.html"


def read(directory):
    """A study's files: `(study, records)`, the records in the study's order.

    Args:
        directory: that holds `study.json` and `results.jsonl`.

    Returns:
        A dict, and a list of dicts, one per run; a line that a kill cut short while it was being
        written is left out with a warning.

    Raises:
        InputError: if one of the files is missing, or `study.json` is no JSON.
    """
    directory = Path(directory)
    for name in (STUDY_FILE, RESULTS_FILE):
        if not (directory / name).is_file():
            raise InputError(
                f"a study's directory has {STUDY_FILE} and {RESULTS_FILE}; {name} is missing. "
                f"Received: {directory}"
            )
    try:
        study = json.loads((directory / STUDY_FILE).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{STUDY_FILE} is JSON. Received: {directory / STUDY_FILE}") from None
    runs = {}
    # At line feeds alone: a name may hold what Python takes for the end of a line.
    lines = filter(None, (directory / RESULTS_FILE).read_text(encoding="utf-8").split("\n"))
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            log.warning("%s: line %d is cut short and left out", directory / RESULTS_FILE, number)
            continue
        runs[record["run"]] = record

    arms = list(study["arms"])

    def place(record):
        of = (
            (study["data"], record["data"]),
            (arms, record["arm"]),
            (study["seeds"], record["seed"]),
        )
        return [order.index(x) if x in order else len(order) for order, x in of]

    return study, sorted(runs.values(), key=place)


def write_atomically(path, text):
    """Replace the file at `path` in one step: a reader sees the old text or the new."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def append(directory, record):
    """Add a run's record, in one write that reaches the disk before this returns.

    What a kill left of a line that was being written is cut off first.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with open(Path(directory) / RESULTS_FILE, "ab+") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())
