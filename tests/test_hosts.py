"""Training on several hosts, which are network namespaces with one clone each: the same bytes, whichever host fails.

`make soak` injects HOSTS_FAULTS (4) faults at random moments; HOSTS_FAULTS=100 is the nightly run, and HOSTS_SEED=…
draws other moments.
"""

import base64
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState

from stages.common import head as heads
from stages.common import params, paths
from stages.common.errors import UserError
from stages.common.head import Place
from stages.train import hosts, options, rendezvous
from tests.clones import Clone, copy_of_the_work_tree
from tests.faults.ledger import faults
from tests.network_of_hosts import Host, ip
from tests.network_of_hosts import hosts as network
from tests.test_resume import Stage

FAULTS = int(os.environ.get("HOSTS_FAULTS", "4"))
SEED = int(os.environ.get("HOSTS_SEED", "0"))
DEADLINE_SECONDS = 300
FACTS = {
    "commit": "abc",
    "code": "1",
    "parameters": "2",
    "data": "3",
    "weights": "4",
    "packages": "torch 2",
    "processor": "x86_64 cpu",
}
HOST_FOLDERS = ("head", "second", "third")
PIPELINE = """
stages:
  train:
    cmd: python -m stages.train
    deps: [stages, data/processed]
    params: [train, model, models]
    outs: [data/model/model.safetensors]
    metrics:
      - metrics/train.json: {cache: false}
    plots:
      - metrics/plots/training.csv: {cache: false}
"""


# --- joining, without training


@pytest.fixture
def head() -> Iterator[tuple[TCPStore, Place]]:
    """The store of a head that listens on a free port."""
    with heads.listening(Place(heads.LOOPBACK, 0, heads.LOOPBACK, 1, 3)) as listener:
        port = listener.getsockname()[1]
        store = TCPStore(
            heads.LOOPBACK,
            port,
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=os.dup(listener.fileno()),
            timeout=timedelta(seconds=10),
        )
        yield store, Place(heads.LOOPBACK, port, heads.LOOPBACK, 1, 3)


def test_a_machine_with_the_same_facts_is_admitted(head: tuple[TCPStore, Place]) -> None:
    _, place = head
    with hosts.door(place, FACTS, "run", 10):
        store, seen = hosts.connect(str(place), 10)
        assert hosts.admission(store, seen, FACTS)["maximum"] == 3
    assert (seen.port, seen.address, seen.head) == (place.port, "127.0.0.1", False)


@pytest.mark.parametrize("name", FACTS)
def test_a_machine_that_differs_is_refused_on_both_sides(
    name: str, head: tuple[TCPStore, Place], capfd: pytest.CaptureFixture[str]
) -> None:
    _, place = head
    own = {**FACTS, name: "other\x1b[2J"}
    with hosts.door(place, FACTS, "run", 10):
        store, seen = hosts.connect(str(place), 10)
        with pytest.raises(UserError, match=rf"this machine cannot join {place}: other {name} \(the head: ") as error:
            hosts.admission(store, seen, own)
        assert "\n" not in str(error.value)
        output = ""
        while not output:
            output = capfd.readouterr().out
            time.sleep(0.05)
    assert output.startswith(f"127.0.0.1 may not join: other {name} (the head: {FACTS[name]}, here: other?[2J)")
    assert output.count("\n") == 1


def test_a_machine_whose_clock_differs_is_refused(
    head: tuple[TCPStore, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, place = head
    store.set("facts", json.dumps({"facts": FACTS}))
    store.set("clock", str(time.time() + 100))
    with pytest.raises(UserError, match=r"other clock \((99|100) s behind the head's\): set the clocks with NTP"):
        hosts.admission(store, place, FACTS)


def test_the_facts_cover_what_decides_the_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Stage()
    first = hosts.facts(options.read(stage.values))
    assert first.keys() == FACTS.keys()
    assert re.fullmatch(r"torch \S+ torchvision \S+ numpy \S+ safetensors \S+", first["packages"])
    stage.values["train"]["seed"] = 1
    paths.DATA_CARD.write_bytes(paths.DATA_CARD.read_bytes() + b"\n")
    other = hosts.facts(options.read(stage.values))
    assert {name for name in first if first[name] != other[name]} == {"parameters", "data"}
    stage.values["machine"]["threads"] = 3  # changes no bit
    assert hosts.facts(options.read(stage.values)) == other
    monkeypatch.setattr("stages.network.device.available", lambda: {"cpu": 1, "cuda": 1, "mps": 0})
    with_gpu = hosts.facts(options.read(stage.values))  # train.device is auto: machines without a GPU may not join
    assert {name for name in other if with_gpu[name] != other[name]} == {"processor"}
    paths.DATA_CARD.unlink()
    assert hosts.facts(options.read(stage.values))["data"] == f"no {paths.DATA_CARD}"


def test_pretrained_weights_are_compared_if_training_starts_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Stage()
    paths.PRETRAINED.parent.mkdir(parents=True)
    paths.PRETRAINED.write_bytes(b"one")
    assert hosts.facts(options.read(stage.values))["weights"] == "none"
    stage.values["model"]["name"] = "torchvision"
    stage.values["models"]["torchvision"]["weights"] = "birds.safetensors"
    first = hosts.facts(options.read(stage.values))
    paths.PRETRAINED.write_bytes(b"two")
    other = hosts.facts(options.read(stage.values))
    assert {name for name in first if first[name] != other[name]} == {"weights"}
    refusal = heads.difference(first, other)
    assert refusal.startswith(
        f"other weights (the head: {first['weights']}, here: {other['weights']}): `make pull`, or "
    )


@pytest.mark.parametrize(
    ("environment", "counts"),
    [({}, None), ({"TRAIN_NODES": "1:4"}, (1, 4)), ({"TRAIN_NODES": "2", "TRAIN_PORT": "5000"}, (2, 2))],
)
def test_the_number_of_machines_from_the_environment(
    environment: dict[str, str], counts: tuple[int, int] | None
) -> None:
    place = heads.read_place(environment)
    assert (place and (place.minimum, place.maximum)) == counts
    if place:
        assert str(place) == f"127.0.0.1:{environment.get('TRAIN_PORT', 29400)}"  # other machines cannot reach it


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TRAIN_NODES": "4:1"}, "TRAIN_NODES is '4:1'; give the fewest and the most machines, such as 1:4"),
        ({"TRAIN_NODES": "0:2"}, "TRAIN_NODES is '0:2'"),
        ({"TRAIN_NODES": "1:2:3"}, "TRAIN_NODES is '1:2:3'"),
        ({"TRAIN_NODES": "two"}, "TRAIN_NODES is 'two'"),
        ({"TRAIN_NODES": "2", "TRAIN_PORT": "99999"}, "TRAIN_PORT is '99999'; give a port from 1 to 65535"),
        ({"TRAIN_NODES": "2", "TRAIN_HOST": "no such host"}, "TRAIN_HOST is 'no such host', which is not a known host"),
    ],
)
def test_mistakes_in_the_environment(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        heads.read_place(environment)


def test_two_heads_on_one_port(head: tuple[TCPStore, Place]) -> None:
    _, place = head
    with (
        pytest.raises(UserError, match=rf"cannot listen on {place}: Address already in use; is another head there?"),
        heads.listening(place),
    ):
        pass


def test_a_head_that_does_not_listen() -> None:
    with socket.create_server((heads.LOOPBACK, 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UserError, match=rf"127.0.0.1:{port}: Connection refused; no head listens there"):
        hosts.connect(f"127.0.0.1:{port}", 10)
    for text, message in (
        ("host", "give HOST:PORT"),
        ("127.0.0.1:x", "the port of HEAD is 'x'"),
        (":1", "HEAD is ':1'"),
    ):
        with pytest.raises(UserError, match=message):
            hosts.connect(text, 10)


def test_another_program_listens_on_the_port() -> None:
    with (
        socket.create_server((heads.LOOPBACK, 0)) as silent,  # accepts connections, and sends nothing
        pytest.raises(UserError, match="answers, but not as a head of training does; check the port"),
    ):
        hosts.connect(f"127.0.0.1:{silent.getsockname()[1]}", 1)


def test_the_interface_of_an_address() -> None:
    assert hosts.interface("127.0.0.1") in ("lo", "lo0")
    with pytest.raises(UserError, match="no network interface of this machine has the address 192.0.2.1"):
        hosts.interface("192.0.2.1")


def test_the_store_of_the_rendezvous_has_no_pickle(head: tuple[TCPStore, Place]) -> None:
    store, _ = head
    backend = rendezvous.PlainBackend(store, "run")
    state, node = _RendezvousState(), _NodeDesc("head-127.0.0.1", 1, 0)
    state.round, state.complete, state.participants = 3, True, {node: 0}
    state.wait_list = {_NodeDesc("joined-127.0.0.2", 2, 0)}
    state.last_heartbeats = {node: datetime.now(UTC)}
    assert backend.get_state() is None
    stored = backend.set_state(pickle.dumps(state))
    assert stored
    assert stored[2]
    loaded = backend.get_state()
    assert loaded
    assert vars(pickle.loads(loaded[0])) == vars(state)
    assert loaded[1] == stored[1]
    assert json.loads(base64.b64decode(store.get("torch.rendezvous.run")))["round"] == 3


# --- hosts


class Cluster:
    """A head and other hosts, each with a clone of one repository; digests and duration of an undisturbed training."""

    def __init__(self, made: list[Host], digests: Sequence[str] = (), seconds: float = 0.0) -> None:
        self.hosts, self.digests, self.seconds = made, digests, seconds
        self.head, *self.others = made
        self.runs: dict[str, subprocess.Popen[str]] = {}

    def start_head(self, **environment: str) -> None:
        variables = {"TRAIN_NODES": "1:3", "TRAIN_HOST": self.head.address, **environment}
        self.runs[self.head.name] = self.head.start(
            [sys.executable, "-m", "stages.train"], {**os.environ, "PYTHONPATH": "", **variables}
        )

    def join(self, host: Host, **environment: str) -> None:
        self.runs[host.name] = host.start(
            [sys.executable, "-m", "integrity.join", f"{self.head.address}:29400"],
            {**os.environ, "PYTHONPATH": "", **environment},
        )

    def head_listens(self) -> bool:
        return "make join HEAD=" in self.head.output() or self.status(self.head) is not None

    def status(self, host: Host) -> int | None:
        """The exit status of the program on a host; None while it runs."""
        return self.runs[host.name].poll()

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.outputs()
            time.sleep(0.1)

    def end(self) -> None:
        """Wait until training and all processes end; the results must be those of an undisturbed training."""
        self.wait(lambda: self.status(self.head) is not None)
        assert self.status(self.head) == 0, self.outputs()
        assert digests(self.head.folder) == [*self.digests]
        self.wait(lambda: not any(host.processes() for host in self.hosts))
        assert not (self.head.folder / paths.RESUME).exists()

    def forget(self) -> None:
        """Delete the results, so that the head trains again."""
        for path in Stage.OUTPUTS:
            (self.head.folder / path).unlink()

    def outputs(self) -> str:
        return "\n".join(f"--- {host.address}\n{host.output()}" for host in self.hosts if host.name in self.runs)


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in Stage.OUTPUTS]


def clones_with_data(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[Clone]:
    """Clones, below `folder`, of a repository with this code and a small data set. change: edits params.yaml."""
    first = copy_of_the_work_tree(folder / HOST_FOLDERS[0])
    (first.path / "dvc.yaml").write_text(PIPELINE)
    (first.path / ".gitignore").write_text("/runs/\n/data/model/\n/metrics/\n__pycache__/\n*.tmp\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(first.path)
        stage = Stage()
        change(stage.values)
        stage.write_params()
    first.commit("a small data set")
    for name in HOST_FOLDERS[1:]:
        first.run("git", "clone", "-q", str(first.path), str(folder / name))
    return [first, *(Clone(folder / name) for name in HOST_FOLDERS[1:])]


def eight_epochs(values: dict[str, Any]) -> None:
    """Time for faults, and checkpoints to resume from."""
    values["train"].update(epochs=8)
    values["machine"].update(threads=1, timeout_seconds=12, checkpoint_every_seconds=0.2)


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> list[Clone]:
    return clones_with_data(tmp_path_factory.mktemp("hosts"), eight_epochs)


@pytest.fixture(scope="module")
def undisturbed(clones: list[Clone]) -> tuple[list[str], float]:
    """The digests of a training in one process, and the seconds it took."""
    began = time.monotonic()
    clones[0].run("env", "PYTHONPATH=", sys.executable, "-m", "stages.train")
    found = digests(clones[0].path)
    for path in Stage.OUTPUTS:
        (clones[0].path / path).unlink()
    return found, time.monotonic() - began


@pytest.fixture
def cluster(clones: list[Clone], undisturbed: tuple[list[str], float]) -> Iterator[Cluster]:
    with network([clone.path for clone in clones]) as made:
        yield Cluster(made, *undisturbed)
    for clone in clones:
        shutil.rmtree(clone.path / "runs", ignore_errors=True)
        clone.run("git", "checkout", "-qf", "main")
        clone.run("git", "clean", "-qfdx")


def workers(host: Host) -> list[int]:
    """The workers on a host, without the program that started them."""
    return [
        process
        for process in host.processes()
        if "TRAIN_ROUND=" in Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace")
    ]


def inject(kind: str, cluster: Cluster, moments: random.Random) -> None:
    """Inject a fault, and do what a user would do about it."""
    host, seconds = moments.choice(cluster.others), 14.0  # longer than machine.timeout_seconds
    if kind == "process":
        host = moments.choice(cluster.hosts)
        host.signal(signal.SIGKILL, workers(host)[:1])
    elif kind == "host":
        host.kill()
    elif kind == "hang":
        frozen = workers(host) if moments.random() < 0.5 else host.processes()
        host.signal(signal.SIGSTOP, frozen)
        time.sleep(seconds)
        host.signal(signal.SIGCONT, frozen)
    elif kind == "link":
        host.link(up=False)
        time.sleep(seconds)
        host.link(up=True)
    else:
        cluster.head.kill()
        cluster.start_head(MACHINE_PROCESSES=str(moments.choice([1, 2])))


KINDS = ("process", "host", "hang", "link", "head")


@pytest.mark.soak
def test_training_ends_in_the_same_bytes_whatever_fails(cluster: Cluster) -> None:
    moments, together = random.Random(SEED), False
    kinds = [KINDS[number % len(KINDS)] for number in range(FAULTS)]
    moments.shuffle(kinds)
    with faults("faults of hosts") as count:
        cluster.start_head()
        while kinds:
            cluster.wait(cluster.head_listens)
            for host in cluster.others:  # also those that have ended
                if host.name not in cluster.runs or cluster.status(host) is not None:
                    cluster.join(host)
            if not together:  # at least one fault happens while all hosts train
                cluster.wait(
                    lambda: "on 3 machines" in cluster.head.output() or cluster.status(cluster.head) is not None
                )
                together = "on 3 machines" in cluster.head.output()
            due = time.monotonic() + moments.uniform(0, cluster.seconds)
            while time.monotonic() < due and cluster.status(cluster.head) is None:
                time.sleep(0.05)
            if cluster.status(cluster.head) is None:
                print(f"fault {count['faults of hosts'] + 1}: {kinds[-1]}")
                inject(kinds.pop(), cluster, moments)
                count["faults of hosts"] += 1
            else:
                cluster.end()
                cluster.forget()
                cluster.start_head()
        cluster.end()
    assert together


def has_ended(cluster: Cluster, host: Host) -> bool:
    return cluster.status(host) is not None


def has_printed(host: Host, line: str) -> bool:
    return line in host.output()


LOST = """
import os
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

SimpleElasticAgent._assign_worker_ranks = lambda *_: os._exit(9)
"""


@pytest.mark.soak
def test_a_machine_that_is_lost_between_joining_and_starting(cluster: Cluster, tmp_path: Path) -> None:
    """The others wait for it in vain, and then begin again without it."""
    lost, other = cluster.others
    (tmp_path / "sitecustomize.py").write_text(LOST, encoding="utf-8")
    cluster.start_head(TRAIN_NODES="2:3")
    cluster.wait(cluster.head_listens)
    cluster.join(lost, PYTHONPATH=str(tmp_path))
    cluster.wait(lambda: cluster.status(lost) is not None)
    assert cluster.status(lost) == 9, cluster.outputs()
    cluster.join(other)
    cluster.end()
    assert "a machine was lost while the processes started: starting again\n" in cluster.head.output()
    assert "2 processes on 2 machines\n" in cluster.head.output()
    assert cluster.status(other) == 0, cluster.outputs()


@pytest.mark.soak
def test_hosts_that_cannot_join(cluster: Cluster, clones: list[Clone]) -> None:
    head, (second, third) = cluster.head, cluster.others
    head_place = f"{head.address}:29400"
    # As behind a firewall: the neighbour has an address, and never answers.
    ip("-n", second.name, "neighbor", "add", "10.213.0.99", "lladdr", "02:00:00:00:00:99", "dev", "eth0")
    for place, message in (
        ("10.213.0.99:29400", "does not answer within 10 s; does a firewall block it, or is the machine off?"),
        (head_place, "Connection refused; no head listens there"),
    ):
        runs = second.start([sys.executable, "-m", "integrity.join", place], {**os.environ, "PYTHONPATH": ""})
        assert runs.wait(timeout=DEADLINE_SECONDS) == 2
        assert message in second.output()
        assert second.output().count("\n") == 1
    # Another commit, other parameters.
    (clones[1].path / "notes.txt").write_text("another commit")
    clones[1].commit("another")
    values: dict[str, Any] = params.load(clones[2].path / "params.yaml")
    values["train"]["seed"] = 5
    (clones[2].path / "params.yaml").write_text(yaml.safe_dump(values))
    cluster.start_head()
    cluster.wait(lambda: "make join HEAD=" in head.output())
    for host, differing in ((second, "commit"), (third, "parameters")):
        cluster.join(host)
        cluster.wait(partial(has_ended, cluster, host))
        assert cluster.status(host) == 2
        assert f"error: this machine cannot join {head_place}: other {differing} (the head: " in host.output()
        cluster.wait(partial(has_printed, head, f"{host.address} may not join: other {differing}"))
    cluster.end()
