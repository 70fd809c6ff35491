"""Collect the results of all seeds into metrics/seeds.json, a stage of seeds/dvc.yaml."""

import json
import statistics
from typing import Any

from seeds.paths import COLLECTED, ROWS
from stages.common import errors, files, inputs

SUMMARIZED = ("accuracy", "validation_accuracy", "r2", "validation_r2")


@inputs.unchanged
def main() -> None:
    """data/seeds/metrics -> metrics/seeds.json."""
    rows = [json.loads(path.read_bytes()) for path in ROWS.glob("*.json")]
    rows.sort(key=lambda row: int(row["seed"]))
    columns = {key: [row[key] for row in rows] for key in SUMMARIZED if all(key in row for row in rows)}
    files.write_json(COLLECTED, {**{key: summary(values) for key, values in columns.items()}, "seeds": rows})


def summary(values: list[float]) -> dict[str, Any]:
    """Mean and, for two values or more, standard deviation."""
    spread = {"standard_deviation": statistics.stdev(values)} if len(values) > 1 else {}
    return {"mean": statistics.fmean(values), **spread}


if __name__ == "__main__":
    errors.run(main)
