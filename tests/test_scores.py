"""The metrics, compared with cases worked out by hand, independent formulas, and properties."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from stages.evaluate import scores


def predictions_of(rows: list[list[float]]) -> np.ndarray:
    return np.log(np.array(rows, dtype=np.float32))


CASE = predictions_of(
    [
        [0.7, 0.2, 0.1],  # 0, correct
        [0.6, 0.3, 0.1],  # 1, predicted as 0
        [0.1, 0.8, 0.1],  # 1, correct
        [0.4, 0.5, 0.1],  # 0, predicted as 1
    ]
)
LABELS = np.array([0, 1, 1, 0])


def test_a_case_worked_out_by_hand() -> None:
    found = scores.summary(CASE, LABELS, ["a", "b", "c"], bins=13)
    assert found["accuracy"] == 0.5
    assert (found["errors"], found["images"]) == (2, 4)
    assert found["loss"] == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.4]).mean(), rel=1e-6)
    low, high = scores.wilson(1, 2)
    interval = {"recall_low": low, "recall_high": high}
    assert found["classes"] == [
        {"class": "a", "images": 2, "precision": 0.5, "recall": 0.5, **interval, "f1": 0.5},
        {"class": "b", "images": 2, "precision": 0.5, "recall": 0.5, **interval, "f1": 0.5},
        # A class without images and predictions.
        {"class": "c", "images": 0, "precision": 0.0, "recall": 0.0, "recall_low": 0.0, "recall_high": 1.0, "f1": 0.0},
    ]
    assert found["balanced_accuracy"] == 0.5  # over the two classes that have images
    half = (high - low) / 2 / 2**0.5  # the mean of two independent recalls
    ends = [found["balanced_accuracy_low"], found["balanced_accuracy_high"]]
    assert ends == pytest.approx([0.5 - half, 0.5 + half])
    assert found["macro"] == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3})
    # One image per bin: 0.7 correct, 0.6 wrong, 0.8 correct, 0.5 wrong.
    assert found["calibration_error"] == pytest.approx((0.3 + 0.6 + 0.2 + 0.5) / 4, rel=1e-6)


def test_precision_and_recall_are_not_confused() -> None:
    rows = scores.by_class(np.array([[8, 2], [0, 10]]))
    assert rows["recall"].tolist() == [0.8, 1.0]
    assert rows["precision"].tolist() == pytest.approx([1.0, 10 / 12])
    assert rows["f1"].tolist() == pytest.approx([2 * 0.8 / 1.8, 2 * (10 / 12) / (22 / 12)])


def test_the_interval_of_balanced_accuracy_has_its_nominal_coverage() -> None:
    random, recalls, images = np.random.default_rng(0), np.array([0.99, 0.8, 0.6]), np.array([400, 60, 25])
    covered = 0
    for _ in range(2000):
        hits = random.binomial(images, recalls)
        rows = scores.by_class(
            np.array(
                [
                    [h, n - h, 0] if i == 0 else [n - h, h, 0] if i == 1 else [n - h, 0, h]
                    for i, (h, n) in enumerate(zip(hits, images, strict=True))
                ]
            )
        )
        _, low, high = scores.balanced_accuracy(rows)
        covered += low <= recalls.mean() <= high
    assert 0.93 < covered / 2000 < 0.97


def test_rows_of_the_confusion_matrix_are_true_classes() -> None:
    matrix = scores.confusion(np.array([0, 0, 2]), np.array([0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (1, 1), (9_930, 10_000), (37, 91)])
def test_the_interval_is_wilsons(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert scores.wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-12)
    narrow = binomtest(successes, trials).proportion_ci(0.8, method="wilson")
    z_80 = NormalDist().inv_cdf(0.9)
    assert scores.wilson(successes, trials, z_80) == pytest.approx((narrow.low, narrow.high), abs=1e-12)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        scores.summary(CASE[:0], LABELS[:0], ["a", "b", "c"], 10)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(2, 6), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_properties(images: int, classes: int, bins: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    log_p = np.log(random.dirichlet(np.ones(classes), images)).astype(np.float32)
    labels = random.integers(0, classes, images)
    names = [str(name) for name in range(classes)]
    found = scores.summary(log_p, labels, names, bins)
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1
    assert found["accuracy"] == pytest.approx(1 - found["errors"] / images)
    assert 0 <= found["calibration_error"] <= 1
    assert sum(row["images"] for row in found["classes"]) == images
    order = random.permutation(images)
    again = scores.summary(log_p[order], labels[order], names, bins)
    assert again["classes"] == found["classes"]
    assert again["loss"] == pytest.approx(found["loss"])
    table = scores.reliability(np.exp(log_p.max(axis=1)), log_p.argmax(axis=1) == labels, bins)
    assert table["images"].sum() == images
    assert ((table["low"] <= table["confidence"] + 1e-6) & (table["confidence"] <= table["high"] + 1e-6)).all()


def test_a_perfect_classifier() -> None:
    labels = np.arange(100) % 5
    log_p = np.log(np.eye(5, dtype=np.float32)[labels] * 0.999 + 0.0002)
    found = scores.summary(log_p, labels, list("abcde"), 15)
    assert (found["errors"], found["accuracy"], found["accuracy_high"]) == (0, 1.0, 1.0)
    assert found["macro"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


@pytest.mark.parametrize("overconfidence", [0.0, 0.2])
def test_the_calibration_error_is_the_overconfidence_of_a_classifier(overconfidence: float) -> None:
    random = np.random.default_rng(0)
    confidences = random.uniform(0.5, 1.0, 200_000)
    correct = random.uniform(size=len(confidences)) < confidences - overconfidence
    error = scores.calibration_error(scores.reliability(confidences, correct, 15))
    assert error == pytest.approx(overconfidence, abs=0.006)


def test_a_confidence_slightly_above_one_is_in_the_last_bin() -> None:
    table = scores.reliability(np.array([1.0000001, 1.0]), np.array([True, True]), 4)
    assert table[["low", "high", "images", "confidence"]].to_numpy().tolist() == [[0.75, 1.0, 2, 1.0]]
