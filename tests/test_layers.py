"""The import contracts in pyproject.toml: each fails for an import that breaks it."""

import ast
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from tests.imports import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
PACKAGES: list[str] = SETTINGS["root_packages"]
TOOLS = sorted((ROOT / "tools").glob("*.py"))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    # grimp finds packages as Python does, and would find the modules of this repository that are already imported
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def broken(capsys: pytest.CaptureFixture[str]) -> bool:
    status = lint_imports(no_cache=True)
    output = capsys.readouterr().out
    assert ("BROKEN" in output) == bool(status), output
    return bool(status)


def test_the_contracts_hold(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not broken(capsys)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("stages/train/loop.py", "from stages.evaluate import scores"),
        ("stages/download/published.py", "from stages.preprocess import split"),
        ("stages/dataset/packed.py", "from stages.network import losses"),
        ("stages/network/models.py", "from stages.dataset import packed"),
        ("stages/network/models.py", "from stages.train import seeds"),
        ("stages/common/files.py", "from stages.dataset import idx"),
        ("stages/evaluate/scores.py", "from review import significance"),
        ("stages/common/params.py", "from integrity import git"),
        ("integrity/verify.py", "from review import comparison"),
        ("integrity/verify.py", "from use import load"),
        ("stages/evaluate/scores.py", "from use import prepare"),
        ("review/compare.py", "from use import load"),
        ("use/load.py", "from review import results"),
        ("export/run.py", "from use import load"),
        ("export/run.py", "from seeds import paths"),
        ("integrity/verify.py", "from export import paths"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(
    path: str, line: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (copy / path).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    assert broken(capsys)


def test_a_folder_without_a_place_breaks_a_contract(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "stages/extra").mkdir()
    (copy / "stages/extra/__init__.py").write_bytes(b"")
    assert broken(capsys)


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.stem)
def test_tools_run_before_anything_is_installed(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {"tools", *sys.stdlib_module_names}
