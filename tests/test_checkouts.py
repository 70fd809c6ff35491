"""compare and report give the same answer for every kind of clone, or one line with the reason why they cannot."""

import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrity import revisions
from review import compare, report
from stages.common.errors import UserError
from tests.toy import Project, begun

Patch = pytest.MonkeyPatch
Out = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository with the branches main and worse, whose predictions are pushed."""
    project = begun(tmp_path_factory.mktemp("checkouts") / "project", ignored="__pycache__/\n")
    project.set()
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "measured")
    project.branch("worse", train={"skill": 0.8})
    project.run("git", "checkout", "-q", "main")
    project.dvc("checkout", "-q")
    project.dvc("push", "-q", "--all-branches")
    project.run("git", "config", "uploadpack.allowFilter", "true")
    return project


@pytest.fixture(autouse=True)
def environment(project: Project, monkeypatch: Patch) -> None:
    for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
        monkeypatch.delenv(name)
    for name in ("DVC_SITE_CACHE_DIR", "GIT_CONFIG_GLOBAL"):
        monkeypatch.setenv(name, project.environment[name])


def git(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
    command = ["git", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def compared(folder: Path, monkeypatch: Patch, capsys: Out, a: str = "main", b: str = "worse") -> dict[str, Any]:
    """The output of `python -m review.compare A B --format json` in a folder, without the commits."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare", a, b, "--format", "json"])
    capsys.readouterr()
    compare.main()
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    for side in ("a", "b"):
        assert len(document[side].pop("commit")) == 40
    return document


def page(folder: Path, out: Path, monkeypatch: Patch) -> str:
    """The report on the work tree of a folder, compared with the branch worse."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["report", "--against", "worse", "--out", str(out)])
    report.main()
    return out.read_text(encoding="utf-8")


def changed_since(text: str) -> str:
    """The changes since the commit that the page lists."""
    found = re.search(r">changed since</t[hd]>\s*<td[^>]*>(.*?)</td>", text, re.DOTALL)
    assert found
    return found[1].strip()


def line(folder: Path, monkeypatch: Patch, *revs: str) -> str:
    """The error of compare in a folder, which is one line."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["compare", *revs])
    with pytest.raises(UserError) as error:
        compare.main()
    assert "\n" not in str(error.value)
    return str(error.value)


def cloned(project: Project, folder: Path, *options: str) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    git(folder.parent, "clone", "-q", *options, project.path.as_uri(), str(folder))
    return folder


# Where it works


def named(name: str) -> Callable[[Project, Path], Path]:
    return lambda project, place: cloned(project, place / name / "project")


def subfolder(project: Project, place: Path) -> Path:
    """The project in a subfolder of a larger repository, with all its branches."""
    git(place, "init", "-q", "-b", "main", "larger")
    for branch in ("main", "worse"):
        if branch != "main":
            git(place / "larger", "checkout", "-q", "-b", branch)
        copy = cloned(project, place / branch, "--branch", branch)
        (place / "larger/digits").mkdir(exist_ok=True)
        git(copy, f"--work-tree={place / 'larger/digits'}", "checkout", "-qf", branch, "--", ".")
        git(place / "larger", "add", "--all")
        git(place / "larger", "commit", "-qm", branch, environment=project.environment)
    git(place / "larger", "checkout", "-q", "main")
    return place / "larger/digits"


def submodule(project: Project, place: Path) -> Path:
    git(place, "init", "-q", "super")
    git(place / "super", "submodule", "-q", "add", project.path.as_uri(), "digits")
    return place / "super/digits"


def linked_work_tree(project: Project, place: Path) -> Path:
    git(cloned(project, place / "clone"), "worktree", "add", "-q", str(place / "linked"), "-b", "other")
    return place / "linked"


def partial(project: Project, place: Path) -> Path:
    return cloned(project, place / "partial", "--filter=blob:none")


PLACES = {
    "brackets": named("runs[1]"),
    "star": named("a*b"),
    "question-mark": named("what?"),
    "space": named("my runs"),
    "quote": named("it's"),
    "hash": named("run #1"),
    "percent": named("50%20"),
    "umlaut": named("ü"),
    "subfolder": subfolder,
    "submodule": submodule,
    "linked-work-tree": linked_work_tree,
    "partial-clone": partial,
}


@pytest.mark.parametrize("kind", list(PLACES))
def test_the_results_are_the_same_everywhere(
    kind: str, project: Project, tmp_path: Path, monkeypatch: Patch, capsys: Out
) -> None:
    expected = compared(project.path, monkeypatch, capsys)
    assert expected["verdict"]["word"] == "worse"
    assert expected["images"] is not None
    folder = PLACES[kind](project, tmp_path)
    assert compared(folder, monkeypatch, capsys) == expected
    with revisions.repository() as repo:
        side = revisions.read(repo, None)
    assert list(side.metrics) == ["metrics/evaluate.json"]
    assert side.notes == []
    text = page(folder, tmp_path / "page.html", monkeypatch)
    assert changed_since(text).startswith("nothing: ")
    if kind not in ("subfolder", "linked-work-tree"):  # another commit there, another branch
        assert text == page(project.path, tmp_path / "page.html", monkeypatch)


def test_paths_are_relative_to_dvcs_root(project: Project, tmp_path: Path, monkeypatch: Patch) -> None:
    folder = subfolder(project, tmp_path)
    (folder / "params.yaml").write_text("train: {skill: 0.5}\n", encoding="utf-8")
    (folder.parent / "beside.txt").write_text("not of the project", encoding="utf-8")
    git(folder.parent, "add", "--all")
    assert changed_since(page(folder, tmp_path / "page.html", monkeypatch)) == "params.yaml"


@pytest.fixture
def bystander(project: Project, tmp_path: Path) -> Path:
    """Another repository, which Git's variables select; nothing in it may change."""
    git(tmp_path, "init", "-q", "-b", "main", "bystander")
    git(tmp_path / "bystander", "commit", "-q", "--allow-empty", "-m", "x", environment=project.environment)
    return tmp_path / "bystander"


def test_the_git_variables_of_a_hook_are_ignored(
    project: Project, bystander: Path, monkeypatch: Patch, capsys: Out
) -> None:
    expected = compared(project.path, monkeypatch, capsys)
    for name, value in {"GIT_DIR": ".git", "GIT_WORK_TREE": ".", "GIT_INDEX_FILE": ".git/index"}.items():
        monkeypatch.setenv(name, str(bystander / value))
    monkeypatch.setenv("GIT_PREFIX", "data/")
    assert compared(project.path, monkeypatch, capsys) == expected
    page(project.path, bystander.parent / "page.html", monkeypatch)


def test_a_read_only_checkout(project: Project, tmp_path: Path, monkeypatch: Patch, capsys: Out) -> None:
    folder = cloned(project, tmp_path / "clone")

    def state() -> list[tuple[str, int]]:
        return [(str(path), path.stat().st_mtime_ns) for path in sorted([folder, *folder.rglob("*")])]

    expected = compared(project.path, monkeypatch, capsys)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)  # which has no effect on root
    os.utime(folder / "toy.py", (0, 0))  # Git finds its index out of date
    before = state()
    assert compared(folder, monkeypatch, capsys) == expected
    page(folder, tmp_path / "page.html", monkeypatch)
    after = state()
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o700)
    assert after == before


def test_a_user_without_a_name_or_a_home(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    expected = compared(project.path, monkeypatch, capsys)

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(getpass, "getuser", nobody)
    monkeypatch.delenv("HOME")
    assert compared(project.path, monkeypatch, capsys) == expected


def test_a_time_stamp_is_no_change(project: Project, tmp_path: Path, monkeypatch: Patch) -> None:
    """As in a copied checkout, whose index has the time stamps of the original."""
    folder = cloned(project, tmp_path / "clone")
    os.utime(folder / "toy.py", (0, 0))
    told = changed_since(page(folder, tmp_path / "page.html", monkeypatch))
    assert told.startswith("nothing: the files in Git are those of the commit")


# Where it cannot work


def test_a_shallow_clone_is_reported_with_the_remedy(
    project: Project, tmp_path: Path, monkeypatch: Patch, capsys: Out
) -> None:
    folder = cloned(project, tmp_path / "shallow", "--depth=1")
    output = line(folder, monkeypatch, "HEAD~1")
    assert output.startswith("unknown revision 'HEAD~1'; allowed: a commit, branch, tag or experiment of this clone")
    (command,) = re.findall("get others by `(git [^`]*)`", output)
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, capture_output=True)
    # --depth also restricts a clone to one branch
    assert compared(folder, monkeypatch, capsys, "main", "worse")["verdict"]["word"] == "worse"


def test_a_partial_clone_whose_origin_is_gone(project: Project, tmp_path: Path, monkeypatch: Patch) -> None:
    folder = partial(project, tmp_path)
    git(folder, "remote", "set-url", "origin", str(tmp_path / "gone"))
    output = line(folder, monkeypatch, "worse")
    assert output.startswith("git ")
    assert str(tmp_path / "gone") in output


def test_the_clone_of_another_owner(project: Project, tmp_path: Path, monkeypatch: Patch) -> None:
    folder = cloned(project, tmp_path / "clone")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # Git's own tests do the same
    output = line(folder, monkeypatch, "main")
    assert output.endswith(f"belongs to another user; to trust it: git config --global --add safe.directory {folder}")


def test_the_project_as_an_archive(project: Project, tmp_path: Path, monkeypatch: Patch) -> None:
    folder = cloned(project, tmp_path / "clone")
    (folder / ".git").rename(tmp_path / "gone")
    output = line(folder, monkeypatch, "main")
    assert output.startswith(
        f"git rev-list: {folder} is in no Git repository (a ZIP file, or a copy without .git?); `git"
    )
    git(folder, "init", "-q")
    assert line(folder, monkeypatch, "main").startswith(f"{folder}: no commit yet: ")


@pytest.mark.parametrize(
    ("rev", "output"),
    [
        ("\udcff\udcfe", r"unknown revision '\udcff\udcfe'; allowed: "),
        ("x" * 4096, f"unknown revision '{'x' * 100}...'; allowed: "),
        ("main\0", r"unknown revision 'main\x00'"),
        ("main\nworse", r"unknown revision 'main\nworse'"),
        ("", "the revision is empty; allowed: "),
        (" ", "the revision is empty; allowed: "),
        ("-x", "unknown revision '-x'; allowed: "),
        ("--all", "unknown revision '--all'; allowed: "),
        ("^main", "unknown revision '^main'"),
        ("main..worse", "unknown revision 'main..worse'"),
        ("main^{tree}", "revision 'main^{tree}' is a file or a folder, not a commit"),
        ("(main|worse)", "unknown revision '(main|worse)'"),
    ],
    ids=["not-utf-8", "long", "nul", "newline", "empty", "blank", "dash", "option", "not", "range", "tree", "pattern"],
)
def test_an_unknown_revision_is_one_line(rev: str, output: str, project: Project, monkeypatch: Patch) -> None:
    assert line(project.path, monkeypatch, "--", rev).startswith(output)


def test_a_branch_whose_name_is_not_utf_8(project: Project, monkeypatch: Patch, capsys: Out) -> None:
    name = os.fsdecode(b"w\xfcrst")
    project.run("git", "branch", name, "worse")
    try:
        document = compared(project.path, monkeypatch, capsys, b=name)
    finally:
        project.run("git", "branch", "-qD", name)
    assert document["b"] == {"name": "w?rst"}
    assert document["verdict"]["word"] == "worse"
