"""Fuzz one target, guided by the coverage of our code: `python -m tests.fuzz TARGET CORPUS… [libFuzzer's options]`.

With the path of a file instead of a folder, that input alone is run: so a crash is replayed.
"""

import sys
from importlib import import_module
from typing import Any

atheris: Any = import_module("atheris")  # has no types, and no wheels but for Linux on x86-64

with atheris.instrument_imports(include=["stages", "ruamel.yaml"]):
    from tests.fuzz.targets import TARGETS, planted


def main() -> None:
    """Hand the rest of the command line to libFuzzer."""
    chosen = {**TARGETS, "planted": planted}
    if len(sys.argv) < 2 or sys.argv[1] not in chosen:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(TARGETS)} CORPUS…")
    atheris.Setup([sys.argv[0], *sys.argv[2:]], chosen[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
