"""Train seeds of a revision, in the work tree or in a temporary clone, and compare until the verdict is clear."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from integrity import git, rebuild, revisions
from review import comparison, sequential
from review.formatting import MEASURES
from review.sequential import Look
from seeds import record
from seeds.paths import PIPELINE
from seeds.record import Record
from stages.common import children
from stages.common.errors import UserError


def show(line: str) -> None:
    """Print a line of training to stderr, so that it does not mix with the comparison, which may be JSON."""
    print(line, end="", file=sys.stderr, flush=True)


class Side(NamedTuple):
    """A checkout in which seeds can be trained."""

    name: str  # of the revision, as the user calls it
    folder: Path
    environment: dict[str, str]

    def recorded(self) -> Record:
        """The recorded seeds, as `seeds.record.read` returns them. Raises UserError."""
        with contextlib.chdir(self.folder), revisions.repository() as repo:
            return record.read(repo, revisions.read(repo, None, self.name))

    def trained(self, seeds: int, force: bool = False) -> Record:
        """At least `seeds` seeds, after training those that are missing. Raises UserError.

        force: train all of them here, whatever is recorded or cached.
        """
        if not (self.folder / PIPELINE).is_file():
            raise UserError(f"{self.name}: no {PIPELINE} there, so no seeds can be trained")
        recorded = self.recorded()
        if len(recorded.rows) >= seeds and not force:
            return recorded
        show(f"\n{self.name}: training {seeds} seeds, except those that are cached\n")
        command = [sys.executable, "-m", "seeds", str(seeds), *(["--force"] if force else [])]
        if children.run(command, self.folder, self.environment, on_line=show).returncode:
            raise UserError(f"{self.name}: training its seeds failed; the reason is above")
        recorded = self.recorded()
        if len(recorded.rows) < seeds:
            raise UserError(f"{self.name}: {recorded.why}")
        return recorded


@contextlib.contextmanager
def checkout(repo: Any, commit: str | None, name: str) -> Iterator[Side]:
    """A checkout to train seeds in: the work tree (None), or a temporary clone of a commit that shares DVC's cache.

    In the work tree, training changes the same files as `make seeds`. Raises UserError.
    """
    root = Path(repo.root_dir)
    if commit is None:
        yield Side(name, root, rebuild.dvc_environment())
        return
    cache = repo.cache.local_cache_dir
    with tempfile.TemporaryDirectory(prefix="seeds-") as scratch:
        clone = git.clone(root, commit, Path(scratch) / "clone")
        yield Side(name, clone, rebuild.isolated(clone, Path(scratch), cache))


def until_decided(a: str, b: str | None, level: float, margin: float, budget: int) -> dict[str, Any]:
    """The document of review/comparison.py, after training seeds on both sides until the verdict is clear.

    margin: a share, as in review/sequential.py. budget: the most seeds per side. Raises UserError.
    """
    names = a, revisions.WORK_TREE if b is None else b
    with revisions.repository() as repo:
        # Once: after hours of training, a branch may have moved.
        commit_a, commit_b = revisions.resolve(repo, a), None if b is None else revisions.resolve(repo, b)
        with checkout(repo, commit_a, names[0]) as old, checkout(repo, commit_b, names[1]) as new:
            looks = sequential.schedule(budget)
            for n, nominal in zip(looks, sequential.nominal_levels(looks, level), strict=True):
                records = (old.trained(n).first(n), new.trained(n).first(n))
                if obstacles := comparison.obstacles_to_seeds(names, records):
                    raise UserError(f"seeds cannot decide: {'; '.join(obstacles)}")
                look = sequential.look(records[0].scores, records[1].scores, nominal, margin)
                if look.word != sequential.UNDECIDED:
                    break
            document = comparison.read(commit_a, commit_b, level, records, names)
    document["verdict"] = verdict(document, look, looks, looks.index(n) + 1, margin)
    return document


def verdict(document: dict[str, Any], look: Look, looks: list[int], taken: int, margin: float) -> dict[str, Any]:
    """`verdict` of a document whose seeds were judged at `taken` of the planned looks. look: the last one."""
    level, measure = document["level"], MEASURES[document["measure"]]
    text = (
        f"{comparison.seed_difference(document['seeds'], measure.name, look, level)}; group-sequential test, look "
        f"{taken} of {len(looks)} (at {', '.join(map(str, looks))} seeds per side), level {level:g}, margin "
        f"{measure.scale * margin:g}{measure.difference_unit}"
    )
    return {
        "word": look.word,
        "text": text,
        "method": "Lan and DeMets' alpha spending (1983), Pocock's type; repeated confidence intervals (Jennison and "
        "Turnbull 1989); equivalence: two one-sided tests (Schuirmann 1987)",
        "p": None,
        "basis": comparison.SEEDS,
        "difference": look.difference,
        "low": look.low,
        "high": look.high,
    }
