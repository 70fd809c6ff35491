"""Export the trained network as an ONNX file: `python -m export`, or `make export`.

What is up to date or in DVC's run cache is not exported again. The file is data/model/model.onnx, which DVC keeps;
metrics/export.json, which Git keeps with export/dvc.lock, says how it compares with the network in torch.
"""

import importlib.util
import json
import sys
from pathlib import Path

from export.paths import CHOSEN, MODEL, PIPELINE, RECORD
from integrity import rebuild
from stages.common import children, errors, files
from stages.common.errors import UserError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def main() -> None:
    """Choose the format, run the pipeline, print the summary."""
    errors.no_arguments()
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE}: no such file; run from the top of the repository, where params.yaml is")
    if not all(map(importlib.util.find_spec, PACKAGES)):
        raise UserError("needs the packages of requirements-export.txt: `make export` installs them, and exports")
    content = "formats: [onnx]\n"
    if not CHOSEN.is_file() or CHOSEN.read_text(encoding="utf-8") != content:
        files.write_text(CHOSEN, content)
    command = [sys.executable, "-m", "dvc", "repro", str(PIPELINE)]
    if children.run(command, Path(), rebuild.dvc_environment()).returncode:
        raise UserError("`dvc repro` of the export failed; what it says is above")
    record = json.loads(RECORD.read_bytes())
    print(
        f"\n{MODEL}: {record['images']:,} test images, {record['changed_predictions']} changed predictions, "
        f"log-probabilities within {record['log_probability_difference_below']:g}\n"
        f"to keep it: git add export {RECORD}, commit, and `dvc push`",
        flush=True,
    )


if __name__ == "__main__":
    errors.run_command(main)
