"""Every path the stages read or write, relative to the repository's root (where DVC runs them).

dvc.yaml names the same paths; a test compares the two.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
CHECKED = Path("data/params.valid")  # written once all of params.yaml is valid

RAW = Path("data/raw")  # the folder of the published IDX files, uncompressed
# Separate outputs, the same for all published data sets: DVC does not check the list of files of a folder output.
TRAIN_IMAGES = RAW / "train-images-idx3-ubyte"
TRAIN_LABELS = RAW / "train-labels-idx1-ubyte"
TEST_IMAGES = RAW / "t10k-images-idx3-ubyte"
TEST_LABELS = RAW / "t10k-labels-idx1-ubyte"
PROCESSED = Path("data/processed")
# Folders of shards: `make pull` checks the lists of their files, which DVC does not (integrity/objects.py).
TRAIN = PROCESSED / "train"
VALIDATION = PROCESSED / "validation"
TEST = PROCESSED / "test"
DATA_CARD = PROCESSED / "data.json"  # class names, image shape, normalization
MODEL = Path("data/model/model.safetensors")
MODEL_CARD = Path("data/model/README.md")
PREDICTIONS = Path("data/predictions.csv")
WEIGHTS = Path("data/weights")  # the folder of files that models.torchvision.weights may name
# The weights that training starts with; a line of text if there are none
PRETRAINED = Path("data/pretrained/weights.safetensors")

DATA_METRICS = Path("metrics/data.json")
TRAIN_METRICS = Path("metrics/train.json")
UNFINISHED = "unfinished"  # a key in it until the run has ended: "epoch 2 of 5"
TEST_METRICS = Path("metrics/evaluate.json")
TRAINING_CURVES = Path("metrics/plots/training.csv")
CONFUSION = Path("metrics/plots/confusion.csv")
RELIABILITY = Path("metrics/plots/reliability.csv")
UNSCALED_RELIABILITY = Path("metrics/plots/reliability_without_temperature.csv")
OVERVIEW = Path("metrics/plots/overview.png")
WORST = Path("metrics/plots/worst.png")

ENVIRONMENT = Path("metrics/environment")  # STAGE.json: in Git beside the metrics, and no output of DVC

RUNS = Path("runs")  # records of time and machine, and the state of runs; ignored by Git and DVC
RESUME = RUNS / "resume"  # what a killed run resumes from
SEARCH = RUNS / "search"  # clones in which the trials of a search run, and its record
PROGRESS = RUNS / "progress.json"  # the epoch of the training in progress
LOCK = RUNS / "stage.lock"  # held by the running stage

# In the repository that an experiment belongs to. The VS Code extension of DVC watches this file, which DVCLive writes
# after each step, and then reads the experiments again (issue 4528 of iterative/vscode-dvc).
EPOCH_SIGNAL = Path(".dvc/tmp/exps/run/DVCLIVE_STEP_COMPLETED")
