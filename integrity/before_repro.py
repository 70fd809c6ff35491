"""What `make repro` runs before dvc, in one process: check params.yaml, and repair what a killed dvc left.

The repairs are described in integrity/repair.py.
"""

from integrity import repair, rules
from stages.common import errors


def main() -> None:
    """Check, then repair. Raises UserError."""
    errors.no_arguments()
    rules.read()
    repair.main()


if __name__ == "__main__":
    errors.run_command(main, kept="the lines above list the repairs that were made")
