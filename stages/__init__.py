"""The pipeline: one module a stage, and the shared rooms they are built from. Stages never import stages."""

import sys
from importlib.util import find_spec

if find_spec("safetensors") is None:  # a `dvc` of the machine's finds the machine's `python`, not .venv's
    print(
        f"error: {sys.executable} lacks the pinned packages; use `make repro`, or `. .venv/bin/activate` first",
        file=sys.stderr,
    )
    sys.exit(2)
