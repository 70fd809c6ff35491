"""tools/environment.py and tools/run.py: commands work, and give the same result, in any environment."""

import configparser
import json
import multiprocessing.connection
import multiprocessing.process
import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import dvc.ignore
import pytest
from dvc.fs import localfs

from tests import toy
from tests.faults import mounts
from tests.imports import ROOT
from tools import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="shells, owners and modes of files")

PRIVATE = Path(environment.STATE)
SHARED = Path("/var/tmp/dvc")  # noqa: S108 - where DVC keeps its state by default
SECRETS = ("password", "secret", "token", "key", "credential", "user", "sas", "connection_string")
# Options of DVC's remotes that are no secrets, although their names contain one of these words.
PUBLIC = ("url", "verify", "timeout", "read_timeout", "connect_timeout", "jobs", "region", "endpointurl")
LONG = "/" + "x" * 200


def packages_of(venv: Path) -> Path:
    return Path(environment.site_packages(str(venv)))


def make_clone(path: Path) -> Path:
    """A folder that counts as a clone, with a .venv of two packages."""
    for folder in (".dvc", "tools", "stages", "home"):
        (path / folder).mkdir(parents=True)
    (path / "stages/__init__.py").touch()
    (path / "stages/here.py").write_text("print('here')\n")
    shutil.copy(ROOT / "tools/environment.py", path / "tools")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path / ".venv"], check=True)
    for name, content in (("numpy/__init__.py", "VERSION = 'pinned'"), ("six.py", "VERSION = 'pinned'")):
        file = packages_of(path / ".venv") / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    install_starter(path / ".venv")
    return path


def install_starter(venv: Path) -> None:
    """As tools/venv.py does."""
    shutil.copy(ROOT / "tools/environment.py", packages_of(venv) / "_sane_environment.py")
    (packages_of(venv) / "_sane_environment.pth").write_text("import _sane_environment; _sane_environment.at_start()\n")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return make_clone(tmp_path / "clone")


def usual(clone: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(clone / "home"), "USER": "me", "LANG": "C.UTF-8", "SHELL": "/bin/zsh"}


CASES: dict[str, tuple[dict[str, str], dict[str, str | None], str]] = {
    # additional variables, the resulting ones (None: absent), and the note
    "usual": ({}, {"SHELL": "/bin/sh", "PATH": "{clone}/.venv/bin:/usr/bin:/bin", "USER": "me", "LOGNAME": None}, ""),
    "PYTHONHOME": ({"PYTHONHOME": "/x"}, {"PYTHONHOME": None}, "left out of the environment: PYTHONHOME"),
    "PYTHONSAFEPATH": (
        {"PYTHONSAFEPATH": "1"},
        {"PYTHONSAFEPATH": None},
        "left out of the environment: PYTHONSAFEPATH",
    ),
    "PYTHONSTARTUP": ({"PYTHONSTARTUP": "/x"}, {"PYTHONSTARTUP": None}, "left out of the environment: PYTHONSTARTUP"),
    "PYTHONOPTIMIZE": (
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONOPTIMIZE": None},
        "left out of the environment: PYTHONOPTIMIZE",
    ),
    "PYTHONINSPECT": ({"PYTHONINSPECT": "1"}, {"PYTHONINSPECT": None}, "left out of the environment: PYTHONINSPECT"),
    "PYTHONWARNINGS": (
        {"PYTHONWARNINGS": "error"},
        {"PYTHONWARNINGS": None},
        "left out of the environment: PYTHONWARN",
    ),
    "BASH_ENV and ENV": ({"BASH_ENV": "/x", "ENV": "/y"}, {"BASH_ENV": None, "ENV": None}, "BASH_ENV, ENV"),
    "set but empty": ({"PYTHONSAFEPATH": "", "BASH_ENV": ""}, {"PYTHONSAFEPATH": None, "BASH_ENV": None}, ""),
    "nologin": ({"SHELL": "/usr/sbin/nologin"}, {"SHELL": "/bin/sh"}, ""),
    "no PATH": ({"PATH": ""}, {"PATH": "{clone}/.venv/bin:"}, ""),
    "activated": ({"PATH": "/bin:{clone}/.venv/bin"}, {"PATH": "{clone}/.venv/bin:/bin"}, ""),
    "state": ({}, {"DVC_SITE_CACHE_DIR": "{clone}/.dvc/tmp/private"}, ""),
    "state of the person's own": ({"DVC_SITE_CACHE_DIR": "/srv/mine"}, {"DVC_SITE_CACHE_DIR": "/srv/mine"}, ""),
    "torch's compiler": ({}, {"TORCHINDUCTOR_CACHE_DIR": "{clone}/.dvc/tmp/private/torchinductor"}, ""),
    "UTF-8": ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONUTF8": "1", "PYTHONIOENCODING": None}, ""),
    "latin-1": ({"LANG": "de_DE.ISO-8859-1@euro"}, {"PYTHONUTF8": "1", "PYTHONIOENCODING": "ISO-8859-1:replace"}, ""),
    "C": ({"LC_ALL": "C", "LANG": "de_DE.ISO-8859-1"}, {"PYTHONUTF8": "1", "PYTHONIOENCODING": None}, ""),
    "no such charset": ({"LANG": "xx.xx"}, {"PYTHONUTF8": "1", "PYTHONIOENCODING": None}, ""),
    "log in latin-1": ({"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "latin-1:replace"}, ""),
    "log in UTF-8": ({"PYTHONIOENCODING": "utf-8:strict"}, {"PYTHONIOENCODING": "utf-8:strict"}, ""),
    "no HOME for root": ({"HOME": ""}, {"HOME": pwd.getpwuid(os.getuid()).pw_dir}, ""),
    "HOME is gone": (
        {"HOME": "/gone"},
        {"HOME": "{clone}/.dvc/tmp/private/home"},
        "HOME is /gone, which cannot be read",
    ),
    "HOME is relative": ({"HOME": "~"}, {"HOME": "{clone}/.dvc/tmp/private/home"}, "HOME is ~, which cannot be read"),
    "short TMPDIR": ({"TMPDIR": LONG[:50]}, {"TMPDIR": LONG[:50]}, ""),
    "long TMPDIR": ({"TMPDIR": LONG}, {"TMPDIR": "{short}"}, "the path of TMPDIR is too long"),
    "long TMP": ({"TMP": LONG}, {"TMPDIR": "{short}", "TMP": LONG}, "the path of TMPDIR is too long"),
    "PYTHONPATH of nothing": ({"PYTHONPATH": ":/gone:"}, {"PYTHONPATH": None}, ""),
    "PYTHONPATH of a clone": ({"PYTHONPATH": "{clone}"}, {"PYTHONPATH": "{clone}"}, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_harmful_variables_are_removed(case: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, expected, note = CASES[case]
    monkeypatch.setattr(environment, "SHARED_FOLDERS", (str(clone.parent),))
    if "TMPDIR" in note:
        monkeypatch.setattr(environment, "LONGEST_TMPDIR", len(LONG) - 1)  # above the length of this test's folders

    def full(text: str) -> str:
        return text.format(clone=clone, short=clone.parent / f"{environment.SHORT_NAME}-{os.getuid()}")

    environ = {**usual(clone), **{name: full(value) for name, value in given.items()}}
    before = dict(environ)
    new, notes = environment.sane(environ, str(clone))
    assert environ == before
    for name, value in expected.items():
        assert new.get(name) == (None if value is None else full(value)), name
    assert (not notes) if not note else (len(notes) == 1 and note in notes[0]), notes
    again, repeated = environment.sane(new, str(clone))
    assert (again, repeated) == (new, [])


def test_sockets_of_workers_fit_into_the_longest_tmpdir(tmp_path: Path) -> None:
    """LONGEST_TMPDIR, compared with the names that multiprocessing makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            multiprocessing.process.current_process(), "_config", {"tempdir": str(tmp_path / "pymp-12345678")}
        )
        made = Path(vars(multiprocessing.connection)["arbitrary_address"]("AF_UNIX"))
    assert len(str(made.relative_to(tmp_path))) == len("pymp-12345678/listener-12345678")
    path = "x" * environment.LONGEST_TMPDIR + "/pymp-12345678/listener-12345678"
    assert len(path) == (107 if sys.platform == "linux" else 103)


def test_a_user_number_without_a_name(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    environ = {name: value for name, value in usual(clone).items() if name not in ("USER", "HOME")}
    new, notes = environment.sane(environ, str(clone))
    assert new["LOGNAME"] == str(os.getuid())
    assert new["HOME"] == str(clone / PRIVATE / "home")
    assert notes == [f"HOME is not set: using {clone / PRIVATE / 'home'} instead"]
    assert (clone / PRIVATE / "home").is_dir()


def test_a_home_that_cannot_be_written_to(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME stays, since it may hold .gitconfig and keys; caches move to the private folder."""
    home, access = str(clone / "home"), os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != home if mode == os.W_OK else access(path, mode))
    new, notes = environment.sane(usual(clone), str(clone))
    assert (new["HOME"], notes) == (home, [])
    assert new["MPLCONFIGDIR"] == str(clone / PRIVATE / "matplotlib")
    assert new["XDG_CACHE_HOME"] == str(clone / PRIVATE / "cache")


@pytest.mark.parametrize(
    ("file", "stays"),
    [
        pytest.param("numpy/__init__.py", False, id="a package of .venv"),
        pytest.param("numpy/notes.txt", True, id="a folder that is no package"),
        pytest.param("numpy.txt", True, id="a file that is no module"),
        pytest.param("six.py", False, id="a module of .venv"),
        pytest.param("six.cpython-311-x86_64-linux-gnu.so", False, id="an extension module"),
        pytest.param("json/__init__.py", False, id="a package of Python"),
        pytest.param("stages/__init__.py", True, id="what the clone has itself"),
        pytest.param("mine.py", True, id="another module"),
    ],
)
def test_harmless_entries_of_pythonpath_stay(file: str, stays: bool, clone: Path, tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    (entry / file).parent.mkdir(parents=True)
    (entry / file).touch()
    new, notes = environment.sane({**usual(clone), "PYTHONPATH": f"{entry}:{clone}"}, str(clone))
    assert new["PYTHONPATH"].split(":") == ([str(entry)] if stays else []) + [str(clone)]
    name = Path(file).parts[0].partition(".")[0]
    note = f"left out of the environment: {entry} of PYTHONPATH (its {name} would replace the pinned one)"
    assert notes == ([] if stays else [note])


# Settings of a user, which stay; and a setting that earlier versions of this project wrote.
@pytest.mark.parametrize("value", ["/srv/mine", '"/old place/.dvc/tmp/private"'])
@pytest.mark.parametrize("file", [".dvc/config", ".dvc/config.local", "home/.config/dvc/config", "system/config"])
def test_the_configuration_of_the_user_wins(file: str, value: str, clone: Path) -> None:
    (clone / file).parent.mkdir(parents=True, exist_ok=True)
    (clone / file).write_text(f"[core]\n    remote = s\n    site_cache_dir = {value}\n")
    environ = {**usual(clone), "DVC_SYSTEM_CONFIG_DIR": str(clone / "system")}
    if sys.platform == "darwin":
        environ["XDG_CONFIG_HOME"] = str(clone / "home/.config")
    new, _ = environment.sane(environ, str(clone))
    assert new.get("DVC_SITE_CACHE_DIR") == (None if value == "/srv/mine" else str(clone / PRIVATE))


def another_owner(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstat = os.lstat

    def other(path: str) -> os.stat_result:
        found = lstat(path)
        if path != str(folder):
            return found
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:10]))

    monkeypatch.setattr(os, "lstat", other)


def linked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("target"))
    folder.symlink_to(folder.with_name("target"))


def modeless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mount where every file has the mode 0777."""
    folder.chmod(0o777)
    monkeypatch.setattr(os, "chmod", lambda path, mode: None)


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chmod(path: str, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    folder.chmod(0o755)
    monkeypatch.setattr(os, "chmod", chmod)


@pytest.mark.parametrize("fault", [another_owner, linked, modeless, refused])
def test_a_folder_that_is_not_private_is_not_used(fault: Any, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / PRIVATE).mkdir(parents=True, mode=0o700)
    assert environment.sane(usual(clone), str(clone))[0]["DVC_SITE_CACHE_DIR"] == str(clone / PRIVATE)
    with monkeypatch.context() as patch:
        fault(clone / PRIVATE, patch)
        new, notes = environment.sane(usual(clone), str(clone))
    elsewhere = clone / "home/.cache" / environment.NAME
    assert new["DVC_SITE_CACHE_DIR"] == str(elsewhere)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700
    assert notes == [
        f"{clone}/.dvc/tmp cannot be written to, or not kept private: DVC's state is in {elsewhere}",
    ]


def test_a_folder_that_others_may_enter_is_closed(clone: Path) -> None:
    (clone / PRIVATE).mkdir(parents=True)
    (clone / PRIVATE).chmod(0o777)  # as DVC makes it
    environment.sane(usual(clone), str(clone))
    assert stat.S_IMODE((clone / PRIVATE).stat().st_mode) == 0o700


def python(clone: Path, *arguments: str, folder: Path | None = None, **environ: str) -> tuple[str, str]:
    """The standard output and standard error of the Python of .venv."""
    command = [str(clone / ".venv/bin/python"), *arguments]
    done = subprocess.run(
        command, cwd=folder or clone, env={**usual(clone), **environ}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("where", ["clone", "subfolder", "named by --cd", "elsewhere"])
def test_plain_python_takes_the_pinned_packages(where: str, clone: Path, tmp_path: Path) -> None:
    """In the clone only: in other folders, the variables of the user apply."""
    (tmp_path / "other/numpy").mkdir(parents=True)
    (tmp_path / "other/numpy/__init__.py").write_text("VERSION = 'other'")
    folder = {"clone": clone, "subfolder": clone / "stages"}.get(where, tmp_path)
    program = "import numpy, os; print(numpy.VERSION, 'PYTHONPATH' in os.environ, os.environ['SHELL'])"
    words = ["--cd", str(clone)] if where == "named by --cd" else []
    output = python(clone, "-c", program, *words, folder=folder, PYTHONPATH=str(tmp_path / "other"))
    assert output == ("other True /bin/zsh" if where == "elsewhere" else "pinned False /bin/sh", "")


def test_plain_python_finds_the_stages_and_its_own_modules(clone: Path, tmp_path: Path) -> None:
    assert python(clone, "-m", "stages.here", PYTHONSAFEPATH="1") == ("here", "")
    assert python(clone, "-m", "stages.here", PYTHONPATH=str(packages_of(clone / ".venv"))) == ("here", "")
    library = str(Path(os.__file__).parent)
    assert python(clone, "-c", "import json, six; print(six.VERSION)", PYTHONPATH=library) == ("pinned", "")
    # the stages of the clone run in another folder, as in tests and studies
    assert python(clone, "-m", "stages.here", folder=tmp_path, PYTHONPATH=str(clone)) == ("here", "")
    assert python(clone, "-m", "stages.here", folder=clone / "home", PYTHONPATH=str(clone)) == ("here", "")


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_plain_python_prints_a_substitute(environ: Any, clone: Path) -> None:
    assert python(clone, "-c", "print('1, \\u2026')", LC_ALL="C", **environ) == ("1, ?", "")


def test_at_start_never_raises(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError

    monkeypatch.chdir(clone)
    monkeypatch.setattr(environment, "sane", broken)
    environment.at_start()


def a_zip(clone: Path) -> None:
    shutil.rmtree(clone / ".git")


def data_link(clone: Path) -> None:
    (clone / "elsewhere").mkdir()
    (clone / "data").symlink_to(clone / "elsewhere")


def output_folder_link(clone: Path) -> None:
    (clone / "data").mkdir()
    (clone / "elsewhere").mkdir()
    (clone / "data/processed").symlink_to(clone / "elsewhere")


def output_file_link(clone: Path) -> None:
    """As with DVC's `cache.type = symlink`."""
    (clone / "data").mkdir()
    (clone / "data/predictions.csv").symlink_to(clone / "stages/here.py")
    (clone / ".dvc/cache").symlink_to(clone / "home")


def worktree(clone: Path) -> None:
    """A linked work tree, whose .git is a file."""
    (clone / ".git").rename(clone / "home/git")
    (clone / ".git").write_text("gitdir: home/git\n")


def another_user(clone: Path) -> None:
    if os.getuid():
        pytest.skip("only root gives files away")
    for path in (clone, clone / ".git"):
        os.chown(path, 54321, 54321)


def no_git(clone: Path) -> None: ...


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (output_file_link, ""),
        (worktree, ""),
        (
            a_zip,
            "{clone} is not a Git repository, which DVC needs: clone the project instead of downloading it",
        ),
        (
            data_link,
            "data is a link to another folder, which DVC treats as outside of the repository: move",
        ),
        (output_folder_link, "data/processed is a link to another folder, which DVC treats as outside"),
        (
            another_user,
            "{clone} belongs to another user; to trust it: git config --global --add safe.directory {clone}",
        ),
        (no_git, "git is not installed, or not in PATH"),
    ],
)
def test_an_obstacle_is_reported_before_the_installation(change: Any, line: str, clone: Path) -> None:
    subprocess.run(["git", "init", "-q", clone], check=True)
    change(clone)
    environ = {**usual(clone), "GIT_DIR": "/gone", "GIT_CEILING_DIRECTORIES": str(clone.parent)}
    if change is no_git:
        environ["PATH"] = "/gone"
    obstacle = environment.obstacle(environ, str(clone))
    assert obstacle.startswith(line.format(clone=clone))
    assert bool(obstacle) is bool(line)
    assert "\n" not in obstacle


def test_run_returns_the_exit_status_of_the_commands(clone: Path) -> None:
    """PYTHONHOME, which would break Python, has no effect; the first step that fails ends the command."""
    subprocess.run(["git", "init", "-q", clone], check=True)
    for name in ("__init__.py", "run.py", "venv.py"):
        shutil.copy(ROOT / "tools" / name, clone / "tools")
    (clone / "stages/fails.py").write_text("import sys; sys.exit(int(sys.argv[1]) if sys.argv[1:] else 5)")
    (clone / "none.txt").touch()
    from tools import venv

    made = {"python": "{}.{}".format(*sys.version_info[:2]), "path": str(clone / ".venv")}
    made["interpreter"] = os.path.realpath(clone / venv.PYTHON)
    digest = venv.sha256(os.devnull)
    (clone / venv.RECORD).write_text(json.dumps({**made, "requirements": {"none.txt": digest}, "pinned": []}))

    def run(*arguments: str) -> tuple[int, str, str]:
        command = [made["interpreter"], "-I", "-S", str(clone / "tools/run.py"), "none.txt", *arguments]
        environ = {**usual(clone), "PYTHONHOME": "/gone", "BASH_ENV": "/gone"}
        done = subprocess.run(command, cwd="/", env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    note = "note: left out of the environment: PYTHONHOME, BASH_ENV\n"
    assert run("--", "stages.here") == (0, "here\n", note)
    assert run("stages.here", "--", "stages.fails", "7") == (7, "here\n", note)
    assert run("stages.fails", "--", "stages.here") == (5, "", note)
    shutil.rmtree(clone / ".git")
    status, out, err = run("stages.here", "--", "stages.here")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {clone} is not a Git repository")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> toy.Project:
    """The toy pipeline as a clone with a .venv, whose packages are links to those of this Python."""
    project = toy.begun(tmp_path_factory.mktemp("environment") / "toy", "/.venv\n/home\n/tools\n")
    venv = project.path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for package in packages_of(Path(sys.prefix)).iterdir():
        if not package.name.startswith(("__pycache__", "_sane_environment")):
            (packages_of(venv) / package.name).symlink_to(package)
    install_starter(venv)
    (venv / "bin/dvc").write_text(f"#!{venv}/bin/python\nfrom dvc.cli import main; import sys; sys.exit(main())\n")
    (venv / "bin/dvc").chmod(0o755)
    (project.path / "tools").mkdir()
    (project.path / "home").mkdir()
    shutil.copy(ROOT / "tools/environment.py", project.path / "tools")
    project.set()
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "toy")
    return project


def plain_dvc(project: toy.Project, *arguments: str, **environ: str) -> str:
    """Run the `dvc` of .venv in an environment with every harmful variable."""
    hostile = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{project.path.parent / 'other'}:{ROOT}",
        "PYTHONSAFEPATH": "1",
        "PYTHONSTARTUP": "/gone",
        "SHELL": "/usr/sbin/nologin",
        "BASH_ENV": "/gone",
        "LC_ALL": "C",
        "HOME": str(project.path / "home"),
        **{name: value for name, value in project.environment.items() if name.startswith("GIT_")},
    }
    (project.path.parent / "other/numpy").mkdir(parents=True, exist_ok=True)
    (project.path.parent / "other/numpy/__init__.py").write_text("raise ImportError('a numpy of another Python')")
    command = [str(project.path / ".venv/bin/dvc"), *arguments]
    done = subprocess.run(
        command, cwd=project.path, env={**hostile, **environ}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_plain_dvc_runs_stages_and_keeps_its_state_private(project: toy.Project) -> None:
    """Including experiments in temporary folders, and in a subfolder of the clone."""
    assert "Running stage 'evaluate'" in plain_dvc(project, "repro")
    private = project.path / PRIVATE
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    states = len(list(private.glob("repo/*")))
    assert states
    plain_dvc(project, "exp", "run", "--temp", "-S", "train.seed=9")
    assert len(list(private.glob("repo/*"))) > states
    program = "import os; from dvc.repo import Repo; print(Repo().site_cache_dir)"
    python_of_venv = [str(project.path / ".venv/bin/python"), "-c", program]
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(project.path / "home")}
    for folder in (project.path, project.path / "data"):
        shown = subprocess.run(
            python_of_venv, cwd=folder, env=environ, capture_output=True, text=True, check=True
        ).stdout
        assert Path(shown).is_relative_to(private)
    assert not (project.path / "data/.dvc").exists()
    assert not {state.name for state in private.glob("repo/*")} & {state.name for state in SHARED.glob("repo/*")}
    assert project.run("git", "status", "--short", "--", ".dvc") == ""


@pytest.mark.skipif(not mounts.possible(), reason="may not mount")
def test_a_read_only_clone_can_be_read(project: toy.Project) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(project.path.parent / "home"), "USER": "me"}
    Path(environ["HOME"]).mkdir()
    program = "from dvc.repo import Repo; repo = Repo(); print(repo.site_cache_dir); repo.scm.get_rev()"
    command = [str(project.path / ".venv/bin/python"), "-c", program]
    subprocess.run(command, cwd=project.path, env=environ, capture_output=True, check=True)
    with mounts.read_only(project.path):
        # `cd` again: the folder is a mount point now, and the old one lies below it.
        done = subprocess.run(command, cwd=project.path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = Path(environ["HOME"]) / ".cache" / environment.NAME
    assert Path(done.stdout.splitlines()[0]).is_relative_to(elsewhere)
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("root", "command", "config", "note"),
    [
        ("/a#b", "dvc exp run --temp", "", "dvc fails here, since it reads /a#b as a URL that ends at #"),
        ("/a?b", "dvc exp run --queue", "", "dvc fails here, since it reads /a?b as a URL that ends at ?"),
        ("/a#b", "dvc queue start", "", "dvc fails here, since it reads /a#b"),
        ("/a#b", "dvc exp run", "", ""),
        ("/a#b", "dvc repro", "", ""),
        ("/aüb", "dvc exp run --temp", "", "dvc fails below /aüb, since it writes the path of the cache as ASCII"),
        ("/aüb", "dvc exp run --temp", "[cache]\n    dir = /srv/cache\n", ""),
        ("/ab", "dvc exp run --temp", "", ""),
    ],
    ids=["number sign", "question mark", "queue start", "in the folder", "no experiment", "umlaut", "cache", "none"],
)
def test_a_note_says_where_temporary_experiments_fail(
    root: str, command: str, config: str, note: str, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(config)
    environ = {"DVC_GLOBAL_CONFIG_DIR": str(tmp_path), "DVC_SYSTEM_CONFIG_DIR": "/gone"}
    line = environment.unusable_for_experiments(environ, root, command.split())
    assert line.startswith(note)
    assert bool(line) is bool(note)


LEFT_BY_OTHERS = (".DS_Store", "Thumbs.db", "desktop.ini", "._x", ".nfs0001", ".x.swp", "x~", ".#x", "#x#", "x.tmp")


def test_files_of_other_programs_are_ignored(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    folder = tmp_path / "data/raw"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    for name in (*LEFT_BY_OTHERS, ".ipynb_checkpoints/x", "train-images-idx3-ubyte", "swan.swp.png", "tmp"):
        (folder / name).touch()
    ignore = dvc.ignore.DvcIgnoreFilter(localfs, str(tmp_path))
    seen = [file for _, _, files in ignore.walk(localfs, str(folder)) for file in files]
    assert sorted(seen) == ["swan.swp.png", "tmp", "train-images-idx3-ubyte"]


def test_the_committed_configuration_holds_no_secret() -> None:
    config = configparser.ConfigParser()
    config.read_string((ROOT / ".dvc/config").read_text(encoding="utf-8"))
    for name in config.sections():
        for option, value in config[name].items():
            assert option in PUBLIC or not any(word in option for word in SECRETS), option
            assert "@" not in value, option  # as in https://user:password@host
    ignored = subprocess.run(["git", "check-ignore", "-q", ".dvc/config.local"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
