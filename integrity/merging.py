"""Resolve merge conflicts in files that the pipeline writes; `make repro` does this first.

If two branches changed parameters, they conflict in dvc.lock and metrics/, and neither side is right. This takes our
side, which DVC can read; then `dvc repro` produces the results of the merged parameters. A person has to resolve
conflicts in params.yaml, dvc.yaml and code before.
"""

from pathlib import Path

from integrity import git
from integrity.lock_files import EXPORT_LOCK, LOCKS, SEEDS_LOCK
from stages.common import paths
from stages.common.errors import UserError
from stages.common.text import listed

# What `make seeds` and `make export` write.
SEEDS = (SEEDS_LOCK, "seeds/seeds.yaml", "metrics/seeds.json")
EXPORT = (EXPORT_LOCK, "export/formats.yaml", "metrics/export.json")
METRICS = paths.TEST_METRICS.parent.as_posix()
SHOWN = 5  # files in a message


def resolve() -> None:
    """Take our side of conflicts in results, and print what to do next. Raises UserError for other conflicts."""
    if not any(
        map(marked, [*LOCKS, SEEDS[1], EXPORT[1], *(str(path) for path in sorted(Path(METRICS).glob("*.json")))])
    ):
        return
    entries = unmerged()
    if others := [path for path in entries if not written(path)]:
        raise UserError(
            f"a merge is in progress, with conflicts in {listed(others, SHOWN)}: edit and `git add` them first; "
            f"`make repro` then writes {LOCKS[0]} and {METRICS}/ for the merged parameters"
        )
    for path, stages in entries.items():
        side = "--ours" if 2 in stages else "--theirs"
        git.run(Path(), "checkout", side, "--", path)
    if entries:
        others = [name for name, paths in (("seeds", SEEDS), ("export", EXPORT)) if any(map(entries.get, paths))]
        again = "".join(f", `make {name}`" for name in others)
        folders = " ".join([LOCKS[0], METRICS, *others])
        names = listed(entries, SHOWN)
        print(
            f"merge: one side's {names} for now; after this{again}: `git add {folders}`, then `git commit`",
            flush=True,
        )


def marked(name: str) -> bool:
    """Whether a file has conflict markers."""
    path = Path(name)
    return path.is_file() and conflicts(path.read_bytes())


def conflicts(content: bytes) -> bool:
    """Whether a line starts with a conflict marker."""
    return b"\n<<<<<<< " in content or content.startswith(b"<<<<<<< ")


def unmerged() -> dict[str, set[int]]:
    """The paths with a conflict, and the versions of each that Git has: 1, the common ancestor; 2, ours; 3, theirs."""
    found: dict[str, set[int]] = {}
    for entry in git.run(Path(), "ls-files", "--unmerged", "-z").decode(errors="surrogateescape").split("\0")[:-1]:
        facts, _, path = entry.partition("\t")
        found.setdefault(path, set()).add(int(facts.split()[2]))
    return found


def written(path: str) -> bool:
    """Whether the pipelines write a file."""
    return path in (*LOCKS, *SEEDS, *EXPORT) or path.startswith(f"{METRICS}/")
