"""The options that tell which data set it is: read by more stages than download."""

from typing import Literal

from pydantic import ConfigDict, Field

from stages.common.params import Section

Task = Literal["classification", "regression"]

NO_IMAGES = "data/no-images"  # an empty folder: what preprocess depends on where the data set is a published one


class DataName(Section):
    """The keys of `data` that later stages read; they do not care where published bytes came from."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["mnist", "fashion-mnist", "kmnist", "images"]
    task: Task
    images: str = Field(min_length=1)  # the folder or archive of your own pictures
