"""Run all benchmarks: `make bench`. Writes benchmarks/results.json, and prints the tables of docs/performance.md.

Each benchmark runs in its own process and measures both sides of its ratios there: seconds differ between machines and
between hours, ratios hardly do. Nothing else should run on the machine.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.summary import origin
from stages.common import files

RESULTS = Path("benchmarks/results.json")
PARTS = {
    "epoch_mlp": ["epoch", "mlp"],
    "epoch_cnn": ["epoch", "cnn", "--repeats", "2"],
    "recipes": ["recipes", "--repeats", "1"],
    "throughput": ["throughput"],
    "resnet18": ["resnet18"],
    "numerics": ["numerics"],
    "shards": ["shards"],
    "processes": ["processes"],
    "overhead": ["overhead"],
    "no_op": ["no_op"],
    "memory": ["memory"],
    "own_pictures": ["own_pictures"],
    "remotes": ["remotes"],
}


def main() -> None:
    """Run all parts, or those on the command line; keep the results of the others."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run all benchmarks, or the named ones.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    results: tables.Results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for part in chosen:
        print(f"{part} …", file=sys.stderr, flush=True)
        results[part] = run(part)
        files.write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    print(f"{tables.measurements(results)}\n\n{tables.origins(results)}")


def run(part: str) -> dict[str, Any]:
    """The result of one benchmark, with the commit and the machine."""
    module, *arguments = PARTS[part]
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    start = time.perf_counter()
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {
        **json.loads(process.stdout.splitlines()[-1]),
        "seconds_of_benchmark": round(time.perf_counter() - start),
        **origin(),
    }


if __name__ == "__main__":
    main()
