"""Check the contracts of pyproject.toml on what may import what: `python -m tests.layers`.

import-linter is a script and no program for `python -m`, which is how the Makefile runs everything.
"""

from importlinter.cli import lint_imports_command

if __name__ == "__main__":
    lint_imports_command()
