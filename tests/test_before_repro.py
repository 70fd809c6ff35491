"""What `make repro` does before dvc: it checks params.yaml again once anything that decides the answer has changed."""

import shutil
import sys
from pathlib import Path

import pytest

from integrity import before_repro, rules
from stages.common.errors import UserError
from tests.imports import ROOT


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder whose params.yaml was found valid by the code in it; a list that grows with every later check."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for folder in ("stages", "integrity"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["before_repro"])
    before_repro.main()
    made: list[str] = []
    read = rules.read

    def recorded() -> None:
        made.append("check")
        read()

    monkeypatch.setattr(rules, "read", recorded)
    return made


def test_nothing_is_checked_twice(checks: list[str]) -> None:
    before_repro.main()
    assert checks == []


@pytest.mark.parametrize("path", ["params.yaml", "stages/train/options.py", "stages/new.py", "integrity/rules.py"])
def test_a_changed_file_is_checked_once(checks: list[str], path: str) -> None:
    with Path(path).open("a", encoding="utf-8") as file:
        file.write("# a comment\n")
    before_repro.main()
    before_repro.main()
    assert checks == ["check"]


def test_an_error_is_reported_until_it_is_fixed(checks: list[str]) -> None:
    good = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(good.replace("epochs: 5", "epochs: none"), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UserError, match="train.epochs"):
            before_repro.main()
    Path("params.yaml").write_text(good, encoding="utf-8")
    before_repro.main()
    assert checks == ["check"] * 2  # the parameters of the start were found valid then


def test_a_variable_that_overrides_the_file_is_checked(checks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_THREADS", "many")
    with pytest.raises(UserError, match="MACHINE_THREADS"):
        before_repro.main()


def test_a_missing_file_is_an_error(checks: list[str]) -> None:
    Path("params.yaml").unlink()
    with pytest.raises(UserError, match=r"params\.yaml: no such file"):
        before_repro.main()
