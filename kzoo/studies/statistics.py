"""Statistics of paired seeds: intervals, tests, corrections and power.

Values are arrays whose last axis is the pairs, that is the seeds that all arms share; axes before
it are studies, or hypotheses, at once. The unit is the metric's, e.g. bits.
"""

import dataclasses

import numpy as np
from scipy import special, stats
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from kzoo.errors import InputError
from kzoo.studies.hypotheses import LEAST_PAIRS, check_looks
from kzoo.values import is_count

ALPHA = 0.05  # the family-wise error of a question
LEAST_SIGN_FLIPS = 8  # pairs; with 5 no result is rarer than 2 of 2^5, 0.0625
POWER = 0.8
MOST_PAIRS = 10_000  # that are searched
_RESAMPLES = 2**13  # sign flips: all of them up to 13 pairs, a sample beyond
_TINY = np.finfo(float).tiny


@dataclasses.dataclass(frozen=True)
class Paired:
    """Means of paired contrasts, from which intervals and tests follow (Student's t).

    Attributes:
        mean: of the contrast over the pairs, an array `[...]`.
        error: its standard error, of the same shape; inf where there is no estimate.
        df: degrees of freedom, pairs − 1, that broadcast against both.
    """

    mean: np.ndarray
    error: np.ndarray
    df: np.ndarray

    def interval(self, level):
        """The interval `(low, high)` that holds the true mean but for a share `level` of studies.

        Args:
            level: e.g. 0.05 for a 95% interval; a number or an array that broadcasts.
        """
        half = -special.stdtrit(self.df, np.asarray(level) / 2) * self.error
        return self.mean - half, self.mean + half

    def p_value(self, null=0.0):
        """Two-sided p of the hypothesis that the true mean is `null`.

        It is at most `level` exactly where `interval(level)` leaves `null` out. Contrasts without
        any spread leave out all but their mean.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            t = np.abs(self.mean - null) / np.maximum(self.error, _TINY)
        return np.where(np.isinf(self.error), 1.0, 2 * special.stdtr(self.df, -t))


def paired(contrasts):
    """The mean of paired contrasts and its standard error.

    Args:
        contrasts: `[..., pairs]`, e.g. the differences of two arms' bits, one per seed.

    Returns:
        A `Paired` with arrays `[...]`.

    Raises:
        InputError: for fewer than 5 pairs.

    Example:
        >>> low, high = paired([0.01, -0.02, 0.0, 0.02, -0.01]).interval(0.05)
        >>> round(float(low), 3), round(float(high), 3)
        (-0.02, 0.02)
    """
    contrasts = np.asarray(contrasts, float)
    pairs = contrasts.shape[-1]
    if pairs < LEAST_PAIRS:
        raise InputError(f"a verdict needs at least {LEAST_PAIRS} paired seeds. Received: {pairs}")
    return Paired(contrasts.mean(-1), stats.sem(contrasts, axis=-1), np.asarray(pairs - 1))


def contrast(weights, values, scale="difference"):
    """The contrast of each seed, Σ weight · value.

    Args:
        weights: arm -> weight, as `Hypothesis.weights` are.
        values: arm -> array `[..., pairs]` of its metric, in the same order of seeds.
        scale: `"ratio"` takes the logarithms of the values first.

    Returns:
        An array `[..., pairs]`.

    Raises:
        InputError: if a value of a ratio is not positive.

    Example:
        >>> contrast({"a": 1.0, "b": -1.0}, {"a": [2.5, 2.25], "b": [2.0, 2.0]})
        array([0.5 , 0.25])
    """
    total = 0.0
    for arm, weight in weights.items():
        value = np.asarray(values[arm], float)
        if scale == "ratio":
            if np.any(value <= 0):
                raise InputError(
                    f"a ratio of gaps needs positive values. Received: {arm!r} with {value.min()}"
                )
            value = np.log(value)
        total = total + weight * value
    return total


def sign_flip(contrasts):
    """Two-sided p of the sign-flip test: the contrasts are symmetric about 0, whatever their shape.

    Exact up to 13 pairs, else over a fixed random sample of sign flips.

    Args:
        contrasts: `[..., pairs]`.

    Returns:
        p, an array `[...]`; None below 8 pairs, where no p is small enough to say much.

    Example:
        >>> float(sign_flip([0.1, 0.2, 0.15, 0.3, 0.1, 0.2, 0.25, 0.12]))
        0.0078125
    """
    contrasts = np.asarray(contrasts, float)
    if contrasts.shape[-1] < LEAST_SIGN_FLIPS:
        return None
    return stats.permutation_test(
        (contrasts,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        axis=-1,
        rng=0,
    ).pvalue


def equivalence(contrasts, margin):
    """p of two one-sided t tests (TOST) of the hypothesis that the mean is beyond ±`margin`.

    Schuirmann 1987. It is at most `level` where the interval of twice that level lies within the
    margin; verdicts ask that of the interval of the level itself, which is stricter.

    Args:
        contrasts: `[pairs]`.
        margin: in the contrasts' unit.

    Example:
        >>> round(float(equivalence([0.01, -0.02, 0.0, 0.02, -0.01], 0.03)), 4)
        0.0066
    """
    contrasts = np.asarray(contrasts, float)
    if np.ptp(contrasts) == 0:
        return float(abs(contrasts[0]) >= margin)
    return DescrStatsW(contrasts).ttost_mean(-margin, margin)[0]


def far_from_normal(contrasts, level=0.01):
    """p of the Shapiro–Wilk test where it is below `level`, else None.

    Args:
        contrasts: `[pairs]`.
    """
    if np.ptp(contrasts) == 0:
        return None
    p = float(stats.shapiro(contrasts).pvalue)
    return p if p < level else None


# Many hypotheses, and several looks -----------------------------------------------------------


def holm_levels(p, alpha=ALPHA):
    """The level at which Holm's procedure (1979) tests each hypothesis of a family.

    In the order of their p, the first of m hypotheses is tested at alpha ÷ m, the next at
    alpha ÷ (m − 1), and so on up to the first that is kept; it and all after it share its level.
    So a hypothesis is rejected exactly where its p is at most the level returned.

    Args:
        p: `[..., hypotheses]`.
        alpha: the family-wise error.

    Returns:
        Levels, of the shape of `p`.

    Example:
        >>> holm_levels([0.001, 0.03, 0.04], 0.06).tolist()
        [0.02, 0.03, 0.06]
    """
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1, kind="stable")
    steps = alpha / np.arange(p.shape[-1], 0, -1)
    rejected = np.logical_and.accumulate(np.take_along_axis(p, order, -1) <= steps, axis=-1)
    last = np.minimum(rejected.sum(-1, keepdims=True), p.shape[-1] - 1)
    levels = np.empty_like(p)
    np.put_along_axis(levels, order, steps[np.minimum(np.arange(p.shape[-1]), last)], -1)
    return levels


def look_levels(looks, alpha=ALPHA):
    """The level of each look at a growing study: together they are the family-wise error.

    A look may spend the share of alpha that its new pairs are of all pairs, the spending function
    alpha · t (Lan & DeMets 1983). What a look spends is its level, so the sum of the levels bounds
    the error by Boole's inequality, however the looks depend on each other, whatever the metric,
    and also where Holm's procedure divides the levels; levels that use the dependence would be
    larger, but hold for one hypothesis and normal values only.

    Args:
        looks: numbers of pairs, increasing, at least 5. A look that is added to a finished study
            is one of them, and then lowers the levels of all.
        alpha: the family-wise error over all looks.

    Returns:
        A tuple of levels.

    Raises:
        InputError: if `looks` are not increasing integers from 5.

    Example:
        >>> look_levels([5, 10, 20])
        (0.0125, 0.0125, 0.025)
    """
    check_looks(looks)
    shares = np.diff([0, *looks]) / looks[-1]
    return tuple((alpha * shares).tolist())


def error_of_additions(looks, alpha=ALPHA):
    """The family-wise error where seeds were added to a study that had spent all of alpha.

    Its first verdicts took the whole of it; each later number of seeds takes the level of the last
    look of those up to it.

    Args:
        looks: the numbers of pairs at which verdicts were drawn, as of `look_levels`.

    Returns:
        An upper bound, by Boole's inequality.

    Example:
        >>> round(error_of_additions([5, 10]), 4)
        0.075
    """
    later = [look_levels(looks[:k], alpha)[-1] for k in range(2, len(looks) + 1)]
    return alpha + sum(later)


# Power ------------------------------------------------------------------------------------


def pairs_needed(effect, spread, level=ALPHA, power=POWER):
    """How many pairs a paired t test needs to see an effect.

    Args:
        effect: the distance of the true mean from what the interval shall leave out.
        spread: standard deviation of the contrasts, in the same unit.
        level: of the interval.
        power: the chance that it leaves it out.

    Returns:
        The number of pairs, at least 5, or None where it is beyond 10,000.

    Example:
        >>> pairs_needed(0.1, 0.2)
        34
    """
    if effect <= 0 or not np.isfinite(effect):
        return None
    if spread <= 0:
        return LEAST_PAIRS
    size, tests = effect / spread, TTestPower()
    if _power(tests, size, MOST_PAIRS, level) < power:
        return None
    low, high = LEAST_PAIRS, MOST_PAIRS  # bisection: statsmodels' own search starts from guesses
    while low < high:
        middle = (low + high) // 2
        if _power(tests, size, middle, level) >= power:
            high = middle
        else:
            low = middle + 1
    return low


def _power(tests, size, pairs, level):
    """Power; at sizes beyond what the noncentral t is computed for it is 1."""
    power = tests.power(size, pairs, level)
    return 1.0 if np.isnan(power) else power


def detectable(pairs, spread, level=ALPHA, power=POWER):
    """The effect that a paired t test of so many pairs sees with that power.

    Args:
        pairs: at least 5.
        spread: standard deviation of the contrasts.

    Returns:
        The effect, in the unit of `spread`.

    Raises:
        InputError: for fewer than 5 pairs.

    Example:
        >>> round(detectable(5, 0.1), 3)
        0.168
    """
    if not is_count(pairs, least=LEAST_PAIRS):
        raise InputError(f"a verdict needs at least {LEAST_PAIRS} paired seeds. Received: {pairs}")
    return float(TTestPower().solve_power(nobs=pairs, alpha=level, power=power)) * spread
