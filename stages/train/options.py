"""Options of the train stage: section `train`, and a block of options for each choice in it."""

from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from stages.common.params import Empty, Section, section
from stages.network.options import MODELS, Model, Name


class Train(Section):
    """Section `train`."""

    seed: int = Field(ge=0, lt=2**32)
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=1, le=1_000_000)
    shards: int = Field(ge=1, le=1024)
    shuffle: bool
    loss: Literal["cross_entropy", "nll", "mse", "bce"]
    label_smoothing: float = Field(ge=0, lt=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    schedule: Literal["constant", "one_cycle", "cosine"]
    augmentation: Literal["none", "shift", "affine"]
    early_stopping_patience_epochs: int = Field(ge=0, le=100_000)
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["float32", "bfloat16", "float16"]
    numerics: Literal["fast", "portable"]


class Sgd(Section):
    """Section `optimizers.sgd`."""

    lr: float = Field(gt=0, le=1000)
    momentum: float = Field(ge=0, lt=1)
    nesterov: bool
    weight_decay: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov is true and momentum is 0; allowed: nesterov with a momentum above 0")
        return self


class Adam(Section):
    """Sections `optimizers.adam` and `optimizers.adamw`."""

    lr: float = Field(gt=0, le=1000)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0, le=1)


class RmsProp(Section):
    """Section `optimizers.rmsprop`."""

    lr: float = Field(gt=0, le=1000)
    alpha: float = Field(ge=0, lt=1)
    momentum: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0, le=1)


class OneCycle(Section):
    """Section `schedules.one_cycle`."""

    warmup_fraction: float = Field(ge=0, lt=1)
    start_factor: float = Field(gt=0, le=1)
    end_factor: float = Field(ge=0, le=1)


class Cosine(Section):
    """Section `schedules.cosine`."""

    end_factor: float = Field(ge=0, le=1)


class Shift(Section):
    """Section `augmentations.shift`."""

    pixels: int = Field(ge=1, le=1000)


class Affine(Section):
    """Section `augmentations.affine`."""

    degrees: float = Field(ge=0, le=180)
    translate: float = Field(ge=0, le=1)
    scale: float = Field(ge=0, lt=1)
    shear_degrees: float = Field(ge=0, lt=90)
    elastic_pixels: float = Field(ge=0, le=1000)
    elastic_grid: int = Field(ge=2, le=1000)
    flip: bool


OPTIMIZERS: dict[str, type[Sgd] | type[Adam] | type[RmsProp]] = {
    "sgd": Sgd,
    "adam": Adam,
    "adamw": Adam,
    "rmsprop": RmsProp,
}
SCHEDULES: dict[str, type[Empty] | type[OneCycle] | type[Cosine]] = {
    "constant": Empty,
    "one_cycle": OneCycle,
    "cosine": Cosine,
}
AUGMENTATIONS: dict[str, type[Empty] | type[Shift] | type[Affine]] = {
    "none": Empty,
    "shift": Shift,
    "affine": Affine,
}


class Chosen(NamedTuple):
    """Section `train`, and the options of each choice in it and of `model`."""

    train: Train
    model: Name
    model_options: dict[str, Any]
    optimizer_options: dict[str, Any]
    schedule_options: dict[str, Any]
    augmentation_options: dict[str, Any]


def read(values: dict[str, Any]) -> Chosen:
    """Read what the train stage needs of params.yaml, and of the blocks only the chosen ones. Raises UserError."""
    train = section(values, "train", Train)
    model = section(values, "model", Model).name
    return Chosen(
        train,
        model,
        section(values, f"models.{model}", MODELS[model]).model_dump(),
        section(values, f"optimizers.{train.optimizer}", OPTIMIZERS[train.optimizer]).model_dump(),
        section(values, f"schedules.{train.schedule}", SCHEDULES[train.schedule]).model_dump(),
        section(values, f"augmentations.{train.augmentation}", AUGMENTATIONS[train.augmentation]).model_dump(),
    )
