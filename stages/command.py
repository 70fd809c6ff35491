"""How a command that compares runs as a program: not as a stage does (stages.errors.run), whose status 1 means failed.

Here 1 is a verdict, and 2 is that there is none.
"""

import sys
from collections.abc import Callable

from stages.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Run a command; exit 2 with a line on a UserError or an OSError."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or ''}: {error.strerror or error}".replace(": :", ":"), file=sys.stderr)
        sys.exit(2)
