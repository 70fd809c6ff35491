"""Check the whole of params.yaml, the blocks that are not chosen included: `python -m stages.params`.

The stages check what they read; this checks all of it before the first one starts.
"""

from typing import Any

from stages import errors, params, paths
from stages.errors import UserError
from stages.params import Section
from stages.params.data import Data
from stages.params.evaluate import Evaluate
from stages.params.model import MODELS, Model
from stages.params.preprocess import Preprocess
from stages.params.train import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, Train

SCHEMAS: dict[str, type[Section]] = {
    "data": Data,
    "preprocess": Preprocess,
    "model": Model,
    **{f"models.{name}": schema for name, schema in MODELS.items()},
    "train": Train,
    **{f"optimizers.{name}": schema for name, schema in OPTIMIZERS.items()},
    **{f"schedules.{name}": schema for name, schema in SCHEDULES.items()},
    **{f"augmentations.{name}": schema for name, schema in AUGMENTATIONS.items()},
    "evaluate": Evaluate,
}


def main() -> None:
    """Raise UserError with a line for each mistake in params.yaml."""
    if lines := check(params.load(paths.PARAMS)):
        raise UserError("\n".join(lines))


def check(values: dict[str, Any]) -> list[str]:
    """A line for each mistake."""
    if lines := no_text(values):
        return lines  # to which the schemas have no answer
    lines = unknown(values)
    for key, schema in SCHEMAS.items():
        try:
            params.section(values, key, schema)
        except UserError as error:
            lines.append(str(error))
    return lines or contradictions(values)


def no_text(values: dict[Any, Any], place: str = "") -> list[str]:
    """A line for each key, at any depth, that YAML reads as something else than text, such as `1:` or `true:`."""
    lines = []
    for key, value in values.items():
        if not isinstance(key, str):
            lines.append(f"{paths.PARAMS}: {place}{params.shown(key)}: a key that is not text but {type(key).__name__}")
        if isinstance(value, dict):
            lines += no_text(value, f"{place}{params.shown(key)}.")
    return lines


def unknown(values: dict[str, Any]) -> list[str]:
    """A line for each section, and each block of choices, that no stage knows."""
    blocks = {key.partition(".")[0] for key in SCHEMAS if "." in key}
    top = list(dict.fromkeys(key.partition(".")[0] for key in SCHEMAS))
    lines = [
        f"{paths.PARAMS}: {params.shown(key)}: unknown section{params.nearest(str(key), top)}; "
        f"allowed: {', '.join(top)}"
        for key in values
        if key not in top
    ]
    for block in sorted(blocks):
        known = [key.partition(".")[2] for key in SCHEMAS if key.startswith(f"{block}.")]
        here = values.get(block)
        lines += [
            f"{paths.PARAMS}: {block}.{params.shown(key)}: unknown{params.nearest(str(key), known)}; "
            f"allowed: {', '.join(known)}"
            for key in (here if isinstance(here, dict) else {})
            if key not in known
        ]
    return lines


def contradictions(values: dict[str, Any]) -> list[str]:
    """A line for each rule between sections that is broken."""
    patience = values["train"]["early_stopping_patience_epochs"]
    if patience and not values["preprocess"]["validation_fraction"]:
        return [
            f"{paths.PARAMS}: train.early_stopping_patience_epochs is {patience}, and preprocess.validation_fraction "
            "is 0: there is nothing to stop on; allowed: 0, or a fraction above 0"
        ]
    return []


if __name__ == "__main__":
    errors.run(main, alone=False)  # it only reads
