"""The words of verdicts, all of them generated from the numbers."""

import dataclasses
import math
from collections.abc import Mapping

from kzoo.studies import metrics
from kzoo.studies.hypotheses import LEAST_PAIRS
from kzoo.studies.statistics import MOST_PAIRS, error_of_additions

CONFIRMED = "confirmed"
REFUTED = "refuted"
DIFFERENT_WITHIN = "different within margin"
EQUIVALENT = "equivalent"
UNDECIDED = "undecided"
OUTCOMES = (CONFIRMED, REFUTED, DIFFERENT_WITHIN, EQUIVALENT, UNDECIDED)


@dataclasses.dataclass(frozen=True)
class ArmFacts:
    """What a reader of a verdict should know of an arm.

    Attributes:
        rate: the learning rate that its runs used.
        grid: the rates from which it was chosen; () for one that was given: untuned.
        tuning_seeds: on how many seeds, which the verdict does not use.
        widened: how many times the grid was widened to have the best rate inside.
        at_edge: whether that rate is still at the edge of the grid.
        others: field -> what a tuning chose besides the rate: its `value`, `grid`, `at_edge`.
        reused: of tuning runs that were made before, the file they are `from` and their
            `processors`.
        diverged: seeds whose run diverged.
        stalled: seeds whose run stopped learning.
        without: seeds whose run finished and has no value of the metric.
        excluded: seed -> reason, of the runs that the study names as left out.
        excluded_afterwards: those of them whose results are there.
        above_bigram: whether its loss stays above the bigram entropy of the data.
        still_falling: whether its curves still fall steeply at the end.
    """

    rate: float | None = None
    grid: tuple = ()
    tuning_seeds: int = 0
    widened: int = 0
    at_edge: bool = False
    others: Mapping = dataclasses.field(default_factory=dict)
    reused: Mapping = dataclasses.field(default_factory=dict)
    diverged: tuple = ()
    stalled: tuple = ()
    without: tuple = ()
    excluded: Mapping = dataclasses.field(default_factory=dict)
    excluded_afterwards: tuple = ()
    above_bigram: bool = False
    still_falling: bool = False


# Numbers --------------------------------------------------------------------------------------


def number(value, decimals=3, *, plus=False):
    """A number as sentences show it, with a minus sign that is one.

    Example:
        >>> number(-0.0104), number(0.003, plus=True)
        ('−0.010', '+0.003')
    """
    text = f"{value:+.{decimals}f}" if plus else f"{value:.{decimals}f}"
    return text.replace("-", "−")


def percent(level):
    """The name of an interval of a level.

    Example:
        >>> percent(0.05), percent(0.05 / 3), percent(0.0001)
        ('95%', '98.33%', '99.99%')
    """
    decimals = max(0, 1 - math.floor(math.log10(level)) - 1)
    text = f"{100 * (1 - level):.{decimals}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def decimals_for(low, high, bounds):
    """How many decimals show an interval: two digits of its half-width, at least three.

    More where a rounded end would no longer lie on its side of a bound, such as 0 or the margin.
    """
    half = (high - low) / 2
    decimals = max(3, math.ceil(-math.log10(half)) + 1) if half > 0 else 3

    def agrees(decimals):
        return all(
            (end > bound) == (round(end, decimals) > bound)
            and (end < bound) == (round(end, decimals) < bound)
            for end in (low, high)
            for bound in bounds
        )

    while decimals < 12 and not agrees(decimals):
        decimals += 1
    return decimals


# The sentence -----------------------------------------------------------------------------


def sentence(verdict, setting="", facts=None):
    """The verdict in one sentence, without its full stop.

    Args:
        verdict: a `Verdict`.
        setting: where it holds, e.g. "on continuations, at 300 steps".
        facts: arm -> `ArmFacts`.
    """
    hypothesis = verdict.hypothesis
    about = subject(hypothesis)
    if setting.startswith("on "):
        about = f"{about} {setting}"
    elif setting:
        about = f"{about}, {setting}"
    if verdict.post_hoc:
        about = f"Post hoc: {about}"
    about = f"T{about[1:]}" if about.startswith("the gap of ") else about
    rates, others = rates_said(hypothesis, facts or {}), others_said(hypothesis, facts or {})
    inside = "; ".join(filter(None, [_interval(verdict), rates, *others]))
    return f"{about}: {_said(verdict)} ({inside})"


def subject(hypothesis):
    """What is compared.

    Example:
        >>> from kzoo.studies.hypotheses import Hypothesis
        >>> gaps = [["linear BERT", "BERT"], ["linear GPT", "GPT"]]
        >>> subject(Hypothesis("Q5", "interaction", gaps, sign="+"))
        'the gap of linear BERT to BERT against the gap of linear GPT to GPT'
    """
    parts = [
        f"the gap of {entry[0]} to {entry[1]}" if isinstance(entry, tuple) else entry
        for entry in hypothesis.arms
    ]
    if hypothesis.kind == "trend":
        about = f"{', '.join(parts[:-1])} and {parts[-1]} over {hypothesis.factor}"
    else:
        about = " against ".join(parts)
    if hypothesis.metric == "bits":
        return about
    return f"{about} in {metrics.about(hypothesis.metric)}"


def _unit(hypothesis):
    return metrics.unit(hypothesis.metric)


def margin_said(hypothesis):
    """The margin with its unit."""
    per = f" per unit of {hypothesis.factor}" if hypothesis.kind == "trend" else ""
    if hypothesis.scale == "ratio":
        return f"a factor of {hypothesis.margin:g}{per}"
    return f"{hypothesis.margin:g} {_unit(hypothesis)}{per}"


def _direction(verdict):
    """How the contrast stands to 0, in the words of its kind."""
    trend = verdict.hypothesis.kind == "trend"
    up, down = ("rising", "falling") if trend else ("higher", "lower")
    return up if verdict.estimate > 0 else down


def _beyond(verdict):
    return verdict.low > verdict.hypothesis.delta or verdict.high < -verdict.hypothesis.delta


def _said(verdict):
    """The outcome in words."""
    if verdict.outcome != UNDECIDED:
        return _outcome_said(verdict, verdict.outcome)
    if verdict.estimate is None:
        return f"undecided, with fewer than {LEAST_PAIRS} finished pairs"
    if verdict.finished_runs:
        alone = _outcome_said(verdict, verdict.finished_runs)
        return f"undecided, since runs failed or stalled; the others alone: {alone}"
    needed = verdict.pairs_needed
    few = f"about {needed:,} paired seeds" if needed else f"more than {MOST_PAIRS:,} paired seeds"
    known, hypothesis = "", verdict.hypothesis
    if not verdict.low <= 0 <= verdict.high:  # only where a margin is asked for
        known = f"different, but whether within {margin_said(hypothesis)} is open; "
    elif hypothesis.kind == "equivalence":
        known = f"whether within {margin_said(hypothesis)} is open; "
    return f"undecided; {known}{few} would decide it"


def _outcome_said(verdict, outcome):
    hypothesis = verdict.hypothesis
    if outcome == EQUIVALENT:
        return f"equivalent within {margin_said(hypothesis)}"
    if outcome == DIFFERENT_WITHIN:
        return f"different but within {margin_said(hypothesis)}"
    if outcome == UNDECIDED:
        return "undecided"
    by = f" by more than {margin_said(hypothesis)}" if _beyond(verdict) else ""
    return f"{outcome}, {_direction(verdict)}{by}"


def _interval(verdict):
    """The estimate, its interval and the pairs."""
    hypothesis = verdict.hypothesis
    pairs = f"{verdict.pairs} paired seed{'s' * (verdict.pairs != 1)}"
    if verdict.estimate is None:
        return pairs
    shown, bounds, plus = lambda value: value, [0.0], True
    if hypothesis.margin is not None:
        bounds += [hypothesis.delta, -hypothesis.delta]
    if hypothesis.scale == "ratio":
        shown, bounds, plus = math.exp, [math.exp(bound) for bound in bounds], False
    low, high = shown(verdict.low), shown(verdict.high)
    decimals = decimals_for(low, high, bounds)
    estimate = number(shown(verdict.estimate), decimals, plus=plus)
    if hypothesis.scale == "ratio":
        estimate = f"ratio {estimate}"
    elif hypothesis.margin is None:
        estimate = f"{estimate} {_unit(hypothesis)}"
    if hypothesis.kind == "trend" and hypothesis.margin is None:
        estimate = f"{estimate} per unit of {hypothesis.factor}"
    if verdict.gaps:
        each = (number(shown(gap), decimals, plus=plus) for gap in verdict.gaps)
        estimate = f"{' against '.join(each)}: {estimate}"
    ends = f"{number(low, decimals)} to {number(high, decimals)}"
    return f"{estimate}, {percent(verdict.level)} interval {ends}, {pairs}"


def _rates(rates):
    return f"{{{', '.join(f'{rate:g}' for rate in sorted(rates))}}}"


def rates_said(hypothesis, facts):
    """How the arms came by their learning rates; "" where no rate is known."""
    known = {label: facts[label] for label in hypothesis.labels if label in facts}
    known = {label: fact for label, fact in known.items() if fact.rate is not None}
    if not known:
        return ""
    each = ", ".join(f"{label} {fact.rate:g}" for label, fact in known.items())
    same_rate = len({fact.rate for fact in known.values()}) == 1
    untuned = [label for label, fact in known.items() if not fact.grid]
    if len(untuned) == len(known):
        rate = next(iter(known.values())).rate
        return f"untuned, rate {rate:g}" if same_rate else f"untuned, rates: {each}"
    ways = {}
    for label, fact in known.items():
        if fact.grid:
            ways.setdefault((tuple(sorted(fact.grid)), fact.tuning_seeds), []).append(label)
    said = [
        f"{_rates(grid)} on {seeds} other seed{'s' * (seeds != 1)}"
        + (f" ({', '.join(labels)})" if len(labels) < len(known) else "")
        for (grid, seeds), labels in ways.items()
    ]
    rate = f"rate {next(iter(known.values())).rate:g}" if same_rate else "rates"
    text = f"{rate} chosen from {' and '.join(said)}"
    if untuned:
        text += f", {', '.join(untuned)} untuned"
    return text if same_rate else f"{text}, each arm its own: {each}"


def others_said(hypothesis, facts):
    """How the arms came by other training fields that were tuned: a list, one entry a field."""
    tuned = {label: facts[label].others for label in hypothesis.labels if label in facts}
    said = []
    for field in dict.fromkeys(field for others in tuned.values() for field in others):
        values = {label: others[field] for label, others in tuned.items() if field in others}
        first = next(iter(values.values()))
        same = all(value["value"] == first["value"] for value in values.values())
        each = ", ".join(f"{label} {value['value']}" for label, value in values.items())
        grids = {tuple(value["grid"]) for value in values.values()}
        sets = " or ".join(f"{{{', '.join(map(str, grid))}}}" for grid in sorted(grids, key=str))
        alike = same and len(values) == len(hypothesis.labels)
        said.append(f"{field} {first['value'] if alike else each} chosen from {sets}")
    return said


# What stands beside it ------------------------------------------------------------------------


def notes(verdict, facts, failures, far_from_normal=None, added_to=(), unequal=""):
    """Sentences on what a reader should know beside the verdict: a tuple.

    Args:
        verdict: a `Verdict`.
        facts: arm -> `ArmFacts`.
        failures: (arm, seed, what happened) of runs without a trustworthy value.
        far_from_normal: p of a test of normality that failed, else None.
        added_to: where seeds were added to a finished study, the numbers of seeds at which its
            verdicts were drawn, the present one last.
        unequal: what the arms have not the same amount of, in a sentence.
    """
    found = [_failures(failures)] if failures else []
    if added_to:
        found.append(_added(added_to))
    found += _on_the_outcome(verdict)
    found += _on_the_spread(verdict, far_from_normal)
    for label in verdict.hypothesis.labels:
        found += _on_the_arm(label, facts.get(label, ArmFacts()))
    of_labels = {label: facts[label] for label in verdict.hypothesis.labels if label in facts}
    found += _on_the_curves(of_labels)
    known = list(of_labels.values())
    if any(fact.grid or fact.others for fact in known):
        found.append("The interval leaves out the uncertainty of choosing the rates.")
    found += _on_reuse([fact.reused for fact in known if fact.reused])
    found += [unequal] if unequal else []
    return tuple(found)


def _on_reuse(reused):
    """Where the runs that chose the rates were made."""
    found = []
    for file in dict.fromkeys(each["from"] for each in reused):
        machines = " and ".join(sorted({p for each in reused for p in each.get("processors", ())}))
        found.append(f"The runs that chose them were made before, on {machines} ({file}).")
    return found


def _added(looks):
    """That seeds were added, and what error that makes."""
    *before, _ = looks
    error = 100 * error_of_additions(looks)
    return (
        f"Seeds were added after verdicts at {' and '.join(map(str, before))} seeds, which counts "
        f"as a look: the interval is wider, and the error of all together up to {error:.1f}%."
    )


def _seeds(seeds):
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _failures(failures):
    groups = {}
    for label, seed, what in failures:
        groups.setdefault((label, what), []).append(seed)
    said = []
    for (label, what), seeds in groups.items():
        if len(seeds) > 1:
            verb, _, rest = what.partition(" ")
            what = f"{ {'is': 'are', 'has': 'have'}.get(verb, verb) } {rest}".rstrip()
        said.append(f"{_seeds(seeds)} of {label} {what}")
    return f"Failed runs: {'; '.join(said)}."


def _on_the_outcome(verdict):
    hypothesis = verdict.hypothesis
    if verdict.outcome not in (CONFIRMED, REFUTED) or hypothesis.margin is None:
        return []
    if _beyond(verdict):
        return []
    return [f"Whether it is within {margin_said(hypothesis)} is open."]


def _on_the_spread(verdict, far_from_normal):
    if verdict.estimate is None:
        return []
    if verdict.spread == 0:
        return [f"All {verdict.pairs} paired contrasts are equal, to the last bit."]
    found, flip = [], verdict.p_sign_flip
    if far_from_normal is not None:
        found.append(
            f"The {verdict.pairs} paired contrasts are far from normal "
            f"(Shapiro–Wilk p = {far_from_normal:.2g}), which the interval assumes."
        )
    excludes_zero = not verdict.low <= 0 <= verdict.high
    if flip is not None and excludes_zero and flip > verdict.level:
        least = 2.0 ** (1 - verdict.pairs)
        cannot = f", whose least p is {least:.2g}," if least > verdict.level else ""
        found.append(
            f"The sign-flip test{cannot} does not confirm the sign at this level (p = {flip:.2g})."
        )
    elif flip is not None:
        found.append(f"The sign-flip test has p = {flip:.2g}.")
    return found


def _on_the_arm(label, facts):
    found = []
    for seed, why in facts.excluded.items():
        late = ", which was asked when its result was there"
        late = late if seed in facts.excluded_afterwards else ""
        found.append(f"{label}: seed {seed} is excluded ({why}){late}.")
    if facts.widened:
        times = "once" if facts.widened == 1 else f"{facts.widened} times"
        found.append(f"{label}: the grid of rates was widened {times}.")
    if facts.at_edge:
        found.append(f"{label}: the rate chosen, {facts.rate:g}, is at the edge of its grid.")
    for field, chosen in facts.others.items():
        if chosen["at_edge"]:
            value = chosen["value"]
            found.append(f"{label}: the {field} chosen, {value}, is at the edge of its grid.")
    return found


def _on_the_curves(facts):
    """Which arms have not learned much yet, of label -> `ArmFacts`."""
    above = [label for label, fact in facts.items() if fact.above_bigram]
    falling = [label for label, fact in facts.items() if fact.still_falling]
    found = []
    if above:
        found.append(f"{_all(above)}: the loss stays above the bigram entropy of the data.")
    if falling:
        found.append(
            f"{_all(falling)}: the curves still fall steeply; the gap may be one of speed only."
        )
    return found


def _all(labels):
    return " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
