"""Whether a difference between two classifiers is more than chance: pure functions on numbers and numpy arrays.

A is what is compared with, B what is judged; a difference is B - A, so above 0 B is better. N: test images.
The tests and intervals are scipy's. level: the share of false alarms that is accepted, 0.05 unless told otherwise.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from stages.evaluate import scores
from stages.evaluate.scores import Floats, Ints

DECIMALS = 9  # of an accuracy; the last ones tell apart more images than anybody has
RESAMPLES = 9_999  # of the bootstrap: its ends then vary by a few hundredths of the interval's width
MOST_SEEDS = 10_000  # a side; nobody trains more

BETTER, WORSE, NOISE = "better", "worse", "within noise"


def verdict(difference: float, p: float, level: float) -> str:
    """better | worse | within noise, from a difference (B - A) and the p-value of its test.

    The difference must be exactly 0 where there is none: counts divided once are, means of floats are not.
    """
    if p >= level or difference == 0:
        return NOISE
    return BETTER if difference > 0 else WORSE


def paired(labels: Ints, a: Ints, b: Ints) -> dict[str, npt.NDArray[np.bool_]]:
    """For predictions a and b, (N,), of the same images: which were fixed, broken, wrong in both, or changed.

    Fixed: wrong in A and right in B. Changed: the prediction is another one, right or wrong. Each (N,).
    """
    right_a, right_b = a == labels, b == labels
    return {
        "fixed": ~right_a & right_b,
        "broken": right_a & ~right_b,
        "both_wrong": ~right_a & ~right_b,
        "changed": a != b,
    }


def mcnemar(fixed: int, broken: int) -> float:
    """The p-value of McNemar's test (1947), two-sided and exact: are fixed and broken a fair coin's two sides?

    Dietterich (1998) finds it the test to use where each classifier is trained once. It judges the two trained models,
    not the two ways of training: other seeds are other models.
    """
    return float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.0


def bootstrap(fixed: int, broken: int, images: int, level: float) -> tuple[float, float]:
    """The interval of the difference of accuracy, by the percentile bootstrap over images (Efron 1979).

    The difference is the mean of +1 for a fixed image, -1 for a broken one and 0 for the others. How many of each a
    resample of the images has is multinomial: drawing those counts is the same bootstrap as drawing N images, and takes
    milliseconds for any N. The seed is fixed: the same predictions give the same interval.
    """
    shares = np.array([fixed, broken, images - fixed - broken]) / images
    draws = stats.multinomial.rvs(images, shares, size=RESAMPLES, random_state=np.random.default_rng(0))  # (R, 3)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / images, [level / 2, 1 - level / 2])
    return float(low), float(high)


def paired_squares(labels: Floats, a: Floats, b: Floats, level: float) -> "Difference":
    """The difference of R2 of two regressions, predictions a and b of the same images, (N,), by a paired t test.

    Each image has one squared error on either side; their differences, over the variance of the labels, have the
    difference of R2 as their mean. labels: not all the same.
    """
    gains = ((a - labels) ** 2 - (b - labels) ** 2) / labels.var()
    if not gains.any():
        return Difference(0.0, 0.0, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # all gains may be the same
        found = stats.ttest_1samp(gains, 0.0)
        low, high = found.confidence_interval(1 - level)
    return Difference(float(gains.mean()), float(low), float(high), float(found.pvalue))


def fisher(errors_a: int, images_a: int, errors_b: int, images_b: int) -> float:
    """The p-value of Fisher's exact test (1922): are two shares of errors those of one classifier on two samples?

    For when it is not known which images were wrong. Far weaker than `mcnemar` on the same test set, which need not ask
    how hard the images are.
    """
    table = np.array([[errors_a, images_a - errors_a], [errors_b, images_b - errors_b]])
    return float(stats.fisher_exact(table).pvalue)


def newcombe(errors_a: int, images_a: int, errors_b: int, images_b: int, level: float) -> tuple[float, float]:
    """The interval of the difference of accuracy of two samples, from Wilson's of each (Newcombe 1998, method 10)."""
    accuracy_a, accuracy_b = 1 - errors_a / images_a, 1 - errors_b / images_b
    z = float(stats.norm.isf(level / 2))
    low_a, high_a = scores.wilson(images_a - errors_a, images_a, z)
    low_b, high_b = scores.wilson(images_b - errors_b, images_b, z)
    difference = accuracy_b - accuracy_a
    low = difference - np.hypot(accuracy_b - low_b, high_a - accuracy_a)
    high = difference + np.hypot(high_b - accuracy_b, accuracy_a - low_a)
    return float(low), float(high)


class Difference(NamedTuple):
    """A difference of means, B - A, its interval, and the p-value of its test."""

    difference: float
    low: float
    high: float
    p: float


def welch(a: Floats, b: Floats, level: float) -> Difference | None:
    """Difference of the means of two samples of accuracies, one per seed, (seeds,), by Welch's t (1947).

    The spread of the two sides may differ. The degrees of freedom are those of the side with fewer seeds, one less than
    it has: with these, no ratio of the spreads makes false alarms more frequent than the level (Mickey and Brown 1966).
    Welch's own estimate of them gives 12 % false alarms at level 0.05 for 2 seeds against 20, and 6 % for 3 against 3.

    None: the means differ and neither side varies between its seeds. Then there is no measure of chance to compare the
    difference with. Raises ValueError with fewer than two accuracies per side.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError("a spread needs two numbers or more")
    a, b = _whole(a), _whole(b)
    error = float(np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
    return _student(float(b.mean() - a.mean()), error, min(len(a), len(b)) - 1, level)


def paired_by_seed(a: Floats, b: Floats, level: float) -> Difference | None:
    """The same difference from pairs: a[i] and b[i] have the same seed. Student's t of the differences, (seeds,).

    Narrower than `welch` only if a seed that is lucky on one side is lucky on the other. None, raises: as `welch`.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError("pairs need as many numbers on both sides, two or more")
    differences = _whole(b) - _whole(a)
    error = float(np.sqrt(differences.var(ddof=1) / len(a)))
    return _student(float(differences.mean()), error, len(a) - 1, level)


def _whole(accuracies: Floats) -> Floats:
    """As whole numbers, floats add up exactly: equal means are equal, and a sample that does not vary has no spread."""
    whole: Floats = np.rint(accuracies * 10**DECIMALS)
    return whole


def _student(difference: float, error: float, freedom: int, level: float) -> Difference | None:
    """Interval and p-value of a difference with this standard error; both in units of 10**-DECIMALS."""
    if not error:
        return None if difference else Difference(0.0, 0.0, 0.0, 1.0)
    half = float(stats.t.isf(level / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, freedom))
    low, middle, high = (value / 10**DECIMALS for value in (difference - half, difference, difference + half))
    return Difference(middle, low, high, p)


def seeds_needed(difference: float, deviation_a: float, deviation_b: float, level: float, power: float) -> int | None:
    """How many seeds per side `welch` needs to find a difference of this size in `power` of the comparisons.

    difference, and the standard deviations over seeds, in the same unit. The power is that of the noncentral t
    distribution (Cohen 1988). At least 2. None: more than MOST_SEEDS, or there is no difference or no deviation to
    compute it from.
    """
    variance = deviation_a**2 + deviation_b**2
    if difference == 0 or variance == 0:
        return None
    n = np.arange(2, MOST_SEEDS + 1)
    freedom = n - 1
    critical = stats.t.isf(level / 2, freedom)
    noncentrality = abs(difference) / np.sqrt(variance / n)
    # The other tail, a significant difference the wrong way, is no success and less than 1 % of the power looked for.
    enough: Any = stats.nct.sf(critical, freedom, noncentrality) >= power
    return int(n[enough][0]) if enough.any() else None
