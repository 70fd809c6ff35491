"""How a network is trained: everything that decides its weights, except the network, the optimizer and the images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from stages.network import regression
from stages.network.losses import LOSSES, OUTPUTS, Objective, Output
from stages.train.augmentation import Augment, compose
from stages.train.class_weights import objective_of
from stages.train.options import Config
from stages.train.schedules import SCHEDULES, Factor


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained."""

    objective: Objective
    output: Output  # how logits become probabilities; value: regression
    lr_factor: Factor  # (step of the run, from 0) -> factor of the optimizer's lr
    augment: Augment
    clip_norm: float  # largest norm of the gradient of all weights; 0: any
    epochs: int
    select_by: str  # accuracy | balanced_accuracy | loss, on validation
    patience_epochs: int  # early stopping after so many epochs without improvement; 0: never
    batch_size: int
    seed: int
    precision: str  # float32 | bfloat16 | float16
    shards: int  # parts of a batch (stages/train/shards.py)

    @classmethod
    def of(cls, config: Config, steps: int, images: Sequence[int]) -> Self:
        """The recipe that params.yaml chooses. steps: of the whole run. images: of each class; empty for regression."""
        train = config.train
        return cls(
            objective=objective_of(
                LOSSES[train.loss], train.label_smoothing, train.class_weights, config.class_weight_options, images
            )
            if images
            else regression.objective(train.loss),
            output=OUTPUTS[train.loss] if images else "value",
            lr_factor=SCHEDULES[train.schedule](steps, **config.schedule_options),
            augment=compose(config.augmentation_options, len(images)),
            clip_norm=train.clip_norm,
            epochs=train.epochs,
            select_by=train.select_by,
            patience_epochs=train.early_stopping_patience_epochs,
            batch_size=train.batch_size,
            seed=train.seed,
            precision=train.precision,
            shards=train.shards,
        )
