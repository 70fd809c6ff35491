"""The paths of the export pipeline, besides those of the stages, relative to the root of the repository."""

from pathlib import Path

PIPELINE = Path("export/dvc.yaml")
LOCK = Path("export/dvc.lock")
CHOSEN = Path("export/formats.yaml")  # {"formats": []}; `make export` writes [onnx]
MODEL = Path("data/model/model.onnx")
RECORD = Path("metrics/export.json")  # the SHA-256 of MODEL, and its largest difference from torch; in Git
