"""The folder of a study: whose it is, what may be added to it, and what its records forbid."""

import dataclasses
import json
import logging
import os
import textwrap
from pathlib import Path

from kzoo import migrations
from kzoo.errors import InputError
from kzoo.files import found, read_json, reason, write
from kzoo.studies import modules, protocol, tokenizers
from kzoo.studies.hypotheses import hashes
from kzoo.studies.records import OF_DATA, RESULTS_FILE, STUDY_FILE, read, read_tuning
from kzoo.values import differences, is_number

log = logging.getLogger("kzoo")


def finished_runs(directory):
    """The records of a study's directory by name; none if it is new."""
    if not (Path(directory) / RESULTS_FILE).is_file():
        return {}
    return {record["run"]: record for record in read(directory)[1]}


def as_begun(study, directory):
    """The study, with what was written down where it leaves that open.

    That is the learning rate where it names none, its packing, that its tuning is made anew, and
    the tokenizers that it trains.
    """
    study = tokenizers.settled(study, directory)
    path = Path(directory) / STUDY_FILE
    begun = migrations.study(read_json(path)) if os.path.isfile(path) else None
    if study.packing is None:
        said = begun.get("packing") if isinstance(begun, dict) else None
        study = dataclasses.replace(study, packing=said or "padded")
    if not isinstance(begun, dict):
        return study
    rate, tuning = begun.get("learning_rate"), begun.get("tuning")
    if study.learning_rate is None and is_number(rate):
        study = dataclasses.replace(study, learning_rate=rate)
    if study.tuning and study.tuning.records and isinstance(tuning, dict):
        if "records" not in tuning:
            log.info("the tuning of %s goes on as it was begun, without records", directory)
            study = anew(study)
    return study


def anew(study):
    """The study, whose tuning uses no records that were made before."""
    return dataclasses.replace(study, tuning=dataclasses.replace(study.tuning, records=""))


def check_directory(study, directory):
    """`InputError` unless the directory is new, empty, or holds this study, which may have grown.

    Seeds, hypotheses, looks and exclusions may have been added to it; see
    `kzoo.studies.protocol.grown`.
    """
    directory = Path(directory)
    try:
        known = (directory / STUDY_FILE).is_file()
        held = found(directory) if directory.is_dir() else ""
    except OSError as error:
        raise InputError(
            f"the output is a folder; {reason(error)}. Received: {directory}"
        ) from error
    if known:
        saved = _saved_study(directory)
        if isinstance(saved, dict):
            saved = protocol.grown(saved, study.to_dict())
        other = list(differences(*map(_by_name, (saved, study.to_dict()))))
        if other:
            raise InputError(
                f"the output folder holds another study ({_short(other)}); name a new one "
                f"with --out. Received: {directory}"
            )
        _check_records(study, [*finished_runs(directory).values(), *read_tuning(directory)])
    elif held:
        raise InputError(f"the output folder holds other files ({held}). Received: {directory}")


def _short(found):
    """What `differences` found, on a line of 300 characters at most."""
    return textwrap.shorten("; ".join(found), 300, placeholder=" …")


def _by_name(fields):
    """The JSON of a study with its hypotheses by name, so that one is compared with its own."""
    if not isinstance(fields, dict) or not isinstance(fields.get("hypotheses"), list):
        return fields
    return {**fields, "hypotheses": {each["name"]: each for each in fields["hypotheses"]}}


def _check_records(study, records):
    """`InputError` if what the records say forbids to go on."""
    now = modules.hashes(study.imports)
    for record in records:
        then = record.get("imports", {})
        changed = [name for name in now if then.get(name) != now[name]]
        if changed:
            raise InputError(
                f"modules of imports are those with which the study began; {', '.join(changed)} "
                f"changed after the run {record['run']!r}. Name a new folder with --out. "
                f"Received: {list(study.imports)}"
            )
    if study.looks:
        from kzoo.studies.evidence import looks_taken  # which loads the statistics

        runs = [record for record in records if not record.get("tuning")]
        for number in looks_taken(study.to_dict(), runs):
            if number not in study.looks:
                raise InputError(
                    f"looks hold those that were taken, here at {number} seeds. "
                    f"Received: {list(study.looks)}"
                )


def check_choices(chosen, records):
    """`InputError` where runs used other training fields than the tuning chooses now."""
    for record in records:
        choice = chosen.get((record["data"], record["arm"]))
        then = record.get("rate_chosen")
        if choice is None or then is None:
            continue
        now = choice.to_dict()
        if any(then.get(field) != now.get(field) for field in ("rate", "others")):
            raise InputError(
                "the tuning runs of this folder choose other values than those of the run "
                f"{record['run']!r}; put its tuning.jsonl back, or name a new folder with --out. "
                f"Received: {now['rate']} instead of {then.get('rate')}"
            )


def check_data(source, label, facts, records):
    """`InputError` where finished runs of an arm learned from other data than are there now.

    Args:
        source, label: of the arm.
        facts: of its data, of `kzoo.data.Splits`.
        records: of the study's finished runs.
    """
    for record in records:
        if (record["data"], record["arm"]) != (source, label):
            continue
        names = [name for name in OF_DATA if name in facts and name in record["facts"]]
        other = {name: record["facts"][name] for name in names}
        now = {name: facts[name] for name in names}
        if other != now:
            raise InputError(
                f"all runs of an arm have the same data; those of {source!r} changed after the run "
                f"{record['run']!r}: {_short(differences(other, now))}. Put them back, or "
                "name a new folder with --out"
            )


def check_steps(settled, records):
    """`InputError` where runs made other steps than the study's budget gives their arms now, as
    after a release that counts it otherwise.

    Args:
        settled: a `Study` of `kzoo.studies.amounts.with_steps`.
        records: of its finished runs.
    """
    for record in records:
        then = record.get("training", {}).get("steps")
        now = settled.steps_of(settled.arms[record["arm"]], record["data"])
        if then not in (None, now):
            raise InputError(
                f"all runs of an arm make the steps that the budget {settled.budget!r} gives it; "
                f"name a new folder with --out. Received: {now:,} steps, and {then:,} in the "
                f"finished run {record['run']!r}"
            )


def _saved_study(directory):
    return migrations.study(read_json(directory / STUDY_FILE))


def write_study(study, directory):
    """Write down what is asked, which may have grown since the study was begun."""
    path = directory / STUDY_FILE
    if not path.is_file() or any(differences(_saved_study(directory), study.to_dict())):
        directory.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(study.to_dict(), indent=2, ensure_ascii=False) + "\n")
        (directory / RESULTS_FILE).touch()


def about(study, directory):
    """What each record says of the study as it stood when the run was made: a dict.

    A hypothesis that was added when runs of the tuning were there is post hoc as well; those of
    other studies, whose tuning runs are reused, do not count.
    """
    facts = {}
    if study.hypotheses:
        own = [record for record in read_tuning(directory) if "reused_from" not in record]
        tuned = [record.get("hypotheses", {}) for record in own]
        known = {
            name: digest
            for name, digest in hashes(study.hypotheses).items()
            if all(then.get(name) == digest for then in tuned)
        }
        facts = {"hypotheses": known, "seeds_planned": len(study.seeds)}
    if study.imports:
        facts["imports"] = modules.hashes(study.imports)
    return facts
