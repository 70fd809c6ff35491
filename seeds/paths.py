"""Every path that the seeds' pipeline reads or writes beyond those of the stages, relative to the repository's root."""

from pathlib import Path

PIPELINE = Path("seeds/dvc.yaml")
LOCK = Path("seeds/dvc.lock")
CHOSEN = Path("seeds/seeds.yaml")  # the seeds of the pipeline: {"seeds": [0, 1, …], "collect": ["all"]}
ROWS = Path("data/seeds/metrics")  # SEED.json: what one seed measured
PREDICTIONS = Path("data/seeds/predictions")  # SEED.csv: one row per test image
COLLECTED = Path("metrics/seeds.json")  # all rows, in Git
