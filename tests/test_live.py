"""The files that show the state of a run, during training and after it was killed."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from stages.common import paths
from stages.train import __main__ as train_stage
from stages.train import live
from stages.train.live import Live
from stages.train.trainer import Row
from tests.test_resume import Stage


class Killed(BaseException):
    """In place of SIGKILL."""


def test_files_grow_each_epoch_and_those_of_a_killed_run_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage, repository, seen = Stage(), tmp_path / "repository", []
    stage.values["machine"]["checkpoint_every_seconds"] = 0.2
    stage.values["train"]["numerics"] = "fast"  # other tests of this process may have used torch before
    stage.write_params()
    monkeypatch.setenv(live.ROOT, str(repository))
    show = Live.__call__

    def shown(self: Live, history: list[Row]) -> None:
        show(self, history)
        metrics, table = json.loads(paths.TRAIN_METRICS.read_bytes()), pd.read_csv(paths.TRAINING_CURVES)
        progress, told = (json.loads(path.read_bytes()) for path in (paths.PROGRESS, repository / paths.EPOCH_SIGNAL))
        epoch = len(table)
        assert metrics["unfinished"] == f"epoch {epoch} of 3"
        assert metrics["epochs_run"] == epoch
        assert table["validation_accuracy"].max() == pytest.approx(metrics["validation_accuracy"], abs=1e-5)
        assert told == {"pid": os.getpid(), "step": epoch}
        assert (progress["process"], progress["epoch"], progress["epochs"]) == (os.getpid(), epoch, 3)
        assert progress["seconds_per_epoch"] > 0
        seen.append(epoch)
        if len(seen) == 2:
            raise Killed

    monkeypatch.setattr(Live, "__call__", shown)
    with pytest.raises(Killed):
        train_stage.main()
    assert paths.UNFINISHED in json.loads(paths.TRAIN_METRICS.read_bytes())
    train_stage.main()
    assert seen[-1] == 3
    resumed = stage.digests()
    assert paths.UNFINISHED not in json.loads(paths.TRAIN_METRICS.read_bytes())
    assert not paths.PROGRESS.exists()
    assert not (repository / paths.EPOCH_SIGNAL).exists()

    monkeypatch.setattr(Live, "__call__", lambda self, history: None)
    train_stage.main()
    assert stage.digests() == resumed


def test_a_read_only_repository_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setenv(live.ROOT, "file")
    run = Live(parameters=1, epochs=2, select_by="accuracy")
    run([{"epoch": 1, "lr": 0.1, "train_loss": 1.0}])  # without a validation part
    assert json.loads(paths.TRAIN_METRICS.read_bytes()) == {
        "unfinished": "epoch 1 of 2",
        "best_epoch": 1,
        "epochs_run": 1,
        "parameters": 1,
        "train_loss": 1.0,
    }
    run.end()
    assert not paths.PROGRESS.exists()
