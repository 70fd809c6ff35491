"""Mistakes that a user can mend end in one line and a status that is not 0; a traceback means a bug of ours."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The text says what is wrong, where, and how to mend it."""


def run(stage: Callable[[], None]) -> None:
    """Run a stage as a program: exit 1 with one line on a UserError or an OSError, 130 on Ctrl-C."""
    try:
        stage()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # disk full, no permission, not a directory
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {place}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted: nothing was kept of this stage", file=sys.stderr)
        sys.exit(130)
