"""Check the whole of params.yaml before any other stage runs: every stage depends on what this one writes.

Without it, plain `dvc repro` would train first and then find that an option of evaluate is wrong.
"""

from stages import errors, files, paths
from stages.params import whole


def main() -> None:
    """params.yaml -> data/params.valid, which is always the same: a new value runs only the stages that read it."""
    whole.read()
    files.write_text(paths.CHECKED, "params.yaml is valid\n")


if __name__ == "__main__":
    errors.run(main)
