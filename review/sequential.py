"""Training more seeds until a comparison is decided, without raising its false alarms: a group-sequential test.

Looking again and again and stopping at the first p below the level would raise false alarms far above it. Lan and
DeMets (1983) spend the level alpha over the looks by how much information each has: here by their function of Pocock's
type, alpha ln(1 + (e - 1) t), which lets clear differences stop early. The boundaries follow from the joint normal
distribution of the looks (Armitage, McPherson and Rowe 1969); few seeds are allowed for by taking the nominal level of
each look, with Student's t in place of the normal (Jennison and Turnbull 2000, chapter 11). The interval at each look
is the repeated confidence interval (Jennison and Turnbull 1989): it covers the difference at all looks at once.
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


def schedule(budget: int, trained: int) -> list[int]:
    """Seeds per side at each look: `trained`, which are there, count as the first one; the last is the budget."""
    later = [n for n in LOOKS if trained < n < budget]
    first = [trained] if LOOKS[0] <= trained < budget else []
    return [*first, *later, budget]


def spent(fraction: float, level: float) -> float:
    """The share of false alarms that may have happened once this fraction of the information is there, 0 to 1."""
    return float(level * np.log1p((np.e - 1) * min(fraction, 1.0)))


def nominal_levels(looks: Sequence[int], level: float) -> list[float]:
    """The two-sided level of each look alone, so that all looks together have `level`.

    looks: seeds per side, increasing, the last being the budget. With as many seeds on both sides, what a look knows of
    the difference (one over the variance of its estimate) is in proportion to them, whatever the two spreads are.
    """
    levels: list[float] = []
    score, density = np.zeros(1), np.ones(1)  # (points,), of z sqrt(seeds) where the test goes on
    before, already = 0.0, 0.0
    for now in looks:
        target = spent(now / looks[-1], level)
        bound = _bound(score, density, before, now, target - already)
        levels.append(float(2 * stats.norm.sf(bound)))
        grid = np.linspace(-bound, bound, GRID) * np.sqrt(now)
        weights = np.full(GRID, grid[1] - grid[0])
        weights[[0, -1]] /= 2
        deviation = np.sqrt(now - before)
        density = weights * (stats.norm.pdf((grid[:, None] - score) / deviation) / deviation @ density)
        score, before, already = grid, now, target
    return levels


def _bound(score: Floats, density: Floats, before: float, now: float, share: float) -> float:
    """The |z| that the test exceeds with this probability at a look, having gone on so far.

    score, density: (points,), of the look before, at `before` seeds; the density times the width of its cell.
    """

    def excess(bound: float) -> float:
        reach, deviation = bound * np.sqrt(now), np.sqrt(now - before)
        tails = stats.norm.sf((reach - score) / deviation) + stats.norm.cdf((-reach - score) / deviation)
        return float((tails * density).sum() - share)

    return float(optimize.brentq(excess, 0.0, 40.0))


def look(a: Floats, b: Floats, nominal: float, margin: float) -> Look:
    """Judge the accuracies of the seeds of both sides, as many on each, (seeds,), at the level of this look.

    margin: a share; differences that are known to be smaller are equivalent, whichever sign they have. That is known
    when the interval lies within it: two one-sided tests (Schuirmann 1987).
    """
    difference, low, high = float(b.mean() - a.mean()), -1.0, 1.0  # anything, where no seed differs from another
    if found := significance.welch(a, b, nominal):
        difference, low, high = found.difference, found.low, found.high
    word = UNDECIDED
    if -margin < low and high < margin:
        word = EQUIVALENT
    elif low > 0:
        word = significance.BETTER
    elif high < 0:
        word = significance.WORSE
    return Look(word, difference, low, high, nominal)
