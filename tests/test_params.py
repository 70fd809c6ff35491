"""Every wrong parameter ends in one line that says what, where and how to mend it."""

import contextlib
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import params
from stages.errors import UserError
from stages.params.whole import SCHEMAS
from stages.params.whole import check as check_all
from stages.params.whole import read as main
from tests import forging

ROOT = Path(__file__).parent.parent
DEFAULTS = params.load(ROOT / "params.yaml")


def changed(key: str, value: Any) -> dict[str, Any]:
    """The committed parameters with one key set."""
    values = copy.deepcopy(DEFAULTS)
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
        ("models.cnn.pool_sizes", [2], "allowed: lists of the same length, an entry a block"),
        ("models.mlp", {}, "params.yaml: models.mlp.hidden is missing; allowed: a whole number, at least 1"),
        ("model.name", "cmn", "params.yaml: model.name is 'cmn'; allowed: mlp | cnn (did you mean cnn?)"),
        ("data.name", "minst", "(did you mean mnist?)"),
        ("data.mirrors", "http://x", "params.yaml: data.mirrors is 'http://x'; allowed: a list (text)"),
        ("data.mirrors", [3], "params.yaml: data.mirrors.0 is 3; allowed: a list (text)"),
        ("evaluate", None, "params.yaml: evaluate is None; allowed: a mapping with batch_size, device, "),
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


def test_rules_between_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = changed("preprocess.validation_fraction", 0)
    values["train"]["early_stopping_patience_epochs"] = 3
    assert "there is nothing to stop on; allowed: 0, or a fraction" in check(values, tmp_path, monkeypatch)


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
        (b"a: 1\na: 2\n", "params.yaml:2:1: not valid YAML: the key 'a' stands twice"),
        (b"a: &x 1\nb: *x\n", "params.yaml:2:4: not valid YAML: aliases (*name) are not allowed"),
        (b"a: [1, 2\nb: 3\n", "params.yaml:2:"),
        (b"a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("seed: é\n".encode("latin-1"), "params.yaml: not UTF-8 text (byte 6)"),
        ("seed: 1\n".encode("utf-16"), "params.yaml: not UTF-8 text"),
        (b"\x00", "params.yaml: not valid YAML"),
        (b"just text\n", "params.yaml: holds no mapping of section: options"),
        (b"", "params.yaml: holds no mapping of section: options"),
        (b"a: " + b"9" * 10_000, "params.yaml: not valid YAML"),
        (b"a: " + b"[" * 5_000 + b"]" * 5_000, "params.yaml: not valid YAML"),
        (b"? [a]\n: 1\n", "params.yaml:1:3: not valid YAML: a key is not plain text"),
        (b"#" * (params.MAX_BYTES + 1), "params.yaml: larger than 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_yaml(content: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        params.load(Path("params.yaml"))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),  # PyYAML alone reads text: what `dvc exp run -S lr=1e-5` writes would not be a number
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5", 5),
        ("-0", 0),
        ("none", "none"),
        ("no", "no"),
        ("on", "on"),
        ("~", None),
        ("true", True),
        ("0x1F", "0x1F"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_scalars_are_read_as_dvc_reads_them(text: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"a: {text}\n", encoding="utf-8")
    loaded = params.load(path)["a"]
    assert loaded == value
    assert type(loaded) is type(value)


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
    with pytest.raises(UserError, match=r"params.yaml: data.0: unknown key; allowed: name, mirrors"):
        params.section({"data": {**DEFAULTS["data"], 0: 1}}, "data", SCHEMAS["data"])


def test_as_a_program(tmp_path: Path) -> None:
    values = changed("train.epochs", -3)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "stages.params"]
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: params.yaml: train.epochs is -3; allowed: ")
    assert "Traceback" not in done.stderr
