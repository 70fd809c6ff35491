"""Make or repair .venv in the working directory: `python3 tools/venv.py requirements.txt [requirements-dev.txt]`.

Afterwards .venv holds the pins of the files named, each package checked against its hash when it came. A .venv that
does already is left as it is, in milliseconds: by its record, and by the names and versions in site-packages. One that
lacks a pin, or has another version of it, gets it from pip. One that is in doubt (an install that was killed, a folder
that was moved, another Python) is built anew: minutes, against a fault that nobody would look for there; the old one
is put back if that fails. A .venv that was not made here is never changed.

Standard library only, since this runs before anything is installed.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - here, and in syntax of 3.6: an older Python is to get as far as this line
    sys.stderr.write(
        "error: needs Python 3.11 or newer, found {}.{} ({})\n".format(*sys.version_info[:2], sys.executable)
    )
    sys.exit(2)

import errno
import hashlib
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, NoReturn, TextIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

VENV = Path(".venv")
OLD = Path(".venv.old")  # what .venv was, while a new one is built
WINDOWS = sys.platform == "win32"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
SITE_PACKAGES = VENV / ("Lib" if WINDOWS else "lib/python{}.{}".format(*sys.version_info[:2])) / "site-packages"
RECORD = VENV / "record.json"  # made_by(), the requirements files with their SHA-256, the folders of what they pin
MARKER = VENV / "installing"  # there while pip works: one found without a pip at work was left by a crash
LOCK = Path(".venv.lock")  # beside .venv, which building anew replaces
STARTER = SITE_PACKAGES / "_sane_environment.py"  # "_": its .pth file comes before those of packages
# What a user may tell pip about how to reach packages. All else (target, user, prefix, root, constraint, …) is about
# where and what to install, and settled here: the pins have hashes.
PIP_OPTIONS = {
    "cache-dir",
    "cert",
    "client-cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "keyring-provider",
    "no-cache-dir",
    "no-index",
    "proxy",
    "resume-retries",
    "retries",
    "timeout",
    "trusted-host",
    "use-deprecated",
    "use-feature",
}

# `pip config list` would obey `user = true`. Newer versions of pip give a dictionary for each file.
PIP_CONFIG = """
import json
from pip._internal.configuration import Configuration

configuration, settings = Configuration(isolated=False), {}
configuration.load()
for key, value in configuration.items():
    settings.update(value if isinstance(value, dict) else {key: value})
print(json.dumps(settings))
"""

# Run by .venv's Python, whose pip reads requirements as pip does: what is pinned here, and which of it is not there.
CHECK = """
import json, os, sys
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

folders = {}
for folder in os.listdir(sys.argv[1]):
    if folder.endswith(".dist-info"):
        folders.setdefault(canonicalize_name(folder.partition("-")[0]), []).append(folder)
pinned, wrong = [], []
for file in sys.argv[2:]:
    for line in open(file, encoding="utf-8"):
        if line[:1].isalnum():
            pin = Requirement(line.split(" --hash", 1)[0].split(" #", 1)[0].rstrip(" \\\\\\r\\n"))
            if pin.marker and not pin.marker.evaluate():
                continue
            found = folders.get(canonicalize_name(pin.name), [])
            versions = [folder.removesuffix(".dist-info").partition("-")[2] for folder in found]
            if len(found) == 1 and pin.specifier.contains(versions[0], prereleases=True):
                pinned += found
            else:
                wrong.append(f"{pin.name}{pin.specifier} is pinned, and {' and '.join(versions) or 'nothing'} is there")
print(json.dumps([pinned, wrong]))
"""


def run_main(files: list[str]) -> int:
    """`main` as a program: its exit status; a line on stderr if it is not 0."""
    try:
        main(files)
    except OSError as error:
        print(f"error: {error.filename or VENV}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the next call goes on from here", file=sys.stderr)
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def fail(text: str) -> NoReturn:
    """Exit with one line on stderr."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def main(files: list[str]) -> None:
    """Make .venv hold the pins of `files`; exits with one line on stderr if it cannot."""
    asked = {file: sha256(file) for file in files}
    if holds(asked):
        return
    names = " and ".join(files)
    if VENV.is_symlink():
        target = os.path.realpath(VENV)
        fail(f".venv is a link to {target}, which does not hold {names} as made by `make` there: remove the link")
    with take_lock() as lock:
        put_back_interrupted()
        if MARKER.exists() and MARKER.read_text() == last_change():
            MARKER.unlink()  # that pip ended before it changed anything, as without a network: .venv is whole
        if holds(asked):  # another call installed it while this one waited
            return
        if VENV.exists() and not ours(VENV):
            fail(f"{VENV.absolute()} was not made by this project (it has no record.json): move it away, or delete it")
        if in_doubt() or not (SITE_PACKAGES / "pip").is_dir():
            build(files, lock)
        else:
            mend(files, lock, moved=asked.items() <= held().items())
        write_record(asked)


def mend(files: list[str], lock: TextIO, moved: bool) -> None:
    """Have pip bring what .venv lacks of the pins; build anew if that does not help. moved: it had them once."""
    wrong = check(files)[1]
    if wrong:
        names = " and ".join(files)
        print(f"mending .venv: {wrong[0]}" if moved else f"installing {names} into .venv", flush=True)
        install(files, lock)
        if check(files)[1]:
            build(files, lock)


def ours(venv: Path) -> bool:
    """Whether a .venv was made here: an empty folder is as good."""
    return (venv / RECORD.name).exists() or (venv / MARKER.name).exists() or not any(venv.iterdir())


def holds(asked: dict[str, str]) -> bool:
    """Whether .venv holds the pins of these files. Prints a line if it holds packages that are not pinned, too."""
    if in_doubt() or not asked.items() <= held().items():
        return False
    pinned, here = set(record().get("pinned", ())), dist_infos()
    others = here - pinned
    if not pinned <= here or {name(folder) for folder in others} & {name(folder) for folder in pinned}:
        return False
    if not VENV.is_symlink() and (not STARTER.exists() or STARTER.read_bytes() != starter()):
        return False
    strange = sorted(folder[: -len(".dist-info")] for folder in others if name(folder) not in ("pip", "setuptools"))
    if strange:
        print(f"note: .venv also holds what requirements do not name: {', '.join(strange)}", file=sys.stderr)
    return True


def dist_infos() -> set[str]:
    """The folders of metadata in site-packages, such as six-1.17.0.dist-info."""
    return {folder.name for folder in SITE_PACKAGES.iterdir() if folder.name.endswith(".dist-info")}


def name(dist_info: str) -> str:
    """The name of a package, by its folder of metadata."""
    return dist_info.partition("-")[0].replace(".", "_").lower()


def record() -> dict[str, Any]:
    """What .venv/record.json says; empty if it cannot be read."""
    try:
        content = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def sha256(file: str) -> str:
    """The digest of a file."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def held() -> dict[str, str]:
    """The requirements files that .venv holds, by its record, with their SHA-256."""
    requirements = record().get("requirements")
    return requirements if isinstance(requirements, dict) else {}


def made_by() -> dict[str, str]:
    """What a .venv works with. A patch release of Python runs the same packages, a minor one does not."""
    return {
        "python": "{}.{}".format(*sys.version_info[:2]),
        "path": os.path.realpath(VENV),  # in the first line of every script
        "interpreter": os.path.realpath(PYTHON),
    }


def in_doubt() -> bool:
    """Whether .venv is missing, unfinished, moved, or not of this Python."""
    recorded, now = record(), made_by()
    recorded.setdefault("interpreter", now["interpreter"])  # records of earlier versions lack it
    return MARKER.exists() or not os.access(PYTHON, os.X_OK) or any(recorded.get(key) != now[key] for key in now)


def write_record(asked: dict[str, str]) -> None:
    """Look, and say that .venv holds these files' pins. The old .venv is not needed any more."""
    STARTER.write_bytes(starter())
    STARTER.with_suffix(".pth").write_text(f"import {STARTER.stem}; {STARTER.stem}.at_start()\n")
    py_compile.compile(str(STARTER))
    # What it held before it may hold still; or pip has moved a pin that the files share.
    requirements = {file: digest for file, digest in held().items() if Path(file).exists() and sha256(file) == digest}
    requirements.update(asked)
    pinned, wrong = check([*requirements])
    if wrong:
        requirements, kept = asked, set(record().get("pinned", ())) & dist_infos()
        pinned = [*{*check([*asked])[0], *kept}]
    content = {**made_by(), "requirements": requirements, "pinned": sorted(pinned)}
    temporary = RECORD.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(RECORD)
    MARKER.unlink(missing_ok=True)
    shutil.rmtree(OLD, ignore_errors=True)


def starter() -> bytes:
    """What .venv's Python runs first of all."""
    return (Path(__file__).parent / "environment.py").read_bytes()


def last_change() -> str:
    """When a package last came or went: for each, pip adds, renames or removes an entry of site-packages."""
    return str(SITE_PACKAGES.stat().st_mtime_ns) if SITE_PACKAGES.is_dir() else "never"


def put_back_interrupted() -> None:
    """If a call that built anew was killed: keep what it finished, or else what was there before."""
    if OLD.exists() and not in_doubt():
        shutil.rmtree(OLD)
    elif OLD.exists():
        put_back()


def put_back() -> None:
    """Replace an unfinished .venv by what was there before, if anything was."""
    if VENV.exists() and ours(VENV):
        shutil.rmtree(VENV)
    if OLD.exists():
        OLD.rename(VENV)


def build(files: list[str], lock: TextIO) -> None:
    """A new .venv with the pins of `files`. If that fails, the old one is back."""
    if not importlib.util.find_spec("ensurepip"):  # Debian's Python has `venv` but not what that takes pip from
        fail("this Python cannot make a .venv; on Debian and Ubuntu: apt install python3-venv")
    names, anew = " and ".join(files), ""
    if VENV.exists() and any(VENV.iterdir()):
        anew = " anew (the old one is unfinished, moved, changed, or not of this Python)"
        VENV.rename(OLD)
    print(f"making .venv{anew} with {names}: the first time takes a few minutes", flush=True)
    try:
        VENV.mkdir(exist_ok=True)
        RECORD.write_text("{}")  # from here on it is ours
        MARKER.touch()
        # Not sys.executable: with .venv activated that is the old .venv's own.
        base = getattr(sys, "_base_executable", sys.executable)
        run([base, "-I", "-m", "venv", str(VENV)], "could not make .venv, see above")
        install(files, lock)
        wrong = check(files)[1]
        if wrong:
            fail(f"pip ended well, and yet {wrong[0]} (in .venv)")
    except BaseException:
        put_back()
        raise


def install(files: list[str], lock: TextIO) -> None:
    """Let pip install `files` into .venv, from the index that pip is configured to use."""
    environ = pip_environment()
    MARKER.write_text(last_change())
    # -I: a package that is found through PYTHONPATH is not in .venv.
    command = [str(PYTHON), "-I", "-m", "pip", "install", "--require-hashes", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        command.append("--quiet")  # hides the progress bars too
    command += [f"--requirement={file}" for file in files]
    run(command, "pip failed, see above; run this again to retry", lock, environ)


def pip_environment() -> dict[str, str]:
    """This environment, with PIP_OPTIONS of pip's variables and files as they are, and nothing else of them."""
    listed = subprocess.run([PYTHON, "-I", "-c", PIP_CONFIG], stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode:
        fail("pip's own configuration cannot be read, see above")
    found, settings = json.loads(listed.stdout), {}
    for section in ("global", "install", ":env:"):  # the last one wins
        for key in PIP_OPTIONS:
            if f"{section}.{key}" in found:
                settings["PIP_" + key.upper().replace("-", "_")] = found[f"{section}.{key}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**environ, **settings, "PIP_CONFIG_FILE": os.devnull}


def check(files: list[str]) -> tuple[list[str], list[str]]:
    """Look into .venv: the folders of what `files` pin, and a line for each pin that is not there as it should be."""
    command = [str(PYTHON), "-I", "-S", "-c", f"import sys; sys.path.append({str(SITE_PACKAGES)!r})\n{CHECK}"]
    done = subprocess.run([*command, str(SITE_PACKAGES), *files], capture_output=True, text=True)
    if done.returncode:
        return [], [f"{(done.stderr.splitlines() or ['the Python of .venv does not run'])[-1]}"]
    pinned, wrong = json.loads(done.stdout)
    return pinned, wrong


def run(command: list[str], failure: str, lock: TextIO | None = None, environ: dict[str, str] | None = None) -> None:
    """Run `command` with its output shown; exit with one line, `failure` or that the disk is full, if it fails."""
    # pip inherits the lock: should we be killed and pip live on, the next call waits for it to end.
    descriptors = [lock.fileno()] if lock and sys.platform != "win32" else []
    errors = ""
    with subprocess.Popen(
        command, env=environ, stderr=subprocess.PIPE, text=True, errors="replace", pass_fds=descriptors
    ) as child:
        try:
            for line in child.stderr or []:
                errors += line
                print(line, end="", file=sys.stderr)
        except BaseException:
            child.terminate()  # told to stop alone, as by `kill -INT`
            raise
    if child.returncode:
        full = f"[Errno {errno.ENOSPC}]" in errors or f"[Errno {errno.EDQUOT}]" in errors
        fail("no space left on the disk, or on that of TMPDIR" if full else failure)


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
        print("usage: python3 tools/venv.py requirements.txt [requirements-dev.txt]", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_main(sys.argv[1:]))
