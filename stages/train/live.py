"""Metrics and curves after each epoch, which DVC, VS Code and `make watch` show during training.

Until the end, metrics/train.json has an additional key, `unfinished`. If a run is killed, the key marks its numbers as
incomplete. DVC removes both files before the stage starts, and records them only when the stage succeeds.
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

ROOT = "DVC_ROOT"  # DVC sets this variable for a stage: the main repository, also in a temporary or queued experiment


class Live:
    """Writes the state of a run after each epoch; call it with the history, one row per finished epoch.

    parameters: number of weights. epochs: at most. select_by: as in `best_epoch`. Only runs/progress.json, which is no
    output, has times: metrics do not depend on the clock.
    """

    def __init__(self, parameters: int, epochs: int, select_by: str) -> None:
        self.parameters, self.epochs, self.select_by = parameters, epochs, select_by
        self.resumed_epochs: int | None = None  # finished before this process started
        self.start = time.time()

    def __call__(self, history: Sequence[Row]) -> None:
        """Write the metrics after an epoch."""
        done = len(history)
        files.write_text(paths.TRAINING_CURVES, curves(history))
        unfinished = {UNFINISHED: f"epoch {done} of {self.epochs}"}
        files.write_json(paths.TRAIN_METRICS, {**unfinished, **metrics(history, self.parameters, self.select_by)})
        if self.resumed_epochs is None:
            self.resumed_epochs = done - 1
        seconds = (time.time() - self.start) / (done - self.resumed_epochs)
        progress = {"process": os.getpid(), "epoch": done, "epochs": self.epochs, "seconds_per_epoch": seconds}
        progress |= {"time": time.time(), **{key: history[-1][key] for key in history[-1] if key.startswith("val")}}
        files.write_json(paths.PROGRESS, progress)
        if root := os.environ.get(ROOT):
            with suppress(OSError):  # only another program's display depends on it
                files.write_text(Path(root) / paths.EPOCH_SIGNAL, json.dumps({"pid": os.getpid(), "step": done}))

    def end(self) -> None:
        """Remove the files that say that the run is at work."""
        paths.PROGRESS.unlink(missing_ok=True)
        if root := os.environ.get(ROOT):
            with suppress(OSError):
                (Path(root) / paths.EPOCH_SIGNAL).unlink(missing_ok=True)


def curves(history: Sequence[Row]) -> str:
    """The content of metrics/plots/training.csv."""
    return pd.DataFrame(history).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def metrics(history: Sequence[Mapping[str, float]], parameters: int, select_by: str) -> dict[str, float]:
    """The content of metrics/train.json: the number of epochs, and the metrics of the best one."""
    best = history[best_epoch(history, select_by) - 1]
    measured = {key: value for key, value in best.items() if key not in ("epoch", "lr")}
    return {"best_epoch": best["epoch"], "epochs_run": len(history), "parameters": parameters, **measured}
