"""Clean the environment of variables that break a command or change its result.

`make` runs every command in this environment (tools/run.py). tools/venv.py also copies this file into .venv, whose
Python calls `at_start` before anything else. So `.venv/bin/dvc repro` and `python -m stages.train` also get it. That
takes about a millisecond, and imports only modules that Python has already imported. Standard library only.
"""

from __future__ import annotations

import io
import os
import stat
import sys

NAME = "reproducible-pytorch-dvc"  # of private folders outside of the clone
SHORT_NAME = "repro-dvc"
STATE = os.path.join(".dvc", "tmp", "private")
# These change how Python starts, or make a shell run a file before each command of a stage. PYTHONOPTIMIZE removes
# docstrings, and pandas and scipy cannot be imported without.
REMOVED = (
    *("PYTHONHOME", "PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONWARNINGS"),
    *("BASH_ENV", "ENV"),
)
# Python's workers append 32 bytes to TMPDIR for a socket, whose path may have 107 bytes, on macOS 103.
LONGEST_TMPDIR = (107 if sys.platform == "linux" else 103) - 32
SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")  # `made_private` checks the owner of folders in them
OUTPUTS = ("data", "data/raw", "data/processed", "data/model", "metrics", "metrics/plots")  # folders of stage outputs


def sane(environ: dict[str, str], root: str, prefix: str = "") -> tuple[dict[str, str], list[str]]:
    """The environment for a command in the clone `root`, and notes for the user, one line each.

    prefix: the virtual environment, if it is not the clone's .venv. Makes the private folders that it refers to.
    """
    new, notes = dict(environ), []
    prefix = prefix or os.path.join(root, ".venv")
    left_out = [name for name in REMOVED if new.pop(name, "")]
    paths, shadowing = python_path(new.pop("PYTHONPATH", ""), root, prefix)
    if paths:
        new["PYTHONPATH"] = os.pathsep.join(paths)
    left_out += [f"{entry} of PYTHONPATH (its {name} would replace the pinned one)" for entry, name in shadowing]
    if left_out:
        notes.append(f"left out of the environment: {', '.join(left_out)}")

    scripts = os.path.join(prefix, "Scripts" if os.name == "nt" else "bin")
    others = [entry for entry in new.get("PATH", os.defpath).split(os.pathsep) if entry != scripts]
    new["PATH"] = os.pathsep.join([scripts, *others])
    new["PYTHONNOUSERSITE"] = "1"
    # Files and their names are UTF-8 in any locale; other terminals show "?" for missing characters.
    new["PYTHONUTF8"] = "1"
    new.pop("PYTHONCOERCECLOCALE", None)
    if charset := terminal_charset(new):
        new["PYTHONIOENCODING"] = f"{charset}:replace"
    if os.name == "nt":
        return new, notes

    new["SHELL"] = "/bin/sh"  # DVC runs stages with it; that of a service may be nologin
    if not any(new.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")) and not user_entry():
        new["LOGNAME"] = str(os.getuid())  # DVC and torch need a name; a container's user may have none
    private = private_folder(new, root)
    notes += home_folders(new, private)
    new.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(private, "torchinductor"))  # instead of a shared one in /tmp
    # By default, DVC keeps its state in a folder under /var/tmp that everybody can write to, and unpickles it: another
    # user could plant a file there that runs code (CVE-2025-69872).
    # Earlier versions of this project wrote the private folder to .dvc/config.local; that is not the user's choice.
    chosen = [value for value in configured("site_cache_dir", new, root) if not value.endswith("/.dvc/tmp/private")]
    if not new.get("DVC_SITE_CACHE_DIR") and not chosen:
        new["DVC_SITE_CACHE_DIR"] = private
        if private != os.path.join(root, STATE):
            notes.append(f"{root}/.dvc/tmp cannot be written to, or not kept private: DVC's state is in {private}")
    temporary = next((new[name] for name in ("TMPDIR", "TEMP", "TMP") if new.get(name)), "")
    if len(os.fsencode(temporary)) > LONGEST_TMPDIR and (short := short_folder()):
        new["TMPDIR"] = short
        notes.append(f"the path of TMPDIR is too long for the sockets of worker processes: using {short} instead")
    return new, notes


def python_path(value: str, root: str, prefix: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The harmless entries of PYTHONPATH, and those that would replace a module of .venv or Python, with its name.

    The clone's own modules (`stages`, `tests`) do not count: PYTHONPATH is how stages run in other folders. Empty
    entries mean the working directory, which `python -m` searches anyway.
    """
    harmless, shadowing = [], []
    pinned: set[str] = set()
    for entry in filter(None, value.split(os.pathsep)):
        if not pinned:
            pinned = {*modules(site_packages(prefix)), *sys.stdlib_module_names} - set(modules(root))
        found = sorted(
            name
            for name, file in modules(entry).items()
            if name in pinned and (file.endswith((".py", ".pyc", ".so", ".pyd")) or is_package(f"{entry}/{file}"))
        )
        if found:
            shadowing.append((entry, found[0]))
        elif os.path.isdir(entry):  # a ZIP file is left out: reading it takes longer
            harmless.append(entry)
    return harmless, shadowing


def modules(folder: str) -> dict[str, str]:
    """The modules that `import` could find in a folder: name -> file or folder."""
    try:
        return {file.partition(".")[0]: file for file in os.listdir(folder or ".")}
    except OSError:
        return {}


def is_package(folder: str) -> bool:
    """Whether a folder takes precedence over packages later in the path: it needs an __init__."""
    return "__init__" in modules(folder)


def site_packages(prefix: str) -> str:
    """The folder of packages of a virtual environment."""
    if os.name == "nt":
        return os.path.join(prefix, "Lib", "site-packages")
    return os.path.join(prefix, "lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")


def terminal_charset(environ: dict[str, str]) -> str:
    """The encoding of the terminal, or "" for UTF-8."""
    chosen = environ.get("PYTHONIOENCODING", "").partition(":")[0]
    locale = next((environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if environ.get(name)), "")
    charset = chosen or locale.partition(".")[2].partition("@")[0]
    try:
        "".encode(charset or "utf-8")
    except LookupError:
        return ""
    return "" if charset.lower().replace("-", "") in ("", "utf8") else charset


def user_entry() -> tuple[str, str] | None:
    """The name and home of this user number, if it has any."""
    import pwd

    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        return None
    return entry.pw_name, entry.pw_dir


def private_folder(environ: dict[str, str], root: str) -> str:
    """A folder that only this user can enter, in the clone if possible.

    If there is none, the clone's: then DVC fails with a message, which is better than using /var/tmp.
    """
    folders = [os.path.join(root, STATE)]
    home = environ.get("HOME", "")
    if cache := environ.get("XDG_CACHE_HOME") or (os.path.join(home, ".cache") if os.path.isabs(home) else ""):
        folders.append(os.path.join(cache, NAME))
    found = next((folder for folder in folders if made_private(folder)), "")
    return found or short_folder() or folders[0]


def short_folder() -> str:
    """A private folder with a short path, or "" if none can be made."""
    folders = (f"{place}/{SHORT_NAME}-{os.getuid()}" for place in SHARED_FOLDERS)
    return next((folder for folder in folders if made_private(folder)), "")


def made_private(folder: str) -> bool:
    """Make a folder if needed; whether it belongs to this user, is closed to others, and can be written to."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            return False
        if status.st_mode & 0o077:  # DVC makes folders that everybody may write to
            os.chmod(folder, 0o700)
            status = os.lstat(folder)
    except OSError:
        return False
    return not status.st_mode & 0o077 and os.access(folder, os.W_OK | os.X_OK)


def home_folders(environ: dict[str, str], private: str) -> list[str]:
    """Provide a home if the user has none, and a cache for matplotlib if the home is read-only; returns notes."""
    home, entry = environ.get("HOME", ""), user_entry()
    if not home and entry:
        home = environ["HOME"] = entry[1]
    if not os.path.isabs(home) or not os.access(home, os.R_OK | os.X_OK):
        environ["HOME"] = os.path.join(private, "home")
        made_private(environ["HOME"])
        return [f"HOME is {f'{home}, which cannot be read' if home else 'not set'}: using {environ['HOME']} instead"]
    if not os.access(home, os.W_OK):
        environ.setdefault("MPLCONFIGDIR", os.path.join(private, "matplotlib"))
        environ.setdefault("XDG_CACHE_HOME", os.path.join(private, "cache"))
        made_private(environ["MPLCONFIGDIR"])
    return []


def configured(key: str, environ: dict[str, str], root: str) -> list[str]:
    """The values of a key in DVC's configuration, of any section; the one with precedence comes first."""
    values = []
    for file in config_files(environ, root):
        try:
            with open(file, encoding="utf-8", errors="replace") as lines:
                pairs = [line.partition("=") for line in lines]
        except OSError:
            continue
        values += [value.strip(" \t\r\n\"'") for name, _, value in pairs if name.strip() == key]
    return values


def config_files(environ: dict[str, str], root: str) -> list[str]:
    """The configuration files of DVC: of the clone, the user and the machine."""
    home = environ.get("HOME", "")
    mac = sys.platform == "darwin"
    user = environ.get("XDG_CONFIG_HOME") or f"{home}/{'Library/Application Support' if mac else '.config'}"
    machine = "/Library/Application Support" if mac else "/etc/xdg"
    return [
        os.path.join(root, ".dvc", "config.local"),
        os.path.join(root, ".dvc", "config"),
        os.path.join(environ.get("DVC_GLOBAL_CONFIG_DIR") or f"{user}/dvc", "config"),
        os.path.join(environ.get("DVC_SYSTEM_CONFIG_DIR") or f"{machine}/dvc", "config"),
    ]


def obstacle(environ: dict[str, str], root: str) -> str:
    """A problem that no environment can fix, in one line with the remedy; "" if there is none."""
    for folder in (os.path.join(root, name) for name in OUTPUTS):
        if os.path.islink(folder) and os.path.isdir(folder):
            return (
                f"{os.path.relpath(folder, root)} is a link to another folder, which DVC treats as outside of the "
                "repository: move the folder back, and the cache (`dvc cache dir --local FOLDER`) or the whole clone "
                "to the other disk"
            )
    path = environ.get("PATH", os.defpath).split(os.pathsep)
    if os.name != "nt" and not any(os.access(os.path.join(entry, "git"), os.X_OK) for entry in path):
        return "git is not installed, or not in PATH"
    git = os.path.join(root, ".git")
    if os.name == "nt" or (os.path.isdir(git) and os.lstat(root).st_uid == os.lstat(git).st_uid == os.geteuid()):
        return ""
    return git_problem(environ, root)


def git_problem(environ: dict[str, str], root: str) -> str:
    """Why Git does not work in the clone: another owner, or no repository."""
    import subprocess

    # A hook's GIT_DIR points to another repository; GIT_CONFIG_COUNT and the like can hold safe.directory.
    variables = {name: value for name, value in environ.items() if not name.startswith("GIT_") or "CONFIG" in name}
    done = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"],  # noqa: S607
        cwd=root,
        env={**variables, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
    if "dubious ownership" in lines[0]:
        return f"{root} belongs to another user; to trust it: {lines[-1]}"
    if "not a git repository" in lines[0]:
        return (
            f"{root} is not a Git repository, which DVC needs: clone the project instead of downloading it, or run "
            "`git init && git add --all && git commit --message=start`"
        )
    return f"git: {lines[0]}"


def at_start() -> None:
    """Clean the environment of this process, and so of its children, if it works in a clone. Never raises.

    .venv's Python calls it at its start.
    """
    try:
        command = sys.orig_argv
        root = clone_around(command[command.index("--cd") + 1] if "--cd" in command[:-1] else os.getcwd())  # dvc --cd
        if not root:
            return
        before = os.environ.copy()
        new, _ = sane(before, root, sys.prefix)
        for name in before.keys() - new.keys():
            del os.environ[name]
        for name, value in new.items():
            if before.get(name) != value:
                os.environ[name] = value
        left_out = {os.path.abspath(entry) for entry in before.get("PYTHONPATH", "").split(os.pathsep)}
        left_out -= {os.path.abspath(entry) for entry in new.get("PYTHONPATH", "").split(os.pathsep)}
        library = os.path.dirname(os.__file__)
        left_out -= {site_packages(sys.prefix), library, os.path.join(library, "lib-dynload")}  # Python's own
        sys.path[:] = [entry for entry in sys.path if entry not in left_out]
        if before.get("PYTHONSAFEPATH") and sys.flags.safe_path and not sys.flags.isolated and sys.argv[:1] == ["-m"]:
            sys.path.insert(0, os.getcwd())
        out = sys.stdout
        if isinstance(out, io.TextIOWrapper) and out.encoding.lower() != "utf-8":
            out.reconfigure(errors="replace")  # a missing character must not be an error
        if line := unusable_for_experiments(new, root, command):
            print(f"note: {line}", file=sys.stderr)
    except Exception:
        return


def clone_around(folder: str) -> str:
    """The clone of this project around a folder, or ""."""
    folder = os.path.abspath(folder)
    while not os.path.isfile(os.path.join(folder, "tools", "environment.py")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return ""
        folder = parent
    return folder if os.path.isdir(os.path.join(folder, ".dvc")) else ""


def unusable_for_experiments(environ: dict[str, str], root: str, command: list[str]) -> str:
    """Why DVC 3.67 would fail to run experiments in temporary folders, or ""."""
    if not {"--temp", "--queue", "--run-all"} & {*command} and command[-2:] != ["queue", "start"]:
        return ""
    if "#" in root or "?" in root:
        return (
            f"dvc fails here, since it reads {root} as a URL that ends at {'#' if '#' in root else '?'}: "
            "rename the folder, or run experiments without --temp and --queue"
        )
    cache = next(iter(configured("dir", environ, root)), root)
    if not cache.isascii() or (not os.path.isabs(cache) and not root.isascii()):
        return (
            f"dvc fails below {root}, since it writes the path of the cache as ASCII: move the cache "
            "(`dvc cache dir --local FOLDER`), or run experiments without --temp and --queue"
        )
    return ""
