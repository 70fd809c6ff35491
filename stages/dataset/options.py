"""The options that select the data set, which several stages read."""

from typing import Literal

from pydantic import ConfigDict, Field

from stages.common.params import Section

Task = Literal["classification", "regression"]

NO_IMAGES = "data/no-images"  # an empty folder, which data.images must name for a published data set


class DataName(Section):
    """The keys of `data` that later stages read: all except the mirrors."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["mnist", "fashion-mnist", "kmnist", "images"]
    task: Task
    images: str = Field(min_length=1)  # the folder or archive of your own pictures
