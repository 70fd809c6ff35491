"""tools/venv.py: when it leaves .venv alone, adds to it, or makes it anew. Nothing is downloaded."""

import base64
import hashlib
import json
import os
import runpy
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

Call = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills process groups, and looks into .venv/bin")

SCRIPT = Path(__file__).parent.parent / "tools" / "venv.py"
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
            archive.writestr(path, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheels")


@pytest.fixture(scope="module")
def environment(wheels: Path) -> dict[str, str]:
    """pip sees the wheels made here, and neither an index nor the person's own configuration."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    return {**own, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, wheels: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """A folder in which `runtime.txt` was installed once, and what that printed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "runtime.txt").write_text(make_wheel(wheels, "alpha"))
    command = [sys.executable, str(SCRIPT), "runtime.txt"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


@pytest.fixture
def project(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of `made` that believes it was made where it is; saves 3 s a test."""
    return copy_made(made[0], tmp_path, monkeypatch)


@pytest.fixture
def project_without_pip(made: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`project` in a tenth of the time, where nothing is to be installed."""
    return copy_made(made[0], tmp_path, monkeypatch, "pip")


def copy_made(made: Path, to: Path, monkeypatch: pytest.MonkeyPatch, *without: str) -> Path:
    shutil.copytree(made, to, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("setuptools", *without))
    monkeypatch.chdir(to)
    write_record(path=str(to / ".venv"))
    return to


@pytest.fixture
def venv(environment: dict[str, str]) -> Call:
    """Run tools/venv.py on the files given, in the working directory."""

    def call(*files: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPT), *files]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    return call


def write_record(**changes: Any) -> None:
    record = Path(".venv/record.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def installed(module: str) -> str:
    """The version of `module` that .venv has, or "" if it has none."""
    command = [".venv/bin/python", "-I", "-c", f"import {module}; print({module}.VERSION)"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def test_a_fresh_folder_gets_the_pins(made: tuple[Path, str], project_without_pip: Path) -> None:
    assert made[1] == "making .venv with runtime.txt: the first time takes a few minutes\n"
    assert installed("alpha") == "1"


def test_nothing_to_do_is_quiet_and_touches_nothing(project_without_pip: Path, venv: Call) -> None:
    Path(".venv.lock").unlink()
    before = {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}
    done = venv("runtime.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path: path.lstat().st_mtime_ns for path in Path().rglob("*")} == before


def test_other_pins_are_added_to_what_is_there(project: Path, wheels: Path, venv: Call) -> None:
    Path(".venv/kept").touch()
    Path("dev.txt").write_text(make_wheel(wheels, "beta"))
    assert venv("runtime.txt", "dev.txt").stdout == "installing runtime.txt and dev.txt into .venv\n"
    assert installed("beta") == "1"
    assert venv("runtime.txt").stdout == ""

    Path("runtime.txt").write_text(make_wheel(wheels, "alpha", "2"))
    assert venv("runtime.txt").stdout == "installing runtime.txt into .venv\n"
    assert (installed("alpha"), installed("beta")) == ("2", "1")
    assert Path(".venv/kept").exists()


def test_a_moved_folder_is_made_anew(project: Path, monkeypatch: pytest.MonkeyPatch, venv: Call) -> None:
    moved = project.rename(project.with_name(f"{project.name}_moved"))
    monkeypatch.chdir(moved)
    assert venv("runtime.txt").stdout.startswith("making .venv anew (the old one is unfinished, moved")
    assert installed("alpha") == "1"
    assert str(moved / ".venv") in Path(".venv/bin/pip").read_text()


@pytest.mark.parametrize("whole_group", [True, False], ids=["with-pip", "pip-lives-on"])
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
    assert ("waiting for another install into .venv to end" in done.stdout) is not whole_group
    assert "making .venv anew" in done.stdout
    assert (installed("alpha"), installed("slow")) == ("1", "")
    assert venv("runtime.txt").stdout == ""


def test_a_pip_that_fails_before_it_changes_anything_costs_nothing(project: Path, venv: Call) -> None:
    """As without a network: what is there goes on working."""
    Path("dev.txt").write_text(f"nowhere==1 --hash=sha256:{'0' * 64}\n")
    done = venv("runtime.txt", "dev.txt")
    assert done.returncode == 1
    assert "No matching distribution found for nowhere==1" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: pip failed, see above; run this again to retry"
    assert venv("runtime.txt").stdout == ""
    assert not Path(".venv/installing").exists()


def test_a_wheel_with_another_hash_is_refused(project: Path, wheels: Path, venv: Call) -> None:
    make_wheel(wheels, "delta")
    Path("runtime.txt").write_text(f"delta==1 --hash=sha256:{'0' * 64}\n")
    done = venv("runtime.txt")
    assert done.returncode == 1
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert installed("delta") == ""


def test_of_two_at_once_one_waits(tmp_path: Path, wheels: Path, environment: dict[str, str]) -> None:
    (tmp_path / "runtime.txt").write_text(make_wheel(wheels, "alpha"))
    command = [sys.executable, str(SCRIPT), "runtime.txt"]
    calls = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    printed = sorted(call.communicate(timeout=60)[0] for call in calls)
    assert [call.returncode for call in calls] == [0, 0]
    assert printed == [
        "making .venv with runtime.txt: the first time takes a few minutes\n",
        "waiting for another install into .venv to end\n",
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
        pytest.param(lambda: Path(".venv/record.json").unlink(), id="not ours"),
        pytest.param(lambda: Path(".venv/record.json").write_text('{"python": '), id="half a record"),
        pytest.param(lambda: Path(".venv/record.json").write_text("[1]"), id="another record"),
        pytest.param(lambda: write_record(python="3.10"), id="another Python"),
        pytest.param(lambda: write_record(path="/elsewhere/.venv"), id="another path"),
        pytest.param(lambda: Path(".venv/installing").touch(), id="unfinished"),
        pytest.param(dangling_interpreter, id="no interpreter"),
        pytest.param(failing_interpreter, id="failing interpreter"),
    ],
)
def test_a_venv_in_doubt_counts_as_empty(
    harm: Callable[[], None], project_without_pip: Path, request: pytest.FixtureRequest
) -> None:
    harm()
    held = runpy.run_path(str(SCRIPT))["held"]()
    assert list(held) == (["runtime.txt"] if request.node.callspec.id == "none" else [])


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ("sys.version_info = (3, 10, 4)", "error: needs Python 3.11 or newer, found 3.10"),
        ("sys.modules['ensurepip'] = None", "error: this Python cannot make a .venv; on Debian and Ubuntu"),
        ("sys.argv = ['venv.py']", "usage: python3 tools/venv.py requirements.txt"),
        ("sys.argv = ['venv.py', 'no.txt']", "error: no.txt: No such file or directory"),
    ],
)
def test_what_a_person_can_mend_is_one_line(before: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "runtime.txt").touch()
    program = f"import runpy, sys; sys.argv = ['venv.py', 'runtime.txt']; {before}; "
    program += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_named() -> None:
    run = runpy.run_path(str(SCRIPT))["run"]
    program = "import sys; sys.exit('ERROR: OSError: [Errno 28] No space left on device')"
    with pytest.raises(SystemExit, match="error: no space left on the disk"):
        run([sys.executable, "-c", program], "pip failed")
