"""Verdicts: from hypotheses and the values of paired seeds to outcomes and their sentences.

One interval gives the verdict and is printed. It can say that a contrast is not 0, that it is
smaller than the margin, or that it is larger; a false one of these needs an interval that misses
the truth. So errors are counted per interval: the hypotheses of a question share the level of the
look by Holm's procedure, and one of them leaves the family, and its share to the others, only when
its interval holds neither 0 nor a margin, when nothing false is left to be said of it (Shaffer
1986: of 'the contrast is 0' and 'the contrast is δ' at most one is true). Equivalent arms therefore
stay in the family.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kzoo.errors import InputError, unknown
from kzoo.studies import sentences
from kzoo.studies.hypotheses import LEAST_PAIRS, Hypothesis, check_looks
from kzoo.studies.metrics import about
from kzoo.studies.protocol import FAILED_RUNS
from kzoo.studies.sentences import (
    CONFIRMED,
    DIFFERENT_WITHIN,
    EQUIVALENT,
    OUTCOMES,
    REFUTED,
    UNDECIDED,
    ArmFacts,
)
from kzoo.studies.statistics import (
    ALPHA,
    POWER,
    Paired,
    contrast,
    equivalence,
    far_from_normal,
    holm_levels,
    look_levels,
    paired,
    pairs_needed,
    sign_flip,
)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Outcomes of studies at once.

    Attributes:
        outcome: one of `OUTCOMES` for each hypothesis, an array of strings `[..., hypotheses]`.
        level: of the interval that was used, of the same shape.
        low, high: its ends.
    """

    outcome: np.ndarray
    level: np.ndarray
    low: np.ndarray
    high: np.ndarray


def decide(means, directions, margins, alpha=ALPHA):
    """The outcomes of one family of hypotheses, for any number of studies at once.

    Args:
        means: `Paired` with arrays `[..., hypotheses]`; a standard error of inf is no estimate,
            which leaves a hypothesis undecided and in the family.
        directions: expected signs, 1, -1 or 0 (equivalence), `[hypotheses]`.
        margins: what does not matter, > 0, inf where there is none, `[hypotheses]`.
        alpha: the family-wise error; with several looks the level of this look.

    Returns:
        `Decisions`.

    Example:
        >>> means = paired([[-0.20, -0.30, -0.25, -0.28, -0.22], [0.01, -0.01, 0.02, 0.0, -0.02]])
        >>> decide(means, [-1, 0], [np.inf, 0.05]).outcome.tolist()
        ['confirmed', 'equivalent']
    """
    directions, margins = np.asarray(directions), np.asarray(margins, float)
    settled = np.maximum.reduce([means.p_value(null) for null in (0.0, margins, -margins)])
    level = holm_levels(settled, alpha)
    low, high = means.interval(level)
    sign = np.where(low > 0, 1, np.where(high < 0, -1, 0))
    within = np.isfinite(margins) & (low > -margins) & (high < margins)
    beyond = (low > margins) | (high < -margins)
    expects_sign = directions != 0
    outcome = np.select(
        [
            within & (sign != 0),
            within,
            expects_sign & (sign == directions),
            np.where(expects_sign, sign == -directions, beyond),
        ],
        [DIFFERENT_WITHIN, EQUIVALENT, CONFIRMED, REFUTED],
        UNDECIDED,
    )
    return Decisions(outcome, level, low, high)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What one hypothesis is judged by.

    Attributes:
        hypothesis: a `Hypothesis`.
        values: arm -> {seed: value of the metric}; None or a number that is not finite for a run
            that diverged.
        facts: arm -> `ArmFacts`, of arms of which something is to be said.
        setting: where it holds, as the sentence says it, e.g. "on continuations, at 300 steps".
        post_hoc: whether it was stated after records existed.
        added_to: the numbers of seeds at which verdicts were drawn before seeds were added, which
            no look foresaw.
        unequal: what the arms have not the same amount of, in a sentence.
    """

    hypothesis: Hypothesis
    values: Mapping
    facts: Mapping = dataclasses.field(default_factory=dict)
    setting: str = ""
    post_hoc: bool = False
    added_to: tuple = ()
    unequal: str = ""

    def __post_init__(self):
        for label in self.hypothesis.labels:
            if label not in self.values:
                kind = f"arm of the hypothesis {self.hypothesis.name!r}"
                raise unknown(kind, label, self.values)

    def seeds(self):
        """All seeds that an arm of the hypothesis ran, finished or not, or that are excluded: a
        sorted list."""
        labels = self.hypothesis.labels
        facts = [self.facts[label] for label in labels if label in self.facts]
        excluded = {seed for fact in facts for seed in fact.excluded}
        return sorted({seed for label in labels for seed in self.values[label]} | excluded)

    def failures(self):
        """(arm, seed, what happened) of every run that has no value or is not to be trusted."""
        found = []
        for label in self.hypothesis.labels:
            runs, facts = self.values[label], self.facts.get(label, ArmFacts())
            for seed in self.seeds():
                if seed in facts.excluded:
                    continue
                if seed in facts.stalled:
                    found.append((label, seed, "stalled"))
                elif seed not in runs:
                    found.append((label, seed, "is missing"))
                elif seed in facts.without:
                    found.append((label, seed, f"has no {about(self.hypothesis.metric)}"))
                elif runs[seed] is None or not np.isfinite(runs[seed]) or seed in facts.diverged:
                    found.append((label, seed, "diverged"))
        return found

    def pairs(self):
        """The seeds whose runs all finished, a sorted list."""
        failed = {seed for _, seed, _ in self.failures()}
        for label in self.hypothesis.labels:
            failed |= set(self.facts.get(label, ArmFacts()).excluded)
        return [seed for seed in self.seeds() if seed not in failed]

    def contrasts(self, weights=None):
        """The contrast of each seed whose runs all finished, `[pairs]`, in the order of seeds; that
        of other weights, or of the hypothesis."""
        pairs = self.pairs()
        values = {
            label: np.array([self.values[label][seed] for seed in pairs], float)
            for label in self.hypothesis.labels
        }
        weights = self.hypothesis.weights if weights is None else weights
        return contrast(weights, values, self.hypothesis.scale)

    def gaps(self):
        """The mean of each gap of an interaction over those seeds; of other kinds ()."""
        if self.hypothesis.kind != "interaction":
            return ()
        gaps = ({arm: 1.0, baseline: -1.0} for arm, baseline in self.hypothesis.gaps)
        return tuple(float(self.contrasts(gap).mean()) for gap in gaps)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a study says of one hypothesis; `str(verdict)` is the sentence with all its notes.

    Attributes:
        hypothesis: that was judged.
        outcome: one of `OUTCOMES`.
        estimate: the mean contrast in the metric's unit (a logarithm on the scale of ratios);
            None with fewer than 5 finished pairs, as are the attributes that derive from it.
        low, high: ends of the interval that gave the outcome.
        gaps: the means of the two gaps of an interaction, whose difference is the estimate (their
            logarithms on the scale of ratios); of other kinds ().
        level: of that interval; 0.05 is a 95% interval.
        pairs: how many seeds take part: those whose runs of all arms finished and did not stall.
        seeds: these seeds.
        spread: standard deviation of the contrasts.
        p: two-sided, of a contrast of 0, uncorrected.
        p_sign_flip: of the sign-flip test, None below 8 pairs.
        p_equivalence: of the two one-sided tests against the margin, uncorrected; None without one.
        pairs_needed: of an undecided hypothesis, the pairs at which intervals of this level would
            decide it with a power of 0.8, were the estimate and the spread true; None for more
            than 10,000.
        finished_runs: the outcome that the finished runs alone would give, where runs that failed
            leave the hypothesis undecided; else "".
        sentence: the verdict, generated from these numbers.
        notes: sentences on what a reader should know beside it: failed runs, doubtful arms,
            spreads far from normal, how rates were chosen.
        post_hoc: whether the hypothesis was stated after records existed.
    """

    hypothesis: Hypothesis
    outcome: str
    estimate: float | None
    low: float | None
    high: float | None
    gaps: tuple
    level: float
    pairs: int
    seeds: tuple
    spread: float | None
    p: float | None
    p_sign_flip: float | None
    p_equivalence: float | None
    pairs_needed: int | None
    finished_runs: str
    sentence: str
    notes: tuple
    post_hoc: bool

    def __str__(self):
        return " ".join([f"{self.sentence}.", *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """JSON of the verdict."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {name: list(fields[name]) for name in ("gaps", "seeds", "notes")}
        return {**fields, "hypothesis": self.hypothesis.to_dict(), **lists}


def verdicts(evidence, *, alpha=ALPHA, looks=(), failed_runs="undecided"):
    """The verdicts of a study at its present number of seeds.

    Args:
        evidence: a list of `Evidence`, one for each hypothesis of the study, all of them: the
            correction goes over those of one question.
        alpha: the family-wise error of a question, over all looks.
        looks: the numbers of seeds at which verdicts are drawn, those that were added to a
            finished study included; () for a study that is judged once.
        failed_runs: `"undecided"`: a run that diverged, stalled or is missing leaves its hypothesis
            undecided, and the estimate of the finished runs stands beside it. `"left out"`: the
            finished runs decide, and the failed ones are named.

    Returns:
        A list of `Verdict`, in the order of the evidence.

    Raises:
        InputError: for fewer than 5 seeds, a number of seeds at which there is no look, or two
            hypotheses of one name.

    Example:
        >>> q1 = Hypothesis("Q1", "equivalence", ["UniLM", "GPT"], margin=0.03)
        >>> values = {"UniLM": {5: 2.51, 6: 2.50, 7: 2.55, 8: 2.53, 9: 2.52},
        ...           "GPT": {5: 2.50, 6: 2.51, 7: 2.54, 8: 2.53, 9: 2.52}}
        >>> print(verdicts([Evidence(q1, values, setting="at 300 steps")])[0])
        UniLM against GPT, at 300 steps: equivalent within 0.03 bits (+0.002, 95% interval −0.008 \
to 0.012, 5 paired seeds).
    """
    evidence = list(evidence)
    if failed_runs not in FAILED_RUNS:
        raise unknown("treatment of failed runs", failed_runs, FAILED_RUNS)
    names = [item.hypothesis.name for item in evidence]
    if len(set(names)) < len(names):
        raise InputError(f"each hypothesis has one Evidence. Received: {names}")
    alpha = _level_of_look(evidence, looks, alpha)
    families = {}
    for item in evidence:
        families.setdefault(item.hypothesis.question, []).append(item)
    drawn = {}
    for family in families.values():
        for verdict in _family(family, alpha, failed_runs):
            drawn[verdict.hypothesis.name] = verdict
    return [drawn[name] for name in names]


def _level_of_look(evidence, looks, alpha):
    """What the present look may spend."""
    seeds = max((len(item.seeds()) for item in evidence), default=LEAST_PAIRS)
    if seeds < LEAST_PAIRS:
        raise InputError(f"a verdict needs at least {LEAST_PAIRS} paired seeds. Received: {seeds}")
    if not looks:
        return alpha
    check_looks(looks)
    if seeds not in looks:
        raise InputError(f"verdicts are drawn at looks of {list(looks)} seeds. Received: {seeds}")
    return look_levels(looks, alpha)[list(looks).index(seeds)]


def _family(family, alpha, failed_runs):
    """The verdicts of one question."""
    contrasts = [item.contrasts() for item in family]
    enough = [len(values) >= LEAST_PAIRS for values in contrasts]
    doubted = [failed_runs == "undecided" and bool(item.failures()) for item in family]
    means = [paired(values) if len(values) >= LEAST_PAIRS else None for values in contrasts]

    def decided(counted):
        """Decisions in which only hypotheses that are counted have an estimate."""
        stand_in = Paired(np.zeros(()), np.full((), np.inf), np.ones((), int))
        used = [m if use else stand_in for m, use in zip(means, counted, strict=True)]
        fields = [np.stack([getattr(m, name) for m in used]) for name in ("mean", "error", "df")]
        return decide(
            Paired(*fields),
            [item.hypothesis.direction for item in family],
            [item.hypothesis.delta for item in family],
            alpha,
        )

    final = decided([some and not doubt for some, doubt in zip(enough, doubted, strict=True)])
    finished = decided(enough)  # what the finished runs alone would say
    for k, item in enumerate(family):
        used = finished if doubted[k] else final
        yield _verdict(
            item,
            contrasts[k],
            outcome=str(final.outcome[k]),
            finished_runs=str(finished.outcome[k]) if doubted[k] and enough[k] else "",
            level=float(used.level[k]),
            ends=(float(used.low[k]), float(used.high[k])) if enough[k] else None,
        )


def _verdict(item, contrasts, *, outcome, finished_runs, level, ends):
    hypothesis, pairs = item.hypothesis, len(contrasts)
    fields = dict.fromkeys(
        ("estimate", "low", "high", "spread", "p", "p_sign_flip", "p_equivalence", "pairs_needed")
    )
    if ends:
        mean, spread = float(contrasts.mean()), float(contrasts.std(ddof=1))
        flip = sign_flip(contrasts)
        fields |= {"estimate": mean, "low": ends[0], "high": ends[1], "spread": spread}
        fields |= {"p": float(paired(contrasts).p_value()), "p_sign_flip": flip}
        fields["p_sign_flip"] = None if flip is None else float(flip)
        if hypothesis.margin is not None:
            fields["p_equivalence"] = float(equivalence(contrasts, hypothesis.delta))
        if outcome == UNDECIDED and not finished_runs:
            fields["pairs_needed"] = _pairs_that_decide(hypothesis, mean, spread, level, pairs)
    verdict = Verdict(
        hypothesis=hypothesis,
        outcome=outcome,
        gaps=item.gaps() if ends else (),
        level=level,
        pairs=pairs,
        seeds=tuple(item.pairs()),
        finished_runs=finished_runs,
        sentence="",
        notes=(),
        post_hoc=item.post_hoc,
        **fields,
    )
    far = far_from_normal(contrasts) if ends else None
    added_to = (*item.added_to, len(item.seeds())) if item.added_to else ()
    return dataclasses.replace(
        verdict,
        sentence=sentences.sentence(verdict, item.setting, item.facts),
        notes=sentences.notes(verdict, item.facts, item.failures(), far, added_to, item.unequal),
    )


def _pairs_that_decide(hypothesis, mean, spread, level, pairs):
    """The fewest pairs at which one of the possible outcomes has a power of 0.8."""
    effect, delta = abs(mean), hypothesis.delta
    ways = []
    if hypothesis.direction:
        ways.append((effect, POWER))  # leaves out 0
    elif effect > delta:
        ways.append((effect - delta, POWER))
    if np.isfinite(delta) and effect < delta:
        ways.append((delta - effect, (1 + POWER) / 2))  # leaves out both margins
    needed = [pairs_needed(distance, spread, level, power) for distance, power in ways]
    needed = [max(number, pairs + 1) for number in needed if number is not None]
    return min(needed, default=None)


__all__ = [
    "FAILED_RUNS",
    "OUTCOMES",
    "ArmFacts",
    "Decisions",
    "Evidence",
    "Verdict",
    "decide",
    "verdicts",
]
