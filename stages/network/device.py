"""The device that computes: choosing it, checking what it supports, and making its results repeatable.

Decisions are functions of plain values, so that they can be tested on a machine without a GPU.
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

Map = Callable[..., Iterable[Any]]  # like the built-in map, but it may run several calls in parallel

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h, in bytes
RESIDENT_SHARE = 0.5  # of a GPU's free memory, for images; the rest is for weights and activations
RESIDENT_BYTES = 500_000_000  # of images in main memory, at most; the batches of a larger data set are read from disk
# Parts of the messages of torch and its libraries for a lack of memory, if it is no MemoryError or OutOfMemoryError.
NO_MEMORY = ("can't allocate memory", "std::bad_alloc", "out of memory", "ALLOC_FAILED", "can't start new thread")


def available() -> dict[str, int]:
    """The number of devices of each kind, for example {"cpu": 1, "cuda": 2, "mps": 0}."""
    return {"cpu": 1, "cuda": _usable_gpus(), "mps": int(torch.backends.mps.is_available())}


def choose(wanted: str, devices: Mapping[str, int], key: str, hidden: str = "") -> str:
    """The kind of device to use: "cpu", "cuda" or "mps".

    wanted: the same, or "auto" for the fastest available kind. devices: as `available` gives them. key: the key of
    params.yaml. hidden: as `why_hidden` gives it. Raises UserError for a kind that this machine does not have.
    """
    if wanted == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if devices[kind])
    if not devices[wanted]:
        names = ", ".join(kind for kind, count in devices.items() if count)
        why = f" ({hidden})" if wanted == "cuda" and hidden else ""
        raise UserError(
            f"{key} is {wanted}, and this machine has none; it has: {names}. Set one of these, or auto{why}"
        )
    return wanted


def why_hidden(visible: str | None, built_for_cuda: bool, usable: int, installed: int) -> str:
    """Why torch finds none of the NVIDIA GPUs that the driver lists; "" if it finds some, or there are none.

    visible: CUDA_VISIBLE_DEVICES. usable: GPUs that torch finds. installed: GPUs that the driver lists.
    """
    if usable or not installed:
        return ""
    gpus = f"the {counted(installed, 'NVIDIA GPU')} of this machine"
    if not built_for_cuda:
        return f"torch is built without CUDA and cannot use {gpus}"
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible} hides {gpus}: unset it, or name an existing one"
    return f"torch cannot use {gpus}: its driver is too old for this torch, or the container was not given it"


def check_section(options: object, section: str) -> None:
    """Raise UserError if this machine lacks the device or numerics of a later stage.

    options: that stage's section of params.yaml, not validated: other mistakes in it are not reported here. Call it
    after `set_up`.
    """
    values = options if isinstance(options, dict) else {}
    if values.get("device") in ("cuda", "mps"):
        choose(values["device"], available(), f"{section}.device", _why_hidden())
    # If the variable is set, ATen reports its value, not what the processor has.
    if values.get("numerics") == "portable" and "ATEN_CPU_CAPABILITY" not in os.environ and _is_x86(platform.machine()):
        check_avx2(torch.backends.cpu.get_cpu_capability(), f"{section}.numerics")


def check_avx2(capability: str, key: str) -> None:
    """Raise UserError for portable numerics on a processor without AVX2. capability: as ATen reports it."""
    if capability == "DEFAULT":
        raise UserError(f"{key} is portable, which needs a processor with AVX2; this one has none: set fast")


def one_process(environment: Mapping[str, str]) -> None:
    """Raise UserError if torchrun started this program: each process would train the same model and write its files."""
    if environment.get("WORLD_SIZE", "1") != "1":
        count = environment["WORLD_SIZE"]
        raise UserError(
            f"started as one of {count} processes (torchrun?); start it without; machine.processes is for that"
        )


def check_precision(precision: str, kind: str, bfloat16: bool) -> None:
    """Raise UserError for a precision that the device does not support. bfloat16: whether it supports that one."""
    if precision == "float16" and kind != "cuda":
        raise UserError(f"train.precision is float16, which trains on cuda only; on {kind}: float32 | bfloat16")
    if precision == "bfloat16" and not bfloat16:
        raise UserError("train.precision is bfloat16, which this GPU does not have; allowed here: float32 | float16")


def threads_of(threads: int, processes: int, cores: int) -> int:
    """The number of threads of each process on this machine. threads: machine.threads; 0 divides the cores evenly."""
    return threads or max(cores // processes, 1)


def gpu_of(process: int, processes: int, gpus: int) -> int:
    """The number of the GPU of one of several processes on this machine: one GPU per process. Raises UserError."""
    if processes > gpus:
        raise UserError(
            f"{paths.PARAMS}: machine.processes is {processes}, and this machine has {counted(gpus, 'GPU')} for "
            f"one process each; set {gpus}, or train.device: cpu"
        )
    return process


def describe(
    kind: str,
    devices: Mapping[str, int],
    threads: int,
    quota: float | None = None,
    hidden: str = "",
    processes: int = 1,
) -> str:
    """The line about the device that is used, and about GPUs that are not.

    quota: cores that a control group allows, if that decides the number of threads. hidden: as `why_hidden` gives it.
    processes: that train on this machine.
    """
    if kind == "cpu":
        allowed = f" (a control group allows {quota:g} cores)" if quota else ""
        why = f"; {hidden}" if hidden else ""
        several = f"{processes} processes of " if processes > 1 else ""
        return f"device: cpu, {several}{counted(threads, 'thread')}{allowed}{why}"
    if kind == "mps":
        return "device: mps"
    idle = devices["cuda"] - processes
    rest = f" ({idle} more not used: CUDA_VISIBLE_DEVICES chooses; machine.processes trains on several)" if idle else ""
    last = f" to cuda:{processes - 1}" if processes > 1 else ""
    return f"device: cuda:0{last}, {torch.cuda.get_device_name(0)}{rest}"


def set_up(
    wanted: str, threads: int, numerics: str, key: str, process: int = 0, processes: int | None = None
) -> torch.device:
    """Choose the device, make torch's results repeatable on it, and print a line. Call it before any tensor operation.

    Each operation uses one CPU thread, since another number would change the last bits; `in_parallel` runs several
    operations at once. threads: as for `in_parallel`. numerics: as for `fix_numerics`. process, processes: number of
    this process on this machine, and how many train here; None if torchrun must not have started this program.
    Raises UserError as `choose`, `one_process`, `gpu_of` and `fix_numerics` do.
    """
    if processes is None:
        one_process(os.environ)
        processes = 1
    fix_numerics(numerics, platform.machine(), f"{key.partition('.')[0]}.numerics")
    keep_freed_memory()
    devices, hidden = available(), _why_hidden()
    kind = choose(wanted, devices, key, hidden)
    torch.set_num_threads(1)
    if (
        kind != "cpu"
    ):  # on a CPU, the operations of the stages are repeatable; the call would import the compiler in 1.3 s
        # cuBLAS is repeatable only with a fixed workspace. It reads this variable when it starts.
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=kind == "mps")  # MPS lacks some deterministic operations
        torch.backends.cudnn.benchmark = False  # it would choose algorithms by their speed
    quota = machine.cpu_quota() if not threads else None
    few = quota if quota is not None and quota < machine.assigned_cores() else None
    used = threads_of(threads, processes, machine.cores())
    target = torch.device(kind)
    if kind == "cuda":
        target = torch.device(kind, gpu_of(process, processes, devices[kind]))  # torch.distributed needs the number
        use_gpu(target, key)
    print(describe(kind, devices, used, few, hidden if wanted == "auto" else "", processes), flush=True)
    return target


def use_gpu(device: torch.device, key: str) -> None:
    """Make a GPU the current one. Raises UserError if it cannot compute: full, too old, or used by another process."""
    try:
        torch.cuda.set_device(device)
        (torch.zeros(1, device=device) + 1).item()
    except RuntimeError as error:  # or its subclasses AcceleratorError and OutOfMemoryError
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
    # A CUDA_VISIBLE_DEVICES that leaves some GPUs is not the reason.
    visible = None if torch.cuda.device_count() else os.environ.get("CUDA_VISIBLE_DEVICES")
    return why_hidden(visible, torch.version.cuda is not None, _usable_gpus(), machine.gpus())


def _usable_gpus() -> int:
    # device_count alone asks the driver, and also counts GPUs whose driver is too old for this torch.
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _is_x86(architecture: str) -> bool:
    return architecture in ("x86_64", "AMD64")


@contextmanager
def in_parallel(device: torch.device, threads: int) -> Iterator[Map]:
    """A `map` that runs calls in parallel on a CPU, and one after the other on a GPU. threads: 0 for one per core."""
    threads = threads or machine.cores()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    # torch.set_num_threads applies to the thread that calls it.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


def fix_numerics(numerics: str, architecture: str, key: str) -> None:
    """With "portable", restrict torch's CPU libraries to AVX2, which x86-64 processors of the last ten years have.

    By default, each library uses the widest instructions of the processor, and a sum of another width ends in other
    last bits. MKL (matrix products; exp, log, sin of tensors) must use less than AVX2: it honours that setting on
    Intel's processors only, and silently ignores it on others. COMPATIBLE is the only branch that it has on all of them
    (oneMKL developer guide, "Specifying Code Branches"). The libraries read the environment when they are first called,
    so call this before any computation. "fast" changes nothing. architecture: platform.machine(). key: of params.yaml.
    Raises UserError if the processor has no AVX2, and RuntimeError if it is called too late.
    """
    if numerics == "fast":
        return
    if not _is_x86(architecture):
        print(f"{key}: portable is for x86-64; on {architecture} results repeat on this kind of processor", flush=True)
        return
    os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
    capability = torch.backends.cpu.get_cpu_capability()  # ATen reads its variable now
    check_avx2(capability, key)
    if capability != "AVX2":
        raise RuntimeError(f"torch has chosen {capability} already: set_up must come before the first tensor operation")
    # MKL initializes a function in its first call, where two threads may race (pytorch issue 188792).
    for function in (torch.exp, torch.log, torch.sin, torch.cos, torch.tan):
        function(torch.ones(1))


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for later ones.

    By default, it maps new memory for each large tensor, whose pages the system fills with zeros: with batches of 512,
    a step of a small convolutional network took 1.4 times as long. The memory of tensors above 32 MiB still goes back
    to the system, since small tensors would fragment it, and memory would grow.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl lacks it
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device supports bfloat16. A CPU always does, but slowly; older GPUs only emulate it."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def free_bytes(device: torch.device, key: str) -> int | None:
    """Free memory of a GPU; None for a CPU. key: of params.yaml. Raises UserError if the GPU cannot be used."""
    if device.type == "cuda":
        try:
            return int(torch.cuda.mem_get_info(device)[0])
        except RuntimeError as error:
            raise unusable(error, key) from None
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def keep_on_device(size: int, free: int | None, num_workers: int) -> bool:
    """Whether a data set of `size` bytes is kept on the device. If not, batches are sent to it.

    With loader workers it never is: they read ahead from the disk. free: as `free_bytes` gives it.
    """
    return num_workers == 0 and size <= (RESIDENT_BYTES if free is None else RESIDENT_SHARE * free)


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or one of its libraries raised this error for a lack of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY))


@contextmanager
def enough_memory(smaller: str) -> Iterator[None]:
    """Turn any error for a lack of memory, of the machine or a GPU, into a UserError.

    smaller: which keys of params.yaml to reduce, for the message.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["MemoryError"])[0]
        raise UserError(f"not enough memory ({reason}); {paths.PARAMS}: set {smaller}") from None


def place(device: torch.device) -> str:
    """The hardware, as far as the bits of results depend on it."""
    gpu = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{device.type}{gpu} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
