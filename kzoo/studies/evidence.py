"""From the files of a study to its verdicts: what its records say of its hypotheses."""

import dataclasses

import numpy as np

from kzoo.studies.hypotheses import LEAST_PAIRS, Hypothesis
from kzoo.studies.metrics import METRICS
from kzoo.studies.protocol import BUDGETS
from kzoo.studies.records import programs, run_name
from kzoo.studies.sentences import ArmFacts
from kzoo.studies.verdicts import Evidence, verdicts

FLAT = 0.01  # of the loss: a run that falls less from its middle to its end stands still
STEEP = 0.02  # of the training loss: one that falls more over its last fifth still falls
_LEAST_STEPS = 20  # below which a curve is too short to tell either


def draw(study, records):
    """The verdicts of a study at the seeds that are there.

    They are drawn once all runs of the study are there; with looks, at the last look whose runs
    all are. Where seeds were added to a finished study, its verdicts then count as looks.

    Args:
        study: the JSON of a study.
        records: of its runs.

    Returns:
        A list of `kzoo.studies.verdicts.Verdict`, one for each hypothesis, in order; empty for a
        study without hypotheses, and for one whose runs are not all there yet.

    Example:
        >>> study, records = kzoo.studies.records.read("runs/quick")
        >>> for verdict in draw(study, records):
        ...     print(verdict)
    """
    found = [Hypothesis.from_dict(fields) for fields in study.get("hypotheses", ())]
    seeds = seeds_drawn(study, records) if found else ()
    if not seeds:
        return []
    runs = [record for record in records if record["seed"] in seeds]
    looks = tuple(study.get("looks", ()))
    if not looks and (taken := looks_taken(study, records)):  # seeds were added
        looks = (*taken, len(seeds))
    return verdicts(
        [_evidence(hypothesis, {**study, "seeds": list(seeds)}, runs) for hypothesis in found],
        looks=looks,
        failed_runs=study.get("failed_runs", "undecided"),
    )


def decided(drawn):
    """Whether every hypothesis has its verdict, so that a study with looks stops."""
    return bool(drawn) and all(verdict.outcome != "undecided" for verdict in drawn)


def seeds_drawn(study, records):
    """The seeds at which verdicts are drawn, those of the last look whose runs are all there.

    Runs that are excluded need not be.
    """
    done = {(record["data"], record["arm"], record["seed"]) for record in records}
    done |= {
        (*program, seed)
        for program in programs(study)
        for seed in study["seeds"]
        if run_name(*program, seed) in study.get("excluded", ())
    }
    seeds = study["seeds"]
    for look in reversed(study.get("looks") or [len(seeds)]):
        taken = seeds[:look]
        if all((*program, seed) in done for program in programs(study) for seed in taken):
            return tuple(taken)
    return ()


def looks_taken(study, records):
    """The numbers of seeds at which the study was complete before seeds were added to it.

    Each record says how many seeds its study had when it ran. Studies that had no hypotheses yet
    drew no verdicts; what is asked of them later is post hoc.
    """
    planned = {
        (record["data"], record["arm"], record["seed"]): record.get("seeds_planned", 0)
        for record in records
        if record.get("hypotheses")
    }
    numbers = []
    for number in sorted(set(planned.values())):
        seeds = study["seeds"][:number]
        of_them = [n for (_, _, seed), n in planned.items() if seed in seeds]
        complete = len(of_them) == len({program[:2] for program in planned}) * len(seeds)
        if LEAST_PAIRS <= number < len(study["seeds"]) and complete and max(of_them) <= number:
            numbers.append(number)
    return numbers


def _evidence(hypothesis, study, records):
    values, facts, runs_of = {}, {}, {}
    for label in hypothesis.labels:
        runs = [r for r in records if r["arm"] == label and r["data"] == hypothesis.data]
        runs_of[label] = runs
        values[label] = {run["seed"]: _value(run, hypothesis.metric) for run in runs}
        without = tuple(
            run["seed"]
            for run in runs
            if run["status"] == "finished" and values[label][run["seed"]] is None
        )
        excluded = {
            seed: study["excluded"][name]
            for seed in study["seeds"]
            if (name := run_name(hypothesis.data, label, seed)) in study.get("excluded", ())
        }
        known = arm_facts(runs, study)
        afterwards = tuple(seed for seed in excluded if seed in values[label])
        own = {"excluded": excluded, "excluded_afterwards": afterwards, "without": without}
        facts[label] = dataclasses.replace(known, **own)
    return Evidence(
        hypothesis,
        values,
        facts,
        setting=_setting(hypothesis, study, records),
        post_hoc=is_post_hoc(hypothesis, records),
        added_to=tuple(() if study.get("looks") else looks_taken(study, records)),
        unequal=unequal(runs_of, study),
    )


# What arms have in unlike amounts: in a record's fields, and in words.
_AMOUNTS = {
    "steps": "steps",
    "parameters": "parameters",
    "tokens_seen": "tokens seen",
    "tokens_scored": "tokens scored",
    "flops": "FLOPs",
}
_EQUAL = 0.01  # amounts that differ by less are the same


def unequal(runs_of, study):
    """What arms have not the same amount of, in a sentence; "" where all is equal.

    Means are over the seeds at which the runs of all arms finished.

    Args:
        runs_of: label -> records of the arm's runs on one source.
        study: the JSON of the study.

    Example:
        >>> runs = {"a": [{"status": "finished", "seed": 0, "flops": 3e9}]}
        >>> runs["b"] = [{"status": "finished", "seed": 0, "flops": 4e9}]
        >>> unequal(runs, {"budget": "steps"})
        'At equal steps these are not equal: FLOPs (a 3e+09, b 4e+09).'
    """
    said, finished = [], {}
    for label, runs in runs_of.items():
        finished[label] = {run["seed"]: run for run in runs if run["status"] == "finished"}
    paired = set.intersection(*map(set, finished.values()))
    for field, words in _AMOUNTS.items():
        means = {
            label: float(np.mean([runs[seed][field] for seed in paired]))
            for label, runs in finished.items()
            if paired and all(field in runs[seed] for seed in paired)
        }
        if len(means) > 1 and max(means.values()) > (1 + _EQUAL) * min(means.values()):
            each = ", ".join(f"{label} {_amount(value)}" for label, value in means.items())
            said.append(f"{words} ({each})")
    if not said:
        return ""
    budget = BUDGETS[study.get("budget", "steps")]
    return f"At equal {budget} these are not equal: {', '.join(said)}."


def _amount(value):
    return f"{value:,.0f}" if value < 1e9 else f"{value:.3g}"


def _value(run, metric):
    return METRICS.get(metric).value(run) if run["status"] == "finished" else None


def is_post_hoc(hypothesis, records):
    """Whether a run was made before the hypothesis stood in the study as it stands now."""
    return any(
        record.get("hypotheses", {}).get(hypothesis.name) != hypothesis.hash for record in records
    )


def _setting(hypothesis, study, records):
    """Where a verdict holds, e.g. `"on continuations of pydoc, at 300 steps"`."""
    groups = {
        record["group"]
        for record in records
        if record["arm"] in hypothesis.labels and record["data"] == hypothesis.data
    }
    # A path is named by its last part.
    source = hypothesis.data.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or hypothesis.data
    where = source
    if len(groups) == 1:
        what = groups.pop().removesuffix(f" on {hypothesis.data}")
        where = f"{'continuations' if what == 'continuation' else what} of {source}"
    steps = study["steps"]
    at = f"at {steps:,} step{'s' * (steps != 1)}"
    if study.get("budget", "steps") != "steps":
        numbers = {
            record.get("training", {}).get("steps", steps)
            for record in records
            if record["arm"] in hypothesis.labels and record["data"] == hypothesis.data
        }
        least, most = min(numbers), max(numbers)
        span = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        at = f"at equal {BUDGETS[study['budget']]} ({span} steps)"
    return f"on {where}, {at}"


# Doubtful runs ---------------------------------------------------------------------------------


def arm_facts(runs, study):
    """What is to be said of an arm on one source.

    Args:
        runs: its records.
        study: the JSON of the study, whose learning rate counts where an old record names none.

    Returns:
        `ArmFacts`. A run stalled if its held-out loss stands still from its middle on, above the
        bigram entropy of the text.
    """
    if not runs:
        return ArmFacts()
    finished = [run for run in runs if run["status"] == "finished"]
    falls = [fall for run in finished if (fall := _last_fall(run)) is not None]
    chosen = runs[0].get("rate_chosen", {})
    return ArmFacts(
        rate=runs[0].get("learning_rate", study.get("learning_rate")),
        grid=tuple(chosen.get("grid", ())),
        tuning_seeds=chosen.get("seeds", 0),
        widened=chosen.get("widened", 0),
        at_edge=chosen.get("at_edge", False),
        others=chosen.get("others", {}),
        reused=chosen.get("reused", {}),
        diverged=tuple(run["seed"] for run in runs if run["status"] != "finished"),
        stalled=tuple(run["seed"] for run in finished if _stalled(run)),
        above_bigram=bool(finished) and float(np.mean([_above(run) for run in finished])) > 0,
        still_falling=bool(falls) and float(np.mean(falls)) > STEEP,
    )


def _above(run):
    """Bits by which a run ends above the bigram entropy of its text; -inf where there is none."""
    entropy = run["facts"].get("bigram_entropy")
    if entropy is None or str(run["data"]).startswith("synthetic:"):
        return -np.inf
    return run["bits"] - entropy


def _fifth(run, number):
    """The mean training loss over one fifth of a run, counted from 0; None of a short run."""
    losses = run["train_loss"]
    if len(losses) < _LEAST_STEPS:
        return None
    return float(np.mean(np.array_split(losses, 5)[number]))


def _last_fall(run):
    """The part of the training loss that the last fifth of a run took off."""
    before, end = _fifth(run, 3), _fifth(run, 4)
    return None if end is None else (before - end) / before


def _stalled(run):
    ends = _middle_and_end(run)
    return ends is not None and _above(run) > 0 and 1 - ends[1] / ends[0] < FLAT


def _middle_and_end(run):
    """The held-out bits of a run at its middle and its end; of one that was evaluated too seldom
    the training loss, which batches move more; None of a short run without either."""
    points = run["held_out"]  # the last one at the end
    before = [bits for step, bits, *_ in points if 0.25 <= step / points[-1][0] <= 0.5]
    if before:
        return before[-1], run["bits"]
    middle, end = _fifth(run, 2), _fifth(run, 4)
    return None if end is None else (middle, end)
