"""Run a program of this project, and turn errors and signals into one line and an exit status.

0: success. 1: a verdict (worse, different, damaged), which only the program itself returns. 2: an error; a traceback
means a bug in this project. 3: success, except for pictures that could not be read (only use.predict). 128 + the
signal's number: stopped by a signal, or (SIGPIPE) nobody reads the output.
"""

import errno
import io
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Any, NoReturn, TextIO

from stages.common import locks, paths

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STARTED_BY = "STAGES_STARTED_BY"  # environment variable: the process number of the program that started this one
POLL_SECONDS = 0.1  # while waiting for another stage
WATCH_SECONDS = 0.5  # between two checks that dvc still runs
WAKE_SECONDS = 0.1  # between a signal and the interruption of a wait that missed it
SWALLOWED_SECONDS = 15  # after that, a signal raises again; the cleanup takes less
NO_MEMORY = ("can't allocate memory", "DefaultCPUAllocator", "out of memory", "bad_alloc", "can't start new thread")
OWN_PACKAGES = ("stages", "review", "integrity", "seeds", "export", "use")
KEPT = "nothing of this stage is kept; `dvc repro` restarts it"


class UserError(Exception):
    """An error that the user can fix. The text says what is wrong, where, and how to fix it."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal stopped the program (SIGTERM, Ctrl-C). The text says what is kept."""

    def __init__(self, signum: int, kept: str) -> None:
        super().__init__(kept)
        self.status = 128 + signum


class Stopped(KeyboardInterrupt):
    """A signal, raised in the main thread so that every `with` and `finally` runs."""

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


def run(main: Callable[[], int | None], alone: bool = True, kept: str = KEPT, memory: str = "") -> NoReturn:
    """Run a program and exit with its status, or as described above.

    alone: a stage; it takes no arguments, and waits until no other stage runs in this folder. kept: what remains if a
    signal ends the program. memory: the keys of params.yaml that determine how much memory it needs.
    """
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    with _signals_raise():
        _watch_parent()
        status = _status(main, alone, kept, memory)
        _discard_unwritten_output()
    sys.exit(status)


def _status(main: Callable[[], int | None], alone: bool, kept: str, memory: str) -> int:
    try:
        try:
            if alone:
                no_arguments()
            with one_stage_at_a_time() if alone else nullcontext():
                status: Any = main()
        except SystemExit as end:  # of argparse, say
            status = end.code
        if isinstance(status, str):
            raise UserError(status)
        for stream in _streams():
            try:
                stream.flush()
            except OSError as error:
                error.filename = stream.name
                raise
        return int(status or 0)
    except Interrupted as stop:
        print_line(f"interrupted: {stop}")
        return stop.status
    except KeyboardInterrupt as stop:
        print_line(f"interrupted: {kept}")
        return 128 + (stop.signum if isinstance(stop, Stopped) else signal.SIGINT)
    except Exception as error:
        return _explain(error, memory)


def _explain(error: BaseException, memory: str) -> int:
    """Print the error, in one line if the user can fix it; return the exit status."""
    if isinstance(error, UserError):
        print_line(f"error: {error}")
    elif isinstance(error, BrokenPipeError) and _reader_is_gone():
        return 128 + signal.SIGPIPE
    elif _is_lack_of_memory(error):
        keys = f"; it depends on {memory} in {paths.PARAMS}" if memory else ""
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        print_line(f"error: not enough memory in {program()} ({reason[:200]}){keys}")
    elif isinstance(error, OSError):  # disk full, no permission, not a directory
        place = f"{error.filename}: " if error.filename else ""
        print_line(f"error: {place}{error.strerror or error}")
    elif shadow := _shadow(error):
        reason = (str(error).splitlines() or [""])[0]
        print_line(f"error: {shadow} hides the package of that name ({reason[:200]}); rename or remove it")
    elif isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in OWN_PACKAGES:
        reason = (str(error).splitlines() or [""])[0]
        print_line(
            f"error: {reason} ({sys.executable}): a package of requirements.txt is missing or broken; "
            "remove .venv, and `make repro` builds it again"
        )
    else:
        with suppress(OSError):
            traceback.print_exception(error)
        print_line(f"error: this is a bug in {program()}: please report it with the lines above")
    return 2


def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A `sys.excepthook` for errors before `run` is called, such as a failing import."""
    if isinstance(error, KeyboardInterrupt):
        print_line("interrupted before the start")
        status = 128 + signal.SIGINT
    else:
        status = _explain(error, "")
    _discard_unwritten_output()
    os._exit(status)  # Python would exit with 1, which is a verdict


def printable(text: str) -> str:
    """Replace control characters, which a name in a file could send to a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def one_line(error: object) -> str:
    """A message or an error as one short line, without the password of a URL in it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"://[^@/\s]+@", "://***@", text)[:200]


def print_line(line: str) -> None:
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


def _streams() -> list[TextIO]:
    """Standard output and error; Python has none if the caller closed it."""
    streams: list[TextIO | None] = [sys.stdout, sys.stderr]
    return [stream for stream in streams if stream is not None]


def program() -> str:
    """The name of the running program: "train" for `python -m stages.train`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return (spec.name if spec else Path(sys.argv[0]).stem).removesuffix(".__main__").rpartition(".")[2]


def _is_lack_of_memory(error: BaseException) -> bool:
    """Compares names and texts: importing torch for its exception classes would take too long."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))
    )


def _shadow(error: BaseException) -> str:
    """The file in the working directory that hides a package and so makes an import fail; else ""."""
    module: Any = None
    if isinstance(error, ImportError):
        module = sys.modules.get((error.name or "").partition(".")[0])
    elif isinstance(error, AttributeError):
        module = error.obj
    file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
    return file if file and module.__name__ != "__main__" and Path(file).parent == Path.cwd() else ""


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe without a reader, as in `… | head`."""
    poll = select.poll()
    for stream in _streams():
        with suppress(OSError):  # not a file
            poll.register(stream.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _discard_unwritten_output() -> None:
    """Keep Python from writing again when it exits, which would change the exit status to 120."""
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# --- signals

_deferred: list[int] | None = None  # signals received within `signals_deferred`; None outside of it
_signal_times: list[float] = []  # times of the signals since `run` started


def _stop(signum: int, frame: FrameType | None) -> None:
    """Raise Stopped at the first signal. Later ones only shorten waits: a second exception would abort the cleanup.

    A library may swallow the exception (in a __del__, for instance). So after a while the next signal raises again.
    """
    if _deferred is not None:
        _deferred.append(signum)
        return
    _signal_times.append(time.monotonic())
    if len(_signal_times) == 1 or _signal_times[-1] - _signal_times[0] > SWALLOWED_SECONDS:
        _signal_times[:] = _signal_times[-1:]
        raise Stopped(signum)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """A block at whose end, and not earlier, a signal interrupts the main thread.

    For steps that belong together, such as starting a program and recording that it runs.
    """
    global _deferred
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _deferred = []
    try:
        yield
    finally:
        signals, _deferred = _deferred, None
        for signum in signals:
            _stop(signum, None)


def second_signal_came() -> bool:
    """Whether a second signal came: the user does not want to wait for the cleanup."""
    return len(_signal_times) > 1


def _not_ignored() -> list[signal.Signals]:
    """The signals that end a program: nohup ignores SIGHUP, and `&` in a shell script SIGINT."""
    return [signum for signum in SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]


@contextmanager
def _signals_raise() -> Iterator[None]:
    _signal_times.clear()
    before: dict[signal.Signals, Any] = {signum: signal.signal(signum, _stop) for signum in _not_ignored()}
    before[signal.SIGURG] = signal.signal(signal.SIGURG, lambda signum, frame: None)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_interrupt_waits, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writer)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _interrupt_waits(reader: int) -> None:
    """After a signal, interrupt the main thread a few times with SIGURG, which does nothing else.

    Python calls its handlers between two instructions. A signal after the last instruction, but before the system call
    in which the main thread waits (for a lock, a child), would go unnoticed until that wait is over: forever.
    """
    with open(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            for _ in range(5 if number[0] in SIGNALS else 0):
                time.sleep(WAKE_SECONDS)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)


# --- one stage at a time

_held: set[int] = set()  # descriptors of the lock


def _release() -> None:
    """In a forked child, such as a loader worker: its copy would hold the lock after the stage was killed."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_release)


@contextmanager
def one_stage_at_a_time(wait: bool = True) -> Iterator[bool]:
    """Wait until no other stage runs in this folder; yields whether none does, which may be False without `wait`.

    A stage needs up to a second to notice that its dvc was killed; meanwhile a new `dvc repro` could write the same
    files. The system releases the lock when the process ends, however it ends. Some file systems have no locks.
    """
    paths.RUNS.mkdir(exist_ok=True)
    try:
        descriptor = os.open(paths.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # another user's file in a shared clone; locking needs no write access
        descriptor = os.open(paths.LOCK, os.O_RDONLY)
    _held.add(descriptor)
    try:
        free = _locked(descriptor)
        if not free and wait:
            print("waiting for another stage in this folder", flush=True)
            while not (free := _locked(descriptor)):
                time.sleep(POLL_SECONDS)
        yield free
    finally:
        if descriptor in _held:  # not in a forked child
            _held.remove(descriptor)
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Try to take the lock. True, after a warning, if the file system has no locks."""

    def warn(reason: str) -> None:
        print_line(
            f"{paths.LOCK}: this file system has no locks ({reason}): do not run two stages here at once; "
            "DVC needs `dvc config --local core.hardlink_lock true`"
        )

    try:
        return locks.try_lock(descriptor, warn)
    except OSError as error:
        error.filename = str(paths.LOCK)
        raise


# --- the program that started this one


def _parent(process: int) -> int:
    """The process number of the parent; 0 if unknown."""
    if process == os.getpid():
        return os.getppid()
    try:
        return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _chain() -> list[tuple[int, int]]:
    """Pairs of a process and its parent, from this process up to the ancestor that it must not outlive; may be empty.

    In a stage that is dvc: the first ancestor without DVC_STAGE in its environment, which a shell in between has. In a
    program started by stages/common/children.py it is the program that did so.
    """
    stage, starter = os.environ.get("DVC_STAGE"), os.environ.get(STARTED_BY)
    chain: list[tuple[int, int]] = []
    needed, process = 0, os.getpid()
    while (stage is not None or starter is not None) and (parent := _parent(process)) > 0:
        chain.append((process, parent))
        if stage is not None and not _started_with(parent, f"DVC_STAGE={stage}"):
            stage, needed = None, len(chain)
        if starter == str(parent):
            starter, needed = None, len(chain)
        process = parent
    return chain[:needed]


def _started_with(process: int, variable: str) -> bool:
    """Whether a process was started with an environment variable; False if the system does not tell."""
    try:
        return os.fsencode(variable) in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


_CHAIN = _chain()  # now: dvc may be gone once torch is imported


def _watch_parent() -> None:
    """End this program as SIGTERM does, with a checkpoint, once the program that started it has ended.

    Not for programs started by hand or with nohup: they may outlive their shell.
    """

    def watch() -> None:
        while all(_parent(process) == parent for process, parent in _CHAIN):
            time.sleep(WATCH_SECONDS)
        print_line("the program that started this one has ended: stopping")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    if _CHAIN:
        threading.Thread(target=watch, daemon=True).start()


def run_command(main: Callable[[], int | None], kept: str = "nothing was changed") -> NoReturn:
    """`run` for a command that is not a stage. kept: what remains if a signal ends it."""
    run(main, alone=False, kept=kept)


def no_arguments() -> None:
    """Raise UserError if there are command-line arguments; print the docstring for --help."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        sys.exit(0)
    if len(sys.argv) > 1:
        raise UserError(f"takes no arguments; given: {' '.join(sys.argv[1:])[:80]!r}")
