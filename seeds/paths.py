"""The paths of the pipeline of seeds, relative to the repository's root; stages/common/paths.py has the others."""

from pathlib import Path

PIPELINE = Path("seeds/dvc.yaml")
LOCK = Path("seeds/dvc.lock")
CHOSEN = Path("seeds/seeds.yaml")  # the seeds of the pipeline: {"seeds": [0, 1, …], "collect": ["all"]}
ROWS = Path("data/seeds/metrics")  # SEED.json: the results of one seed
PREDICTIONS = Path("data/seeds/predictions")  # SEED.csv: one row per test image
COLLECTED = Path("metrics/seeds.json")  # all rows, in Git
