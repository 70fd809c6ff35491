"""tools/venv.py: when it keeps .venv, installs into it, or rebuilds it. No test uses a package index."""

import ast
import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.imports import ROOT
from tools import venv as tool

Call = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills process groups, and looks into .venv/bin")

SCRIPT = ROOT / "tools/venv.py"
SITE_PACKAGES = Path(".venv/lib/python{}.{}/site-packages".format(*sys.version_info[:2]))


def make_wheel(folder: Path, name: str, version: str = "1", files: int = 1) -> str:
    """Write a wheel of a module `name` with VERSION in it, and return the line that pins it."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{name}.py": f"VERSION = {version!r}\n",
        **{f"{name}_{i}.txt": "" for i in range(1, files)},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(text)}\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), text)  # the entry has a fixed date, so the hash is constant
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def environment(wheels: Path) -> dict[str, str]:
    """Let pip use only the wheels of these tests: no index, and no configuration of the user."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    return {**own, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheels: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """A folder where `runtime.txt` was installed, and the output of the installation."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "runtime.txt").write_text(make_wheel(wheels, "alpha"))
    command = [sys.executable, str(SCRIPT), "runtime.txt"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


@pytest.fixture
def project(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of `made` whose record has its path. This saves 3 s per test."""
    return copy_made(made[0], tmp_path, monkeypatch)


@pytest.fixture
def project_without_pip(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`project` without pip, for tests that install nothing: copying it takes a tenth of the time."""
    return copy_made(made[0], tmp_path, monkeypatch, "pip")


def copy_made(made: Path, to: Path, monkeypatch: pytest.MonkeyPatch, *without: str) -> Path:
    shutil.copytree(made, to, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("setuptools", *without))
    monkeypatch.chdir(to)
    write_record(path=str(to / ".venv"))
    return to


@pytest.fixture
def venv(environment: dict[str, str]) -> Call:
    """Run tools/venv.py with these files in the working directory."""

    def call(*files: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *files]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return call


def write_record(**changes: Any) -> None:
    record = Path(".venv/record.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def installed(module: str) -> str:
    """The version of `module` in .venv; "" if it is missing."""
    command = [".venv/bin/python", "-I", "-c", f"import {module}; print({module}.VERSION)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def test_a_fresh_folder_gets_the_pins(made: tuple[Path, str], project_without_pip: Path) -> None:
    assert made[1] == "making .venv with runtime.txt: the first time takes a few minutes\n"
    assert installed("alpha") == "1"


def test_an_up_to_date_venv_is_not_touched(project_without_pip: Path, venv: Call) -> None:
    Path(".venv.lock").unlink()
    before = {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}
    done = venv("runtime.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path: path.lstat().st_mtime_ns for path in Path().rglob("*")} == before


def test_other_pins_are_added(project: Path, wheels: Path, venv: Call) -> None:
    Path(".venv/kept").touch()
    Path("dev.txt").write_text(make_wheel(wheels, "beta"))
    assert venv("runtime.txt", "dev.txt").stdout == "installing runtime.txt and dev.txt into .venv\n"
    assert installed("beta") == "1"
    assert venv("runtime.txt").stdout == ""

    Path("runtime.txt").write_text(make_wheel(wheels, "alpha", "2"))
    assert venv("runtime.txt").stdout == "installing runtime.txt into .venv\n"
    assert (installed("alpha"), installed("beta")) == ("2", "1")
    assert Path(".venv/kept").exists()


def test_a_moved_folder_is_rebuilt(project: Path, monkeypatch: pytest.MonkeyPatch, venv: Call) -> None:
    moved = project.rename(project.with_name(f"{project.name}_moved"))
    monkeypatch.chdir(moved)
    assert venv("runtime.txt").stdout.startswith("making .venv again (the old one is unfinished, moved")
    assert installed("alpha") == "1"
    assert str(moved / ".venv") in Path(".venv/bin/pip").read_text()


@pytest.mark.parametrize(
    "whole_group", [pytest.param(True, marks=pytest.mark.soak, id="with-pip"), pytest.param(False, id="pip-lives-on")]
)
def test_an_install_killed_midway_is_repaired(
    whole_group: bool,
    project: Path,
    wheels: Path,
    environment: dict[str, str],
    venv: Call,
) -> None:
    pins = Path("runtime.txt").read_text()
    Path("runtime.txt").write_text(make_wheel(wheels, "slow", files=3000))
    before = SITE_PACKAGES.stat().st_mtime_ns
    command = [sys.executable, str(SCRIPT), "runtime.txt"]
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL) as process:
        while SITE_PACKAGES.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.005)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    assert Path(".venv/installing").exists()

    Path("runtime.txt").write_text(pins)
    done = venv("runtime.txt")
    assert ("waiting for another installation into .venv" in done.stdout) is not whole_group
    assert "making .venv again" in done.stdout
    assert (installed("alpha"), installed("slow")) == ("1", "")
    assert venv("runtime.txt").stdout == ""


def test_a_pip_that_fails_before_it_changes_anything_costs_nothing(project: Path, venv: Call) -> None:
    """As without a network: the old .venv keeps working."""
    Path("dev.txt").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    done = venv("runtime.txt", "dev.txt")
    assert done.returncode == 2
    assert "No matching distribution found for nowhere==1" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: pip failed, see above; run this again to retry"
    assert venv("runtime.txt").stdout == ""
    assert not Path(".venv/installing").exists()


def test_a_wheel_with_another_hash_is_refused(project: Path, wheels: Path, venv: Call) -> None:
    make_wheel(wheels, "delta")
    Path("runtime.txt").write_text(f"delta==1 --hash=sha256:{'0' * 64}\n")
    done = venv("runtime.txt")
    assert done.returncode == 2
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert installed("delta") == ""


def test_the_second_of_two_installations_waits(tmp_path: Path, wheels: Path, environment: dict[str, str]) -> None:
    (tmp_path / "runtime.txt").write_text(make_wheel(wheels, "alpha"))
    command = [sys.executable, str(SCRIPT), "runtime.txt"]
    calls = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = sorted(call.communicate(timeout=300)[0] for call in calls)
    assert [call.returncode for call in calls] == [0, 0]
    assert printed == [
        "making .venv with runtime.txt: the first time takes a few minutes\n",
        "waiting for another installation into .venv\n",
    ]


def dangling_interpreter() -> None:
    Path(".venv/bin/python").unlink()
    Path(".venv/bin/python").symlink_to("/nowhere/python3")


def failing_interpreter() -> None:
    Path(".venv/bin/python").unlink()
    Path(".venv/bin/python").symlink_to(shutil.which("false") or "")


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda: None, id="none"),
        pytest.param(lambda: shutil.rmtree(".venv"), id="no .venv"),
        pytest.param(lambda: Path(".venv/record.json").write_text('{"python": '), id="half a record"),
        pytest.param(lambda: Path(".venv/record.json").write_text("[1]"), id="another record"),
        pytest.param(lambda: write_record(python="3.10"), id="another Python"),
        pytest.param(lambda: write_record(path="/elsewhere/.venv"), id="another path"),
        pytest.param(lambda: Path(".venv/installing").touch(), id="unfinished"),
        pytest.param(dangling_interpreter, id="no interpreter"),
        pytest.param(failing_interpreter, id="failing interpreter"),
    ],
)
def test_when_a_venv_is_in_doubt(
    harm: Callable[[], None], project_without_pip: Path, request: pytest.FixtureRequest
) -> None:
    harm()
    assert tool.is_in_doubt() is (request.node.callspec.id != "none")


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("sys.version_info = (3, 10, 4)", "error: needs Python 3.11 or newer, found 3.10"),
        ("sys.modules['ensurepip'] = None", "error: this Python cannot make a .venv; on Debian and Ubuntu"),
        ("sys.argv = ['venv.py']", "usage: python3 tools/venv.py requirements.txt"),
        ("sys.argv = ['venv.py', 'no.txt']", "error: no.txt: No such file or directory"),
    ],
)
def test_an_error_that_a_user_can_fix_is_one_line(before: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "runtime.txt").touch()
    program = f"import runpy, sys; sys.argv = ['venv.py', 'runtime.txt']; {before}; "
    program += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    program = "import sys; sys.exit('ERROR: OSError: [Errno 28] No space left on device')"
    with pytest.raises(SystemExit, match="2"):
        tool.run([sys.executable, "-c", program], "pip failed")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no space left on the disk")


def test_an_older_python_is_reported_in_one_line() -> None:
    for name in ("__init__", "run", "venv"):
        ast.parse((ROOT / f"tools/{name}.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(files: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "main", interrupted)
    assert tool.run_main(["runtime.txt"]) == 130
    assert capsys.readouterr().err == "interrupted: the next call continues from here\n"


def remove_alpha() -> None:
    """Remove alpha, as `pip uninstall` does."""
    shutil.rmtree(SITE_PACKAGES / "alpha-1.dist-info")
    (SITE_PACKAGES / "alpha.py").unlink()


def move_alpha() -> None:
    """Replace alpha, as `pip install alpha==2` does."""
    (SITE_PACKAGES / "alpha.py").write_text("VERSION = '2'\n")
    (SITE_PACKAGES / "alpha-1.dist-info").rename(SITE_PACKAGES / "alpha-2.dist-info")
    metadata = SITE_PACKAGES / "alpha-2.dist-info/METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1", "Version: 2"))
    record = SITE_PACKAGES / "alpha-2.dist-info/RECORD"
    record.write_text(record.read_text().replace("alpha-1", "alpha-2"))


def double_alpha() -> None:
    """Leave two versions of alpha, as an interrupted upgrade does."""
    shutil.copytree(SITE_PACKAGES / "alpha-1.dist-info", SITE_PACKAGES / "alpha-0.dist-info")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(remove_alpha, "repairing .venv: alpha==1 is pinned, but nothing is installed\n", id="removed"),
        pytest.param(move_alpha, "repairing .venv: alpha==1 is pinned, but 2 is installed\n", id="moved"),
        pytest.param(double_alpha, "repairing .venv: alpha==1 is pinned, but ", id="twice", marks=pytest.mark.soak),
    ],
)
def test_a_package_changed_by_hand_is_repaired(
    harm: Callable[[], None], message: str, project: Path, venv: Call
) -> None:
    harm()
    done = venv("runtime.txt")
    assert done.stdout.startswith(message)
    assert (done.returncode, installed("alpha")) == (0, "1")
    assert [path.name for path in SITE_PACKAGES.glob("alpha-*")] == ["alpha-1.dist-info"]
    assert venv("runtime.txt").stdout == ""


def test_packages_added_by_hand_are_listed(project_without_pip: Path, venv: Call) -> None:
    (SITE_PACKAGES / "gamma-3.dist-info").mkdir()
    for _ in range(2):
        done = venv("runtime.txt")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == "note: .venv also holds packages that are not pinned: gamma-3\n"


def test_pins_of_other_files_are_remembered(project: Path, wheels: Path, venv: Call) -> None:
    """A package that both files pin does not count as added by hand if only one of them is requested."""
    Path("dev.txt").write_text(make_wheel(wheels, "beta"))
    venv("runtime.txt", "dev.txt")
    Path("runtime.txt").write_text(make_wheel(wheels, "alpha", "2"))
    assert venv("runtime.txt").stderr == ""
    done = venv("runtime.txt", "dev.txt")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("place", ["variables", "file"])
def test_the_configuration_of_pip_cannot_redirect_the_installation(place: str, project: Path, wheels: Path) -> None:
    """pip's settings of the user have no effect, except those for reaching packages, here find-links."""
    Path("dev.txt").write_text(make_wheel(wheels, "beta"))
    Path("constraints.txt").write_text("beta==7\n")
    elsewhere = str(project / "elsewhere")
    settings = {"target": elsewhere, "user": "true", "prefix": elsewhere, "root": elsewhere}
    settings["constraint"] = str(project / "constraints.txt")
    own = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
    own["PIP_CONFIG_FILE"] = str(project / "pip.conf")
    config = f"[global]\nno-index = true\nfind-links = {wheels}\n"
    if place == "variables":
        own |= {f"PIP_{name.upper()}": value for name, value in settings.items()}
    else:
        config += "".join(f"{name} = {value}\n" for name, value in settings.items())
    Path("pip.conf").write_text(config)
    command = [sys.executable, str(SCRIPT), "dev.txt"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert installed("beta") == "1"
    assert not Path("elsewhere").exists()


def files_below(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_linked_venv_is_used_and_never_changed(project: Path, tmp_path: Path, venv: Call) -> None:
    other = tmp_path / "worktree"
    other.mkdir()
    (other / ".venv").symlink_to(project / ".venv")
    shutil.copy("runtime.txt", other)
    os.chdir(other)  # `project` restores the folder
    before = files_below(project / ".venv")
    done = venv("runtime.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    Path("runtime.txt").write_text(f"beta==1 --hash=sha256:{'0' * 64}\n")
    done = venv("runtime.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: .venv is a link to {project}/.venv, which does not hold runtime.txt as installed by `make` there: "
        "remove the link\n"
    )
    assert files_below(project / ".venv") == before


def test_a_venv_of_the_user_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, venv: Call) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runtime.txt").touch()
    Path(".venv/bin").mkdir(parents=True)
    Path(".venv/bin/mine").touch()
    before = files_below(tmp_path / ".venv")
    done = venv("runtime.txt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path}/.venv was not made by this project (it has no record.json): move it away, or delete it\n"
    )
    assert files_below(tmp_path / ".venv") == before


def test_a_failed_build_restores_the_old_venv(project: Path, venv: Call) -> None:
    write_record(python="3.10")
    before = files_below(project / ".venv")
    Path("runtime.txt").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    done = venv("runtime.txt")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: pip failed, see above; run this again to retry",
    )
    assert files_below(project / ".venv") == before
    assert not Path(".venv.old").exists()


def test_a_first_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, venv: Call) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runtime.txt").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    assert venv("runtime.txt").returncode == 2
    assert not Path(".venv").exists()


@pytest.mark.parametrize("at", ["begun", "finished"])
def test_a_build_killed_midway_loses_neither_venv(at: str, project_without_pip: Path) -> None:
    """`begun`: the old .venv is restored. `finished`: the new one stays, and the old one is deleted."""
    Path(".venv/new").touch()
    shutil.copytree(".venv", ".venv.old", symlinks=True)
    Path(".venv.old/new").unlink()
    if at == "begun":
        Path(".venv/installing").touch()
    tool.restore_after_kill()
    assert Path(".venv/new").exists() is (at == "finished")
    assert not tool.is_in_doubt()
    assert not Path(".venv.old").exists()


def test_git_ignores_a_linked_venv(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / ".venv").symlink_to(tmp_path)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    listed = subprocess.run(["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert listed.stdout == "?? .gitignore\n"
