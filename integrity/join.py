"""Train with a head on another machine: `make join HEAD=host:port`.

This clone must be at the head's commit, with the same params.yaml and the same data/processed. Nothing is written here.
See docs/several-machines.md.
"""

import sys

from integrity import rules
from stages.common import errors, machine_settings, params, paths
from stages.common.errors import UserError
from stages.train import launch, options


def main() -> int:
    """HOST:PORT. Returns the exit status. Raises UserError."""
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"]):
        print((__doc__ or "").strip())
        return 0
    if len(arguments) != 1 or not arguments[0]:
        raise UserError("give the head, as it prints it: make join HEAD=host:port")
    rules.read()
    values = params.load(paths.PARAMS)
    return launch.join(arguments[0], options.read(values), machine_settings.read(values))


if __name__ == "__main__":
    errors.run_command(main, kept="the head goes on without this machine")
