"""The cost of portable numerics: the loop of one epoch of the default recipe, portable and fast in turn.

PYTHONPATH=. .venv/bin/python -m benchmarks.numerics
"""

import json

from benchmarks.recipes import train
from benchmarks.summary import spread

REPEATS = 4


def main() -> None:
    """Print JSON."""
    pairs = []
    for _ in range(REPEATS):
        portable, fast = (
            train(["-S", "train.epochs=1", "-S", f"train.numerics={numerics}"])["loop_seconds"]
            for numerics in ("portable", "fast")
        )
        pairs.append((portable, fast))
    result = {
        "portable_loop_seconds": spread([portable for portable, _ in pairs]),
        "fast_loop_seconds": spread([fast for _, fast in pairs]),
        "ratio": spread([portable / fast for portable, fast in pairs]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
