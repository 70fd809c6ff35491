"""The fast and the default recipe against the examples program of PyTorch: time to 99 %, and to one of its epochs.

    PYTHONPATH=. .venv/bin/python -m benchmarks.recipes

The plain loop trains until an epoch ends with a test accuracy of 99.0 %; its evaluation is not timed. After each of its
epochs the fast recipe runs, after every second one the default recipe, each in its own processes, so that the sides
have the machine to themselves in turn. Loop seconds cover the training loop with its validation, process seconds the
whole train stage with imports and writing.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import StepLR

from benchmarks import plain, studies
from benchmarks.scratch import Scratch
from benchmarks.summary import spread

GOAL = 0.99


def train(overrides: list[str]) -> dict[str, float]:
    """Train a recipe once; returns loop_seconds and process_seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return Scratch(Path(folder) / "recipe", overrides).train(seed=0)


def to_the_goal(root: Path, seed: int, most_epochs: int) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Train the plain loop to GOAL; returns one row per epoch, and the runs of our recipes in between."""
    torch.manual_seed(seed)
    model = plain.Net()
    training = plain.batches(root, True, 0.1307, 0.3081, 64)
    test = plain.batches(root, False, 0.1307, 0.3081, 1000)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = StepLR(optimizer, step_size=1, gamma=0.7)
    fast = studies.recipe("fast")
    epochs: list[dict[str, float]] = []
    between: list[dict[str, Any]] = []
    while len(epochs) < most_epochs and (not epochs or epochs[-1]["accuracy"] < GOAL):
        seconds = plain.epoch(model, training, optimizer)
        schedule.step()
        epochs.append({"seconds": seconds, "accuracy": plain.accuracy(model, test)})
        between.append({"recipe": "fast", "plain_epoch_seconds": seconds, **train(fast)})
        if len(epochs) % 2:
            between.append(
                {"recipe": "default", "plain_epoch_seconds": seconds, **train(["-S", "train.numerics=fast"])}
            )
        print(json.dumps({"epoch": len(epochs), **epochs[-1]}), file=sys.stderr, flush=True)
    return epochs, between


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description="Our recipes against the plain loop."
    )
    parser.add_argument("--repeats", type=int, default=2, help="seeds of the plain loop")
    arguments = parser.parse_args()
    with plain.mnist() as root:
        runs = [to_the_goal(root, seed, most_epochs=20) for seed in range(arguments.repeats)]
    between = [run for _, ours in runs for run in ours]
    fast = [run for run in between if run["recipe"] == "fast"]
    default = [run for run in between if run["recipe"] == "default"]
    epochs_to_goal = [len(epochs) for epochs, _ in runs]
    seconds = [sum(row["seconds"] for row in epochs) for epochs, _ in runs]
    loop, process = (spread([run[key] for run in fast]) for key in ("loop_seconds", "process_seconds"))
    to_goal = spread(seconds)
    result = {
        "plain_epoch_seconds": spread([row["seconds"] for epochs, _ in runs for row in epochs]),
        "plain_accuracy_after_each_epoch": [[row["accuracy"] for row in epochs] for epochs, _ in runs],
        "plain_epochs_to_99": epochs_to_goal,
        "plain_seconds_to_99": to_goal,
        "fast_loop_seconds": loop,
        "fast_process_seconds": process,
        "times_faster_to_99_in_the_loop": round(to_goal["median"] / loop["median"], 1),
        "times_faster_to_99_whole_process": round(to_goal["median"] / process["median"], 1),
        "default_loop_seconds": spread([run["loop_seconds"] for run in default]),
        "default_loop_as_a_share_of_a_plain_epoch": spread(
            [run["loop_seconds"] / run["plain_epoch_seconds"] for run in default]
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
