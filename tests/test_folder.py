"""A folder of pictures, or archives, as a data set: layouts, order, what counts for nothing, and what is refused."""

import io
import os
import pickle
import random
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.common.errors import UserError
from stages.dataset import archives, folder
from stages.dataset.folder import Listing, Reader, scan
from stages.dataset.pictures import UnusablePictureError
from tests.imports import ROOT

FILES = ("cat/1.png", "cat/old/2, the \n second.jpg", "dog/ü 猫.png", "dog/3")


def fill(root: Path, names: Mapping[str, bytes] | tuple[str, ...]) -> Path:
    """Files of these names below `root`; the content of each is its name unless it is given."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(names[name] if isinstance(names, Mapping) else name.encode())
    return root


def rows(listing: Listing) -> list[tuple[str, str, str | None, str | None]]:
    return [(picture.name, listing.classes[picture.label], picture.part, picture.group) for picture in listing.pictures]


def test_a_folder_per_class(tmp_path: Path) -> None:
    listing = scan(fill(tmp_path, (*FILES, "README.md")))
    assert listing.layout == "a folder per class"
    assert rows(listing) == [(name, name.split("/")[0], None, None) for name in sorted(FILES)]
    assert listing.others == ["README.md"]
    reader = pickle.loads(pickle.dumps(Reader(tmp_path)))
    assert [reader.read(name) for name in FILES] == [name.encode() for name in FILES]


def test_part_folders(tmp_path: Path) -> None:
    names = ("train/a/1.png", "train/b/x/2.png", "val/a/3.png", "test/b/4.png")
    listing = scan(fill(tmp_path, names))
    assert listing.layout == "train, validation, test folders with a folder per class"
    assert [(row[1], row[2]) for row in rows(listing)] == [
        ("b", "test"),
        ("a", "train"),
        ("b", "train"),
        ("a", "validation"),
    ]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert scan(fill(tmp_path, ("train/1.png", "bus/2.png"))).classes == ("bus", "train")


TABLE = 'file,label,group,split\r\na.png,x,p1,train\r\n"b, c.png",y,,\r\nd/e.png,x,p2,Test\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_in_a_table(encoding: str, tmp_path: Path) -> None:
    fill(tmp_path, ("a.png", "b, c.png", "d/e.png", "not listed.png"))
    (tmp_path / "labels.csv").write_bytes(TABLE.encode(encoding))
    listing = scan(tmp_path)
    assert listing.layout == "labels.csv"
    assert rows(listing) == [
        ("a.png", "x", "train", "p1"),
        ("b, c.png", "y", None, None),
        ("d/e.png", "x", "test", "p2"),
    ]
    assert listing.others == ["not listed.png"]


def test_the_order_of_the_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scan(fill(tmp_path, tuple(f"{name}/{number}.png" for name in "bca" for number in range(30))))
    order, scandir = random.Random(0), os.scandir

    class Shuffled:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = list(entries)
            order.shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *exception: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert scan(tmp_path) == expected


JUNK = (
    ".hidden.png",
    ".git/1.png",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/cat/1.png",
    "cat/.DS_Store",
    "cat/._1.png",
    "cat/Thumbs.db",
    "cat/1.png~",
    "cat/1.png.tmp",
    "cat/1.png.orig",
    "cat/__pycache__/1.png",
)


def test_what_programs_leave_behind_counts_for_nothing(tmp_path: Path) -> None:
    expected = scan(fill(tmp_path, FILES))
    assert scan(fill(tmp_path, JUNK)) == expected
    (tmp_path / "empty class").mkdir()
    assert scan(tmp_path) == expected


def test_what_dvc_does_not_count_is_not_read() -> None:
    """A picture that DVC ignores would change the results and no hash."""
    patterns = [
        line for line in (ROOT / ".dvcignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    names = [pattern.strip("/\\").replace("[co]", "c").replace("[a-p]", "p").replace("*", "x") for pattern in patterns]
    anywhere = [name for name, pattern in zip(names, patterns, strict=True) if not pattern.startswith("/")]
    assert len(anywhere) > 15
    assert [name for name in anywhere if not folder.ignored(name)] == []


def test_links_are_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", ("1.png",))
    fill(tmp_path / "data", ("a/1.png",))
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/b2.png").symlink_to("nowhere")
    (tmp_path / "data/a/2.png").symlink_to("nowhere")
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "data/b2.png").unlink()
    listing = scan(tmp_path / "link")
    assert [picture.name for picture in listing.pictures] == ["a/1.png", "a/2.png", "b/1.png"]
    with pytest.raises(UnusablePictureError, match="a link to nowhere, which does not exist"):
        Reader(tmp_path / "link").read("a/2.png")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnusablePictureError, match="a device, pipe or socket"):
        Reader(tmp_path).read("pipe")


def circle(root: Path) -> None:
    fill(root, FILES)
    (root / "cat/again").symlink_to(root)


def not_utf8(root: Path) -> None:
    fill(root, FILES)
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/\xff.png")).write_bytes(b"")


def table(content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda root: fill(root, {"a.png": b"", "b.png": b"", "labels.csv": raw})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root: root.rmdir(), "no such folder; set data.images"),
        (lambda root: None, "contains no pictures; set data.images"),
        (lambda root: fill(root, (".gitkeep",)), "contains no pictures"),
        (lambda root: fill(root, ("a/1.png", "a/2.png")), "has one class, a; at least two are needed"),
        (lambda root: fill(root, ("1.png", "a/1.png", "b/2.png")), "1.png is not in a class folder; move it"),
        (lambda root: fill(root, ("Cat/1.png", "cat/2.png")), "the classes 'Cat' and 'cat' differ only in case"),
        (lambda root: fill(root, ("\u00e9/1.png", "e\u0301/2.png")), "differ only in case, blanks or encoding"),
        (
            lambda root: fill(root, ("train/a/1.png", "train/b/1.png", "test/c/1.png")),
            "test has the class c, which train lacks",
        ),
        (lambda root: fill(root, ("train/a/1", "val/a/1", "validation/a/1")), "val and validation are the same part"),
        (lambda root: fill(root, ("train/a/1", "test/a/1", "extra/1")), "has the folders test, train beside extra"),
        (lambda root: fill(root, ("val/a/1", "test/a/1")), "has the folders test, val beside no train"),
        (circle, "a link to a folder that contains it"),
        (not_utf8, r"the name b'\\xff.png' is not UTF-8; rename it"),
        (table("file;label\na.png;x\n"), "its columns are file;label; expected file, label"),
        (table("file,label,lable\n"), "its columns are file, label, lable; expected"),
        (table(""), "its columns are none; expected"),
        (table("file,label\na.png,x\nc.png,y\n"), "labels.csv:3: c.png: no such file beside it"),
        (table("file,label\n../a.png,x\n"), "labels.csv:2: ../a.png: no such file beside it"),
        (table("file,label\na.png,x\na.png,y\n"), "labels.csv:3: a.png: is listed twice"),
        (table("file,label\na.png,x\nb.png,\n"), "labels.csv:3: b.png: has no label"),
        (table("file,label\na.png\n"), "labels.csv:2: the number of columns differs"),
        (table("file,label\na.png,x,y\n"), "labels.csv:2: the number of columns differs"),
        (table('file,label\n"a.png,x\n'), "not valid CSV"),
        (table("file,label,split\na.png,x,dev\n"), "split is dev; allowed: train, validation, val, test"),
        (table("file,label\na.png,x\nb.png,x\n"), "has one class, x"),
        (table("file,label\nä.png,x\n".encode("latin-1")), "labels.csv: not UTF-8 text (byte 11)"),
        (table("file,label\na.png,x\n".encode("utf-16")), "labels.csv: not UTF-8 text (byte 0)"),
    ],
)
def test_what_is_no_data_set_is_one_line(make: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    with pytest.raises(UserError) as error:
        scan(root)
    assert expected.replace(r"\\", "\\") in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).startswith(str(root))


def test_many_mistakes_of_a_table_are_cut_short(tmp_path: Path) -> None:
    table("file,label\n" + "".join(f"{number}.png,x\n" for number in range(100)))(tmp_path)
    with pytest.raises(UserError) as error:
        scan(tmp_path)
    assert len(str(error.value).splitlines()) == 11
    assert str(error.value).endswith("labels.csv: 90 more such lines")


# --- archives


def zipped(path: Path, names: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, names: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path


CONTENTS = {name: name.encode() * 100 for name in FILES}
PACKERS = {"set.zip": zipped, "set.tar": tarred, "set.tar.gz": tarred}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("wrapper", ["", "set-1.0/", "a/b/"])
def test_an_archive_is_read_as_the_folder_it_would_unpack_to(name: str, wrapper: str, tmp_path: Path) -> None:
    junk = {f"{wrapper}.hidden": b"", "__MACOSX/x": b"", f"{wrapper}cat/Thumbs.db": b""}
    path = PACKERS[name](tmp_path / name, {wrapper + key: value for key, value in CONTENTS.items()} | junk)
    for root in (path, tmp_path):  # the archive, or the folder that holds it alone
        listing = scan(root)
        assert listing.layout == "a folder per class, in an archive"
        assert rows(listing) == [(f"{name}/{wrapper}{path}", path.split("/")[0], None, None) for path in sorted(FILES)]
        assert [Reader(root).read(picture.name) for picture in listing.pictures] == [
            CONTENTS[path] for path in sorted(FILES)
        ]
        assert Reader(root).stamp(listing.pictures[0].name) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing was unpacked


def test_several_archives_count_as_one_folder(tmp_path: Path) -> None:
    zipped(tmp_path / "1.zip", {"train/a/1": b"1", "train/b/2": b"2"})
    tarred(tmp_path / "2.tar.gz", {"train/a/1": b"3", "test/b/4": b"4"})
    listing = scan(tmp_path)
    assert listing.layout == "train, test folders with a folder per class, in 2 archives"
    assert [Reader(tmp_path).read(picture.name) for picture in listing.pictures] == [b"1", b"2", b"4", b"3"]


def test_a_table_in_an_archive(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "set.zip", {"x/a.png": b"1", "x/b.png": b"2", "x/labels.csv": b"file,label\na.png,u\nb.png,v\n"}
    )
    assert rows(scan(path)) == [("set.zip/x/a.png", "u", None, None), ("set.zip/x/b.png", "v", None, None)]


def test_a_gzipped_archive_is_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "STATE_BYTES", 5000)
    source = random.Random(0)
    contents = {
        f"{label}/{number}": source.randbytes(source.randrange(30_000)) for label in "ab" for number in range(60)
    }
    path = tarred(tmp_path / "set.tar.gz", contents)
    names = [picture.name for picture in scan(path).pictures]
    source.shuffle(names)
    assert all(Reader(path).read(name) == contents[name.partition("/")[2]] for name in names)


def test_a_gzipped_archive_is_read_by_several_threads(tmp_path: Path) -> None:
    """As by the processes that decode for another machine."""
    source = random.Random(0)
    contents = {f"{label}/{number}": source.randbytes(30_000) for label in "ab" for number in range(20)}
    path = tarred(tmp_path / "set.tar.gz", contents)
    names = [picture.name for picture in scan(path).pictures] * 5
    source.shuffle(names)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(Reader(path).read, names))
    finally:
        sys.setswitchinterval(interval)
    assert read == [contents[name.partition("/")[2]] for name in names]


def test_links_in_a_tar_stay_inside_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    links = {"b/2": "../a/1", "b/3": "../../secret", "b/4": str(tmp_path / "secret"), "b/5": "5", "b/6": "2"}
    path = tarred(tmp_path / "set.tar", {"a/1": b"one"}, links)
    read = Reader(path).read
    assert (read("set.tar/b/2"), read("set.tar/b/6")) == (b"one", b"one")
    for name in ("b/3", "b/4", "b/5"):
        with pytest.raises(UnusablePictureError, match="a link to|not a plain file"):
            read(f"set.tar/{name}")


def test_a_link_in_a_zip_is_not_followed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        link = zipfile.ZipInfo("a/1")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UnusablePictureError, match="a link, which is not followed"):
        Reader(tmp_path / "set.zip").read("set.zip/a/1")


def bomb_zip(path: Path) -> None:
    zipped(path, {"a/1.png": bytes(140_000_000), "b/1.png": b""})


def bomb_tar(path: Path) -> None:
    tarred(path, {"a/1.png": bytes(140_000_000), "b/1.png": b""})


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def encrypted(path: Path) -> None:
    zipped(path, CONTENTS)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("set.zip", lambda path: zipped(path, {"a/../../x.png": b""}), "a path that leads out of it"),
        ("set.zip", lambda path: zipped(path, {"/x.png": b""}), "a path that leads out of it"),
        ("set.zip", lambda path: zipped(path, {"a\\..\\x.png": b""}), "a path that leads out of it"),
        ("set.tar", lambda path: tarred(path, {"../x.png": b""}), "a path that leads out of it"),
        ("set.zip", bomb_zip, "refused as a bomb"),
        ("set.tar.gz", bomb_tar, "refused as a bomb"),
        ("set.zip", encrypted, "is encrypted"),
        ("set.zip", lambda path: path.write_bytes(b"no zip"), "cannot be read as an archive"),
        ("set.tar", lambda path: path.write_bytes(b"no tar" * 500), "cannot be read as an archive"),
        ("set.tar.gz", lambda path: path.write_bytes(b"no gzip" * 500), "cannot be read as an archive"),
        ("set.zip", lambda path: cut(zipped(path, CONTENTS), 0.9), "cannot be read as an archive"),
        ("set.tar", lambda path: cut(tarred(path, {"a/1": bytes(50_000)}), 0.5), "cannot be read as an archive"),
        (
            "set.tar.gz",
            lambda path: cut(tarred(path, {"a/1": random.Random(0).randbytes(50_000)}), 0.5),
            "cannot be read as an archive",
        ),
        ("set.tar", lambda path: cut(tarred(path, {}, {"a/1": "x"}), 0), "cannot be read as an archive"),
        (
            "set.rar",
            lambda path: path.write_bytes(b"Rar!"),
            "is neither a folder nor an archive (.zip, .tar, .tar.gz, .tgz)",
        ),
    ],
)
def test_a_hostile_or_damaged_archive_is_one_line(
    name: str, make: Callable[[Path], object], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(UserError) as error:
        scan(path)
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_in_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/1", b"1")
        archive.writestr("a/1", b"2")
    with pytest.raises(UserError, match="contains a/1 twice"):
        scan(tmp_path)


def test_a_file_that_is_damaged_inside_a_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"a/1": random.Random(0).randbytes(1000)})
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnusablePictureError, match="damaged in its archive"):
        Reader(path).read("set.zip/a/1")
