"""`make pull` from remotes that were tampered with: nothing bad reaches the cache or the work tree."""

import hashlib
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrity import objects, pull
from integrity.objects import BadObjectError
from stages.common.digests import file_md5
from stages.download import __main__ as download
from tests import inside
from tests.clones import Clone
from tests.imports import ROOT
from tests.remote_servers import RECIPES, SERVERS, paste
from tests.toy import Project

PIPELINE = """
stages:
  make:
    cmd: mkdir -p made && cp in.txt made/f && cp in.txt made/g
    deps: [in.txt]
    outs: [made]
  single:
    cmd: cp in.txt single.txt
    deps: [in.txt]
    outs: [single.txt]
"""
EVIL = b"raise SystemExit('code of the remote')\n"
# `make soak` tests the kinds that are slow or need a program of Debian.
KINDS = [
    kind if kind in ("Directory", "WebDAV") else pytest.param(kind, marks=pytest.mark.soak, id=kind) for kind in SERVERS
]


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def put(storage: Path, content: bytes) -> str:
    """Write an object with these bytes to a remote; returns its name."""
    name = md5(content)
    replace(storage / "files/md5" / name[:2] / name[2:], content)
    return name


def replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be read-only, or linked
    path.write_bytes(content)


@dataclass
class Victim:
    """A clone, and the storage of its remote."""

    project: Clone
    storage: Path
    kind: str = "Directory"

    def module(self, name: str, *arguments: str) -> tuple[int, str, str]:
        return inside.module(self.project.path, self.project.environment, name, *arguments)

    def pull(self, *arguments: str) -> tuple[int, str, str]:
        return self.module("integrity.pull", *arguments)

    def dvc(self, *arguments: str) -> int:
        return inside.run_dvc(self.project.path, self.project.environment, *arguments)

    def forget(self) -> None:
        """Delete all that was fetched, as after `git clone`; the configuration stays."""
        self.project.run("git", "reset", "-q", "--hard")
        self.project.run("git", "clean", "-qffdx", "--exclude=.dvc")
        shutil.rmtree(self.project.path / ".dvc/cache", ignore_errors=True)
        shutil.rmtree(
            self.project.path.parent / "site-cache", ignore_errors=True
        )  # DVC records there what the remotes have

    def files(self) -> dict[str, str]:
        """Every file of the clone and beside it, without those of Git and DVC: path -> MD5."""
        around = self.project.path.parent
        found = (path for path in sorted(around.rglob("*")) if path.is_file())
        return {
            str(path.relative_to(around)): file_md5(path)
            for path in found
            if not {".dvc", ".git", "site-cache"} & set(path.relative_to(around).parts)
        }

    def cached(self) -> dict[str, str]:
        """The objects in the cache: name -> MD5 of the content."""
        places = (self.project.path / ".dvc/cache/files/md5").glob("*/*")
        return {place.parent.name + place.name: file_md5(place) for place in places}

    def untouched(self, before: dict[str, str]) -> None:
        """Check that the work tree got no file, and the cache no bad object."""
        assert self.files() == before
        for name, digest in self.cached().items():
            assert name.removesuffix(".dir") == digest
        assert md5(EVIL) not in self.cached()


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A repository whose outputs are folders, one of a stage and one of `dvc add`, pushed with its run cache."""
    project = Project(tmp_path_factory.mktemp("author") / "clone")
    project.path.mkdir()
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("config", "core.analytics", "false")
    project.dvc("remote", "add", "-q", "--default", "author", str(project.path.parent / "remote"))
    project.write("dvc.yaml", PIPELINE)
    project.write("in.txt", "one\n")
    for name in ("b", "c/d"):
        (project.path / "added" / name).parent.mkdir(parents=True, exist_ok=True)
        project.write(f"added/{name}", name)
    project.dvc("add", "-q", "added")
    project.dvc("repro", "-q")
    project.dvc("push", "-q", "--run-cache")
    project.dvc("remote", "remove", "author")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "all")
    return project


@pytest.fixture(scope="module", params=KINDS)
def victim(
    request: pytest.FixtureRequest, author: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Victim]:
    """A clone with a remote of each kind, which holds all that the author pushed."""
    folder = tmp_path_factory.mktemp(f"victim-{request.param}")
    with SERVERS[request.param](folder) as remote:
        project = Clone(folder / "victim/clone")
        project.environment.update(remote.environment)
        project.path.parent.mkdir()
        Clone(folder).run("git", "clone", "-q", str(author.path), str(project.path))
        paste(project, remote, [line for line in RECIPES[request.param] if "upload" not in line])
        project.run("git", "commit", "-qam", "a remote")
        shutil.copytree(author.path.parent / "remote", remote.storage, dirs_exist_ok=True)
        yield Victim(project, remote.storage, request.param)


def the_list(storage: Path, containing: str) -> Path:
    """The object that lists a folder with a file of this name."""
    return next(path for path in storage.glob("files/md5/*/*.dir") if containing in path.read_text(encoding="utf-8"))


def with_entry(path: str) -> Callable[[Path], object]:
    """Add a file to the list of `added`; the object of the file has its true MD5."""

    def attack(storage: Path) -> None:
        place = the_list(storage, "c/d")
        entries = [*json.loads(place.read_bytes()), {"md5": put(storage, EVIL), "relpath": path}]
        replace(place, json.dumps(entries).encode())

    return attack


def flipped(storage: Path) -> None:
    place = the_list(storage, "c/d")
    replace(place, place.read_bytes().replace(b'"b"', b'"c"'))


def renamed(storage: Path) -> None:
    """Replace the list of a folder by that of another one."""
    replace(the_list(storage, "c/d"), the_list(storage, '"g"').read_bytes())


def other_bytes(content: bytes) -> Callable[[Path], object]:
    def attack(storage: Path) -> None:
        name = md5(b"c/d")
        replace(storage / "files/md5" / name[:2] / name[2:], content)

    return attack


REPLACED = "its content does not match its name: damaged, or replaced"
ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of a list": (flipped, REPLACED),
    "another folder's list": (renamed, REPLACED),
    "a list with a file above the folder": (with_entry("../../yaml.py"), REPLACED),
    "a list with an absolute path": (with_entry("/yaml.py"), REPLACED),
    "a list with a path through a link": (with_entry("link/yaml.py"), REPLACED),
    "a list with a name in other case": (with_entry("B"), REPLACED),
    "other bytes of a file": (other_bytes(b"C/D"), REPLACED),
    "a file that is too long": (other_bytes(b"c/d" * 10), "longer than its recorded size of 4 bytes"),
    "a list that is gone": (lambda storage: the_list(storage, "c/d").unlink(), "not there; `dvc push`"),
}


def test_every_attack_is_refused(victim: Victim, tmp_path: Path) -> None:
    """One line, status 2, and nothing is used; once the remote is repaired, a pull fetches everything."""
    pristine = shutil.copytree(victim.storage, tmp_path / "pristine")
    for name, (attack, reason) in ATTACKS.items():
        victim.forget()
        before = victim.files()
        attack(victim.storage)
        status, _, output = victim.pull()
        assert status == 2, name
        assert output.startswith("error: remote 'storage': object "), (name, output)
        assert reason in output, name
        assert " of added: " in output, name
        assert len(output.splitlines()) == 1, name
        shutil.rmtree(victim.storage)
        shutil.copytree(pristine, victim.storage)
        victim.untouched({path: digest for path, digest in before.items() if path in victim.files()} | before)
    victim.forget()
    assert victim.pull()[::2] == (0, "")
    assert (victim.project.path / "added/c/d").read_bytes() == b"c/d"
    assert (victim.project.path / "made/g").read_text() == "one\n"
    assert victim.dvc("status", "-q") == 0


def a_run(storage: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the entry of `single` in the run cache of a remote; returns its path."""
    found = ((place, yaml.safe_load(place.read_bytes())) for place in storage.glob("runs/*/*/*"))
    place, entry = next((place, entry) for place, entry in found if entry["cmd"] == "cp in.txt single.txt")
    change(entry)
    replace(place, yaml.safe_dump(entry).encode())
    return place


def names(path: str, content: bytes) -> Callable[[dict[str, Any]], object]:
    entry_of_output = {"path": path, "hash": "md5", "md5": md5(content), "size": len(content)}
    return lambda entry: entry["outs"].append(entry_of_output)


RUNS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a file of the repository": names("yaml.py", EVIL),
    "a file outside": names("../../escaped.py", EVIL),
    "an absolute path": names("/escaped.py", EVIL),
    "an output of another stage": names("made", b"one\n"),
    "other bytes": lambda entry: entry["outs"][0].update(md5=md5(EVIL)),
    "another command": lambda entry: entry.update(cmd="true"),
    "no outputs": lambda entry: entry.pop("outs"),
    "no mapping": lambda entry: entry.clear(),
}


def test_a_run_with_another_name_than_its_content_is_refused(victim: Victim, tmp_path: Path) -> None:
    pristine = shutil.copytree(victim.storage, tmp_path / "pristine")
    here = victim.project.path / ".dvc/cache/runs"
    changes = list(RUNS.items())[: len(RUNS) if victim.kind == "Directory" else 2]  # the rest is the same for all kinds
    for name, change in changes:
        victim.forget()
        shutil.rmtree(victim.storage)
        shutil.copytree(pristine, victim.storage)
        put(victim.storage, EVIL)
        place = a_run(victim.storage, change)
        status, stdout, output = victim.pull("--run-cache")
        if "runs do not travel over HTTP" in stdout:
            assert status == 0
            assert not here.exists()
            return
        assert status == 2, name
        assert output.startswith("error: remote 'storage': run "), name
        assert len(output.splitlines()) == 1, name
        assert not list(here.rglob(place.name)), name
        assert len(list(here.glob("*/*/*"))) == 1, name  # the entry of the other stage

    # An entry that an earlier `dvc pull` fetched is removed as well.
    copy = here / place.relative_to(victim.storage / "runs")
    replace(copy, place.read_bytes())
    status, _, output = victim.pull()
    assert status == 2
    assert f"{place.name}: " in output
    assert not copy.parent.exists()

    shutil.rmtree(victim.storage)
    shutil.copytree(pristine, victim.storage)
    victim.forget()
    assert victim.pull("--run-cache")[::2] == (0, "")
    (victim.project.path / "dvc.lock").unlink()
    assert victim.dvc("repro", "-q", "--dry") == 0
    assert victim.module("integrity.pull")[0] == 2  # nothing names the outputs now


@pytest.fixture(scope="module")
def served(author: Project, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A clone whose remote is a directory without `verify`."""
    folder = tmp_path_factory.mktemp("served")
    storage = Path(shutil.copytree(author.path.parent / "remote", folder / "remote"))
    project = Clone(folder / "victim/clone")
    project.path.parent.mkdir()
    Clone(folder).run("git", "clone", "-q", str(author.path), str(project.path))
    victim = Victim(project, storage)
    assert victim.dvc("remote", "add", "-q", "--default", "storage", str(storage)) == 0
    project.run("git", "commit", "-qam", "a remote")
    return victim


@pytest.fixture
def directory(served: Victim, tmp_path: Path) -> Iterator[Victim]:
    """The same clone with nothing fetched, restored after each test."""
    pristine = shutil.copytree(served.storage, tmp_path / "pristine")
    served.project.run("git", "checkout", "-qf", "main")
    served.forget()
    yield served
    shutil.rmtree(served.storage)
    shutil.copytree(pristine, served.storage)


UNSAFE = {
    "above": "../yaml.py",
    "within and above": "a/../../yaml.py",
    "absolute": "/yaml.py",
    "this folder": "./a",
    "empty": "",
    "empty part": "a//b",
    "folder": "a/",
    "nul": "a\0b",
    "half a character": "a\ud800",
    "git": "x/.GIT/config",
    "git with a dot": ".git./config",
    "dvc": ".dvc/config",
    "same name": "b",
    "file that is a folder": "b/c",
    "folder that is a file": "c",
}


UNSAFE_ELSEWHERE = {
    "backslash": "..\\yaml.py",
    "drive": "C:/yaml.py",
    "drive within": "a/c:yaml.py",
    "line end": "a\nb",
    "device": "con.txt",
    "device in capitals": "a/LPT1",
    "same in other case": "B",
}


def list_with(*paths: str) -> tuple[bytes, str]:
    """The content and the name of an object that lists these files."""
    content = json.dumps([{"md5": md5(EVIL), "relpath": path} for path in paths]).encode()
    return content, f"{md5(content)}.dir"


@pytest.mark.parametrize("path", UNSAFE_ELSEWHERE.values(), ids=UNSAFE_ELSEWHERE)
def test_a_list_with_a_path_that_is_unsafe_on_windows(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = objects.folder_list(*list_with("b", path))
    assert [file.path for file in files] == ["b", path]
    monkeypatch.setattr(objects, "WINDOWS", True)
    monkeypatch.setattr(objects, "FOLDS_NAMES", True)
    with pytest.raises(BadObjectError, match="lists '"):
        objects.folder_list(*list_with("b", path))


@pytest.mark.parametrize("path", UNSAFE.values(), ids=UNSAFE)
def test_a_list_with_this_path_is_refused(path: str) -> None:
    """Also if the list has its true MD5: the attacker may have made the commit."""
    with pytest.raises(BadObjectError, match="lists '"):
        objects.folder_list(*list_with("b", "c/d", path))


@pytest.mark.parametrize("jobs", ["0", "1001", "x", "9" * 5000], ids=["none", "many", "no number", "huge"])
def test_the_number_of_jobs(jobs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull.parser().parse_args(["--jobs", "7"]).jobs == 7
    with pytest.raises(SystemExit):
        pull.parser().parse_args(["--jobs", jobs])
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.endswith("; allowed: 1 to 1000")
    assert len(complaint) < 150


def test_names_that_a_file_system_folds_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "FOLDS_NAMES", True)
    for one, other in (("\u00e9", "e\u0301"), ("Stra\u00dfe", "STRASSE"), ("a/\u212b", "A/\u00e5")):
        assert one != other
        with pytest.raises(BadObjectError, match="twice, or under two names"):
            objects.folder_list(*list_with(one, other))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1]", b'[{"relpath": "a"}]', b'[{"md5": "../../../x", "relpath": "a"}]', b"[" * 100_000, b"\xff"],
    ids=["empty", "mapping", "number", "no MD5", "path for an MD5", "nested", "no text"],
)
def test_a_malformed_list_is_refused(content: bytes) -> None:
    if content == b"{}":
        assert objects.folder_list(content, f"{md5(content)}.dir") == []
        return
    with pytest.raises(BadObjectError):
        objects.folder_list(content, f"{md5(content)}.dir")


def test_ordinary_names_are_accepted() -> None:
    names = ["A/1.png", "a/2.png", "12:30.png", "what?.txt", ".gitkeep", "é ü.txt", "console.log", "a.b/c..d", "~x"]
    assert [file.path for file in objects.folder_list(*list_with(*names))] == names


def name_in_git(victim: Victim, paths: list[str]) -> tuple[str, bytes]:
    """Commit an added.dvc with the true MD5 of a list of these paths; returns the name and content of the list."""
    content = json.dumps([{"md5": md5(EVIL), "relpath": path} for path in paths], sort_keys=True).encode()
    name = f"{md5(content)}.dir"
    place = victim.project.path / "added.dvc"
    document = yaml.safe_load(place.read_text(encoding="utf-8"))
    document["outs"][0].update(md5=name)
    place.write_text(yaml.safe_dump(document), encoding="utf-8")
    put(victim.storage, EVIL)
    return name, content


@pytest.mark.parametrize("where", ["remote", "cache"])
def test_a_commit_that_names_an_unsafe_list_is_refused(directory: Victim, where: str) -> None:
    name, content = name_in_git(directory, ["b", "../../yaml.py"])
    before = directory.files()
    folder = directory.storage if where == "remote" else directory.project.path / ".dvc/cache"
    replace(folder / "files/md5" / name[:2] / name[2:], content)
    status, _, output = directory.pull()
    assert status == 2
    assert "lists '../../yaml.py': an absolute path, or a path out of the folder" in output
    assert len(output.splitlines()) == 1
    directory.untouched(before)


def test_a_path_through_a_link_of_the_work_tree_is_refused(directory: Victim, tmp_path: Path) -> None:
    name, content = name_in_git(directory, ["b", "link/yaml.py"])
    replace(directory.storage / "files/md5" / name[:2] / name[2:], content)
    (directory.project.path / "added").mkdir()
    (directory.project.path / "added/link").symlink_to(tmp_path)
    status, _, output = directory.pull()
    assert status == 2
    assert "goes through the link added/link out of the folder" in output
    assert not (tmp_path / "yaml.py").exists()


def test_an_output_behind_a_link_is_refused(directory: Victim, tmp_path: Path) -> None:
    (directory.project.path / "dvc.yaml").write_text(PIPELINE.replace("single.txt", "deep/single.txt"))
    (directory.project.path / "deep").symlink_to(tmp_path)
    status, _, output = directory.pull()
    assert status == 2
    assert "deep" in output
    assert len(output.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "pristine"]


def test_wrong_bytes_in_the_cache_are_fetched_again(directory: Victim) -> None:
    assert directory.pull()[0] == 0
    name = md5(b"c/d")
    replace(directory.project.path / ".dvc/cache/files/md5" / name[:2] / name[2:], b"C/D")
    shutil.rmtree(directory.project.path / "added")
    status, stdout, _ = directory.pull("added")
    assert status == 0
    assert "its content does not match its name" in stdout
    assert (directory.project.path / "added/c/d").read_bytes() == b"c/d"


def test_without_verify_wrong_bytes_are_refused(directory: Victim) -> None:
    before = directory.files()
    other_bytes(b"C/D")(directory.storage)
    status, _, output = directory.pull()
    assert (status, REPLACED in output) == (2, True)
    directory.untouched({name: digest for name, digest in directory.files().items() if name in before} | before)


def test_one_target(directory: Victim) -> None:
    assert directory.pull("made")[0] == 0
    assert sorted(path.name for path in directory.project.path.iterdir() if path.is_dir()) == [".dvc", ".git", "made"]
    status, _, output = directory.pull("nothing")
    assert status == 2
    assert output == "error: 'nothing' does not exist as an output or a stage name in 'dvc.yaml'\n"


def test_edits_are_replaced_only_with_force(directory: Victim) -> None:
    directory.forget()
    assert directory.pull()[0] == 0
    replace(directory.project.path / "single.txt", b"an edit")
    status, _, stderr = directory.pull()
    assert (status, "`make pull ARGS=--force` replaces them: " in stderr) == (2, True), stderr
    assert (directory.project.path / "single.txt").read_bytes() == b"an edit"
    assert directory.pull("--force")[0] == 0
    assert (directory.project.path / "single.txt").read_bytes() != b"an edit"


def test_a_full_cache_needs_no_remote(directory: Victim) -> None:
    assert directory.pull()[0] == 0
    shutil.rmtree(directory.project.path / "made")
    assert directory.pull("--remote", "nowhere", "made")[0] == 0
    shutil.rmtree(directory.project.path / ".dvc/cache")
    status, _, output = directory.pull("--remote", "nowhere")
    assert status == 2
    assert output.startswith("error: remote 'nowhere' cannot be used: ")


def test_a_folder_whose_list_no_remote_has(directory: Victim) -> None:
    the_list(directory.storage, '"g"').unlink()
    assert directory.pull()[0] == 2
    status, output, _ = directory.pull("--allow-missing")
    assert status == 0
    assert "in no remote, so `dvc repro` has to make them: made\n" in output
    assert (directory.project.path / "single.txt").exists()


def test_a_folder_whose_list_is_missing_stays_unchanged(directory: Victim) -> None:
    assert directory.pull()[0] == 0
    files = {path: path.read_bytes() for path in (directory.project.path / "made").rglob("*") if path.is_file()}
    the_list(directory.storage, '"g"').unlink()
    shutil.rmtree(directory.project.path / ".dvc/cache")
    assert directory.pull("--allow-missing")[0] == 0
    assert files
    assert all(path.read_bytes() == content for path, content in files.items())


def test_a_folder_with_a_missing_file_stays_unchanged(directory: Victim) -> None:
    assert directory.pull()[0] == 0
    name = md5(b"c/d")
    (directory.storage / "files/md5" / name[:2] / name[2:]).unlink()
    shutil.rmtree(directory.project.path / ".dvc/cache")
    (directory.project.path / "added/c/d").unlink()
    shutil.rmtree(directory.project.path / "made")
    status, output, _ = directory.pull("--allow-missing")
    assert (status, "in no remote, so `dvc repro` has to make them: added\n" in output) == (0, True)
    assert (directory.project.path / "added/b").read_bytes() == b"b"
    assert (directory.project.path / "made/g").read_text() == "one\n"


def commit_added(victim: Victim, name: str, files: dict[str, bytes]) -> None:
    """Record a folder with `dvc add`, on a branch of its own."""
    victim.project.run("git", "checkout", "-qb", name)
    for path, content in files.items():
        replace(victim.project.path / name / path, content)
    assert victim.dvc("add", "-q", name) == 0
    victim.project.commit(name)


def test_a_disk_that_is_full_when_the_cache_is_complete(directory: Victim) -> None:
    """A limit on the size of files acts as a full disk; DVC's database is smaller."""
    commit_added(directory, "large", {"small": b"1", "large": bytes(8_000_000)})
    shutil.rmtree(directory.project.path / "large")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limits[1]))
    try:
        status, _, output = directory.pull()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (status, output) == (
        2,
        "error: large: could not be written, so DVC removed it; is the disk full? The cache has everything: run this "
        "again\n",
    )
    assert directory.pull()[0] == 0
    assert (directory.project.path / "large/large").stat().st_size == 8_000_000


def test_names_that_windows_does_not_allow(directory: Victim) -> None:
    names = ["IMG.JPG", "img.jpg", "aux.png", "a\\b.png", "a\nb.png", "12:30/c:.png", "c,d e.png"]
    commit_added(directory, "photos", {name: name.encode() for name in names})
    assert directory.dvc("push", "-q") == 0
    directory.forget()
    assert directory.pull()[::2] == (0, "")
    assert [(directory.project.path / "photos" / name).read_bytes() for name in names] == [n.encode() for n in names]
    assert "photos" not in directory.module("integrity.doctor")[1]


@pytest.mark.soak
def test_an_import_is_left_to_dvc(directory: Victim, author: Project) -> None:
    author.dvc("remote", "add", "-q", "--default", "author", str(author.path.parent / "remote"))
    author.run("git", "commit", "-qam", "the remote for those who import")
    directory.project.run("git", "checkout", "-qb", "import")
    assert directory.dvc("import", "-q", str(author.path), "added", "--out", "imported") == 0
    directory.project.commit("import")
    directory.forget()
    status, output, _ = directory.pull()
    assert (status, "imported from another repository: `dvc pull imported.dvc` fetches it" in output) == (0, True)
    assert (directory.project.path / "made/g").read_text() == "one\n"
    status, _, error = directory.pull("imported.dvc")
    assert (status, error) == (2, "error: imported: imported; use `dvc pull imported.dvc`, which does not check it\n")
    assert directory.dvc("pull", "-q", "imported.dvc") == 0
    assert (directory.project.path / "imported/b").read_bytes() == b"b"
    replace(directory.project.path / "imported/b", b"edited")
    output = directory.module("integrity.doctor")[1]
    assert "fix: mv -n imported imported.changed && dvc pull imported.dvc\n" in output
    assert directory.pull()[0] == 0
    assert (directory.project.path / "imported/b").read_bytes() == b"edited"


def test_an_experiment(directory: Victim, author: Project) -> None:
    """`dvc exp pull --no-cache` fetches only the commit, `make pull` its files with checks; then it is applied."""
    author.run("git", "checkout", "-qb", "experiment")
    author.write("in.txt", "two\n")
    author.dvc("remote", "add", "-q", "--local", "--default", "storage", str(directory.storage))
    author.dvc("repro", "-q")
    author.dvc("push", "-q")
    author.run("git", "add", "--all")
    author.run("git", "commit", "-qm", "two")
    author.run("git", "checkout", "-qf", "main")
    directory.project.run("git", "fetch", "-q", "origin", "experiment:experiment")
    listed = the_list(directory.storage, '"g"')
    for place in directory.storage.glob("files/md5/*/*.dir"):
        replace(place, listed.read_bytes()[:-1] + b" ]")
    status, _, output = directory.pull("--rev", "experiment")
    assert (status, REPLACED in output) == (2, True)
    assert not (directory.project.path / "made").exists()


def test_dvc_itself_accepts_it(directory: Victim) -> None:
    """The reason for integrity/pull.py: a version of DVC that refuses this makes it superfluous."""
    directory.dvc("remote", "modify", "-q", "storage", "verify", "true")
    with_entry("../yaml.py")(directory.storage)
    assert directory.dvc("pull") == 0
    assert (directory.project.path / "yaml.py").read_bytes() == EVIL
    (directory.project.path / "yaml.py").unlink()

    directory.forget()
    a_run(directory.storage, names("yaml.py", EVIL))
    directory.dvc("pull", "-q", "--run-cache")
    lock = directory.project.path / "dvc.lock"
    document = yaml.safe_load(lock.read_text(encoding="utf-8"))
    del document["stages"]["single"]
    lock.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert directory.dvc("repro", "-q", "--pull", "single") == 0
    assert (directory.project.path / "yaml.py").read_bytes() == EVIL


def test_download_keeps_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.setattr(download, "collect", lambda *_: {"train-labels-idx1-ubyte": b"labels"})
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/mine").touch()
    download.main()
    assert (tmp_path / "data/raw/mine").exists()
    assert (tmp_path / "data/raw/train-labels-idx1-ubyte").read_bytes() == b"labels"
