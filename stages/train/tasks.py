"""What classification and regression do differently during training: validation metrics, log lines and warnings."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.network.losses import Objective, Output

Row = dict[str, float]  # the metrics of an epoch


class Task(NamedTuple):
    """The functions of a task. outputs: of inference.predict, (N, K). targets: what the network learns, (N,).

    rows: what `measure` needs of each image, (N, …). Each process computes the rows of some images.
    """

    rows: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> rows
    measure: Callable[[Tensor, Tensor, Objective, str], Row]  # (rows, targets, objective, select_by) -> columns
    describe: Callable[[Row], str]  # an epoch, for the log
    explain_chance: Callable[[Sequence[Row], Tensor], str]  # (history, targets) -> reason; "" if better than chance


def rows_of_classes(log_p: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood, and 1 for a correct or 0 for a wrong prediction: (N, 2)."""
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


def explain_class_chance(history: Sequence[Row], labels: Tensor) -> str:
    """A reason if the best accuracy is no better than predicting the most frequent class; else ""."""
    accuracy = max(row["validation_accuracy"] for row in history)
    chance = torch.bincount(labels).max().item() / len(labels)
    if accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / len(labels)):  # three standard errors
        return ""
    return f"a validation accuracy of {accuracy:.2%}, and naming the most frequent class gives {chance:.2%}"


def rows_of_values(outputs: Tensor, targets: Tensor) -> Tensor:
    """The outputs, unchanged: (N, 1)."""
    return outputs


def measure_values(outputs: Tensor, targets: Tensor, objective: Objective, select_by: str) -> Row:
    """The objective, and R2, the share of the labels' variance that is predicted. Both use scaled labels."""
    targets = targets.double()
    squares = ((outputs[:, 0] - targets) ** 2).mean()
    r2 = 1 - squares / targets.var(correction=0)
    return {"validation_loss": objective(outputs, targets).item(), "validation_r2": r2.item()}


def describe_values(row: Row) -> str:
    """Validation loss and R2."""
    return f"validation loss {row['validation_loss']:.4f} R2 {row['validation_r2']:.4f}"


def explain_value_chance(history: Sequence[Row], targets: Tensor) -> str:
    """A reason if the best R2 is no better than predicting the mean of the labels; else ""."""
    r2 = max(row["validation_r2"] for row in history)
    return "" if r2 > 0 else f"a validation R2 of {r2:.4f}, and always naming the mean label gives 0"


CLASSES = Task(rows_of_classes, measure_classes, describe_classes, explain_class_chance)
VALUES = Task(rows_of_values, measure_values, describe_values, explain_value_chance)


def for_output(output: Output) -> Task:
    """The task of a network with this kind of output."""
    return VALUES if output == "value" else CLASSES
