"""The recipes against the examples program of PyTorch: time to 99 %, and what one plain epoch buys here.

    PYTHONPATH=. .venv/bin/python -m benchmarks.recipes

The plain side is trained until an epoch ends with 99.0 % of the test images right (its evaluation is not counted).
After each of its epochs the fast recipe runs, after every second one the default: each in processes of its own, so
that both sides have the machine to themselves in turn. In-loop seconds count the training loop and its validation;
process seconds the whole train stage, imports and writing included.
"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import StepLR

from benchmarks import plain
from benchmarks.scratch import Scratch
from benchmarks.summary import spread

GOAL = 0.99
FAST = Path("recipes/fast.txt")


def recipe(overrides: list[str]) -> dict[str, float]:
    """Train a recipe once, without the test set; returns its loop_seconds and process_seconds."""
    with tempfile.TemporaryDirectory() as folder:
        return Scratch(Path(folder) / "recipe", overrides).train(seed=0)


def to_the_goal(root: Path, seed: int, most_epochs: int) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """Train the examples program to 99.0 %; returns a row an epoch, and the runs of our recipes in between."""
    torch.manual_seed(seed)
    model = plain.Net()
    train, test = plain.batches(root, True, 0.1307, 0.3081, 64), plain.batches(root, False, 0.1307, 0.3081, 1000)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = StepLR(optimizer, step_size=1, gamma=0.7)
    fast = shlex.split(FAST.read_text(encoding="utf-8"))
    epochs: list[dict[str, float]] = []
    between: list[dict[str, Any]] = []
    while len(epochs) < most_epochs and (not epochs or epochs[-1]["accuracy"] < GOAL):
        seconds = plain.epoch(model, train, optimizer)
        schedule.step()
        epochs.append({"seconds": seconds, "accuracy": plain.accuracy(model, test)})
        between.append({"recipe": "fast", "plain_epoch_seconds": seconds, **recipe(fast)})
        if len(epochs) % 2:
            between.append(
                {"recipe": "default", "plain_epoch_seconds": seconds, **recipe(["-S", "train.numerics=fast"])}
            )
        print(json.dumps({"epoch": len(epochs), **epochs[-1]}), file=sys.stderr, flush=True)
    return epochs, between


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description="The recipes and a plain loop.")
    parser.add_argument("--repeats", type=int, default=2, help="seeds of the plain loop")
    arguments = parser.parse_args()
    with plain.mnist() as root:
        runs = [to_the_goal(root, seed, most_epochs=20) for seed in range(arguments.repeats)]
    between = [run for _, ours in runs for run in ours]
    fast = [run for run in between if run["recipe"] == "fast"]
    default = [run for run in between if run["recipe"] == "default"]
    needed = [len(epochs) for epochs, _ in runs]
    seconds = [sum(row["seconds"] for row in epochs) for epochs, _ in runs]
    loop, process = (spread([run[key] for run in fast]) for key in ("loop_seconds", "process_seconds"))
    to_goal = spread(seconds)
    result = {
        "plain_epoch_seconds": spread([row["seconds"] for epochs, _ in runs for row in epochs]),
        "plain_accuracy_after_each_epoch": [[row["accuracy"] for row in epochs] for epochs, _ in runs],
        "plain_epochs_to_99": needed,
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
