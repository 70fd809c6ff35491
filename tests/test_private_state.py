"""DVC's state is private, whoever calls dvc from wherever; and no secret is in what Git keeps of its configuration."""

import configparser
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.imports import ROOT

SCRIPT = runpy.run_path(str(ROOT / "tools/private_state.py"))  # tools is no package
FOLDER: Path = SCRIPT["FOLDER"]
SHARED = Path("/var/tmp/dvc")  # noqa: S108 - where DVC keeps its state unless it is told otherwise
SECRETS = ("password", "secret", "token", "key", "credential", "user", "sas", "connection_string")
# Options of DVC's remotes that are safe to publish, though their names hold one of these words.
PUBLIC = ("url", "verify", "timeout", "read_timeout", "connect_timeout", "jobs", "region", "endpointurl")


def shared() -> set[Path]:
    return set(SHARED.rglob("*")) if SHARED.exists() else set()


def test_nothing_is_written_where_others_can(clone: Clone, tmp_path: Path) -> None:
    other = Clone(tmp_path / "clone")
    clone.run("git", "clone", "-q", str(clone.path), str(other.path))
    del other.environment["DVC_SITE_CACHE_DIR"]  # which keeps the other tests apart
    before = shared()
    other.run(sys.executable, "tools/private_state.py")
    other.dvc("remote", "modify", "--local", "beside", "url", str(clone.path.parent / "dvc-remote"))
    other.dvc("pull")
    assert other.repro() == []
    other.run("sh", "-c", f"cd data && {sys.executable} -m dvc status")  # DVC takes relative paths from here
    assert shared() == before
    assert stat.S_IMODE((other.path / FOLDER).stat().st_mode) == 0o700
    assert list((other.path / FOLDER).rglob("*.db"))
    assert not (other.path / "data/.dvc").exists()
    assert other.run("git", "status", "--short") == ""
    # Moved, the clone takes its state along.
    shutil.move(other.path, tmp_path / "moved")
    subprocess.run([sys.executable, "tools/private_state.py"], cwd=tmp_path / "moved", check=True)
    assert str(tmp_path / "moved" / FOLDER) in (tmp_path / "moved/.dvc/config.local").read_text(encoding="utf-8")


LINE = '    site_cache_dir = "/a, b/.dvc/tmp/private"'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"[core]\n{LINE}\n"),
        ("['remote \"s\"']\n    password = x", f"['remote \"s\"']\n    password = x\n[core]\n{LINE}\n"),
        ("[core]\n    remote = s\n", f"[core]\n{LINE}\n    remote = s\n"),
        ("[core] # mine\n", f"[core] # mine\n{LINE}\n"),
        ("[core]\n    site_cache_dir = /srv/mine\n", "[core]\n    site_cache_dir = /srv/mine\n"),
        ('[core]\n    site_cache_dir = "/old/.dvc/tmp/private"\n    remote = s\n', f"[core]\n{LINE}\n    remote = s\n"),
    ],
)
def test_what_a_user_has_configured_stays(before: str, after: str) -> None:
    assert SCRIPT["configured"](before, Path("/a, b/.dvc/tmp/private")) == after
    assert SCRIPT["configured"](after, Path("/a, b/.dvc/tmp/private")) == after


def test_dvc_reads_the_path_as_it_is_meant(clone: Clone, tmp_path: Path) -> None:
    other = Clone(tmp_path / "a, 'b' #c")
    clone.run("git", "clone", "-q", str(clone.path), str(other.path))
    other.run(sys.executable, "tools/private_state.py")
    assert other.dvc("config", "--local", "core.site_cache_dir").strip() == str(other.path / FOLDER)


def test_the_committed_configuration_holds_no_secret() -> None:
    config = configparser.ConfigParser()
    config.read_string((ROOT / ".dvc/config").read_text(encoding="utf-8"))
    for name in config.sections():
        for option, value in config[name].items():
            assert option in PUBLIC or not any(word in option for word in SECRETS), option
            assert "@" not in value, option  # as in https://user:password@host
    ignored = subprocess.run(["git", "check-ignore", "-q", ".dvc/config.local"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
