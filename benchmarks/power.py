"""The power of several seeds, by simulation: the table in docs/review.md. `python -m benchmarks.power`

It draws accuracies over seeds from normal distributions, equally many on both sides, and judges them as review.compare
does: with a fixed number of seeds, and with `--seeds auto`. It takes seconds on one core; the draws are seeded.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from review import sequential
from stages.evaluate.scores import Floats

DEVIATION, MARGIN, LEVEL, TRIALS = 0.0005, 0.001, 0.05, 20_000  # standard deviation of the default recipe on MNIST
BUDGETS = (5, 10, 20)


def fixed(difference: float, seeds: int) -> float:
    """The share of comparisons that find a difference, with a fixed number of seeds per side."""
    random = np.random.default_rng(0)
    _, differences, errors = next(looks(random, difference, [seeds]))
    return float((2 * stats.t.sf(np.abs(differences) / errors, seeds - 1) < LEVEL).mean())


def automatic(difference: float, budget: int) -> tuple[float, float, float]:
    """With `--seeds auto`: shares that find a difference, and equivalence; mean number of seeds per side."""
    schedule = sequential.schedule(budget)
    levels = sequential.nominal_levels(schedule, LEVEL)
    undecided, used = np.ones(TRIALS, bool), np.zeros(TRIALS)
    different, equivalent = 0, 0
    for (n, differences, errors), level in zip(
        looks(np.random.default_rng(0), difference, schedule), levels, strict=True
    ):
        half = stats.t.isf(level / 2, n - 1) * errors
        low, high = differences - half, differences + half
        inside = (low > -MARGIN) & (high < MARGIN)
        apart = ((low > 0) | (high < 0)) & ~inside
        used[undecided] = n
        different += int((undecided & apart).sum())
        equivalent += int((undecided & inside).sum())
        undecided &= ~(inside | apart)
    return different / TRIALS, equivalent / TRIALS, float(used.mean())


def looks(random: np.random.Generator, difference: float, schedule: list[int]) -> Iterator[tuple[int, Floats, Floats]]:
    """At each look: seeds per side, differences of the means and their standard errors, both float64 (trials,)."""
    a = random.normal(0, DEVIATION, (TRIALS, schedule[-1]))
    b = random.normal(difference, DEVIATION, (TRIALS, schedule[-1]))
    for n in schedule:
        errors = np.sqrt((a[:, :n].var(1, ddof=1) + b[:, :n].var(1, ddof=1)) / n)
        yield n, b[:, :n].mean(1) - a[:, :n].mean(1), errors


def table() -> str:
    """One row per true difference."""
    head = ["true difference", *(f"{n} seeds" for n in (3, 5, 10)), *(f"auto, at most {n}" for n in BUDGETS)]
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for points in (0.0, 0.05, 0.1, 0.15, 0.2):
        cells = [f"{points:g} points", *(f"{fixed(points / 100, n):.0%}" for n in (3, 5, 10))]
        for budget in BUDGETS:
            different, equivalent, mean = automatic(points / 100, budget)
            cells.append(f"{different:.0%} ({equivalent:.0%}), {mean:.1f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
