"""Programs beside the pipeline, which judge runs or look after them: they need no lock."""

import sys
from collections.abc import Callable
from typing import NoReturn

from stages.common import errors
from stages.common.errors import UserError


def run(main: Callable[[], int | None], kept: str = "nothing was changed") -> NoReturn:
    """Run a command as stages.common.errors.run does. kept: what is left if a signal ends it."""
    errors.run(main, alone=False, kept=kept)


def no_arguments() -> None:
    """Raise UserError if any were given; --help is answered."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print((sys.modules["__main__"].__doc__ or "").strip())
        sys.exit(0)
    if len(sys.argv) > 1:
        raise UserError(f"takes no arguments; given: {' '.join(sys.argv[1:])[:80]!r}")
