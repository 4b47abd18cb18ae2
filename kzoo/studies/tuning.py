"""Learning rates that a study chooses for its arms, on seeds that its verdicts do not use.

Every arm is run at every rate of its grid. Arms on one source share a rate where one lies within a
standard error of the best of each, since picking the best of noisy means for each alone would make
even identical arms differ; where there is none, each takes its own best.
"""

import dataclasses

import numpy as np

WIDENINGS = 2  # of a grid, at most
FIELD = "learning_rate"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The rate of an arm on one source.

    Attributes:
        rate: that was chosen.
        grid: the rates that were tried, increasing.
        seeds: on how many seeds.
        widened: how many times the grid was widened to have the best rates inside.
        at_edge: whether the rate is still at the edge of its grid.
        shared: whether all arms on that source have this rate.
    """

    rate: float
    grid: tuple
    seeds: int
    widened: int
    at_edge: bool
    shared: bool

    def to_dict(self):
        """JSON of the choice, for the records that use it."""
        return {**dataclasses.asdict(self), "grid": list(self.grid)}


def asked(study, records):
    """The runs that the tuning of a study takes, as a study: an arm for each rate of an arm.

    Args:
        study: a `Study` with a tuning.
        records: of its tuning runs so far; grids whose best rates lie at an edge are widened.

    Returns:
        A `Study` whose arms are labelled as `label_at` says.
    """
    grids, arms = _grids(study, records), {}
    for label, arm in study.arms.items():
        rates = sorted({rate for source in arm.data for rate in grids[source, label][0]})
        for rate in rates:
            sources = tuple(source for source in arm.data if rate in grids[source, label][0])
            at_rate = dataclasses.replace(
                arm, data=sources, rates={source: rate for source in sources}
            )
            arms[label_at(label, rate)] = at_rate
    return dataclasses.replace(
        study, arms=arms, seeds=study.tuning.seeds, hypotheses=(), looks=(), tuning=None
    )


def label_at(label, rate):
    """The label of an arm at a rate."""
    return f"{label} at {rate!r}"


def as_record(record):
    """The record of a run of `asked`, under the label of its arm."""
    return {**record, "arm": record["arm"].rpartition(" at ")[0], "tuning": True}


def choices(study, records):
    """The rates that the tuning chose.

    Args:
        study: a `Study` with a tuning.
        records: of all of its tuning runs.

    Returns:
        A dict of `Choice` by (source, label).
    """
    grids, found = _grids(study, records), {}
    for source in study.data:
        labels = [label for label, arm in study.arms.items() if source in arm.data]
        losses = {label: _losses(records, source, label) for label in labels}
        of_source = {label: grids[source, label][0] for label in labels}
        shared = _shared(losses, of_source)
        for label in labels:
            grid, widened = grids[source, label]
            rate = _best(losses[label]) if shared is None else shared
            edge, seeds = rate in (grid[0], grid[-1]), len(study.tuning.seeds)
            is_shared = shared is not None
            found[source, label] = Choice(rate, grid, seeds, widened, edge, is_shared)
    return found


def with_rates(study, chosen):
    """The study whose arms have the rates of `choices`."""
    arms = {
        label: dataclasses.replace(
            arm, rates={source: chosen[source, label].rate for source in arm.data}
        )
        for label, arm in study.arms.items()
    }
    return dataclasses.replace(study, arms=arms)


def losses_by_rate(records):
    """(source, arm) -> {rate: (mean, standard error)} of tuning records, for the page.

    Both are inf at a rate at which a run diverged.
    """
    programs = dict.fromkeys((record["data"], record["arm"]) for record in records)
    return {program: _losses(records, *program) for program in programs}


def _losses(records, source, label):
    """Rate -> (mean, standard error) of the final held-out bits; inf where a run diverged."""
    runs = {}
    for record in records:
        if (record["data"], record["arm"]) == (source, label):
            finished = record["status"] == "finished"
            runs.setdefault(record[FIELD], []).append(record["bits"] if finished else np.inf)
    found = {}
    for rate, bits in sorted(runs.items()):
        if np.isinf(bits).any():
            found[rate] = (float("inf"), float("inf"))
        else:
            error = np.std(bits, ddof=1) / np.sqrt(len(bits)) if len(bits) > 1 else np.inf
            found[rate] = (float(np.mean(bits)), float(error))
    return found


def _best(losses):
    return min(losses, key=lambda rate: losses[rate][0])  # the lowest of equals


def _shared(losses, grids):
    """The rate that lies within one standard error of each arm's best; None if there is none."""
    best = {label: _best(of_arm) for label, of_arm in losses.items()}
    common = set.intersection(*(set(of_arm) for of_arm in losses.values()))
    fit = []
    for rate in sorted(common):
        excess = [losses[label][rate][0] - losses[label][best[label]][0] for label in losses]
        near = [losses[label][best[label]][1] for label in losses]
        # An arm that diverged at every rate has no best: inf − inf, which compares as false.
        if all(more <= error for more, error in zip(excess, near, strict=True)):
            at_edge = any(rate in (grid[0], grid[-1]) for grid in grids.values())
            fit.append((at_edge, sum(excess), rate))
    return min(fit)[-1] if fit else None


# Grids ----------------------------------------------------------------------------------------


def _grids(study, records):
    """(source, label) -> (rates, how often widened), as far as the records tell.

    Arms of one grid are widened together, so that all of them are tried at the same rates.
    """
    together = {}
    for source in study.data:
        for label, arm in study.arms.items():
            if source in arm.data:
                grid = tuple(study.tuning.of(label)[FIELD])
                together.setdefault((source, grid), []).append(label)
    found = {}
    for (source, grid), labels in together.items():
        wide = _widened(study, records, source, grid, labels)
        found |= {(source, label): wide for label in labels}
    return found


def _widened(study, records, source, grid, labels):
    runs = {
        (record["arm"], record[FIELD], record["seed"])
        for record in records
        if record["data"] == source
    }
    for times in range(WIDENINGS):
        needed = {
            (label, rate, seed) for label in labels for rate in grid for seed in study.tuning.seeds
        }
        if not needed <= runs:
            return grid, times
        of_grid = [
            {rate: _losses(records, source, label)[rate] for rate in grid} for label in labels
        ]
        best = {_best(losses) for losses in of_grid}
        low = (_beyond(grid[0], grid[1]),) if grid[0] in best else ()
        high = (_beyond(grid[-1], grid[-2]),) if grid[-1] in best else ()
        if not low and not high:
            return grid, times
        grid = low + grid + high
    return grid, WIDENINGS


def _beyond(edge, inner):
    """The next rate of a geometric grid, in two digits."""
    return float(f"{edge * edge / inner:.2g}")
