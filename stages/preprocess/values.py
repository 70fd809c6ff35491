"""The labels of regression: numbers instead of classes."""

import math
from collections.abc import Mapping
from typing import Any

from stages.common.errors import UserError
from stages.dataset.data_card import Values
from stages.dataset.folder import Part
from stages.dataset.packed import Labels

LEAST_SPREAD = 1e-4  # as a share of the labels' size: float32 then still resolves a thousandth of their spread


def of_training(labels: Labels) -> Values:
    """Mean and standard deviation of labels, float64 (N,), with which training scales them. Raises UserError.

    The sums are exact, so their order cannot change a bit.
    """
    mean = math.fsum(labels) / len(labels)
    std = math.sqrt(math.fsum((labels - mean) ** 2) / len(labels))
    if std < LEAST_SPREAD * abs(mean):
        raise UserError(
            f"the labels are about {mean:g} with a standard deviation of {std:g}, too small a difference for float32; "
            "subtract a number from all labels in labels.csv"
        )
    return Values(mean=mean, std=std)


def check(part: str, labels: Labels) -> None:
    """Raise UserError if all labels of a part, float64 (N,), are equal: nothing can be learnt or measured."""
    if len(labels) and labels.min() == labels.max():
        raise UserError(
            f"all pictures of the {part} part have the label {labels[0]:g}; regression needs different ones in each "
            "part: add pictures, set larger fractions or another preprocess.seed"
        )


def summary(labels: Mapping[Part, Labels]) -> dict[str, Any]:
    """Smallest, mean and largest label of each part that is not empty, for metrics/data.json."""
    return {
        "values": {
            part: {
                "least": float(of_part.min()),
                "mean": math.fsum(of_part) / len(of_part),
                "largest": float(of_part.max()),
            }
            for part, of_part in labels.items()
            if len(of_part)
        }
    }
