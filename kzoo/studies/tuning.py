"""Training fields that a study chooses for its arms, on seeds that its verdicts do not use.

Every arm is run at every point of its grid: a rate, and a value of each other field that is tuned.
Arms on one source share a point where one lies within a standard error of the best of each, since
picking the best of noisy means for each alone would make even identical arms differ; where there is
none, each takes its own best.
"""

import dataclasses
import itertools

import numpy as np

from kzoo.studies.fields import TRAINING

WIDENINGS = 2  # of a grid, at most
FIELD = "learning_rate"  # the field whose grid is widened


@dataclasses.dataclass(frozen=True)
class Choice:
    """The training fields of an arm on one source.

    Attributes:
        fields: that were chosen, a dict.
        grids: field -> the values that were tried.
        seeds: on how many seeds.
        widened: how many times the grid of rates was widened to have the best rates inside.
        edges: the fields whose value, a number, is still at the edge of its grid.
        shared: whether all arms on that source have these values.
        reused: of runs that were made before and come from a file, a dict of the file's name, of
            their `processors`, and of what their text follows where it is not the study's; empty
            where all were made for the study.
    """

    fields: dict
    grids: dict
    seeds: int
    widened: int
    edges: tuple
    shared: bool
    reused: dict = dataclasses.field(default_factory=dict)

    def to_dict(self):
        """JSON of the choice, for the records that use it.

        The rate has fields of its own; what else was tuned stands in `others`.
        """
        found = {
            "rate": self.fields.get(FIELD),
            "grid": list(self.grids.get(FIELD, ())),
            "seeds": self.seeds,
            "widened": self.widened,
            "at_edge": FIELD in self.edges,
            "shared": self.shared,
        }
        others = {
            field: {"value": value, "grid": list(self.grids[field]), "at_edge": field in self.edges}
            for field, value in self.fields.items()
            if field != FIELD
        }
        found |= {"others": others} if others else {}
        return found | ({"reused": self.reused} if self.reused else {})


def asked(study, records):
    """The runs that the tuning of a study takes, as a study: an arm for each point of an arm.

    Args:
        study: a `Study` with a tuning.
        records: of its tuning runs so far; grids whose best rates lie at an edge are widened.

    Returns:
        A `Study` whose arms are labelled as `label_at` says.
    """
    grids, arms = _grids(study, records), {}
    for label, arm in study.arms.items():
        of_sources = {source: _points(grids[source, label][0]) for source in arm.data}
        for point in sorted(set().union(*of_sources.values()), key=_in_order):
            sources = tuple(source for source in arm.data if point in of_sources[source])
            at_point = dataclasses.replace(
                arm, data=sources, chosen={source: dict(point) for source in sources}
            )
            arms[label_at(label, point)] = at_point
    protocol = {"hypotheses": (), "looks": (), "tuning": None, "excluded": {}, "metrics": ()}
    protocol |= {"examples": False}
    return dataclasses.replace(study, arms=arms, seeds=study.tuning.seeds, **protocol)


def label_at(label, point):
    """The label of an arm at a point.

    Example:
        >>> label_at("GPT", (("learning_rate", 0.01), ("batch_size", 8)))
        'GPT at 0.01, batch_size 8'
    """
    said = [repr(value) if field == FIELD else f"{field} {value}" for field, value in point]
    return f"{label} at {', '.join(said)}"


def as_record(record):
    """The record of a run of `asked`, under the label of its arm."""
    return {**record, "arm": record["arm"].rpartition(" at ")[0], "tuning": True}


def choices(study, records):
    """What the tuning chose.

    Args:
        study: a `Study` with a tuning.
        records: of all of its tuning runs.

    Returns:
        A dict of `Choice` by (source, label).
    """
    grids, found = _grids(study, records), {}
    for source in study.data:
        labels = [label for label, arm in study.arms.items() if source in arm.data]
        losses, of_source = {}, {}
        for label in labels:
            grid = of_source[label] = grids[source, label][0]
            points = set(_points(grid))
            of_arm = _losses(records, source, label, tuple(grid))
            losses[label] = {point: loss for point, loss in of_arm.items() if point in points}
        shared = _shared(losses, of_source)
        for label in labels:
            grid, widened = grids[source, label]
            point = dict(_best(losses[label]) if shared is None else shared)
            edges, seeds = tuple(_edges(point, grid)), len(study.tuning.seeds)
            found[source, label] = Choice(
                *(point, grid, seeds, widened, edges, shared is not None),
                reused=_reused(records, source, label),
            )
    return found


def _reused(records, source, label):
    """The file of runs that were made before, and where they were made."""
    runs = [
        record
        for record in records
        if (record["data"], record["arm"]) == (source, label) and "reused_from" in record
    ]
    if not runs:
        return {}
    origins = [run["provenance"].get("processor") or run["provenance"]["platform"] for run in runs]
    return {"from": runs[0]["reused_from"], "processors": sorted(set(origins))}


def with_choices(study, chosen):
    """The study whose arms have the training fields of `choices`."""
    arms = {
        label: dataclasses.replace(
            arm, chosen={source: chosen[source, label].fields for source in arm.data}
        )
        for label, arm in study.arms.items()
    }
    return dataclasses.replace(study, arms=arms)


def losses_by_rate(records):
    """(source, arm) -> {rate: (mean, standard error)} of tuning records, for the page.

    Both are inf at a rate at which a run diverged. Where other fields are tuned as well, they are
    those of the rate's least loss.
    """
    found = {}
    for source, arm in dict.fromkeys((record["data"], record["arm"]) for record in records):
        of_arm = _losses(records, source, arm, tuple(TRAINING))
        rates = {}
        for point, loss in of_arm.items():
            rate = dict(point)[FIELD]
            rates[rate] = min(rates.get(rate, loss), loss)
        found[source, arm] = dict(sorted(rates.items()))
    return found


def _losses(records, source, label, fields):
    """Point -> (mean, standard error) of the final held-out bits; inf where a run diverged.

    A point is a tuple of (field, value), of these fields.
    """
    runs = {}
    for record in records:
        if (record["data"], record["arm"]) == (source, label):
            finished = record["status"] == "finished"
            point = _point(record, fields)
            runs.setdefault(point, []).append(record["bits"] if finished else np.inf)
    found = {}
    for point, bits in sorted(runs.items(), key=lambda item: _in_order(item[0])):
        if np.isinf(bits).any():
            found[point] = (float("inf"), float("inf"))
        else:
            error = np.std(bits, ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else np.inf
            found[point] = (float(np.mean(bits)), float(error))
    return found


def trained_with(record):
    """The training fields of a record, those of older ones filled in: a dict."""
    older = {name: record[name] for name in (FIELD, "batch_size") if name in record}
    return {**TRAINING, **older, **record.get("training", {})}


def _point(record, fields):
    trained = trained_with(record)
    return tuple((field, trained[field]) for field in fields)


def _in_order(point):
    """By numbers, and names as they stand."""
    return [(field, isinstance(value, str), value) for field, value in point]


def _best(losses):
    return min(losses, key=lambda point: losses[point][0])  # the first of equals


def _shared(losses, grids):
    """The point that lies within one standard error of each arm's best; None if there is none."""
    best = {label: _best(of_arm) for label, of_arm in losses.items()}
    common = set.intersection(*(set(of_arm) for of_arm in losses.values()))
    fit = []
    for point in sorted(common, key=_in_order):
        excess = [losses[label][point][0] - losses[label][best[label]][0] for label in losses]
        near = [losses[label][best[label]][1] for label in losses]
        # An arm that diverged at every point has no best: inf − inf, which compares as false.
        if all(more <= error for more, error in zip(excess, near, strict=True)):
            at_edge = any(FIELD in _edges(dict(point), grid) for grid in grids.values())
            fit.append((at_edge, sum(excess), point))
    return min(fit, key=lambda each: (*each[:2], _in_order(each[2])))[-1] if fit else None


# Grids ----------------------------------------------------------------------------------------


def _points(grid):
    """All points of a grid, each a tuple of (field, value)."""
    return [tuple(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _edges(point, grid):
    """The fields of a point whose value is the least or greatest number of its grid."""
    return [
        field
        for field, values in grid.items()
        if not isinstance(values[0], str) and point[field] in (values[0], values[-1])
    ]


def _grids(study, records):
    """(source, label) -> (grid, how often widened), as far as the records tell.

    Arms of one grid are widened together, so that all of them are tried at the same rates.
    """
    together = {}
    for source in study.data:
        for label, arm in study.arms.items():
            if source in arm.data:
                grid = tuple(study.tuning.of(label).items())
                together.setdefault((source, grid), []).append(label)
    found = {}
    for (source, grid), labels in together.items():
        wide = _widened(study, records, source, dict(grid), labels)
        found |= {(source, label): wide for label in labels}
    return found


def _widened(study, records, source, grid, labels):
    runs = {
        (record["arm"], _point(record, tuple(grid)), record["seed"])
        for record in records
        if record["data"] == source
    }
    for times in range(WIDENINGS if FIELD in grid else 0):
        points = _points(grid)
        needed = {
            (label, point, seed)
            for label in labels
            for point in points
            for seed in study.tuning.seeds
        }
        if not needed <= runs:
            return grid, times
        best = set()
        for label in labels:
            losses = _losses(records, source, label, tuple(grid))
            best.add(dict(_best({point: losses[point] for point in points}))[FIELD])
        rates = grid[FIELD]
        low = (_beyond(rates[0], rates[1]),) if rates[0] in best else ()
        high = (_beyond(rates[-1], rates[-2]),) if rates[-1] in best else ()
        if not low and not high:
            return grid, times
        grid = {**grid, FIELD: low + rates + high}
    return grid, WIDENINGS if FIELD in grid else 0


def _beyond(edge, inner):
    """The next rate of a geometric grid, in two digits and by a factor of ten at most."""
    return float(f"{edge * min(max(edge / inner, 0.1), 10):.2g}")
