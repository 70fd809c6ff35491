"""Work for a head on another machine, which trains or decodes pictures: `make join HEAD=host:port`.

This clone must be at the head's commit, with the same params.yaml and the same data/processed or the same pictures.
Nothing is written here. See docs/several-machines.md.
"""

import argparse

from integrity import rules
from stages.common import errors, machine_settings, params, paths
from stages.dataset.options import DataName
from stages.preprocess import join
from stages.preprocess.options import Preprocess


def main() -> int:
    """Returns the exit status. Raises UserError."""
    parser = argparse.ArgumentParser(
        prog="python -m integrity.join", description="Work for a head on another machine: decode pictures, or train."
    )
    parser.add_argument("head", metavar="HOST:PORT", help="where the head listens, as it prints it")
    head = parser.parse_args().head
    rules.read()
    values = params.load(paths.PARAMS)
    settings = machine_settings.read(values)
    data, preprocess = params.section(values, "data", DataName), params.section(values, "preprocess", Preprocess)
    if join.join(head, data, preprocess, settings):
        return 0
    from stages.train import launch, options  # torch, which only training needs

    return launch.join(head, options.read(values), settings)


if __name__ == "__main__":
    errors.run_command(main, kept="the head goes on without this machine")
