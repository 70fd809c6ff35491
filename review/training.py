"""Training seeds of a revision, in the work tree or in a temporary clone, and comparing while they are trained."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from integrity import git, rebuild, revisions
from review import comparison, sequential, values
from review.sequential import Look
from seeds import record
from seeds.paths import PIPELINE
from seeds.record import Record
from stages.common import children
from stages.common.errors import UserError


def show(line: str) -> None:
    """Print what training says where it does not mix with the comparison, which may be JSON."""
    print(line, end="", file=sys.stderr, flush=True)


class Side(NamedTuple):
    """A checkout in which seeds can be trained."""

    name: str  # of the revision, as the user calls it
    folder: Path
    environment: dict[str, str]

    def recorded(self) -> Record:
        """The seeds that are there, as `seeds.record.read` gives them. Raises UserError."""
        with contextlib.chdir(self.folder), revisions.repository() as repo:
            return record.read(repo, revisions.read(repo, None, self.name))

    def trained(self, seeds: int, force: bool = False) -> Record:
        """As `recorded`, after training whatever is missing of so many seeds; more are fine. Raises UserError.

        force: what is recorded does not count; all of them are trained here, without a cache.
        """
        if not (self.folder / PIPELINE).is_file():
            raise UserError(f"{self.name}: no {PIPELINE} there, so that no seeds can be trained")
        found = self.recorded()
        if len(found.rows) >= seeds and not force:
            return found
        show(f"\n{self.name}: training {seeds} seeds, but for those that are cached\n")
        command = [sys.executable, "-m", "seeds", str(seeds), *(["--force"] if force else [])]
        if children.run(command, self.folder, self.environment, on_line=show).returncode:
            raise UserError(f"{self.name}: its seeds cannot be trained; the reason is above")
        found = self.recorded()
        if len(found.rows) < seeds:
            raise UserError(f"{self.name}: {found.why}")
        return found


@contextlib.contextmanager
def checkout(repo: Any, name: str | None) -> Iterator[Side]:
    """A side to train seeds of: the work tree (None), or a temporary clone of a revision that shares DVC's cache.

    In the work tree, training leaves what `make seeds` leaves. Raises UserError.
    """
    root = Path(repo.root_dir)
    if name is None:
        yield Side(revisions.WORK_TREE, root, rebuild.dvc_environment())
        return
    commit, cache = revisions.resolve(repo, name), repo.cache.local_cache_dir
    with tempfile.TemporaryDirectory(prefix="seeds-") as scratch:
        clone = git.clone(root, commit, Path(scratch) / "clone")
        yield Side(name, clone, rebuild.isolated(clone, Path(scratch), cache))


def until_decided(a: str, b: str | None, level: float, margin: float, budget: int) -> dict[str, Any]:
    """The document of review/comparison.py of two revisions, after training seeds on both until the verdict is clear.

    margin: a share; see review/sequential.py. budget: the most seeds per side. Raises UserError.
    """
    with revisions.repository() as repo, checkout(repo, a) as old, checkout(repo, b) as new:
        sides = (old, new)
        there = min(len(side.recorded().rows) for side in sides)
        looks = sequential.schedule(budget, there)
        for n, nominal in zip(looks, sequential.nominal_levels(looks, level), strict=True):
            records = (old.trained(n).first(n), new.trained(n).first(n))
            if obstacles := comparison.not_by_seeds((old.name, new.name), records):
                raise UserError(f"seeds cannot decide: {'; '.join(obstacles)}")
            found = sequential.look(records[0].scores, records[1].scores, nominal, margin)
            if found.word != sequential.UNDECIDED:
                break
        document = comparison.read(a, b, level, records)
    document["verdict"] = verdict(document, found, looks, looks.index(n) + 1, margin)
    return document


def verdict(document: dict[str, Any], found: Look, looks: list[int], taken: int, margin: float) -> dict[str, Any]:
    """`verdict` of a document whose seeds were judged at several looks, of which so many were `taken`."""
    level = document["level"]
    measure = document["measure"]
    interval = comparison.difference_text(found, measure, level)
    margin_text = f"{margin:g}" if measure == values.MEASURE else f"{100 * margin:g} points"
    text = (
        f"{comparison.seed_means(document['seeds'], measure)}, {interval}; group-sequential test, look {taken} of "
        f"{len(looks)} (at {', '.join(map(str, looks))} seeds per side), level {level:g}, margin {margin_text}"
    )
    return {
        "word": found.word,
        "text": text,
        "method": "Lan and DeMets' alpha spending (1983), Pocock's type; repeated confidence intervals (Jennison and "
        "Turnbull 1989); equivalence: two one-sided tests (Schuirmann 1987)",
        "p": None,
        "basis": comparison.SEEDS,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
    }
