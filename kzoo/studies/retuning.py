"""Tuning runs that were made before: which of them a study may use, and how it makes them anew."""

import hashlib
import json
import logging
from pathlib import Path

from kzoo.config import Config
from kzoo.errors import InputError
from kzoo.studies import amounts, tuning
from kzoo.studies.amounts import load_splits
from kzoo.studies.records import OF_DATA, TUNING_FILE, append, read_tuning
from kzoo.studies.tuning import trained_with

log = logging.getLogger("kzoo")
ASIDE_FILE = "tuning-before.jsonl"  # what `--retune` set aside
# What a packed record has: of the run, and of its provenance.
_PACKED: tuple[str, ...] = ("run", "arm", "data", "seed", "group", "measure", "status", "steps")
_PACKED += ("bits", "learning_rate", "batch_size", "training", "config", "tuning")
_OF_ORIGIN = ("commit", "dirty", "versions", "platform", "processor", "kernels", "started")


def known(study, directory, done=()):
    """What a tuning asks for, and the runs that need not be made for it.

    They are those of the folder, and those of the study's file of records. Runs of another config,
    other training fields or other data do not count; the log says how many there are.

    Args:
        study: a `Study` with a tuning.
        directory: of the study's folder; None for no folder.
        done: records of the tuning runs that are known already.

    Returns:
        `(asked, own, others)`: the study of `kzoo.studies.tuning.asked`, with grids that these
        runs widen, and two dicts of records by name. Those of the file of records say so in
        `reused_from`, and nothing of the hypotheses of their study.
    """
    own, others, stale = {}, {}, set()
    while True:
        records = [*done, *own.values(), *others.values()]
        asked = amounts.with_steps(tuning.asked(study, records), study)
        found, of_file, unfit = _found(study, asked, directory, {r["run"] for r in records})
        stale |= unfit
        if not found and not of_file:
            break
        own, others = own | found, others | of_file
    if stale:
        log.warning(
            "%d tuning runs are of another config, other training fields or other data, and are "
            "made anew",
            len(stale),
        )
    return asked, own, others


def _found(study, asked, directory, names):
    """The runs of the folder and of the file that are asked for and not among `names`; and the
    names of those that are not what is asked for."""
    wanted = _wanted(asked, names)
    if not wanted:
        return {}, {}, set()
    runs = read_tuning(directory) if directory else []
    own, stale = _fitting(runs, wanted)
    others = {}
    if study.tuning.records:
        path = study.tuning.records_file()
        of_file, more = _fitting(read_tuning(path.parent, path.name), wanted)
        stale |= more
        others = {
            name: _of_file(record, study.tuning.records)
            for name, record in of_file.items()
            if name not in own
        }
    return own, others, stale


def _of_file(record, name):
    left_out = ("hypotheses", "seeds_planned", "imports", "checksum")
    fields = {field: value for field, value in record.items() if field not in left_out}
    return fields | {"reused_from": name}


def _wanted(asked, done):
    """Name -> the arguments of `inputs`, of each run that is asked for and not known."""
    wanted = {}
    for source, label, arm in asked.runs():
        config, training = arm.config(asked.seeds[0]), asked.training(arm, source)
        names = {f"{source}/{label}/{seed}": seed for seed in asked.seeds}
        if set(names) <= set(done):
            continue
        facts = load_splits(asked, source, arm).facts
        fixed = {"training": training, "steps": asked.steps_of(arm, source), "facts": facts}
        for name, seed in names.items():
            if name not in done:
                wanted[name] = {"config": {**config, "seed": seed}, **fixed}
    return wanted


def _fitting(records, wanted):
    """The records that are what is wanted, and the names of those that are not."""
    named = {record["run"]: record for record in records if record["run"] in wanted}
    fit = {
        name: record
        for name, record in named.items()
        if inputs(**_decides(record)) == inputs(**wanted[name])
    }
    return fit, set(named) - set(fit)


def _decides(record):
    """The arguments of `inputs`, of the run of a record."""
    training = trained_with(record)
    steps = training.get("steps", record["steps"])
    return {
        "config": record["config"],
        "training": training,
        "steps": steps,
        "facts": record["facts"],
    }


def inputs(config, training, steps, facts):
    """16 hexadecimal digits of what decides on a run's result, besides code and machine.

    Args:
        config: JSON of the model's config.
        training: the training fields.
        steps: optimizer steps.
        facts: of the data, of `kzoo.data.Splits`.
    """
    complete = Config.get(config).get_config()  # fields that came later have their defaults
    fields = {name: value for name, value in training.items() if name != "steps"}
    text = json.dumps([complete, fields, steps, _of_data(facts)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_data(facts):
    """What decides of the data; and the number of rows, where examples are packed into fewer."""
    rows = facts.get("packing", {}).get("rows", facts.get("train_rows"))
    packed = [] if rows == facts.get("train_rows") else [rows]
    return [facts.get(name) for name in OF_DATA] + packed


def pack(directory, path):
    """Write the tuning runs of a folder to a file of records that may travel, as in a wheel.

    It keeps what `known` and the choice need, and where each run was made; the curves stay behind.

    Args:
        directory: of a study with a tuning.
        path: of the new file, which a study names in `records` of its tuning.

    Returns:
        The number of runs.

    Raises:
        InputError: if the folder has no tuning runs, or the file is there already.
    """
    path, records = Path(path), read_tuning(directory)
    if not records or path.exists():
        why = "is there already" if path.exists() else "needs tuning runs"
        raise InputError(f"a new file of tuning records {why}. Received: {directory}, {path}")
    for record in records:
        fields = {name: record[name] for name in _PACKED if name in record}
        origin = {name: record["provenance"].get(name) for name in _OF_ORIGIN}
        kept = ("source", *OF_DATA)
        facts = {name: record["facts"][name] for name in kept if name in record["facts"]}
        append(path.parent, {**fields, "facts": facts, "provenance": origin}, path.name)
    return len(records)


def check(study, finished):
    """`InputError` where a tuning cannot be made anew."""
    if not study.tuning:
        raise InputError("a study without a tuning has none to make anew. Received: retune")
    if finished:
        raise InputError(
            "rates are chosen before the runs that use them; name a new folder with --out. "
            f"Received: retune, and {len(finished)} finished runs"
        )


def set_aside(directory):
    """Move the tuning runs of a folder to those that were set aside before."""
    path = directory / TUNING_FILE
    if path.is_file():
        with open(directory / ASIDE_FILE, "ab") as aside:
            aside.write(path.read_bytes())
        path.unlink()
