"""Training more seeds until a comparison is decided, without more false alarms: a group-sequential test.

Testing after every few seeds and stopping at the first p below the level would give far more false alarms than the
level. Lan and DeMets (1983) spend the level alpha over the looks by the information that each has. This module uses
their function of Pocock's type, alpha ln(1 + (e - 1) t), which lets clear differences stop early. The boundaries follow
from the joint normal distribution of the looks (Armitage, McPherson and Rowe 1969). For small numbers of seeds, the
nominal level of each look is used with Student's t instead of the normal distribution (Jennison and Turnbull 2000,
chapter 11). The interval at each look is the repeated confidence interval (Jennison and Turnbull 1989), which covers
the difference at all looks simultaneously.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from review import significance
from stages.evaluate.scores import Floats

LOOKS = (3, 5, 7, 10, 14, 20)  # seeds per side at which the test looks
EQUIVALENT, UNDECIDED = "equivalent", "undecided"
GRID = 401  # points of an integral; odd


class Look(NamedTuple):
    """The state of the test at one look. Differences are B - A, in shares."""

    word: str  # better | worse | equivalent | undecided
    difference: float
    low: float  # of the repeated confidence interval
    high: float
    nominal: float  # the level of this look alone


def schedule(budget: int) -> list[int]:
    """Seeds per side at each look, the last one at the budget.

    It does not depend on the seeds that are trained already: else a second run on the same data could say otherwise.
    """
    return [*(n for n in LOOKS if n < budget), budget]


def spent(fraction: float, level: float) -> float:
    """The share of false alarms that may be spent when this fraction (0 to 1) of the information is known."""
    return float(level * np.log1p((np.e - 1) * min(fraction, 1.0)))


def nominal_levels(looks: Sequence[int], level: float) -> list[float]:
    """The two-sided level of each look alone, so that all looks together have `level`.

    looks: seeds per side, increasing; the last is the budget. Both sides have equally many seeds, so the information of
    a look (one over the variance of the difference) is proportional to that number, whatever the two spreads are.
    """
    levels: list[float] = []
    score, density = np.zeros(1), np.ones(1)  # (points,): of z sqrt(seeds) if the test continues
    previous, spent_before = 0.0, 0.0
    for seeds in looks:
        target = spent(seeds / looks[-1], level)
        bound = _bound(score, density, previous, seeds, target - spent_before)
        levels.append(float(2 * stats.norm.sf(bound)))
        grid = np.linspace(-bound, bound, GRID) * np.sqrt(seeds)
        weights = np.full(GRID, grid[1] - grid[0])
        weights[[0, -1]] /= 2
        deviation = np.sqrt(seeds - previous)
        density = weights * (stats.norm.pdf((grid[:, None] - score) / deviation) / deviation @ density)
        score, previous, spent_before = grid, seeds, target
    return levels


def _bound(score: Floats, density: Floats, previous: float, seeds: float, share: float) -> float:
    """The |z| that is exceeded with probability `share` at a look that the test reaches.

    score, density: (points,), of the previous look, at `previous` seeds; the density is multiplied by the cell's width.
    """

    def excess(bound: float) -> float:
        reach, deviation = bound * np.sqrt(seeds), np.sqrt(seeds - previous)
        tails = stats.norm.sf((reach - score) / deviation) + stats.norm.cdf((-reach - score) / deviation)
        return float((tails * density).sum() - share)

    return float(optimize.brentq(excess, 0.0, 40.0))


def look(a: Floats, b: Floats, nominal: float, margin: float) -> Look:
    """Judge the accuracies (seeds,) of both sides, equally many, at the nominal level of this look.

    margin: a share. The sides are equivalent if the interval lies within -margin to margin: two one-sided tests
    (Schuirmann 1987).
    """
    difference, low, high = float(b.mean() - a.mean()), -1.0, 1.0  # unknown if no seed differs from another
    if test := significance.welch(a, b, nominal):
        difference, low, high = test.difference, test.low, test.high
    word = UNDECIDED
    if -margin < low and high < margin:
        word = EQUIVALENT
    elif low > 0:
        word = significance.BETTER
    elif high < 0:
        word = significance.WORSE
    return Look(word, difference, low, high, nominal)
