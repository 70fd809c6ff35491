"""What a run shows while it trains: after each epoch, the metrics and curves so far, for DVC, VS Code and `make watch`.

Until the end, metrics/train.json has one more key, `unfinished`. A killed run leaves it there, so that nobody takes its
numbers for results. DVC removes both files before the stage starts, and records them only when the stage succeeds.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from stages.common import files, paths
from stages.common.paths import UNFINISHED
from stages.train.trainer import Row, best_epoch

ROOT = "DVC_ROOT"  # variable that DVC sets for a stage: that repository, also in a temporary or queued experiment


class Live:
    """Writes what is known of a run after each epoch; to be called with the history, a row per epoch that has ended.

    parameters: number of weights. epochs: at most. select_by: as in `best_epoch`. The time left is in
    runs/progress.json alone, which is no output: nothing in metrics depends on the clock.
    """

    def __init__(self, parameters: int, epochs: int, select_by: str) -> None:
        self.parameters, self.epochs, self.select_by = parameters, epochs, select_by
        self.before: int | None = None  # epochs that another process had run
        self.began = time.time()

    def __call__(self, history: Sequence[Row]) -> None:
        """An epoch has ended."""
        done = len(history)
        files.write_text(paths.TRAINING_CURVES, curves(history))
        unfinished = {UNFINISHED: f"epoch {done} of {self.epochs}"}
        files.write_json(paths.TRAIN_METRICS, {**unfinished, **metrics(history, self.parameters, self.select_by)})
        if self.before is None:
            self.before = done - 1
        seconds = (time.time() - self.began) / (done - self.before)
        progress = {"process": os.getpid(), "epoch": done, "epochs": self.epochs, "seconds_per_epoch": seconds}
        progress |= {"time": time.time(), **{key: history[-1][key] for key in history[-1] if key.startswith("val")}}
        files.write_json(paths.PROGRESS, progress)
        if root := os.environ.get(ROOT):
            with suppress(OSError):  # it is another program's view: no reason to end a run
                files.write_text(Path(root) / paths.EPOCH_SIGNAL, json.dumps({"pid": os.getpid(), "step": done}))

    def end(self) -> None:
        """The run is over, and its results are written."""
        paths.PROGRESS.unlink(missing_ok=True)
        if root := os.environ.get(ROOT):
            with suppress(OSError):
                (Path(root) / paths.EPOCH_SIGNAL).unlink(missing_ok=True)


def curves(history: Sequence[Row]) -> str:
    """The content of metrics/plots/training.csv."""
    return pd.DataFrame(history).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def metrics(history: Sequence[Mapping[str, float]], parameters: int, select_by: str) -> dict[str, float]:
    """The content of metrics/train.json: how many epochs there were, and what was measured in the best one."""
    best = history[best_epoch(history, select_by) - 1]
    measured = {key: value for key, value in best.items() if key not in ("epoch", "lr")}
    return {"best_epoch": best["epoch"], "epochs_run": len(history), "parameters": parameters, **measured}
