"""Every wrong parameter ends in one line that says what, where and how to mend it."""

import contextlib
import copy
import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dvc.utils.serialize import load_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from integrity.rules import MOVED, SCHEMAS
from integrity.rules import check as check_all
from integrity.rules import read as main
from stages.common import machine_settings, params
from stages.common.errors import UserError
from stages.common.machine_settings import Machine
from stages.dataset.registry import DATA_SETS
from stages.network import models
from stages.network.options import Cnn
from tests import forging

ROOT = Path(__file__).parent.parent
DEFAULTS = params.load(ROOT / "params.yaml")


def changed(key: str, value: Any, of: dict[str, Any] = DEFAULTS) -> dict[str, Any]:
    """The committed parameters, or others, with one key set."""
    values = copy.deepcopy(of)
    here = values
    *parents, last = key.split(".")
    for parent in parents:
        here = here[parent]
    here[last] = value
    return values


def check(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error text of the check of the whole file, or "" if it passes."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        main()
    except UserError as error:
        return str(error)
    return ""


def test_the_committed_file_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(DEFAULTS, tmp_path, monkeypatch) == ""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", 0, "params.yaml: train.epochs is 0; allowed: a whole number, at least 1, at most 100,000"),
        ("train.epochs", "5", "params.yaml: train.epochs is '5'; allowed: a whole number, at least 1, at most 100,000"),
        ("train.epochs", 2.5, "params.yaml: train.epochs is 2.5; allowed: a whole number, at least 1, at most 100,000"),
        ("train.epochs", True, "params.yaml: train.epochs is True; allowed: a whole number, at least 1"),
        ("train.epochs", None, "params.yaml: train.epochs is None; allowed: a whole number, at least 1"),
        ("train.seed", -1, "params.yaml: train.seed is -1; allowed: a whole number, at least 0"),
        ("train.shuffle", "yes", "params.yaml: train.shuffle is 'yes'; allowed: true | false"),
        (
            "train.optimizer",
            "adm",
            "params.yaml: train.optimizer is 'adm'; allowed: sgd | adam | adamw | rmsprop (did you mean adam?)",
        ),
        ("train.loss", ["mse"], "params.yaml: train.loss is ['mse']; allowed: cross_entropy | nll | mse | bce"),
        (
            "train.augmentation",
            "afine",
            "params.yaml: train.augmentation is 'afine'; allowed: a list (none | shift | affine | random_resized_crop "
            "| flip | colour_jitter | trivial_augment | random_erasing | mixup | cutmix), 1 or more (did you mean "
            "affine?)",
        ),
        (
            "train.augmentation",
            ["flip", "flop"],
            "params.yaml: train.augmentation.1 is 'flop'; allowed: a list (none | ",
        ),
        ("train.augmentation", ["flip", "flop"], "1 or more (did you mean flip?)"),
        ("preprocess.background", [0, 0], "allowed: a list (a whole number, at least 0, at most 255), 3 of them"),
        ("train.augmentation", [], "params.yaml: train.augmentation is []; allowed: a list (none | shift"),
        ("train.augmentation", None, "params.yaml: train.augmentation is None; allowed: a list (none | shift"),
        ("train.augmentation", ["flip", "affine", "mixup"], ""),
        ("train.augmentation", ["flip", "flip"], "params.yaml: train: augmentation has flip more than once; allowed: "),
        (
            "train.augmentation",
            ["none", "flip"],
            "params.yaml: train: augmentation has none and other names; allowed: n",
        ),
        ("train.clip_norm", -1, "params.yaml: train.clip_norm is -1; allowed: a number, at least 0"),
        (
            "train.select_by",
            "balanced",
            "allowed: accuracy | balanced_accuracy | loss (did you mean balanced_accuracy?)",
        ),
        ("train.class_weights", "balance", "allowed: none | balanced | effective (did you mean balanced?)"),
        (
            "class_weights.effective.beta",
            1,
            "params.yaml: class_weights.effective.beta is 1; allowed: a number, above 0",
        ),
        (
            "augmentations.random_erasing.scale",
            [0.5, 0.1],
            "params.yaml: augmentations.random_erasing: scale is [0.5, 0.1]; allowed: the smaller number first",
        ),
        (
            "augmentations.random_resized_crop.scale",
            [0.5],
            "augmentations.random_resized_crop.scale is [0.5]; allowed: a",
        ),
        (
            "augmentations.mixup.alpha",
            0,
            "params.yaml: augmentations.mixup.alpha is 0; allowed: a number, above 0, at m",
        ),
        ("train.batchsize", 3, "params.yaml: train.batchsize: unknown key (did you mean batch_size?); allowed: seed, "),
        ("optimizers.adam.lr", 0, "params.yaml: optimizers.adam.lr is 0; allowed: a number, above 0, at most 1,000"),
        ("optimizers.adam.lr", float("nan"), "params.yaml: optimizers.adam.lr is nan; allowed: a number, above 0"),
        ("optimizers.sgd.momentum", 1, "params.yaml: optimizers.sgd.momentum is 1; allowed: a number, at least 0, bel"),
        ("optimizers.sgd.nesterov", True, "params.yaml: optimizers.sgd: nesterov is true and momentum is 0; allowed: "),
        ("optimizers.adm", {}, "params.yaml: optimizers.adm: unknown (did you mean adam?); allowed: sgd, adam, adamw"),
        ("optimizers", 3, "params.yaml: optimizers.sgd: the section is missing"),
        ("models.cnn.channels", [32, 0], "params.yaml: models.cnn.channels.1 is 0; allowed: a list (a whole number, "),
        ("models.cnn.channels", [], "params.yaml: models.cnn.channels is []; allowed: a list (a whole number, at leas"),
        (
            "models.cnn.kernel_sizes",
            [4, 3],
            "params.yaml: models.cnn: kernel_sizes is [4, 3] and channels is [16, 32, 32, 64, 64];",
        ),
        ("models.cnn.pool_sizes", [2], "allowed: lists of the same length, one entry per block"),
        ("models.mlp", {}, "params.yaml: models.mlp.hidden is missing; allowed: a whole number, at least 1"),
        (
            "model.name",
            "cmn",
            "params.yaml: model.name is 'cmn'; allowed: mlp | cnn | torchvision (did you mean cnn?)",
        ),
        (
            "models.torchvision.architecture",
            "mobilenetv3_small",
            "params.yaml: models.torchvision.architecture is 'mobilenetv3_small'; allowed: a classification network of "
            "torchvision.models, such as resnet18, mobilenet_v3_small, vit_b_16 (did you mean mobilenet_v3_small?)",
        ),
        ("data.name", "minst", "(did you mean mnist?)"),
        ("data.mirrors", "http://x", "params.yaml: data.mirrors is 'http://x'; allowed: a list (text)"),
        ("data.mirrors", [3], "params.yaml: data.mirrors.0 is 3; allowed: a list (text)"),
        ("machine.threads", -1, "params.yaml: machine.threads is -1; allowed: a whole number, at least 0, at most 1,0"),
        ("machine.treads", 1, "params.yaml: machine.treads: unknown key (did you mean threads?); allowed: processes, "),
        ("train.threads", 2, "params.yaml: train.threads is now machine.threads: move it there"),
        ("train.num_workers", 2, "params.yaml: train.num_workers is now machine.num_workers: move it there"),
        ("evaluate.threads", 2, "params.yaml: evaluate.threads is now machine.threads: move it there"),
        ("evaluate", None, "params.yaml: evaluate is None; allowed: a mapping with device, "),
        ("schedules.constant", {"x": 1}, "params.yaml: schedules.constant.x: unknown key; allowed: nothing ({})"),
        ("trian", {}, "params.yaml: trian: unknown section (did you mean train?); allowed: data, preprocess, model, "),
        (
            "train.early_stopping_patience_epochs",
            3,
            "",  # right by itself
        ),
    ],
)
def test_a_wrong_value_gives_its_line(
    key: str, value: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = check(changed(key, value), tmp_path, monkeypatch)
    assert expected in text
    assert bool(text) == bool(expected)
    assert all(line.startswith("params.yaml: ") for line in text.splitlines())


def test_a_file_from_before_the_machine_settings_says_where_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {section: dict(options) for section, options in DEFAULTS.items() if section != "machine"}
    assert check(old, tmp_path, monkeypatch) == (
        "params.yaml: machine: the section is missing; add processes, threads, num_workers, log_every_steps, "
        "checkpoint_every_seconds, timeout_seconds"
    )
    old["train"] |= {key: value for key, value in DEFAULTS["machine"].items() if f"train.{key}" in MOVED}
    old["evaluate"]["threads"] = 0
    lines = check(old, tmp_path, monkeypatch).splitlines()
    assert len(lines) == 6  # each of the five, and the missing section
    assert {line.split()[1] for line in lines} == {*MOVED, "machine:"}


@pytest.mark.parametrize("name", Machine.model_fields)
def test_an_environment_variable_overrides_a_machine_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"MACHINE_{name.upper()}"
    monkeypatch.setenv(variable, "7")
    assert check(DEFAULTS, tmp_path, monkeypatch) == ""
    assert machine_settings.read(DEFAULTS).model_dump() == DEFAULTS["machine"] | {name: 7}
    monkeypatch.setenv(variable, "")
    assert machine_settings.read(DEFAULTS).model_dump() == DEFAULTS["machine"]
    for wrong in ("-1", "many", "[1", "1\n2", "{a: {b: 1}}", "9" * 5000, "\udcff"):
        monkeypatch.setenv(variable, wrong)
        text = check(DEFAULTS, tmp_path, monkeypatch)
        assert text.startswith(f"{variable} is {wrong[:80]!r}; allowed: a ") or text.startswith(
            f"{variable}: not a YAML"
        )
        assert len(text.splitlines()) == 1


def test_each_wrong_environment_variable_has_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE_THREADS", "x")
    monkeypatch.setenv("MACHINE_LOG_EVERY_STEPS", "1.5")
    ending = "(this environment variable overrides machine.{} of params.yaml; unset it to use that)"
    assert check(DEFAULTS, tmp_path, monkeypatch).splitlines() == [
        f"MACHINE_THREADS is 'x'; allowed: a whole number, at least 0, at most 1,024 {ending.format('threads')}",
        "MACHINE_LOG_EVERY_STEPS is '1.5'; allowed: a whole number, at least 1, at most 1,000,000 "
        + ending.format("log_every_steps"),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"preprocess.validation_fraction": 0, "train.early_stopping_patience_epochs": 3},
            "train.early_stopping_patience_epochs is 3, and preprocess.validation_fraction is 0, which leaves no image "
            "to stop on; allowed: 0, or a larger fraction",
        ),
        (
            {"preprocess.validation_fraction": 7.4e-5, "train.early_stopping_patience_epochs": 1},
            "leaves no image to stop",
        ),
        ({"preprocess.validation_fraction": 7.5e-5, "train.early_stopping_patience_epochs": 1}, ""),
        (
            {
                "data.name": "kmnist",
                "preprocess.validation_fraction": 8.3e-5,
                "train.early_stopping_patience_epochs": 1,
            },
            "leaves no image to stop on",
        ),
        (
            {"train.precision": "float16", "train.device": "cpu"},
            "train.precision is float16 and train.device is cpu; allowed: float16 on auto | cuda, or float32 | bfloat",
        ),
        ({"train.precision": "float16", "train.device": "mps"}, "train.precision is float16 and train.device is mps"),
        ({"train.precision": "float16", "train.device": "auto"}, ""),
        (
            {"models.cnn.pool_sizes": [2, 1, 2, 1, 7]},
            "models.cnn: block 5 leaves nothing of images of 6 x 6; set fewer, smaller or padded blocks",
        ),
        ({"models.cnn.kernel_sizes": [31, 3, 3, 3, 3]}, "models.cnn: block 1 leaves nothing of images of 28 x 28; set"),
        ({"models.cnn.pool_sizes": [2, 1, 2, 1, 6]}, ""),
        (
            {"models.cnn.pool_sizes": [2, 1, 2, 1, 6], "train.batch_size": 1},
            "train.batch_size is 1, and block 5 of models.cnn gives one pixel per image, but batch norm needs two val",
        ),
        ({"train.batch_size": 1}, ""),
        ({"models.cnn.pool_sizes": [2, 1, 2, 1, 6], "train.batch_size": 1, "model.name": "mlp"}, ""),
        ({"evaluate.calibration_bins": 1}, "evaluate.calibration_bins is 1; allowed: a whole number, at least 2"),
        (
            {"data.images": "photos"},
            "data.images is 'photos'; allowed: data/no-images, since data.name is mnist",
        ),
        (
            {"data.name": "images"},
            "data.images is 'data/no-images'; allowed: the folder or archive of your pictures, since data.name is",
        ),
        ({"data.name": "images", "data.images": "photos"}, ""),
        ({"data.name": "images", "data.images": "photos", "preprocess.image_size": 32}, ""),
        (
            {"data.name": "images", "data.images": "photos", "preprocess.image_size": [8, 64]},
            "models.cnn: block 5 leaves nothing of images of 1 x 15; set fewer, smaller or padded blocks",
        ),
        (
            {
                "data.name": "images",
                "data.images": "x",
                "preprocess.test_fraction": 0.5,
                "preprocess.validation_fraction": 0.5,
            },
            "preprocess.validation_fraction is 0.5 and preprocess.test_fraction 0.5; allowed: 0.9 at most together",
        ),
        ({"preprocess.test_fraction": 0.5, "preprocess.validation_fraction": 0.5}, ""),
        (
            {"preprocess.group_by": "path:("},
            "preprocess.group_by is 'path:('; allowed: none | column | path:REGULAR_EXPRESSION",
        ),
        ({"preprocess.image_size": 0}, "preprocess.image_size is 0; allowed: [height, width] or one number, 1 to 4096"),
        (
            {"preprocess.image_size": [9, 0]},
            "preprocess.image_size.1 is 0; allowed: [height, width] or one number, 1 to 4096 pixels",
        ),
    ],
    ids=[
        "no-validation",
        "none-of-mnist",
        "one-of-mnist",
        "none-of-kmnist",
        "float16-cpu",
        "float16-mps",
        "float16-auto",
        "pools-too-large",
        "kernel-too-large",
        "pools-to-one-pixel",
        "batch-norm",
        "batch-norm-of-more",
        "no-batch-norm",
        "bins",
        "pictures-of-mnist",
        "no-pictures",
        "pictures",
        "square-pictures",
        "flat-pictures",
        "nothing-to-train-on",
        "fractions-of-mnist",
        "group-by-no-pattern",
        "no-size",
        "no-width",
    ],
)
def test_rules_between_sections(
    changes: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = DEFAULTS
    for key, value in changes.items():
        values = changed(key, value, values)
    text = check(values, tmp_path, monkeypatch)
    assert expected in text
    assert bool(text) == bool(expected)


def test_the_largest_class_is_what_preprocess_counts() -> None:
    if DEFAULTS["data"]["name"] == "mnist":  # the committed run's
        counted = json.loads((ROOT / "metrics/data.json").read_text(encoding="utf-8"))["classes"]
        assert DATA_SETS["mnist"].largest_class == max(row["train"] + row["validation"] for row in counted)


BLOCKS = st.integers(1, 4).flatmap(
    lambda count: st.fixed_dictionaries(
        {
            "channels": st.just([2] * count),
            **{
                key: st.lists(st.integers(least, most), min_size=count, max_size=count)
                for key, least, most in (("kernel_sizes", 1, 9), ("paddings", 0, 3), ("pool_sizes", 1, 5))
            },
        }
    )
)


@settings(max_examples=100, deadline=None)
@given(BLOCKS)
def test_the_sizes_of_maps_are_those_of_the_network(blocks: dict[str, list[int]]) -> None:
    options: dict[str, Any] = {**blocks, "hidden": 0, "dropout": 0.0}
    try:
        sizes = Cnn.model_validate(options).map_sizes(28, 28)
    except ValueError as error:
        with pytest.raises(ValueError, match=re.escape(str(error))):
            models.cnn((1, 28, 28), 10, **options)
        return
    values, found = torch.zeros(2, 1, 28, 28), []
    for layer in models.cnn((1, 28, 28), 10, **options):
        values = layer(values)
        if isinstance(layer, torch.nn.ReLU):
            found.append((values.shape[2], values.shape[3]))
    assert found == sizes


@pytest.mark.parametrize(
    ("key", "shown"), [(1, "1: a key that is not text but int"), (True, "True: a key that is not")]
)
def test_keys_that_are_no_text(key: object, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = check({**DEFAULTS, "train": {**DEFAULTS["train"], key: 3}}, tmp_path, monkeypatch)
    assert text.startswith(f"params.yaml: train.{shown}")
    assert len(text.splitlines()) == 1


def leaves(key: str) -> list[str]:
    return [f"{key}.{name}" for name in SCHEMAS[key].model_fields]


@pytest.mark.parametrize("key", [leaf for key in SCHEMAS for leaf in leaves(key)])
@pytest.mark.parametrize("value", ["nonsense", -7, {"a": 1}, 10**30])
def test_every_key_refuses_nonsense(key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = check(changed(key, value), tmp_path, monkeypatch)
    assert text.startswith(f"params.yaml: {key} is ")
    assert "; allowed: " in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize("key", [leaf for key in SCHEMAS for leaf in leaves(key)])
def test_no_key_has_a_default(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = copy.deepcopy(DEFAULTS)
    here = values
    *parents, last = key.split(".")
    for parent in parents:
        here = here[parent]
    del here[last]
    assert f"params.yaml: {key} is missing; allowed: " in check(values, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"a: 1\na: 2\n", ':2:1: not valid YAML: found duplicate key "a" with value "2"', id="duplicate"),
        pytest.param(b"a: &x 1\nb: *x\n", ":2:4: not valid YAML: aliases (*name) are not allowed", id="alias"),
        pytest.param(b"a: [1, 2\nb: 3\n", ":2:", id="open-list"),
        pytest.param(
            b"a: !!python/object/apply:os.system [ls]\n", ":1:4: not valid YAML: could not determine", id="tag"
        ),
        pytest.param("seed: é\n".encode("latin-1"), ": not UTF-8 text (byte 6)", id="latin-1"),
        pytest.param("seed: 1\n".encode("utf-16"), ": not UTF-8 text", id="utf-16"),
        pytest.param(b"\x00", ":1:1: not valid YAML: the character U+0000 is not allowed", id="nul"),
        pytest.param(b"a: 1\r\nb: 2\x07", ":2:5: not valid YAML: the character U+0007 is not", id="bell"),
        pytest.param(b"a:\n\tb: 1\n", ":2:1: not valid YAML: found character", id="tab"),
        pytest.param(b"just text\n", ": contains no mapping of section: options", id="text"),
        pytest.param(b"", ": contains no mapping of section: options", id="empty"),
        pytest.param(b"a: " + b"9" * 10_000, ": not valid YAML: Exceeds the limit", id="long-number"),
        pytest.param(b"a: 0x_", ": not valid YAML: invalid literal", id="no-number"),
        pytest.param(b"a: !!float ''", ": not valid YAML: string index", id="empty-number"),
        pytest.param(b"a: !!bool maybe", ": not valid YAML: 'maybe'", id="no-bool"),
        pytest.param(b"a: 2024-02-31", ": not valid YAML: day is out of range", id="no-date"),
        pytest.param(b"%YAML 1.1\n---\na: " + b"1:" * 300 + b"1.5", ": not valid YAML: int too large", id="huge-base"),
        pytest.param(b"!!omap [a: 1, a: 2]", ": not valid YAML: AssertionError", id="omap"),
        pytest.param(b"a: " + b"[" * 5_000 + b"]" * 5_000, ":1:53: not valid YAML: nested more than 50", id="deep"),
        pytest.param(b"? {a: 1}\n: 1\n", ":1:3: not valid YAML: found unhashable key", id="mapping-as-key"),
        pytest.param(b"#" * (params.MAX_BYTES + 1), ": larger than 1,000,000 bytes", id="huge"),
    ],
)
def test_a_file_that_is_no_yaml(content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        params.load(Path("params.yaml"))
    assert str(caught.value).startswith(f"params.yaml{expected}")
    assert len(str(caught.value).splitlines()) == 1


def ours(content: bytes) -> str:
    """The value that the stages read, or "refused" and why."""
    try:
        return repr(params.parse_mapping(content, "params.yaml"))
    except UserError as error:
        return f"refused: {error}"


def dvcs(content: bytes) -> str:
    """The value that DVC reads of the same file, or "refused"."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_bytes(content)
        try:
            with warnings.catch_warnings(action="ignore"):
                return repr(load_yaml(str(path)))
        except Exception:  # of broken YAML; and whatever Python says of `0x_`, which DVC lets through
            return "refused"


# What DVC reads and the stages refuse, each with a reason.
STRICTER = ("aliases (*name)", "nested more than", "contains no mapping", "larger than")


def assert_read_alike(content: bytes) -> None:
    here, there = ours(content), dvcs(content)
    if here.startswith("refused"):
        assert there == "refused" or any(reason in here for reason in STRICTER), (here, there)
    else:
        assert here == there


SCALARS = [
    *("5", "-0", "010", "0o17", "0x1F", "0b11", "1_000", "12:30", "1:30:00", "+12", "0x_", "0b_", "_1", "1__0", "1_"),
    *("1e-5", "1E3", "1e+3", ".5", ".5e3", ".5e+3", "+.5", "-.5", "1.", "1._5", "1_0.5", "190:20:30.15", "1e999"),
    *(".inf", "-.INF", "+.inf", ".nan", ".NaN", "inf", "nan", "Infinity"),
    *(
        "2024-01-01",
        "2024-02-31",
        "2024-1-1",
        "2024-01-01 12:00:00",
        "2024-01-01T12:00:00.5Z",
        "2024-01-01T12:00:00+25:00",
    ),
    *("true", "True", "TRUE", "tRue", "yes", "no", "on", "off", "y", "n", "none", "None", "~", "null", "NULL", ""),
    *(
        "'5'",
        '"5"',
        '"\\x41\\u00e9"',
        "'it''s'",
        "|\n  5\n",
        ">-\n  5\n",
        "a b",
        "a#b",
        "a #b",
        "=",
        "<<",
        "@a",
        "`a`",
        "%a",
    ),
    *("!!int '5'", "!!int 5.0", "!!str 5", "!!float 5", "!!float ''", "!!bool yes", "!!bool maybe", "!!null x"),
    *("!!binary aGk=", "!!binary é", "!!timestamp 2024-01-01", "!!timestamp x", "!!set {a, b}", "!!omap [a: 1, b: 2]"),
    *(
        "!!omap [a: 1, a: 2]",
        "!!pairs [a: 1]",
        "!!python/none",
        "!!python/object/apply:os.getcwd []",
        "!local 5",
        "! 5",
    ),
    *("[1, [2, 3]]", "[a: 1]", "{a: 1, a: 2}", "{1: a, 0x1: b}", "{1: a, true: b}", "{[1]: 2}", "{a, b: 2}", "[,]"),
    *(
        "{<<: {a: 1}, a: 2}",
        "{<<: [{a: 1}, {a: 2}]}",
        "{<<: 3}",
        "{<<: {a: 1}, <<: {b: 1}}",
        "&x 5",
        "&x [&x 1]",
        "[*x]",
    ),
    *(
        "&x [*x]",
        "\t5",
        "5\t",
        "[1,\t2]",
        "5\u00a0",
        "\u2028",
        "\ufeff5",
        "\u0085",
        "\ud7ff",
        "😀",
        "\x7f",
        "\x00",
        "- 5",
    ),
]
HEADS = ["", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n", "%YAML 1.3\n---\n", "%TAG ! tag:x,2000:\n---\n", "\ufeff", "---\n"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("head", HEADS, ids=["plain", "1.1", "1.2", "1.3", "tag", "bom", "marker"])
def test_scalars_are_read_as_dvc_reads_them(head: str, end: str) -> None:
    for scalar in SCALARS:
        assert_read_alike(f"{head}a: {scalar}\nb: 1\n".replace("\n", end).encode())


@pytest.mark.parametrize(
    ("text", "value"), [("010", 10), ("0x1F", 31), ("1_000", 1000), ("1e-5", 1e-5), ("+.5", 0.5), ("no", "no")]
)
def test_what_yaml_1_2_makes_of_scalars(text: str, value: Any) -> None:
    assert ours(f"a: {text}\n".encode()) == dvcs(f"a: {text}\n".encode()) == repr({"a": value})


def test_the_version_that_a_file_names_counts() -> None:
    assert params.parse_mapping(b"%YAML 1.1\n---\nlr: 010\non: yes\n", "x") == {"lr": 8, True: True}


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(HEADS),
    st.lists(st.sampled_from(SCALARS) | st.text("-+.0123456789_eExXoOb:tTzZ nNyYfF~'\"", max_size=8), max_size=4),
    st.sampled_from(["{key}: {scalar}\n", "{scalar}: {key}\n", "? {scalar}\n: [{scalar}]\n", "{key}:\n  {scalar}\n"]),
)
def test_any_file_is_read_as_dvc_reads_it(head: str, scalars: list[str], form: str) -> None:
    lines = "".join(form.format(key=f"k{number}", scalar=scalar) for number, scalar in enumerate(scalars))
    assert_read_alike(f"{head}{lines}".encode())


@settings(max_examples=200, deadline=None)
@given(forging.mutated_bytes((ROOT / "params.yaml").read_bytes()))
def test_a_damaged_file_is_read_as_dvc_reads_it(content: bytes) -> None:
    assert_read_alike(content)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; run from the top of the repository"):
        params.load(tmp_path / "params.yaml")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8")))
def test_no_bytes_end_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    message = "no mistake"
    try:
        lines = check_all(params.load(path))
        assert all(line.startswith("params.yaml: ") for line in lines)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


# What a person, a tool or an enemy may have written where an option stands.
ANYTHING = st.recursive(
    forging.JSON | st.dates() | st.binary(max_size=8) | st.integers().map(lambda number: number * 10**20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
PLACES = [*SCHEMAS, *(leaf for key in SCHEMAS for leaf in leaves(key))]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(PLACES), ANYTHING, min_size=1, max_size=3) | ANYTHING)
def test_no_structure_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    values = drawn
    if isinstance(drawn, dict) and all(place in PLACES for place in drawn):
        values = copy.deepcopy(DEFAULTS)
        for place, value in drawn.items():
            *parents, last = place.split(".")
            here: Any = values
            for parent in parents:
                here = here.setdefault(parent, {}) if isinstance(here, dict) else {}
            if isinstance(here, dict):
                here[last] = value
    folder = tmp_path_factory.getbasetemp()
    (folder / "params.yaml").write_text(yaml.dump(values), encoding="utf-8")
    text = ""
    with contextlib.chdir(folder):
        try:
            main()
        except UserError as error:
            text = str(error)
    assert all(line.startswith("params.yaml") for line in text.splitlines())
    assert len(text) < 100_000


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-7", "cp037"]),
    st.text(max_size=20),
    st.data(),
)
def test_no_encoding_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, encoding: str, comment: str, data: st.DataObject
) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8") + f"# é\u00ff {comment}\n"
    content = text.encode(encoding, errors="replace")
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content)))
        content = (
            content[:at] + data.draw(st.sampled_from([b"\0", b"\xff", b"\x85", b"\t", b"&a [*a, *a]"])) + content[at:]
        )
    path = tmp_path_factory.getbasetemp() / "encoded.yaml"
    path.write_bytes(content)
    message = "no mistake"
    try:
        params.load(path)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


def test_aliases_that_explode_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]  # 9 to the power of 20 items
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"aliases \(\*name\) are not allowed"):
        params.load(path)


def test_a_stage_by_itself_names_a_key_that_is_no_text() -> None:
    with pytest.raises(UserError, match=r"params.yaml: data.0: unknown key; allowed: name, task, images, mirrors"):
        params.section({"data": {**DEFAULTS["data"], 0: 1}}, "data", SCHEMAS["data"])


def test_as_a_program(tmp_path: Path) -> None:
    values = changed("train.epochs", -3)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "integrity.params"]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml: train.epochs is -3; allowed: ")
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]  # no lock, no folder, no output
