"""Make or repair .venv in the working directory: `python3 tools/venv.py requirements.txt [requirements-dev.txt]`.

Afterwards .venv holds the pins of these files, each package checked against its hash on installation. If .venv is up to
date, this takes milliseconds. If a pin is missing or has another version, pip installs it. If .venv is in doubt (a
killed install, a moved folder, another Python), it is rebuilt, which takes minutes; if that fails, the old one comes
back. A .venv that this program did not make is never changed.

Standard library only, since this runs before anything is installed.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file has the syntax of 3.6, so that an older Python gets here
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
import re
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
OLD = Path(".venv.old")  # the previous .venv, during a rebuild
WINDOWS = sys.platform == "win32"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
SITE_PACKAGES = VENV / ("Lib" if WINDOWS else "lib/python{}.{}".format(*sys.version_info[:2])) / "site-packages"
RECORD = VENV / "record.json"  # made_by(), the SHA-256 of the requirements files, the .dist-info folders of their pins
MARKER = VENV / "installing"  # exists while pip runs, and after a crash
LOCK = Path(".venv.lock")  # beside .venv, which a rebuild replaces
STARTER = SITE_PACKAGES / "_sane_environment.py"  # "_": its .pth file runs before those of packages
# pip's options for reaching packages, which the user may set. The others (target, user, prefix, root, constraint, …)
# determine where and what to install, which this program does.
PIP_OPTIONS = (
    *("cache-dir", "cert", "client-cert", "default-timeout", "extra-index-url", "find-links", "index-url"),
    *("keyring-provider", "no-cache-dir", "no-index", "proxy", "resume-retries", "retries", "timeout", "trusted-host"),
    *("use-deprecated", "use-feature"),
)
# Prints pip's configuration. `pip config list` would obey `user = true`. Newer versions of pip return a dictionary for
# each file.
PIP_CONFIG = """
import json
from pip._internal.configuration import Configuration

configuration, settings = Configuration(isolated=False), {}
configuration.load()
for key, value in configuration.items():
    settings.update(value if isinstance(value, dict) else {key: value})
print(json.dumps(settings))
"""


def run_main(files: list[str]) -> int:
    """Run `main` as a program; returns the exit status, and prints one line to stderr unless it is 0."""
    try:
        main(files)
    except OSError as error:
        print(f"error: {error.filename or VENV}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the next call continues from here", file=sys.stderr)
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def fail(text: str) -> NoReturn:
    """Exit with one line on stderr."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def main(files: list[str]) -> None:
    """Make .venv hold the pins of `files`; exits with one line on stderr if that fails."""
    requirements = {file: sha256(file) for file in files}
    if is_up_to_date(requirements):
        return
    names = " and ".join(files)
    if VENV.is_symlink():
        target = os.path.realpath(VENV)
        fail(f".venv is a link to {target}, which does not hold {names} as installed by `make` there: remove the link")
    with take_lock() as lock:
        restore_after_kill()
        if MARKER.exists() and MARKER.read_text() == last_change():
            MARKER.unlink()  # pip ended before it changed anything, for instance without a network
        if is_up_to_date(requirements):  # another call installed it meanwhile
            return
        if VENV.exists() and not is_ours(VENV):
            fail(f"{VENV.absolute()} was not made by this project (it has no record.json): move it away, or delete it")
        if is_in_doubt() or not (SITE_PACKAGES / "pip").is_dir():
            build(files, lock)
        else:
            damage = "; ".join(missing_pins())
            print(f"repairing .venv: {damage}" if damage else f"installing {names} into .venv", flush=True)
            install(files, lock)
            if len(dist_infos()) > len({package(folder) for folder in dist_infos()}):  # two versions of a package
                build(files, lock)
        write_record(requirements)


def is_ours(venv: Path) -> bool:
    """Whether this program made a .venv. It may also use an empty folder."""
    return (venv / RECORD.name).exists() or (venv / MARKER.name).exists() or not any(venv.iterdir())


def is_up_to_date(requirements: dict[str, str]) -> bool:
    """Whether .venv holds the pins of these files. Prints a note if it also holds packages that are not pinned."""
    if is_in_doubt() or not requirements.items() <= installed_requirements().items() or missing_pins():
        return False
    if not VENV.is_symlink() and (not STARTER.exists() or STARTER.read_bytes() != starter()):
        return False
    extra = [folder for folder in sorted(dist_infos() - pinned()) if package(folder) not in ("pip", "setuptools")]
    if extra:
        listed = ", ".join(folder[: -len(".dist-info")] for folder in extra)
        print(f"note: .venv also holds packages that are not pinned: {listed}", file=sys.stderr)
    return True


def missing_pins() -> list[str]:
    """A line for each recorded pin that .venv lacks, or has in several versions."""
    versions: dict[str, list[str]] = {}
    for folder in sorted(dist_infos()):
        versions.setdefault(package(folder), []).append(version(folder))
    return [
        f"{package(pin)}=={version(pin)} is pinned, but "
        f"{' and '.join(versions.get(package(pin), ['nothing']))} is installed"
        for pin in sorted(pinned())
        if versions.get(package(pin)) != [version(pin)]
    ]


def dist_infos() -> set[str]:
    """The folders of metadata in site-packages, such as six-1.17.0.dist-info."""
    return {folder.name for folder in SITE_PACKAGES.iterdir() if folder.name.endswith(".dist-info")}


def package(folder: str) -> str:
    """The normalized name of a package, from its folder of metadata."""
    return normalized(folder.partition("-")[0])


def version(folder: str) -> str:
    """The version of a package, from its folder of metadata."""
    return folder[: -len(".dist-info")].partition("-")[2]


def normalized(name: str) -> str:
    """The name of a package without differences of spelling."""
    return re.sub("[-_.]+", "_", name).lower()


def record() -> dict[str, Any]:
    """The content of .venv/record.json; empty if it cannot be read."""
    try:
        content = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def pinned() -> set[str]:
    """The folders of metadata of the pins, from the record."""
    return set(record().get("pinned", ()))


def installed_requirements() -> dict[str, str]:
    """The requirements files that .venv holds, with their SHA-256, from the record."""
    requirements = record().get("requirements")
    return requirements if isinstance(requirements, dict) else {}


def sha256(file: str) -> str:
    """The digest of a file."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def made_by() -> dict[str, str]:
    """What .venv depends on. A patch release of Python runs the same packages, a minor release does not."""
    return {
        "python": "{}.{}".format(*sys.version_info[:2]),
        "path": os.path.realpath(VENV),  # in the first line of every script
        "interpreter": os.path.realpath(PYTHON),
    }


def is_in_doubt() -> bool:
    """Whether .venv is missing, unfinished, moved, or of another Python."""
    recorded, current = record(), made_by()
    recorded.setdefault("interpreter", current["interpreter"])  # missing in older records
    return (
        MARKER.exists() or not os.access(PYTHON, os.X_OK) or any(recorded.get(key) != current[key] for key in current)
    )


def write_record(requirements: dict[str, str]) -> None:
    """Record that .venv holds the pins of these files."""
    STARTER.write_bytes(starter())
    STARTER.with_suffix(".pth").write_text(f"import {STARTER.stem}; {STARTER.stem}.at_start()\n")
    py_compile.compile(str(STARTER))
    after = dist_infos()
    changed = {package(folder) for folder in pinned() - after}
    others = {  # files installed earlier: still complete unless pip just changed one of their pins
        file: digest
        for file, digest in installed_requirements().items()
        if Path(file).exists() and sha256(file) == digest and not changed & pinned_packages(file)
    }
    requirements = {**others, **requirements}
    names = {name for file in requirements for name in pinned_packages(file)}
    pins = sorted(folder for folder in after if package(folder) in names)
    content = {**made_by(), "requirements": requirements, "pinned": pins}
    temporary = RECORD.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(RECORD)
    MARKER.unlink(missing_ok=True)
    shutil.rmtree(OLD, ignore_errors=True)


def pinned_packages(file: str) -> set[str]:
    """The names of the packages that a requirements file pins."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    return {normalized(re.split("[^A-Za-z0-9._-]", line)[0]) for line in lines if line[:1].isalnum()}


def starter() -> bytes:
    """The code that .venv's Python runs at its start."""
    return (Path(__file__).parent / "environment.py").read_bytes()


def last_change() -> str:
    """When pip last changed a package: it then adds, renames or removes an entry of site-packages."""
    return str(SITE_PACKAGES.stat().st_mtime_ns) if SITE_PACKAGES.is_dir() else "never"


def restore_after_kill() -> None:
    """After a rebuild that was killed: keep the new .venv if it is finished, else restore the old one."""
    if OLD.exists() and not is_in_doubt():
        shutil.rmtree(OLD)
    elif OLD.exists():
        restore()


def restore() -> None:
    """Replace an unfinished .venv by the old one, if there was one."""
    if VENV.exists() and is_ours(VENV):
        shutil.rmtree(VENV)
    if OLD.exists():
        OLD.rename(VENV)


def build(files: list[str], lock: TextIO) -> None:
    """Build a new .venv with the pins of `files`, or restore the old one if that fails."""
    if not importlib.util.find_spec("ensurepip"):  # Debian's Python has `venv`, but not its source of pip
        fail("this Python cannot make a .venv; on Debian and Ubuntu: apt install python3-venv")
    names, reason = " and ".join(files), ""
    if VENV.exists() and any(VENV.iterdir()):
        reason = " again (the old one is unfinished, moved, changed, or of another Python)"
        VENV.rename(OLD)
    print(f"making .venv{reason} with {names}: the first time takes a few minutes", flush=True)
    try:
        VENV.mkdir(exist_ok=True)
        RECORD.write_text("{}")  # marks it as ours
        MARKER.touch()
        # Not sys.executable: in an activated .venv that is the old .venv's own.
        base = getattr(sys, "_base_executable", sys.executable)
        run([base, "-I", "-m", "venv", str(VENV)], "could not make .venv, see above")
        install(files, lock)
    except BaseException:
        restore()
        raise


def install(files: list[str], lock: TextIO) -> None:
    """Let pip install `files` into .venv, from the index in pip's configuration."""
    environ = pip_environment()
    MARKER.write_text(last_change())
    # -I: packages found through PYTHONPATH are not in .venv.
    command = [str(PYTHON), "-I", "-m", "pip", "install", "--require-hashes", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        command.append("--quiet")  # also hides the progress bars
    command += [f"--requirement={file}" for file in files]
    run(command, "pip failed, see above; run this again to retry", lock, environ)


def pip_environment() -> dict[str, str]:
    """This environment, with only PIP_OPTIONS of pip's variables and configuration files."""
    listed = subprocess.run([PYTHON, "-I", "-c", PIP_CONFIG], stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode:
        fail("cannot read pip's configuration, see above")
    found, settings = json.loads(listed.stdout), {}
    for section in ("global", "install", ":env:"):  # the last one wins
        for key in PIP_OPTIONS:
            if f"{section}.{key}" in found:
                settings["PIP_" + key.upper().replace("-", "_")] = found[f"{section}.{key}"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**environ, **settings, "PIP_CONFIG_FILE": os.devnull}


def run(command: list[str], failure: str, lock: TextIO | None = None, environ: dict[str, str] | None = None) -> None:
    """Run `command` and show its output; if it fails, exit with one line: `failure`, or that the disk is full."""
    # pip inherits the lock: if this process is killed and pip is not, the next call waits for pip.
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
            child.terminate()  # the signal reached only this process, as from `kill -INT`
            raise
    if child.returncode:
        is_full = f"[Errno {errno.ENOSPC}]" in errors or f"[Errno {errno.EDQUOT}]" in errors
        fail("no space left on the disk, or on that of TMPDIR" if is_full else failure)


def take_lock() -> TextIO:
    """Wait until no other call works on this .venv. Closing the file releases the lock."""
    file = LOCK.open("a")
    is_waiting = False
    while True:
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return file  # a file system without locks, as on some clusters
        if not is_waiting:
            print("waiting for another installation into .venv", flush=True)
            is_waiting = True
        time.sleep(0.1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("usage: python3 tools/venv.py requirements.txt [requirements-dev.txt]", file=sys.stderr)
        sys.exit(2)
    sys.exit(run_main(sys.argv[1:]))
