"""What the doctor reports."""

from typing import NamedTuple


class Finding(NamedTuple):
    """A problem, and the shell command that fixes it."""

    problem: str
    fix: str
