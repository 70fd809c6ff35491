"""Hosts as network namespaces: each has its own address, on one switch, without access to this machine's network."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PREFIX = "10.213.0."


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


class Host:
    """A network namespace, and the folder in which its programs run."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.address = f"{PREFIX}{number + 1}"
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], log: str = "log.txt"
    ) -> "subprocess.Popen[str]":
        """Start a program. Its output goes to the file runs/`log` in the folder."""
        (self.folder / "runs").mkdir(exist_ok=True)
        with (self.folder / "runs" / log).open("w") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=self.folder,
                env=dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def output(self, log: str = "log.txt") -> str:
        return (self.folder / "runs" / log).read_text()

    def processes(self) -> list[int]:
        """The process numbers of the namespace, without zombies."""
        for process in self.started:
            process.poll()
        numbers = [int(text) for text in ip("netns", "pids", self.name).split()]
        return [number for number in numbers if state(number) not in ("Z", "")]

    def signal(self, signum: int, processes: Sequence[int] | None = None) -> None:
        """Send a signal to all processes, or the given ones."""
        for number in self.processes() if processes is None else processes:
            with suppress(ProcessLookupError):
                os.kill(number, signum)

    def kill(self) -> None:
        """Kill all processes at once, as a power failure does."""
        while self.processes():
            self.signal(signal.SIGKILL)
        for process in self.started:
            process.wait(timeout=60)
        self.started.clear()

    def link(self, up: bool) -> None:
        """Plug the network cable in, or pull it out."""
        ip("-n", self.name, "link", "set", "eth0", "up" if up else "down")


def state(process: int) -> str:
    """The state of a process according to /proc; "" if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(") ")[2].split()[0]
    except OSError:
        return ""


@contextmanager
def hosts(folders: Sequence[Path]) -> Iterator[list[Host]]:
    """One host per folder, on one switch. Skips the test if namespaces cannot be created."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("hosts are network namespaces, which need root and the program ip (Debian: iproute2)")
    tag = f"t{os.getpid()}"
    switch, names = f"{tag}-switch", [f"{tag}-{number}" for number in range(len(folders))]
    made = [Host(name, number, folder) for number, (name, folder) in enumerate(zip(names, folders, strict=True))]
    try:
        try:
            for name in (switch, *names):
                ip("netns", "add", name)
            ip("-n", switch, "link", "add", "br0", "type", "bridge")
            ip("-n", switch, "link", "set", "br0", "up")
            for number, host in enumerate(made):
                pair = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", host.name)
                ip("-n", switch, *pair)
                ip("-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
                ip("-n", host.name, "link", "set", "lo", "up")
                ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
                host.link(up=True)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        yield made
    finally:
        for host in made:
            with suppress(subprocess.CalledProcessError):
                host.kill()
        for name in (*names, switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False, timeout=60)
