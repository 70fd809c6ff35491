"""The training loop: learning, repeatability, selection on validation, early stopping, losses that are not finite."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.common import params
from stages.common.errors import UserError
from stages.network import device, models
from stages.network.inference import predict
from stages.network.losses import LOSSES, OUTPUTS, Output
from stages.train import schedules
from stages.train.augmentation import compose
from stages.train.batches import Batches, PackedImages
from stages.train.checkpoint import Checkpoints
from stages.train.class_weights import objective_of
from stages.train.loop import fit, warn_if_at_chance
from stages.train.optimizers import OPTIMIZERS
from stages.train.recipe import Recipe
from stages.train.stopping import StopSignal
from stages.train.trainer import Trainer, best_epoch, epochs_without_gain
from tests.imports import ROOT

DEFAULTS = params.load(ROOT / "params.yaml")
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 16, "depth": 1, "dropout": 0.0},
    "cnn": {
        "channels": [4, 8],
        "kernel_sizes": [3, 3],
        "paddings": [1, 0],
        "pool_sizes": [2, 1],
        "hidden": 16,
        "dropout": 0.2,
    },
}


@contextmanager
def one_thread_an_operation() -> Iterator[None]:
    """The number of threads that `device.set_up` sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def toy(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 1, 8, 8) of three classes, which differ in the height of a bright bar."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 80, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * int(label) + 1] += 150
    return images, labels


def train(
    model: str = "mlp",
    loss: str = "cross_entropy",
    optimizer: str = "adam",
    schedule: str = "constant",
    augmentation: str | tuple[str, ...] = "none",
    num_workers: int = 0,
    epochs: int = 3,
    seed: int = 0,
    lr: float | None = None,
    validation: int = 200,
    patience: int = 0,
    select_by: str = "accuracy",
    class_weights: str = "none",
    clip_norm: float = 0.0,
    precision: str = "float32",
    smoothing: float = 0.0,
    shards: int = 2,
    threads: int = 1,
    log_every_steps: int = 10,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> tuple[dict[str, Tensor], list[dict[str, float]], float]:
    """Train on the toy set; return the weights, the history, and the accuracy on new images."""
    images, labels = toy(600, seed=1)
    names = [augmentation] if isinstance(augmentation, str) else augmentation
    torch.manual_seed(seed)
    network = models.build(model, MODELS[model], (1, 8, 8), 3, [0.2], [0.2])
    batches = Batches(
        PackedImages(images, labels),
        batch_size=32,
        shuffle=True,
        seed=seed,
        num_workers=num_workers,
        pin_memory=False,
        stop=StopSignal(),
    )
    recipe = Recipe(
        objective=objective_of(
            LOSSES[loss],
            smoothing,
            class_weights,
            DEFAULTS["class_weights"][class_weights],
            torch.bincount(labels).tolist(),
        ),
        output=OUTPUTS[loss],
        lr_factor=schedules.SCHEDULES[schedule](epochs * len(batches), **DEFAULTS["schedules"][schedule]),
        augment=compose({name: DEFAULTS["augmentations"][name] for name in names}, classes=3),
        clip_norm=clip_norm,
        epochs=epochs,
        select_by=select_by,
        patience_epochs=patience,
        batch_size=32,
        seed=seed,
        precision=precision,
        shards=shards,
    )
    options = DEFAULTS["optimizers"][optimizer]
    update = OPTIMIZERS[optimizer](network.parameters(), **({**options, "lr": lr} if lr else options))
    kept = checkpoints or Checkpoints("none", every_seconds=1e9)
    with one_thread_an_operation(), device.in_parallel(torch.device("cpu"), threads) as parallel:
        trainer = Trainer(network, update, recipe, parallel)
        fit(trainer, batches, toy(validation, seed=2), kept, log_every_steps, stop, lambda history: None)
    weights, history = trainer.best_weights, trainer.history
    network.load_state_dict(weights)
    unseen, truth = toy(300, seed=3)
    predicted = predict(network, unseen, OUTPUTS[loss], torch.device("cpu")).argmax(1)
    return weights, history, (predicted == truth).double().mean().item()


# The Brier score's gradient is a fraction of the cross entropy's, and plain SGD needs a rate to match.
RATES = {"sgd": 0.3, "adam": 0.01, "adamw": 0.01, "rmsprop": 0.005}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_loss_learns_with_every_optimizer(loss: str, optimizer: str, model: str) -> None:
    _, history, accuracy = train(model, loss, optimizer, lr=RATES[optimizer], epochs=5)
    assert accuracy > 0.95  # chance is 0.33
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize(
    ("lr", "epochs", "warned"), [(1e-9, 1, True), (1e-9, 4, True), (0.01, 1, False), (0.01, 4, False)]
)
def test_a_run_that_does_not_learn_prints_a_warning(
    lr: float, epochs: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    train("cnn", lr=lr, epochs=epochs, validation=1000)
    told = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: a validation accuracy of ")
    ]
    assert len(told) == warned
    assert all("nothing is learnt; params.yaml: try another lr" in line for line in told)


def test_a_run_of_few_steps_is_advised_to_take_more(capsys: pytest.CaptureFixture[str]) -> None:
    warn_if_at_chance("a reason", 3)
    assert "try a smaller train.batch_size, or more train.epochs: so far, 3 steps\n" in capsys.readouterr().out


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_every_schedule_learns(schedule: str, smoothing: float) -> None:
    assert train(schedule=schedule, lr=0.01, epochs=5, smoothing=smoothing)[2] > 0.95


def test_mixed_precision_learns_and_keeps_the_weights_in_float32() -> None:
    weights, _, accuracy = train("cnn", lr=0.01, precision="bfloat16", epochs=5)
    assert accuracy > 0.95
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}
    assert not all(torch.equal(a, b) for a, b in zip(weights.values(), train("cnn", lr=0.01)[0].values(), strict=True))


def test_memory_that_is_not_pinned_is_copied_before_it_can_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    asynchronous: list[bool] = []
    to = Tensor.to

    def recording(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if self.dtype == torch.uint8:
            asynchronous.append(options.get("non_blocking", False))
        return to(self, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", recording)
    train(epochs=1)  # steps and validation
    assert len(asynchronous) > 19
    assert not any(asynchronous)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
@pytest.mark.parametrize("augmentation", ["none", "shift", "affine"])
def test_a_run_repeats_bit_for_bit_with_any_number_of_workers(augmentation: str) -> None:
    runs = [train("cnn", augmentation=augmentation, num_workers=workers)[0] for workers in (0, 0, 1, 3)]
    assert all(same(runs[0], run) for run in runs[1:])
    assert not same(runs[0], train("cnn", augmentation=augmentation, seed=1)[0])


@pytest.mark.parametrize("model", MODELS)
def test_a_run_repeats_bit_for_bit_with_any_number_of_threads(model: str) -> None:
    runs = [train(model, augmentation="affine", shards=3, threads=threads) for threads in (1, 2, 3, 8)]
    assert all(same(runs[0][0], weights) for weights, _, _ in runs[1:])
    assert all(history == runs[0][1] for _, history, _ in runs[1:])


def test_shards_change_only_batch_norm_and_rounding() -> None:
    whole, parts = train("mlp", shards=1, epochs=1)[0], train("mlp", shards=4, epochs=1)[0]
    assert not same(whole, parts)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)
    whole, parts = train("cnn", shards=1)[0], train("cnn", shards=4)[0]
    assert not all(torch.allclose(whole[name], parts[name], atol=1e-2) for name in whole)


def test_earlier_runs_in_the_process_have_no_influence() -> None:
    first = train("cnn", augmentation="shift")[0]
    torch.rand(1000)
    assert same(first, train("cnn", augmentation="shift")[0])


def last_weights(**options: Any) -> dict[str, Tensor]:
    """The weights of the last epoch, whichever was the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.train.trainer.best_epoch", lambda history, select_by: len(history))
        return train(**options)[0]


def test_without_validation_the_last_epoch_is_the_model() -> None:
    weights, history, _ = train(validation=0)
    assert best_epoch(history, "accuracy") == 3
    assert set(history[0]) == {"epoch", "lr", "train_loss"}
    assert same(weights, last_weights(epochs=3, validation=200))


def test_the_weights_are_those_of_the_best_epoch() -> None:
    # At this rate the accuracy goes up and down: the best epoch is not the last.
    weights, history, _ = train(lr=0.3, epochs=8)
    best = best_epoch(history, "accuracy")
    assert 1 <= best < 8
    assert same(weights, last_weights(lr=0.3, epochs=best))
    assert not same(weights, last_weights(lr=0.3, epochs=8))


@pytest.mark.parametrize("forced", [1, 2, 3])
def test_the_weights_are_those_of_any_epoch_that_is_selected(forced: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = last_weights(epochs=forced)
    monkeypatch.setattr("stages.train.trainer.best_epoch", lambda history, select_by: min(len(history), forced))
    assert same(train(epochs=3)[0], wanted)


def test_training_stops_early() -> None:
    _, history, _ = train(lr=0.3, epochs=50, patience=2)
    assert len(history) < 50
    accuracies = [row["validation_accuracy"] for row in history]
    assert accuracies.index(max(accuracies)) + 1 == len(history) - 2


def test_a_lower_loss_at_the_same_accuracy_does_not_prevent_early_stopping() -> None:
    _, history, _ = train(lr=1e-9, epochs=20, patience=2)
    losses = [row["validation_loss"] for row in history]
    assert losses[2] < losses[1] < losses[0]
    assert len(history) == 3


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [
        ([(0.5, 1.0)], (0, 0)),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.8)], (2, 0)),
        ([(0.5, 1.0), (0.4, 0.1), (0.6, 2.0)], (0, 1)),
        ([(0.9, 1.0), (0.8, 0.1), (0.9, 0.1)], (2, 1)),
    ],
)
def test_epochs_without_a_gain(rows: list[tuple[float, float]], epochs: tuple[int, int]) -> None:
    history = [{"validation_accuracy": accuracy, "validation_loss": loss} for accuracy, loss in rows]
    assert (epochs_without_gain(history, "accuracy"), epochs_without_gain(history, "loss")) == epochs
    assert epochs_without_gain([{"train_loss": 1.0}], "accuracy") == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_a_prediction_depends_on_its_image_only(model: str, output: Output) -> None:
    images = toy(1000, seed=4)[0]
    network = models.build(model, MODELS[model], (1, 8, 8), 3, [0.2], [0.2])
    cpu = torch.device("cpu")
    with one_thread_an_operation(), device.in_parallel(cpu, 2) as parallel:
        whole = predict(network, images, output, cpu, parallel)
        for count in (0, 1, 7, 250, 256, 257):
            assert torch.equal(predict(network, images[:count], output, cpu), whole[:count])
        for seed in range(5):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(predict(network, images[order], output, cpu), whole[order])


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(0.5, 1.0), (0.9, 0.5), (0.8, 0.1)], 2),
        ([(0.9, 1.0), (0.9, 0.5), (0.9, 0.7)], 2),  # equal accuracy: the lower loss
        ([(0.9, 0.5), (0.9, 0.5)], 1),  # equal loss: the earlier epoch
    ],
)
def test_the_best_epoch(rows: list[tuple[float, float]], best: int) -> None:
    history = [{"validation_accuracy": accuracy, "validation_loss": loss} for accuracy, loss in rows]
    assert best_epoch(history, "accuracy") == best


@pytest.mark.parametrize(("select_by", "best"), [("accuracy", 2), ("balanced_accuracy", 3), ("loss", 1)])
def test_the_best_epoch_is_selected_by(select_by: str, best: int) -> None:
    rows = [(0.5, 0.6, 0.3), (0.9, 0.5, 1.0), (0.8, 0.7, 0.9)]
    names = ("validation_accuracy", "validation_balanced_accuracy", "validation_loss")
    assert best_epoch([dict(zip(names, row, strict=True)) for row in rows], select_by) == best


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step() -> None:
    with pytest.raises(UserError, match=r"the training loss is nan at epoch 1, step \d+: the run diverged; params.yam"):
        train(loss="mse", optimizer="sgd", lr=1e38)


def test_the_log_has_a_line_for_some_steps_and_every_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    train(epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" loss")[0] for line in lines] == [
        "epoch 1/2 step 10/19",
        "epoch 1/2",
        "epoch 2/2 step 10/19",
        "epoch 2/2",
    ]
    assert all(" images/s" in line for line in lines)
    assert " accuracy " in lines[1]
