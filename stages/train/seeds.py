"""Random numbers as functions of what they are for, not of how far a generator happened to run.

A run that resumes at any step, and one that never stopped, draw the same.
"""

import numpy as np

# What the numbers are for; the second word of a key, so that no two streams meet.
WEIGHTS, ORDER, STEP = 1, 2, 3


def seed_for(seed: int, stream: int, *position: int) -> int:
    """A 63-bit seed for one purpose, for instance `seed_for(seed, STEP, epoch, step)`.

    numpy's SeedSequence mixes the words so that keys that differ in one bit give unrelated seeds (O'Neill 2015).
    """
    return int(np.random.SeedSequence([seed, stream, *position]).generate_state(1, np.uint64)[0] >> 1)
