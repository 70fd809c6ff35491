"""The first pass over pictures, and the worker processes: order, resuming, and what goes wrong on the way."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from stages.common import params
from stages.common.errors import UserError
from stages.dataset import folder, pictures
from stages.dataset.folder import Reader
from stages.preprocess import __main__ as preprocess
from stages.preprocess import survey, workers
from tests.faults.lab import is_running, wait_for
from tests.imports import ROOT
from tests.test_folder import fill
from tests.test_pictures import JPEG, PNG

DEFAULTS = params.load(ROOT / "params.yaml")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    contents = {f"{label}/{number}": content for label in "ab" for number, content in enumerate((PNG, JPEG, b"", b"x"))}
    return fill(tmp_path / "images", contents)


def surveyed(root: Path, processes: int = 1) -> list[survey.Surveyed]:
    return survey.survey(folder.scan(root), Reader(root), processes)


def test_digest_and_header_of_every_file(root: Path) -> None:
    found = surveyed(root)
    assert [picture.digest for picture in found[:4]] == [
        hashlib.sha256(content).digest() for content in (PNG, JPEG, b"", b"x")
    ]
    assert [picture.facts and picture.facts.format for picture in found] == ["PNG", "JPEG", None, None] * 2
    assert [picture.reason.split(";")[0] for picture in found[:4]] == ["", "", "an empty file", "not a picture"]
    assert found[0].facts == pictures.facts(PNG)


def test_the_number_of_processes_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = surveyed(root)
    survey.forget()
    monkeypatch.setattr(survey, "FEW_PICTURES", 0)
    assert surveyed(root, processes=2) == alone


def test_a_survey_goes_on_where_it_was_killed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = surveyed(root)
    lines = survey.STATE.read_text(encoding="utf-8").splitlines(keepends=True)
    survey.STATE.write_text("".join(lines[:6]) + lines[6][:20], encoding="utf-8")  # killed within a line
    (root / "a/2").write_bytes(JPEG)  # and changed since
    read: list[str] = []
    original = Reader.read

    def noted(reader: Reader, name: str) -> bytes:
        read.append(name)
        return original(reader, name)

    monkeypatch.setattr(Reader, "read", noted)
    again = surveyed(root)
    assert "resuming after 2 of 8 pictures" in capsys.readouterr().out
    assert read == ["a/2", "a/3", "b/0", "b/1", "b/2", "b/3"]
    assert [*again[:2], *again[3:]] == [*expected[:2], *expected[3:]]
    assert again[2].digest == hashlib.sha256(JPEG).digest()
    survey.forget()
    assert not survey.STATE.exists()


def test_a_state_that_is_nonsense_is_read_over(root: Path) -> None:
    expected = surveyed(root)
    first_line = survey.STATE.read_text(encoding="utf-8").splitlines(keepends=True)[0]
    for content in ("[]\n", "null\n", json.dumps(["a/0", 0, 0, "", None, ""]) + "\n", "\x00"):
        for start in ("", first_line):
            survey.STATE.write_text(start + content, encoding="utf-8")
            assert surveyed(root) == expected


def test_a_state_of_other_code_or_another_pillow_is_read_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def resumes() -> bool:
        surveyed(root)
        return "resuming after 8 of 8 pictures" in capsys.readouterr().out

    assert [resumes(), resumes()] == [False, True]
    monkeypatch.setattr("PIL.__version__", "1.0")
    assert [resumes(), resumes()] == [False, True]
    edited = tmp_path / "pictures.py"
    edited.write_bytes(Path(pictures.__file__).read_bytes() + b"#")
    monkeypatch.setattr(survey, "CODE", [edited if path.name == "pictures.py" else path for path in survey.CODE])
    assert [resumes(), resumes()] == [False, True]
    _, *lines = survey.STATE.read_text(encoding="utf-8").splitlines(keepends=True)
    survey.STATE.write_text("".join(lines), encoding="utf-8")  # as earlier versions wrote it
    assert not resumes()


@contextmanager
def another_user() -> Iterator[None]:
    """Another user than root, who may read everything."""
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


@pytest.mark.parametrize("name", ["a/1", "a"])
def test_what_may_not_be_read_stops_it_and_is_named(name: str, root: Path) -> None:
    root.parent.chmod(0o777)
    (root / name).chmod(0)
    try:
        with another_user(), pytest.raises(PermissionError) as error:
            surveyed(Path("images"))  # from here: another user may not pass through the folders above
    finally:
        (root / name).chmod(0o755)
    assert str(error.value.filename).rstrip("/") == f"images/{name}"


def half(items: list[int]) -> list[float]:
    return [item / 2 for item in items]


def fail(items: list[int]) -> list[int]:
    raise UserError(f"no {items[0]}")


def die(items: list[int]) -> list[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    return items


def test_results_come_in_order_and_errors_through() -> None:
    for processes in (1, 2):
        assert list(workers.in_order(half, range(100), processes, batch=7)) == [item / 2 for item in range(100)]
    assert list(workers.in_order(half, [], 2)) == []
    with pytest.raises(UserError, match="no 0"):
        list(workers.in_order(fail, range(10), 2))


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(UserError, match="a worker process was killed"):
        list(workers.in_order(die, range(10), 2))


PARENT = """
import os, time
from stages.preprocess import workers

def show(items):
    print(os.getpid(), flush=True)
    time.sleep(60)
    return items

if __name__ == "__main__":
    list(workers.in_order(show, range(100), 2, batch=1))
"""


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        children = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
        assert parent.stdout.read() is not None  # ends when the last of them does, which has it open
    wait_for(lambda: not any(map(is_running, children)), 600)


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "LINE_SECONDS", -1)
    assert list(workers.progress(range(3), "decoding", 1005, done=1002)) == [0, 1, 2]
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d,]+ a second, [\d,]+ s left", "RATE", line) for line in lines] == [
        f"decoding: 1,00{count} of 1,005 pictures, RATE" for count in (3, 4, 5)
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(workers.progress(range(3), "decoding", 8, done=5)) == [0, 1, 2]
    shown = capsys.readouterr()
    assert not shown.out
    assert "decoding:" in shown.err
    assert "5/8" in shown.err


def test_preprocess_uses_as_many_processes_as_the_machine_settings_say(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**DEFAULTS, "data": {**DEFAULTS["data"], "name": "images", "images": str(root)}}
    values["preprocess"] = {**DEFAULTS["preprocess"], "bad_images": "skip"}
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    process_counts: list[int] = []

    def note(*arguments: object) -> None:
        process_counts.append(int(str(arguments[4])))
        raise UserError("enough")

    monkeypatch.setattr("stages.preprocess.own.prepare", note)
    monkeypatch.setattr("stages.common.machine.cores", lambda: 5)
    for variable in ("", "3"):
        monkeypatch.setenv("MACHINE_THREADS", variable)
        with pytest.raises(UserError, match="enough"):
            preprocess.main()
    assert process_counts == [5, 3]


def test_classes_that_are_renamed_after_the_survey(root: Path) -> None:
    """In labels.csv, which is no picture: each picture keeps its number of a class."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    labels = root / "labels.csv"
    labels.write_text("file,label\n" + "".join(f"{name},{name[0]}\n" for name in names), encoding="utf-8")
    before = folder.scan(root)
    reader = Reader(root)
    survey.survey(before, reader, 1)
    survey.check_unchanged(before, folder.scan(root), reader)
    labels.write_text(labels.read_text(encoding="utf-8").replace(",b\n", ",bee\n"), encoding="utf-8")
    with pytest.raises(UserError, match="^b: a class that was added, removed or renamed while the pictures were read"):
        survey.check_unchanged(before, folder.scan(root), reader)
