"""The run in the work tree as a page: `python -m review.report [--against REV]`, or `make report [REV=main]`.

One HTML file that loads and runs nothing: results, curves, the pictures that evaluate drew, parameters, provenance.
With --against it also shows what changed since another commit, branch, tag or experiment, and whether the difference
is significant. Results are those that dvc.lock records, not rerun here. The same run gives the same bytes.
Exit status 2 if there is nothing to show. Not a stage.
"""

import argparse
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from integrity import git, revisions
from integrity.dvc_lock import LockedFile
from integrity.lock_files import LOCK
from review import comparison, own_pictures, pictures, report_page, results
from review.report_page import Against
from review.results import Results
from seeds import record
from stages.common import errors, files, paths
from stages.common.errors import UserError
from stages.common.text import listed
from stages.dataset import data_card, packed
from stages.dataset.packed import Split

OUT = "report.html"  # Git ignores it
LEVEL = 0.05  # accepted share of false alarms, the default of `review.compare`
MOST_CHANGED = 6  # files listed by name


def main() -> None:
    """Read the run, write the page, and print where."""
    options = arguments()
    out = Path(options.out)
    if out.suffix != ".html":
        raise UserError(f"--out is {options.out!r}; allowed: a name that ends in .html")
    files.check_target(out)
    with revisions.repository() as repo:
        run = results.read(repo, None)
        against = compared(repo, options.against, run) if options.against is not None else None
        images, reason = test_images(repo, run) if against else (None, "")
        # The comparison's notes cover both sides, but not the files that only this page reads.
        notes = [*(against.document["notes"] if against else notes_on(run)), *run.missing]
        sides = [run.revision, *([against.other.revision] if against else [])]
        notes += revisions.damaged(repo, sides, except_for=paths.PREDICTIONS.as_posix())
        if reason:
            notes.append(f"no test images: {reason}")
        own, own_notes = own_pictures.section(run.revision, Path(repo.root_dir))
        notes += own_notes
        page = report_page.page(run, against, functools.partial(picture, images), notes, provenance(repo), own)
    files.write_text(out, page)
    print(f"{out}: {report_page.heading(report_page.numbers(run))}, {len(page.encode()) / 1000:,.0f} kB")
    if against:
        document = against.document
        print(f"{document['b']['name']} against {document['a']['name']}: {document['verdict']['word']}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m review.report", description="The work tree's run as one HTML page."
    )
    parser.add_argument("--against", metavar="REV", help="compare with this commit, branch, tag or experiment")
    parser.add_argument("--out", metavar="FILE", default=OUT, help="default: %(default)s")
    return parser.parse_args()


def compared(repo: Any, name: str, run: Results) -> Against:
    """The other side, A, and its comparison with the run, B. Raises UserError."""
    other = results.read(repo, name)
    records = record.read(repo, other.revision), record.read(repo, run.revision)
    lookups = other.predictions, run.predictions
    return Against(other, comparison.compare(other.revision, run.revision, lookups, LEVEL, records))


def notes_on(run: Results) -> list[str]:
    """The notes on a run without a comparison."""
    table = run.predictions.table
    contradictions = comparison.contradictions(run.revision, table) if table is not None else []
    return [*run.revision.notes, *(f"{run.revision.name}: {note}" for note in run.predictions.notes), *contradictions]


def test_images(repo: Any, run: Results) -> tuple[Split | None, str]:
    """The images that were predicted; or None and the reason."""
    if run.predictions.table is None:
        return None, f"no predictions: {run.predictions.reason}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            # By MD5, because the files here may belong to another data set by now.
            content, _ = revisions.fetch(repo, locked(run, paths.DATA_CARD))
            (Path(folder) / paths.DATA_CARD.name).write_bytes(content)
            card = data_card.read(Path(folder) / paths.DATA_CARD.name)
            test = revisions.fetch_folder(repo, locked(run, paths.TEST), Path(folder) / paths.TEST.name)
            images = packed.open_split(test, card.shape, len(card.classes))  # open files outlive the temporary folder
        except UserError as error:
            return None, str(error).replace(f"{folder}/", "")
    table = run.predictions.table
    labels = images.labels if card.values else np.array(card.classes)[images.labels]
    if not np.array_equal(labels, table["label"].astype(labels.dtype).to_numpy()):
        return None, f"the labels of {paths.TEST} and {paths.PREDICTIONS} differ"
    return images, ""


def locked(run: Results, path: Path) -> LockedFile:
    """An output as dvc.lock names it. Raises UserError if it does not."""
    out = run.revision.outs.get(path.as_posix())
    if out is None:
        raise UserError(f"{LOCK} does not name {path}")
    return out


def picture(images: Split | None, index: int) -> str | None:
    """A test image as a data: URI; None if there are no images."""
    return None if images is None else pictures.data_uri(images.gather([index])[0])


def provenance(repo: Any) -> list[tuple[str, str]]:
    """The commit, the branch and the changes of the work tree, and the hash of dvc.lock."""
    root = Path(repo.root_dir)
    branch = os.fsdecode(git.run(root, "branch", "--show-current")).strip()
    lock = root / LOCK
    return [
        ("commit", revisions.resolve(repo, "HEAD")),
        ("branch", branch or "none (a detached HEAD)"),
        (
            "changed since",
            listed(git.changed(root), MOST_CHANGED) or "nothing: the files in Git are those of the commit",
        ),
        ("dvc.lock, SHA-256", hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "missing"),
    ]


if __name__ == "__main__":
    errors.run_command(main)
