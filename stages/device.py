"""Everything that depends on the machine's processors: which one to use, and what it can do.

The decisions are functions of plain values, so that they can be tested on a machine without a GPU.
"""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from stages.errors import UserError

Map = Callable[..., Iterable[Any]]  # as the built-in map, but it may run several calls at once

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h, in bytes
RESIDENT_SHARE = 0.5  # of a GPU's free memory that images may take; the rest is for weights and activations


def found() -> dict[str, int]:
    """How many of each kind of device this machine has, for instance {"cpu": 1, "cuda": 2, "mps": 0}."""
    return {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}


def choose(wanted: str, there: Mapping[str, int], key: str) -> str:
    """The kind of device to use: "cpu", "cuda" or "mps".

    wanted: the same, or "auto" for the fastest kind that is there. there: as `found` gives it. key: the key of
    params.yaml that asked. Raises UserError for a kind that is not there.
    """
    if wanted == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[wanted]:
        names = ", ".join(kind for kind, count in there.items() if count)
        raise UserError(f"{key} is {wanted}, and this machine has none; it has: {names}. Set one of these, or auto")
    return wanted


def one_process(environment: Mapping[str, str]) -> None:
    """Refuse to run as one of several processes: each would train the same model and write the same files."""
    if environment.get("WORLD_SIZE", "1") != "1":
        count = environment["WORLD_SIZE"]
        raise UserError(f"started as one of {count} processes (torchrun?); training runs in one: start it without")


def check_precision(precision: str, kind: str, bfloat16: bool) -> None:
    """Refuse a precision that the device does not have. bfloat16: whether this GPU computes with it."""
    if precision == "float16" and kind != "cuda":
        raise UserError(f"train.precision is float16, which trains on cuda only; on {kind}: float32 | bfloat16")
    if precision == "bfloat16" and not bfloat16:
        raise UserError("train.precision is bfloat16, which this GPU does not have; allowed here: float32 | float16")


def describe(kind: str, there: Mapping[str, int], threads: int) -> str:
    """One line on what is used, and on what is there and is not."""
    if kind == "cpu":
        return f"device: cpu, {threads} thread{'s' * (threads > 1)}"
    if kind == "mps":
        return "device: mps"
    idle = there["cuda"] - 1
    rest = f" ({idle} more not used: training runs on one; CUDA_VISIBLE_DEVICES chooses it)" if idle else ""
    return f"device: cuda:0, {torch.cuda.get_device_name(0)}{rest}"


def set_up(wanted: str, threads: int, numerics: str, key: str) -> torch.device:
    """Choose the device, make torch repeatable on it, print what was chosen. Comes before the first tensor operation.

    Each operation has one thread of the CPU, since another number would end in other last bits; `in_parallel` runs
    several operations at once. threads: as `in_parallel` takes it. numerics: as `fix_numerics` takes it. Raises
    UserError as `choose`, `one_process` and `fix_numerics` do.
    """
    one_process(os.environ)
    fix_numerics(numerics, platform.machine(), f"{key.partition('.')[0]}.numerics")
    keep_freed_memory()
    there = found()
    kind = choose(wanted, there, key)
    torch.set_num_threads(1)
    if kind != "cpu":  # what the stages use repeats itself on a CPU, and the call imports 1.3 s of the compiler
        # cuBLAS repeats its results only with a fixed workspace; it reads this when it first starts.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=kind == "mps")  # MPS has no deterministic form of some
        torch.backends.cudnn.benchmark = False  # would choose its algorithms by the clock
    print(describe(kind, there, threads or cores()), flush=True)
    return torch.device(kind)


def cores() -> int:
    """Cores that this process may run on; a container or a batch system may have given it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def in_parallel(device: torch.device, threads: int) -> Iterator[Map]:
    """Give a `map` that runs the calls of a CPU on so many threads at once (0: one a core); those of a GPU in turn."""
    threads = threads or cores()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    # The number of threads of an operation is a setting of each thread.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


def fix_numerics(numerics: str, architecture: str, key: str) -> None:
    """With "portable", hold torch's CPU libraries to AVX2, which every x86-64 processor of the last ten years has.

    Each of them looks for the widest instructions of the processor, and a sum of other widths ends in other last bits.
    MKL (matrix products; exp, log, sin of tensors) has to stay below: it takes AVX2 on Intel's processors alone, and
    says nothing where it does not. COMPATIBLE is the one branch that it has on all (oneMKL developer guide, "Specifying
    Code Branches"). They read the environment when they are first called, which is why nothing may have been computed
    before. "fast": leave them as they are. architecture: platform.machine(). key: of params.yaml, for the error.
    Raises UserError where the processor has no AVX2, RuntimeError when called too late.
    """
    if numerics == "fast":
        return
    if architecture not in ("x86_64", "AMD64"):
        print(f"{key}: portable is for x86-64; on {architecture} results repeat on this kind of processor", flush=True)
        return
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
    has = torch.backends.cpu.get_cpu_capability()  # of ATen, which reads its variable only now
    if has == "DEFAULT":
        raise UserError(f"{key} is portable, which needs a processor with AVX2; this one has none: set fast")
    if has != "AVX2":
        raise RuntimeError(f"torch has chosen {has} already: set_up must come before the first tensor operation")
    # MKL sets a function up at its first call, and two threads that call it first may race (pytorch issue 188792).
    for function in (torch.exp, torch.log, torch.sin, torch.cos, torch.tan):
        function(torch.ones(1))


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    Otherwise each large tensor of each step is mapped anew, and the system fills its pages with zeros first: with
    batches of 512 a step of a small convolutional network took 1.4 times as long.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes with bfloat16 (a CPU always does, if slowly)."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a GPU; None where tensors are in the machine's own memory anyway."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def keep_on_device(size: int, free: int | None, num_workers: int) -> bool:
    """Whether a data set of `size` bytes stays on the device for the whole run, or is sent batch by batch.

    With workers it is sent: they fetch from the machine's memory. free: as `free_bytes` gives it.
    """
    return num_workers == 0 and (free is None or size <= RESIDENT_SHARE * free)
