"""Runs a study: one program per arm and data, one run per seed, records as they come."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kzoo import data, migrations, presets
from kzoo.analysis import attention_spectrum
from kzoo.config import checkpoint_bytes, count_parameters
from kzoo.errors import InputError
from kzoo.files import check_folder, found, read_json, reason, taken, write
from kzoo.ops.context import platform
from kzoo.studies import protocol, tuning
from kzoo.studies.hypotheses import hashes
from kzoo.studies.provenance import provenance
from kzoo.studies.records import (
    RESULTS_FILE,
    STUDY_FILE,
    TUNING_FILE,
    VERDICTS_FILE,
    append,
    read,
    read_tuning,
)
from kzoo.studies.study import Study, measure
from kzoo.studies.threads import devices, in_threads, share_out
from kzoo.studies.workers import in_processes
from kzoo.training import Checkpoints, prepare, train
from kzoo.values import differences, is_number

log = logging.getLogger("kzoo")
SPECTRUM_ROWS = 8
CHECKPOINTS = "checkpoints"  # the folder of those of the runs that are under way
KEEP = 2  # of each
OF_A_RECORD = 100_000  # bytes, about
_LONGEST = 200  # bytes of a folder's name
# Keras may change base classes of models while it makes one, which no two threads should do.
_making = threading.Lock()


def run(
    study: Study, directory: Path, *, progress: bool = True, at_once: int | None = None
) -> list[dict[str, Any]]:
    """Run what is not yet there, appending a record to `results.jsonl` after each run.

    Started again on the same directory it goes on: finished runs are not repeated, and a
    half-finished one resumes from its last measured point, with the same losses to the last bit on
    CPU. A study that tunes runs its grids first; one with hypotheses writes `verdicts.json`.

    Args:
        study: a `Study`.
        directory: where the study's files go; made if missing.
        progress: whether to show progress bars on standard error.
        at_once: how many runs go on at once, with the same results as one after another. By
            default as many as there are devices, each on its own (JAX); under a distribution,
            which gives all devices to each run, and on one device, one. On one device, a CPU,
            more than one are processes with a share of the cores each.

    Returns:
        The records of all runs, a list of dicts in the order of the study. A study with looks
        stops at the first one that decides all of its hypotheses.

    Raises:
        InputError: if the directory holds another study or something else, the data are
            unusable, several runs shall share an accelerator, or the directory cannot be written
            or has too little space. Nothing is written then.
        OSError: if a record cannot be written; those before it are kept.
        ChildProcessError: if a process of the study is killed.

    Example:
        >>> records = run(Study.from_json("study.json"), "runs/mine")
    """
    directory = Path(directory)
    study = as_begun(study, directory)
    check(study, directory, at_once)
    places, at_once = _places(study, at_once)
    programs, done = study.runs(), finished_runs(directory)
    _write_study(study, directory)
    about = _about(study, directory)

    with _Bars(progress, len(programs) * len(study.seeds), len(done)) as bars:
        chosen = {}
        if study.tuning:
            work = functools.partial(_work_off, places=places, at_once=at_once)
            chosen = _tune(study, directory, about, bars, work)
            study = tuning.with_rates(study, chosen)

        complete = functools.partial(_complete, about=about, chosen=chosen)
        say = bars.listener(study.steps, directory, RESULTS_FILE, done, complete)
        for look in study.looks or [len(study.seeds)]:
            jobs = jobs_left(dataclasses.replace(study, seeds=study.seeds[:look]), done)
            _work_off(study, directory, jobs, say, places, at_once)
            if look < len(study.seeds) and _all_decided(study, done):
                break
    shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    _write_verdicts(study, directory, list(done.values()))
    order = [run_name(*program[:2], seed) for program in programs for seed in study.seeds]
    return [done[name] for name in order if name in done]


def check(study, directory, at_once=None):
    """`InputError` as `run` raises it, before anything is written."""
    check_directory(study, directory)
    _, at_once = _places(study, at_once)
    if jobs_left(study, finished_runs(directory)):
        for source, _, arm in study.runs():
            load_splits(study, source, arm.config(study.seeds[0]))  # the unusable are refused here
        check_folder(directory, _bytes(study, directory, at_once))


def _complete(record, about, chosen):
    rate = chosen.get((record["data"], record["arm"]))
    return {**record, **about, **({"rate_chosen": rate.to_dict()} if rate else {})}


def _tune(study, directory, about, bars, work):
    """Run what the tuning takes and is not yet there; the `tuning.choices`."""
    done = {record["run"]: record for record in read_tuning(directory)}

    def complete(record):
        return {**tuning.as_record(record), **about}

    say = bars.listener(study.steps, directory, TUNING_FILE, done, complete)
    # A grid whose best rate lies at its edge asks for more.
    while jobs := jobs_left(asked := tuning.asked(study, list(done.values())), done):
        bars.expect(sum(len(seeds) for *_, seeds in jobs))
        work(asked, directory, jobs, say)
    return tuning.choices(study, list(done.values()))


def _places(study, at_once):
    """The devices to share runs out among, a list, and how many runs go on at once."""
    places = devices()[:at_once]
    at_once = at_once or len(places) or 1
    if at_once > 1 and not places and platform() != "cpu":
        raise InputError(f"an accelerator takes one run at a time. Received: at_once={at_once}")
    # Not by what is left to do: a run goes on with as many threads as it began with, since
    # their number moves the last bits.
    return places, min(at_once, len(study.runs()))


def _work_off(study, directory, jobs, say, places, at_once):
    """All jobs (source, label, seeds): on the devices `places`, in processes, or one by one."""

    def work(job, say):
        run_program(study, directory, *job, say)

    if len(places) > 1:
        in_threads(work, share_out(jobs, len(places)), say, places)
    elif at_once > 1 and jobs:
        in_processes(study, directory, jobs, say, at_once)
    else:
        for job in jobs:
            work(job, say)


def _write_study(study, directory):
    """Write down what is asked, which may have grown since the study was begun."""
    path = directory / STUDY_FILE
    if not path.is_file() or any(differences(_saved_study(directory), study.to_dict())):
        directory.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(study.to_dict(), indent=2, ensure_ascii=False) + "\n")
        (directory / RESULTS_FILE).touch()


def _about(study, directory):
    """What each record says of the study as it stood when the run was made.

    A hypothesis that was added when runs of the tuning were there is post hoc as well.
    """
    about = {}
    if study.hypotheses:
        tuned = [record.get("hypotheses", {}) for record in read_tuning(directory)]
        known = {
            name: digest
            for name, digest in hashes(study.hypotheses).items()
            if all(then.get(name) == digest for then in tuned)
        }
        about = {"hypotheses": known, "seeds_planned": len(study.seeds)}
    if study.imports:
        about["imports"] = protocol.module_hashes(study.imports)
    return about


def _all_decided(study, done):
    from kzoo.studies.evidence import decided, draw  # which loads the statistics

    return decided(draw(study.to_dict(), list(done.values())))


def _write_verdicts(study, directory, records):
    if not study.hypotheses:
        return
    from kzoo.studies.evidence import draw, seeds_drawn

    fields = study.to_dict()
    drawn = [{"text": str(verdict), **verdict.to_dict()} for verdict in draw(fields, records)]
    content = {"study": study.name, "seeds": seeds_drawn(fields, records), "verdicts": drawn}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write(directory / VERDICTS_FILE, text + "\n")


def finished_runs(directory):
    """The records of a study's directory by name; none if it is new."""
    if not (Path(directory) / RESULTS_FILE).is_file():
        return {}
    return {record["run"]: record for record in read(directory)[1]}


def _bytes(study, directory, at_once):
    """Bytes that a study needs besides those it has taken, about: for the runs under way."""
    largest = max(count_parameters(arm.config(study.seeds[0])) for arm in study.arms.values())
    needed = at_once * checkpoint_bytes(largest, KEEP) + OF_A_RECORD * len(study.runs())
    return max(OF_A_RECORD, needed - taken(directory / CHECKPOINTS))


def jobs_left(study, done):
    """(source, label, seeds) of each program that has runs whose names are not in `done`."""
    jobs = []
    for source, label, _ in study.runs():
        seeds = [seed for seed in study.seeds if run_name(source, label, seed) not in done]
        if seeds:
            jobs.append((source, label, seeds))
    return jobs


def run_name(source, label, seed):
    """The name of a run in the records."""
    return f"{source}/{label}/{seed}"


def run_program(study, directory, source, label, seeds, say):
    """One arm on one source, once for each seed.

    Args:
        study, directory: as in `run`.
        source, label: of the program.
        seeds: those to run.
        say: called as `say("begin", name)`, `say("step", name, step, loss)` and
            `say("record", name, record)`.
    """
    trainer = Trainer(study, source, study.arms[label])
    for seed in seeds:
        name = run_name(source, label, seed)
        say("begin", name)
        path = checkpoint_folder(directory, name)
        record = {"run": name, "arm": label, "data": source, "seed": seed}
        record |= trainer.run(seed, path, functools.partial(say, "step", name))
        say("record", name, record)


def as_begun(study, directory):
    """The study, with the learning rate that was written down where it names none."""
    path = Path(directory) / STUDY_FILE
    if study.learning_rate is not None or not os.path.isfile(path):
        return study
    begun = read_json(path)
    rate = begun.get("learning_rate") if isinstance(begun, dict) else None
    return dataclasses.replace(study, learning_rate=rate) if is_number(rate) else study


def check_directory(study, directory):
    """`InputError` unless the directory is new, empty, or holds this study, which may have grown.

    Seeds, hypotheses and looks may have been added to it; see `kzoo.studies.protocol.grown`.
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
        other = list(differences(saved, study.to_dict()))
        if other:
            raise InputError(
                f"the output folder holds another study ({'; '.join(other):.300}); name a new one "
                f"with --out. Received: {directory}"
            )
        _check_records(study, [*finished_runs(directory).values(), *read_tuning(directory)])
    elif held:
        raise InputError(f"the output folder holds other files ({held}). Received: {directory}")


def _check_records(study, records):
    """`InputError` if what the records say forbids to go on."""
    now = protocol.module_hashes(study.imports)
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


def _saved_study(directory):
    return migrations.study(read_json(directory / STUDY_FILE))


class Trainer:
    """One arm on one source: built and compiled once, run for each seed."""

    def __init__(self, study, source, arm):
        self.study, self.source, self.arm = study, source, arm
        with _making:
            model = presets.build(arm.config(study.seeds[0]))
            self.program = prepare(model, study.rate(self.arm, source), study.steps)

    def run(self, seed, path, on_step):
        """Train with one seed and return what the record says of it."""
        study, config = self.study, self.arm.config(seed)
        splits = load_splits(study, self.source, config)
        model = self.program.model
        with _making:
            fresh = presets.build(config)
        self.program.restart(fresh)
        outcome = train(
            self.program,
            splits,
            study.steps,
            evaluations=study.evaluations,
            checkpoints=Checkpoints(path, keep=KEEP),
            on_step=on_step,
        )
        unit, group = measure(config["objective"], self.source)
        if not outcome.finite:
            log.warning("%s: the loss was not finite at step %d", group, outcome.steps)
        x, _, weight = splits.valid[0]
        batch = {name: array[:SPECTRUM_ROWS] for name, array in x.items()}
        scored = sum(float(weight.sum()) for _, _, weight in splits.valid)
        rows = study.batch_size * splits.facts["row_length"]
        return {
            "group": group,
            "measure": unit,
            "status": "finished" if outcome.finite else "nan",
            "steps": outcome.steps,
            "train_loss": outcome.train_loss if outcome.finite else outcome.train_loss[:-1],
            "held_out": outcome.held_out,
            "bits": outcome.held_out[-1][1] if outcome.finite else None,
            "scored_tokens": int(scored),
            "parameters": model.count_params(),
            "seconds": outcome.seconds,
            "tokens_per_second": rows * outcome.steps / outcome.seconds,
            "learning_rate": study.rate(self.arm, self.source),
            "batch_size": study.batch_size,
            "config": config,
            "overrides": self.arm.overrides,
            "spectrum": attention_spectrum(model, batch) if outcome.finite else [],
            "facts": splits.facts,
            "provenance": provenance(model, splits.facts["row_length"]),
        }


def load_splits(study, source, config):
    """The data of a run. Arms that differ in mechanism only share them."""
    fields = {name: config[name] for name in ("max_sequence_length", "mask", "stack", "objective")}
    given = json.dumps(study.given.get(source))
    return _load(source, given, json.dumps(fields), study.batch_size, study.valid, config["seed"])


@functools.lru_cache(maxsize=16)
def _load(source, given, fields, batch_size, valid, seed):
    source = json.loads(given) or source
    return data.load(source, json.loads(fields), batch_size=batch_size, valid=valid, seed=seed)


def checkpoint_folder(directory, name):
    """The folder of the checkpoints of a run by that name, while it is under way."""
    folder = name.replace("/", " - ").replace(":", " ")
    if " - " in name or len(folder.encode()) > _LONGEST:  # else another's name, or no name at all
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        folder = f"{folder.encode()[: _LONGEST - 20].decode(errors='ignore')} {digest}"
    return directory / CHECKPOINTS / folder


class _Bars(contextlib.AbstractContextManager):
    """Progress bars: runs of the study, and steps of each run that is under way."""

    def __init__(self, shown, runs, finished):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not shown,
        )
        self.runs = self.progress.add_task("runs", total=runs, completed=finished, note="")
        self.under_way = {}

    def __enter__(self):
        self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def listener(self, steps, directory, file, done, complete):
        """What hears the runs: it shows them, and keeps each record in a file and in `done`.

        Args:
            steps: of each run.
            directory, file: where the records go.
            done: dict of the records by name, which grows.
            complete: function of a run's record that returns it with all that it is to say.
        """

        def say(kind, name, *what):
            if kind == "record":
                done[name] = complete(what[0])
                append(directory, done[name], file)
                self.finished(name)
            elif kind == "begin":
                self.begin(name, steps)
            else:
                self.step(name, *what)

        return say

    def expect(self, more):
        """So many runs more than was said."""
        task = next(task for task in self.progress.tasks if task.id == self.runs)
        self.progress.update(self.runs, total=task.total + more)

    def begin(self, name, steps):
        self.under_way[name] = self.progress.add_task("steps", total=steps, note=name)

    def step(self, name, step, loss):
        task, note = self.under_way[name], f"{name}, loss {loss:.3f}"
        self.progress.update(task, completed=step, note=note)

    def finished(self, name):
        self.progress.remove_task(self.under_way.pop(name))
        self.progress.advance(self.runs)
