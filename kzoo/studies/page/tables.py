"""The tables of a study, as data frames: the page shows them, and CSV files hold them."""

import math
from typing import Any

import numpy as np
import pandas

from kzoo.studies.metrics import about
from kzoo.studies.page import labels
from kzoo.studies.tuning import losses_by_rate
from kzoo.values import is_number

_OF_AN_ARM = ("group", "measure", "arm", "mask", "mechanism", "objective", "parameters")
_OF_A_VERDICT = (
    *("outcome", "estimate", "low", "high", "level", "pairs", "spread", "p"),
    *("p_sign_flip", "p_equivalence", "pairs_needed", "post_hoc"),
)
_COSTS = (
    *("parameters", "learning_rate", "batch_size", "steps", "tokens_seen", "tokens_scored"),
    *("flops", "seconds", "scored_tokens"),
)
# Of a run's record as they are; what later records add in numbers follows.
_OF_A_RUN = (
    *("run", "data", "group", "measure", "arm", "seed", "status", "bits", "steps"),
    *("parameters", "scored_tokens", "seconds", "tokens_per_second", "learning_rate"),
    "batch_size",
)


def table(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """The results, one row per group and arm.

    Rows stand in the order of the records, group by group, and are not sorted by score: only
    rows of one group measure the same thing in the same place.

    Args:
        records: list of dicts, the lines of a study's `results.jsonl`.

    Returns:
        A `pandas.DataFrame` with the columns `group` (a path in it is named by its last part),
        `measure`, `arm`, `mask`, `mechanism`, `objective`, `parameters`, `finished` and `nan`
        (numbers of runs), `mean`, `min` and `max` (held-out bits over the finished seeds),
        `seed 0`, `seed 1`, … (of each seed; NaN without a finished run) and `seconds` (of
        training, mean over the runs).

    Example:
        >>> table(results.records)[["arm", "mean", "min", "max"]]
    """
    seeds = sorted({record["seed"] for record in records})
    short = labels.shortener(record["data"] for record in records)
    rows = []
    for group, in_group in labels.by(records, "group").items():
        for arm, runs in labels.by(in_group, "arm").items():
            config = runs[0]["config"]
            bits = {run["seed"]: run["bits"] for run in runs if run["status"] == "finished"}
            values = list(bits.values()) or [math.nan]
            rows.append(
                {
                    "group": short(group),
                    "measure": runs[0]["measure"],
                    "arm": arm,
                    "mask": labels.mask(config),
                    "mechanism": labels.mechanism(config),
                    "objective": labels.spec(config["objective"]),
                    "parameters": runs[0]["parameters"],
                    "finished": len(bits),
                    "nan": sum(run["status"] == "nan" for run in runs),
                    "mean": float(np.mean(values)),
                    "min": min(values),
                    "max": max(values),
                    **{f"seed {seed}": bits.get(seed, math.nan) for seed in seeds},
                    "seconds": float(np.mean([run["seconds"] for run in runs])),
                }
            )
    columns = [*_OF_AN_ARM, "finished", "nan", "mean", "min", "max"]
    columns += [*(f"seed {seed}" for seed in seeds), "seconds"]
    return pandas.DataFrame(rows, columns=columns)


def runs(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """One row per run: what its record says in single values, metrics included.

    Example:
        >>> runs(results.records)[["arm", "seed", "bits"]]
    """
    columns, rows = list(_OF_A_RUN), []
    for record in records:
        values = {**record, **record.get("metrics", {})}
        columns += [name for name, value in values.items() if is_number(value)]
        rows.append(values)
    return pandas.DataFrame(rows, columns=list(dict.fromkeys(columns)))


def points(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """One row per recorded point of a curve.

    Returns:
        A `pandas.DataFrame` with the columns `run`, `arm`, `data`, `seed`, `step`, `curve`
        (`"training"`, nats per scored token, or `"held-out"`, in the measure of the group) and
        `value`.
    """
    rows = []
    for record in records:
        of = [record[name] for name in ("run", "arm", "data", "seed")]
        rows += [(*of, step, "training", x) for step, x in enumerate(record["train_loss"], 1)]
        rows += [(*of, step, "held-out", x) for step, x in record["held_out"]]
    columns = ["run", "arm", "data", "seed", "step", "curve", "value"]
    return pandas.DataFrame(rows, columns=columns)


def verdicts(drawn: list[Any]) -> pandas.DataFrame:
    """One row per `Verdict`; ends of intervals of ratios are logarithms, as in `verdicts.json`."""
    rows = [
        {
            "hypothesis": verdict.hypothesis.name,
            "question": verdict.hypothesis.question,
            "kind": verdict.hypothesis.kind,
            "metric": about(verdict.hypothesis.metric),
            "scale": verdict.hypothesis.scale,
            "margin": verdict.hypothesis.margin,
            **{name: getattr(verdict, name) for name in _OF_A_VERDICT},
            "text": str(verdict),
        }
        for verdict in drawn
    ]
    columns = ["hypothesis", "question", "kind", "metric", "scale", "margin", *_OF_A_VERDICT]
    return pandas.DataFrame(rows, columns=[*columns, "text"])


def rates(records: list[dict[str, Any]], tuned: list[dict[str, Any]]) -> pandas.DataFrame:
    """One row per arm and learning rate that a tuning tried.

    Args:
        records: of the study's runs, which name the rate that was chosen.
        tuned: the records of `tuning.jsonl`.

    Returns:
        A `pandas.DataFrame` with the columns `data`, `group`, `measure`, `arm`, `learning_rate`,
        `mean` and `standard_error` (of the final held-out bits over the seeds of tuning; inf
        where a run diverged) and `chosen`.
    """
    chosen = {(run["data"], run["arm"]): run.get("learning_rate") for run in records}
    of = {(run["data"], run["arm"]): (run["group"], run["measure"]) for run in tuned}
    rows = [
        (data, *of[data, arm], arm, rate, *loss, chosen.get((data, arm)) == rate)
        for (data, arm), losses in losses_by_rate(tuned).items()
        for rate, loss in losses.items()
    ]
    columns = ["data", "group", "measure", "arm", "learning_rate", "mean", "standard_error"]
    return pandas.DataFrame(rows, columns=[*columns, "chosen"])


def spectra(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """One row per source, arm and head: the figures of its spectrum, means over the seeds."""
    rows = []
    finished = [run for run in records if run.get("spectrum")]
    for data, of_data in labels.by(finished, "data").items():
        for arm, of_arm in labels.by(of_data, "arm").items():
            for heads in zip(*(run["spectrum"] for run in of_arm), strict=False):
                figures = {
                    name: float(np.mean([head[name] for head in heads]))
                    for name, value in heads[0].items()
                    if isinstance(value, float)
                }
                place = {"data": data, "arm": arm, "layer": labels.layer(heads[0])}
                rows.append({**place, **{"head": heads[0]["head"], "mask": heads[0]["mask"]}})
                rows[-1] |= figures
    return pandas.DataFrame(rows)


def costs(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """What each arm takes, one row per group and arm, in the order of the records.

    Args:
        records: list of dicts, the lines of a study's `results.jsonl`.

    Returns:
        A `pandas.DataFrame` with the columns `group` (as in `table`), `arm`, `parameters`,
        `learning_rate`, `batch_size`, `steps`, `tokens_seen` and `tokens_scored` (of training,
        without padding), `flops`, `seconds`, and `scored_tokens` (of the held-out set), each the
        mean over the finished runs and NaN where no record tells it; and one for each metric that
        was measured.

    Example:
        >>> costs(results.records)[["arm", "steps", "flops"]]
    """
    short, rows = labels.shortener(record["data"] for record in records), []
    for group, in_group in labels.by(records, "group").items():
        for arm, runs in labels.by(in_group, "arm").items():
            finished = [run for run in runs if run["status"] == "finished"]
            row = {"group": short(group), "arm": arm}
            row |= {name: _mean([run.get(name) for run in finished]) for name in _COSTS}
            row |= {name: _mean([runs[0].get(name)]) for name in ("learning_rate", "batch_size")}
            for name in dict.fromkeys(name for run in finished for name in run.get("metrics", {})):
                row[name] = _mean([run.get("metrics", {}).get(name) for run in finished])
            rows.append(row)
    columns = dict.fromkeys(["group", "arm", *_COSTS, *(name for row in rows for name in row)])
    return pandas.DataFrame(rows, columns=list(columns))


def _mean(values):
    numbers = [value for value in values if is_number(value)]
    return float(np.mean(numbers)) if numbers and len(numbers) == len(values) else math.nan
