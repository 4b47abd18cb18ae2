"""What a study will do, before it does: its runs, its minutes, and what its seeds can detect."""

import dataclasses

import numpy as np

from kzoo.studies import amounts, prediction, retuning
from kzoo.studies.fields import TRAINING
from kzoo.studies.folder import as_begun, finished_runs
from kzoo.studies.metrics import METRICS
from kzoo.studies.sentences import percent
from kzoo.studies.statistics import ALPHA, POWER, contrast, detectable, look_levels
from kzoo.studies.tuning import trained_with


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan` found; `str` of it says the most of it.

    Attributes:
        prediction: a `kzoo.studies.prediction.Prediction`.
        tuning_runs: how many of its runs are the tuning's; grids that are widened add to them.
        arms: what each arm costs, of `kzoo.studies.amounts.planned`.
        effects: name of each hypothesis -> a dict of `effect`, what its seeds detect with a power
            of 0.8 (in units of the spread where `spread` is None), `level` of its interval and
            `seeds`.
    """

    prediction: prediction.Prediction
    tuning_runs: int
    arms: list
    effects: dict

    def __str__(self):
        lines = [str(self.prediction)]
        if self.tuning_runs:
            lines.append(
                f"{self.tuning_runs} of the runs choose training fields; a grid that is widened "
                "adds to them"
            )
        for name, effect in self.effects.items():
            of_spread = effect["spread"] is None
            unit = "times the standard deviation between seeds" if of_spread else effect["unit"]
            lines.append(
                f"{name}: {effect['seeds']} paired seeds see {effect['effect']:.3g} {unit} with a "
                f"power of {POWER:g} ({percent(effect['level'])} interval)"
            )
        return "\n".join(lines)

    def to_dict(self):
        """JSON of the plan."""
        found = self.prediction
        return {
            "minutes": found.minutes,
            "runs": found.runs,
            "tuning_runs": self.tuning_runs,
            "arms": self.arms,
            "effects": self.effects,
        }


def plan(study, directory=None):
    """What a study will do. It measures some steps of each arm, and runs and writes nothing.

    Args:
        study: a `Study`.
        directory: of its folder; what is finished there is left out, and tells the spread between
            seeds, as do tuning runs.

    Returns:
        A `Plan`, to be printed.

    Raises:
        InputError: as `kzoo.studies.run`.
    """
    predicted = prediction.predict(study, directory)
    if directory is not None:
        study = as_begun(study, directory)
    tuned = sum(len(seeds) for *_, seeds in prediction.jobs_of(study, directory)[0])
    records = _records(study, directory)
    effects = {h.name: _effect(h, study, records) for h in study.hypotheses}
    arms = amounts.planned(amounts.with_steps(study, study))
    return Plan(predicted, tuned, arms, effects)


def _records(study, directory):
    """Runs that tell the spread between seeds: finished ones, or else the tuning's."""
    finished = list(finished_runs(directory).values()) if directory is not None else []
    if finished or not study.tuning:
        return finished
    _, own, others = retuning.known(study, directory)
    return list({**own, **others}.values())


def _effect(hypothesis, study, records):
    """What the seeds of a study detect of a hypothesis: a dict, as `Plan` says."""
    family = sum(other.question == hypothesis.question for other in study.hypotheses)
    level = (look_levels(study.looks)[-1] if study.looks else ALPHA) / family
    known = spread(hypothesis, records)
    seeds = len(study.seeds)
    effect = detectable(seeds, 1.0 if known is None else known, level)
    unit = METRICS.get(hypothesis.metric).unit
    unit = f"in the logarithm of {unit}" if hypothesis.scale == "ratio" else unit
    return {"effect": effect, "spread": known, "level": level, "seeds": seeds, "unit": unit}


def spread(hypothesis, records):
    """The standard deviation of a hypothesis's contrast between seeds, by runs that are there.

    It is pooled over the training fields with which all of its arms ran on two seeds or more.

    Returns:
        A number in the metric's unit; None where no two seeds tell it.
    """
    metric, values = METRICS.get(hypothesis.metric), {}
    for record in records:
        value = metric.value(record) if record["status"] == "finished" else None
        if record["data"] == hypothesis.data and value is not None:
            trained = trained_with(record)
            point = tuple(trained[field] for field in TRAINING)
            values.setdefault(point, {}).setdefault(record["arm"], {})[record["seed"]] = value
    squares, freedom = 0.0, 0
    for of_arms in values.values():
        runs = [of_arms.get(label, {}) for label in hypothesis.labels]
        seeds = sorted(set.intersection(*map(set, runs)))
        if len(seeds) > 1:
            by_arm = {
                label: [run[seed] for seed in seeds]
                for label, run in zip(hypothesis.labels, runs, strict=True)
            }
            contrasts = contrast(hypothesis.weights, by_arm, hypothesis.scale)
            squares += float(((contrasts - contrasts.mean()) ** 2).sum())
            freedom += len(seeds) - 1
    return float(np.sqrt(squares / freedom)) if freedom else None
