"""The statistics: worked examples of scipy and statsmodels, and studies simulated in thousands."""

import doctest

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from kzoo.errors import InputError
from kzoo.studies import hypotheses, sentences, statistics, verdicts
from kzoo.studies.sentences import CONFIRMED, DIFFERENT_WITHIN, EQUIVALENT, REFUTED, UNDECIDED
from kzoo.studies.statistics import (
    contrast,
    detectable,
    equivalence,
    far_from_normal,
    holm_levels,
    look_levels,
    paired,
    pairs_needed,
    sign_flip,
)
from kzoo.studies.verdicts import decide

STUDIES = 20_000
LOOKS = (5, 10, 20)


@pytest.mark.parametrize("module", [hypotheses, sentences, statistics, verdicts])
def test_the_examples_are_right(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# The two libraries ---------------------------------------------------------------------------


def test_intervals_are_those_of_scipy():
    # The samples of scipy's documentation of ttest_rel.
    rng = np.random.default_rng(0)
    a = stats.norm.rvs(loc=5, scale=10, size=500, random_state=rng)
    b = a + stats.norm.rvs(scale=0.2, size=500, random_state=rng)
    ours, theirs = paired(a - b), stats.ttest_rel(a, b)
    assert ours.p_value() == pytest.approx(theirs.pvalue)
    for level in (0.05, 0.01):
        interval = theirs.confidence_interval(1 - level)
        assert ours.interval(level) == pytest.approx((interval.low, interval.high))
    # Many studies at once are each of them alone.
    many = paired(np.stack([a - b, a - 2 * b]))
    assert many.interval(0.05)[0][0] == pytest.approx(ours.interval(0.05)[0])


def test_the_sign_flip_test_is_exact():
    # Darwin's maize, heights of crossed and self-fertilised plants (Fisher 1935): of the 2^15 sign
    # flips 863 have a sum at least as large, so p = 1726 / 32768.
    maize = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])
    flips = np.array(np.meshgrid(*[[1, -1]] * 15)).reshape(15, -1)
    exact = (np.abs(maize @ flips) >= maize.sum()).mean()
    assert exact == pytest.approx(1726 / 32768)
    assert sign_flip(maize) == pytest.approx(exact, abs=0.008)  # beyond 13 pairs a sample
    assert sign_flip(maize[:10]) == pytest.approx(
        (np.abs(maize[:10] @ flips[:10]) >= abs(maize[:10].sum())).mean()
    )
    assert sign_flip(maize[:7]) is None
    assert sign_flip(np.arange(1, 9)) == 2 / 2**8


def test_equivalence_is_that_of_statsmodels():
    # statsmodels' test_tost.py: its clinic data, with what R's package `equivalence` finds.
    first = [
        2.84,
        2.51,
        2.41,
        2.95,
        3.14,
        3.79,
        4.14,
        3.85,
        3.02,
        3.45,
        5.37,
        3.81,
        4.19,
        3.16,
        3.84,
    ]
    second = [
        2.6,
        2.82,
        2.18,
        3.46,
        4.01,
        3.04,
        3.47,
        4.06,
        2.91,
        3.59,
        4.51,
        3.16,
        3.86,
        3.31,
        3.02,
    ]
    differences = np.subtract(first, second)
    assert equivalence(differences, 0.6) == pytest.approx(0.003166881489265175)
    assert paired(differences).interval(0.1) == pytest.approx(
        (-0.0744336620516462, 0.4037669953849797)
    )
    for margin in (0.2, 0.6, 2.0):
        p = ttost_paired(np.array(first), np.array(second), -margin, margin)[0]
        assert equivalence(differences, margin) == pytest.approx(p)
        low, high = paired(differences).interval(2 * p)  # TOST is the interval of twice its level
        assert max(-low, high) == pytest.approx(margin)
    assert equivalence(np.zeros(5), 0.1) == 0 and equivalence(np.full(5, 0.2), 0.1) == 1


def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(1)
    p = rng.uniform(size=(8, 5)) ** 4
    for row, level in zip(p, holm_levels(p, 0.05), strict=True):  # all studies at once
        reject, corrected, _, _ = multipletests(row, 0.05, "holm")
        assert ((row <= level) == reject).all()
        # A corrected p is the alpha at which a hypothesis is rejected.
        for k, alpha in enumerate(corrected):
            assert alpha == 1 or (row <= holm_levels(row, alpha * 1.001))[k]
            assert not (row <= holm_levels(row, alpha * 0.999))[k]
    # Holm's example of three hypotheses: each is tested only once those before it are rejected.
    assert holm_levels([0.04, 0.01, 0.03], 0.06).tolist() == pytest.approx([0.06, 0.02, 0.03])
    assert holm_levels([0.021, 0.001, 0.04], 0.04).tolist() == pytest.approx([0.02, 0.04 / 3, 0.02])


def test_power_is_that_of_statsmodels():
    for effect in (0.2, 0.5, 1.0):
        exact = TTestPower().solve_power(effect, None, 0.05, 0.8)
        assert pairs_needed(effect, 1.0) == np.ceil(exact)
    # statsmodels' test_power.py, by R's pwr.t.test(d=0.2, n=20, type="one.sample").
    assert detectable(20, 1.0, power=0.1359562887679666) == pytest.approx(0.2)
    for pairs in (5, 10, 20):
        assert pairs_needed(detectable(pairs, 0.2) * 1.0001, 0.2) == pairs
    assert pairs_needed(1e-9, 1) is None and pairs_needed(0.0, 1) is None
    assert pairs_needed(1e9, 1) == pairs_needed(1, 0) == 5


def test_a_trend_is_the_slope_of_each_seed():
    values = np.random.default_rng(2).normal(size=(4, 6))
    of_factor = [1, 2, 4, 8]
    spec = hypotheses.Hypothesis(
        "t", "trend", list("abcd"), sign="+", factor="d", factor_values=of_factor
    )
    slopes = contrast(spec.weights, dict(zip("abcd", values, strict=True)))
    by_scipy = [stats.linregress(of_factor, values[:, seed]).slope for seed in range(6)]
    assert slopes == pytest.approx(np.array(by_scipy))


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(InputError, match="at least 5 paired seeds. Received: 4"):
        paired(np.zeros((3, 4)))
    with pytest.raises(InputError, match="at least 5"):
        detectable(4, 0.1)
    for looks in ([], [4, 8], [10, 5], [5, 5], [5, 10.0], [True], 5):
        with pytest.raises(InputError, match="increasing numbers of paired seeds"):
            look_levels(looks)
    with pytest.raises(InputError, match="positive values"):
        contrast({"a": 1.0}, {"a": [0.0, 1.0]}, "ratio")


def test_spreads_far_from_normal_are_seen():
    assert far_from_normal([0.1, 0.2, 0.15, 0.12, 0.18]) is None
    assert far_from_normal([0.1, 0.1, 0.11, 0.1, 0.1, 0.1, 0.1, 5.0]) < 0.01
    assert far_from_normal(np.zeros(5)) is None


# Simulated studies ----------------------------------------------------------------------------
# Six hypotheses: each arm against one baseline, which they share, so that they depend.

SEEDS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "lognormal": lambda rng, shape: rng.lognormal(size=shape),
    "bimodal": lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 0.1 * rng.normal(size=shape),
}


def simulate(truth, *, studies=STUDIES, pairs=LOOKS[-1], seeds="normal", rng=0):
    """Contrasts `[studies, hypotheses, pairs]`; their means are √2 · `truth`, their spread √2."""
    rng = np.random.default_rng(rng)
    arms = SEEDS[seeds](rng, (studies, len(truth) + 1, pairs))
    return arms[:, 1:] - arms[:, :1] + np.sqrt(2) * np.asarray(truth)[:, None]


def false(decisions, directions, margins, truth, estimates):
    """Which outcomes say what is not so."""
    outcome = decisions.outcome
    sign = np.where(np.asarray(directions) == 0, np.sign(estimates), directions)
    within = np.abs(truth) < margins
    right_sign = np.sign(estimates) == np.sign(truth)
    refuted = np.where(np.asarray(directions) == 0, within | ~right_sign, ~right_sign)
    return (
        ((outcome == CONFIRMED) & (np.sign(truth) != sign))
        | ((outcome == REFUTED) & refuted)
        | ((outcome == EQUIVALENT) & ~within)
        | ((outcome == DIFFERENT_WITHIN) & ~(within & right_sign))
    )


def family_error(contrasts, directions, margins, truth, levels, looks=LOOKS):
    """The share of studies that say something false of a hypothesis at any of their looks."""
    wrong = np.zeros(len(contrasts), bool)
    for pairs, level in zip(looks, levels, strict=True):
        means = paired(contrasts[..., :pairs])
        decisions = decide(means, directions, margins, level)
        wrong |= false(decisions, directions, margins, np.asarray(truth), means.mean).any(-1)
    return wrong.mean()


def at_most(error, level=0.05, studies=STUDIES):
    return error <= level + 3 * np.sqrt(level * (1 - level) / studies)


NO_MARGIN = np.full(6, np.inf)
UP = np.ones(6, int)
NULLS = np.zeros(6)


@pytest.mark.parametrize("pairs", [5, 6, 20])
def test_one_interval_covers_the_truth_as_often_as_it_says(pairs):
    means = paired(simulate([0.3], pairs=pairs)[:, 0])
    for level in (0.05, 0.0125):
        low, high = means.interval(level)
        misses = 1 - ((low <= 0.3 * np.sqrt(2)) & (0.3 * np.sqrt(2) <= high)).mean()
        assert abs(misses - level) < 3 * np.sqrt(level * (1 - level) / STUDIES)


FAMILIES = {
    "nulls": (UP, NO_MARGIN, NULLS),
    "half of them true": (UP, NO_MARGIN, [0, 2, 0, 2, 0, 2]),
    "tiny effects of either sign": (UP, NO_MARGIN, [1e-3, -1e-3] * 3),
    "equal arms, equivalences that are shown": (0 * UP, np.full(6, 4.0), NULLS),
    "at the margin": (0 * UP, np.full(6, np.sqrt(2)), [1, -1] * 3),
    "of every kind": ([1, 0, 0, -1, 1, 0], [np.inf, 2, 2, np.inf, 2, 2], [0, 0, 2**0.5, 0, 2, 0.1]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_wise_error_holds_over_hypotheses_and_looks(family):
    directions, margins, truth = FAMILIES[family]
    scaled = np.sqrt(2) * np.asarray(truth, float)
    error = family_error(simulate(truth), directions, margins, scaled, look_levels(LOOKS))
    assert at_most(error), error


def test_the_family_wise_error_holds_of_arms_that_share_nothing():
    contrasts = np.random.default_rng(3).normal(size=(STUDIES, 6, LOOKS[-1]))
    error = family_error(contrasts, UP, NO_MARGIN, NULLS, look_levels(LOOKS))
    assert at_most(error) and error > 0.04, error  # little is given away
    # Shown equivalent, arms stay in the family: if they left it, as in Holm's procedure over the
    # tests of equivalence, the last would be tested for a difference at the full level.
    margins = np.full(6, 1.5)
    means = paired(contrasts)
    assert at_most(
        false(decide(means, 0 * UP, margins), 0 * UP, margins, NULLS, means.mean).any(-1).mean()
    )
    low, high = means.interval(holm_levels(np.maximum(means.p_value(1.5), means.p_value(-1.5))))
    assert ((low > 0) | (high < 0)).any(-1).mean() > 0.15


def test_looks_at_the_full_level_would_not_hold():
    contrasts = simulate(NULLS)
    error = family_error(contrasts, UP, NO_MARGIN, NULLS, [0.05] * 3)
    assert not at_most(error), error
    assert look_levels(LOOKS) == pytest.approx((0.0125, 0.0125, 0.025))
    assert look_levels([6, 9]) == pytest.approx((0.05 * 6 / 9, 0.05 * 3 / 9))
    assert look_levels([6]) == (0.05,)


@pytest.mark.parametrize("seeds", ["lognormal", "bimodal"])
def test_other_seeds_are_reported(seeds, record_property):
    """Nothing is promised of them: a spread far from normal is named beside the verdict."""
    contrasts = simulate(NULLS, seeds=seeds)
    error = family_error(contrasts, UP, NO_MARGIN, NULLS, look_levels(LOOKS))
    low, high = paired(contrasts[:, 0]).interval(0.05)
    coverage = ((low <= 0) & (0 <= high)).mean()
    record_property("family-wise error", float(error))
    record_property("coverage of 95% at 20 pairs", float(coverage))
    print(f"{seeds} seeds: family-wise error {error:.4f}, coverage {coverage:.4f}")
    assert 0 <= error <= 1


@pytest.mark.parametrize(
    "direction, margin, truth, expected",
    [
        (1, np.inf, 1.5, CONFIRMED),
        (-1, np.inf, 1.5, REFUTED),
        (1, 3.0, 1.5, DIFFERENT_WITHIN),
        (0, 1.0, 0.0, EQUIVALENT),
        (1, 1.0, 0.0, EQUIVALENT),
        (0, 3.0, 1.5, DIFFERENT_WITHIN),
        (0, 0.3, 1.5, REFUTED),
        (1, np.inf, 0.0, UNDECIDED),
        (0, 0.05, 0.0, UNDECIDED),
    ],
)
def test_planted_effects_get_their_verdict(direction, margin, truth, expected):
    means = paired(simulate([truth], studies=500) / np.sqrt(2))  # spread 1, 20 pairs
    outcome = decide(means, [direction], [margin]).outcome
    assert (outcome == expected).mean() > 0.9


def test_the_power_that_is_promised_is_there():
    pairs = pairs_needed(0.5, 1.0, 0.05)
    means = paired(simulate([0.5], pairs=pairs) / np.sqrt(2))
    assert (decide(means, [1], [np.inf]).outcome == CONFIRMED).mean() == pytest.approx(
        0.8, abs=0.02
    )


def test_one_interval_and_one_level_give_each_outcome():
    truth = np.array([0, 0.4, -0.4, 1.5, 0, 0.8])
    directions, margins = np.array([1, 1, -1, 0, 0, 0]), np.array([np.inf, 1, 1, 1, 1, 1])
    means = paired(simulate(truth, studies=500))
    decisions = decide(means, directions, margins)
    low, high = means.interval(decisions.level)
    assert (low == decisions.low).all() and (high == decisions.high).all()
    zero, inside = (low <= 0) & (high >= 0), (low > -margins) & (high < margins)
    assert (zero == np.isin(decisions.outcome, [EQUIVALENT, UNDECIDED]))[:, :3].all()
    bounded = np.isfinite(margins)
    same = np.isin(decisions.outcome, [EQUIVALENT, DIFFERENT_WITHIN]) == inside
    assert same[:, bounded].all()
    assert {0.05 / 6, 0.05} <= set(np.unique(decisions.level)) or len(
        np.unique(decisions.level)
    ) > 3
