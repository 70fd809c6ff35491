"""Seeds as functions of their purpose and position, not of a generator's state.

So a run that resumes at any step draws the same random numbers as one that was never interrupted.
"""

import numpy as np

# Purposes of random numbers, which keep their streams apart.
WEIGHTS, ORDER, STEP = 1, 2, 3


def seed_for(seed: int, stream: int, *position: int) -> int:
    """A 63-bit seed for one purpose, for example `seed_for(seed, STEP, epoch, step)`.

    numpy's SeedSequence mixes its inputs so that inputs that differ in one bit give unrelated seeds (O'Neill 2015).
    """
    return int(np.random.SeedSequence([seed, stream, *position]).generate_state(1, np.uint64)[0] >> 1)
