"""The seeds that a revision has recorded, and whether they are up to date. Nothing is checked out, pulled or trained.

metrics/seeds.json, seeds/seeds.yaml and seeds/dvc.lock are in Git. The rows count only if seeds/dvc.lock names them for
all seeds of seeds/seeds.yaml, and if they were trained with the code, parameters and data of the revision.
"""

import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from integrity import revisions
from integrity.dvc_lock import Lock, LockedStage, parse_lock
from integrity.revisions import Revision
from seeds.paths import CHOSEN, COLLECTED, LOCK, ROWS
from seeds.run import text
from stages.common import params, paths
from stages.common.digests import md5
from stages.common.errors import UserError
from stages.common.text import listed
from stages.evaluate.scores import Floats

STAGE = re.compile("seed@([0-9]{1,9})")
NO_SEEDS = "no seeds; `make seeds` there trains them"


class Row(BaseModel):
    """The results of one seed; there may be other numbers as well."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    seed: Annotated[int, Field(ge=0)]
    errors: Annotated[int, Field(ge=0)] | None = None  # on the test set; None for regression
    r2: Annotated[float, Field(allow_inf_nan=False)] | None = None  # of a regression
    images: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if (self.errors is None) == (self.r2 is None):
            raise ValueError("a seed has errors, or r2 for regression")
        return self

    @property
    def score(self) -> float:
        """Test accuracy, computed from counts so that equal accuracies are equal; or R2."""
        return self.r2 if self.r2 is not None else 1 - (self.errors or 0) / self.images


class Record(NamedTuple):
    """The seeds of a revision. rows: in the order of the seeds; empty if missing or stale, and `why` says which."""

    rows: list[Row]
    why: str = ""
    test_set: str | None = None  # MD5

    @property
    def scores(self) -> Floats:
        """Test accuracy, or R2, of each seed, float64 (seeds,)."""
        return np.array([row.score for row in self.rows])

    @property
    def measure(self) -> str:
        """The name of the scores' measure."""
        return "accuracy" if all(row.r2 is None for row in self.rows) else "R2"

    def first(self, seeds: int) -> "Record":
        """The first `seeds` seeds only."""
        return self._replace(rows=self.rows[:seeds])

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return [row.seed for row in self.rows]


def read(repo: Any, side: Revision) -> Record:
    """The seeds of a revision; if it has none or they are not up to date, no rows but the reason."""
    try:
        return _read(repo, side)
    except UserError as error:
        return Record([], str(error))


def count_fresh(repo: Any, side: Revision) -> int:
    """The number of seeds that are trained and up to date, although others may be missing, as after a kill."""
    try:
        chosen, trained = _trained(repo, side)
    except UserError:
        return 0
    stages = [trained[seed] for seed in chosen if seed in trained]
    return 0 if _changed(repo, side, stages) else len(stages)


def _trained(repo: Any, side: Revision) -> tuple[list[int], dict[int, LockedStage]]:
    """The seeds of seeds/seeds.yaml, ascending, and the stages of seeds/dvc.lock by seed. Raises UserError."""
    chosen, lock = (revisions.file(repo, side, path.as_posix()) for path in (CHOSEN, LOCK))
    if not chosen or not lock:
        raise UserError(NO_SEEDS)
    stages = parse_lock(lock, str(LOCK)).stages
    return _chosen(chosen), {int(match[1]): stage for name, stage in stages.items() if (match := STAGE.fullmatch(name))}


def _read(repo: Any, side: Revision) -> Record:
    """As `read`. Raises UserError with the reason."""
    chosen, trained = _trained(repo, side)
    again = f"`make seeds N={len(chosen)}` there"
    if missing := [seed for seed in chosen if seed not in trained]:
        raise UserError(f"{len(chosen) - len(missing)} of {len(chosen)} seeds are trained; {again} trains the others")
    if changed := _changed(repo, side, [trained[seed] for seed in chosen]):
        raise UserError(f"its seeds are stale: trained before {listed(changed, revisions.SHOWN)} changed; {again}")

    collected = revisions.file(repo, side, COLLECTED.as_posix()) or b"{}"
    content: Any = revisions.parse_json(collected, str(COLLECTED)).get("seeds")
    rows = _rows(content)
    if [row.seed for row in rows] != chosen:
        raise UserError(f"{COLLECTED} does not have the seeds of {CHOSEN}; {again}")
    for row, values in zip(rows, content, strict=True):
        outs = {out.path: out.md5 for out in trained[row.seed].outs}
        if outs.get((ROWS / f"{row.seed}.json").as_posix()) != md5(text(values).encode()):
            raise UserError(f"{COLLECTED}: seed {row.seed} is not the one that {LOCK} names; {again}")
    if len({(row.images, row.errors is None) for row in rows}) > 1 or any(
        (row.errors or 0) > row.images for row in rows
    ):
        raise UserError(f"{COLLECTED}: errors and images contradict each other; {again}")
    tests = {dep.md5 for seed in chosen for dep in trained[seed].deps if dep.path == paths.TEST.as_posix()}
    return Record(rows, test_set=tests.pop() if len(tests) == 1 else None)


def _chosen(content: bytes) -> list[int]:
    """The seeds of seeds/seeds.yaml, ascending. Raises UserError."""
    seeds = params.parse_mapping(content, str(CHOSEN)).get("seeds")
    if not isinstance(seeds, list) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{CHOSEN}: seeds is not a list of whole numbers; `make seeds N=5` writes it")
    if not seeds:
        raise UserError(NO_SEEDS)
    return sorted(set(seeds))


def _rows(content: Any) -> list[Row]:
    """The rows of metrics/seeds.json, checked. Raises UserError."""
    try:
        return [Row.model_validate(row) for row in (content if isinstance(content, list) else [])]
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{COLLECTED}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _changed(repo: Any, side: Revision, stages: list[LockedStage]) -> list[str]:
    """The code, parameters and data that changed since these seeds were trained."""
    names = []
    for stage in stages:
        read = params.flatten(stage.params.get(paths.PARAMS.as_posix(), {}), str(LOCK))
        values = side.params or {}
        names += [key for key, value in read.items() if key not in values or values[key] != value]
        names += [dep.path for dep in stage.deps if dep.path in side.outs and side.outs[dep.path].md5 != dep.md5]
    outside = {
        str(number): LockedStage(deps=[dep for dep in stage.deps if dep.path not in side.outs])
        for number, stage in enumerate(stages)
    }
    root = Path(repo.root_dir)
    names += revisions.stale(root, revisions.snapshot(repo, side.commit), Lock(stages=outside))
    return list(dict.fromkeys(names))
