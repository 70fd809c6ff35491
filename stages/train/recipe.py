"""What decides on the weights of a network, besides the network itself, its optimizer and its images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor

from stages.network.losses import LOSSES, OUTPUTS, Output
from stages.train.augmentation import AUGMENTATIONS
from stages.train.options import Chosen
from stages.train.schedules import SCHEDULES, Factor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained."""

    objective: Callable[[Tensor, Tensor], Tensor]  # (logits, labels) -> mean loss, a scalar
    output: Output  # what turns logits into probabilities
    lr_factor: Factor  # of a step of the run, counted from 0: a multiple of the optimizer's learning rate
    augment: Callable[[Tensor, torch.Generator], Tensor]  # (images, generator) -> images
    epochs: int
    patience_epochs: int  # stop after so many epochs without a better validation accuracy; 0: never
    batch_size: int
    seed: int
    precision: str  # float32 | bfloat16 | float16
    shards: int  # parts of a batch (stages/train/shards.py)

    @classmethod
    def of(cls, chosen: Chosen, steps: int) -> Self:
        """The recipe that params.yaml has chosen. steps: of the whole run."""
        train = chosen.train
        return cls(
            objective=partial(LOSSES[train.loss], smoothing=train.label_smoothing),
            output=OUTPUTS[train.loss],
            lr_factor=SCHEDULES[train.schedule](steps, **chosen.schedule_options),
            augment=partial(AUGMENTATIONS[train.augmentation], **chosen.augmentation_options),
            epochs=train.epochs,
            patience_epochs=train.early_stopping_patience_epochs,
            batch_size=train.batch_size,
            seed=train.seed,
            precision=train.precision,
            shards=train.shards,
        )
