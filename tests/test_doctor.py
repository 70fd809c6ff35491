"""The doctor finds real damage in a real pipeline, and the fixes that it prints work."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrity import doctor as doctor_module
from integrity import revisions
from stages.common.digests import md5
from tests import inside
from tests.clones import Clone
from tests.forging import cached, entry, flip, locked, replace
from tests.imports import ROOT
from tests.toy import PIPELINE, Project, begun


def doctor(clone: Clone | Project) -> tuple[int, str]:
    """Exit status and output of `python -m integrity.doctor`."""
    status, stdout, stderr = inside.module(clone.path, clone.environment, "integrity.doctor")
    return status, stdout + stderr


def cure(clone: Clone | Project, output: str) -> None:
    """Run the printed fixes in a shell."""
    for line in output.splitlines():
        if line.startswith("    fix: "):
            clone.run("sh", "-c", line.removeprefix("    fix: ").partition(", or ")[0])


def torn_lock_that_can_be_read(clone: Clone) -> None:
    content = (clone.path / "dvc.lock").read_bytes()
    (clone.path / "dvc.lock").write_bytes(content[: content.index(b"\n  evaluate:\n") + 1])


def leftovers(clone: Clone) -> None:
    (clone.path / "data/model/.model.safetensors.abc.tmp").write_bytes(b"half")
    (clone.path / "runs/resume/a").mkdir(parents=True, exist_ok=True)
    (clone.path / "runs/resume/a/latest.unreadable").write_bytes(b"half")
    (clone.path / ".dvc/tmp/rwlock").write_text('{"a', encoding="utf-8")
    (clone.path / ".dvc/cache/runs/ab/abcd").mkdir(parents=True)
    (clone.path / ".dvc/cache/runs/ab/abcd/.x.tmp").write_bytes(b"")


def commit_elsewhere(clone: Clone) -> None:
    clone.run("git", "checkout", "-q", "--detach")
    clone.commit("forged")


def forged_model(clone: Clone) -> None:
    """Replace the model in the work tree, and in the cache under the name of the original."""
    for path in (clone.path / "data/model/model.safetensors", cached(clone, "data/model/model.safetensors")):
        content = path.read_bytes()
        replace(path, content[:-1] + bytes([content[-1] ^ 1]))


def forged_lock(clone: Clone) -> None:
    path = clone.path / "dvc.lock"
    model = entry(locked(clone)["stages"]["train"], "data/model/model.safetensors")
    before, _, train = path.read_text(encoding="utf-8").rpartition(f"md5: {model['md5']}")
    path.write_text(f"{before}md5: {'f' * 32}{train}", encoding="utf-8")
    commit_elsewhere(clone)


def forged_code(clone: Clone) -> None:
    with (clone.path / "stages/train/augmentation.py").open("a", encoding="utf-8") as file:
        file.write("# another line\n")
    commit_elsewhere(clone)


DAMAGE: dict[str, tuple[Callable[[Clone], object], list[str]]] = {
    "a bit in the cache": (
        lambda clone: flip(cached(clone, "data/model/model.safetensors")),
        [": damaged: its content does not match its name\n    fix: rm -f .dvc/cache/files/md5/"],
    ),
    "a forged model": (forged_model, ["data/model/model.safetensors: does not match dvc.lock"]),
    "a forged dvc.lock": (forged_lock, ["dvc.lock: evaluate read another data/model/model.safetensors than train"]),
    "forged code": (forged_code, ["stages/train: changed since train ran"]),
    "a parameter that was not run": (
        lambda clone: clone.set("evaluate.calibration_bins", "14"),
        ["params.yaml: evaluate: changed since evaluate ran"],
    ),
    "a torn dvc.lock that can be read": (
        torn_lock_that_can_be_read,
        [
            "dvc.lock: lacks the stage of evaluate: truncated, or dvc.yaml has changed",
            "fix: git checkout HEAD -- dvc.lock, or dvc repro\nhashed ",  # and nothing about its outputs
        ],
    ),
    "leftovers": (
        leftovers,
        [
            ".model.safetensors.abc.tmp: unfinished",
            "latest.unreadable: an unreadable checkpoint",
            ".dvc/tmp/rwlock: truncated",
            ".dvc/cache/runs/ab/abcd/.x.tmp: an unfinished entry",
            ".dvc/cache/runs/ab/abcd: an unfinished entry",
        ],
    ),
}


def test_an_undamaged_run(clone: Clone) -> None:
    status, output = doctor(clone)
    assert (status, "nothing to fix" in output) == (0, True), output


def soak(value: str | bool) -> Any:
    """A parameter of the long tests."""
    return pytest.param(value, marks=pytest.mark.soak, id=str(value))


SLOW = ("forged code", "a forged model", "a torn dvc.lock, committed")  # their fixes run the pipeline again


@pytest.mark.parametrize(
    "damage",
    [soak(name) if name in SLOW else name for name in DAMAGE],
)
def test_damage_is_found_and_fixed(clone: Clone, damage: str) -> None:
    inflict, expected = DAMAGE[damage]
    inflict(clone)
    status, output = doctor(clone)
    assert status == 1, output
    for part in expected:
        assert part in output
    cure(clone, output)
    status, output = doctor(clone)
    assert status == 0, output
    assert inside.run_dvc(clone.path, clone.environment, "status", "-q") == 0
    if damage not in ("forged code", "a parameter that was not run"):  # the fixes of these run a stage
        assert clone.run("git", "diff", "--stat", "main") == ""


def test_a_bit_without_a_cache(clone: Clone) -> None:
    """Each output is compared with dvc.lock, whether the cache has it or not."""
    cache, aside = clone.path / ".dvc/cache", clone.path.parent / "aside"
    cache.rename(aside)
    try:
        flip(clone.path / "data/raw/t10k-labels-idx1-ubyte")
        status, output = doctor(clone)
        assert (status, output.count(": does not match ")) == (1, 1)
        assert "data/raw/t10k-labels-idx1-ubyte: does not match dvc.lock" in output
        assert "data/predictions.csv: not in the cache" in output
        cure(clone, output)
        assert doctor(clone)[0] == 0
    finally:
        shutil.rmtree(cache, ignore_errors=True)
        aside.rename(cache)


def test_a_cache_that_was_moved_and_linked_back(clone: Clone) -> None:
    cache, elsewhere = clone.path / ".dvc/cache", clone.path.parent / "elsewhere"
    cache.rename(elsewhere)
    cache.symlink_to(elsewhere)
    try:
        flip(cached(clone, "data/predictions.csv"))
        (elsewhere / "runs/ab/abcd").mkdir(parents=True)
        status, output = doctor(clone)
        assert (status, output.count("fix: ")) == (1, 2)
        cure(clone, output)
        assert doctor(clone)[0] == 0
        assert inside.run_dvc(clone.path, clone.environment, "status", "-q") == 0
    finally:
        cache.unlink()
        elsewhere.rename(cache)


def test_files_of_file_managers_are_ignored(clone: Clone) -> None:
    names = (".DS_Store", "._train-images-idx3-ubyte", "Thumbs.db", "desktop.ini", ".nfs0001", ".ipynb_checkpoints/a")
    for name in names:
        (clone.path / "data/raw" / name).parent.mkdir(exist_ok=True)
        (clone.path / "data/raw" / name).touch()
    assert inside.run_dvc(clone.path, clone.environment, "status", "-q") == 0
    assert doctor(clone)[0] == 0
    clone.run("git", "clean", "-qfdx", "data/raw", "-e", "*ubyte")


def test_a_folder_is_compared_by_its_list_of_files(tmp_path: Path) -> None:
    """An output that is a folder, which the toy pipeline lacks."""
    project = Project(tmp_path / "clone")
    project.path.mkdir()
    project.run("git", "init", "-q")
    project.dvc("init", "-q")
    project.write("params.yaml", "a: 1\n")
    project.write(
        "dvc.yaml", "stages:\n  a:\n    cmd: mkdir -p b/c && cp params.yaml b/c/d\n    params: [a]\n    outs: [b]\n"
    )
    project.dvc("repro", "-q")
    project.commit("all")
    shutil.rmtree(project.path / ".dvc/cache")

    def says() -> str:
        return inside.module(project.path, project.environment, "integrity.doctor")[1]

    output = says()
    assert output.startswith("b: not in the cache")
    project.run("sh", "-c", output.splitlines()[1].removeprefix("    fix: "))
    assert "nothing to fix" in says()
    (project.path / "b/.DS_Store").touch()
    assert "b: does not match dvc.lock" in says()
    project.write(".dvcignore", (ROOT / ".dvcignore").read_text(encoding="utf-8"))
    assert "nothing to fix" in says()
    flip(project.path / "b/c/d")
    assert "b: does not match dvc.lock" in says()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A toy pipeline that has run, committed."""
    project = begun(tmp_path_factory.mktemp("toy") / "clone", "/data\n*.bak\n")
    project.set()
    project.dvc("repro", "-q")
    project.commit("all")
    return project


@pytest.fixture
def toy(ran: Project, tmp_path: Path) -> Project:
    """A copy of it, to be damaged."""
    return ran.copy(tmp_path / "clone")


def edited(name: str, before: str, after: str, commit: bool = False) -> Callable[[Project], None]:
    def inflict(project: Project) -> None:
        content = (project.path / name).read_text(encoding="utf-8")
        assert before in content
        project.write(name, content.replace(before, after, 1))
        if commit:
            project.run("git", "commit", "-qam", "edited")

    return inflict


def linked(name: str) -> Callable[[Project], None]:
    def inflict(project: Project) -> None:
        outside = project.path.parent / "outside"
        shutil.move(project.path / name, outside)
        (project.path / name).symlink_to(outside)

    return inflict


def piped(name: str) -> Callable[[Project], None]:
    def inflict(project: Project) -> None:
        (project.path / name).unlink()
        os.mkfifo(project.path / name)

    return inflict


def a_device(project: Project) -> None:
    (project.path / "data/predictions.csv").unlink()
    (project.path / "data/predictions.csv").symlink_to("/dev/zero")  # which is endless


def in_both(project: Project) -> None:
    flip(cached(project, "data/predictions.csv"))
    flip(project.path / "data/predictions.csv")


def torn_lock(project: Project) -> None:
    content = (project.path / "dvc.lock").read_bytes()
    (project.path / "dvc.lock").write_bytes(content[: content.rindex(b"md5: ") + 2])


def committed(damage: Callable[[Project], None]) -> Callable[[Project], None]:
    def inflict(project: Project) -> None:
        damage(project)
        project.run("git", "commit", "-qam", "damage")

    return inflict


def a_cut_in_the_last_number(project: Project) -> None:
    content = (project.path / "dvc.lock").read_bytes().rstrip()
    (project.path / "dvc.lock").write_bytes(content[:-1] + b"\n")


def an_unsafe_list(project: Project) -> None:
    content = json.dumps([{"md5": "0" * 32, "relpath": "../yaml.py"}]).encode()
    name = md5(content)
    place = project.path / f".dvc/cache/files/md5/{name[:2]}/{name[2:]}.dir"
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)


def a_forged_run(project: Project) -> None:
    place = next((project.path / ".dvc/cache/runs").glob("*/*/*"))
    place.write_text(place.read_text(encoding="utf-8").replace("data/", "stages/"), encoding="utf-8")


def forged_predictions(project: Project) -> None:
    path = project.path / "data/predictions.csv"
    replace(path, path.read_bytes().replace(b"0.9,", b"0.8,", 1))


def data_is_a_link(project: Project) -> None:
    (project.path / "data").rename(project.path.parent / "moved")
    (project.path / "data").symlink_to(project.path.parent / "moved")


FORGED = "  x:\n    cmd: y\n    outs:\n    - path: data/predictions.csv\n      md5: " + "f" * 32 + "\n      size: 1\n"
TOY_DAMAGE: dict[str, tuple[Callable[[Project], object], str]] = {
    "a bit in the cache and in the work tree": (in_both, ": damaged: its content does not match its name\n"),
    "a list that leads out of its folder": (an_unsafe_list, "unsafe to check out: lists '../yaml.py'"),
    "a run of other outputs": (a_forged_run, "unusable entry of the run cache: its content does not"),
    "forged predictions": (forged_predictions, "data/predictions.csv: does not match dvc.lock"),
    "forged metrics, committed": (
        edited("metrics/evaluate.json", '"accuracy": 0.', '"accuracy": 0.9', commit=True),
        "does not match dvc.lock: damaged, or changed by hand, also in HEAD\n"
        "    fix: rm -f metrics/evaluate.json && dvc repro",
    ),
    "a metric changed by hand": (
        lambda project: project.write("metrics/evaluate.json", "{}"),
        "does not match dvc.lock: damaged, or changed by hand\n    fix: git checkout HEAD -- metrics/evaluate.json",
    ),
    "an output gone": (
        lambda project: (project.path / "data/predictions.csv").unlink(),
        "data/predictions.csv: missing",
    ),
    "data is a link": (data_is_a_link, "data: a link to "),
    "a torn dvc.lock": (torn_lock, "fix: git checkout HEAD -- dvc.lock, or rm dvc.lock && dvc repro\n"),
    "a torn dvc.lock, committed": (
        committed(torn_lock),
        "    fix: rm dvc.lock && dvc repro\n",
    ),
    "a dvc.lock cut off in its last number": (a_cut_in_the_last_number, "truncated, or edited"),
    "the command in dvc.lock": (edited("dvc.lock", "cmd: python", "cmd: python -B"), "evaluate: ran with another comm"),
    "the command in dvc.yaml": (edited("dvc.yaml", "cmd: python", "cmd: python -B"), "evaluate: ran with another comm"),
    "an object gone": (lambda project: project.cached("HEAD").unlink(), "data/predictions.csv: not in the cache"),
    "a stage more, first": (
        edited("dvc.lock", "stages:\n", f"stages:\n{FORGED}"),
        "dvc.lock: x: not a stage of dvc.yaml",
    ),
    "a stage more, last": (
        lambda project: project.write("dvc.lock", (project.path / "dvc.lock").read_text(encoding="utf-8") + FORGED),
        "dvc.lock: x: not a stage of dvc.yaml",
    ),
    "the size of a dependency": (edited("dvc.lock", "size: 1", "size: 2"), "dvc.lock: evaluate read toy.py of 2"),
    "the size of a dependency, committed": (
        edited("dvc.lock", "size: 1", "size: 2", commit=True),
        "fix: dvc repro --force --single-item evaluate",
    ),
    "the configuration of DVC gone": (
        lambda project: (project.path / ".dvc/config").unlink(),
        ".dvc/config: missing, and Git tracks it\n    fix: git checkout -- .dvc/config",
    ),
    "an output is a link": (linked("data/predictions.csv"), "data/predictions.csv: a link to "),
    "a metric is a link": (linked("metrics/evaluate.json"), "metrics/evaluate.json: a link to "),
    "an output is a pipe": (piped("data/predictions.csv"), "data/predictions.csv: not a regular file, but"),
    "a metric is a pipe": (piped("metrics/evaluate.json"), "metrics/evaluate.json: not a regular file, but"),
    "code is a pipe": (piped("toy.py"), "toy.py: not a regular file, but"),
    "an object is a pipe": (
        lambda project: piped(str(project.cached("HEAD").relative_to(project.path)))(project),
        ": damaged: its content does not match its name",
    ),
    "an output is a device": (a_device, "data/predictions.csv: not a regular file, but"),
}


@pytest.mark.parametrize("damage", [soak(name) if name in SLOW else name for name in TOY_DAMAGE])
def test_damage_of_a_toy_pipeline_is_found_and_fixed(toy: Project, damage: str) -> None:
    inflict, expected = TOY_DAMAGE[damage]
    inflict(toy)
    status, output = doctor(toy)
    assert (status, expected in output) == (1, True), output
    cure(toy, output)
    status, output = doctor(toy)
    assert status == 0, output
    toy.dvc("status", "-q")
    if "dvc.yaml" not in damage and "committed" not in damage:
        assert toy.run("git", "status", "--porcelain") == ""
    assert (toy.path / "data/predictions.csv").is_file()


def test_an_undamaged_toy_pipeline(toy: Project) -> None:
    assert doctor(toy)[0] == 0


def test_garbage_collection_leaves_what_was_committed(toy: Project) -> None:
    """The command of docs/sharing.md."""
    (line,) = re.findall(r"^dvc (gc .*)$", (ROOT / "docs/sharing.md").read_text(encoding="utf-8"), re.MULTILINE)
    toy.branch("other", train={"seed": 1})
    committed = toy.cached("other")
    toy.set(train={"seed": 2})
    toy.dvc("repro", "-q")
    forgotten = cached(toy, "data/predictions.csv")
    toy.run("git", "checkout", "-qf", "main")
    toy.dvc("checkout", "-q")
    assert forgotten.is_file()
    toy.dvc(*line.split(), "-q", "--force")
    assert not forgotten.exists()
    assert committed.is_file()
    assert doctor(toy)[0] == 0
    toy.set(train={"seed": 2})
    toy.dvc("repro", "-q")
    assert forgotten.is_file()


def test_a_dvc_yaml_that_is_yaml_but_no_pipeline(toy: Project) -> None:
    toy.write("dvc.yaml", PIPELINE.replace("cmd:", "command:"))
    status, output = doctor(toy)
    assert (status, "dvc.yaml' validation failed: " in output) == (1, True), output
    assert "fix: edit it (`git diff HEAD -- dvc.yaml` shows what changed)" in output


def test_a_dvc_yaml_with_aliases(toy: Project) -> None:
    """DVC reads them."""
    toy.write("dvc.yaml", PIPELINE.replace("deps: [toy.py]", "deps: &code [toy.py]\n    meta: {code: *code}"))
    status, output = doctor(toy)
    assert status == 0, output


@pytest.fixture(scope="module")
def with_photos(ran: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The toy pipeline, a second pipeline in seeds/, and a folder that `dvc add` recorded."""
    project = ran.copy(tmp_path_factory.mktemp("photos") / "clone")
    for folder in ("seeds", "photos"):
        (project.path / folder).mkdir()
    project.write("seeds/dvc.yaml", "stages:\n  seed:\n    cmd: echo 1 > out\n    outs: [out]\n")
    for name in ("a.png", "b.png"):
        project.write(f"photos/{name}", name)
    project.dvc("repro", "-q", "seeds/dvc.yaml")
    project.dvc("add", "-q", "photos")
    project.commit("photos")
    return project


@pytest.fixture
def photos(with_photos: Project, tmp_path: Path) -> Project:
    """A copy of it, to be damaged."""
    return with_photos.copy(tmp_path / "clone")


def new_pictures(project: Project) -> None:
    project.write("photos/a.png", "edited")
    project.write("photos/c.png", "new")


def cut(name: str) -> Callable[[Project], None]:
    def inflict(project: Project) -> None:
        content = (project.path / name).read_text(encoding="utf-8")
        project.write(name, content[: content.index("md5:")] + "[")

    return inflict


def another_seed(project: Project) -> None:
    (project.path / "seeds/out").unlink()
    project.write("seeds/out", "2")
    shutil.rmtree(project.path / ".dvc/cache")
    project.dvc("commit", "-q", "--force", "photos.dvc", "evaluate")


PHOTOS_DAMAGE: dict[str, tuple[Callable[[Project], object], str]] = {
    "no pictures": (lambda project: shutil.rmtree(project.path / "photos"), "fix: python -m integrity.pull photos\n"),
    "a torn photos.dvc": (
        cut("photos.dvc"),
        "fix: git checkout HEAD -- photos.dvc, or rm photos.dvc && dvc add photos",
    ),
    "a torn photos.dvc, committed": (
        committed(cut("photos.dvc")),
        "photos.dvc: unable to read: 'photos.dvc', YAML file structure is corrupted\n"
        "    fix: rm photos.dvc && dvc add photos\n",
    ),
    "a torn seeds/dvc.lock": (cut("seeds/dvc.lock"), "fix: git checkout HEAD -- seeds/dvc.lock, or rm seeds/dvc.lock"),
    "an output of another pipeline": (
        another_seed,
        "seeds/out: does not match seeds/dvc.lock: damaged, or changed by hand\n"
        "    fix: rm -rf seeds/out && python -m integrity.pull seeds/out || dvc repro seeds/dvc.yaml:seed\n",
    ),
}


@pytest.mark.parametrize("damage", [name if "committed" in name else soak(name) for name in PHOTOS_DAMAGE])
def test_damage_beside_the_pipeline_is_found_and_fixed(photos: Project, damage: str) -> None:
    inflict, expected = PHOTOS_DAMAGE[damage]
    inflict(photos)
    status, output = doctor(photos)
    assert (status, expected in output) == (1, True), output
    cure(photos, output)
    assert doctor(photos)[0] == 0
    assert (photos.path / "photos/a.png").read_text() == "a.png"
    assert (photos.path / "seeds/out").read_text() == "1\n"


@pytest.mark.parametrize("keep", [True, soak(False)])
def test_changed_pictures_are_never_deleted(photos: Project, keep: bool) -> None:
    """They exist nowhere else."""
    new_pictures(photos)
    status, output = doctor(photos)
    assert (status, "photos: does not match photos.dvc: damaged, or changed by hand" in output) == (1, True), output
    (fixes,) = re.findall(r"^    fix: (.*)$", output, re.MULTILINE)
    photos.run("sh", "-c", fixes.split(", or if you did not change it: ")[0 if keep else 1])
    assert doctor(photos)[0] == 0
    changed, recorded = photos.path / ("photos" if keep else "photos.changed"), photos.path / "photos"
    assert [(changed / name).read_text() for name in ("a.png", "b.png", "c.png")] == ["edited", "b.png", "new"]
    assert (recorded / "a.png").read_text() == ("edited" if keep else "a.png")
    assert ("photos.dvc" in photos.run("git", "diff", "--name-only")) is keep


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_fixes_keep_files_that_people_write(toy: Project, name: str) -> None:
    lines = (toy.path / name).read_text(encoding="utf-8").count("\n")
    toy.write(name, (toy.path / name).read_text(encoding="utf-8") + "an edit: [\n")
    status, output = doctor(toy)
    assert status == 1, output
    line = re.search(rf"{name}:(\d+):\d+: not valid YAML", output)
    assert line
    assert int(line[1]) > lines
    assert f"fix: edit line {line[1]} (`git diff HEAD -- {name}` shows what changed)" in output
    assert f"checkout HEAD -- {name}" not in output


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_a_pipe_in_place_of_a_text_file_does_not_block(toy: Project, name: str) -> None:
    piped(name)(toy)
    status, output = doctor(toy)
    assert (status, output) == (
        2,
        f"error: {name}: not a regular file; `rm -r {name} && git checkout HEAD -- {name}`\n",
    )


STAGE = {
    "cmd": "python -m stages.evaluate",
    "deps": ["data/model", "stages/evaluate/__main__.py"],
    "params": ["evaluate", "model.name", {"other.yaml": ["x"]}, {"whole.yaml": None}],
    "outs": ["data/predictions.csv"],
    "metrics": [{"metrics/evaluate.json": {"cache": False}}],
    "plots": [{"metrics/plots/worst.png": {"cache": False}}],
}
LOCKED = """\
schema: '2.0'
stages:
  evaluate:
    cmd: python -m stages.evaluate
    deps:
    - path: data/model
      hash: md5
      md5: 43b78ab7f7cbc2ae5b2d6d6cdeb1b8ba.dir
      size: 12345
      nfiles: 3
    - path: stages/evaluate/__main__.py
      hash: md5
      md5: 926af2eca2c370b56fa5b8c94eb1b26b
      size: 386
    params:
      other.yaml:
        x: 1
      params.yaml:
        evaluate:
          batch_size: 250
          device: auto
        model.name: cnn
      whole.yaml:
        y: 2
    outs:
    - path: data/predictions.csv
      hash: md5
      md5: d0193be11ab497254ec667a4864050d9
      size: 1234567
    - path: metrics/evaluate.json
      hash: md5
      md5: 0854b413f00c47835ff806f26efcf9e2
      size: 7873
    - path: metrics/plots/worst.png
      hash: md5
      md5: a35ed8f63fb1e1c119d0996c1ee0de26
      size: 190215
"""
LAST = len("90215\n")  # truncated within it, the size is smaller; the file's size shows that


def test_a_dvc_lock_truncated_anywhere_is_found() -> None:
    content = LOCKED.encode()
    assert doctor_module.lock_faults(content, {"evaluate": STAGE}) == []
    for size in range(len(content)):
        faults = doctor_module.lock_faults(content[:size], {"evaluate": STAGE})
        assert len(faults) == 1, content[:size].decode()
        assert faults[0].startswith("dvc.lock: ")
        # The same, if a line ends there by chance.
        if content[size - 1 : size] not in (b"\n", b"") and size < len(content) - LAST:
            assert doctor_module.lock_faults(content[:size] + b"\n", {"evaluate": STAGE}), content[:size].decode()


@pytest.mark.soak
def test_the_committed_dvc_lock_truncated_anywhere_is_found(clone: Clone) -> None:
    """Within its last stage (a cut before that lacks this stage), at every seventh byte: reading it is slow."""
    content = (clone.path / "dvc.lock").read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone.path)
        with revisions.repository() as repo:
            stages = doctor_module.Clone(repo).stages
    head, *parts = re.split(r"(?m)^(?=  \w+:\n)", content)
    assert len(parts) == len(stages)
    name = parts[-1].strip().partition(":")[0]
    whole = (head + parts[-1]).encode()
    assert doctor_module.lock_faults(whole, {name: stages[name]}) == []
    for size in range(0, len(whole), 7):
        assert doctor_module.lock_faults(whole[:size], {name: stages[name]}), whole[:size].decode()
    without_it = "".join([head, *parts[:-1]]).encode()
    assert doctor_module.lock_faults(without_it, stages)


def test_outside_a_repository(clone: Clone, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "integrity.doctor"],
        cwd=tmp_path,
        env={**clone.environment, "PYTHONPATH": str(clone.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no commit of a DVC repository to read here")
    assert done.stderr.endswith("; run this in a clone of the project (`cd`), where .dvc is\n")
    assert len(done.stderr.splitlines()) == 1
