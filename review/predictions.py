"""The predictions of a revision, from the work tree, the cache or the remote."""

from typing import Any, NamedTuple

import pandas as pd

from integrity import revisions
from integrity.dvc_lock import LOCK
from integrity.revisions import Revision
from stages.common.errors import UserError
from stages.evaluate.predictions import parse


class Found(NamedTuple):
    """The predictions of a revision, as `parse` gives them; None, with the reason, if unavailable."""

    table: pd.DataFrame | None
    why: str
    notes: list[str]  # on copies that were passed over


def load(repo: Any, side: Revision, path: str) -> Found:
    """Look for the predictions of a revision in the work tree, the cache and the remote."""
    notes: list[str] = []
    try:
        out = side.outs.get(path)
        if out is None:
            raise UserError(f"{LOCK} there does not name {path}; run `dvc repro` there")
        content, notes = revisions.fetch(repo, out)
        return Found(parse(content, path), "", notes)
    except UserError as error:
        return Found(None, str(error), notes)
