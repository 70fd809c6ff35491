"""dvc.yaml declares every module that a stage imports, every parameter it reads, and every path it uses."""

import ast
import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.fs import localfs
from dvc.ignore import DvcIgnoreFilter
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB

from export.paths import MODEL as EXPORTED
from stages.common import params, paths
from stages.common.errors import UserError
from stages.common.machine_settings import Machine
from stages.common.params import Section
from stages.dataset.options import DataName
from stages.dataset.registry import DATA_SETS
from stages.download.options import Data
from stages.evaluate.options import Evaluate
from stages.network.options import NO_WEIGHTS, PUBLISHED
from stages.preprocess.options import Preprocess
from stages.train import options as train_params
from stages.weights import options as weights_options
from stages.weights.options import Weights
from tests.imports import ROOT, closure

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
DEFAULTS = params.load(ROOT / "params.yaml")

# Files that Python, its tools, editors and file managers leave in a folder of code.
JUNK = (
    "__pycache__/loop.cpython-312.pyc",
    "__pycache__/loop.cpython-312.pyc.140245",
    ".mypy_cache/3.11/loop.json",
    ".ruff_cache/1",
    ".pytest_cache/1",
    ".import_linter_cache/1",
    ".ipynb_checkpoints/loop-checkpoint.py",
    ".idea/workspace.xml",
    ".vscode/settings.json",
    ".DS_Store",
    "._loop.py",
    "Thumbs.db",
    "desktop.ini",
    ".nfs0001",
    "loop.py~",
    ".loop.py.swp",
    ".#loop.py",
    "#loop.py#",
    "loop.py.orig",
    "loop.py.rej",
    "loop.tmp",
)


def module(name: str) -> str:
    """The module that a stage runs as a program."""
    program = STAGES[name]["cmd"].removeprefix("python -m ")
    return f"{program}.__main__" if (ROOT / program.replace(".", "/")).is_dir() else program


def declared(name: str) -> set[str]:
    """The files and folders of code that a stage depends on."""
    return {path for path in STAGES[name]["deps"] if path.partition("/")[0] in ("stages", "review", "integrity")}


def covers(entry: str, path: str) -> bool:
    """Whether a dependency is this file, or a folder that contains it."""
    return path == entry or path.startswith(f"{entry}/")


def folder_md5(root: Path, path: str) -> str:
    """The MD5 of a folder as DVC computes it: of a list of its files, without those in .dvcignore."""
    ignore = DvcIgnoreFilter(localfs, str(root))
    _, _, tree = build(HashFileDB(localfs, str(root)), str(root / path), localfs, "md5", dry_run=True, ignore=ignore)
    return str(tree.hash_info.value)


def test_git_ignores_every_cached_output_and_no_other() -> None:
    """By the .gitignore at the top: DVC keeps one beside each output otherwise, and loses it with the folder."""
    cached = ["data/seeds/metrics/0.json", EXPORTED.as_posix()]
    kept: list[str] = []
    for stage in STAGES.values():
        for output in [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]:
            path, options = next(iter(output.items())) if isinstance(output, dict) else (output, {})
            (cached if options.get("cache", True) else kept).append(path)
    asked = subprocess.run(
        ["git", "check-ignore", "-v", *cached, *kept], cwd=ROOT, check=False, capture_output=True, text=True
    )
    rules = [line.split("\t") for line in asked.stdout.splitlines()]
    assert {path: rule.split(":")[0] for rule, path in rules} == dict.fromkeys(cached, ".gitignore")
    assert "metrics/evaluate.json" in kept


def test_each_stage_runs_its_own_module() -> None:
    assert {name: stage["cmd"] for name, stage in STAGES.items()} == {
        "check": "python -m integrity.check",
        **{name: f"python -m stages.{name}" for name in ("download", "preprocess", "weights", "train", "evaluate")},
    }


@pytest.mark.parametrize("name", STAGES)
def test_the_imports_of_a_stage_lie_inside_the_code_it_declares_and_no_declared_code_is_unneeded(name: str) -> None:
    needed, code = closure(module(name)), declared(name)
    assert [path for path in sorted(needed) if not any(covers(entry, path) for entry in code)] == []
    assert [entry for entry in sorted(code) if not any(covers(entry, path) for path in needed)] == []
    assert [entry for entry in sorted(code) if not (ROOT / entry).exists()] == []


# Modules, and the stages that a change of them must not run, since these do not import them.
@pytest.mark.parametrize(
    ("path", "others"),
    [
        ("stages/dataset/packed.py", ["download"]),
        ("stages/dataset/registry.py", ["train", "evaluate"]),
        ("stages/dataset/mirrors.py", ["train", "evaluate"]),
        ("stages/network/models.py", ["download", "preprocess", "weights"]),
        ("stages/weights/published.py", ["download", "preprocess", "train", "evaluate"]),
        ("stages/evaluate/scores.py", ["download", "preprocess", "train"]),
        ("stages/train/options.py", ["download", "preprocess", "evaluate"]),
        ("integrity/git.py", ["download", "preprocess", "train", "evaluate"]),
    ],
)
def test_no_stage_depends_on_a_module_that_it_does_not_import(path: str, others: list[str]) -> None:
    assert (ROOT / path).is_file()
    assert [name for name in others if any(covers(entry, path) for entry in declared(name))] == []


@pytest.mark.parametrize("junk", JUNK)
def test_caches_and_files_of_editors_do_not_count_as_code(junk: str, tmp_path: Path) -> None:
    for name in (".dvcignore", "stages/train/loop.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    before = folder_md5(tmp_path, "stages/train")
    (tmp_path / "stages/train" / junk).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "stages/train" / junk).write_bytes(b"junk")
    assert folder_md5(tmp_path, "stages/train") == before
    (tmp_path / "stages/train/more.py").write_bytes(b"")
    assert folder_md5(tmp_path, "stages/train") != before  # otherwise the comparison above proves nothing


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_depends_on_the_pinned_packages(name: str) -> None:
    assert "requirements.txt" in STAGES[name]["deps"]


def outputs(stage: dict[str, Any]) -> set[str]:
    listed = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in listed}


RAW = {paths.TRAIN_IMAGES, paths.TRAIN_LABELS, paths.TEST_IMAGES, paths.TEST_LABELS}


def test_every_data_set_has_the_files_that_dvc_yaml_names() -> None:
    for data_set in DATA_SETS.values():
        assert {paths.RAW / file.name for file in data_set.files} == RAW


def test_only_the_splits_are_folders() -> None:
    """DVC does not check the list of a folder's files, so an output that is a folder needs `make pull`."""
    folders = {
        Path(path)
        for stage in STAGES.values()
        for path in outputs(stage)
        if not Path(path).suffix and Path(path) not in RAW
    }
    assert folders == {paths.TRAIN, paths.VALIDATION, paths.TEST}


# Inputs whose paths are parameters.
NAMED_BY_PARAMETERS = {
    "preprocess": {"${data.images}"},
    "weights": {f"{paths.WEIGHTS.as_posix()}/${{models.torchvision.weights}}"},
}
# The paths of stages/common/paths.py that each stage reads, and those that it writes.
DATA: dict[str, tuple[set[Path], set[Path]]] = {
    "check": (set(), {paths.CHECKED}),
    "download": (set(), RAW),
    "preprocess": (
        RAW,  # and the folder that data.images names
        {paths.TRAIN, paths.VALIDATION, paths.TEST, paths.DATA_CARD, paths.DATA_METRICS},
    ),
    "weights": (set(), {paths.PRETRAINED}),  # and the file that models.torchvision.weights names
    "train": (
        {paths.TRAIN, paths.VALIDATION, paths.DATA_CARD, paths.PRETRAINED},
        {paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES},
    ),
    "evaluate": (
        {paths.TEST, paths.DATA_CARD, paths.DATA_METRICS, paths.MODEL},
        {
            paths.PREDICTIONS,
            paths.MODEL_CARD,
            paths.TEST_METRICS,
            paths.CONFUSION,
            paths.RELIABILITY,
            paths.UNSCALED_RELIABILITY,
            paths.OVERVIEW,
            paths.WORST,
        },
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_paths_are_those_of_the_code(name: str) -> None:
    reads, writes = DATA[name]
    data = set(STAGES[name]["deps"]) - declared(name) - {"requirements.txt"}
    assert {entry for entry in data if "$" in entry} == NAMED_BY_PARAMETERS.get(name, set())
    fixed = {entry for entry in data if "$" not in entry}
    assert fixed - {paths.CHECKED.as_posix()} == {path.as_posix() for path in reads}
    assert outputs(STAGES[name]) == {path.as_posix() for path in writes}
    source = (ROOT / f"{module(name).replace('.', '/')}.py").read_text(encoding="utf-8")
    constants = {getattr(paths, constant) for constant in re.findall(r"paths\.([A-Z_]+)", source)}
    of_raw = {paths.RAW} if paths.RAW in constants else set()  # the files of its folder, by their names in the data set
    assert constants - of_raw - {paths.PARAMS, paths.WEIGHTS} == (reads | writes) - (RAW if of_raw else set())
    assert (paths.PARAMS in constants) == (name != "check")  # which reads it in integrity/rules.py


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_runs_before_all_parameters_are_checked(name: str) -> None:
    """Each stage itself: after `dvc freeze download`, for example, nothing depends on `check` through download."""
    assert (paths.CHECKED.as_posix() in STAGES[name]["deps"]) == (name != "check")


def test_the_check_reads_every_section_but_the_machine_settings() -> None:
    assert set(STAGES["check"]["params"]) == set(DEFAULTS) - {"machine"}


@pytest.mark.parametrize("path", ["dvc.yaml", "seeds/dvc.yaml", "export/dvc.yaml"])
def test_no_stage_depends_on_a_machine_setting(path: str) -> None:
    """Such a stage would run again for changes that cannot change its results."""
    assert "machine" in DEFAULTS
    for stage in yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))["stages"].values():
        entries = json.dumps({key: value for key, value in stage.items() if key != "desc"})
        assert not re.search(r"\bmachine\b", entries)  # neither as a parameter nor in a command
        assert "params.yaml" not in entries  # neither as a dependency nor as DVC's form for "all keys"


@pytest.mark.parametrize("name", STAGES)
def test_metrics_and_plots_are_in_git_and_the_rest_in_the_cache(name: str) -> None:
    for entry in [*STAGES[name].get("metrics", []), *STAGES[name].get("plots", [])]:
        assert [options["cache"] for options in entry.values()] == [False]
    assert all(isinstance(entry, str) for entry in STAGES[name]["outs"])  # cached, and no `persist`


# The schema of each parameter that dvc.yaml names.
READS: dict[str, set[tuple[str, type[Section]]]] = {
    "download": {("data.name", Data), ("data.mirrors", Data)},
    "preprocess": {
        ("data.name", DataName),
        ("data.task", DataName),
        ("data.images", DataName),
        ("preprocess", Preprocess),
    },
    "evaluate": {("data.name", DataName), ("evaluate", Evaluate)},
}
UNREAD = {
    (stage, key) for stage in ("download", "evaluate") for key in ("images", "task")
}  # the section is checked whole


@pytest.mark.parametrize("name", READS)
def test_the_parameters_are_those_of_the_schemas(name: str) -> None:
    assert set(STAGES[name]["params"]) == {key for key, _ in READS[name]}
    for schema in {schema for _, schema in READS[name]}:
        keys = [key.partition(".") for key, other in READS[name] if other is schema]
        leaves = {leaf for section, _, key in keys for leaf in ([key] if key else DEFAULTS[section])}
        assert {field for field in schema.model_fields if (name, field) not in UNREAD} == leaves


def test_the_weights_stage_reads_the_parameters_that_it_declares() -> None:
    keys = ("model.name", "models.torchvision.architecture", "models.torchvision.weights", "weights")
    assert STAGES["weights"]["params"] == [*keys]
    declared = {"model": {"name": "torchvision"}, "weights": {"mirrors": []}}
    start = {"architecture": "resnet18", "weights": "default"}
    read = weights_options.read({**declared, "models": {"torchvision": start}})
    assert read == ("resnet18", "default", [])
    assert set(Weights.model_fields) == set(DEFAULTS["weights"])


@pytest.mark.parametrize("weights", [NO_WEIGHTS, PUBLISHED])
def test_weights_that_are_no_file_of_your_own_have_a_file_for_dvc(weights: str) -> None:
    """dvc.yaml has no conditions, and its dependencies have to exist."""
    assert (ROOT / paths.WEIGHTS / weights).is_file()


def train_keys(values: dict[str, Any]) -> list[str]:
    """The keys of the train stage with dvc.yaml's ${…} filled in, as DVC does."""

    def value(match: re.Match[str]) -> str:
        section, leaf = match[1].split(".")
        return str(values[section][leaf])

    return [re.sub(r"\$\{([^}]+)\}", value, key) for key in STAGES["train"]["params"]]


def only(values: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The parameters with only these keys."""
    chosen: dict[str, Any] = {}
    for key in keys:
        section, _, leaf = key.partition(".")
        if leaf:
            chosen.setdefault(section, {})[leaf] = values[section][leaf]
        else:
            chosen[section] = values[section]
    return copy.deepcopy(chosen)


def every_choice() -> list[dict[str, Any]]:
    """The default parameters with each model, optimizer, schedule, class weighting and augmentation in turn."""
    rows = []
    for section, key, options in (
        ("model", "name", DEFAULTS["models"]),
        ("train", "optimizer", DEFAULTS["optimizers"]),
        ("train", "schedule", DEFAULTS["schedules"]),
        ("train", "class_weights", DEFAULTS["class_weights"]),
        ("train", "augmentation", DEFAULTS["augmentations"]),
    ):
        for option in options:
            values = copy.deepcopy(DEFAULTS)
            values[section][key] = option
            rows.append(values)
    rows.append(copy.deepcopy(DEFAULTS))
    rows[-1]["train"]["augmentation"] = ["random_resized_crop", "flip"]
    return rows


@pytest.mark.parametrize(
    "values", every_choice(), ids=lambda v: "-".join([*train_keys(v)[2:-1], str(v["train"]["augmentation"])])
)
def test_train_reads_what_it_declares_and_nothing_else(values: dict[str, Any]) -> None:
    # DVC cannot fill a list into a key: all augmentations are declared, but only the chosen ones are read.
    names = values["train"]["augmentation"]
    chosen = [f"augmentations.{name}" for name in ([names] if isinstance(names, str) else names)]
    assert "augmentations" in train_keys(values)
    keys = [key for key in train_keys(values) if key != "augmentations"] + chosen
    declared = only(values, keys)
    assert train_params.read(declared) == train_params.read(values)  # no undeclared key is read
    for key in keys:  # and every declared key is read
        section, _, leaf = key.partition(".")
        for option in list(declared[section][leaf] if leaf and isinstance(declared[section][leaf], dict) else []):
            less = copy.deepcopy(declared)
            del less[section][leaf][option]
            with pytest.raises(UserError, match="is missing"):
                train_params.read(less)
    for leaf in declared["train"]:
        less = copy.deepcopy(declared)
        del less["train"][leaf]
        with pytest.raises(UserError, match="is missing"):
            train_params.read(less)


def options_used(stage: str, name: str) -> set[str]:
    """The attributes of `name`, a variable or an attribute, that the modules of a stage read."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "stages" / stage).glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value) == name}


def test_train_uses_every_option_it_reads() -> None:
    used = options_used("train", "train") | options_used("train", "config.train")
    assert used - {"model_dump"} == set(train_params.Train.model_fields)


def test_train_uses_every_block_that_it_reads() -> None:
    assert options_used("train", "config") - {"_asdict", "starts_pretrained"} == set(train_params.Config._fields)


def test_the_machine_settings_are_those_of_the_schema_and_all_are_used() -> None:
    assert list(DEFAULTS["machine"]) == list(Machine.model_fields)
    assert options_used("train", "machine") >= set(Machine.model_fields)


def test_evaluate_uses_every_option_it_reads() -> None:
    assert options_used("evaluate", "options") == set(Evaluate.model_fields)
