"""The pipeline and the commands around it, one module each, and the modules that they share."""

import sys
from importlib.util import find_spec

# A `dvc` of the machine's finds the machine's `python`, not .venv's. With the packages of requirements-onnx.txt alone,
# the modules that need no torch can be used.
if find_spec("safetensors") is None and find_spec("onnxruntime") is None:
    print(
        f"error: {sys.executable} lacks the pinned packages; use `make repro`, or `. .venv/bin/activate` first",
        file=sys.stderr,
    )
    sys.exit(2)

if sys.argv[:1] == ["-m"]:  # `python -m stages.…`, whose own imports may fail: an error is never status 1, a verdict
    from stages.common import errors

    sys.excepthook = errors.uncaught
