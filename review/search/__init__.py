"""A search for better parameters that survives being killed: `make search`."""

from stages.common import paths

FOLDER = paths.RUNS / "search"
LOCK = FOLDER / "lock"  # held by a running search
