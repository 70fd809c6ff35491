"""`python -m use.predict`: the predictions of the pipeline from picture files, unreadable pictures, and resuming."""

import csv
import fcntl
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, get_args

import fsspec
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from export import runtime
from stages.common import paths
from stages.common.errors import UserError
from stages.common.preparation import Preparation
from stages.dataset import folder, idx, pictures
from stages.network import inference, model_file, models
from stages.network.model_file import Spec
from tests import servers
from tests.clones import Clone
from tests.imports import ROOT
from tests.remote_servers import s3
from use import load, predict, prepare, rows, sources
from use.classifier import Classifier
from use.journal import Entry, Journal
from use.model import Ranked
from use.prepare import Pixels, Prepared

PARITY = 600  # pictures: three parts, the last of which is not full
DARK = 0.13  # mean of MNIST's pixels


def png(pixels: Pixels | Image.Image) -> bytes:
    """A picture file. pixels: (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "png")
    return buffer.getvalue()


def digit(seed: int = 0) -> Pixels:
    """A light rectangle on black, (28, 28)."""
    pixels = np.zeros((28, 28), dtype=np.uint8)
    pixels[6:22, 10:18] = np.random.default_rng(seed).integers(100, 256, (16, 8))
    return pixels


def spec(preparation: Preparation | None = None) -> Spec:
    return Spec(
        format=1 if preparation is None else 2,
        model="mlp",
        options={"hidden": 16, "depth": 1, "dropout": 0.0},
        image_shape=[1, 28, 28] if preparation is None else list(preparation.shape),
        classes=["zero", "one", "two"],
        output="softmax",
        preparation=preparation,
    )


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an untrained model, and numerics that a process may set more than once."""
    text = (ROOT / paths.PARAMS).read_text(encoding="utf-8").replace("numerics: portable", "numerics: fast")
    (tmp_path / paths.PARAMS).write_text(text, encoding="utf-8")
    torch.manual_seed(0)
    described = spec()
    network = models.build(described.model, described.options, (1, 28, 28), 3, [DARK], [0.3])
    monkeypatch.chdir(tmp_path)
    model_file.write(paths.MODEL, network, described)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "use.predict", *arguments]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=120, **options)


# --- the pipeline's own predictions


def test_the_test_set_as_png_files_gives_the_rows_that_evaluate_wrote(pipeline: Clone, tmp_path: Path) -> None:
    images = idx.decode((pipeline.path / paths.TEST_IMAGES).read_bytes())
    for index in range(PARITY):
        (tmp_path / f"{index:05}.png").write_bytes(png(images[index]))
    done = run(str(tmp_path), "--format=csv", "--top=10", cwd=pipeline.path, env=pipeline.environment)
    assert done.returncode == 0, done.stderr
    expected = pd.read_csv(pipeline.path / paths.PREDICTIONS, dtype=str)
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [Path(row["file"]).stem for row in found] == [f"{index:05}" for index in range(PARITY)]
    for row, (_, wanted) in zip(found, expected.head(PARITY).iterrows(), strict=True):
        probabilities = {f"p_{row[f'class_{rank}']}": row[f"probability_{rank}"] for rank in range(1, 11)}
        assert (row["class_1"], row["probability_1"]) == (wanted["prediction"], wanted["probability"])
        assert probabilities == {column: wanted[column] for column in expected.columns if column.startswith("p_")}


def test_the_model_of_a_revision_comes_from_the_cache_and_a_damaged_one_is_refused(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.path)
    for name, value in clone.environment.items():
        monkeypatch.setenv(name, value)
    here = load.load(str(paths.MODEL))
    clone.run("git", "tag", "v1")
    paths.MODEL.unlink()
    assert load.load("v1").sha256 == here.sha256
    clone.run("git", "checkout", "-qb", "without-a-lock")
    clone.run("git", "rm", "-q", "--cached", "dvc.lock")
    clone.run("git", "commit", "-qm", "no lock")
    with pytest.raises(UserError, match="has no dvc.lock"):
        load.load("without-a-lock")
    lock = (clone.path / "dvc.lock").read_text(encoding="utf-8")
    md5 = lock.partition(f"path: {paths.MODEL}\n")[2].partition("md5: ")[2][:32]
    cached = clone.path / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    content = cached.read_bytes()
    remote = next(clone.path.parent.glob(f"dvc-remote/files/md5/{md5[:2]}/{md5[2:]}"))
    for copy in (cached, remote):
        copy.chmod(0o644)
        copy.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="damaged in the cache.*remote 'beside': damaged"):
            load.load("v1")
    finally:
        for copy in (cached, remote):
            copy.write_bytes(content)
        clone.run("git", "tag", "-d", "v1")
    with pytest.raises(UserError, match="unknown revision 'nosuch'"):
        load.load("nosuch")
    with pytest.raises(UserError, match="no such file"):
        load.load("nosuch.safetensors")


# --- the command


def test_an_unreadable_picture_is_a_row_with_the_reason_and_all_others_are_predicted(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # as in a locale such as en_US.UTF-8
    Path("a.png").write_bytes(png(digit()))
    Path("b.png").write_bytes(b"no picture")
    Path("paper.png").write_bytes(png(255 - digit()))
    names = "a.png\n\nb.png\nnosuch.png\r\n\udcff.png\npaper.png"  # the last line has no end, one name is not UTF-8
    done = run("-", "--format=jsonl", input=names, errors="surrogateescape")
    assert done.returncode == 3
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["file"] for row in found] == ["a.png", "b.png", "nosuch.png", "?.png", "paper.png"]
    assert found[1]["error"].startswith("not a picture")
    assert found[2]["error"] == "No such file or directory"
    assert not found[0]["inverted"]
    assert found[3]["error"] == "No such file or directory"
    assert found[4]["inverted"]
    assert found[0]["classes"] == found[4]["classes"]  # as it is the same digit, inverted
    assert sum(each["probability"] for each in found[0]["classes"]) == pytest.approx(1, abs=1e-5)
    assert "could not be read: 3 of 5 pictures" in done.stderr
    assert "inverted before classification: 1 of 5 pictures" in done.stderr

    left = run("a.png", "paper.png", "--invert=no", "--top=1", "--out=rows.json", "--format=json")
    assert left.returncode == 0
    assert "look swapped, compared with the training pictures: 1 of 2 pictures" in left.stderr
    assert [row["inverted"] for row in json.loads(Path("rows.json").read_text())] == [False, False]
    assert sorted(path.name for path in workplace.glob("rows*")) == ["rows.json"]


def test_a_model_is_a_regular_file(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe.safetensors", tmp_path / "folder.safetensors"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder):
        with pytest.raises(UserError, match="not a file"):
            load.load(str(path))
        with pytest.raises(UserError, match="not a file"):
            runtime.read_file(path)


def test_closed_streams_are_no_bug(workplace: Path) -> None:
    Path("a.png").write_bytes(png(digit()))
    program = shlex.join(command("a.png", "-", "--invert=yes", "--format=jsonl"))

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, timeout=120)

    done = shell(f"{program} <&- 2>&-")
    assert (done.returncode, [json.loads(line)["file"] for line in done.stdout.splitlines()]) == (0, ["a.png"])
    done = shell(f"{program} >&-")
    assert (done.returncode, done.stderr) == (2, "error: standard output is closed; use --out\n")


def test_a_run_without_pictures_keeps_what_is_in_its_output(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("empty").mkdir()
    Path("rows.csv").write_text("rows of another run")
    monkeypatch.setattr(sys, "argv", ["use.predict", "empty", "--out=rows.csv"])
    with pytest.raises(UserError, match="no pictures found"):
        predict.main()
    assert Path("rows.csv").read_text() == "rows of another run"
    assert not list(workplace.glob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "no pictures are given; name some, as in `make predict FILES="),
        (["empty"], "no pictures found"),
        (["a.png", "--out=nowhere/rows.csv"], "give a file in an existing folder"),
        (["a.png", "--out=/dev/null"], "not a file; without --out"),
        (["a.png", "--out=a.png"], "--out a.png: would replace a picture; give another name"),
        (["a.png", f"--out={paths.MODEL}"], "would replace a model; give another name"),
        (["a.png", "--model=nosuch.safetensors"], "no such file"),
        (["ftp://host/a.png"], "cannot read ftp URLs"),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(
    arguments: list[str], reason: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty").mkdir()
    Path("a.png").write_bytes(png(digit()))
    monkeypatch.setattr(sys, "argv", ["use.predict", *arguments])
    with pytest.raises(UserError, match=reason):
        predict.main()
    assert not list(workplace.glob("*.partial"))
    assert Path("a.png").read_bytes() == png(digit())


def test_a_killed_run_resumes_and_gives_the_same_rows(workplace: Path) -> None:
    Path("photos").mkdir()
    names = []
    for index in range(3 * inference.PART):
        names.append(f"photos/{index:04}.png")
        Path(names[-1]).write_bytes(png(digit(index)))
    arguments = ("-", "--format=csv", "--out=rows.csv")
    # Twice as many names as it needs for the rows of the first batch; standard input stays open.
    with subprocess.Popen(command(*arguments), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write("".join(f"{name}\n" for name in names))
        process.stdin.flush()
        journal = Path("rows.csv.partial")
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert not Path("rows.csv").exists()
    with journal.open("ab") as file:
        file.write(b'{"file": "photos/')  # what a kill during a write leaves
    before = journal.read_bytes().count(b"\n") - 1
    assert 0 < before < len(names)
    done = run(*arguments, input="\n".join(names))
    assert done.returncode == 0, done.stderr
    assert f"resuming after the {before:,} pictures" in done.stderr
    whole = run("photos", "--format=csv")
    assert Path("rows.csv").read_text() == whole.stdout
    assert len(whole.stdout.splitlines()) == 1 + len(names)
    assert not journal.exists()


def test_a_signal_ends_a_run_that_downloads(workplace: Path) -> None:
    requested = threading.Event()

    def slow(request: BaseHTTPRequestHandler) -> None:
        """Sends 160 kB/s without end: 256 MB, the limit, would take half an hour."""
        request.send_response(200)
        request.end_headers()
        requested.set()
        while True:
            request.wfile.write(b"x" * 16_000)
            time.sleep(0.1)

    with (
        servers.serving(slow) as url,
        subprocess.Popen(command(*[f"{url}/{index}.png" for index in range(40)]), stderr=subprocess.PIPE) as process,
    ):
        assert requested.wait(timeout=600)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.decode().splitlines()[-1].startswith("interrupted: ")


def test_a_row_does_not_depend_on_the_other_pictures(workplace: Path) -> None:
    classifier = Classifier(str(paths.MODEL))
    many = np.stack([digit(seed)[None] for seed in range(40)])
    for part_size in (None, 16):
        together = classifier.classify(many, part_size=part_size)
        for index in (0, 17, 39):
            assert (classifier.classify(many[index : index + 1], part_size=part_size)[0] == together[index]).all()


# --- where pictures come from


def test_folders_patterns_and_names_are_expanded_in_one_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "b/2.png",
        "b/1.JPG",
        "b/c/0.webp",
        "b/notes.txt",
        "b/.hidden.png",
        "b/.git/x.png",
        "a[1].png",
        "z.gif",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    Path("b/loop").symlink_to("..")
    everything = ["b/1.JPG", "b/2.png", "b/c/0.webp"]
    assert list(sources.expand(["b"], [])) == everything
    assert list(sources.expand(["b/*.png", "-", "nosuch*.png"], ["z.gif\n", "\n", "b"])) == [
        "b/2.png",
        "z.gif",
        *everything,
        "nosuch*.png",
    ]
    assert list(sources.expand(["a[1].png"], [])) == ["a[1].png"]  # a file that is called so
    assert list(sources.expand([str(tmp_path / "b*")], [])) == [str(tmp_path / name) for name in everything]
    assert list(sources.expand(["b/**/*.webp"], [])) == ["b/c/0.webp"]
    with pytest.raises(UserError, match="cannot read ftp URLs; allowed: http, https, s3"):
        list(sources.expand(["ftp://user:secret@host/a.png"], []))
    with pytest.raises(UserError, match="the name of a picture is empty"):
        list(sources.expand([""], []))


@contextmanager
def permissions_apply() -> Iterator[None]:
    """A block in which permissions are checked, as they are not for root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_name_that_cannot_be_reached_is_a_row_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    private = Path("photos/private")
    private.mkdir(parents=True)
    for name in (private / "a.png", Path("photos/z.png")):
        name.write_bytes(png(digit()))
    for path, mode in ((tmp_path, 0o755), (Path("photos"), 0o755), (private, 0)):
        path.chmod(mode)
    long = "x" * 300
    lines = ["photos/private/a.png", "photos/private/*.png", "photos", f"{long}\n", f"photo*/{long}", "a\0*"]

    def outcome(name: str) -> str:
        try:
            return f"{len(sources.read(name))} bytes"
        except sources.UnreadablePictureError as error:
            return str(error)

    with permissions_apply():
        found = [(name, outcome(name)) for name in sources.expand(["-"], lines)]
    private.chmod(0o755)
    assert found == [
        ("photos/private/a.png", "Permission denied"),
        ("photos/private/*.png", "Permission denied"),
        ("photos/private", "Permission denied"),
        ("photos/z.png", f"{len(png(digit()))} bytes"),
        (long, "File name too long"),
        (f"photo*/{long}", "No such file or directory"),
        ("a\0*", "embedded null byte"),
    ]
    with pytest.raises(UserError, match=re.escape("photos/**.png: Invalid pattern: '**' can only be")):
        list(sources.expand(["photos/**.png"], []))


def test_folders_may_be_nested_deeply(tmp_path: Path) -> None:
    folders = [tmp_path]
    for _ in range(sys.getrecursionlimit() + 100):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    picture = folders[-1] / "a.png"
    picture.touch()
    try:
        assert list(sources.expand([str(tmp_path)], [])) == [str(picture)]
        with pytest.raises(UserError, match="recursion"):
            list(sources.expand([f"{tmp_path}/**/*.png"], []))
    finally:  # pytest could not delete them
        picture.unlink()
        for nested in reversed(folders[1:]):
            nested.rmdir()


def test_standard_input_without_line_ends_is_an_error() -> None:
    assert list(predict.lines(io.StringIO("a\nb"))) == ["a\n", "b"]
    with Path("/dev/zero").open(encoding="utf-8") as endless, pytest.raises(UserError, match="give one name per line"):
        list(predict.lines(endless))


def test_suffixes_are_those_of_formats_that_can_be_decoded() -> None:
    registered = Image.registered_extensions()
    assert {registered[suffix] for suffix in folder.SUFFIXES} == set(pictures.FORMATS)


def test_only_regular_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    for name, reason in (
        ("/dev/zero", "not a file"),
        (str(tmp_path), "not a file"),
        (str(tmp_path / "large"), "larger than 10 bytes"),
        ("a\0b", "null"),
        (str(tmp_path / "nosuch"), "No such file"),
    ):
        with pytest.raises(sources.UnreadablePictureError, match=reason):
            sources.read(name)


def test_pictures_are_read_over_http_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    content = png(digit())
    with servers.serving(servers.sending(content)) as url:
        assert sources.read(f"{url}/a.png") == content
    monkeypatch.setattr(sources, "MAX_BYTES", 1_000_000)
    for answer, reason in (
        (servers.endless, "larger than"),
        (servers.not_found, "no such file"),
        (servers.broken, "500"),
    ):
        with servers.serving(answer) as url, pytest.raises(sources.UnreadablePictureError, match=reason):
            sources.read(f"{url}/a.png")


# --- preparation


def test_a_grey_picture_of_the_right_size_is_not_changed() -> None:
    prepared = prepare.prepare(png(digit()), spec(), DARK, "auto")
    assert (prepared.pixels == digit()[None]).all()
    assert not prepared.inverted


def test_padding_has_the_grey_of_the_border() -> None:
    wide = np.full((40, 100), 200, dtype=np.uint8)
    wide[15:25, 40:60] = 20
    pixels = prepare.like_published(png(wide), [1, 28, 28])
    assert pixels.shape == (1, 28, 28)
    assert (pixels[0, :6] == 200).all()
    assert pixels.min() < 120


def test_black_ink_on_a_transparent_background_is_visible() -> None:
    ink = np.zeros((56, 56, 4), dtype=np.uint8)
    ink[10:40, 20:36, 3] = 255  # black, on a transparent ground
    prepared = prepare.prepare(png(ink), spec(), DARK, "auto")
    assert prepared.inverted
    assert prepared.pixels[0, 12, 14] == 255
    assert prepared.pixels[0, 0, 0] == 0


def test_pictures_are_prepared_as_the_model_file_states() -> None:
    preparation = Preparation(channels="rgb", image_size=[8, 8], resize="crop", background=[255, 255, 255])
    content = png(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    prepared = prepare.prepare(content, spec(preparation), DARK, "auto")
    assert (prepared.pixels == pictures.decode(content, preparation)).all()


@pytest.mark.parametrize(
    ("pixels", "training_mean", "looks"),
    [
        (digit(), DARK, False),
        (255 - digit(), DARK, True),
        (digit(), 1 - DARK, True),
        (255 - digit(), 1 - DARK, False),
        (255 - digit(), 0.45, False),  # pictures of all kinds: no decision
        (np.pad(np.full((26, 26), 250, dtype=np.uint8), 1), DARK, False),  # light, on a dark ground
    ],
)
def test_inversion_depends_on_the_whole_picture_and_its_border(
    pixels: Pixels, training_mean: float, looks: bool
) -> None:
    assert prepare.looks_inverted(pixels[None], training_mean) is looks
    content = png(pixels)
    outcomes: dict[prepare.Invert, bool] = {"auto": looks, "yes": True, "no": False}
    for invert, inverted in outcomes.items():
        prepared = prepare.prepare(content, spec(), training_mean, invert)
        assert (prepared.looks_inverted, prepared.inverted) == (looks, inverted)
        assert (prepared.pixels[0] == (255 - pixels if inverted else pixels)).all()


def test_colour_pictures_do_not_look_inverted() -> None:
    assert not prepare.looks_inverted(np.full((3, 8, 8), 255, dtype=np.uint8), DARK)


# --- rows


ROWS: list[dict[str, Any]] = [
    {
        "file": 'a,"\n\udcff.png',
        "inverted": True,
        "looks_inverted": True,
        "classes": [{"class": "é", "probability": 0.5}],
    },
    {"file": "b\r.png", "error": "damaged"},
]


@pytest.mark.parametrize("format", get_args(rows.Format))
def test_any_name_can_be_a_row(format: rows.Format) -> None:
    text = "".join(rows.text(iter(ROWS), format, 1, ["é"])).encode("utf-8", "backslashreplace").decode()
    if format == "json":
        assert json.loads(text) == ROWS
        assert json.loads("".join(rows.text([], format, 1, ["é"]))) == []
    elif format == "jsonl":
        assert [json.loads(line) for line in text.splitlines()] == ROWS
    elif format == "csv":
        assert list(csv.reader(io.StringIO(text))) == [
            ["file", "class_1", "probability_1", "inverted", "error"],
            ['a,"\n\\udcff.png', "é", "0.500000", "true", ""],
            ["b\r.png", "", "", "", "damaged"],
        ]
    else:
        assert text.splitlines() == ['é  50.00%  a,"??.png  (inverted)', "error: damaged  b?.png"]


def test_rows_have_six_decimals_and_reasons_one_line() -> None:
    picture = Prepared(digit()[None], looks_inverted=False, inverted=False)
    row = rows.predicted("a", [Ranked("x", 0.123456789)], picture)
    assert row["classes"] == [{"class": "x", "probability": 0.123457}]
    assert rows.unreadable("a", "one\n\x1btwo")["error"] == "one ?two"


# --- the journal


def journal(folder: Path, model: str = "a") -> Journal:
    return Journal(folder / "rows.csv", {"model": model})


def unchanged(name: str) -> list[int]:
    """The stamps of `written`."""
    return [int(name), 0]


def written(folder: Path, count: int = 3) -> Path:
    with journal(folder) as rows:
        rows.append(Entry({"file": str(index)}, [index, 0]) for index in range(count))
    return folder / "rows.csv.partial"


@pytest.mark.parametrize("tail", [b"", b'{"file"', b"\0" * 50, b"\0" * 50 + b"\n", b"1\n"])
def test_a_damaged_journal_keeps_its_complete_rows(tail: bytes, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + tail)
    with journal(tmp_path) as rows:
        assert list(rows.read()) == [{"file": "0"}, {"file": "1"}, {"file": "2"}]
        assert list(rows.skip(iter("01234"), unchanged)) == ["3", "4"]
        rows.append([Entry({"file": "3"}, None)])
    with journal(tmp_path) as rows:
        assert rows.rows == 4


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_rows_from_a_changed_picture_on_are_dropped(changed: int, tmp_path: Path) -> None:
    written(tmp_path)
    with journal(tmp_path) as rows:
        names = rows.skip(iter("0123"), lambda name: [int(name), int(int(name) == changed)])
        assert list(names) == [str(index) for index in range(changed, 4)]
        assert list(rows.read()) == [{"file": str(index)} for index in range(changed)]
        rows.append([Entry({"file": "new"}, None)])
    with journal(tmp_path) as rows:
        assert [row["file"] for row in rows.read()] == [*map(str, range(changed)), "new"]


def test_the_stamp_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert sources.stamp(str(path)) is None
    path.write_bytes(b"1")
    first = sources.stamp(str(path))
    assert first is not None
    os.utime(path, ns=(0, first[1] + 1))
    assert sources.stamp(str(path)) != first
    assert sources.stamp("https://example.com/a.png") is None


def test_rows_of_another_model_are_dropped(tmp_path: Path) -> None:
    written(tmp_path)
    with journal(tmp_path, model="b") as rows:
        assert list(rows.read()) == []
    with journal(tmp_path) as rows:
        assert rows.rows == 0


def test_a_run_with_other_pictures_does_not_resume(tmp_path: Path) -> None:
    written(tmp_path)
    for names in (["0", "x", "2"], ["0", "1"]):
        with (
            journal(tmp_path) as rows,
            pytest.raises(UserError, match="a stopped run predicted other pictures"),
        ):
            rows.skip(iter(names), unchanged)


def test_notes_contain_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a\x1b[2J"
    folder.mkdir()
    written(folder)
    with journal(folder) as rows:
        predict.resumed(rows, iter("012"))
    assert "a?[2J/rows.csv.partial" in capsys.readouterr().err


def test_two_runs_do_not_write_one_output(tmp_path: Path) -> None:
    with journal(tmp_path), pytest.raises(UserError, match="another run is writing to it"), journal(tmp_path):
        pass


def test_a_journal_that_another_run_has_just_removed_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock = written(tmp_path), fcntl.flock

    def finished_before(file: Any, operation: int) -> None:
        path.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", finished_before)
    with pytest.raises(UserError, match="another run has just finished; run the command again"), journal(tmp_path):
        pass


def test_a_full_disk_is_an_error_that_names_the_journal(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # bytes per file
    try:
        with pytest.raises(OSError, match=r"rows\.csv\.partial"), journal(tmp_path) as rows:
            rows.append(Entry({"file": str(index)}, None) for index in range(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with journal(tmp_path) as rows:
        assert [row["file"] for row in rows.read()] == [str(index) for index in range(rows.rows)]
        assert rows.rows > 10


# --- objects of S3


def test_objects_of_s3_are_listed_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3(tmp_path) as remote:
        folder = remote.storage.parent / "photos"
        (folder / "more").mkdir(parents=True)
        for name in ("b.png", "a.png", "notes.txt", "more/c.png"):
            (folder / name).write_bytes(png(digit()))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", remote.secrets[0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", remote.secrets[1])
        monkeypatch.setenv("AWS_ENDPOINT_URL", remote.words["https://s3.example.com"])
        a, b, c = (f"s3://bucket/photos/{name}" for name in ("a.png", "b.png", "more/c.png"))
        assert list(sources.expand(["s3://bucket/photos/"], [])) == [a, b, c]
        assert list(sources.expand(["s3://bucket/photos/b*", b], [])) == [b, b]
        assert sources.read(a) == png(digit())
        with pytest.raises(sources.UnreadablePictureError, match="no such file"):
            sources.read("s3://bucket/photos/nosuch.png")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(sources.UnreadablePictureError):
            sources.read(a)
        with pytest.raises(UserError, match="cannot be listed"):
            list(sources.expand(["s3://bucket/photos/"], []))
    fsspec.filesystem("s3").clear_instance_cache()
