"""How programs end: exit status, error line, signals, locks, atomic writes, and the end of their children."""

import errno
import os
import re
import runpy
import signal
import stat
import subprocess
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from stages.common import errors, files, paths
from tests.faults.lab import is_running, wait_for
from tests.imports import ROOT
from tests.toy import Project

BUG = "please report it with the lines above"
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
NAMES = [each.name for each in SIGNALS]

Out = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


def start(body: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A program with this body, in a folder."""
    code = (
        f"import os, sys, time\nsys.path.insert(0, {str(ROOT)!r})\nfrom stages.common import children, errors, files\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code + textwrap.dedent(body)],
        **{
            "cwd": folder,
            "env": {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        },
    )


def ending(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a program, once it has ended."""
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


class OutOfMemoryError(RuntimeError):
    """As torch.cuda calls it."""


ALLOCATOR = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nmore"


@pytest.mark.parametrize(
    ("error", "status", "last"),
    [
        (errors.UserError("a: b\nc: \x1b[2Jd"), 2, "error: a: b\nc: ?[2Jd"),
        (FileNotFoundError(2, "No such file", "gone"), 2, "error: gone: No such file"),
        (OSError("odd"), 2, "error: odd"),
        (SystemExit("words"), 2, "error: words"),
        (SystemExit(1), 1, ""),
        (SystemExit(0), 0, ""),
        (errors.Interrupted(15, "a checkpoint is there"), 143, "interrupted: a checkpoint is there"),
        (KeyboardInterrupt(), 130, f"interrupted: {errors.KEPT}"),
        (MemoryError(), 2, "error: not enough memory in PROGRAM (MemoryError); it depends on a.b in params.yaml"),
        (
            RuntimeError(ALLOCATOR),
            2,
            f"error: not enough memory in PROGRAM ({ALLOCATOR[:-5]}); it depends on a.b in params.yaml",
        ),
        (
            OutOfMemoryError("CUDA"),
            2,
            "error: not enough memory in PROGRAM (CUDA); it depends on a.b in params.yaml",
        ),
        (
            OSError(errno.ENOMEM, "Cannot"),
            2,
            "error: not enough memory in PROGRAM ([Errno 12] Cannot); it depends on a.b in params.yaml",
        ),
        (
            ImportError("libc.so: gone", name="torch"),
            2,
            f"error: libc.so: gone ({sys.executable}): a package of requirements.txt is missing or broken; "
            "remove .venv, and `make repro` builds it again",
        ),
        (ZeroDivisionError("0"), 2, f"error: this is a bug in PROGRAM: {BUG}"),
        (RuntimeError("shapes"), 2, f"error: this is a bug in PROGRAM: {BUG}"),
        (ImportError("no name", name="stages.common.paths"), 2, f"error: this is a bug in PROGRAM: {BUG}"),
        (ImportError("no name", name="export.run"), 2, f"error: this is a bug in PROGRAM: {BUG}"),
        (UnicodeEncodeError("ascii", "…", 0, 1, "no"), 2, f"error: this is a bug in PROGRAM: {BUG}"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_ends_in_one_line_and_no_error_looks_like_a_verdict(
    error: BaseException, status: int, last: str, monkeypatch: Patch, capsys: Out
) -> None:
    monkeypatch.setattr(errors, "program", lambda: "PROGRAM")
    with pytest.raises(SystemExit) as end:
        errors.run(raising(error), alone=False, memory="a.b")
    stderr = capsys.readouterr().err
    assert (end.value.code, stderr.endswith(f"{last}\n" if last else last)) == (status, True), stderr
    assert ("Traceback" in stderr) == (BUG in last)
    assert not last or BUG in last or stderr == f"{last}\n"  # nothing but the line


@pytest.mark.parametrize("status", [None, 0, 1])
def test_a_command_returns_its_verdict(status: int | None) -> None:
    with pytest.raises(SystemExit) as end:
        errors.run_command(lambda: status)
    assert end.value.code == (status or 0)


@pytest.mark.parametrize(
    ("content", "use"), [("x = 1", "import tqdm; tqdm.tqdm"), ("x = 1", "from tqdm import tqdm")], ids=["use", "import"]
)
def test_a_file_that_hides_a_package_is_reported(content: str, use: str, tmp_path: Path) -> None:
    (tmp_path / "tqdm.py").write_text(content, encoding="utf-8")
    body = f"sys.path.insert(0, os.getcwd())\ndef main():\n    {use}\nerrors.run(main, alone=False)"
    status, _, stderr = ending(start(body, tmp_path))
    assert (status, stderr.count("\n")) == (2, 1)
    assert stderr.startswith(f"error: {tmp_path}/tqdm.py hides the package of that name (")


def test_a_command_without_arguments_answers_help(tmp_path: Path) -> None:
    body = "__doc__ = 'What it does.'\nsys.argv[1:] = ['{}']\nfrom stages.common import errors\n"
    body += "errors.run_command(lambda: print('ran') if errors.no_arguments() else None)"
    assert ending(start(body.format("--help"), tmp_path)) == (0, "What it does.\n", "")
    assert ending(start(body.format("x"), tmp_path)) == (2, "", "error: takes no arguments; given: 'x'\n")


def test_an_import_that_fails_is_no_verdict(tmp_path: Path) -> None:
    status, _, stderr = ending(start("sys.excepthook = errors.uncaught\nimport a_package_that_is_not_there", tmp_path))
    assert status == 2
    assert stderr.startswith("error: No module named 'a_package_that_is_not_there' (")
    status, _, stderr = ending(start("sys.excepthook = errors.uncaught\nraise KeyboardInterrupt", tmp_path))
    assert (status, stderr) == (130, "interrupted before the start\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["output", "help"])
def test_a_terminal_may_lack_characters(encoding: str, arguments: list[str], tmp_path: Path) -> None:
    body = f"""
    import argparse
    def main():
        argparse.ArgumentParser(prog='p', description='a \N{HORIZONTAL ELLIPSIS} z').parse_args({arguments!r})
        print('a \N{HORIZONTAL ELLIPSIS} z \\udcff')
        print('e \N{HORIZONTAL ELLIPSIS} z', file=sys.stderr)
    errors.run(main)
    """
    status, output, stderr = ending(start(body, tmp_path, env={**os.environ, "PYTHONIOENCODING": encoding}))
    assert (status, stderr) == (0, "" if arguments else "e ? z\n")
    assert "a ? z" in output


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["output", "help"])
def test_a_closed_pipe_ends_a_program_quietly(arguments: list[str], tmp_path: Path) -> None:
    body = f"""
    import argparse
    def main():
        sys.stdin.read()
        argparse.ArgumentParser().parse_args({arguments!r})
        print('x' * 100_000)
    errors.run(main)
    """
    process = start(body, tmp_path)
    assert process.stdout
    assert process.stdin
    assert process.stderr
    process.stdout.close()
    process.stdin.close()
    assert (process.wait(60), process.stderr.read()) == (128 + signal.SIGPIPE, "")
    process.stderr.close()


def test_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        status, _, stderr = ending(start("errors.run(lambda: print('x'))", tmp_path, stdout=full))
    assert (status, stderr) == (2, "error: <stdout>: No space left on device\n")


def test_no_output_at_all(tmp_path: Path) -> None:
    command = ["sh", "-c", '"$0" "$@" >&- 2>&-', sys.executable, "-c"]
    body = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom stages.common import errors\n"
    body += "errors.run(lambda: print('x'))"
    assert subprocess.run([*command, body], cwd=tmp_path, check=False).returncode == 0


# --- signals

CLEANING = """
import tempfile
def main():
    with tempfile.TemporaryDirectory(dir='.') as folder:
        try:
            print('begun', flush=True)
            time.sleep(600)
        finally:
            print('cleaning', flush=True)
            sys.stdin.readline()
errors.run(main, kept='K')
"""


@pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
@pytest.mark.parametrize("more", [0, 2])
def test_a_second_signal_does_not_interrupt_the_cleanup_of_the_first(signum: int, more: int, tmp_path: Path) -> None:
    process = start(CLEANING, tmp_path)
    assert line(process) == "begun"
    process.send_signal(signum)
    assert line(process) == "cleaning"
    for _ in range(more):
        process.send_signal(signum)
    assert (process.communicate("\n", timeout=600)[1], process.returncode) == ("interrupted: K\n", 128 + signum)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_signal_just_before_a_wait_ends_the_wait(tmp_path: Path) -> None:
    # `list` calls both without an instruction of Python's in between, at which the handler could be called.
    body = """
    import ctypes, functools, operator, threading
    lock = threading.Lock()
    lock.acquire()
    send = functools.partial(ctypes.CDLL(None)["raise"], 15)
    errors.run(lambda: list(map(operator.call, [send, lock.acquire])), kept='K')
    """
    assert ending(start(body, tmp_path)) == (143, "", "interrupted: K\n")


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    body = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + CLEANING
    process = start(body, tmp_path)  # as with nohup
    assert line(process) == "begun"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "cleaning"
    assert process.communicate("\n", timeout=600)[0] == ""
    assert process.returncode == 143


def test_a_signal_that_a_library_swallowed_is_raised_again(monkeypatch: Patch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    raised = []
    with errors._signals_raise():
        for now[0] in (100, 101, 102, 100 + errors.SWALLOWED_SECONDS + 1):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except errors.Stopped:
                raised.append(now[0])
    assert raised == [100, 116]


# --- the lock


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Patch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["program"])
    return tmp_path


def test_the_packages_of_this_project_are_those_with_import_rules() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert {*errors.OWN_PACKAGES, "tools"} == {*rules["root_packages"]}


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks(name: str, folder: Path, monkeypatch: Patch, capsys: Out) -> None:
    number = getattr(errno, name)

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    paths.RUNS.mkdir()
    paths.LOCK.touch()  # of an earlier run
    with pytest.raises(SystemExit) as end:
        errors.run(lambda: print("at work"))
    captured = capsys.readouterr()
    assert (end.value.code, captured.out) == (0, "at work\n")
    assert captured.err == (
        f"runs/stage.lock: this file system has no locks ({os.strerror(number)}): do not run two stages here at "
        "once; DVC needs `dvc config --local core.hardlink_lock true`\n"
    )


def test_a_lock_that_fails_otherwise_names_its_file(folder: Path, monkeypatch: Patch, capsys: Out) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(SystemExit):
        errors.run(lambda: print("at work"))
    assert capsys.readouterr() == ("", "error: runs/stage.lock: Input/output error\n")


@pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
def test_waiting_for_a_stage_obeys_signals(signum: int, folder: Path) -> None:
    with errors.one_stage_at_a_time() as free:
        assert free
        waiting = start("errors.run(lambda: print('at work'))", folder)
        assert line(waiting) == "waiting for another stage in this folder"
        with errors.one_stage_at_a_time(wait=False) as also_free:
            assert not also_free
        waiting.send_signal(signum)
        assert ending(waiting) == (128 + signum, "", f"interrupted: {errors.KEPT}\n")


def test_a_forked_child_does_not_hold_the_lock(folder: Path) -> None:
    body = """
    import signal
    def main():
        if not os.fork():
            print(os.getpid(), flush=True)  # by the child itself: it runs by now, and has let go
        signal.pause()
    errors.run(main)
    """
    process = start(body, folder)
    child = int(line(process))
    try:
        process.kill()
        process.wait()
        assert is_running(child)
        with errors.one_stage_at_a_time(wait=False) as free:
            assert free
    finally:
        os.kill(child, signal.SIGKILL)
        ending(process)


def test_a_forked_child_that_ends_the_block_closes_nothing(folder: Path) -> None:
    body = """
    def main():
        with errors.one_stage_at_a_time():
            if child := os.fork():
                return os.waitpid(child, 0)[1]
            other = os.open(os.devnull, os.O_RDONLY)  # has the number that the lock's had
        os.fstat(other)
        os._exit(0)
    errors.run(main, alone=False)
    """
    assert ending(start(body, folder)) == (0, "", "")


def test_a_program_that_only_reads_takes_no_lock(folder: Path) -> None:
    folder.chmod(0o555)
    with errors.one_stage_at_a_time() if os.getuid() == 0 else nullcontext():
        status, output, _ = ending(start("errors.run(lambda: print('read'), alone=False)", folder))
    assert (status, output) == (0, "read\n")


# --- files


@pytest.mark.parametrize("name", ["EPERM", "ENOTSUP", "EINVAL", "ENOSYS"])
def test_a_mount_may_refuse_chmod_and_fsync(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(getattr(errno, name), "refused")

    for function in ("fsync", "chmod", "fchmod"):
        monkeypatch.setattr(f"os.{function}", refuse)
    files.write_text(tmp_path / "a.json", "content")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "content"


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(function: str, tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": 1 / 3, "a": [2.0]})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 0.333333,\n  "a": [\n    2.0\n  ]\n}\n'
    before = path.read_bytes()
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):

        def fail(*arguments: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(f"os.{function}", fail)
        with pytest.raises(type(error)) as caught:
            files.write_json(path, {})
        assert getattr(caught.value, "filename", str(path)) == str(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    body = """
    import signal
    from pathlib import Path
    files.write_text(Path("a.json"), "old")
    os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # after all is written, before it counts
    files.write_text(Path("a.json"), "new")
    """
    assert ending(start(body, tmp_path))[0] == -signal.SIGKILL
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)], ids=["2", "22", "77"])
def test_the_umask_applies(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "a", "content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", encoding="utf-8")
    (tmp_path / "link").symlink_to("a")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a").read_text(encoding="utf-8") == "new"


def test_a_link_into_dvcs_cache_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "object").write_text("old", encoding="utf-8")
    (tmp_path / "object").chmod(0o444)
    (tmp_path / "link").symlink_to("object")
    files.write_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "object").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe"])
def test_a_device_is_not_replaced_by_a_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    if kind.startswith("link"):
        path = tmp_path / "link"
        path.symlink_to("a")
    before = sorted(tmp_path.iterdir()), path.stat().st_mode
    reason = f"{re.escape(str(path))}: (is a folder|not a regular file, but a device)"
    with pytest.raises(errors.UserError, match=f"^{reason}"):
        files.write_text(path, "content")
    with pytest.raises(errors.UserError, match=f"^--out {reason}"):
        files.check_target(path)
    assert (sorted(tmp_path.iterdir()), path.stat().st_mode) == before


def test_terminals_and_standard_output_are_written_to(tmp_path: Path) -> None:
    """Like /dev/null and /dev/stdout, which no test should put at risk."""
    body = """
    from pathlib import Path
    reader, writer = os.openpty()
    for name in (os.ttyname(writer), '/proc/self/fd/1'):
        files.check_target(Path(name))
        files.write_text(Path(name), 'content')
    print(os.read(reader, 7))
    """
    assert ending(start(body, tmp_path)) == (0, "contentb'content'\n", "")


def test_a_target_in_a_missing_folder_is_reported_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(errors.UserError) as caught:
        files.check_target(tmp_path / "gone/a.json")
    assert str(caught.value).startswith(
        f"--out {tmp_path}/gone/a.json: No such file or directory: {tmp_path}/gone; give"
    )
    files.check_target(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


# --- command lines

MODULES = [
    name.removesuffix(".__main__")
    for folder in ("stages", "integrity", "review", "seeds", "export", "use")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")
    for name in [".".join(path.relative_to(ROOT).with_suffix("").parts)]
]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_answers_help_and_refuses_unknown_arguments(
    name: str, folder: Path, monkeypatch: Patch, capsys: Out
) -> None:
    results = []
    for argument in ("--help", "--wrong"):
        monkeypatch.setattr(sys, "argv", [name, argument])
        with warnings.catch_warnings(action="ignore"), pytest.raises(SystemExit) as end:
            # What is ignored: another test may have imported it.
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        results.append((end.value.code, *capsys.readouterr()))
    (helped, text, _), (refused, output, complaint) = results
    assert (helped or 0, bool(text.strip())) == (0, True)
    assert (refused, output) == (2, "")
    assert "--wrong" in complaint.splitlines()[-1] or "required" in complaint.splitlines()[-1]
    assert "Traceback" not in complaint
    assert list(folder.iterdir()) == []


# --- what programs start

# A program that runs others, which have started others in turn, at once and from threads.
PARENT = """
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
FAMILY = ['sh', '-c', 'sleep 600 & echo $! > $0; echo $$ >> $0; mv $0 $0.pids; wait']
def main():
    with ThreadPoolExecutor(3) as pool, children.Group() as group:
        def one(number):
            group.run([*FAMILY, str(number)], Path(), dict(os.environ), capture=number == 1)
        waiting = [pool.submit(one, number) for number in range(3)]
        if THREADS:
            waiting[0].result()
        else:
            children.run([*FAMILY, '3'], Path(), dict(os.environ))
errors.run(main, alone=False, kept='K')
"""


@pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
@pytest.mark.parametrize("threads", [True, False], ids=["from threads", "directly"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_children_end_with_the_command(signum: int, threads: bool, twice: bool, tmp_path: Path) -> None:
    process = start(f"THREADS = {threads}\n{PARENT}", tmp_path)
    count = 3 if threads else 4
    wait_for(lambda: len(list(tmp_path.glob("*.pids"))) == count, 600)
    family = [int(number) for path in tmp_path.glob("*.pids") for number in path.read_text().split()]
    assert all(map(is_running, family))
    assert len(family) == 2 * count
    process.send_signal(signum)
    if twice:
        process.send_signal(signum)
    assert ending(process) == (128 + signum, "", "interrupted: K\n")
    # The system takes a moment to end grandchildren after SIGKILL.
    wait_for(lambda: not any(map(is_running, family)), 600)


@pytest.mark.parametrize("signum", SIGNALS, ids=NAMES)
def test_a_signal_while_a_child_starts_leaves_none_behind(signum: int, tmp_path: Path) -> None:
    body = f"""
    import subprocess
    from pathlib import Path
    start = subprocess.Popen._execute_child
    def started(self, *arguments):
        start(self, *arguments)
        print(self.pid, flush=True)
        os.kill(os.getpid(), {int(signum)})
        time.sleep(0.01)
    subprocess.Popen._execute_child = started
    errors.run(lambda: children.run(['sleep', '600'], Path(), os.environ).returncode, alone=False, kept='K')
    """
    process = start(body, tmp_path)
    child = int(line(process))
    assert ending(process) == (128 + signum, "", "interrupted: K\n")
    assert not is_running(child)


def test_children_that_ignore_signals_are_killed_when_in_haste(tmp_path: Path) -> None:
    body = """
    from pathlib import Path
    deaf = ['sh', '-c', 'exec 2>&-; trap "touch told" TERM; echo $$; while :; do sleep 0.05; done']
    errors.run(lambda: children.run(deaf, Path(), dict(os.environ)).returncode, alone=False, kept='K')
    """
    process = start(body, tmp_path)
    child = int(line(process))
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "told").exists, 600)
    assert is_running(child)
    process.send_signal(signal.SIGINT)
    assert ending(process) == (130, "", "interrupted: K\n")
    assert not is_running(child)


def test_a_time_limit_ends_a_child(tmp_path: Path) -> None:
    from stages.common import children

    with pytest.raises(subprocess.TimeoutExpired):
        children.run(["sh", "-c", "echo $$ > pid; sleep 600"], tmp_path, os.environ, timeout_seconds=0.5)
    assert not (tmp_path / "pid").exists() or not is_running(int((tmp_path / "pid").read_text()))


# A stage: it says that it runs, and which signal it received.
STAGE = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from stages.common import errors, files
from stages.train.stopping import handle_stop_signals
def main():
    with handle_stop_signals() as stop:
        files.write_text(Path('pid'), str(os.getpid()))
        while not (signum := stop()) and not Path('enough').exists():
            time.sleep(0.02)
    if signum:
        files.write_text(Path('checkpoint'), str(signum))
        raise errors.Interrupted(signum, 'a checkpoint is there')
    files.write_text(Path('out'), 'done')
errors.run(main)
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("shell", ["", " && true"], ids=["alone", "below a shell"])
def test_a_stage_ends_with_its_dvc(signum: int, shell: str, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    project = Project(tmp_path / "repository")
    project.run("git", "init", "-q")
    project.dvc("init", "-q")
    project.dvc("config", "core.analytics", "false")
    project.write("stage.py", STAGE)
    project.write("dvc.yaml", f"stages:\n  wait:\n    cmd: python stage.py{shell}\n    outs: [out]\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project.path,
        env={**project.environment, "SHELL": "/bin/sh"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pid = project.path / "pid"
    wait_for(lambda: pid.exists() or process.poll() is not None, 600)
    stage = int(pid.read_text(encoding="utf-8"))
    process.send_signal(signum)
    output, _ = process.communicate(timeout=600)  # until the stage has ended, which has the other end of the pipe
    assert process.returncode == -signum
    assert output.endswith(
        "the program that started this one has ended: stopping\ninterrupted: a checkpoint is there\n"
    )
    wait_for(lambda: not is_running(stage), 600)
    assert (project.path / "checkpoint").read_text(encoding="utf-8") == "15"
    (project.path / "checkpoint").unlink()
    (project.path / "enough").touch()
    project.dvc("repro", "-q")  # its lock is free
    assert (project.path / "out").read_text(encoding="utf-8") == "done"


def test_a_stage_ends_with_a_killed_command(tmp_path: Path) -> None:
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    body = """
    from pathlib import Path
    errors.run(lambda: children.run(['sh', '-c', f'{sys.executable} stage.py; true'], Path(), os.environ).returncode)
    """
    process = start(body.replace("errors.run(", "errors.run(alone=False, main="), tmp_path)
    wait_for((tmp_path / "pid").exists, 600)
    process.kill()
    _, _, stderr = ending(process)
    assert stderr.endswith("interrupted: a checkpoint is there\n")
    wait_for(lambda: not is_running(int((tmp_path / "pid").read_text())), 600)


def test_a_program_started_by_hand_watches_no_parent(monkeypatch: Patch) -> None:
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv(errors.STARTED_BY, raising=False)
    assert errors._chain() == []
    monkeypatch.setenv(errors.STARTED_BY, "999999999")  # of another machine or container
    assert errors._chain() == []
    monkeypatch.setenv("DVC_STAGE", "train")
    assert errors._chain() == [(os.getpid(), os.getppid())]
