"""What portable numerics cost: the loop of one epoch of the default recipe, with them and with `fast`, in turn.

    PYTHONPATH=. .venv/bin/python -m benchmarks.numerics

For both networks: convolutions lose little, matrix products more, for which MKL is held to its oldest instructions.
"""

import json

from benchmarks.recipes import recipe
from benchmarks.summary import spread

REPEATS = 4
NETWORKS = ("cnn", "mlp")


def main() -> None:
    """Print JSON."""
    result = {}
    for network in NETWORKS:
        pairs = []
        for _ in range(REPEATS):
            portable, fast = (
                recipe(["-S", f"model.name={network}", "-S", "train.epochs=1", "-S", f"train.numerics={numerics}"])
                for numerics in ("portable", "fast")
            )
            pairs.append((portable["loop_seconds"], fast["loop_seconds"]))
        result[network] = {
            "portable_loop_seconds": spread([portable for portable, _ in pairs]),
            "fast_loop_seconds": spread([fast for _, fast in pairs]),
            "ratio": spread([portable / fast for portable, fast in pairs]),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
