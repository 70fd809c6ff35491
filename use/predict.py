"""Predict the classes of pictures: `python -m use.predict a.png photos/`, or `make predict FILES="a.png photos/"`.

Of regression, the values. Pictures are prepared as training prepared its own. One that cannot be read is a row with the
reason, and all others are predicted. With --out the rows are kept as they come: a run that was killed goes on where it
was. Not a stage. Exit status: 0; 3 if a picture could not be read; 2 for any error.
"""

import argparse
import importlib.util
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stages.common import errors, files, paths
from stages.common.errors import UserError
from stages.dataset.pictures import UnusablePictureError
from use import rows, sources
from use.journal import Entry, Journal, Row
from use.model import Logs, Model
from use.prepare import Invert, Map, Prepared
from use.sources import UnreadablePictureError

UNREADABLE = 3  # exit status
BATCH = 256  # pictures that a thread classifies at a time
GROUP = 16  # pictures that a thread decodes at a time
LINE_SECONDS = 30  # between two lines about the progress, where the output is not a terminal

Decoded = tuple[str, list[int] | None, Prepared | str]  # a name, a stamp, and the picture or why there is none


class Tally:
    """What is said of all the rows at the end, and the progress before."""

    def __init__(self, bar: bool) -> None:
        self.bar = tqdm(unit=" pictures", disable=not (bar and sys.stderr.isatty()))
        self.lines = bar and not sys.stderr.isatty()
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
        if self.lines and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_SECONDS
            print(f"{self.pictures:,} pictures", file=sys.stderr, flush=True)

    def report(self) -> None:
        """Say what a person has to know."""
        self.bar.close()
        if self.inverted:
            _note(f"inverted before classification: {self.inverted:,} of {self.pictures:,} pictures")
        if self.left_inverted:
            _note(
                f"light and dark look swapped, against the training pictures, in {self.left_inverted:,} of "
                f"{self.pictures:,} pictures; --invert auto swaps them back"
            )
        if self.unreadable:
            _note(f"could not be read: {self.unreadable:,} of {self.pictures:,} pictures")


def main() -> int:
    """Predict; returns the exit status."""
    arguments = parser().parse_args()
    if arguments.out:
        files.check_target(arguments.out)
        if arguments.out.exists() and not arguments.out.is_file():
            raise UserError(f"--out {arguments.out}: is no file; without --out, the rows go to standard output")
    classifier = chosen(arguments.runtime, arguments.model)
    top = min(arguments.top, len(classifier.spec.classes))
    names = sources.expand(arguments.pictures, sys.stdin)
    tally = Tally(bar=arguments.out is not None or not sys.stdout.isatty())
    classes = classifier.spec.classes
    if arguments.out is None:
        predictions = counted(predict(names, classifier, arguments.invert, top), tally)
        lines = (entry.row for entry in itertools.chain.from_iterable(predictions))
        for part in rows.text(lines, arguments.format, top, classes):
            sys.stdout.write(part)
    else:
        settings = {"model": classifier.sha256, "invert": arguments.invert, "top": top, "format": 2}
        with Journal(arguments.out, settings) as journal:
            found = journal.rows
            names = journal.skip(names, sources.stamp)
            if journal.rows < found:
                _note(f"a picture has changed since: {found - journal.rows:,} rows of {journal.path} are dropped")
            if journal.rows:
                _note(f"going on after the {journal.rows:,} pictures that {journal.path} has")
            tally.count(journal.read())
            for batch in counted(predict(names, classifier, arguments.invert, top), tally):
                journal.append(batch)
            text = rows.text(journal.read(), arguments.format, top, classes)
            files.write_parts(arguments.out, (part.encode("utf-8", "backslashreplace") for part in text))
            journal.remove()
    tally.report()
    if not tally.pictures:
        raise UserError("no pictures there: nothing was predicted")
    return UNREADABLE if tally.unreadable else 0


def chosen(runtime: str, model: str | None) -> Model:
    """The model, in its runtime. Raises UserError."""
    if runtime == "onnx":  # without torch, which takes seconds to import and may not be installed
        from export.paths import MODEL
        from use.onnx_classifier import OnnxClassifier

        return OnnxClassifier(model or str(MODEL))
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is not installed here: --runtime onnx does without, and `make predict` installs it")
    from use.classifier import Classifier

    return Classifier(model or str(paths.MODEL))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m use.predict", description="Predict the classes, or the values, of pictures."
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="file, folder, pattern, http(s) or s3 URL; -: a name per line")
    add("--model", metavar="FILE|REV", help="model file, or commit, branch, tag, experiment")
    add("--runtime", choices=("torch", "onnx"), default="torch", help="onnx: the file of `make export`, without torch")
    add("--top", type=_count, default=3, metavar="N", help="classes per picture (3)")
    add("--format", choices=("table", "csv", "json", "jsonl"), default="table", help="table: for people")
    add("--out", type=Path, metavar="FILE", help="write there, and go on there after a kill; else: standard output")
    add("--invert", choices=("auto", "yes", "no"), default="auto", help="auto: where light and dark look swapped")
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text[:9]) <= 65536):
        raise argparse.ArgumentTypeError(f"{text[:40]!r}; allowed: 1 to 65536")
    return int(text)


def counted(batches: Iterator[list[Entry]], tally: Tally) -> Iterator[list[Entry]]:
    """The batches as they are; the tally knows of them."""
    for batch in batches:
        tally.count(entry.row for entry in batch)
        yield batch


def predict(names: Iterator[str], classifier: Model, invert: Invert, top: int) -> Iterator[list[Entry]]:
    """Rows in the order of the names, a batch at a time: no more than two batches of pictures are in memory."""
    threads = classifier.threads
    with ThreadPoolExecutor(threads) as pool, classifier.in_parallel() as parallel:
        decoded = decode(names, classifier, invert, pool)
        while batch := list(itertools.islice(decoded, BATCH * threads)):
            yield classified(batch, classifier, top, parallel)


def decode(names: Iterator[str], classifier: Model, invert: Invert, pool: ThreadPoolExecutor) -> Iterator[Decoded]:
    """Read and decode on all threads, a bounded number of pictures ahead, in the order of the names."""

    def group(names: list[str]) -> list[Decoded]:
        return [(name, sources.stamp(name), read(name, classifier, invert)) for name in names]

    running: deque[Future[list[Decoded]]] = deque()
    while chunk := list(itertools.islice(names, GROUP)):
        running.append(pool.submit(group, chunk))
        if len(running) > 2 * classifier.threads:
            yield from running.popleft().result()
    while running:
        yield from running.popleft().result()


def read(name: str, classifier: Model, invert: Invert) -> Prepared | str:
    """A picture as the network sees it, or the reason why there is none."""
    try:
        return classifier.prepare(sources.read(name), invert)
    except (UnusablePictureError, UnreadablePictureError) as error:
        return str(error)
    except MemoryError:
        return "not enough memory for it"


def classified(batch: list[Decoded], classifier: Model, top: int, parallel: Map) -> list[Entry]:
    """The rows of a batch."""
    pictures = [picture for _, _, picture in batch if isinstance(picture, Prepared)]
    outputs: Iterator[Logs] = iter(())
    if pictures:
        outputs = iter(classifier.classify(np.stack([picture.pixels for picture in pictures]), parallel))

    def row(name: str, picture: Prepared | str) -> Row:
        if isinstance(picture, str):
            return rows.unreadable(name, picture)
        found = next(outputs)
        return rows.predicted(name, classifier.ranking(found, top), picture, classifier.value(found))

    return [Entry(row(name, picture), stamp) for name, stamp, picture in batch]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    errors.run_command(main, kept="with --out, the rows so far: the same command goes on after them")
