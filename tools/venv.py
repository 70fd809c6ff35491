"""Make or repair .venv in the working directory: `python3 tools/venv.py requirements.txt [requirements-dev.txt]`.

Afterwards .venv holds the pins of the files named, each package checked against its hash. A .venv that does already
is left as it is, in about the time Python takes to start twice. One that is in doubt (an install that was killed, a
folder that was moved, another Python) is built anew: minutes, against a fault that nobody would look for there.

Standard library only, since this runs before anything is installed.
"""

import errno
import hashlib
import importlib.util
import json
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TextIO

if sys.version_info < (3, 11):  # noqa: UP036 - here, and in syntax of 3.6: an older Python is to get as far as this line
    sys.exit("error: needs Python 3.11 or newer, found {}.{} ({})".format(*sys.version_info[:2], sys.executable))
if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

VENV = Path(".venv")
PYTHON = VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
SITE_PACKAGES = Path(sysconfig.get_path("purelib", "venv", {"base": str(VENV)}))
RECORD = VENV / "record.json"  # MADE_BY, and the requirements files that .venv holds with their SHA-256
MARKER = VENV / "installing"  # there while pip works: one found without a pip at work was left by a crash
LOCK = Path(".venv.lock")  # beside .venv, since building anew empties it

# A patch release of Python runs the same packages, a minor one does not. The path is in the first line of every script.
MADE_BY = {"python": "{}.{}".format(*sys.version_info[:2]), "path": str(Path.cwd() / VENV)}


def main(files: list[str]) -> None:
    """Make .venv hold the pins of `files`; exits with one line on stderr if it cannot."""
    asked = {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}
    if asked.items() <= held().items():
        return
    with take_lock() as lock:
        if MARKER.exists() and MARKER.read_text() == last_change():
            MARKER.unlink()  # that pip ended before it changed anything, as without a network: .venv is whole
        before = held()
        if asked.items() <= before.items():  # another call installed it while this one waited
            return
        names = " and ".join(files)
        if before:
            print(f"installing {names} into .venv", flush=True)
        else:
            anew = " anew (the old one is unfinished, moved, or not of this Python)" if VENV.exists() else ""
            print(f"making .venv{anew} with {names}: the first time takes a few minutes", flush=True)
            build()
        install(files, lock)
        # `asked` alone, not what .venv held as well: pip may have moved a pin that the other files share.
        temporary = RECORD.with_suffix(".tmp")
        temporary.write_text(json.dumps({**MADE_BY, "requirements": asked}, indent=2) + "\n")
        temporary.replace(RECORD)
        MARKER.unlink()


def held() -> dict[str, str]:
    """The requirements files that .venv holds, with their SHA-256. Empty: .venv is missing or in doubt."""
    starts = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    try:
        record = json.loads(RECORD.read_text())
        requirements: dict[str, str] = record.pop("requirements")
        if record != MADE_BY or MARKER.exists():
            return {}
        subprocess.run([PYTHON, "-I", "-S", "-c", starts], check=True, stderr=subprocess.DEVNULL)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, subprocess.CalledProcessError):
        return {}
    return requirements


def last_change() -> str:
    """When a package last came or went: for each, pip adds, renames or removes an entry of site-packages."""
    return str(SITE_PACKAGES.stat().st_mtime_ns) if SITE_PACKAGES.is_dir() else "never"


def build() -> None:
    """An empty .venv with pip in it. Killed midway it has no record, and the next call begins again."""
    if not importlib.util.find_spec("ensurepip"):  # Debian's Python has `venv` but not what that takes pip from
        sys.exit("error: this Python cannot make a .venv; on Debian and Ubuntu: apt install python3-venv")
    # Not sys.executable: with .venv activated that is .venv's own, which --clear deletes.
    base = getattr(sys, "_base_executable", sys.executable)
    run([base, "-I", "-m", "venv", "--clear", str(VENV)], "could not make .venv, see above")


def install(files: list[str], lock: TextIO) -> None:
    """Let pip install `files` into .venv, from the index that pip is configured to use."""
    MARKER.write_text(last_change())
    # -I: a package that is found through PYTHONPATH is not in .venv.
    command = [str(PYTHON), "-I", "-m", "pip", "install", "--require-hashes", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        command.append("--quiet")  # hides the progress bars too
    command += [f"--requirement={file}" for file in files]
    run(command, "pip failed, see above; run this again to retry", lock)


def run(command: list[str], failure: str, lock: TextIO | None = None) -> None:
    """Run `command` with its output shown; exit with one line, `failure` or that the disk is full, if it fails."""
    # pip inherits the lock: should we be killed and pip live on, the next call waits for it to end.
    descriptors = [lock.fileno()] if lock and sys.platform != "win32" else []
    errors = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=descriptors) as child:
        for line in child.stderr or []:
            errors += line
            print(line, end="", file=sys.stderr)
    if child.returncode:
        full = f"[Errno {errno.ENOSPC}]" in errors or f"[Errno {errno.EDQUOT}]" in errors
        sys.exit("error: no space left on the disk, or on that of TMPDIR" if full else f"error: {failure}")


def take_lock() -> TextIO:
    """Wait until no other call is at work on this .venv. Closing the file lets the next one in."""
    file = LOCK.open("a")
    waiting = False
    while True:
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return file  # a file system without locks, as on some clusters: better unlocked than not at all
        if not waiting:
            print("waiting for another install into .venv to end", flush=True)
            waiting = True
        time.sleep(0.1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python3 tools/venv.py requirements.txt [requirements-dev.txt]")
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the next call goes on from here")
