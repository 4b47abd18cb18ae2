"""The protocol of a study: what is settled before anything runs, so that its verdicts hold.

Hypotheses, the seeds that decide them and the looks at which they may, how learning rates are
chosen and on which other seeds, and what the arms have in equal amounts.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from kzoo.errors import InputError, unknown
from kzoo.studies.hypotheses import LEAST_PAIRS, check_looks, hypotheses
from kzoo.studies.metrics import METRICS
from kzoo.values import shown

# What arms can have the same amount of, in words.
BUDGETS = {"steps": "steps", "scored_tokens": "scored tokens", "flops": "FLOPs"}
FAILED_RUNS = ("undecided", "left out")
# What arms have at step 0; a hypothesis may name these in `differ_in` beside fields.
AT_STEP_0 = ("variables", "shapes", "initial_values", "batches", "scored_tokens")
_APART = ("seed", "config_version")  # fields of a config in which no arms are compared


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How the training fields of each arm are chosen.

    Attributes:
        seeds: on which, none of them among those that decide.
        grid: training field -> its values, two or more; numbers increase.
        arms: label -> the grid of that arm, where it has one of its own.
        records: a file of tuning runs that were made before, "" for none. It stands beside the
            study's file, or among those that come with kzoo. What it holds of this study's runs,
            to the last field and byte of data, is not run again.
        folder: where the study's file stands; not of its JSON.
    """

    seeds: tuple
    grid: dict
    arms: dict = dataclasses.field(default_factory=dict)
    records: str = ""
    folder: str = dataclasses.field(default=".", compare=False)

    def of(self, label):
        """The grid of an arm: training field -> values."""
        return self.arms.get(label, self.grid)

    def to_dict(self):
        """JSON of the tuning."""
        fields = {"seeds": list(self.seeds), "grid": _lists(self.grid)}
        if self.arms:
            fields["arms"] = {label: _lists(grid) for label, grid in self.arms.items()}
        if self.records:
            fields["records"] = self.records
        return fields

    def records_file(self):
        """The `Path` of the file of records; `InputError` where there is none."""
        places = [Path(self.folder), Path(__file__).parent]
        for place in places:
            if (place / self.records).is_file():
                return place / self.records
        raise InputError(
            "the records of a tuning are a file beside the study's, or one of kzoo's own. "
            f"Received: {self.records!r}"
        )


def _lists(grid):
    return {field: list(values) for field, values in grid.items()}


# Fields ---------------------------------------------------------------------------------------


def tuning(value, labels, checks):
    """The tuning of a study from its JSON.

    Args:
        value: `{"seeds": [...], "grid": {"learning_rate": [...]}, "arms": {label: grid},
            "records": file}`.
        labels: of the study's arms.
        checks: training field -> function `(name, value)` that returns a valid value or raises
            `InputError`; `"seeds"` among them.

    Raises:
        InputError: for unknown fields or arms, missing seeds or grid, values that a check refuses,
            and a grid with fewer than two values of a field.

    Example:
        >>> spec = {"seeds": [7, 8], "grid": {"learning_rate": [0.003, 0.01]}}
        >>> take = lambda name, value: value
        >>> tuning(spec, ["GPT"], {"seeds": take, "learning_rate": take}).of("GPT")
        {'learning_rate': (0.003, 0.01)}
    """
    fields = [field.name for field in dataclasses.fields(Tuning) if field.compare]
    if not isinstance(value, Mapping):
        raise InputError(
            f"tuning is a JSON object of {', '.join(fields)}. Received: {shown(value)}"
        )
    for field in value:
        if field not in fields:
            raise unknown("field of tuning", field, fields)
    for field in ("seeds", "grid"):
        if field not in value:
            raise InputError(f"tuning needs the field {field!r}. Received: {shown(sorted(value))}")
    seeds = checks["seeds"]("seeds of tuning", value["seeds"])
    tuned = {field: check for field, check in checks.items() if field != "seeds"}
    own = value.get("arms", {})
    if not isinstance(own, Mapping):
        raise InputError(f"arms of tuning are a JSON object of labels. Received: {shown(own)}")
    for label in own:
        if label not in labels:
            raise unknown("arm of tuning", label, labels)
    arms = {label: _grid(f"the tuning grid of {label!r}", g, tuned) for label, g in own.items()}
    records = value.get("records", "")
    if not isinstance(records, str) or not records.isprintable():
        raise InputError(f"records of tuning is the name of a file. Received: {shown(records)}")
    return Tuning(tuple(seeds), _grid("the tuning grid", value["grid"], tuned), arms, records)


def _grid(name, grid, checks):
    if not isinstance(grid, Mapping) or not grid:
        raise InputError(
            f"{name} is a JSON object of training fields and lists of their values, such as "
            f"{{'learning_rate': [0.003, 0.01, 0.03]}}. Received: {shown(grid)}"
        )
    taken = {}
    for field, values in grid.items():
        if field not in checks:
            raise unknown(f"field of {name}", field, checks)
        several = isinstance(values, list | tuple) and len(values) >= 2
        if not several:
            raise InputError(
                f"{name} has a list of two values of {field} or more; with one there is nothing to "
                f"choose. Received: {shown(values)}"
            )
        taken[field] = tuple(checks[field](f"{field} of {name}", value) for value in values)
        words = all(isinstance(value, str) for value in taken[field])
        numbers = sorted(v for v in taken[field] if v is not None and not words)
        in_order = taken[field] if words else tuple(numbers)
        if taken[field] != in_order or len(set(values)) < len(values):
            kind = "distinct" if words else "increasing"
            raise InputError(f"{name} has {kind} values of {field}. Received: {shown(values)}")
    return taken


def budget(field, value):
    """What every arm has the same amount of: one of `BUDGETS`."""
    if isinstance(value, str) and value in BUDGETS:
        return value
    raise unknown(field, value, BUDGETS)


def failed_runs(field, value):
    """What becomes of a hypothesis some of whose runs failed: one of `FAILED_RUNS`."""
    if isinstance(value, str) and value in FAILED_RUNS:
        return value
    raise unknown(field, value, FAILED_RUNS)


def looks(field, value):
    """The numbers of seeds at which verdicts are drawn: a tuple, increasing, at least 5."""
    check_looks(value)
    return tuple(value)


def metrics(field, value):
    """Metrics that are measured: a tuple of their JSON."""
    if not isinstance(value, list | tuple) or not value:
        raise InputError(f"{field} are a list, such as ['accuracy']. Received: {shown(value)}")
    return tuple(METRICS.get(spec).get_config() for spec in value)


# The whole ------------------------------------------------------------------------------------


def settled(specs, arms, configs, group):
    """The hypotheses of a study, each with its source, checked against the arms' configs.

    Args:
        specs: JSON of the hypotheses.
        arms: label -> arm, with its sources in `arm.data`.
        configs: label -> complete config of the arm, with its training fields.
        group: function `(config, source)` of the group within which arms' bits compare.

    Returns:
        A tuple of `Hypothesis`.

    Raises:
        InputError: if one is no hypothesis of these arms, its arms share no source or several, its
            bits do not compare, or its arms differ in other config fields than it declares.
    """
    found = []
    for hypothesis in hypotheses(specs, tuple(arms)):
        shared = [
            source
            for source in arms[hypothesis.labels[0]].data
            if all(source in arms[label].data for label in hypothesis.labels)
        ]
        name = f"the hypothesis {hypothesis.name!r}"
        if hypothesis.data and hypothesis.data not in shared:
            raise unknown(f"data of {name}, which all of its arms have", hypothesis.data, shared)
        if not hypothesis.data and len(shared) != 1:
            raise InputError(
                f"{name} names the data on which all of its arms are compared. "
                f"Received: no data, where the arms share {shared}"
            )
        hypothesis = dataclasses.replace(hypothesis, data=hypothesis.data or shared[0])
        _check_differences(hypothesis, configs)
        metric = _metric(hypothesis)
        hypothesis = dataclasses.replace(hypothesis, metric=metric.get_config())
        if metric.of_predictions:
            _check_groups(hypothesis, lambda label, h=hypothesis: group(configs[label], h.data))
        found.append(hypothesis)
    return tuple(found)


def _metric(hypothesis):
    """The `Metric` of a hypothesis."""
    try:
        return METRICS.get(hypothesis.metric)
    except InputError as error:
        raise InputError(f"the hypothesis {hypothesis.name!r}: {error}") from None


def _check_evaluations(study):
    """`InputError` where a metric needs more held-out points than runs have."""
    for hypothesis in study.hypotheses:
        least = _metric(hypothesis).least_evaluations
        if study.evaluations < least:
            raise InputError(
                f"the metric of the hypothesis {hypothesis.name!r} needs {least} evaluations or "
                f"more. Received: evaluations={study.evaluations}"
            )


def _check_tuning(study):
    """`InputError` unless what is tuned is left open, on seeds that tell the spread."""
    if len(study.tuning.seeds) < 2:
        raise InputError(
            "tuning needs two seeds or more, to know the spread between them. "
            f"Received: {list(study.tuning.seeds)}"
        )
    both = sorted(set(study.tuning.seeds) & set(study.seeds))
    if both:
        raise InputError(
            f"seeds of tuning are other ones than those that decide. Received in both: {both}"
        )
    for label, arm in study.arms.items():
        for field in study.tuning.of(label):
            if field in arm.training:
                raise InputError(
                    f"the arm {label!r} names its {field} or tunes it. "
                    f"Received: {field}={arm.training[field]!r} and tuning"
                )
            if field == "learning_rate" and study.learning_rate is not None:
                raise InputError(
                    "a study names a learning_rate or tunes it. "
                    f"Received: learning_rate={study.learning_rate} and tuning"
                )


def _check_excluded(study):
    programs = [(source, label) for source, label, _ in study.runs()]
    names = [f"{source}/{label}/{seed}" for source, label in programs for seed in study.seeds]
    for name in study.excluded:
        if name not in names:
            raise unknown("run in excluded", name, names)


def _check_differences(hypothesis, configs):
    valid = [field for field in configs[hypothesis.labels[0]] if field not in _APART]
    for field in hypothesis.differ_in:
        if field not in [*valid, *AT_STEP_0]:
            raise unknown(f"field of differ_in of {hypothesis.name!r}", field, valid)

    def differing(labels):
        first, *others = (configs[label] for label in labels)
        return [field for field in valid if any(c.get(field) != first[field] for c in others)]

    found = differing(hypothesis.labels)
    if set(found) != set(hypothesis.differ_in) - set(AT_STEP_0):
        raise InputError(
            f"the arms of the hypothesis {hypothesis.name!r} differ in {found}, so that its "
            f"differ_in must be {found}. Received: {list(hypothesis.differ_in)}"
        )
    within = {gap: differing(gap) for gap in hypothesis.gaps}
    if len(set(map(tuple, within.values()))) > 1:
        raise InputError(
            f"the gaps of the hypothesis {hypothesis.name!r} are of the same fields. "
            f"Received: {shown(within)}"
        )


def _check_groups(hypothesis, group):
    """Bits compare within a gap, and between gaps unless these are ratios."""
    sets = hypothesis.gaps if hypothesis.scale == "ratio" else (hypothesis.labels,)
    for labels in sets:
        groups = {label: group(label) for label in labels}
        if len(set(groups.values())) > 1:
            ratio = "; between gaps, the scale 'ratio' does" if hypothesis.gaps else ""
            raise InputError(
                f"the hypothesis {hypothesis.name!r} compares bits of the same predictions{ratio}. "
                f"Received: {shown(groups)}"
            )


def grown(saved, new):
    """A saved study as it would be, had it begun with what may be added to it later.

    Seeds may be added after those that are there, hypotheses beside them, looks that keep those
    that were taken, and runs that are excluded. What else differs makes another study.

    Args:
        saved, new: JSON of both.

    Returns:
        JSON of the saved study with the fields of the new one that only add to its own.
    """
    saved = dict(saved)
    held = saved.get("seeds") or []
    if new["seeds"][: len(held)] == held:
        saved["seeds"] = new["seeds"]
    for field in ("hypotheses", "looks"):
        added = new.get(field, [])
        if added and all(item in added for item in saved.get(field) or []):
            saved[field] = added
    excluded = new.get("excluded", {})
    saved.pop("excluded", None)
    return {**saved, "excluded": excluded} if excluded else saved


def check(study):
    """`InputError` unless the seeds, looks and tuning of a study allow its verdicts."""
    if study.tuning:
        _check_tuning(study)
    _check_excluded(study)
    _check_evaluations(study)
    if not study.hypotheses:
        if study.looks:
            raise InputError(
                f"looks are at hypotheses, and the study has none. Received: {list(study.looks)}"
            )
        return
    if len(study.seeds) < LEAST_PAIRS:
        raise InputError(
            f"a verdict needs at least {LEAST_PAIRS} seeds. Received: {list(study.seeds)}"
        )
    if study.looks and study.looks[-1] != len(study.seeds):
        raise InputError(
            f"the last look is at all {len(study.seeds)} seeds. Received: {list(study.looks)}"
        )
