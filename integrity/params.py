"""Check all of params.yaml, and write nothing: `python -m integrity.params`."""

from integrity import rules
from stages.common import errors


def main() -> None:
    """Raise UserError with one line per error."""
    errors.no_arguments()
    rules.read()


if __name__ == "__main__":
    errors.run(main, alone=False)
