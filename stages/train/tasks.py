"""What depends on the task while a network is trained: what is measured on validation, and what is said of it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.network.losses import Objective, Output

Row = dict[str, float]  # what was measured of an epoch


class Task(NamedTuple):
    """The parts of a task. outputs: as inference.predict gives them, (N, K). targets: what the network learns, (N,).

    rows: what `measure` needs of each image, (N, …): each process computes some of the images.
    """

    rows: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> rows
    measure: Callable[[Tensor, Tensor, Objective, str], Row]  # (rows, targets, objective, select_by) -> columns
    describe: Callable[[Row], str]  # of an epoch, for the log
    warn: Callable[[Sequence[Row], Tensor], str]  # (history, targets) -> why nothing is learnt; empty if something is


def rows_of_classes(log_p: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of each image, and 1 for a correct prediction: (N, 2)."""
    losses = F.nll_loss(log_p, labels, reduction="none")
    return torch.stack([losses, (log_p.argmax(dim=1) == labels).float()], dim=1)


def measure_classes(rows: Tensor, labels: Tensor, objective: Objective, select_by: str) -> Row:
    """Negative log-likelihood and accuracy, whatever the objective."""
    loss, accuracy = rows.mean(dim=0).tolist()
    row = {"validation_loss": loss, "validation_accuracy": accuracy}
    if select_by == "balanced_accuracy":
        recalls = torch.bincount(labels, rows[:, 1]) / torch.bincount(labels)  # 0 / 0 for a class without images
        row["validation_balanced_accuracy"] = recalls.nanmean().item()
    return row


def describe_classes(row: Row) -> str:
    """Validation loss and accuracy."""
    return f"validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}"


def warn_at_chance(history: Sequence[Row], labels: Tensor) -> str:
    """Whether the best accuracy is no better than predicting the most frequent class."""
    accuracy = max(row["validation_accuracy"] for row in history)
    chance = torch.bincount(labels).max().item() / len(labels)
    if accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)):  # three standard errors
        return ""
    return f"a validation accuracy of {accuracy:.2%}, and naming the most frequent class gives {chance:.2%}"


def rows_of_values(outputs: Tensor, targets: Tensor) -> Tensor:
    """The outputs as they are: (N, 1)."""
    return outputs


def measure_values(outputs: Tensor, targets: Tensor, objective: Objective, select_by: str) -> Row:
    """The objective, and R2: the share of the labels' variance that is predicted. Both are of scaled labels."""
    targets = targets.double()
    squares = ((outputs[:, 0] - targets) ** 2).mean()
    r2 = 1 - squares / targets.var(correction=0)
    return {"validation_loss": objective(outputs, targets).item(), "validation_r2": r2.item()}


def describe_values(row: Row) -> str:
    """Validation loss and R2."""
    return f"validation loss {row['validation_loss']:.4f} R2 {row['validation_r2']:.4f}"


def warn_at_mean(history: Sequence[Row], targets: Tensor) -> str:
    """Whether the best R2 is no better than predicting the mean of the labels."""
    r2 = max(row["validation_r2"] for row in history)
    return "" if r2 > 0 else f"a validation R2 of {r2:.4f}, and always naming the mean label gives 0"


CLASSES = Task(rows_of_classes, measure_classes, describe_classes, warn_at_chance)
VALUES = Task(rows_of_values, measure_values, describe_values, warn_at_mean)


def of(output: Output) -> Task:
    """The task of a network with this output."""
    return VALUES if output == "value" else CLASSES
