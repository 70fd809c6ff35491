"""The group-sequential test: published boundaries, and whether it errs as seldom as it says, by simulation."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from review import sequential, significance
from review.sequential import EQUIVALENT, UNDECIDED
from stages.evaluate.scores import Floats
from tests.test_significance import within

WORDS = (significance.BETTER, significance.WORSE, EQUIVALENT, UNDECIDED)
MARGIN, TRIALS = 0.001, 10_000


def test_the_boundaries_are_those_of_lan_and_demets() -> None:
    # Five equal looks at two-sided 0.05, Pocock's type of spending: Reboussin, DeMets, Kim and Lan (2000), program ld98
    bounds = stats.norm.isf(np.array(sequential.nominal_levels([1, 2, 3, 4, 5], 0.05)) / 2)
    assert bounds == pytest.approx([2.438, 2.427, 2.410, 2.397, 2.386], abs=0.002)
    assert sequential.nominal_levels([7], 0.05) == pytest.approx([0.05])


def test_the_levels_add_up_to_the_level() -> None:
    looks = [3, 5, 10]
    bounds = stats.norm.isf(np.array(sequential.nominal_levels(looks, 0.1)) / 2)
    steps = np.random.default_rng(0).normal(size=(200_000, 3)) * np.sqrt(np.diff([0, *looks]))
    crossed = (np.abs(steps.cumsum(1) / np.sqrt(looks)) > bounds).any(1).sum()
    assert within(int(crossed), 200_000, 0.1, 0.1)


@pytest.mark.parametrize(
    ("budget", "looks"), [(10, [3, 5, 7, 10]), (3, [3]), (2, [2]), (50, [3, 5, 7, 10, 14, 20, 50])]
)
def test_when_it_looks(budget: int, looks: list[int]) -> None:
    assert sequential.schedule(budget) == looks


def simulated(difference: float, spreads: tuple[float, float], budget: int) -> dict[str, int]:
    """How often each word comes out of TRIALS comparisons; `sequential.look` over all of them at once."""
    random = np.random.default_rng(5)
    looks = sequential.schedule(budget)
    levels = sequential.nominal_levels(looks, 0.05)
    a = random.normal(0.99, spreads[0], (TRIALS, budget))
    b = random.normal(0.99 + difference, spreads[1], (TRIALS, budget))
    words: npt.NDArray[np.int64] = np.full(TRIALS, len(WORDS) - 1)
    for n, level in zip(looks, levels, strict=True):
        now = judged(a[:, :n], b[:, :n], level)
        for trial in range(5):
            assert sequential.look(a[trial, :n], b[trial, :n], level, MARGIN).word == WORDS[now[trial]]
        words = np.where(words == len(WORDS) - 1, now, words)
    return {word: int((words == number).sum()) for number, word in enumerate(WORDS)}


def judged(a: Floats, b: Floats, level: float) -> npt.NDArray[np.int64]:
    """The place in WORDS of each trial; a, b: (trials, seeds)."""
    error = np.sqrt(a.var(1, ddof=1) / a.shape[1] + b.var(1, ddof=1) / b.shape[1])
    half = stats.t.isf(level / 2, min(a.shape[1], b.shape[1]) - 1) * error
    low, high = b.mean(1) - a.mean(1) - half, b.mean(1) - a.mean(1) + half
    inside = (low > -MARGIN) & (high < MARGIN)
    found: npt.NDArray[np.int64] = np.select([inside, low > 0, high < 0], [2, 0, 1], 3)
    return found


@pytest.mark.parametrize("spread", [1.0, 3.0, 20.0])
@pytest.mark.parametrize("budget", [2, 3, 5, 10, 20])
def test_equal_recipes_are_told_apart_no_oftener_than_the_level_says(budget: int, spread: float) -> None:
    for spreads in ((0.0005, 0.0005 * spread), (0.0005 * spread, 0.0005)):
        found = simulated(0.0, spreads, budget)
        assert within(found[significance.BETTER] + found[significance.WORSE], TRIALS, 0.0, 0.05)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("budget", [3, 10, 20])
def test_recipes_that_differ_by_the_margin_are_seldom_called_equivalent(budget: int, spread: float) -> None:
    for difference in (MARGIN, -MARGIN):
        found = simulated(difference, (0.0005, 0.0005 * spread), budget)
        assert within(found[EQUIVALENT], TRIALS, 0.0, 0.025)
        wrong = significance.WORSE if difference > 0 else significance.BETTER
        assert within(found[wrong], TRIALS, 0.0, 0.025)


def test_what_is_true_is_found() -> None:
    assert simulated(-0.002, (0.0005, 0.0005), 10)[significance.WORSE] > 0.98 * TRIALS
    assert simulated(0.002, (0.0005, 0.0005), 10)[significance.BETTER] > 0.98 * TRIALS
    assert simulated(0.0, (0.0005, 0.0005), 20)[EQUIVALENT] > 0.95 * TRIALS
    assert simulated(0.0, (0.001, 0.001), 5)[UNDECIDED] > 0.9 * TRIALS


def test_seeds_that_do_not_vary_decide_nothing() -> None:
    found = sequential.look(np.full(3, 0.99), np.full(3, 0.98), 0.05, MARGIN)
    assert (found.word, found.low, found.high) == (UNDECIDED, -1.0, 1.0)
    assert sequential.look(np.full(3, 0.99), np.full(3, 0.99), 0.05, MARGIN).word == EQUIVALENT
