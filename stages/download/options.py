"""Options of the download stage."""

from typing import Annotated

from pydantic import ConfigDict, Field

from stages.dataset.options import DataName


class Data(DataName):
    """Section `data`."""

    model_config = ConfigDict(extra="forbid")

    mirrors: list[Annotated[str, Field(min_length=1)]]
