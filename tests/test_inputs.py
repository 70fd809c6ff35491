"""Code, parameters and data that change while a stage runs: DVC records them only after it has ended."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common import inputs, params
from stages.common.errors import UserError
from tests.clones import Clone
from tests.imports import ROOT

CODE, LIST, SHARD = Path("stages/train/loop.py"), Path("data/processed/data.json"), Path("data/processed/train/0.bin")
OTHERS = ("stages/evaluate/scores.py", "stages/train/__pycache__/loop.pyc", "stages/train/.#loop.py")


@pytest.fixture(autouse=True)
def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which the stage train runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inputs, "ROOT", tmp_path)
    Path("dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for path in (CODE, CODE.with_name("__init__.py"), LIST, SHARD, *map(Path, OTHERS)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("lr = 1\n", encoding="utf-8")
    monkeypatch.setenv("DVC_STAGE", "train")
    monkeypatch.setattr(inputs, "_start", None)


def edit(key: str, value: Any) -> None:
    """Change a value of params.yaml; its comments and layout are lost."""
    values = params.load(Path("params.yaml"))
    *sections, name = key.split(".")
    section = values
    for each in sections:
        section = section[each]
    assert section[name] != value
    section[name] = value
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("key", "value"), [("train.epochs", 99), ("optimizers.adam.lr", 0.5), ("model.name", "mlp"), ("train.loss", "mse")]
)
def test_a_parameter_of_the_stage(key: str, value: Any) -> None:
    inputs.remember()
    edit(key, value)
    with pytest.raises(UserError, match=rf"^{re.escape(key)} in params\.yaml changed while "):
        inputs.check()


@pytest.mark.parametrize(
    ("key", "value"),
    [("evaluate.worst_images", 9), ("machine.threads", 7), ("optimizers.sgd.lr", 0.5), ("models.mlp.hidden", 32)],
)
def test_a_parameter_that_the_stage_does_not_read(key: str, value: Any) -> None:
    inputs.remember()
    edit(key, value)
    inputs.check()


@pytest.mark.parametrize("prefix", ["seeds/dvc.yaml:", "", "../seeds/dvc.yaml:"], ids=["top", "seeds", "docs"])
def test_parameters_of_a_stage_in_another_file(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC names the file as seen from the folder in which it was started."""
    monkeypatch.setenv("DVC_STAGE", f"{prefix}seed@3")
    Path("seeds").mkdir()
    Path("seeds/dvc.yaml").write_bytes((ROOT / "seeds/dvc.yaml").read_bytes())
    inputs.remember()
    edit("train.seed", 5)  # a seed has its own
    inputs.check()
    edit("train.epochs", 99)
    CODE.write_text("lr = 2\n", encoding="utf-8")  # which `seeds.run` does not import, but starts
    with pytest.raises(UserError, match=rf"^{CODE}, train\.epochs in params\.yaml changed while seed@3 ran"):
        inputs.check()


def test_added_and_removed_parameters() -> None:
    inputs.remember()
    values = params.load(Path("params.yaml"))
    del values["train"]["seed"]
    values["train"]["sead"] = 0
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(UserError, match=r"^train\.seed in params\.yaml, train\.sead in params\.yaml changed while "):
        inputs.check()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda path: path.write_text("train: [", encoding="utf-8"), r"^params\.yaml:1:9: not valid YAML"),
        (Path.unlink, r"^params\.yaml: contains no mapping"),
    ],
)
def test_parameters_that_can_no_longer_be_read(spoil: Callable[[Path], None], line: str) -> None:
    inputs.remember()
    spoil(Path("params.yaml"))
    with pytest.raises(UserError, match=line):
        inputs.check()


@pytest.mark.parametrize("change", [lambda path: path.write_text("lr = 2\n", encoding="utf-8"), Path.unlink])
@pytest.mark.parametrize("path", [CODE, LIST, SHARD], ids=["code", "small", "shard"])
def test_files_that_the_stage_reads(path: Path, change: Callable[[Path], object]) -> None:
    inputs.remember()
    inputs.check()
    change(path)
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(path))} changed while train ran, .*; run it again; the rest$"
    ):
        inputs.check("; the rest")


@pytest.mark.parametrize("path", OTHERS)
def test_files_that_dvc_does_not_record(path: str) -> None:
    inputs.remember()
    Path(path).write_text("another", encoding="utf-8")
    inputs.check()


def test_a_large_file_is_compared_by_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SMALL_BYTES", 1)
    inputs.remember()
    before = SHARD.stat()
    SHARD.write_text("lr = 2\n", encoding="utf-8")
    os.utime(SHARD, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(UserError, match=f"^{SHARD} changed while train ran"):
        inputs.check()


def test_a_pipeline_that_changes_meanwhile() -> None:
    """Its stages and their keys are those of the start."""
    inputs.remember()
    Path("dvc.yaml").write_text("stages: {}", encoding="utf-8")
    edit("evaluate.worst_images", 9)
    inputs.check()
    edit("train.epochs", 99)
    with pytest.raises(UserError, match=r"^train\.epochs in params\.yaml changed while train ran"):
        inputs.check()


def test_a_dvc_yaml_with_aliases_and_parameters_of_another_file() -> None:
    Path("dvc.yaml").write_text(
        f"vars:\n  - code: &code [{CODE}]\nstages:\n  train:\n    deps: *code\n    params: [train, other.yaml: [a]]\n",
        encoding="utf-8",
    )
    inputs.remember()
    CODE.write_text("lr = 2\n", encoding="utf-8")
    edit("train.epochs", 99)
    with pytest.raises(UserError, match=rf"^{CODE}, train\.epochs in params\.yaml changed while train ran"):
        inputs.check()


def test_a_dvc_yaml_of_plots_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as DVCLive writes."""
    monkeypatch.setenv("DVC_STAGE", "of_no_file")
    Path("dvclive").mkdir()
    Path("dvclive/dvc.yaml").write_text("plots:\n  - metrics/loss.tsv:\n      x: step\n", encoding="utf-8")
    inputs.remember()
    inputs.check()


def test_a_program_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed trains in runs/seeds/0, with its own params.yaml and the code of the project."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/params.yaml").write_bytes(Path("params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path / "own")
    inputs.remember()
    (tmp_path / CODE).write_text("lr = 2\n", encoding="utf-8")
    with pytest.raises(UserError, match=f"^{CODE} changed while train ran"):
        inputs.check()


def test_code_that_was_written_again_with_the_same_content() -> None:
    inputs.remember()
    CODE.write_bytes(CODE.read_bytes())
    inputs.check()


def test_nothing_is_compared_in_a_program_that_dvc_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_STAGE")
    inputs.remember()
    edit("train.epochs", 99)
    inputs.check()


def programs() -> list[str]:
    """The modules that DVC runs as stages."""
    files = [ROOT / "dvc.yaml", *ROOT.glob("*/dvc.yaml")]
    stages = [stage for file in files for stage in yaml.safe_load(file.read_text(encoding="utf-8"))["stages"].values()]
    return [stage["cmd"].split()[2] for stage in stages]


@pytest.mark.parametrize("name", programs())
def test_every_stage_compares_its_inputs(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec and spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{name}.__main__")
    assert spec
    assert spec.origin
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert "\n@inputs.unchanged\ndef main(" in source or ("inputs.remember()" in source and "inputs.check(" in source)


@pytest.mark.soak
def test_dvc_does_not_record_an_edit_during_training(clone: Clone) -> None:
    clone.set("train.epochs", "20")
    original = (clone.path / "params.yaml").read_bytes()
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "train"],
        cwd=clone.path,
        env={**clone.environment, "MACHINE_CHECKPOINT_EVERY_SECONDS": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 1/20 loss"):
            break
    clone.set("optimizers.adam.lr", "0.5")
    output = process.communicate(timeout=300)[0]
    assert process.returncode, output
    assert "error: optimizers.adam.lr in params.yaml changed while train ran" in output
    assert "lr: 0.5" not in (clone.path / "dvc.lock").read_text(encoding="utf-8")
    (clone.path / "params.yaml").write_bytes(original)
    assert "resuming after step" in clone.dvc("repro", "train")
    assert "epochs: 20" in (clone.path / "dvc.lock").read_text(encoding="utf-8")
