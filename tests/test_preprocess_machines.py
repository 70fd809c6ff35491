"""Preprocess on several machines: the same bytes, whoever decodes, and whichever machine fails."""

import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

import pytest

from stages.common import head as heads
from stages.common.head import Place
from stages.common.preparation import Preparation
from stages.preprocess.decoding import Task
from stages.preprocess.link import Link, LostError
from stages.preprocess.machines import Machines
from tests.clones import Clone, copy_of_the_work_tree
from tests.network_of_hosts import Host
from tests.network_of_hosts import hosts as network
from tests.test_pack import picture

FACTS = {"commit": "abc", "code": "1"}
PREPARATION = Preparation(channels="grey", image_size=[2, 2], resize="crop", background=[0, 0, 0])
DEADLINE_SECONDS = 120


class Head:
    """A head that listens on a free port, and a shard with room for four pictures."""

    def __init__(self, place: Place, machines: Machines, shard: Path) -> None:
        self.place, self.machines, self.shard = place, machines, shard
        self.links: list[Link] = []
        self.tasks = [Task(f"{number}.png", bytes([number]), shard, 4 * number) for number in range(4)]

    def connected(self) -> Link:
        link = Link(socket.create_connection((self.place.host, self.place.port)), self.place.host, 10)
        self.links.append(link)
        assert link.receive()[0]["facts"] == FACTS
        return link

    def joined(self) -> tuple[Link, Link]:
        """The two connections of a machine with one process: for messages, and for batches."""
        control, worker = self.connected(), self.connected()
        control.send({"machine": "other", "processes": 1})
        assert control.receive()[0] == {"admitted": True}
        worker.send({"machine": "other"})
        return control, worker


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    shard = tmp_path / "shard"
    shard.write_bytes(bytes(16))
    with heads.listening(Place(heads.LOOPBACK, 0, heads.LOOPBACK)) as listener:
        place = Place(heads.LOOPBACK, listener.getsockname()[1], heads.LOOPBACK, 1, 2)
        machines = Machines(place, FACTS, timeout_seconds=30)
        threading.Thread(target=machines.accept, args=[listener], daemon=True).start()
        made = Head(place, machines, shard)
        yield made
        machines.end(succeeded=False)
        for link in made.links:
            link.close()


def never(tasks: list[Task]) -> "Future[list[str]]":
    """A machine whose own processes are at work on something else."""
    return Future()


def here(tasks: list[Task]) -> "Future[list[str]]":
    done: Future[list[str]] = Future()
    done.set_result(["done by the head"] * len(tasks))
    return done


def answer(worker: Link, pixels: bytes, sha256: str = "") -> None:
    worker.send({"sha256": sha256 or hashlib.sha256(pixels).hexdigest()}, pixels)


def test_pixels_from_another_machine_come_to_their_places(head: Head, capfd: pytest.CaptureFixture[str]) -> None:
    with head.machines.sharing(PREPARATION, 0, never) as submit:
        control, worker = head.joined()
        reasons = submit(head.tasks)
        batch, _ = worker.receive()
        assert batch["preparation"] == PREPARATION.model_dump()
        assert batch["pictures"] == [[f"{number}.png", f"{number:02}"] for number in range(4)]
        for number in range(3):
            answer(worker, bytes([number + 1] * 4))
        worker.send({"reason": "damaged"})
        assert reasons.result(timeout=10) == ["", "", "", "damaged"]
    assert head.shard.read_bytes() == bytes([1] * 4 + [2] * 4 + [3] * 4 + [0] * 4)
    ending = threading.Thread(target=head.machines.end, args=[True])
    ending.start()
    assert control.receive()[0] == {"end": True}
    control.close()
    ending.join()
    assert capfd.readouterr().out == "127.0.0.1 joins with 1 process\n"


def hangs(control: Link, worker: Link) -> None:
    """Its program is alive, and answers no more."""


def ends(control: Link, worker: Link) -> None:
    worker.close()


def leaves(control: Link, worker: Link) -> None:
    control.close()


def sends_too_little(control: Link, worker: Link) -> None:
    answer(worker, b"abc")


def sends_damaged_pixels(control: Link, worker: Link) -> None:
    answer(worker, b"abcd", sha256="0" * 64)


def talks_something_else(control: Link, worker: Link) -> None:
    worker.send({"reason": ["x" * 2**24]})


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (hangs, "does not answer"),
        (ends, "has ended"),
        (leaves, "has ended"),
        (sends_too_little, "sends something else"),
        (sends_damaged_pixels, "sends something else"),
        (talks_something_else, "sends something else"),
    ],
)
def test_the_batch_of_a_machine_that_fails_goes_to_another_process(
    failure: Callable[[Link, Link], None], message: str, head: Head, capfd: pytest.CaptureFixture[str]
) -> None:
    control, worker = head.joined()
    with head.machines.sharing(PREPARATION, 0, never) as submit:
        reasons = submit(head.tasks)
        worker.receive()
        if failure is hangs:
            head.machines._links["other"][1].set_timeout(0.1)
        answer(worker, b"good")
        with suppress(LostError):
            failure(control, worker)
        with head.machines.sharing(PREPARATION, 1, here):
            assert reasons.result(timeout=10) == ["done by the head"] * 4
    told = ""
    while "other processes\n" not in told:
        told += capfd.readouterr().out
        time.sleep(0.05)
    assert told == f"127.0.0.1 joins with 1 process\n127.0.0.1 {message}: its pictures go to the other processes\n"


def test_a_full_disk_of_the_head_is_no_fault_of_the_machine(head: Head) -> None:
    _, worker = head.joined()
    head.shard.unlink()
    with head.machines.sharing(PREPARATION, 0, never) as submit:
        reasons = submit(head.tasks[:1])
        worker.receive()
        answer(worker, b"good")
        with pytest.raises(FileNotFoundError, match=str(head.shard)):
            reasons.result(timeout=10)


def test_machines_that_may_not_join(head: Head, capfd: pytest.CaptureFixture[str]) -> None:
    refused = head.connected()
    refused.send({"machine": "a", "processes": 1, "refused": "other commit\x1b[2J"})
    assert refused.receive()[0] == {"refused": "other commit\x1b[2J"}
    head.joined()
    late = head.connected()
    late.send({"machine": "b", "processes": 1})
    assert late.receive()[0] == {"refused": "TRAIN_NODES allows 2 machines, and all have joined"}
    unknown = head.connected()
    unknown.send({"machine": "nobody"})
    with pytest.raises(LostError):
        unknown.receive()
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "127.0.0.1 may not join: other commit?[2J"


# --- hosts, each with a clone and the pictures

PICTURES = 320  # 10 batches
# preprocess, whose own process waits before each batch: the first time until another machine has been given one.
HEAD = """
import time
from pathlib import Path
from stages.common import errors
from stages.preprocess import __main__, machines, pack

handed_out, sharing, decoded = Path("runs/handed-out"), machines.Machines.sharing, machines.Machines._decoded

def slow_sharing(self, preparation, processes, submit_here):
    def submit(tasks):
        while not handed_out.exists():
            time.sleep(0.05)
        time.sleep(0.2)
        return submit_here(tasks)
    return sharing(self, preparation, processes, submit)

def slow_decoded(self, link, batch):
    time.sleep(0.2)
    handed_out.touch()
    return decoded(self, link, batch)

pack.CHECKPOINT_SECONDS = 0.02
machines.Machines.sharing, machines.Machines._decoded = slow_sharing, slow_decoded
errors.run(__main__.main)
"""


class Cluster:
    """A head and another host, and the digests of the splits that one machine makes."""

    def __init__(self, hosts: list[Host], expected: list[str]) -> None:
        self.head, self.other = hosts
        self.expected = expected

    def start(self) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        """The head, and the other host, which is decoding."""
        shutil.rmtree(self.head.folder / "data/processed", ignore_errors=True)
        shutil.rmtree(self.head.folder / "runs", ignore_errors=True)
        environment = {**os.environ, "PYTHONPATH": "", "MACHINE_THREADS": "1"}
        variables = {"TRAIN_NODES": "1:2", "TRAIN_HOST": self.head.address, "MACHINE_TIMEOUT_SECONDS": "4"}
        head = self.head.start([sys.executable, "-c", HEAD], {**environment, **variables})
        self.wait(lambda: "make join HEAD=" in self.head.output())
        join = [sys.executable, "-m", "integrity.join", f"{self.head.address}:29400"]
        other = self.other.start(join, environment)
        return head, other

    def wait_for_the_first_batch(self) -> None:
        self.wait((self.head.folder / "runs/handed-out").exists)

    def wait(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def status(self, process: subprocess.Popen[str]) -> int:
        """The exit status of a program, once it has ended."""
        self.wait(lambda: process.poll() is not None)
        return process.returncode

    def succeeds(self, head: subprocess.Popen[str]) -> None:
        assert self.status(head) == 0, self.output()
        assert digests(self.head.folder) == self.expected
        assert not (self.head.folder / "runs/pack").exists()
        self.wait(lambda: not self.other.processes())

    def output(self) -> str:
        return f"{self.head.output()}\n---\n{self.other.output()}"


def digests(folder: Path) -> list[str]:
    files = [*sorted(folder.glob("data/processed/*/*")), folder / "metrics/data.json"]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("machines")
    head, other = copy_of_the_work_tree(folder / "head"), Clone(folder / "other")
    pictures = folder / "pictures"
    for number in range(PICTURES):
        path = pictures / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(path, compress_level=1)
    (pictures / "a/broken.png").write_bytes((pictures / "a/0.png").read_bytes()[:400])
    for key, value in (("data.name", "images"), ("data.images", "data/mine"), ("preprocess.bad_images", "skip")):
        head.set(key, value)
    head.commit("own pictures")
    head.run("git", "clone", "-q", str(head.path), str(other.path))
    for clone in (head, other):
        (clone.path / "data/mine").symlink_to(pictures)
    head.run("env", "PYTHONPATH=", sys.executable, "-m", "stages.preprocess")
    expected = digests(head.path)
    with network([head.path, other.path]) as hosts:
        yield Cluster(hosts, expected)


@pytest.mark.soak
def test_two_machines_make_the_bytes_of_one(cluster: Cluster) -> None:
    head, other = cluster.start()
    cluster.succeeds(head)
    assert cluster.status(other) == 0
    place = f"{cluster.head.address}:29400"
    assert f"{cluster.other.address} joins with 1 process\n" in cluster.head.output()
    assert cluster.other.output().splitlines() == [
        f"joining {place} with 1 process; the head writes",
        "preprocess has decoded all pictures; the head has them",
    ]


@pytest.mark.soak
def test_the_other_machine_is_killed(cluster: Cluster) -> None:
    head, _ = cluster.start()
    cluster.wait_for_the_first_batch()
    cluster.other.kill()
    cluster.succeeds(head)
    assert f"{cluster.other.address} has ended: its pictures go to the other processes\n" in cluster.head.output()


@pytest.mark.soak
@pytest.mark.parametrize("of", ["all processes", "one worker"])
def test_the_other_machine_hangs(of: str, cluster: Cluster) -> None:
    head, other = cluster.start()
    cluster.wait_for_the_first_batch()
    processes = cluster.other.processes()
    frozen = processes if of == "all processes" else processes[-1:]  # the worker was started last
    cluster.other.signal(signal.SIGSTOP, frozen)
    cluster.wait(lambda: head.poll() is not None)
    cluster.other.signal(signal.SIGCONT, frozen)
    cluster.succeeds(head)
    assert f"{cluster.other.address} does not answer: its pictures go" in cluster.head.output()
    assert cluster.status(other) == 2
    assert f"error: {cluster.head.address}:29400: this machine does not answer\n" in cluster.other.output()


@pytest.mark.soak
def test_the_head_is_killed_and_resumes_alone(cluster: Cluster) -> None:
    _, other = cluster.start()
    cluster.wait_for_the_first_batch()
    cluster.wait(lambda: list((cluster.head.folder / "runs/pack").glob("*.json")))
    cluster.head.kill()
    assert cluster.status(other) == 2
    assert "has ended or cannot be reached; nothing runs here any more\n" in cluster.other.output()
    again = cluster.head.start([sys.executable, "-m", "stages.preprocess"], {**os.environ, "PYTHONPATH": ""})
    cluster.succeeds(again)
    assert "were decoded before" in cluster.head.output()


@pytest.mark.soak
def test_another_picture_on_the_other_machine_is_noticed(cluster: Cluster, tmp_path: Path) -> None:
    mine = cluster.other.folder / "data/mine"
    shutil.copytree(mine, tmp_path / "pictures")
    mine.unlink()
    mine.symlink_to(tmp_path / "pictures")
    for path in mine.glob("a/*.png"):
        path.write_bytes((mine / "b/1.png").read_bytes())
    head, other = cluster.start()
    cluster.succeeds(head)
    assert cluster.status(other) == 2
    line = r"error: this machine leaves 10.213.0.1:29400: data/mine: a/\S+ is another picture than on the head\n"
    assert re.search(line, cluster.other.output())
