"""The rules for all of params.yaml: every section, including blocks that are not chosen, and how they fit together.

Each stage checks the options it reads. This checks everything that needs neither data nor a device, before any stage
starts.
"""

from pathlib import Path
from typing import Any

from stages.common import machine_settings, params, paths
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.text import nearest, shown
from stages.dataset.options import NO_IMAGES
from stages.dataset.registry import DATA_SETS
from stages.download.options import Data
from stages.evaluate.options import Evaluate
from stages.network.options import BLOCKS, NO_WEIGHTS, Cnn, Model
from stages.preprocess.options import Preprocess
from stages.train.options import AUGMENTATIONS, CLASS_WEIGHTS, OPTIMIZERS, SCHEDULES, Train, misfits
from stages.weights.options import Weights

SCHEMAS: dict[str, type[Section]] = {
    "data": Data,
    "preprocess": Preprocess,
    "model": Model,
    **{f"models.{name}": schema for name, schema in BLOCKS.items()},
    "weights": Weights,
    "train": Train,
    **{f"class_weights.{name}": schema for name, schema in CLASS_WEIGHTS.items()},
    **{f"optimizers.{name}": schema for name, schema in OPTIMIZERS.items()},
    **{f"schedules.{name}": schema for name, schema in SCHEDULES.items()},
    **{f"augmentations.{name}": schema for name, schema in AUGMENTATIONS.items()},
    "evaluate": Evaluate,
    machine_settings.SECTION: machine_settings.Machine,
}
# Options of earlier versions -> their present place.
MOVED = {
    "train.threads": "machine.threads",
    "train.num_workers": "machine.num_workers",
    "train.log_every_steps": "machine.log_every_steps",
    "train.checkpoint_every_seconds": "machine.checkpoint_every_seconds",
    "evaluate.threads": "machine.threads",
}


def read() -> dict[str, Any]:
    """Read params.yaml and the environment variables that override it. Raises UserError with a line per mistake."""
    values = params.load(paths.PARAMS)
    if lines := check(values):
        raise UserError("\n".join(lines))
    return values


def pictures_are_missing(values: dict[str, Any]) -> bool:
    """Whether the data set is a folder or an archive that does not exist. values: valid."""
    return values["data"]["name"] == "images" and not Path(values["data"]["images"]).exists()


def check(values: dict[str, Any]) -> list[str]:
    """A line for each mistake in the parameters, or in the environment variables that override them."""
    if lines := keys_that_are_not_text(values):
        return lines  # the schemas cannot check these
    lines = moved(values) + unknown(values)
    values = {section: without_moved(section, options) for section, options in values.items()}
    for key, schema in SCHEMAS.items():
        try:
            params.section(values, key, schema)
        except UserError as error:
            lines.append(str(error))
    return lines or contradictions(values) + environment(values)


def keys_that_are_not_text(values: dict[Any, Any], place: str = "") -> list[str]:
    """A line for each key, at any depth, that YAML does not read as text, such as `1:` or `true:`."""
    lines = []
    for key, value in values.items():
        if not isinstance(key, str):
            lines.append(f"{paths.PARAMS}: {place}{shown(key)}: a key that is not text but {type(key).__name__}")
        if isinstance(value, dict):
            lines += keys_that_are_not_text(value, f"{place}{shown(key)}.")
    return lines


def moved(values: dict[str, Any]) -> list[str]:
    """A line for each option that is still in its place of earlier versions."""
    present = {
        f"{section}.{key}" for section, options in values.items() if isinstance(options, dict) for key in options
    }
    return [f"{paths.PARAMS}: {old} is now {new}: move it there" for old, new in MOVED.items() if old in present]


def without_moved(section: str, options: Any) -> Any:
    """The options of a section, without those that `moved` reports."""
    if not isinstance(options, dict):
        return options
    return {key: value for key, value in options.items() if f"{section}.{key}" not in MOVED}


def environment(values: dict[str, Any]) -> list[str]:
    """A line for each wrong environment variable. values: each section is valid."""
    try:
        machine_settings.read(values)
    except UserError as error:
        return str(error).splitlines()
    return []


def unknown(values: dict[str, Any]) -> list[str]:
    """A line for each section and each block of options that no stage has."""
    blocks = {key.partition(".")[0] for key in SCHEMAS if "." in key}
    top = list(dict.fromkeys(key.partition(".")[0] for key in SCHEMAS))
    lines = [
        f"{paths.PARAMS}: {shown(key)}: unknown section{nearest(str(key), top)}; allowed: {', '.join(top)}"
        for key in values
        if key not in top
    ]
    for block in sorted(blocks):
        known = [key.partition(".")[2] for key in SCHEMAS if key.startswith(f"{block}.")]
        here = values.get(block)
        lines += [
            f"{paths.PARAMS}: {block}.{shown(key)}: unknown{nearest(str(key), known)}; allowed: {', '.join(known)}"
            for key in (here if isinstance(here, dict) else {})
            if key not in known
        ]
    return lines


def contradictions(values: dict[str, Any]) -> list[str]:
    """A line for each option that contradicts another section. values: each section is valid."""
    train, preprocess = values["train"], values["preprocess"]
    data_set = DATA_SETS.get(values["data"]["name"])  # None: own pictures
    regression = values["data"]["task"] == "regression"
    lines = own_pictures(values["data"], preprocess) + misfits(Train.model_validate(train), regression)
    if regression and data_set:
        lines.append(
            f"data.task is regression, and data.name is {values['data']['name']}, a set with classes; allowed: images, "
            "with numbers in labels.csv"
        )

    patience, fraction = train["early_stopping_patience_epochs"], preprocess["validation_fraction"]
    if patience and round(fraction * (data_set.largest_class if data_set else 10**9)) == 0:
        lines.append(
            f"train.early_stopping_patience_epochs is {patience}, and preprocess.validation_fraction is {fraction}, "
            "which leaves no image to stop on; allowed: 0, or a larger fraction"
        )

    if train["precision"] == "float16" and train["device"] in ("cpu", "mps"):
        lines.append(
            f"train.precision is float16 and train.device is {train['device']}; allowed: float16 on auto | cuda, or "
            "float32 | bfloat16"
        )

    if preprocess["normalization"] == "weights":
        name, weights = values["model"]["name"], values["models"]["torchvision"]["weights"]
        if name != "torchvision" or weights == NO_WEIGHTS:
            reason = f"models.torchvision.weights is {weights}" if name == "torchvision" else f"model.name is {name}"
            lines.append(
                f"preprocess.normalization is weights, and {reason}, so there are no pretrained weights; allowed: "
                "dataset | half | none"
            )

    cnn = Cnn.model_validate(values["models"]["cnn"])
    try:
        size = preprocess["image_size"]
        height, width = data_set.image_shape[1:] if data_set else size if isinstance(size, list) else (size, size)
        sizes = cnn.map_sizes(height, width)
    except ValueError as error:
        lines.append(f"models.cnn: {error}")
    else:
        if values["model"]["name"] == "cnn" and train["batch_size"] == 1 and (1, 1) in sizes:
            lines.append(
                f"train.batch_size is 1, and block {sizes.index((1, 1)) + 1} of models.cnn gives one pixel per image, "
                "but batch norm needs two values; allowed: a batch_size of 2 or more, or blocks that shrink less"
            )
    return [f"{paths.PARAMS}: {line}" for line in lines]


def own_pictures(data: dict[str, Any], preprocess: dict[str, Any]) -> list[str]:
    """A line for each mistake in the options for own pictures."""
    name, folder = data["name"], data["images"]
    if name != "images":
        # dvc.yaml cannot make this dependency optional, so with a published data set it must be an empty folder.
        return (
            []
            if folder == NO_IMAGES
            else [f"data.images is {folder!r}; allowed: {NO_IMAGES}, since data.name is {name}"]
        )
    lines = []
    if folder == NO_IMAGES:
        lines.append(
            f"data.images is {NO_IMAGES!r}; allowed: the folder or archive of your pictures, since data.name is images"
        )
    validation, test = preprocess["validation_fraction"], preprocess["test_fraction"]
    if validation + test > 0.9:
        lines.append(
            f"preprocess.validation_fraction is {validation} and preprocess.test_fraction {test}; allowed: 0.9 at most "
            "together"
        )
    return lines
