"""Every path of the export pipeline beyond those of the stages, relative to the repository's root."""

from pathlib import Path

PIPELINE = Path("export/dvc.yaml")
LOCK = Path("export/dvc.lock")
CHOSEN = Path("export/formats.yaml")  # {"formats": []}, or [onnx] once `make export` has run
MODEL = Path("data/model/model.onnx")
RECORD = Path("metrics/export.json")  # its SHA-256, and how it compares with the network in torch; in Git
