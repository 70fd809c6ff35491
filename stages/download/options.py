"""Options of the download stage."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from stages.common.params import Section


class DataName(Section):
    """The one key of `data` that later stages read; they do not care where the bytes came from."""

    model_config = ConfigDict(extra="ignore")

    name: Literal["mnist", "fashion-mnist", "kmnist"]


class Data(DataName):
    """Section `data`."""

    model_config = ConfigDict(extra="forbid")

    mirrors: list[Annotated[str, Field(min_length=1)]]
