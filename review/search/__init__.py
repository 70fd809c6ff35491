"""A search for better parameters that survives being killed: `make search`."""

from stages.common import paths

FOLDER = paths.SEARCH
LOCK = FOLDER / "lock"  # held by a running search
