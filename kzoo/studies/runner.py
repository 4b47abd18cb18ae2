"""Runs a study: one program per arm and data, one run per seed, records as they come."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from kzoo import presets
from kzoo.analysis import attention_spectrum
from kzoo.config import checkpoint_bytes, count_parameters
from kzoo.errors import InputError
from kzoo.files import check_folder, taken, write
from kzoo.ops.context import platform
from kzoo.studies import amounts, control, programs, retuning, tokenizers, tuning
from kzoo.studies.amounts import load_splits
from kzoo.studies.bars import Bars
from kzoo.studies.clock import Clock, TimeOver
from kzoo.studies.cluster import joined, on_cluster
from kzoo.studies.folder import (
    about,
    anew,
    as_begun,
    check_choices,
    check_data,
    check_directory,
    check_steps,
    finished_runs,
    write_study,
)
from kzoo.studies.metrics import example_losses, measured
from kzoo.studies.metrics import measure as measure_with
from kzoo.studies.protocol import BUDGETS
from kzoo.studies.provenance import provenance
from kzoo.studies.records import (
    CONTROL_FILE,
    RESULTS_FILE,
    TUNING_FILE,
    VERDICTS_FILE,
    append,
    run_name,
    warn_once,
)
from kzoo.studies.study import Study, measure
from kzoo.studies.threads import devices, in_threads, share_out
from kzoo.studies.workers import in_processes
from kzoo.training import Checkpoints, train
from kzoo.training.flops import count_flops

log = logging.getLogger("kzoo")
SPECTRUM_ROWS = 8
CHECKPOINTS = "checkpoints"  # the folder of those of the runs that are under way
KEEP = 2  # of each
OF_A_RECORD = 100_000  # bytes, about
_LONGEST = 200  # bytes of a folder's name


def run(
    study: Study,
    directory: Path,
    *,
    progress: bool = True,
    at_once: int | None = None,
    minutes: float | None = None,
    retune: bool = False,
    ray: str | None = None,
) -> list[dict[str, Any]]:
    """Run what is not yet there, appending a record to `results.jsonl` after each run.

    Started again on the same directory it goes on: finished runs are not repeated, and a
    half-finished one resumes from its last measured point, with the same losses to the last bit on
    CPU. Before the first run the arms of each hypothesis are compared at step 0
    (`kzoo.studies.control`). A study that tunes runs its grids first; one with hypotheses writes
    `verdicts.json`.

    Args:
        study: a `Study`.
        directory: where the study's files go; made if missing.
        progress: whether to show progress bars on standard error.
        at_once: how many runs go on at once, with the same results as one after another. By
            default as many as there are devices, each on its own (JAX); under a distribution,
            which gives all devices to each run, and on one device, one. On one device, a CPU,
            more than one are processes with a share of the cores each.
        minutes: after which it stops, between two runs where it can; started again, it goes on.
        retune: whether the tuning is made anew; what there is of it is kept beside.
        ray: the address of a Ray cluster on whose devices the runs are made, as in
            `kzoo.studies.cluster.on_cluster`; None for none.

    Returns:
        The records of all runs that are there, a list of dicts in the order of the study. A study
        with looks stops at the first one that decides all of its hypotheses.

    Raises:
        InputError: if the directory holds another study or something else, the data are
            unusable, several runs shall share an accelerator, arms differ at step 0 in what their
            hypothesis does not declare, or the directory cannot be written or has too little
            space. No run is made then.
        OSError: if a record cannot be written; those before it are kept.
        ChildProcessError: if a process of the study is killed.

    Example:
        >>> records = run(Study.from_json("study.json"), "runs/mine")
    """
    directory = Path(directory)
    study = as_begun(study, directory)
    if retune:
        study = anew(study) if study.tuning else study
        retuning.check(study, finished_runs(directory))
    check(study, directory, at_once)
    done, clock = finished_runs(directory), Clock(minutes)
    leaving = contextlib.ExitStack()
    leaving.enter_context(joined(ray))
    try:
        if retune:
            retuning.set_aside(directory)
        at_step_0 = None if done else control.compared(study)
        write_study(study, directory)
        tokenizers.keep(study, directory)
        if at_step_0:
            _write_json(directory / CONTROL_FILE, at_step_0)
        with Bars(progress, len(study.runs()) * len(study.seeds), len(done)) as bars:
            work = functools.partial(_work_off, at_once=at_once, ray=ray)
            _work_through(study, directory, done, bars, clock, work)
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
    except TimeOver:
        log.warning("the minutes are over; the same command goes on")
    finally:
        programs.forget()
        leaving.close()
    _write_verdicts(study, directory, list(done.values()))
    names = [run_name(*of[:2], seed) for of in study.runs() for seed in study.seeds]
    return [done[name] for name in names if name in done]


def _work_through(study, directory, done, bars, clock, work):
    """All runs of the tuning and of the study, as far as they are not there."""
    facts, chosen = about(study, directory), {}
    if study.tuning:
        chosen = _tune(study, directory, facts, bars, work, clock)
        check_choices(chosen, done.values())
    settled = amounts.with_steps(tuning.with_choices(study, chosen) if chosen else study, study)

    if study.budget != "steps":
        each = settled.runs()
        given = [f"{label} {settled.steps_of(arm, source):,}" for source, label, arm in each]
        log.info("steps at equal %s: %s", BUDGETS[study.budget], ", ".join(given))
        if jobs_left(settled, done):
            check_steps(settled, done.values())

    def complete(record):
        choice = chosen.get((record["data"], record["arm"]))
        return {**record, **facts, **({"rate_chosen": choice.to_dict()} if choice else {})}

    steps = functools.partial(_steps_of_run, settled)
    say = bars.listener(steps, directory, RESULTS_FILE, done, complete, clock)
    for look in study.looks or [len(study.seeds)]:
        jobs = jobs_left(dataclasses.replace(settled, seeds=study.seeds[:look]), done)
        work(settled, directory, jobs, say)
        if look < len(study.seeds) and _all_decided(study, done):
            log.info(
                "%d of %d seeds decide all hypotheses, and the study ends at this look",
                *(look, len(study.seeds)),
            )
            break


def _steps_of_run(study, name):
    source, label = next(
        program[:2]
        for program in study.runs()
        for seed in study.seeds
        if run_name(*program[:2], seed) == name
    )
    return study.steps_of(study.arms[label], source)


def check(study, directory, at_once=None):
    """`InputError` as `run` raises it, before anything is written."""
    check_directory(study, directory)
    _, at_once = _places(study, at_once)
    if study.tuning and study.tuning.records:
        study.tuning.records_file()
    finished = finished_runs(directory)
    tokenizers.check(study, finished.values())
    if jobs_left(study, finished):
        for asked in (study, tuning.asked(study, [])) if study.tuning else (study,):
            for source, label, arm in asked.runs():  # the unusable are refused here
                facts = load_splits(asked, source, arm).facts
                check_data(source, label, facts, finished.values())
                for metric in measured(asked):
                    metric.check(arm.config(asked.seeds[0]), facts)
        check_folder(directory, _bytes(study, directory, at_once))


def _tune(study, directory, facts, bars, work, clock):
    """Run what the tuning takes and is not yet there; the `tuning.choices`."""
    done = {}

    def complete(record):
        return {**tuning.as_record(record), **facts}

    def left():
        asked, own, others = retuning.known(study, directory, list(done.values()))
        copied = {name: append(directory, run, TUNING_FILE) for name, run in others.items()}
        done.update({**own, **copied})
        return asked, jobs_left(asked, done)

    # A grid whose best rate lies at its edge asks for more.
    while (work_left := left())[1]:
        asked, jobs = work_left
        steps = functools.partial(_steps_of_run, asked)
        say = bars.listener(steps, directory, TUNING_FILE, done, complete, clock)
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


def _work_off(study, directory, jobs, say, at_once, ray=None):
    """All jobs (source, label, seeds): in a cluster, on devices, in processes, or one by one."""
    if ray is not None:
        on_cluster(run_program, study, directory, jobs, say, ray, at_once)
        return
    places, at_once = _places(study, at_once)

    def work(job, say):
        run_program(study, directory, *job, say)

    if len(places) > 1:
        in_threads(work, share_out(jobs, len(places)), say, places)
    elif at_once > 1 and jobs:
        in_processes(run_programs, study, directory, _grouped(study, jobs, at_once), say, at_once)
    else:
        for job in jobs:
            work(job, say)


def _grouped(study, jobs, count):
    """Runs that share a compiled program, together: a list of `(jobs,)`, the dearest first.

    There are as many groups as `count` processes need, if there are as many runs; and the last
    program is shared out among all of them, so that none has the end of a study to itself.
    """
    groups, costs = {}, {}
    for source, label, seeds in jobs:
        arm = study.arms[label]
        training, steps = study.training(arm, source), study.steps_of(arm, source)
        key = programs.shape(arm.config(0), training, steps)
        groups.setdefault(key, []).extend((source, label, [seed]) for seed in seeds)
        of_row = sum(count_flops(arm.config(0)).values())  # at most: the data is not read here
        of_run = of_row * training["batch_size"] * steps
        costs[key] = costs.get(key, 0) + len(seeds) * of_run
    *others, last = [groups[key] for key in sorted(groups, key=costs.get, reverse=True)]
    parts = -(-count // len(groups))
    shared = [(group, parts) for group in others] + [(last, count)]
    return [(group[i::n],) for group, n in shared for i in range(min(n, len(group)))]


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
    _write_json(directory / VERDICTS_FILE, content)


def _write_json(path, content):
    write(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _bytes(study, directory, at_once):
    """Bytes that a study needs besides those it has taken, about: for the runs under way."""
    largest = max(count_parameters(arm.config(study.seeds[0])) for arm in study.arms.values())
    needed = at_once * checkpoint_bytes(largest, KEEP) + OF_A_RECORD * len(study.runs())
    return max(OF_A_RECORD, needed - taken(directory / CHECKPOINTS))


def jobs_left(study, done):
    """(source, label, seeds) of each program that has runs whose names are not in `done`, and
    which the study does not exclude."""
    jobs, done = [], set(done) | set(study.excluded)
    for source, label, _ in study.runs():
        names = {seed: run_name(source, label, seed) for seed in study.seeds}
        seeds = [seed for seed, name in names.items() if name not in done]
        if seeds:
            jobs.append((source, label, seeds))
    return jobs


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


def run_programs(study, directory, jobs, say):
    """`run_program` for each of several jobs."""
    for job in jobs:
        run_program(study, directory, *job, say)


class Trainer:
    """One arm on one source: a program that is compiled once, run for each seed."""

    def __init__(self, study, source, arm):
        self.study, self.source, self.arm = study, source, arm
        self.training, self.steps = study.training(arm, source), study.steps_of(arm, source)
        config = arm.config(study.seeds[0])
        self.tokenizer = tokenizers.packed(study, source, arm)
        made = programs.program(config, self.training, self.steps, self.tokenizer)
        self.program = dataclasses.replace(made, config=config)

    def run(self, seed, path, on_step):
        """Train with one seed and return what the record says of it."""
        study, config, training = self.study, self.arm.config(seed), self.training
        splits = load_splits(study, self.source, self.arm, seed)
        with programs.making:
            fresh = presets.build(config)
        self.program.restart(fresh, training["learning_rate"])
        outcome = train(
            self.program,
            splits,
            self.steps,
            evaluations=study.evaluations,
            checkpoints=Checkpoints(path, keep=KEEP),
            on_step=on_step,
        )
        unit, group = measure(config["objective"], self.source, self.arm.tokenizer)
        if not outcome.finite:
            log.warning("%s: the loss was not finite at step %d", group, outcome.steps)
        return {
            "group": group,
            "measure": unit,
            "status": "finished" if outcome.finite else "nan",
            "steps": outcome.steps,
            "train_loss": outcome.train_loss if outcome.finite else outcome.train_loss[:-1],
            "held_out": outcome.held_out,
            "bits": outcome.held_out[-1][1] if outcome.finite else None,
            "parameters": self.program.model.count_params(),
            **self._costs(config, splits, outcome),
            **({} if self.tokenizer is None else {"tokenizer": self.arm.tokenizer}),
            "learning_rate": training["learning_rate"],
            "batch_size": training["batch_size"],
            "training": {**training, "steps": self.steps},
            "config": config,
            "overrides": self.arm.overrides,
            **self._of_the_model(splits, outcome.finite),
            "facts": splits.facts,
            "provenance": provenance(self.program.model, splits.facts["row_length"]),
        }

    def _costs(self, config, splits, outcome):
        """What the run has seen and taken."""
        size = self.training["batch_size"]
        of_run = (self.study, self.source, self.arm, outcome.steps, config["seed"])
        seen, scored = amounts.tokens(*of_run)
        rows = size * splits.facts["row_length"]
        return {
            "scored_tokens": int(sum(float(weight.sum()) for _, _, weight in splits.valid)),
            "tokens_seen": seen,
            "tokens_scored": scored,
            "flops": amounts.flops(*of_run),
            "seconds": outcome.seconds,
            "tokens_per_second": rows * outcome.steps / outcome.seconds,
        }

    def _of_the_model(self, splits, finite):
        """What is measured with the trained model, if its weights are numbers."""
        metrics = measured(self.study)
        if not finite:
            return {"spectrum": []}
        model = self.program.model
        x, _, _ = splits.valid[0]
        batch = {name: array[:SPECTRUM_ROWS] for name, array in x.items()}
        found = {"spectrum": self._spectrum(batch)}
        if metrics:
            found |= measure_with(metrics, model, splits.valid)
        if self.study.examples:
            found["examples"] = example_losses(model, splits.valid)
        return found

    def _spectrum(self, batch):
        """Spectra; of a model whose attention has no weights, or too many, none: its run counts."""
        try:
            return attention_spectrum(self.program.model, batch)
        except InputError as error:
            warn_once(f"{self.source}: no spectra are measured: {error}")
            return []


def checkpoint_folder(directory, name):
    """The folder of the checkpoints of a run by that name, while it is under way."""
    folder = name.replace("/", " - ").replace(":", " ")
    if " - " in name or len(folder.encode()) > _LONGEST:  # else another's name, or no name at all
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        folder = f"{folder.encode()[: _LONGEST - 20].decode(errors='ignore')} {digest}"
    return directory / CHECKPOINTS / folder
