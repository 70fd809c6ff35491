"""A project whose stage `train` takes a moment, for tests of searches: params.yaml and its rules are the real ones."""

from pathlib import Path
from typing import Any

import yaml

from stages.common import params
from tests.imports import ROOT
from tests.toy import Project, begun

TRAIN = """
import json, math, os, random, sys, time
from pathlib import Path
import yaml

values = yaml.safe_load(Path("params.yaml").read_text())
lr, seed, epochs = values["optimizers"]["adam"]["lr"], values["train"]["seed"], values["train"]["epochs"]
smoothing, size = values["train"]["label_smoothing"], values["train"]["batch_size"]
best = 0.99 - 0.1 * math.log10(lr / 0.02) ** 2 - smoothing / 10 - (size == 512) / 100
noise = random.Random(seed).gauss(0, 0.0005)

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path + ".tmp").write_text(text)
    os.replace(path + ".tmp", path)

rows = ["epoch,lr,train_loss,validation_loss,validation_accuracy"]
for epoch in range(1, epochs + 1):
    time.sleep(float(os.environ.get("TOY_SECONDS", 0)))
    if lr > 0.045:
        sys.exit(print("error: the training loss is nan at epoch 1, step 3: the run diverged", file=sys.stderr) or 2)
    accuracy = round(best + noise - 0.5 ** epoch / 10, 6)
    rows.append(f"{epoch},{lr:.6g},1,{1 - accuracy:.6g},{accuracy:.6g}")
    metrics = {"best_epoch": epoch, "validation_accuracy": accuracy, "validation_loss": round(1 - accuracy, 6)}
    write("metrics/plots/training.csv", "\\n".join(rows) + "\\n")
    write("metrics/train.json", json.dumps({"unfinished": f"epoch {epoch} of {epochs}", **metrics}))
    progress = {"epoch": epoch, "epochs": epochs, "validation_accuracy": accuracy}
    write("runs/progress.json", json.dumps({**progress, "time": time.time(), "seconds_per_epoch": 1.0}))
    print(f"epoch {epoch}/{epochs}", flush=True)
    while os.path.exists(os.environ.get("TOY_GATE", "no gate")):
        time.sleep(0.1)
write("metrics/train.json", json.dumps(metrics))
write("data/model", f"{lr} {seed}")
"""
PIPELINE = """
stages:
  preprocess:
    cmd: mkdir -p data && echo images > data/images
    outs: [data/images]
  train:
    cmd: python train.py
    deps: [train.py, data/images]
    params:
      - train
      - model
      - models.${model.name}
      - optimizers.${train.optimizer}
    outs: [data/model]
    metrics:
      - metrics/train.json:
          cache: false
    plots:
      - metrics/plots/training.csv:
          cache: false
vars: [params.yaml]
"""
SEARCH: dict[str, Any] = {
    "metric": "validation_accuracy",
    "trials": 6,
    "minutes": 0,
    "jobs": 1,
    "sampler": "tpe",
    "seed": 0,
    "pruner": "median",
    "startup_trials": 2,
    "warmup_epochs": 1,
    "final_seeds": 2,
}
SPACE: dict[str, Any] = {
    "optimizers.adam.lr": {"low": 0.001, "high": 0.05, "log": True},
    "train.label_smoothing": {"low": 0.0, "high": 0.1, "step": 0.01},
    "train.batch_size": {"choices": [128, 256, 512]},
}


def written(project: Project, space: dict[str, Any] | None = None, **options: Any) -> None:
    """Write search.yaml, with other options."""
    content = {"search": {**SEARCH, **options}, "space": SPACE if space is None else space}
    project.write("search.yaml", yaml.safe_dump(content, sort_keys=False))


def started(path: Path) -> Project:
    """The project, committed, with nothing run but its stages."""
    project = begun(path, ignored="/runs/\n/search.html\n")
    for name, content in (("train.py", TRAIN), ("dvc.yaml", PIPELINE)):
        project.write(name, content)
    values = params.load(ROOT / "params.yaml")
    values["train"]["epochs"] = 3
    project.write("params.yaml", yaml.safe_dump(values, sort_keys=False))
    written(project)
    project.dvc("repro", "-q")
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "start")
    return project
