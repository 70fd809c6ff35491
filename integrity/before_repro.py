"""Prepare `dvc repro`: repair what a killed dvc left (integrity/repair.py), and check params.yaml. For `make repro`."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from integrity import repair
from stages.common import errors, files, paths

VALID = paths.RUNS / "params.valid"  # the fingerprint of the parameters that were last found valid
MOST_BYTES = 1_000_001  # of a file in the fingerprint; a valid params.yaml is smaller


def main() -> None:
    """Raises UserError."""
    errors.no_arguments()
    repair.main()
    now = fingerprint()
    if VALID.is_file() and VALID.read_bytes() == now:
        return
    from integrity import rules  # takes 0.1 s

    rules.read()
    with suppress(OSError):  # a folder that cannot be written to
        files.write_bytes(VALID, now)


def fingerprint() -> bytes:
    """A digest of params.yaml, the environment variables that override it, and the code that checks both."""
    variables = sorted(item for item in os.environ.items() if item[0].startswith("MACHINE_"))
    sha256 = hashlib.sha256(repr(variables).encode())
    for path in (paths.PARAMS, Path("integrity/rules.py"), *sorted(Path("stages").rglob("*.py"))):
        with suppress(FileNotFoundError), path.open("rb") as file:
            sha256.update(file.read(MOST_BYTES))
    return sha256.hexdigest().encode()


if __name__ == "__main__":
    errors.run_command(main, kept="the lines above list the repairs that were made")
