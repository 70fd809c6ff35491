"""Temperature scaling: fitting, the layer that applies it, and the interval of the calibration error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from stages.evaluate import scores
from stages.network.calibration import Temperature
from stages.network.losses import Output, log_probabilities
from stages.train import temperature


def drawn(true_temperature: float, images: int = 20_000, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Log-probabilities float32 (N, K), and labels drawn with their probabilities at another temperature."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(3 * torch.randn(images, classes, generator=generator), dim=1)
    labels = torch.multinomial(torch.softmax(log_p / true_temperature, dim=1), 1, generator=generator)[:, 0]
    return log_p, labels


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_fit_finds_the_temperature_of_the_labels(true_temperature: float) -> None:
    log_p, labels = drawn(true_temperature)
    fitted = temperature.minimize(log_p, labels)
    assert fitted == pytest.approx(true_temperature, rel=0.05)

    def loss(logarithm: float) -> float:
        return float(torch.nn.functional.nll_loss(torch.log_softmax(log_p.double() / np.exp(logarithm), 1), labels))

    best = minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 1e-9})
    assert fitted == pytest.approx(np.exp(best.x), rel=1e-3)


def test_the_fit_adds_up_parts_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    log_p, labels = drawn(2.0, images=100)
    whole = temperature.minimize(log_p, labels)
    monkeypatch.setattr(temperature, "ROWS", 7)
    assert temperature.minimize(log_p, labels) == whole


def test_data_without_a_best_temperature() -> None:
    log_p, _ = drawn(1.0, images=50)
    assert temperature.minimize(log_p, log_p.argmax(dim=1)) == 1.0  # all correct: lower is better without limit
    assert temperature.minimize(log_p, log_p.argmin(dim=1)) == temperature.HIGHEST  # all wrong
    nearly = log_p.argmax(dim=1)  # all correct except for one, by little
    second = log_p[0].topk(2).indices[1]
    log_p[0, second] = log_p[0].max() - 1e-6
    nearly[0] = second
    assert temperature.minimize(log_p / 100, nearly) == temperature.LOWEST


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.sampled_from(["softmax", "sigmoid"]), st.floats(0.1, 60))
def test_no_prediction_changes_and_probabilities_add_up(seed: int, value: float, output: Output, spread: float) -> None:
    logits = spread * torch.randn(50, 4, generator=torch.Generator().manual_seed(seed))
    before = log_probabilities(logits, output)
    after = log_probabilities(Temperature(value, output)(logits), "softmax")
    assert torch.allclose(after.exp().sum(dim=1), torch.ones(50), atol=1e-5)
    predicted, again = before.argmax(dim=1, keepdim=True), after.argmax(dim=1, keepdim=True)
    assert torch.allclose(after.gather(1, predicted), after.gather(1, again), rtol=1e-5)  # the same class, or a tie
    unscaled = scores.unscaled(after.numpy(), value)
    assert np.allclose(unscaled, before.numpy(), atol=1e-4 * max(1, value) * spread)


def test_a_temperature_of_one_changes_no_bit() -> None:
    logits = 20 * torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    outputs: tuple[Output, ...] = ("softmax", "sigmoid")
    for output in outputs:
        after = log_probabilities(Temperature(1.0, output)(logits), "softmax")
        assert torch.equal(after, log_probabilities(logits, output))


def test_large_logits_of_sigmoids_keep_their_order() -> None:
    logits = torch.tensor([[30.0, 20.0, -5.0]])  # both sigmoids are 1 in float32, also after division by 0.1
    scaled = Temperature(0.1, "sigmoid")(logits)
    assert scaled.argmax() == 0


@pytest.mark.parametrize("overconfidence", [0.01, 0.05])
def test_intervals_contain_the_true_calibration_error(overconfidence: float) -> None:
    """About 54 of 60 intervals do; percentile intervals would never contain 0.01."""
    random, held = np.random.default_rng(0), 0
    for _ in range(60):
        confidences = random.uniform(0.6, 1.0, 1_000)
        correct = random.uniform(size=len(confidences)) < confidences - overconfidence
        low, high = scores.bootstrap(confidences, correct, 10)
        assert 0 <= low <= high
        held += low <= overconfidence <= high
    assert held >= 48
