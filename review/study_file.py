"""A seed study, one way of training with several seeds, as JSON.

{"name": …, "runs": [{"seed": 0, "accuracy": 0.9961, "errors": 39, "images": 10000}, …],
 "data": {"name": …, "test": MD5, "validation": MD5, "images": {…}}, "overrides": ["train.epochs=10", …]}

Without `data`, as in older files, it is not known what was measured.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, ValidationError, model_validator

from stages.common.errors import UserError
from stages.common.params import Section
from stages.evaluate.scores import Floats, Ints

MAX_BYTES = 10_000_000
ASSUMED_IMAGES = 10_000
ROUNDING = 0.6e-6  # of an accuracy: the stages write six decimals

SAME_IMAGES = ("data.mirrors", "preprocess.normalization")  # options of the data that change none of its images

Part = Literal["test", "validation"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Images = Annotated[int, Field(ge=1)]


class Run(Section):
    """One seed, measured on the test set, on the validation part, or on both. Other numbers may be there as well.

    Accuracies are shares; errors and images are counts, which compare exactly.
    """

    model_config = ConfigDict(extra="allow")

    seed: Annotated[int, Field(ge=0)]
    accuracy: Share | None = None  # on the test set
    errors: Count | None = None
    images: Images | None = None
    validation_accuracy: Share | None = None
    validation_errors: Count | None = None
    validation_images: Images | None = None

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.accuracy is None and self.validation_accuracy is None:
            raise ValueError("has neither accuracy nor validation_accuracy")
        for prefix in ("", "validation_"):
            accuracy, errors, images = (getattr(self, prefix + key) for key in ("accuracy", "errors", "images"))
            if errors is None or images is None:
                continue
            if errors > images:
                raise ValueError(f"{prefix}errors {errors:,} are more than {prefix}images {images:,}")
            if accuracy is not None and abs(1 - errors / images - accuracy) > ROUNDING:
                raise ValueError(
                    f"{prefix}errors {errors:,} of {prefix}images {images:,} contradict {prefix}accuracy {accuracy}"
                )
        return self

    def counted(self, part: Part) -> tuple[int, int] | None:
        """Errors and images, on the test set or the validation part; None where the run does not tell.

        Of a file without `images`, 10,000 are assumed where they fit: the published test sets have so many.
        """
        accuracy, errors, images = (
            (self.accuracy, self.errors, self.images)
            if part == "test"
            else (self.validation_accuracy, self.validation_errors, self.validation_images)
        )
        if accuracy is None or (part == "validation" and images is None):
            return None
        images = images or ASSUMED_IMAGES
        counted = round((1 - accuracy) * images)
        if abs((1 - accuracy) * images - counted) > ROUNDING * images or errors not in (None, counted):
            return None
        return counted, images


class Data(Section):
    """What was measured. test, validation: the MD5 of the file with that part."""

    model_config = ConfigDict(extra="allow")

    name: str
    test: str
    validation: str


class Study(Section):
    """The runs of one way of training."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=200)]
    runs: Annotated[list[Run], Field(min_length=2)]
    data: Data | None = None
    overrides: tuple[str, ...] = ()  # of params.yaml, "train.epochs=10"
    seeds_missing: Count = 0  # of a study that did not come to its end

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        seeds = [run.seed for run in self.runs]
        twice = [seed for seed in seeds if seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"seed {twice[0]} stands twice; a run that is counted twice makes the spread too small")
        return self

    @property
    def accuracies(self) -> Floats:
        """Test accuracy of each run, float64 (runs,), rounded so that equal ones are equal. Raises UserError."""
        found = [run.accuracy for run in self.runs if run.accuracy is not None]
        if len(found) < len(self.runs):
            raise UserError(f"{self.name}: not every run has a test accuracy; `python -m review.study --test` has")
        return np.array(found, dtype=np.float64).round(9)

    def errors(self, part: Part) -> Ints | None:
        """Errors of each run, int64 (runs,); None unless every run tells, and all are of the same number of images."""
        counted = self._counted(part)
        return np.array([errors for errors, _ in counted], dtype=np.int64) if counted else None

    def images(self, part: Part) -> int | None:
        """How many images each run was measured on; None where `errors` is."""
        counted = self._counted(part)
        return counted[0][1] if counted else None

    def chosen_data(self, part: Part) -> dict[str, str]:
        """The overrides that decide which images are in a part, by key, whatever they are set to."""
        settings = {key: value for key, _, value in (text.partition("=") for text in self.overrides)}
        sections = ("data.",) if part == "test" else ("data.", "preprocess.")  # which splits what there is to train on
        return {key: value for key, value in settings.items() if key.startswith(sections) and key not in SAME_IMAGES}

    def _counted(self, part: Part) -> list[tuple[int, int]]:
        counted = [pair for run in self.runs if (pair := run.counted(part))]
        same = len(counted) == len(self.runs) and len({images for _, images in counted}) == 1
        return counted if same else []


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
