"""Does the committed pipeline end in the committed bytes? `python -m stages.verify`, or `make verify`.

Clones HEAD into a temporary folder, runs every stage there without DVC's cache or run cache, and compares each output
with the committed dvc.lock. Not a stage: it writes nothing outside that folder, which is deleted at the end. Exit
status: 0, the same bytes; 1, other bytes; 2, it could not be told.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stages import command, paths, predictions, revisions
from stages.errors import UserError
from stages.revisions import Lock, LockedFile

MODEL, PREDICTIONS = paths.MODEL.as_posix(), paths.PREDICTIONS.as_posix()
GRACE_SECONDS = 10  # for dvc and the stage to end when told to


def main() -> int:
    """Rebuild, compare, report; returns the exit status, 0 or 1."""
    command.no_arguments()
    with revisions.repository() as repo, tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        root, commit = Path(repo.root_dir), repo.scm.get_rev()
        committed = lock(git(root, "show", f"{commit}:{revisions.LOCK}"), "HEAD")
        if git(root, "status", "--porcelain", "--untracked-files=no"):
            print("note: the work tree differs from HEAD; HEAD is what is verified", flush=True)
        clone, start = Path(scratch) / "clone", time.perf_counter()
        git(root, "clone", "--quiet", str(root), str(clone))
        git(clone, "checkout", "--quiet", commit)
        print(f"rebuilding {commit[:12]} from nothing, in {clone}", flush=True)
        rebuild(clone, "cache", ["--force", "--no-run-cache"])  # in .dvc: a cache that holds nothing
        rebuilt = lock((clone / revisions.LOCK).read_bytes(), "the rebuilt run")
        seconds = time.perf_counter() - start

        print(f"\n{'stage':<12}{'artifact':<38}bytes")
        for stage, path, same in (rows := compared(committed, rebuilt)):
            print(f"{stage:<12}{path:<38}{'identical' if same else 'DIFFERENT'}")
        print()
        for line in environments(root, clone, commit):
            print(line)
        if all(same for _, _, same in rows):
            print(f"identical: {len(rows)} artifacts of {commit[:12]}, rebuilt from nothing in {seconds:.0f} s")
            return 0
        first = next(stage for stage, _, same in rows if not same)
        print(f"diverged: {first} is the first stage that ends in other bytes")
        for _, path, same in rows:
            if not same and path in committed_outs(committed):
                print("  " + difference(repo, clone, commit, committed_outs(committed)[path]))
        return 1


def git(folder: Path, *arguments: str) -> bytes:
    """What a git command prints. Raises UserError with what it complains of."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {revisions.one_line(ValueError(done.stderr.decode(errors='replace')))}")
    return done.stdout


def lock(content: bytes, name: str) -> Lock:
    """A dvc.lock with something in it. Raises UserError."""
    found = revisions.parse_lock(content, f"{name}: {revisions.LOCK}")
    if not found.stages:
        raise UserError(f"{name}: {revisions.LOCK} has no stages; `dvc repro`, and commit what it writes")
    return found


def rebuild(clone: Path, cache: str, options: Sequence[str]) -> None:
    """Run the stages of a clone, with `dvc repro` and its options, in this cache. Raises UserError if a stage fails."""
    config = clone / ".dvc" / "config.local"
    config.write_text(f"[cache]\n    dir = {json.dumps(cache)}\n", encoding="utf-8")  # whatever a user set
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
        "DVC_SITE_CACHE_DIR": str(clone.parent / "site-cache"),
        "TMPDIR": str(clone.parent / "tmp"),  # torch leaves an empty folder for its compiler
    }
    (clone.parent / "tmp").mkdir(exist_ok=True)
    environment.pop("PYTHONPATH", None)  # the clone's own code
    if dvc(clone, ["repro", *options], environment):
        raise UserError("the rebuild failed; what it says is above")


def dvc(folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> int:
    """Run a command of DVC; returns its exit status. Told to stop, it ends DVC and the stage that runs."""
    command = [sys.executable, "-m", "dvc", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        return process.wait()
    except BaseException:  # Ctrl-C, SIGTERM: the stage must not go on in a folder that is about to be deleted
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE_SECONDS)
        finally:
            with suppress(ProcessLookupError):  # all of them have ended
                os.killpg(process.pid, signal.SIGKILL)
        raise


def compared(committed: Lock, rebuilt: Lock) -> list[tuple[str, str, bool]]:
    """Stage, path and whether it is the same, of every output in either; then of inputs that should be the same.

    An input that differs while all outputs are the same means that dvc.lock was written for other code or parameters.
    """
    rows = []
    for name in dict.fromkeys([*committed.stages, *rebuilt.stages]):
        sides = [side.stages.get(name) for side in (committed, rebuilt)]
        outs = [{out.path: out.md5 for out in side.outs} if side else {} for side in sides]
        rows += [(name, path, outs[0].get(path) == outs[1].get(path)) for path in dict.fromkeys([*outs[0], *outs[1]])]
        deps = [{dep.path: dep.md5 for dep in side.deps} if side else {} for side in sides]
        made = {out.path for side in (committed, rebuilt) for stage in side.stages.values() for out in stage.outs}
        rows += [
            (name, f"{path} (input)", False)
            for path in dict.fromkeys([*deps[0], *deps[1]])
            if path not in made and deps[0].get(path) != deps[1].get(path)
        ]
        if sides[0] and sides[1] and sides[0].params != sides[1].params:
            rows.append((name, "params.yaml (input)", False))
    return rows


def committed_outs(committed: Lock) -> dict[str, LockedFile]:
    """Each output by its path."""
    return {out.path: out for stage in committed.stages.values() for out in stage.outs}


def difference(repo: Any, clone: Path, commit: str, out: LockedFile) -> str:
    """By how much an output differs, in a line."""
    try:
        if out.path.endswith(".json") and out.path.startswith(paths.TRAIN_METRICS.parent.as_posix()):
            before = revisions.flatten(json.loads(git(Path(repo.root_dir), "show", f"{commit}:{out.path}")), out.path)
            after = revisions.flatten(json.loads((clone / out.path).read_bytes()), out.path)
            return f"{out.path}: {metrics(before, after)}"
        if out.path in (MODEL, PREDICTIONS):
            content, _ = revisions.fetch(repo, out)
            here = (clone / out.path).read_bytes()
            return f"{out.path}: {weights(content, here) if out.path == MODEL else images(content, here)}"
    except (UserError, SafetensorError, ValueError) as error:
        return f"{out.path}: by how much is not known: {revisions.one_line(error)}"
    return f"{out.path}: other bytes"


def metrics(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The numbers that differ between two metrics files, flattened."""
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    numbers = [key for key in keys if all(isinstance(side.get(key), int | float) for side in (before, after))]
    shown = [f"{key} {before[key]:g} -> {after[key]:g} ({after[key] - before[key]:+.3g})" for key in numbers[:6]]
    return "; ".join(shown) + (f"; and {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")


def weights(before: bytes, after: bytes) -> str:
    """The largest difference of a weight between two model files."""
    import torch  # its import takes longer than the rest of a comparison that finds no other model
    from safetensors.torch import load

    sides = [load(before), load(after)]
    if {name: tensor.shape for name, tensor in sides[0].items()} != {
        name: tensor.shape for name, tensor in sides[1].items()
    }:
        return "another network"
    largest = {name: (sides[0][name].double() - sides[1][name].double()).abs().max().item() for name in sides[0]}
    name = max(largest, key=lambda each: largest[each])
    size = max(tensor.double().abs().max().item() for tensor in sides[0].values())
    changed = sum(int(torch.ne(sides[0][each], sides[1][each]).sum()) for each in largest)
    if not changed:
        return "the same weights, in another file: classes or options differ"
    return f"{changed:,} weights differ, {name} by {largest[name]:.3g} at most (the largest weight is {size:.3g})"


def images(before: bytes, after: bytes) -> str:
    """How many predictions differ between two files of them."""
    sides = [predictions.parse(content, "predictions") for content in (before, after)]
    if len(sides[0]) != len(sides[1]):
        return f"{len(sides[1]):,} predictions instead of {len(sides[0]):,}"
    changed = int((sides[0]["prediction"].astype(str) != sides[1]["prediction"].astype(str)).sum())
    return f"{changed:,} of {len(sides[0]):,} predictions changed; the rest of the difference is in probabilities"


def environments(root: Path, clone: Path, commit: str) -> list[str]:
    """A line for each stage whose recorded environment is not that of this rebuild, or that has none."""
    lines = []
    for path in sorted((clone / paths.ENVIRONMENT).glob("*.json")):
        name = (paths.ENVIRONMENT / path.name).as_posix()
        try:
            before = json.loads(git(root, "show", f"{commit}:{name}"))
        except (UserError, ValueError):
            lines.append(f"environment of {path.stem}: not recorded with the commit")
            continue
        here = json.loads(path.read_bytes())
        changed = [key for key in dict.fromkeys([*before, *here]) if before.get(key) != here.get(key)]
        if changed:
            told = "; ".join(f"{key} {before.get(key)} there, {here.get(key)} here" for key in changed)
            lines.append(f"environment of {path.stem}: {told}")
    return lines or ["environment: as recorded with the commit"]


if __name__ == "__main__":
    command.run(main, "nothing is left behind")
