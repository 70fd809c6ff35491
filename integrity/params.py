"""Check all of params.yaml: `python -m integrity.params`. Reads that file and nothing else, and writes nothing."""

from integrity import rules
from stages.common import errors


def main() -> None:
    """Raise UserError, in a line a mistake, unless all of it is right."""
    errors.no_arguments()
    rules.read()


if __name__ == "__main__":
    errors.run(main, alone=False)
