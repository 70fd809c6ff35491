"""The parameters of the train stage: section `train`, and the block of options of each choice in it."""

from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from stages.common.params import Empty, Section, section
from stages.network.options import BLOCKS, MODELS, NO_WEIGHTS, FineTuning, Model, Name

Augmentation = Literal[
    "none",
    "shift",
    "affine",
    "random_resized_crop",
    "flip",
    "colour_jitter",
    "trivial_augment",
    "random_erasing",
    "mixup",
    "cutmix",
]


def as_list(names: object) -> object:
    """A list of names from one name or a list."""
    return [names] if isinstance(names, str) else names


class Train(Section):
    """Section `train`."""

    seed: int = Field(ge=0, lt=2**32)
    epochs: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=1, le=1_000_000)
    shards: int = Field(ge=1, le=1024)
    shuffle: bool
    loss: Literal["cross_entropy", "nll", "mse", "bce", "mae", "huber"]
    label_smoothing: float = Field(ge=0, lt=1)
    class_weights: Literal["none", "balanced", "effective"]
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"]
    clip_norm: float = Field(ge=0, le=1_000_000)
    schedule: Literal["constant", "one_cycle", "cosine"]
    augmentation: Annotated[list[Augmentation], BeforeValidator(as_list), Field(min_length=1)]
    select_by: Literal["accuracy", "balanced_accuracy", "loss"]
    early_stopping_patience_epochs: int = Field(ge=0, le=100_000)
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["float32", "bfloat16", "float16"]
    numerics: Literal["fast", "portable"]

    @model_validator(mode="after")
    def _each_augmentation_once(self) -> Self:
        if twice := [name for name in self.augmentation if self.augmentation.count(name) > 1]:
            raise ValueError(f"augmentation has {twice[0]} more than once; allowed: each name once")
        if "none" in self.augmentation and len(self.augmentation) > 1:
            raise ValueError("augmentation has none and other names; allowed: none alone, or a list without it")
        return self


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


class Box(Section):
    """Section `augmentations.random_resized_crop`."""

    scale: list[Annotated[float, Field(gt=0, le=1)]] = Field(min_length=2, max_length=2)
    ratio: list[Annotated[float, Field(gt=0, le=100)]] = Field(min_length=2, max_length=2)

    @model_validator(mode="after")
    def _low_before_high(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(f"{name} is {[low, high]}; allowed: the smaller number first")
        return self


class Erasing(Box):
    """Section `augmentations.random_erasing`."""

    probability: float = Field(ge=0, le=1)


class Flip(Section):
    """Section `augmentations.flip`."""

    probability: float = Field(ge=0, le=1)


class ColourJitter(Section):
    """Section `augmentations.colour_jitter`."""

    brightness: float = Field(ge=0, le=10)
    contrast: float = Field(ge=0, le=10)
    saturation: float = Field(ge=0, le=10)
    hue: float = Field(ge=0, le=0.5)


class Mixture(Section):
    """Sections `augmentations.mixup` and `augmentations.cutmix`."""

    alpha: float = Field(gt=0, le=100)


class Effective(Section):
    """Section `class_weights.effective`."""

    beta: float = Field(gt=0, lt=1)


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
AUGMENTATIONS: dict[str, type[Section]] = {
    "none": Empty,
    "shift": Shift,
    "affine": Affine,
    "random_resized_crop": Box,
    "flip": Flip,
    "colour_jitter": ColourJitter,
    "trivial_augment": Empty,
    "random_erasing": Erasing,
    "mixup": Mixture,
    "cutmix": Mixture,
}
CLASS_WEIGHTS: dict[str, type[Empty] | type[Effective]] = {
    "none": Empty,
    "balanced": Empty,
    "effective": Effective,
}


CLASS_LOSSES, VALUE_LOSSES = ("cross_entropy", "nll", "mse", "bce"), ("mse", "mae", "huber")
MIXTURES = [name for name, block in AUGMENTATIONS.items() if block is Mixture]  # these mix images and their labels


def misfits(train: Train, regression: bool) -> list[str]:
    """A message for each value of section `train` that does not suit the task."""
    losses = VALUE_LOSSES if regression else CLASS_LOSSES
    mixtures = [name for name in train.augmentation if name in MIXTURES]
    checks: list[tuple[str, object, bool, str]] = [("loss", train.loss, train.loss not in losses, " | ".join(losses))]
    if regression:
        checks += [
            ("label_smoothing", train.label_smoothing, train.label_smoothing > 0, "0.0"),
            ("class_weights", train.class_weights, train.class_weights != "none", "none"),
            ("augmentation", ", ".join(mixtures), bool(mixtures), "those that mix no images"),
            ("select_by", train.select_by, train.select_by != "loss", "loss"),
        ]
    task = "regression" if regression else "classification"
    return [
        f"train.{key} is {value}, and data.task is {task}; allowed: {allowed}"
        for key, value, wrong, allowed in checks
        if wrong
    ]


class Config(NamedTuple):
    """Section `train`, and the options of its choices and of `model`."""

    train: Train
    model: Name
    model_options: dict[str, Any]  # arguments that build the network
    fine_tuning: FineTuning | None  # None if the network cannot have pretrained weights
    class_weight_options: dict[str, Any]
    optimizer_options: dict[str, Any]
    schedule_options: dict[str, Any]
    augmentation_options: dict[str, dict[str, Any]]  # by name, in order

    @property
    def starts_pretrained(self) -> bool:
        """Whether training starts with pretrained weights."""
        return self.fine_tuning is not None and self.fine_tuning.weights != NO_WEIGHTS


def read(values: dict[str, Any]) -> Config:
    """The parameters of the train stage, with the options of the chosen blocks only. Raises UserError."""
    train = section(values, "train", Train)
    model = section(values, "model", Model).name
    block = section(values, f"models.{model}", BLOCKS[model])
    return Config(
        train,
        model,
        block.model_dump(include=set(MODELS[model].model_fields)),
        block if isinstance(block, FineTuning) else None,
        section(values, f"class_weights.{train.class_weights}", CLASS_WEIGHTS[train.class_weights]).model_dump(),
        section(values, f"optimizers.{train.optimizer}", OPTIMIZERS[train.optimizer]).model_dump(),
        section(values, f"schedules.{train.schedule}", SCHEDULES[train.schedule]).model_dump(),
        {
            name: section(values, f"augmentations.{name}", AUGMENTATIONS[name]).model_dump()
            for name in train.augmentation
        },
    )
