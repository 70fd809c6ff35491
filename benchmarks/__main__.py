"""Run all benchmarks: `make bench`. Writes benchmarks/results.json, and prints a table.

Each benchmark runs in a process of its own and measures both sides of its ratios there: seconds differ between machines
and between hours, ratios hardly do. Nothing else should run on the machine.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from stages.common import files, record

RESULTS = Path("benchmarks/results.json")
PARTS = {
    "epoch_mlp": ["epoch", "mlp"],
    "epoch_cnn": ["epoch", "cnn", "--repeats", "2"],
    "recipes": ["recipes", "--repeats", "1"],
    "throughput": ["throughput"],
    "numerics": ["numerics"],
    "shards": ["shards"],
    "processes": ["processes"],
    "overhead": ["overhead"],
    "no_op": ["no_op"],
    "memory": ["memory"],
    "remotes": ["remotes"],
    "own_pictures": ["own_pictures"],
}


def main() -> None:
    """Run all parts, or those on the command line; keep the results of the others."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, or those named.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    named = parser.parse_args().parts or list(PARTS)
    if unknown := set(named) - set(PARTS):
        sys.exit(f"error: no benchmark {', '.join(sorted(unknown))}; allowed: {', '.join(PARTS)}")
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in named:
        print(f"{name} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{PARTS[name][0]}", *PARTS[name][1:]], check=True, stdout=subprocess.PIPE
        )
        lines = done.stdout.decode().splitlines()
        machine = {**record.machine(), "instruction_set": torch.backends.cpu.get_cpu_capability()}
        results[name] = {**json.loads(lines[-1]), "seconds_of_benchmark": round(time.perf_counter() - start)}
        results[name]["machine"] = machine
        files.write_text(RESULTS, json.dumps(results, indent=2) + "\n")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table: what, how much, and from how many measurements."""
    rows = [("| what | measured | n, spread |", ""), ("| --- | --- | --- |", "")]

    def add(what: str, text: str, numbers: dict[str, Any] | None = None) -> None:
        spread = f"{numbers['n']}, {numbers['min']:.4g} to {numbers['max']:.4g}" if numbers else ""
        rows.append((f"| {what} | {text} | {spread} |", ""))

    for network in ("mlp", "cnn"):
        if part := results.get(f"epoch_{network}"):
            ratio = part["ratio"]
            add(f"an epoch of the same {network} and recipe, plain loop / ours", f"{ratio['median']:.1f}x", ratio)
    if part := results.get("recipes"):
        plain, fast, share = (
            part[key]
            for key in ("plain_seconds_to_99", "fast_loop_seconds", "default_loop_as_a_share_of_a_plain_epoch")
        )
        add("seconds to 99 % of the test images, plain loop", f"{plain['median']:.0f} s", plain)
        add("seconds of the fast recipe's loop", f"{fast['median']:.2f} s", fast)
        add("times faster to 99 %, in the loop", f"{part['times_faster_to_99_in_the_loop']:.0f}x")
        add("times faster to 99 %, whole process", f"{part['times_faster_to_99_whole_process']:.0f}x")
        add("loop of the default recipe / one plain epoch", f"{share['median']:.2f}", share)
    if part := results.get("throughput"):
        add("matrix product, float32", f"{part['matrix_product_gflops']:.0f} GFLOP/s")
        for name in ("training", "evaluation"):
            share = part[f"{name}_share_of_the_matrix_product"]
            add(f"{name}, default network", f"{part[f'{name}_images_a_second']:,} images/s, {share:.0%} of that")
    if part := results.get("numerics"):
        add("loop of the default recipe, portable numerics / fast", f"{part['ratio']['median']:.2f}", part["ratio"])
    if part := results.get("shards"):
        own, alone = part["torchs_threads_by_shards"], part["one_thread_by_all_cores"]
        add(f"a step, torch's own {part['cores']} threads / shards on {part['cores']}", f"{own['median']:.2f}", own)
        add(f"a step, shards on one thread / on {part['cores']}", f"{alone['median']:.2f}", alone)
    for network, name in (("default", "the default network"), ("resnet18_28", "resnet18 on 28 x 28 pixels")):
        if ratio := results.get("processes", {}).get(network, {}).get("two_processes_by_two_threads"):
            what = f"a step of {name}, two processes of one thread / one of two threads"
            add(what, f"{ratio['median']:.2f}", ratio)
    if part := results.get("overhead"):
        add("`dvc repro` from preprocess to metrics, beside the loop", f"{part['seconds_beside_the_loop']:.1f} s")
    if part := results.get("no_op"):
        for command in ("dvc", "make"):
            ratio = part[f"{command}_ratio"]
            add(f"no-op `{command} repro` / no-op `dvc repro` of four empty stages", f"{ratio['median']:.2f}", ratio)
    for row in results.get("memory", {}).get("rows", []):
        add(
            f"peak memory, {row['images_mb']} MB of images",
            f"train {row['train_mb']}, evaluate {row['evaluate_mb']} MB",
        )
    if part := results.get("own_pictures"):
        packing = part["preprocess"]
        add("own JPEGs, preprocess", f"{packing['stage']['median']:.0f} pictures/s and core", packing["stage"])
        for loop in ("decoding", "decoding_and_resizing"):
            share = packing[f"share_of_{loop}"]
            add(f"… / a loop of {loop.replace('_', ' ')} alone", f"{share['median']:.2f}", share)
        for row in part["batches"]:
            what = f"… batches of random crops with {row['workers']} workers, ours / torchvision's ImageFolder"
            add(what, f"{row['ratio']['median']:.1f}x", row["ratio"])
        for row in part["rows"]:
            peaks = ", ".join(f"{stage} {row[f'{stage}_mb']}" for stage in ("preprocess", "train", "evaluate"))
            seconds = row["no_op_seconds"]
            what = f"peak memory, {row['pictures']:,} own pictures, {row['images_mb']:,} MB packed"
            add(what, f"{peaks} MB; no-op `dvc repro` {seconds['median']:.1f} s", seconds)
    for kind, part in results.get("remotes", {}).get("remotes", {}).items():
        push, pull = part["push_seconds"], part["pull_seconds"]
        size = f"{part['stored_bytes'] / 1e6:.0f} MB"
        add(
            f"{kind} remote on the same machine: push, pull of {size}",
            f"{push['median']:.1f}, {pull['median']:.1f} s",
            pull,
        )
    return "\n".join(row for row, _ in rows)


if __name__ == "__main__":
    main()
