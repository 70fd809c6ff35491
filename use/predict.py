"""Predict the classes of pictures: `python -m use.predict a.png photos/`, or `make predict FILES="a.png photos/"`.

A regression predicts values. Pictures are prepared like the training pictures. A picture that cannot be read becomes a
row with the reason, and all others are predicted. With --out, a killed run resumes where it stopped. Not a stage.
Exit status: 0; 3 if some pictures could not be read; 2 for any error.
"""

import argparse
import importlib.util
import io
import itertools
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from stages.common import errors, files, paths
from stages.common.errors import UserError
from stages.dataset import pictures
from stages.dataset.pictures import UnusablePictureError
from use import rows, sources
from use.journal import Entry, Journal, Row
from use.model import Model, Outputs
from use.prepare import Invert, Map, Prepared
from use.sources import UnreadablePictureError

UNREADABLE = 3  # exit status
BATCH = 256  # pictures that a thread classifies at a time
GROUP = 16  # pictures that a thread decodes at a time
LINE_SECONDS = 30  # between two progress lines, if standard error is not a terminal
MAX_NAME = 65_536  # characters of a line of standard input

Decoded = tuple[str, list[int] | None, Prepared | str]  # name, stamp, and the picture or the reason why there is none


class Tally:
    """Counts rows, shows the progress, and prints a summary."""

    def __init__(self, show_progress: bool) -> None:
        self.bar = tqdm(unit=" pictures", disable=not (show_progress and sys.stderr.isatty()))
        self.print_lines = show_progress and not sys.stderr.isatty()
        self.pictures = self.unreadable = self.inverted = self.left_inverted = 0
        self.next_line = time.monotonic() + LINE_SECONDS

    def count(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.pictures += 1
            self.unreadable += "error" in row
            self.inverted += row.get("inverted", False)
            self.left_inverted += row.get("looks_inverted", False) and not row["inverted"]
            self.bar.update()
        if self.print_lines and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_SECONDS
            print(f"{self.pictures:,} pictures", file=sys.stderr, flush=True)

    def report(self) -> None:
        """Print what the user needs to know about the rows."""
        self.bar.close()
        if self.inverted:
            _note(f"inverted before classification: {self.inverted:,} of {self.pictures:,} pictures")
        if self.left_inverted:
            _note(
                f"light and dark look swapped, compared with the training pictures: {self.left_inverted:,} of "
                f"{self.pictures:,} pictures; --invert auto swaps them back"
            )
        if self.unreadable:
            _note(f"could not be read: {self.unreadable:,} of {self.pictures:,} pictures")


def main() -> int:
    """Predict; returns the exit status."""
    arguments = parser().parse_args()
    if not arguments.pictures:
        raise UserError('no pictures are given; name some, as in `make predict FILES="a.png photos/"`')
    if arguments.out:
        check_out(arguments.out)
    elif sys.stdout is None:
        raise UserError("standard output is closed; use --out")
    sys.stderr = sys.stderr or io.StringIO()  # None: closed by the caller
    model = load(arguments.runtime, arguments.model)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names that are not UTF-8, as in arguments
    names = sources.expand(arguments.pictures, lines(sys.stdin or io.StringIO()))  # None: closed by the caller
    tally = Tally(show_progress=arguments.out is not None or not sys.stdout.isatty())
    classes = model.spec.classes
    top = min(arguments.top, len(classes))
    if arguments.out is None:
        predictions = counted(predict(names, model, arguments.invert, top), tally)
        table = (entry.row for entry in itertools.chain.from_iterable(predictions))
        for part in rows.text(table, arguments.format, top, classes):
            sys.stdout.write(part)
    else:
        settings = {"model": model.sha256, "invert": arguments.invert, "top": top, "format": 2}
        with Journal(arguments.out, settings) as journal:
            names = resumed(journal, names)
            tally.count(journal.read())
            for batch in counted(predict(names, model, arguments.invert, top), tally):
                journal.append(batch)
            if journal.rows:  # else keep what is there
                text = rows.text(journal.read(), arguments.format, top, classes)
                files.write_parts(arguments.out, (part.encode("utf-8", "backslashreplace") for part in text))
            journal.remove()
    tally.report()
    if not tally.pictures:
        raise UserError("no pictures found: nothing was predicted")
    return UNREADABLE if tally.unreadable else 0


def lines(stream: TextIO) -> Iterator[str]:
    """The lines of standard input. Raises UserError for one too long to be a name, such as a file without line ends."""
    while line := stream.readline(MAX_NAME):
        if len(line) == MAX_NAME and not line.endswith("\n"):
            raise UserError(f"standard input: a line has {MAX_NAME:,} characters or more; give one name per line")
        yield line


def check_out(path: Path) -> None:
    """Raise UserError if --out cannot be written, or would replace a picture or a model."""
    files.check_target(path)
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"--out {path}: not a file; without --out, the rows go to standard output")
    if path.suffix in (".safetensors", ".onnx"):
        raise UserError(f"--out {path}: would replace a model; give another name")
    try:
        pictures.facts(sources.read(str(path)))
    except (UnusablePictureError, UnreadablePictureError):
        return
    raise UserError(f"--out {path}: would replace a picture; give another name")


def resumed(journal: Journal, names: Iterator[str]) -> Iterator[str]:
    """The names of the pictures that have no row yet."""
    before = journal.rows
    names = journal.skip(names, sources.stamp)
    if journal.rows < before:
        _note(f"a picture has changed: {before - journal.rows:,} rows of {journal.path} are dropped")
    if journal.rows:
        _note(f"resuming after the {journal.rows:,} pictures in {journal.path}")
    return names


def load(runtime: str, model: str | None) -> Model:
    """The model, in its runtime. Raises UserError."""
    if runtime == "onnx":  # without torch, which takes seconds to import and may not be installed
        from export.paths import MODEL
        from use.onnx_classifier import OnnxClassifier

        return OnnxClassifier(model or str(MODEL))
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed; use --runtime onnx, or install PyTorch with `make predict`")
    from use.classifier import Classifier

    return Classifier(model or str(paths.MODEL))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m use.predict", description="Predict the classes, or the values, of pictures."
    )
    add = parser.add_argument
    add(
        "pictures",
        nargs="*",
        metavar="PICTURE",
        help="file, folder, pattern, http(s) or s3 URL; -: read names from stdin",
    )
    add("--model", metavar="FILE|REV", help="model file, or commit, branch, tag or experiment")
    add(
        "--runtime",
        choices=("torch", "onnx"),
        default="torch",
        help="onnx: use the file of `make export`, without torch",
    )
    add("--top", type=_count, default=3, metavar="N", help="classes per picture (default: 3)")
    add("--format", choices=("table", "csv", "json", "jsonl"), default="table", help="default: table")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the rows to FILE, and resume after a kill; default: standard output",
    )
    add(
        "--invert",
        choices=("auto", "yes", "no"),
        default="auto",
        help="swap light and dark; auto: if they look swapped",
    )
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text[:9]) <= 65536):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 1 to 65536")
    return int(text)


def counted(batches: Iterator[list[Entry]], tally: Tally) -> Iterator[list[Entry]]:
    """Pass batches on, and count their rows."""
    for batch in batches:
        tally.count(entry.row for entry in batch)
        yield batch


def predict(names: Iterator[str], model: Model, invert: Invert, top: int) -> Iterator[list[Entry]]:
    """Yield rows in the order of the names, in batches. At most two batches of pictures are in memory."""
    stop = threading.Event()
    with ThreadPoolExecutor(model.threads) as pool, model.in_parallel() as parallel:
        try:
            decoded = decode(names, model, invert, pool, stop)
            while batch := list(itertools.islice(decoded, BATCH * model.threads)):
                yield classified(batch, model, top, parallel)
        finally:  # after a signal, do not wait for downloads
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def decode(
    names: Iterator[str], model: Model, invert: Invert, pool: ThreadPoolExecutor, stop: threading.Event
) -> Iterator[Decoded]:
    """Read and decode on all threads, a limited number of pictures ahead, in the order of the names."""

    def decode_group(names: list[str]) -> list[Decoded]:
        return [(name, sources.stamp(name), read(name, model, invert, stop)) for name in names]

    running: deque[Future[list[Decoded]]] = deque()
    while group := list(itertools.islice(names, GROUP)):
        running.append(pool.submit(decode_group, group))
        if len(running) > 2 * model.threads:
            yield from running.popleft().result()
    while running:
        yield from running.popleft().result()


def read(name: str, model: Model, invert: Invert, stop: threading.Event) -> Prepared | str:
    """A picture as the network sees it, or the reason why there is none."""
    try:
        return model.prepare(sources.read(name, stop), invert)
    except (UnusablePictureError, UnreadablePictureError) as error:
        return str(error)
    except MemoryError:
        return "not enough memory"


def classified(batch: list[Decoded], model: Model, top: int, parallel: Map) -> list[Entry]:
    """The rows of a batch."""
    pictures = [picture for _, _, picture in batch if isinstance(picture, Prepared)]
    outputs: Iterator[Outputs] = iter(())
    if pictures:
        outputs = iter(model.classify(np.stack([picture.pixels for picture in pictures]), parallel))

    def row(name: str, picture: Prepared | str) -> Row:
        if isinstance(picture, str):
            return rows.unreadable(name, picture)
        output = next(outputs)
        return rows.predicted(name, model.ranking(output, top), picture, model.value(output))

    return [Entry(row(name, picture), stamp) for name, stamp, picture in batch]


def _note(text: str) -> None:
    errors.print_line(f"note: {text}")


if __name__ == "__main__":
    errors.run_command(main, kept="with --out, the same command resumes after the finished rows")
