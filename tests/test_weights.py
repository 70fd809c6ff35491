"""Pretrained weights: torchvision's files from a mirror, files of your own, and what a network makes of them."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model

from integrity import rules
from stages.common import params, paths
from stages.common.errors import UserError
from stages.dataset.data_card import DataCard
from stages.dataset.mirrors import Limits
from stages.network import model_file, models, pretrained, torchvision_models, weights_file
from stages.network.model_file import Spec
from stages.network.options import Architecture, FineTuning
from stages.network.random_layers import Dropout
from stages.network.weights_file import NOTHING, Origin, Weights
from stages.train import fine_tuning, optimizers
from stages.weights import __main__ as weights_stage
from stages.weights import convert, own, published
from stages.weights.published import Published
from tests import servers
from tests.imports import ROOT
from tests.test_fit import same

NAME: Architecture = "shufflenet_v2_x0_5"  # the smallest of torchvision's networks
FAST = Limits(connect_seconds=2, silence_seconds=2)
CLASSES = ["cat", "dog", "eel"]


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """A network as torchvision publishes it: of 1,000 classes."""
    torch.manual_seed(5)
    network: nn.Module = get_model(NAME, weights=None)
    return network


@pytest.fixture(scope="module")
def pickled(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("pickled") / "weights.pth"
    torch.save(theirs.state_dict(), path)
    return path.read_bytes()


def named(content: bytes) -> Published:
    """What torchvision would say of this file."""
    known = published.look_up(NAME)
    digits = hashlib.sha256(content).hexdigest()[:8]
    return known._replace(folder="http://mirror.invalid", name=f"shufflenet-{digits}.pth", size=len(content))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(**options: Any) -> None:
    """Write a params.yaml that chooses torchvision's network with these options."""
    values = params.load(ROOT / "params.yaml")
    values["model"]["name"] = "torchvision"
    values["weights"]["mirrors"] = options.pop("mirrors", [])
    values["models"]["torchvision"].update(architecture=NAME, **options)
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


def model(classes: int = len(CLASSES), dropout: float = 0.0, architecture: str = NAME, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    options: dict[str, object] = {"architecture": architecture, "dropout": dropout}
    return models.build("torchvision", options, (3, 32, 32), classes, [0.5] * 3, [0.25] * 3)


def network(full_model: nn.Sequential) -> nn.Module:
    return full_model.get_submodule("1.network")


def own_file(path: Path, full_model: nn.Sequential, dropout: float) -> None:
    """Write a model as the train stage does."""
    spec = Spec(
        format=1,
        model="torchvision",
        options={"architecture": NAME, "dropout": dropout},
        image_shape=[3, 32, 32],
        classes=CLASSES,
        output="softmax",
    )
    model_file.write(path, full_model, spec)


# --- published by torchvision


def test_published_weights_come_from_a_mirror_as_safetensors(
    theirs: nn.Module, pickled: bytes, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = named(pickled)
    monkeypatch.setattr(published, "look_up", lambda architecture: known)
    monkeypatch.setenv("SECRET", "s3cret")
    with servers.serving(servers.web_page) as bad, servers.serving(servers.sending(pickled)) as good:
        choose(weights="default", mirrors=[str(here), bad, good])
        weights_stage.main()
    log = capsys.readouterr().out
    assert f"skipping a mirror: {here}: has no {known.name}\n" in log
    assert f"skipping a mirror: {bad}: {known.name}: has the wrong bytes (SHA-256 " in log
    weights = weights_file.read(paths.PRETRAINED)
    assert weights
    assert same(weights.tensors, theirs.state_dict())
    assert weights.origin.sha256 == hashlib.sha256(pickled).hexdigest()  # all of it, where torchvision names 8 digits
    assert weights.origin.source == f"http://mirror.invalid/{known.name}"
    assert (weights.origin.mean, weights.origin.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert len(weights.origin.classes or []) == 1000
    first = paths.PRETRAINED.read_bytes()
    (here / known.name).write_bytes(pickled)
    weights_stage.main()  # from a folder, and with the same bytes
    assert paths.PRETRAINED.read_bytes() == first
    assert not list(paths.RUNS.glob("weights-*"))


class Code:
    """A pickle that runs a program when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def pickle_of(content: object, path: Path) -> bytes:
    torch.save(content, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"weight": Code()}, "it names posix.system, which weights do not need"),
        ([torch.zeros(1)], "it is not a state dict: a mapping of names to tensors"),
        ({"model": {"weight": torch.zeros(1)}}, "it is not a state dict: a mapping of names to tensors"),
        ({"weight": torch.zeros(1)}, f"it does not contain the weights of {NAME}: Missing key(s) in state_dict: "),
        (b"no pickle at all", "it is not a file of torch.save, or is damaged"),
        (None, "it is not a file of torch.save, or is damaged"),
    ],
    ids=["code", "list", "nested", "other network", "text", "truncated"],
)
def test_a_file_that_holds_no_weights_is_refused(
    content: object, reason: str, pickled: bytes, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", WeightsEnum.get_state_dict)  # which is put back after the test
    raw = content if isinstance(content, bytes) else pickle_of(content, here / "x") if content else pickled[:-1000]
    (here / "file").write_bytes(raw)
    assert convert.convert(NAME, "file", "out").startswith(reason)
    assert not (here / "ran").exists()
    assert not (here / "out").exists()


def test_a_mirror_with_another_file_is_skipped_and_all_reasons_are_in_one_message(here: Path, pickled: bytes) -> None:
    evil = pickle_of({"weight": Code()}, here / "evil")  # with the digits that torchvision names
    known = named(evil)._replace(size=len(evil))
    with (
        servers.serving(servers.sending(evil)) as first,
        servers.serving(servers.sending(pickled)) as large,
        pytest.raises(UserError) as caught,
    ):
        published.fetch(known, [first, large], FAST)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"no mirror has the weights of {NAME}; add one to weights.mirrors of params.yaml: a dir")
    assert lines[1].endswith(f"{known.name}: cannot be converted: it names posix.system, which weights do not need")
    assert "is larger than" in lines[2]
    assert lines[3].startswith(f"  http://mirror.invalid: {known.name}: no connection (")


def test_what_torchvision_says_of_each_architecture() -> None:
    means: dict[Architecture, float] = {"resnet18": 0.485, "googlenet": 0.5, "efficientnet_v2_l": 0.5}
    for name, mean in means.items():
        known = published.look_up(name)
        assert (known.mean[0], len(known.classes)) == (mean, 1000)
        assert known.digits in known.name
    with pytest.raises(UserError, match="its name has no digits of a SHA-256, so it cannot be checked"):
        _ = known._replace(name="weights.pth").digits


def test_an_architecture_without_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models.get_model_weights", lambda name: [])
    with pytest.raises(UserError, match="weights is default, and torchvision publishes none for shufflenet_v2_x0_5; a"):
        published.look_up(NAME)


def test_a_run_without_pretrained_weights_imports_no_torch(here: Path) -> None:
    choose()
    code = "import sys; from stages.weights.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert paths.PRETRAINED.read_bytes() == NOTHING
    assert weights_file.read(paths.PRETRAINED) is None
    choose(weights="default")
    values = params.load(paths.PARAMS)
    values["model"]["name"] = "cnn"
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    weights_stage.main()  # another network: nothing is fetched
    assert paths.PRETRAINED.read_bytes() == NOTHING


# --- your own


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_of_another_run_gives_weights(dropout: float, here: Path) -> None:
    before = model(dropout=dropout)
    own_file(paths.WEIGHTS / "mine.safetensors", before, dropout)
    choose(weights="mine.safetensors")
    weights_stage.main()
    weights = weights_file.read(paths.PRETRAINED)
    assert weights
    assert weights.origin.classes == CLASSES
    assert (weights.origin.mean, weights.origin.std) == ([0.5] * 3, [0.25] * 3)
    for other_dropout in (0.0, 0.2):  # the layer is one level deeper behind a dropout
        other = model(dropout=other_dropout, seed=1)
        names = pretrained.load(other, weights, NAME, CLASSES)
        assert names == {name for name in other.state_dict() if name.startswith("1.")}  # the last layer, too
        images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
        assert torch.equal(other.eval()(images), before.eval()(images))
    # The output of the stage is a file of your own for another run.
    (here / paths.WEIGHTS / "again.safetensors").write_bytes(paths.PRETRAINED.read_bytes())
    again = own.read(paths.WEIGHTS / "again.safetensors")
    assert again.origin.classes == CLASSES
    assert same(again.tensors, weights.tensors)


def test_a_plain_safetensors_file_gives_weights(theirs: nn.Module, here: Path) -> None:
    save_file(theirs.state_dict(), "plain.safetensors")
    weights = own.read(Path("plain.safetensors"))
    assert weights.origin == Origin(source="plain.safetensors", sha256=weights.origin.sha256)  # nothing else is known
    fresh = model()
    before = copy.deepcopy(fresh.state_dict())
    names = pretrained.load(fresh, weights, NAME, CLASSES)
    after = fresh.state_dict()
    assert {name for name in after if name not in names} == {
        *("0.mean", "0.std", "1.network.fc.weight", "1.network.fc.bias")
    }
    assert torch.equal(after["1.network.fc.weight"], before["1.network.fc.weight"])  # new: three classes, not 1,000
    given = theirs.state_dict()
    assert all(torch.equal(after[name], given[name.removeprefix("1.network.")]) for name in names)
    card = DataCard(classes=CLASSES, image_shape=[3, 2, 2], mean=[0.1] * 3, std=[0.2] * 3, normalization="weights")
    with pytest.raises(UserError, match="normalization is weights, and plain.safetensors does not state mean and std"):
        fine_tuning.normalization(card, weights)


def spec_with(**changes: Any) -> dict[str, str]:
    spec = {"model": "torchvision", "options": {"architecture": NAME}, "classes": CLASSES}
    return {"spec": json.dumps({**spec, **changes})}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (spec_with(model="mlp"), "its header has model: Input should be 'torchvision'"),
        (spec_with(options={"architecture": "resnet"}), "its header has options.architecture: Input should be "),
        (spec_with(), "its header cannot be read ('0.mean')"),
        ({"spec": "{"}, "its header cannot be read (Expecting property name"),
        ({"weights": "{}"}, "its header has source: Field required"),
    ],
)
def test_a_file_of_something_else(metadata: dict[str, str], reason: str, here: Path) -> None:
    save_file({"a": torch.zeros(1)}, "x.safetensors", metadata)
    with pytest.raises(UserError) as caught:
        own.read(Path("x.safetensors"))
    assert str(caught.value).startswith(f"x.safetensors: {reason}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"\xff" * 100, None])
def test_a_damaged_file(content: bytes | None, here: Path, theirs: nn.Module) -> None:
    path = Path("x.safetensors")
    save_file(theirs.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-10] if content is None else content)
    with pytest.raises(UserError, match=r"^x.safetensors: not a safetensors file, or damaged \(.*\); allowed: a "):
        own.read(path)
    paths.PRETRAINED.parent.mkdir(parents=True)
    path.replace(paths.PRETRAINED)
    with pytest.raises(UserError, match="not a file of the stage weights; `dvc repro --force weights` rebuilds it"):
        weights_file.read(paths.PRETRAINED)


def test_a_file_that_is_missing(here: Path) -> None:
    with pytest.raises(UserError, match="data/weights/x.safetensors: no such file; put it there, or set another model"):
        own.read(paths.WEIGHTS / "x.safetensors")
    with pytest.raises(UserError, match="data/pretrained/weights.safetensors: no such file; `dvc repro` makes it"):
        weights_file.read(paths.PRETRAINED)


# --- in a network


def weights_of(theirs: nn.Module, changes: dict[str, Tensor | None], **facts: Any) -> Weights:
    tensors = {**theirs.state_dict(), **changes}
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return Weights(present, Origin(source="file", sha256="0" * 64, **facts))


@pytest.mark.parametrize(
    ("changes", "facts", "reason"),
    [
        ({}, {"architecture": "resnet18"}, "file: the weights are of resnet18, not of shufflenet_v2_x0_5; set another"),
        (
            {"conv1.0.weight": None},
            {},
            "file: the tensor conv1.0.weight of shufflenet_v2_x0_5 is missing; set another ",
        ),
        (
            {"extra": torch.zeros(1)},
            {},
            "file: the tensor extra is not one of shufflenet_v2_x0_5; set another models.t",
        ),
        (
            {"conv1.0.weight": torch.zeros(24, 1, 3, 3)},
            {},
            "file: the tensor conv1.0.weight is float32 [24, 1, 3, 3], and shufflenet_v2_x0_5 has float32 [24, 3, ",
        ),
        (
            {"conv1.0.weight": torch.zeros(24, 3, 3, 3, dtype=torch.float16)},
            {},
            "file: the tensor conv1.0.weight is float16 [24, 3, 3, 3], and shufflenet_v2_x0_5 has float32 [24, 3, ",
        ),
        (
            {"conv1.1.bias": torch.full([24], torch.nan)},
            {},
            "file: the tensor conv1.1.bias holds NaN or infinite weigh",
        ),
        (
            {},
            {"classes": ["a", "b"]},
            "file: lists 2 classes, and its last layer has 1000; set another models.torchvis",
        ),
    ],
    ids=["architecture", "missing", "extra", "shape", "type", "NaN", "classes"],
)
def test_weights_of_another_network(
    changes: dict[str, Tensor | None], facts: dict[str, Any], reason: str, theirs: nn.Module
) -> None:
    with pytest.raises(UserError) as caught:
        pretrained.load(model(), weights_of(theirs, changes, **facts), NAME, CLASSES)
    assert str(caught.value).startswith(reason)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_for_images_of_another_size() -> None:
    with torch.device("meta"):
        small, large = model(architecture="vit_b_32"), get_model("vit_b_32", weights=None)
    weights = weights_of(large, {})
    first = {"encoder.pos_embedding": weights.tensors["encoder.pos_embedding"]}
    with pytest.raises(
        UserError, match=r"pos_embedding is float32 \[1, 50, 768\].*\[1, 2, 768\]; the weights are for im"
    ):
        pretrained.load(small, Weights(first, weights.origin), "vit_b_32", CLASSES)


def test_counters_that_older_files_lack_are_not_needed(theirs: nn.Module) -> None:
    counters = {name: None for name in theirs.state_dict() if name.endswith("num_batches_tracked")}
    assert counters
    full_model = model()
    names = pretrained.load(full_model, weights_of(theirs, dict(counters)), NAME, CLASSES)
    assert len(names) + len(counters) + 2 == len(theirs.state_dict())  # but for the last layer


@pytest.mark.parametrize(("choice", "trained"), [("none", None), ("backbone", ("fc.",)), (5, ("conv5.", "fc."))])
def test_what_is_frozen_stays_as_it_is(choice: int | str, trained: tuple[str, ...] | None) -> None:
    full_model = model(dropout=0.5)
    pretrained.freeze(full_model, choice)
    before = copy.deepcopy(network(full_model).state_dict())
    full_model.train()
    optimizer = torch.optim.SGD(optimizers.groups(full_model, (), 0.1, 1), lr=0.1)
    for _ in range(2):
        full_model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).square().sum().backward()
        optimizer.step()
    changed = {
        name for name, tensor in network(full_model).state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if trained is None or name.startswith(trained)}
    copied = copy.deepcopy(full_model)  # as each shard has one
    assert [m.training for m in copied.train().modules()] == [m.training for m in full_model.train().modules()]
    assert network(full_model).get_submodule("fc.0").training  # the dropout before the last layer is its own
    assert not any(module.training for module in full_model.eval().modules())


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "vit_b_32", "vgg11", "squeezenet1_1", "swin_t"])
def test_the_backbone_is_all_but_the_last_layer(architecture: str) -> None:
    with torch.device("meta"):
        full_model = model(architecture=architecture, dropout=0.5)
    pretrained.freeze(full_model, "backbone")
    trained = [name for name, weight in network(full_model).named_parameters() if weight.requires_grad]
    head, _ = torchvision_models.head(network(full_model))
    assert trained == [f"{head}.weight", f"{head}.bias"]
    drops = [m for m in full_model.train().modules() if isinstance(m, Dropout) and m.training]
    assert len(drops) == 1


def test_more_parts_than_there_are() -> None:
    expected = "models.torchvision.freeze is 7, and the network has 6 parts before the one with its last layer: conv1, "
    with pytest.raises(UserError, match=expected):
        pretrained.freeze(model(), 7)


def test_pretrained_weights_have_a_learning_rate_of_their_own() -> None:
    full_model = model()
    everything = dict(full_model.named_parameters())
    names = {name for name in everything if not name.startswith("1.network.fc.")}
    new, slow = optimizers.groups(full_model, names, 0.1, 0.5)
    assert (new["lr"], slow["lr"]) == (0.1, 0.05)
    assert [id(p) for p in new["params"]] == [id(everything[f"1.network.fc.{leaf}"]) for leaf in ("weight", "bias")]
    assert len(slow["params"]) == len(names)
    (one,) = optimizers.groups(full_model, names, 0.1, 1)
    assert [id(p) for p in one["params"]] == [id(p) for p in full_model.parameters()]
    (all_slow,) = optimizers.groups(full_model, set(everything), 0.1, 0.5)  # the same classes: no weight is new
    assert all_slow["lr"] == 0.05


@pytest.mark.parametrize(
    ("stated", "channels", "expected"),
    [
        ([0.2, 0.4, 0.6], 3, [0.2, 0.4, 0.6]),
        ([0.2, 0.4, 0.6], 1, [0.4]),  # a grey image in a network of colours
        ([0.4], 3, [0.4] * 3),
    ],
)
def test_the_normalization_of_the_weights(stated: list[float], channels: int, expected: list[float]) -> None:
    origin = Origin(source="file", sha256="0" * 64, mean=stated, std=stated)
    mean, std = pretrained.normalization(origin, channels)
    assert mean == pytest.approx(expected)
    assert std == pytest.approx(expected)


def test_a_normalization_by_weights_needs_some() -> None:
    card = DataCard(classes=CLASSES, image_shape=[3, 2, 2], mean=[0.1] * 3, std=[0.2] * 3, normalization="weights")
    with pytest.raises(
        UserError, match="preprocess.normalization is weights, and training starts with new weights; al"
    ):
        fine_tuning.normalization(card, None)
    values = params.load(ROOT / "params.yaml")
    values["preprocess"]["normalization"] = "weights"
    assert rules.check(values) == [
        "params.yaml: preprocess.normalization is weights, and model.name is cnn, so there are no pretrained weights; "
        "allowed: dataset | half | none"
    ]
    values["model"]["name"] = "torchvision"
    (line,) = rules.check(values)
    assert "is weights, and models.torchvision.weights is none, so" in line
    values["models"]["torchvision"]["weights"] = "default"
    assert rules.check(values) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"weights": "imagenet"},
            "weights is 'imagenet'; allowed: none | default | a .safetensors file in data/weights",
        ),
        ({"weights": "../x.safetensors"}, "weights is '../x.safetensors'; allowed: none | default"),
        ({"weights": "/x.safetensors"}, "weights is '/x.safetensors'; allowed: none | default"),
        ({"freeze": 0}, "freeze is 0; allowed: none | backbone | the number of first parts that are not trained"),
        ({"freeze": True}, "freeze is True; allowed: none | backbone"),
        ({"freeze": "backbone"}, "freeze is backbone and weights is none, so there are no pretrained weights; allowed"),
        (
            {"lr_factor": 0.1},
            "lr_factor is 0.1 and weights is none, so there are no pretrained weights; allowed: lr_fac",
        ),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], reason: str) -> None:
    values = params.load(ROOT / "params.yaml")
    values["models"]["torchvision"] |= options
    (line,) = rules.check(values)
    assert reason in line


def test_options_that_make_sense() -> None:
    for weights in ("default", "birds.safetensors", "2026/birds.safetensors"):
        FineTuning(weights=weights, freeze=3, lr_factor=0.1)
