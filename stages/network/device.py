"""Everything that depends on the machine's processors: which one to use, and what it can do.

The decisions are functions of plain values, so that they can be tested on a machine without a GPU.
"""

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from stages.common import machine, paths
from stages.common.errors import UserError
from stages.common.text import counted

Map = Callable[..., Iterable[Any]]  # as the built-in map, but it may run several calls at once

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h, in bytes
RESIDENT_SHARE = 0.5  # of a GPU's free memory that images may take; the rest is for weights and activations
RESIDENT_BYTES = 500_000_000  # of images in the machine's own memory, at most; of a larger set the batches are read
# What torch and its libraries say, besides MemoryError and OutOfMemoryError, where there is not enough memory.
NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "out of memory", "ALLOC_FAILED", "can't start new thread")


def found() -> dict[str, int]:
    """How many of each kind of device this machine has, for instance {"cpu": 1, "cuda": 2, "mps": 0}."""
    return {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}


def choose(wanted: str, there: Mapping[str, int], key: str, hidden: str = "") -> str:
    """The kind of device to use: "cpu", "cuda" or "mps".

    wanted: the same, or "auto" for the fastest kind that is there. there: as `found` gives it. key: the key of
    params.yaml that asked. hidden: as `why_hidden` gives it. Raises UserError for a kind that is not there.
    """
    if wanted == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[wanted]:
        names = ", ".join(kind for kind, count in there.items() if count)
        why = f" ({hidden})" if wanted == "cuda" and hidden else ""
        raise UserError(
            f"{key} is {wanted}, and this machine has none; it has: {names}. Set one of these, or auto{why}"
        )
    return wanted


def why_hidden(visible: str | None, built_for_cuda: bool, usable: int, installed: int) -> str:
    """Why torch sees none of the NVIDIA GPUs that the driver knows; "" if it sees one, or there is none.

    visible: CUDA_VISIBLE_DEVICES. usable: how many torch sees. installed: how many the driver knows.
    """
    if usable or not installed:
        return ""
    gpus = f"the {counted(installed, 'NVIDIA GPU')} of this machine"
    if not built_for_cuda:
        return f"torch is built without CUDA and cannot use {gpus}"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} hides {gpus}: unset it, or name one that is there"
    return f"torch cannot use {gpus}: its driver is too old for this torch, or the container was not given it"


def check_section(options: object, section: str) -> None:
    """Refuse what a later stage could not do on this machine, before an earlier one has spent an hour.

    options: the stage's section of params.yaml as it was read: what is wrong with it anywhere is not said here. Comes
    after `set_up`.
    """
    given = options if isinstance(options, dict) else {}
    if given.get("device") in ("cuda", "mps"):
        choose(given["device"], found(), f"{section}.device", _why_hidden())
    # Where the variable is set, the capability is what somebody has asked for, and not what the processor has.
    if given.get("numerics") == "portable" and "ATEN_CPU_CAPABILITY" not in os.environ and _is_x86(platform.machine()):
        check_avx2(torch.backends.cpu.get_cpu_capability(), f"{section}.numerics")


def check_avx2(capability: str, key: str) -> None:
    """Refuse portable numerics on a processor without AVX2. capability: of ATen."""
    if capability == "DEFAULT":
        raise UserError(f"{key} is portable, which needs a processor with AVX2; this one has none: set fast")


def one_process(environment: Mapping[str, str]) -> None:
    """Refuse to run as one of several processes: each would train the same model and write the same files."""
    if environment.get("WORLD_SIZE", "1") != "1":
        count = environment["WORLD_SIZE"]
        raise UserError(
            f"started as one of {count} processes (torchrun?); start it without; machine.processes is for that"
        )


def check_precision(precision: str, kind: str, bfloat16: bool) -> None:
    """Refuse a precision that the device does not have. bfloat16: whether this GPU computes with it."""
    if precision == "float16" and kind != "cuda":
        raise UserError(f"train.precision is float16, which trains on cuda only; on {kind}: float32 | bfloat16")
    if precision == "bfloat16" and not bfloat16:
        raise UserError("train.precision is bfloat16, which this GPU does not have; allowed here: float32 | float16")


def threads_of(threads: int, processes: int, cores: int) -> int:
    """The threads of each of several processes on a machine. threads: machine.threads, 0 for an even share."""
    return threads or max(cores // processes, 1)


def gpu_of(process: int, processes: int, gpus: int) -> int:
    """The GPU of one of several processes on this machine, each of which has one of its own."""
    if processes > gpus:
        raise UserError(
            f"{paths.PARAMS}: machine.processes is {processes}, and this machine has {counted(gpus, 'GPU')} for "
            f"one process each; set {gpus}, or train.device: cpu"
        )
    return process


def describe(
    kind: str,
    there: Mapping[str, int],
    threads: int,
    quota: float | None = None,
    hidden: str = "",
    processes: int = 1,
) -> str:
    """What is used, and what is there and is not.

    quota: cores that a control group allows, where that decides on the threads. hidden: as `why_hidden` gives it.
    processes: of train on this machine.
    """
    if kind == "cpu":
        allowed = f" (a control group allows {quota:g} cores)" if quota else ""
        why = f"; {hidden}" if hidden else ""
        several = f"{processes} processes of " if processes > 1 else ""
        return f"device: cpu, {several}{counted(threads, 'thread')}{allowed}{why}"
    if kind == "mps":
        return "device: mps"
    idle = there["cuda"] - processes
    rest = f" ({idle} more not used: CUDA_VISIBLE_DEVICES chooses; machine.processes trains on several)" if idle else ""
    last = f" to cuda:{processes - 1}" if processes > 1 else ""
    return f"device: cuda:0{last}, {torch.cuda.get_device_name(0)}{rest}"


def set_up(
    wanted: str, threads: int, numerics: str, key: str, process: int = 0, processes: int | None = None
) -> torch.device:
    """Choose the device, make torch repeatable on it, print what was chosen. Comes before the first tensor operation.

    Each operation has one thread of the CPU, since another number would end in other last bits; `in_parallel` runs
    several operations at once. threads: as `in_parallel` takes it. numerics: as `fix_numerics` takes it. process,
    processes: which of several on this machine, as the train stage launches them; None: this program must be alone.
    Raises UserError as `choose`, `one_process`, `gpu_of` and `fix_numerics` do.
    """
    if processes is None:
        one_process(os.environ)
        processes = 1
    fix_numerics(numerics, platform.machine(), f"{key.partition('.')[0]}.numerics")
    keep_freed_memory()
    there, hidden = found(), _why_hidden()
    kind = choose(wanted, there, key, hidden)
    torch.set_num_threads(1)
    if kind != "cpu":  # what the stages use repeats itself on a CPU, and the call imports 1.3 s of the compiler
        # cuBLAS repeats its results only with a fixed workspace; it reads this when it first starts.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=kind == "mps")  # MPS has no deterministic form of some
        torch.backends.cudnn.benchmark = False  # would choose its algorithms by the clock
    quota = machine.cpu_quota() if not threads else None
    few = quota if quota is not None and quota < machine.assigned_cores() else None
    used = threads_of(threads, processes, machine.cores())
    print(describe(kind, there, used, few, hidden if wanted == "auto" else "", processes), flush=True)
    target = torch.device(kind)
    if kind == "cuda":
        if processes > 1:
            target = torch.device(kind, gpu_of(process, processes, there[kind]))
            torch.cuda.set_device(target)
        check_usable(target, key)
    return target


def check_usable(device: torch.device, key: str) -> None:
    """Refuse a GPU that is counted and cannot compute: full, too old for this torch, or taken by another process."""
    try:
        (torch.zeros(1, device=device) + 1).item()
    except RuntimeError as error:  # torch.AcceleratorError and torch.OutOfMemoryError are such
        raise unusable(error, key) from None


def unusable(error: RuntimeError, key: str) -> UserError:
    """The error for a GPU that cannot be used."""
    reason = str(error).strip().splitlines()[0]
    if out_of_memory(error):
        return UserError(
            f"{key}: the memory of the GPU is full ({reason}): end what uses it (nvidia-smi lists it), choose another "
            "one with CUDA_VISIBLE_DEVICES, or set cpu"
        )
    return UserError(
        f"{key}: the GPU cannot be used ({reason}): choose another one with CUDA_VISIBLE_DEVICES, or set cpu"
    )


def _why_hidden() -> str:
    visible, built = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.version.cuda is not None
    return why_hidden(visible, built, torch.cuda.device_count(), machine.gpus())


def _is_x86(architecture: str) -> bool:
    return architecture in ("x86_64", "AMD64")


@contextmanager
def in_parallel(device: torch.device, threads: int) -> Iterator[Map]:
    """Give a `map` that runs the calls of a CPU on so many threads at once (0: one a core); those of a GPU in turn."""
    threads = threads or machine.cores()
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
    if not _is_x86(architecture):
        print(f"{key}: portable is for x86-64; on {architecture} results repeat on this kind of processor", flush=True)
        return
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
    has = torch.backends.cpu.get_cpu_capability()  # of ATen, which reads its variable only now
    check_avx2(has, key)
    if has != "AVX2":
        raise RuntimeError(f"torch has chosen {has} already: set_up must come before the first tensor operation")
    # MKL sets a function up at its first call, and two threads that call it first may race (pytorch issue 188792).
    for function in (torch.exp, torch.log, torch.sin, torch.cos, torch.tan):
        function(torch.ones(1))


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones.

    Otherwise each large tensor of each step is mapped anew, and the system fills its pages with zeros first: with
    batches of 512 a step of a small convolutional network took 1.4 times as long. Tensors of more than 32 MiB, for
    which that matters less, go back to the system: what is kept would be broken up by small ones, and grow.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes with bfloat16 (a CPU always does, if slowly)."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


def free_bytes(device: torch.device, key: str) -> int | None:
    """Memory that is free on a GPU; None where tensors are in the machine's own memory anyway.

    key: the key of params.yaml that chose the device, for the UserError where the GPU cannot be asked.
    """
    if device.type == "cuda":
        try:
            return int(torch.cuda.mem_get_info(device)[0])
        except RuntimeError as error:
            raise unusable(error, key) from None
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def keep_on_device(size: int, free: int | None, num_workers: int) -> bool:
    """Whether a data set of `size` bytes stays on the device for the whole run, or is sent batch by batch.

    With workers it is sent: they read it from the disk. free: as `free_bytes` gives it.
    """
    return num_workers == 0 and size <= (RESIDENT_BYTES if free is None else RESIDENT_SHARE * free)


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what Python, torch or one of its libraries raises where there is not enough memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))


@contextmanager
def enough_memory(smaller: str) -> Iterator[None]:
    """Turn what is raised where memory does not suffice, the machine's or a GPU's, into one line.

    smaller: the keys of params.yaml that make it less.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["MemoryError"])[0]
        raise UserError(f"not enough memory ({reason}); {paths.PARAMS}: set {smaller}") from None


def place(device: torch.device) -> str:
    """What computes: the same code, data and versions give the same bits on it."""
    gpu = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{device.type}{gpu} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
