"""The files in which DVC records results, relative to the root of the repository; integrity/dvc_lock.py reads them."""

LOCK = "dvc.lock"
SEEDS_LOCK = "seeds/dvc.lock"  # of seeds/dvc.yaml, which `make seeds` runs
EXPORT_LOCK = "export/dvc.lock"  # of export/dvc.yaml, which `make export` runs
LOCKS = (LOCK, SEEDS_LOCK, EXPORT_LOCK)  # DVC reads all of them for any command
