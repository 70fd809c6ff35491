"""How a command that judges runs ends: not as a stage does (stages.errors.run), whose status 1 means failed.

Here 1 is a verdict, and 2 is that there is none.
"""

import signal
import sys
from collections.abc import Callable

from stages.errors import UserError, printable


def run(main: Callable[[], int | None], kept: str = "nothing was changed") -> None:
    """Run a command and exit with the status that it returns; with 2 and a line on a UserError or an OSError.

    SIGTERM and SIGHUP end it as Ctrl-C does, with status 130 and a line that says what is `kept`.
    """
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.default_int_handler)
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def no_arguments() -> None:
    """Raise UserError if any were given."""
    if len(sys.argv) > 1:
        raise UserError(f"takes no arguments; given: {' '.join(sys.argv[1:])[:80]!r}")
