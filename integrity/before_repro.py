"""What `make repro` runs before dvc, in one process: repair what a killed dvc left, and check params.yaml.

The repairs are described in integrity/repair.py.
"""

from integrity import repair, rules
from stages.common import errors


def main() -> None:
    """Repair, and resolve a merge's conflicts in results; then check. Raises UserError."""
    errors.no_arguments()
    repair.main()
    rules.read()


if __name__ == "__main__":
    errors.run_command(main, kept="the lines above list the repairs that were made")
