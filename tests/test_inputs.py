"""Code and parameters that are edited while a stage runs: DVC records them only after it has ended."""

import importlib.util
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common import inputs, params
from stages.common.errors import UserError
from tests.clones import Clone
from tests.imports import ROOT

CODE = Path("stages/of_the_test.py")


@pytest.fixture(autouse=True)
def _stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which the stage train runs, and has imported CODE."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    CODE.parent.mkdir()
    CODE.write_text("lr = 1\n", encoding="utf-8")
    module = types.ModuleType("stages.of_the_test")
    module.__spec__ = importlib.util.spec_from_file_location(module.__name__, CODE.absolute())
    monkeypatch.setitem(sys.modules, module.__name__, module)
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


def test_parameters_of_a_stage_in_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "seeds/dvc.yaml:seed@3")
    Path("seeds").mkdir()
    Path("seeds/dvc.yaml").write_bytes((ROOT / "seeds/dvc.yaml").read_bytes())
    inputs.remember()
    edit("train.seed", 5)  # a seed has its own
    inputs.check()
    edit("train.epochs", 99)
    with pytest.raises(UserError, match=r"^train\.epochs in params\.yaml changed while "):
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


@pytest.mark.parametrize("change", [lambda: CODE.write_text("lr = 2\n", encoding="utf-8"), CODE.unlink])
def test_code(change: Callable[[], object]) -> None:
    inputs.remember()
    inputs.check()
    change()
    with pytest.raises(UserError, match=r"^stages/of_the_test\.py changed while .*; run it again; the rest$"):
        inputs.check("; the rest")


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
