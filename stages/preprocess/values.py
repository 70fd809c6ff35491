"""The labels of regression: numbers instead of classes."""

import math
from collections.abc import Mapping
from typing import Any

from stages.common.errors import UserError
from stages.dataset.data_card import Values
from stages.dataset.folder import Part
from stages.dataset.packed import Labels

LEAST_SPREAD = 1e-4  # of the size of the labels: float32 then still tells apart a thousandth of their spread


def of_training(labels: Labels) -> Values:
    """Mean and standard deviation of labels float64 (N,), by which training scales them. Raises UserError.

    Added up exactly: no order of summation can change a bit.
    """
    mean = math.fsum(labels) / len(labels)
    std = math.sqrt(math.fsum((labels - mean) ** 2) / len(labels))
    if std < LEAST_SPREAD * abs(mean):
        raise UserError(
            f"the labels are about {mean:g} and differ by {std:g} only, which float32 can hardly tell; subtract a "
            "number from all of them in labels.csv"
        )
    return Values(mean=mean, std=std)


def check(part: str, labels: Labels) -> None:
    """Raise UserError if the labels of a part, float64 (N,), are all the same: nothing can be learnt or measured."""
    if len(labels) and labels.min() == labels.max():
        raise UserError(
            f"all pictures of the {part} part have the label {labels[0]:g}; regression needs different ones in each "
            "part: add pictures, set larger fractions or another preprocess.seed"
        )


def summary(labels: Mapping[Part, Labels]) -> dict[str, Any]:
    """Least, mean and largest label of each part that has any, for metrics/data.json."""
    return {
        "values": {
            part: {"least": float(each.min()), "mean": math.fsum(each) / len(each), "largest": float(each.max())}
            for part, each in labels.items()
            if len(each)
        }
    }
