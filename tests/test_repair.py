"""Repairs before `make repro`: a good dvc.lock is never replaced, and DVC's cache is found wherever it is."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integrity import git, rebuild, repair
from stages.common import errors
from stages.common.errors import UserError

GOOD = f"""\
schema: '2.0'
stages:
  a:
    cmd: ls
    outs:
    - path: b
      hash: md5
      md5: {"0" * 31}a
      size: 1
"""
TORN = GOOD[: GOOD.index("md5: 0") + 3]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in a subfolder of a Git repository: dvc.lock is good in HEAD, and truncated in the work tree."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "global"))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "a")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b.c")
    root = tmp_path / "git/project"
    (root / ".dvc/tmp").mkdir(parents=True)
    (root / ".dvc/config").write_text("")
    (root / "dvc.lock").write_text(GOOD)
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "all"]):
        git.run(tmp_path / "git" if arguments[0] == "init" else root, *arguments)
    (root / "dvc.lock").write_text(TORN)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["repair"])
    return root


def test_a_truncated_lock_is_replaced_by_that_of_head(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repair.main()
    assert (repository / "dvc.lock").read_text() == GOOD
    assert (repository / "runs/dvc.lock.torn").read_text() == TORN
    assert "replaced by HEAD's" in capsys.readouterr().out


def test_a_truncated_lock_is_deleted_if_head_has_none(repository: Path) -> None:
    for arguments in (["rm", "-q", "--cached", "dvc.lock"], ["commit", "-qm", "none"]):
        git.run(repository, *arguments)
    repair.main()
    assert not (repository / "dvc.lock").exists()
    assert (repository / "runs/dvc.lock.torn").read_text() == TORN


def another_owner(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


def no_git(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git.local_variables.cache_clear()
    monkeypatch.setenv("PATH", str(repository))


def no_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(repository.parent / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent.parent))


def a_missing_object(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = git.run(repository, "rev-parse", "HEAD:./dvc.lock").decode().strip()
    (repository.parent / ".git/objects" / name[:2] / name[2:]).unlink()


def no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git.run(repository, "update-ref", "-d", "HEAD")


@pytest.mark.parametrize("trouble", [another_owner, no_git, no_repository, a_missing_object, no_commit])
def test_if_head_cannot_be_read_nothing_is_changed(
    repository: Path,
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trouble(repository, monkeypatch)
    with pytest.raises(SystemExit) as end:
        errors.run_command(repair.main)
    assert end.value.code == 2
    output = capsys.readouterr().err
    assert output.startswith("error: dvc.lock was truncated by a kill, and HEAD's cannot be read: ")
    assert output.endswith("; nothing was changed. To start without it: mv dvc.lock runs/dvc.lock.torn\n")
    assert len(output.splitlines()) == 1
    assert (repository / "dvc.lock").read_text() == TORN
    assert not (repository / "runs/dvc.lock.torn").exists()


def in_config(repository: Path, cache: Path) -> None:
    (repository / ".dvc/config").write_text(f"[cache]\n    dir = {cache}\n")


def in_config_local(repository: Path, cache: Path) -> None:
    (repository / ".dvc/config.local").write_text("['cache']\n    dir = ../../../cache\n".replace("'", ""))


def in_global_config(repository: Path, cache: Path) -> None:
    (repository.parent.parent / "global").mkdir()
    (repository.parent.parent / "global/config").write_text(
        f"[core]\n    analytics = false\n[cache]\n    dir = {cache}\n"
    )


def as_a_link(repository: Path, cache: Path) -> None:
    cache.mkdir()
    (repository / ".dvc/cache").symlink_to(cache)


@pytest.mark.parametrize("elsewhere", [in_config, in_config_local, in_global_config, as_a_link])
def test_an_unfinished_run_is_found_wherever_the_cache_is(
    repository: Path, elsewhere: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "dvc.lock").write_text(GOOD)
    cache = repository.parent.parent / "cache"
    elsewhere(repository, cache)
    entry = cache / "runs/ab" / ("ab" * 32)
    entry.mkdir(parents=True)
    (entry / ".x.tmp").touch()
    repair.main()
    assert not entry.exists()
    assert capsys.readouterr().out.count("an unfinished entry of the run cache, from a killed dvc") == 2


@pytest.mark.parametrize("name", ["ren\u00e9", "a\\b", 'it\'s "big", #1'])
def test_the_cache_of_an_isolated_clone_may_have_any_name(repository: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "scratch").mkdir()
    rebuild.isolated(repository, tmp_path / "scratch", str(tmp_path / name))
    assert repair.run_cache(repository) == tmp_path / name / "runs"


def test_a_running_search_keeps_its_unfinished_files(repository: Path) -> None:
    (repository / "dvc.lock").write_text(GOOD)
    own, killed = repository / "runs/search/a/clone/runs/resume/b/.latest.tmp", repository / "runs/resume/b/.latest.tmp"
    for path in (own, killed):
        path.parent.mkdir(parents=True)
        path.touch()
    repair.main()
    assert (own.exists(), killed.exists()) == (True, False)


def test_a_configuration_that_dvc_cannot_read(repository: Path) -> None:
    (repository / ".dvc/config").write_text("[cache]\n    dir\n")
    with pytest.raises(UserError, match="DVC cannot read the location of its cache: "):
        repair.run_cache(Path())


def test_dvc_is_not_imported_if_nothing_needs_repair(repository: Path) -> None:
    """Importing DVC takes half a second, which each `make repro` would pay."""
    (repository / "dvc.lock").write_text(GOOD)
    script = "import sys; sys.argv = ['']; from integrity import repair; repair.main(); "
    script += "sys.exit('dvc.repo.index' in sys.modules)"
    path = {"PYTHONPATH": str(Path(repair.__file__).parent.parent)}
    assert (
        subprocess.run([sys.executable, "-c", script], env={**git.environment(), **path}, check=False).returncode == 0
    )
