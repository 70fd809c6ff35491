"""torchvision's networks: built by name, adapted to the data, and repeatable."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, list_models

from stages.common import params
from stages.common.errors import UserError
from stages.dataset.data_card import DataCard
from stages.network import device, model_file, models, pretrained, torchvision_models
from stages.network.losses import LOSSES, OUTPUTS
from stages.network.model_file import Spec
from stages.network.options import Architecture
from stages.network.random_layers import Dropout, StochasticDepth
from stages.network.weights_file import Origin, Weights
from stages.train import checks, optimizers, options
from stages.train.augmentation import compose
from stages.train.checkpoint import Checkpoints
from stages.train.optimizers import OPTIMIZERS
from stages.train.recipe import Recipe
from stages.train.trainer import Trainer
from tests.imports import ROOT
from tests.test_fit import one_thread_an_operation, same

CLASSES, SIDE = 7, 32

# One of each family that takes images of 32 x 32 pixels. mnasnet refuses weights without the version of their layout.
QUICK = ["shufflenet_v2_x0_5", "mnasnet0_5"]
LARGE = [
    *("convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "resnet18"),
    *("regnet_x_400mf", "regnet_y_400mf", "squeezenet1_1", "swin_t", "vit_b_32"),
]
BY_DAY = ["efficientnet_b0", "vit_b_32"]
FAMILIES = [
    *QUICK,
    *(pytest.param(name, marks=pytest.mark.soak if name in BY_DAY else pytest.mark.night) for name in LARGE),
]


def build(architecture: str, dropout: float = 0.0, channels: int = 3, side: int = SIDE, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    options: dict[str, object] = {"architecture": architecture, "dropout": dropout}
    moments = [0.4] * channels
    return models.build("torchvision", options, (channels, side, side), CLASSES, moments, moments)


def images(count: int, channels: int = 3, side: int = SIDE) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_the_names_are_torchvisions() -> None:
    assert list(get_args(Architecture)) == list_models(module=torchvision.models)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_network_computes_what_torchvisions_does(architecture: str) -> None:
    ours = build(architecture).eval()
    torch.manual_seed(0)
    size: dict[str, Any] = {"image_size": SIDE} if architecture.startswith("vit") else {}
    if architecture == "googlenet":
        size = {"aux_logits": False, "init_weights": True}
    theirs = get_model(architecture, weights=None, num_classes=CLASSES, **size).to(memory_format=torch.channels_last)
    assert same(ours.get_submodule("1.network").state_dict(), theirs.state_dict())
    normalized = (images(2) - 0.4 * 255) / (0.4 * 255)
    assert torch.allclose(ours(images(2)), theirs.eval()(normalized), atol=1e-4)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_model_file_restores_the_network(architecture: Architecture, tmp_path: Path) -> None:
    network, options = build(architecture, dropout=0.1).eval(), {"architecture": architecture, "dropout": 0.1}
    spec = Spec(
        format=model_file.FORMAT,
        model="torchvision",
        options=options,
        image_shape=[3, SIDE, SIDE],
        classes=list("abcdefg"),
        output="softmax",
    )
    model_file.write(tmp_path / "model", network, spec)
    read, read_spec = model_file.read(tmp_path / "model")
    assert read_spec == spec
    assert torch.equal(read(images(2)), network(images(2)))


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(name, marks=pytest.mark.night if number % 8 else pytest.mark.soak)
        for number, name in enumerate(get_args(Architecture))
    ],
)
def test_every_network_takes_images_of_224_pixels(architecture: str) -> None:
    """On the meta device: the largest network has 645 million weights."""
    with torch.device("meta"):
        network = build(architecture, channels=1, side=224)
    batch = images(2, 1, 224).to("meta")
    assert network.train()(batch).shape == network.eval()(batch).shape == (2, CLASSES)
    theirs = (nn.Dropout, torchvision.ops.StochasticDepth)
    assert not any(isinstance(layer, theirs) for layer in network.modules())


def test_a_grey_image_is_given_to_all_three_channels() -> None:
    grey, colour = build("shufflenet_v2_x0_5", channels=1).eval(), build("shufflenet_v2_x0_5").eval()
    assert torch.equal(grey(images(2, 1)), colour(images(2, 1).expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="shufflenet_v2_x0_5 takes images of 1 or 3 channels; these have 2"):
        build("shufflenet_v2_x0_5", channels=2)


# The probability of each dropout layer, in order, if 0.3 is to be before the last layer.
@pytest.mark.parametrize(
    ("architecture", "probabilities"),
    [
        ("mobilenet_v3_small", [0.3]),  # instead of torchvision's 0.2
        ("shufflenet_v2_x0_5", [0.3]),  # where torchvision has none
        ("vgg11", [0.5, 0.3]),  # the first is torchvision's own
        ("squeezenet1_1", [0.3]),  # its last layer is a convolution
        ("swin_t", [0.3]),
        ("vit_b_32", [0.3]),
    ],
)
def test_dropout_is_before_the_last_layer(architecture: str, probabilities: list[float]) -> None:
    with torch.device("meta"):
        without, network = build(architecture), build(architecture, dropout=0.3)
    assert [layer.p for layer in network.modules() if isinstance(layer, Dropout)] == probabilities
    assert [layer.p for layer in without.modules() if isinstance(layer, Dropout)] == probabilities[:-1]
    assert models.parameter_count(without) == models.parameter_count(network)


def test_stochastic_depth_drops_whole_images_with_its_own_generator() -> None:
    layer, values = StochasticDepth(0.25), torch.ones(4000, 2, 3)
    layer.generator = torch.Generator().manual_seed(0)
    first = layer(values)
    layer.generator.manual_seed(0)
    torch.manual_seed(5)  # the global generator
    assert torch.equal(layer(values), first)
    rows = first.flatten(1)
    assert rows.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(rows.amin(1), rows.amax(1))
    assert rows.mean().item() == pytest.approx(1, abs=0.05)
    assert layer.eval()(values) is values
    with torch.device("meta"):
        depths = [layer.p for layer in build("efficientnet_b0").modules() if isinstance(layer, StochasticDepth)]
    assert depths == pytest.approx([0.2 * block / 16 for block in range(16)])


@pytest.mark.parametrize("shape", [(1, 1), (6, 6), (13, 7), (5, 20)])
def test_pooling_by_products_is_adaptive_average_pooling(shape: tuple[int, int]) -> None:
    """It is for GPUs, where torch refuses the gradient of its own."""
    values = torch.randn(2, 3, *shape, requires_grad=True)
    pool = torchvision_models.AdaptiveAveragePool(6, 7)
    results, gradients = [], []
    for pooled in (pool(values), pool.as_products(values), nn.AdaptiveAvgPool2d((6, 7))(values)):
        results.append(pooled.detach())
        gradients.append(torch.autograd.grad(pooled.square().sum(), values)[0])
    assert torch.equal(results[0], results[2])  # on a CPU, it is torch's own
    assert torch.allclose(results[1], results[2], atol=1e-6)
    assert torch.allclose(gradients[1], gradients[2], atol=1e-5)


@pytest.mark.parametrize("architecture", ["alexnet", "vgg11", "squeezenet1_1", "resnet18"])
def test_no_network_has_a_pooling_whose_gradient_cuda_refuses(architecture: str) -> None:
    with torch.device("meta"):
        network = build(architecture)
    sizes = [layer.output_size for layer in network.modules() if isinstance(layer, nn.AdaptiveAvgPool2d)]
    assert set(sizes) <= {1, (1, 1)}
    replaced = [layer for layer in network.modules() if isinstance(layer, torchvision_models.AdaptiveAveragePool)]
    assert len(replaced) == (architecture in ("alexnet", "vgg11"))


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_a_network_for_regression_can_output_negative_numbers(architecture: str) -> None:
    torch.manual_seed(0)
    shape, options = (3, SIDE, SIDE), {"architecture": architecture, "dropout": 0.2}
    network = models.build("torchvision", options, shape, 1, [0.4] * 3, [0.4] * 3).eval()
    with torch.no_grad():
        head, _ = torchvision_models.head(network.get_submodule("1.network"))
        network.get_submodule(f"1.network.{head}").get_parameter("bias").fill_(-10)
        assert (network(images(2)) < -1).all()


def test_checking_the_name_of_an_architecture_does_not_import_torchvision() -> None:
    """`check` runs whenever a parameter has changed, and importing torchvision takes 3 s."""
    code = "import sys; import integrity.rules, stages.network.models; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


FROZEN = 3  # parts, if a network is fine-tuned


def pretrained_network(architecture: str) -> nn.Sequential:
    """Weights of another seed, in place of those of another task. The last layer is new."""
    network = build(architecture, dropout=0.2)
    tensors = build(architecture, seed=1).get_submodule("1.network").state_dict()
    pretrained.load(network, Weights(tensors, Origin(source="a test", sha256="")), architecture, list("abcdefg"))
    pretrained.freeze(network, FROZEN)
    return network


def check(freeze: int | str, batch_size: int) -> None:
    """The checks before training shufflenet, of 348,967 weights, of which the last layer has 7,175."""
    values = params.load(ROOT / "params.yaml")
    values["model"]["name"] = "torchvision"
    network = {"architecture": "shufflenet_v2_x0_5", "weights": "mine.safetensors", "freeze": freeze}
    values["models"]["torchvision"] |= network
    values["train"] |= {"batch_size": batch_size, "shards": 1}
    card = DataCard(classes=list("abcdefg"), image_shape=[3, SIDE, SIDE], mean=[0.4] * 3, std=[0.4] * 3)
    checks.check_network(partial(build, "shufflenet_v2_x0_5"), options.read(values), card, images=12, free=None)


def test_frozen_weights_have_no_gradients_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    # Four numbers per trained weight: the weight, its gradient, and two of Adam.
    frozen = 4 * (348_967 + 3 * 7_175)
    monkeypatch.setattr("stages.common.machine.memory_bytes", lambda: frozen)
    check("backbone", batch_size=12)
    with pytest.raises(
        UserError, match=r"has 348,967 weights, and training [\d,]+ of them takes .* \(4 numbers per tr"
    ):
        check(1, batch_size=12)
    monkeypatch.setattr("stages.common.machine.memory_bytes", lambda: frozen - 1)
    with pytest.raises(UserError, match="has 348,967 weights, and training 7,175 of them takes at least"):
        check("backbone", batch_size=12)


def test_frozen_batch_norm_takes_shards_of_one_image() -> None:
    check("backbone", batch_size=1)
    with pytest.raises(UserError, match=r"train\.batch_size is 1, and in a step of 1 image batch norm gets one value"):
        check(1, batch_size=1)
    with pytest.raises(
        UserError, match=r"models\.torchvision\.freeze is 9, and the network has 6 parts before the one"
    ):
        check(9, batch_size=12)


def after(
    steps: int, architecture: str, threads: int, go_on: Checkpoints | None = None, fine_tuned: bool = False
) -> dict[str, Any]:
    """The state of a run after so many steps of its one epoch; `go_on`: from its checkpoint."""
    network = pretrained_network(architecture) if fine_tuned else build(architecture, dropout=0.2)
    recipe = Recipe(
        objective=partial(LOSSES["cross_entropy"], smoothing=0.0, reduction="mean"),
        output=OUTPUTS["cross_entropy"],
        lr_factor=lambda step: 1.0,
        augment=compose({"shift": {"pixels": 2}}, CLASSES),
        clip_norm=0.0,
        epochs=1,
        select_by="accuracy",
        patience_epochs=0,
        batch_size=12,
        seed=0,
        precision="float32",
        shards=3,
    )
    head, _ = torchvision_models.head(network.get_submodule("1.network"))
    slow = {name for name, _ in network.named_parameters() if fine_tuned and head not in name}
    groups = optimizers.groups(network, slow, lr=0.001, lr_factor=0.5)
    optimizer = OPTIMIZERS["sgd"](groups, lr=0.001, momentum=0.9, nesterov=False, weight_decay=0.0)
    batch, labels = images(12), torch.arange(12) % CLASSES
    with one_thread_an_operation(), device.in_parallel(torch.device("cpu"), threads) as parallel:
        trainer = Trainer(network, optimizer, recipe, parallel)
        if go_on and (state := go_on.load()):
            trainer.load_state_dict(state)
        while trainer.run_steps < steps:
            trainer.step(batch, labels)
        return trainer.state_dict()


TRAINED_BY_DAY = (("efficientnet_b0", False), ("vit_b_32", True))


@pytest.mark.parametrize(
    ("architecture", "fine_tuned"),
    [
        pytest.param(
            name,
            tuned,
            marks=() if name in QUICK else pytest.mark.soak if (name, tuned) in TRAINED_BY_DAY else pytest.mark.night,
            id=f"{name}-{'fine-tuned' if tuned else 'new'}",
        )
        for name in (*QUICK, *LARGE)
        for tuned in (False, True)
    ],
)
def test_any_number_of_threads_and_a_resumed_run_end_in_the_same_weights(
    architecture: str, fine_tuned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = partial(after, architecture=architecture, fine_tuned=fine_tuned)
    first = run(2, threads=1)
    assert all(torch.isfinite(weights).all() for weights in first["model"].values())
    start = (pretrained_network(architecture) if fine_tuned else build(architecture, dropout=0.2)).state_dict()
    changed = {name for name, tensor in first["model"].items() if not torch.equal(tensor, start[name])}
    kept = {
        f"1.network.{part}."
        for part in torchvision_models.parts(build(architecture).get_submodule("1.network"))[:FROZEN]
    }
    assert changed  # training changes weights
    assert any(name.startswith(tuple(kept)) for name in changed) is not fine_tuned  # frozen weights do not change
    torch.manual_seed(99)  # the global generator has no influence
    assert same(run(2, threads=3)["model"], first["model"])
    checkpoints = Checkpoints("a", 0)
    checkpoints.save(run(1, threads=3))
    resumed = run(2, threads=2, go_on=checkpoints)
    assert same(resumed["model"], first["model"])
    assert torch.equal(resumed["losses"], first["losses"])
