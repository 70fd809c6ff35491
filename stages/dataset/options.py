"""The option that tells which data set it is: read by more stages than download."""

from typing import Literal

from pydantic import ConfigDict

from stages.common.params import Section


class DataName(Section):
    """The one key of `data` that later stages read; they do not care where the bytes came from."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["mnist", "fashion-mnist", "kmnist"]
