"""The pipeline: one module a stage, and the shared rooms they are built from. Stages never import stages."""

import sys
from importlib.util import find_spec

if find_spec("safetensors") is None:  # `.venv/bin/dvc repro` finds the machine's own `python`, not .venv's
    sys.exit(f"error: {sys.executable} lacks the pinned packages; use `make repro`, or `. .venv/bin/activate` first")
