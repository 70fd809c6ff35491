"""Train with a head on another machine: `make join HEAD=host:port`.

This clone must be at the head's commit, with the same params.yaml and the same data/processed. Nothing is written here.
See docs/several-machines.md.
"""

import argparse

from integrity import rules
from stages.common import errors, machine_settings, params, paths
from stages.train import launch, options


def main() -> int:
    """Returns the exit status. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m integrity.join", description="Train with a head on another machine."
    )
    parser.add_argument("head", metavar="HOST:PORT", help="where the head listens, as it prints it")
    head = parser.parse_args().head
    rules.read()
    values = params.load(paths.PARAMS)
    return launch.join(head, options.read(values), machine_settings.read(values))


if __name__ == "__main__":
    errors.run_command(main, kept="the head goes on without this machine")
