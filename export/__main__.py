"""Export the trained network as an ONNX file: `python -m export`, or `make export`.

An export that is up to date or in DVC's run cache does not run again. DVC keeps the file, data/model/model.onnx. Git
keeps export/dvc.lock and metrics/export.json, which records the largest difference from the network in torch.
"""

import importlib.util
import sys
from pathlib import Path

from export.paths import CHOSEN, MODEL, PIPELINE, RECORD
from export.runtime import Record
from integrity import rebuild
from stages.common import children, errors, files
from stages.common.errors import UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def main() -> None:
    """Choose the format, run the pipeline, print the summary."""
    errors.no_arguments()
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE}: no such file; run this in the root of the repository, where params.yaml is")
    if not all(map(importlib.util.find_spec, PACKAGES)):
        raise UserError("needs the packages of requirements-export.txt; `make export` installs them")
    content = "formats: [onnx]\n"
    if not CHOSEN.is_file() or CHOSEN.read_text(encoding="utf-8") != content:
        files.write_text(CHOSEN, content)
    command = [sys.executable, "-m", "dvc", "repro", str(PIPELINE)]
    if children.run(command, Path(), rebuild.dvc_environment()).returncode:
        raise UserError("the export failed; the output of `dvc repro` above gives the reason")
    record = Record.model_validate_json(RECORD.read_bytes())
    print(f"\n{MODEL}: {record.summary}\nto keep it: git add export {RECORD}, commit, and `dvc push`", flush=True)


if __name__ == "__main__":
    errors.run_command(main)
