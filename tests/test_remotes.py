"""Sharing between two people, against real servers on this machine, with the recipes of docs/sharing.md as pasted.

The tests of one kind of remote share the people and the server, and run in their order.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clones import Clone
from tests.imports import ROOT
from tests.remote_servers import RECIPES, SERVERS, Proxy, Remote, of_a_reader, paste

# That of docs/sharing.md, for a directory that several people push to. All folders at once: DVC takes the setgid bit
# from those that it makes, so that the group of the next ones is the person's own.
SHARED = (
    "install -d -g GROUP -m 2770 FOLDER FOLDER/files FOLDER/files/md5 FOLDER/files/md5/{{0..9},{a..f}}{{0..9},{a..f}}"
)
OUTS = ("data/params.valid", "data/raw", "data/processed", "data/pretrained", "data/model", "data/predictions.csv")
OF_A_SEED = ("data/model/README.md", "data/model/model.safetensors", "data/predictions.csv")
RESULTS = ("params.yaml", "dvc.lock", "metrics")  # what a commit of a run holds
BIG = "data/raw/t10k-images-idx3-ubyte"  # 8 MB
HALF = 4_000_000

# What DVC says. Another wording in a later version is to be read by a person.
MISSING = "Some of the cache files do not exist neither locally nor on remote"
DOWN = {
    "S3": "Could not connect to the endpoint URL",
    "SSH": "Connect call failed",
    "WebDAV": f"Connection refused|{MISSING}",  # of one file; of several, it tells
    "HTTP": MISSING,  # all that it ever tells
}
# Of WebDAV, DVC takes a refusal for a file that is not there.
REFUSED = {
    "S3": r"403.*Forbidden",
    "SSH": "Permission denied for user",
    "WebDAV": "do not exist neither locally nor on",
}


class Apart(Clone):
    """A clone whose DVC never runs in this process, where the clients of servers would keep their connections."""

    def dvc(self, *arguments: str, check: bool = True) -> str:
        return self.dvc_as_program(*arguments, check=check)


@dataclass(frozen=True)
class Team:
    """Two people, a Git repository and a remote between them."""

    kind: str
    remote: Remote
    ann: Clone  # has run the pipeline, with two seeds, and pushed
    bob: Clone  # has cloned
    data: dict[str, str]  # her files of seed 0, and their MD5
    arrived: tuple[dict[str, int], dict[str, int]]  # in the remote: with her push of seed 0, and of seed 1; sizes

    @property
    def proxy(self) -> Proxy:
        assert self.remote.proxy
        return self.remote.proxy


def attempt(clone: Clone, *arguments: str) -> tuple[int, str]:
    """The exit status of a dvc command and what it says, which is no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=clone.path,
        env=clone.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def data(clone: Clone) -> dict[str, str]:
    """What DVC keeps of the work tree: each file, and its MD5."""
    found = (path for name in OUTS for path in [clone.path / name, *(clone.path / name).rglob("*")])
    files = (path for path in found if path.is_file() and path.name != ".gitignore")
    return {str(path.relative_to(clone.path)): md5(path) for path in files}


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def stored(remote: Remote, digest: str) -> Path:
    """The object of these bytes in the remote's storage."""
    return remote.storage / "files/md5" / digest[:2] / digest[2:]


def forget(clone: Clone) -> None:
    """As after `git clone`, but configured: no cache and no data."""
    clone.run("git", "reset", "-q", "--hard", "main")
    clone.run("git", "clean", "-qfdx", "--exclude=.dvc")
    shutil.rmtree(clone.path / ".dvc/cache", ignore_errors=True)
    shutil.rmtree(clone.path.parent / "site-cache", ignore_errors=True)


def link_data(source: str, target: str) -> None:
    """For shutil.copytree: what DVC replaces and never writes into is linked, the rest copied."""
    (os.link if "/.dvc/cache/files/" in source or "/clone/data/" in source else shutil.copy2)(source, target)


@pytest.fixture(scope="module")
def trained(pipeline: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone that has run two seeds, in commits on main and on seed-1: all the training of this file."""
    clone = Clone(tmp_path_factory.mktemp("trained") / "clone")
    clone.path.parent.joinpath("dvc-remote").symlink_to(pipeline.path.parent / "dvc-remote")
    subprocess.run(["git", "clone", "-q", str(pipeline.path), str(clone.path)], check=True, env=clone.environment)
    clone.dvc("pull")
    clone.run("git", "checkout", "-qb", "seed-1")
    clone.set("train.seed", "1")
    assert clone.repro() == ["train", "evaluate"]
    clone.commit("seed 1")
    clone.run("git", "checkout", "-q", "main")
    clone.dvc("checkout")
    return clone


# A directory in `make test`, the servers in `make soak`.
KINDS = [kind if kind == "Directory" else pytest.param(kind, marks=pytest.mark.soak) for kind in SERVERS]
# The same with one server by day, where the kind of server matters less.
FEWER = ["Directory", pytest.param("S3", marks=pytest.mark.soak)]
FEWER += [pytest.param(kind, marks=pytest.mark.night) for kind in ("SSH", "WebDAV", "HTTP")]


@pytest.fixture(scope="module", params=KINDS)
def team(request: pytest.FixtureRequest, trained: Clone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Ann's clone, set up by the recipe, and both her runs pushed; Bob's, with the lines of it that are his."""
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    with SERVERS[kind](folder) as remote:
        person = Clone if kind == "Directory" else Apart
        ann, bob = person(folder / "ann/clone"), person(folder / "bob/clone")
        for clone in (ann, bob):
            clone.path.parent.mkdir()
            clone.environment.update(remote.environment)
        shutil.copytree(trained.path, ann.path, symlinks=True, copy_function=link_data)
        ann.run("git", "init", "-q", "--bare", "-b", "main", "../../origin.git")
        ann.run("git", "remote", "set-url", "origin", "../../origin.git")
        paste(ann, remote, RECIPES[kind])
        ann.commit("A remote")
        ann.run("git", "push", "-q", "origin", "main", "seed-1")
        ann.dvc("push")
        first = remote.objects()
        ann.run("git", "checkout", "-q", "seed-1", "--", *RESULTS)
        ann.dvc("push")
        second = {name: size for name, size in remote.objects().items() if name not in first}
        ann.run("git", "reset", "-q", "--hard", "main")

        subprocess.run(["git", "clone", "-q", str(folder / "origin.git"), str(bob.path)], check=True)
        paste(bob, remote, of_a_reader(RECIPES[kind]))
        yield Team(kind, remote, ann, bob, data(ann), (first, second))


def test_a_recipe_for_each_kind_in_at_most_four_lines() -> None:
    assert list(RECIPES) == list(SERVERS)
    assert all(1 <= len(lines) <= 4 for lines in RECIPES.values())


def test_only_what_changed_travels(team: Team) -> None:
    first, second = team.arrived
    files = {name: size for name, size in first.items() if not name.endswith(".dir")}
    assert len(first) - len(files) == 3  # the lists of the splits' folders
    assert len(files) == len(set(team.data.values()))
    assert sum(files.values()) == sum(
        {md5: (team.ann.path / name).stat().st_size for name, md5 in team.data.items()}.values()
    )
    lock = team.ann.run("git", "show", "seed-1:dvc.lock")
    digests = [
        match[1] for name in OF_A_SEED if (match := re.search(rf"path: {name}\n +hash: md5\n +md5: (\w+)", lock))
    ]
    assert set(second) == {str(stored(team.remote, digest).relative_to(team.remote.storage)) for digest in digests}
    assert len(second) == len(OF_A_SEED)


def test_a_colleague_pulls_and_runs_nothing(team: Team) -> None:
    team.bob.dvc("pull")
    assert data(team.bob) == team.data
    assert team.bob.repro() == []


@pytest.mark.parametrize("team", FEWER, indirect=True)
def test_the_run_cache_answers_for_what_was_pulled(team: Team) -> None:
    bob = team.bob
    bob.dvc("commit", "--force")
    bob.run("git", "checkout", "-q", "origin/seed-1", "--", *RESULTS)
    bob.dvc("pull")
    bob.dvc("commit", "--force")
    other = data(bob)
    assert {name for name in other if other[name] != team.data[name]} == set(OF_A_SEED)
    for seed, files in (("0", team.data), ("1", other)):
        bob.set("train.seed", seed)
        output = bob.dvc("repro")
        assert "Running stage" not in output
        assert "Stage 'train' is cached - skipping run" in output
        assert data(bob) == files
        revision = {"0": "main", "1": "origin/seed-1"}[seed]
        kept = (*RESULTS, ":!metrics/environment")  # that is of the machine, and of a run that ran
        assert bob.run("git", "diff", "--stat", revision, "--", *kept) == ""  # the metrics in Git are back, too
    assert not (bob.path / "runs").exists()  # where a stage that ran would have left its record


@pytest.mark.parametrize("team", FEWER, indirect=True)
def test_an_experiment_travels(team: Team) -> None:
    giver, taker = (team.ann, team.bob) if team.kind == "HTTP" else (team.bob, team.ann)  # who may push
    giver.run("git", "reset", "-q", "--hard", "main")
    # A program: in this process, its Git packs would be closed, with a warning, during any later test.
    giver.dvc_as_program("exp", "run", "-n", "coarse", "-S", "train.seed=1", "-S", "evaluate.calibration_bins=5")
    giver.dvc("exp", "push", "origin", "coarse")
    forget(taker)
    taker.dvc("exp", "pull", "origin", "coarse")
    taker.dvc("exp", "apply", "coarse")
    assert taker.metrics("evaluate") == giver.metrics("evaluate")
    assert taker.run("git", "diff", "main", "--stat", "--", "metrics/evaluate.json")
    assert data(taker) == data(giver)
    assert data(taker) != team.data


def test_git_holds_no_secret(team: Team) -> None:
    for clone in (team.ann, team.bob):
        assert ".dvc/config.local" not in clone.run("git", "ls-files").split()
        everything = clone.run("git", "log", "--all", "--patch")
        assert "A remote" in everything
        assert not [secret for secret in team.remote.secrets if secret in everything]


@pytest.mark.soak
@pytest.mark.parametrize("team", ["Directory", "SSH"], indirect=True)
def test_a_damaged_object_is_refused(team: Team) -> None:
    damaged = stored(team.remote, team.data[BIG])
    content = damaged.read_bytes()
    damaged.chmod(0o644)  # DVC makes the objects of a directory read-only
    damaged.write_bytes(content[:HALF] + bytes([content[HALF] ^ 1]) + content[HALF + 1 :])
    forget(team.bob)
    status, output = attempt(team.bob, "pull", BIG)
    assert status != 0
    assert re.search(rf"ERROR: failed to pull data from the cloud - Checkout failed.*\n{BIG}\n", output)
    assert data(team.bob) == {}
    damaged.write_bytes(content)


@pytest.mark.soak
@pytest.mark.parametrize("team", list(DOWN), indirect=True)
def test_a_pull_while_the_remote_is_down_or_breaks_off(team: Team) -> None:
    forget(team.bob)
    team.proxy.down()
    status, output = attempt(team.bob, "pull", BIG)
    team.proxy.up()
    assert status != 0
    assert re.search(DOWN[team.kind], output)
    assert data(team.bob) == {}

    team.proxy.cut_after(HALF)
    status, output = attempt(team.bob, "pull", BIG)
    assert team.proxy.has_cut
    team.proxy.up()
    assert status != 0
    assert "ERROR: failed to transfer" in output
    assert data(team.bob) == {}

    assert attempt(team.bob, "pull", BIG)[0] == 0
    assert data(team.bob) == {BIG: team.data[BIG]}


@pytest.mark.soak
@pytest.mark.parametrize("team", list(REFUSED), indirect=True)
def test_a_push_that_is_cut_off(team: Team) -> None:
    forget(team.bob)
    extra = team.bob.path / "extra.bin"
    extra.write_bytes(os.urandom(2 * HALF))
    digest = md5(extra)
    team.bob.dvc("add", extra.name)
    team.proxy.cut_after(HALF)
    status, output = attempt(team.bob, "push", extra.name)
    assert team.proxy.has_cut
    team.proxy.up()
    assert status != 0
    assert "ERROR: failed to push data to the cloud - 1 files failed to upload" in output
    if team.kind == "WebDAV":
        # The server has kept the half, under the name of the whole, and DVC takes it for that. `verify` does not.
        assert "Everything is up to date" in team.bob.dvc("push", extra.name)
        extra.unlink()
        shutil.rmtree(team.bob.path / ".dvc/cache/files/md5" / digest[:2])
        assert attempt(team.bob, "pull", extra.name)[0] != 0
        assert not extra.exists()
        return
    team.bob.dvc("push", extra.name)
    assert md5(stored(team.remote, digest)) == digest


@pytest.mark.soak
@pytest.mark.parametrize("team", list(REFUSED), indirect=True)
def test_wrong_credentials(team: Team) -> None:
    forget(team.bob)
    assert team.remote.wrong
    option, value = team.remote.wrong
    config = team.bob.path / ".dvc/config.local"
    before = config.read_bytes() if config.exists() else b""
    environment = dict(team.bob.environment)
    if option.startswith("AWS_"):
        team.bob.environment[option] = value
    else:
        team.bob.dvc("remote", "modify", "--local", "storage", option, value)
    status, output = attempt(team.bob, "pull", BIG)
    assert status != 0
    assert re.search(REFUSED[team.kind], output)
    assert data(team.bob) == {}
    config.write_bytes(before)
    team.bob.environment = environment
    assert attempt(team.bob, "pull", BIG)[0] == 0


@pytest.mark.soak
@pytest.mark.parametrize("team", ["HTTP"], indirect=True)
def test_http_is_read_only(team: Team) -> None:
    before = team.remote.objects()
    (team.bob.path / "extra.bin").write_bytes(b"extra")
    team.bob.dvc("add", "extra.bin")
    status, output = attempt(team.bob, "push", "extra.bin")
    assert status != 0
    assert "ERROR: failed to push data to the cloud - 1 files failed to upload" in output
    assert team.remote.objects() == before


@pytest.mark.parametrize("team", ["Directory"], indirect=True)
def test_no_remote(team: Team) -> None:
    forget(team.bob)
    team.bob.dvc("config", "--unset", "core.remote")
    for command, message in (
        ("push", "no remote specified"),
        ("pull", "No remote provided and no default remote set."),
    ):
        status, output = attempt(team.bob, command)
        assert status != 0
        assert message in output


DVC = f"{sys.executable} -m dvc"


@dataclass(frozen=True)
class User:
    """Another user of this machine, in the group of the project; may look into root's folders, to find Python."""

    number: int
    clone: Clone
    umask: str

    GROUP = 54320

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        who = [f"--reuid={self.number}", f"--regid={self.number}", f"--groups={self.GROUP}"]
        environment = {**self.clone.environment, "LOGNAME": f"u{self.number}", "HOME": str(self.clone.path.parent)}
        return subprocess.run(
            ["setpriv", *who, *reads, "sh", "-ec", f"umask {self.umask}; {script}"],
            cwd=self.clone.path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that others can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.soak
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can be two other users")
@pytest.mark.parametrize(
    ("recipe", "umask", "works"),
    [(SHARED, "022", True), (SHARED, "077", True), (SHARED.partition(" FOLDER/")[0], "002", False)],
    ids=["as docs/sharing.md says", "and umask 077", "one folder alone"],
)
def test_two_people_push_to_one_directory(recipe: str, umask: str, works: bool, open_folder: Path) -> None:
    share = open_folder / "share"
    subprocess.run(["bash", "-c", recipe.replace("GROUP", str(User.GROUP)).replace("FOLDER", str(share))], check=True)
    users = []
    for number in (54321, 54322):
        user = User(number, Clone(open_folder / str(number) / "clone"), umask)
        user.clone.path.mkdir(parents=True)
        user.clone.environment["DVC_NO_ANALYTICS"] = "1"
        for path in (user.clone.path, user.clone.path.parent):
            os.chown(path, number, number)
        done = user.shell(f"git init -q && {DVC} init -q && {DVC} remote add -q -d share {share}")
        assert done.returncode == 0, done.stderr
        users.append(user)
    # Many small files, so that the second person's objects meet folders that the first one has made.
    output = []
    for user in users:
        fill = f"mkdir many; for i in $(seq 600); do echo {user.number} $i > many/$i; done"
        output.append(user.shell(f"{fill}; {DVC} add -q many && {DVC} push"))
    assert output[0].returncode == 0, output[0].stderr
    assert (output[1].returncode == 0) is works, output[1].stderr
    if not works:
        assert "Permission denied" in output[1].stderr
        return
    assert all(path.stat().st_mode & 0o040 and path.stat().st_gid == User.GROUP for path in share.rglob("*"))
    script = f"rm -r many many.dvc; cp ../../{users[0].number}/clone/many.dvc .; git add -A; git commit -qm all"
    users[1].clone.environment["PYTHONPATH"] = str(ROOT)
    done = users[1].shell(f"{script}; {sys.executable} -m integrity.pull")
    assert done.returncode == 0, done.stderr
    assert (users[1].clone.path / "many/600").read_text() == f"{users[0].number} 600\n"
