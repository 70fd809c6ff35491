"""A seed study, one way of training with several seeds, as JSON.

{"name": …, "runs": [{"seed": 0, "accuracy": 0.9961}, …]}
"""

from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from stages.errors import UserError
from stages.params import Section
from stages.scores import Floats

MAX_BYTES = 10_000_000


class Run(Section):
    """One seed. Other numbers beside the accuracy may stand there; they are not compared."""

    model_config = ConfigDict(extra="allow")

    seed: Annotated[int, Field(ge=0)]
    accuracy: Annotated[float, Field(ge=0, le=1)]  # on the test set, as a share


class Study(Section):
    """The runs of one way of training."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    runs: Annotated[list[Run], Field(min_length=2)]

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        seeds = [run.seed for run in self.runs]
        twice = [seed for seed in seeds if seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"seed {twice[0]} stands twice; a run that is counted twice makes the spread too small")
        return self

    @property
    def accuracies(self) -> Floats:
        """Test accuracy of each run, float64 (runs,)."""
        return np.array([run.accuracy for run in self.runs], dtype=np.float64)


def read(path: Path) -> Study:
    """Read and check a study. Raises UserError, in one line."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; a seed study is a few kilobytes")
    try:
        return Study.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        text = str(first.get("ctx", {}).get("error", first["msg"])) if first["type"] == "value_error" else first["msg"]
        raise UserError(f"{path}: {place + ': ' if place else ''}{text}") from None
