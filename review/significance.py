"""Whether a difference between two models is more than chance: pure functions on numbers and numpy arrays.

A is the model to compare with, B the one that is judged. A difference is B - A: above 0, B is better. N: test images.
The tests are scipy's. level: the share of false alarms that is accepted.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from stages.evaluate import scores
from stages.evaluate.scores import Floats, Ints

DECIMALS = 9  # of an accuracy; enough for any number of images
ANGLES = 181  # of the curve on which an interval's ends are searched: they are exact to a thousandth of its width
MOST_SEEDS = 10_000  # per side; nobody trains more

BETTER, WORSE, NOISE = "better", "worse", "within noise"
DIFFERENT = (BETTER, WORSE)


def verdict(difference: float, p: float, level: float) -> str:
    """better | worse | within noise, from a difference (B - A) and the p-value of its test.

    The difference must be exactly 0 where there is none: counts divided once are, means of floats are not.
    """
    if p >= level or difference == 0:
        return NOISE
    return BETTER if difference > 0 else WORSE


def paired(labels: Ints, a: Ints, b: Ints) -> dict[str, npt.NDArray[np.bool_]]:
    """For predictions a and b (N,) of the same images: masks (N,) of fixed, broken, wrong in both, and changed.

    Fixed: wrong in A and correct in B. Changed: the two predictions differ, whether correct or not.
    """
    right_a, right_b = a == labels, b == labels
    return {
        "fixed": ~right_a & right_b,
        "broken": right_a & ~right_b,
        "both_wrong": ~right_a & ~right_b,
        "changed": a != b,
    }


def mcnemar(fixed: int, broken: int) -> float:
    """The p-value of McNemar's test (1947), two-sided and exact: are fixed and broken images equally likely?

    Dietterich (1998) recommends it if each classifier is trained once. It judges the two trained models, not the two
    recipes: another seed gives another model.
    """
    return float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def paired_interval(fixed: int, broken: int, images: int, level: float) -> tuple[float, float]:
    """The interval of the difference of accuracy. It excludes 0 if, and only if, the p-value of `mcnemar` is below
    the level.

    The difference is a product: the share of the images that are fixed or broken, times the excess of fixed ones among
    these, from -1 (all are broken) to 1. Each factor has an exact interval (Clopper and Pearson 1934); that of the
    second is the inverse of McNemar's exact test. Newcombe (2011) combines them by "propagating imprecision": the ends
    are the extremes of the product while both factors together deviate by z.
    """
    changed, z = fixed + broken, float(stats.norm.isf(level / 2))
    angles = np.linspace(0, np.pi / 2, ANGLES)
    shares = _clopper_pearson(changed, images, z * np.cos(angles))
    excesses = [2 * limit - 1 for limit in _clopper_pearson(fixed, changed, z * np.sin(angles))]
    products = np.array([share * excess for share in shares for excess in excesses])
    return float(products.min()), float(products.max())


def _clopper_pearson(successes: int, trials: int, z: Floats) -> tuple[Floats, Floats]:
    """The ends of the exact intervals of a share, each (angles,), whose tails are those of a normal deviate z."""
    tail = stats.norm.sf(z)
    low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else np.zeros_like(z)
    high = stats.beta.isf(tail, successes + 1, trials - successes) if successes < trials else np.ones_like(z)
    return low, high


def paired_squares(labels: Floats, a: Floats, b: Floats, level: float) -> "Difference":
    """The difference of R2 of two regressions, from predictions a and b (N,) of the same images, by a paired t test.

    The mean over the images of A's squared error minus B's, divided by the variance of the labels, is the difference
    of R2. labels: (N,), not all the same.
    """
    gains = ((a - labels) ** 2 - (b - labels) ** 2) / labels.var()
    with np.errstate(divide="ignore", invalid="ignore"):  # all gains may be the same
        return _paired_t(gains, level)


def fisher(errors_a: int, images_a: int, errors_b: int, images_b: int) -> float:
    """The p-value of Fisher's exact test (1922): could one classifier have made both shares of errors on two samples?

    For results without predictions. On the same test set it is far weaker than `mcnemar`, because it does not know that
    both sides saw the same images.
    """
    table = np.array([[errors_a, images_a - errors_a], [errors_b, images_b - errors_b]])
    return float(stats.fisher_exact(table).pvalue)


def newcombe(errors_a: int, images_a: int, errors_b: int, images_b: int, level: float) -> tuple[float, float]:
    """The interval of the difference of accuracy, from Wilson's interval of each side (Newcombe 1998, method 10)."""
    accuracy_a, accuracy_b = 1 - errors_a / images_a, 1 - errors_b / images_b
    z = float(stats.norm.isf(level / 2))
    low_a, high_a = scores.wilson(images_a - errors_a, images_a, z)
    low_b, high_b = scores.wilson(images_b - errors_b, images_b, z)
    difference = accuracy_b - accuracy_a
    low = difference - np.hypot(accuracy_b - low_b, high_a - accuracy_a)
    high = difference + np.hypot(high_b - accuracy_b, accuracy_a - low_a)
    return float(low), float(high)


class Difference(NamedTuple):
    """A difference B - A, its interval, and the p-value of its test."""

    difference: float
    low: float
    high: float
    p: float


def welch(a: Floats, b: Floats, level: float) -> Difference | None:
    """The difference between the mean accuracies of two sets of seeds, (seeds,) each, by Welch's t test (1947).

    The two sides may vary by different amounts. The degrees of freedom are the smaller number of seeds minus one: then
    false alarms are at most the level for any ratio of the spreads (Mickey and Brown 1966). Welch's own estimate gives
    12 % false alarms at level 0.05 for 2 seeds against 20, and 6 % for 3 against 3.

    None if the means differ and neither side varies: then there is no variation to judge the difference by. Raises
    ValueError for fewer than two accuracies on a side.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a spread needs two numbers or more")
    a, b = _whole(a), _whole(b)
    difference = float(b.mean() - a.mean())
    error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    if not error:
        return None if difference else Difference(0.0, 0.0, 0.0, 1.0)
    freedom = min(len(a), len(b)) - 1
    margin, p = float(stats.t.isf(level / 2, freedom)) * error, float(2 * stats.t.sf(abs(difference) / error, freedom))
    return _in_shares(Difference(difference, difference - margin, difference + margin, p))


def paired_by_seed(a: Floats, b: Floats, level: float) -> Difference | None:
    """The same difference from pairs, by Student's t test: a[i] and b[i] have the same seed.

    Its interval is narrower than that of `welch` only if a seed that is lucky on one side is lucky on the other, too.
    None and errors: as for `welch`.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("pairs need as many numbers on both sides, two or more")
    differences = _whole(b) - _whole(a)
    if differences.any() and not np.ptp(differences):
        return None
    return _in_shares(_paired_t(differences, level))


def _paired_t(differences: Floats, level: float) -> Difference:
    """The mean of paired differences, its interval, and the p-value of Student's t test."""
    if not differences.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval(1 - level)
    return Difference(float(differences.mean()), float(low), float(high), float(test.pvalue))


def _whole(accuracies: Floats) -> Floats:
    """Accuracies in units of 10**-DECIMALS: sums are exact, so equal means are equal, and equal values do not vary."""
    whole: Floats = np.rint(accuracies * 10**DECIMALS)
    return whole


def _in_shares(difference: Difference) -> Difference:
    """A difference of `_whole` numbers as one of accuracies."""
    middle, low, high = (value / 10**DECIMALS for value in difference[:3])
    return Difference(middle, low, high, difference.p)


def seeds_needed(difference: float, deviation_a: float, deviation_b: float, level: float, power: float) -> int | None:
    """How many seeds per side, at least 2, `welch` needs to find a difference of this size with this power.

    difference, and the standard deviations over seeds: in the same unit. The power is that of the noncentral t
    distribution (Cohen 1988). None: more than MOST_SEEDS, or the difference or both deviations are 0.
    """
    variance = deviation_a**2 + deviation_b**2
    if difference == 0 or variance == 0:
        return None
    n = np.arange(2, MOST_SEEDS + 1)
    freedom = n - 1
    critical = stats.t.isf(level / 2, freedom)
    noncentrality = abs(difference) / np.sqrt(variance / n)
    # The other tail, a significant difference in the wrong direction, is no success, and below 1 % of the power.
    enough: Any = stats.nct.sf(critical, freedom, noncentrality) >= power
    return int(n[enough][0]) if enough.any() else None
