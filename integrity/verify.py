"""Rebuild HEAD from nothing and compare every byte: `python -m integrity.verify`, or `make verify`.

Clones HEAD into a temporary folder, runs every stage there without DVC's cache or run cache, and compares three things
for each output: the file in Git, the MD5 in the committed dvc.lock, and the rebuilt bytes. Writes nothing outside of
that folder, and deletes it at the end. Exit status: 0, all identical; 1, something differs; 2, an error.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from integrity import git, hidden_code, rebuild, revisions
from integrity.dvc_lock import Lock, LockedFile
from integrity.lock_files import LOCK
from stages.common import errors, params, paths, record
from stages.common.errors import UserError, one_line
from stages.evaluate import predictions

MODEL, PREDICTIONS = paths.MODEL.as_posix(), paths.PREDICTIONS.as_posix()


def main() -> int:
    """Rebuild, compare, and print the result; returns the exit status, 0 or 1."""
    errors.no_arguments()
    root = rebuild.project()
    commit = git.head(root)
    with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
        committed = rebuild.lock(git.file(root, commit, LOCK), "HEAD")
        if git.changed(root):
            print("note: the work tree differs from HEAD; this verifies HEAD", flush=True)
        start = time.perf_counter()
        clone = git.clone(root, commit, Path(scratch) / "clone")
        hidden_code.refuse(clone)
        lend_inputs(root, clone)
        print(f"rebuilding {commit[:12]} from nothing, in {clone}", flush=True)
        made = rebuild_all(clone, Path(scratch), committed)
        seconds = time.perf_counter() - start

        inputs = rebuild.inputs(committed, made)
        outputs = rebuild.outputs(root, commit, committed, made, clone, list(made.stages))
        problems = {out.path: problem for out in outputs if (problem := out.problem() or uncommitted(clone, out))}
        undeclared = rebuild.undeclared(root, commit, made)
        problems |= dict.fromkeys(undeclared, "no stage writes it")
        print_table(inputs, outputs, undeclared, problems)
        for line in environments(root, clone, commit, committed):
            print(line)
        if not problems and not inputs:
            print(f"identical: {len(outputs)} artifacts of {commit[:12]}, rebuilt from nothing in {seconds:.0f} s")
            return 0
        if inputs:
            names = ", ".join(dict.fromkeys(name for _, name, _ in inputs))
            print(f"{LOCK} was made from other code or inputs than HEAD's: {names}")
        diverged = [out for out in outputs if out.rebuilt != (out.committed or out.locked)]
        if diverged:
            print(f"diverged: {diverged[0].stage} is the first stage whose rebuilt bytes differ from the record")
        for out in diverged:
            print(f"  {out.path}: {difference(root, clone, commit, out)}")
        print(f"different: {', '.join(problems) or LOCK}")
        return 1


def print_table(
    inputs: list[rebuild.Input], outputs: list[rebuild.Output], undeclared: list[str], problems: dict[str, str]
) -> None:
    """Print a row per changed input, output, and file that no stage writes."""
    width = max([38, *(len(out.path) + 2 for out in outputs)])
    print(f"\n{'stage':<12}{'artifact':<{width}}bytes")
    for stage, name, problem in inputs:
        print(f"{stage:<12}{f'{name} (input)':<{width}}{problem}")
    for out in outputs:
        print(f"{out.stage:<12}{out.path:<{width}}{problems.get(out.path, 'identical')}")
    for path in undeclared:
        print(f"{'-':<12}{path:<{width}}{problems[path]}")
    print()


def lend_inputs(root: Path, clone: Path) -> None:
    """Link own pictures and own weights into a clone, which lacks them: Git has none of them.

    If DVC tracks them, the clone, whose cache is empty, has to forget that. The MD5 in dvc.lock says what they must be.
    """
    values = params.load(clone / paths.PARAMS) if (clone / paths.PARAMS).is_file() else {}
    for folder, *keys in (("", "data", "images"), (paths.WEIGHTS, "models", "torchvision", "weights")):
        name: Any = values
        for key in keys:
            name = name.get(key) if isinstance(name, dict) else None
        if isinstance(name, str):
            lend(root, clone, Path(folder, name))


def lend(root: Path, clone: Path, place: Path) -> None:
    """Link a file or folder of the project into a clone that lacks it."""
    if place.is_absolute() or ".." in place.parts:
        return
    if (root / place).exists() and not (clone / place).exists():
        (clone / f"{place}.dvc").unlink(missing_ok=True)
        (clone / place).parent.mkdir(parents=True, exist_ok=True)
        (clone / place).symlink_to((root / place).resolve())


def rebuild_all(clone: Path, scratch: Path, committed: Lock) -> Lock:
    """Run all stages in a clone without their results; returns the new dvc.lock.

    Raises UserError if a stage fails, or would not run.
    """
    with contextlib.chdir(clone), revisions.repository() as repo:
        stages = rebuild.pipeline(repo)
    if reason := rebuild.idle(list(stages), stages):
        raise UserError(f"HEAD: dvc.yaml: {reason}, so it would not run; remove `frozen: true`, and commit that")
    (clone / LOCK).unlink()
    for stage in committed.stages.values():  # a file that no stage writes must not count as rebuilt
        for out in stage.outs:
            remove(clone, out.path)
    remove(clone, paths.ENVIRONMENT.as_posix())
    environment = rebuild.isolated(clone, scratch, "cache")  # an empty cache in .dvc
    ran = rebuild.repro(clone, ["--force", "--no-run-cache"], environment)
    made = rebuild.lock((clone / LOCK).read_bytes(), "the rebuilt run")
    if skipped := [name for name in made.stages if name not in ran]:
        raise UserError(f"HEAD: dvc.yaml: {', '.join(skipped)} did not run")
    return made


def remove(clone: Path, path: str) -> None:
    """Delete a file or a folder of the clone, if it exists. Raises UserError for a path outside of the clone."""
    place = clone / path
    if clone.resolve() not in place.parent.resolve().parents and place.parent.resolve() != clone.resolve():
        raise UserError(f"HEAD: {LOCK} lists an output outside of the project: {path}")
    rebuild.delete(place)


def uncommitted(clone: Path, out: rebuild.Output) -> str:
    """What is wrong with an output that belongs into Git, but is missing there; "" for outputs that DVC keeps."""
    if out.committed is None and git.run(clone, "ls-files", "--others", "--exclude-standard", "--", out.path):
        return "missing in Git"
    return ""


def difference(root: Path, clone: Path, commit: str, out: rebuild.Output) -> str:
    """By how much a rebuilt output differs from the recorded one, in one line."""
    try:
        here = (clone / out.path).read_bytes() if (clone / out.path).is_file() else b""
        if out.committed and out.path.endswith(".json"):
            sides = [git.file(root, commit, out.path) or b"", here]
            before, after = (params.flatten(revisions.parse_json(side, out.path), out.path) for side in sides)
            return metrics(before, after)
        if out.path in (MODEL, PREDICTIONS):
            with revisions.repository() as repo:
                content, _ = revisions.fetch(repo, LockedFile(path=out.path, md5=out.locked))
            return weights(content, here) if out.path == MODEL else images(content, here)
    except (UserError, SafetensorError, ValueError, OSError) as error:
        return f"the difference is unknown: {one_line(error)}"
    return "different bytes"


def metrics(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The numbers that differ between two flattened metrics files."""
    keys = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    numbers = [key for key in keys if all(isinstance(side.get(key), int | float) for side in (before, after))]
    shown = [f"{key} {before[key]:g} -> {after[key]:g} ({after[key] - before[key]:+.3g})" for key in numbers[:6]]
    return "; ".join(shown) + (f"; and {len(keys) - len(shown)} more" if len(keys) > len(shown) else "")


def weights(before: bytes, after: bytes) -> str:
    """The largest difference of a weight between two model files."""
    import torch  # slow to import, and only needed if the models differ
    from safetensors.torch import load

    sides = [load(before), load(after)]
    if {name: tensor.shape for name, tensor in sides[0].items()} != {
        name: tensor.shape for name, tensor in sides[1].items()
    }:
        return "another network"
    largest = {name: (sides[0][name].double() - sides[1][name].double()).abs().max().item() for name in sides[0]}
    name = max(largest, key=largest.__getitem__)
    size = max(tensor.double().abs().max().item() for tensor in sides[0].values())
    changed = sum(int(torch.ne(sides[0][weight], sides[1][weight]).sum()) for weight in largest)
    if not changed:
        return "the same weights; classes or options differ"
    return f"{changed:,} weights differ, {name} by at most {largest[name]:.3g} (the largest weight is {size:.3g})"


def images(before: bytes, after: bytes) -> str:
    """How many predictions differ between two prediction files."""
    sides = [predictions.parse(content, "predictions") for content in (before, after)]
    if len(sides[0]) != len(sides[1]):
        return f"{len(sides[1]):,} predictions instead of {len(sides[0]):,}"
    if all(map(predictions.has_values, sides)):
        largest = float((sides[0]["prediction"] - sides[1]["prediction"]).abs().max())
        return f"predictions differ by {largest:.3g} at most"
    changed = int((sides[0]["prediction"].astype(str) != sides[1]["prediction"].astype(str)).sum())
    return f"{changed:,} of {len(sides[0]):,} predicted classes changed; the other differences are in probabilities"


def environments(root: Path, clone: Path, commit: str, committed: Lock) -> list[str]:
    """A line for each stage whose recorded environment is missing or differs from that of this rebuild.

    A record counts only if it lists the same outputs as dvc.lock: another run may have written it.
    """
    lines = []
    for path in sorted((clone / paths.ENVIRONMENT).glob("*.json")):
        name = (paths.ENVIRONMENT / path.name).as_posix()
        try:
            before = revisions.parse_json(git.file(root, commit, name) or b"", name)
        except UserError:
            lines.append(f"environment of {path.stem}: not recorded with the commit")
            continue
        if not record.describes(before, {path: out.md5 for path, out in committed.outs.items()}):
            lines.append(f"environment of {path.stem}: not recorded, since {name} describes other outputs")
            continue
        here = revisions.parse_json(path.read_bytes(), name)
        keys = [key for key in dict.fromkeys([*before, *here]) if key != "outputs"]
        changed = [key for key in keys if before.get(key) != here.get(key)]
        if changed:
            listed = "; ".join(f"{key} {before.get(key)} there, {here.get(key)} here" for key in changed)
            lines.append(f"environment of {path.stem}: {listed}")
    return lines or ["environment: as recorded with the commit"]


if __name__ == "__main__":
    errors.run_command(main, "nothing is left behind")
