"""Check the whole of params.yaml before any other stage runs: every stage depends on what this one writes.

Without it, plain `dvc repro` would train first and then find that an option of evaluate is wrong.
"""

from integrity import rules
from stages.common import errors, files, paths


def main() -> None:
    """params.yaml -> data/params.valid, which is always the same: a new value runs only the stages that read it."""
    rules.read()
    files.write_text(paths.CHECKED, "params.yaml is valid\n")


if __name__ == "__main__":
    errors.run(main)
