"""Prepare `dvc repro`: repair what a killed dvc left (integrity/repair.py), and check params.yaml. For `make repro`."""

from integrity import repair, rules
from stages.common import errors


def main() -> None:
    """Raises UserError."""
    errors.no_arguments()
    repair.main()
    rules.read()


if __name__ == "__main__":
    errors.run_command(main, kept="the lines above list the repairs that were made")
