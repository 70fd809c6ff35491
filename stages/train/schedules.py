"""Learning-rate schedules: pure functions of the step, without a state that a resumed run would need.

Each returns a function from the step (0 … steps - 1) to the factor of the optimizer's lr.
"""

import math
from collections.abc import Callable

Factor = Callable[[int], float]


def constant(steps: int) -> Factor:
    """Always 1."""
    return lambda step: 1.0


def one_cycle(steps: int, warmup_fraction: float, start_factor: float, end_factor: float) -> Factor:
    """Linear increase to 1 over the first part of the run, then decrease along half a cosine.

    Source: Smith and Topin 2017, "Super-convergence"; the decrease is that of torch's OneCycleLR.
    """
    warmup = max(warmup_fraction * steps - 1, 0)  # the step with the highest rate, as OneCycleLR counts it
    decrease = steps - 1 - warmup  # steps; they may be fewer than one

    def factor(step: int) -> float:
        if step < warmup:
            return start_factor + (1 - start_factor) * step / warmup
        return _half_cosine((step - warmup) / decrease, end_factor) if decrease else 1.0

    return factor


def cosine(steps: int, end_factor: float) -> Factor:
    """Decrease along half a cosine, from the first step to the last. Source: Loshchilov and Hutter 2017, "SGDR"."""
    return lambda step: _half_cosine(step / max(steps - 1, 1), end_factor)


def _half_cosine(progress: float, end: float) -> float:
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


SCHEDULES: dict[str, Callable[..., Factor]] = {"constant": constant, "one_cycle": one_cycle, "cosine": cosine}
