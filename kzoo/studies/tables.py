"""What arms cost, beside what they reach: columns of `Results.table()`."""

import numpy as np
import pandas

_SUMS = ("steps", "tokens_seen", "tokens_scored", "flops")  # of a run; older records lack some


def costs(records):
    """What each arm takes, one row per group and arm, in the order of the records.

    Args:
        records: list of dicts, the lines of a study's `results.jsonl`.

    Returns:
        A `pandas.DataFrame` with the columns `group`, `arm`, `learning_rate`, `batch_size`,
        `steps`, `tokens_seen` and `tokens_scored` (of training, without padding), `flops`, each
        the mean over the finished runs and NaN where no record tells it; and one for each metric
        that was measured.

    Example:
        >>> costs(results.records)[["arm", "steps", "flops"]]
    """
    rows = []
    for group, arm in dict.fromkeys((record["group"], record["arm"]) for record in records):
        runs = [r for r in records if (r["group"], r["arm"]) == (group, arm)]
        finished = [run for run in runs if run["status"] == "finished"]
        row = {"group": group, "arm": arm}
        row |= {name: runs[0].get(name) for name in ("learning_rate", "batch_size")}
        row |= {name: _mean([run.get(name) for run in finished]) for name in _SUMS}
        metrics = dict.fromkeys(name for run in finished for name in run.get("metrics", {}))
        for name in metrics:
            row[name] = _mean([run.get("metrics", {}).get(name) for run in finished])
        rows.append(row)
    columns = ["group", "arm", "learning_rate", "batch_size", *_SUMS]
    more = dict.fromkeys(name for row in rows for name in row if name not in columns)
    return pandas.DataFrame(rows, columns=[*columns, *more])


def _mean(values):
    numbers = [value for value in values if isinstance(value, int | float)]
    return float(np.mean(numbers)) if numbers and len(numbers) == len(values) else float("nan")
