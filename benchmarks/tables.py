"""The tables of docs/performance.md that show benchmarks/results.json."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

Part = dict[str, Any]  # the results of one benchmark
Results = dict[str, Part]
Row = tuple[str, str, dict[str, Any] | None]  # what was measured, the value, and the spread as summary.spread gives it


def measurements(results: Results) -> str:
    """What was measured, the value, and from how many measurements, as a Markdown table."""
    lines = ["| what | measured | n, spread |", "| --- | --- | --- |"]
    for part, rows in ROWS.items():
        for what, value, numbers in rows(results[part]) if part in results else ():
            spread = f"{numbers['n']}, {numbers['min']:.4g} to {numbers['max']:.4g}" if numbers else ""
            lines.append(f"| {what} | {value} | {spread} |")
    return "\n".join(lines)


def origins(results: Results) -> str:
    """The command, processor and commit of each part as a Markdown table."""
    lines = ["| command | processor, cores | commit |", "| --- | --- | --- |"]
    for part in ROWS:
        if result := results.get(part):
            machine = result["machine"]
            lines.append(
                f"| `make bench ARGS={part}` | {machine['processor']}, {machine['cores']} | {result['commit']} |"
            )
    return "\n".join(lines)


def _epoch(network: str, part: Part) -> Iterator[Row]:
    ratio = part["ratio"]
    yield f"an epoch of the same {network} and recipe, plain loop / ours", f"{ratio['median']:.1f}x", ratio


def _recipes(part: Part) -> Iterator[Row]:
    plain, fast = part["plain_seconds_to_99"], part["fast_loop_seconds"]
    default = part["default_loop_as_a_share_of_a_plain_epoch"]
    yield "plain loop: seconds to 99 % of the test images", f"{plain['median']:.0f} s", plain
    yield "fast recipe: seconds of the loop", f"{fast['median']:.2f} s", fast
    yield "time to 99 %, plain / fast recipe, loops only", f"{part['times_faster_to_99_in_the_loop']:.0f}x", None
    yield "time to 99 %, plain / fast recipe, whole processes", f"{part['times_faster_to_99_whole_process']:.0f}x", None
    yield "loop of the default recipe / one epoch of the plain loop", f"{default['median']:.2f}", default


def _throughput(part: Part) -> Iterator[Row]:
    yield "matrix product, float32", f"{part['matrix_product_gflops']:.0f} GFLOP/s", None
    for work in ("training", "evaluation"):
        share = part[f"{work}_share_of_the_matrix_product"]
        rate = part[f"{work}_images_a_second"]
        yield f"{work}, default network", f"{rate:,} images/s, {share:.0%} of the matrix product's FLOP/s", None


def _resnet18(part: Part) -> Iterator[Row]:
    ours, files = part["ours_images_per_second"], part["ours_by_reference"]
    memory, share = part["ours_by_reference_in_memory"], part["share_of_the_matrix_product"]
    what = "training resnet18 at 128 x 128"
    yield what, f"{ours['median']:.1f} images/s", ours
    yield f"{what}, ours / torchvision's reference recipe", f"{files['median']:.2f}x", files
    yield f"{what}, ours / that loop with its batches in memory", f"{memory['median']:.2f}x", memory
    yield f"{what}, share of the matrix product's FLOP/s", f"{share['median']:.0%}", share


def _numerics(part: Part) -> Iterator[Row]:
    ratio = part["ratio"]
    yield "loop of the default recipe, portable numerics / fast", f"{ratio['median']:.2f}", ratio


def _shards(part: Part) -> Iterator[Row]:
    cores, torchs, one = part["cores"], part["torchs_threads_by_shards"], part["one_thread_by_all_cores"]
    yield f"a step, torch's own {cores} threads / shards on {cores} threads", f"{torchs['median']:.2f}", torchs
    yield f"a step, shards on one thread / on {cores} threads", f"{one['median']:.2f}", one


def _processes(part: Part) -> Iterator[Row]:
    for network, name in (("default", "the default network"), ("resnet18_28", "resnet18 at 28 x 28")):
        ratio = part[network]["two_processes_by_two_threads"]
        yield f"a step of {name}, two processes of one thread / two threads", f"{ratio['median']:.2f}", ratio


def _overhead(part: Part) -> Iterator[Row]:
    seconds = part["seconds_beside_the_loop"]
    yield "`dvc repro` from preprocess to metrics, without the training loop", f"{seconds:.1f} s", None


def _no_op(part: Part) -> Iterator[Row]:
    for program in ("dvc", "make"):
        ratio = part[f"{program}_ratio"]
        yield f"processor time of a no-op `{program} repro` / of four empty stages", f"{ratio['median']:.2f}", ratio


def _memory(part: Part) -> Iterator[Row]:
    for row in part["rows"]:
        what = f"peak memory, {row['images_mb']} MB of images"
        yield what, f"train {row['train_mb']}, evaluate {row['evaluate_mb']} MB", None


def _own_pictures(part: Part) -> Iterator[Row]:
    stage = part["preprocess"]["stage"]
    yield "own JPEGs: preprocess", f"{stage['median']:.0f} pictures/s and core", stage
    for loop in ("decoding", "decoding_and_resizing"):
        share = part["preprocess"][f"share_of_{loop}"]
        yield f"own JPEGs: preprocess / a loop of only {loop.replace('_', ' ')}", f"{share['median']:.2f}", share
    for row in part["batches"]:
        what = f"own JPEGs: batches of random crops, {row['workers']} workers, ours / torchvision's ImageFolder"
        yield what, f"{row['ratio']['median']:.1f}x", row["ratio"]
    for row in part["rows"]:
        peaks = ", ".join(f"{stage} {row[f'{stage}_mb']}" for stage in ("preprocess", "train", "evaluate"))
        seconds = row["no_op_seconds"]
        what = f"peak memory, {row['pictures']:,} own pictures, {row['images_mb']:,} MB packed"
        yield what, f"{peaks} MB; no-op `dvc repro` {seconds['median']:.1f} s", seconds


def _remotes(part: Part) -> Iterator[Row]:
    for kind, remote in part["remotes"].items():
        push, pull = remote["push_seconds"], remote["pull_seconds"]
        what = f"{kind} remote on the same machine: push, pull of {remote['stored_bytes'] / 1e6:.0f} MB"
        yield what, f"{push['median']:.1f}, {pull['median']:.1f} s", pull


ROWS: dict[str, Callable[[Part], Iterator[Row]]] = {
    "epoch_mlp": partial(_epoch, "mlp"),
    "epoch_cnn": partial(_epoch, "cnn"),
    "recipes": _recipes,
    "throughput": _throughput,
    "resnet18": _resnet18,
    "numerics": _numerics,
    "shards": _shards,
    "processes": _processes,
    "overhead": _overhead,
    "no_op": _no_op,
    "memory": _memory,
    "own_pictures": _own_pictures,
    "remotes": _remotes,
}
