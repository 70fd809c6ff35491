"""The resources that this process may use: control groups and `ulimit` may allow less than the machine has.

For tests, functions take the folder of the process in /proc. On systems without /proc, no such limits are known.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

SELF = Path("/proc/self")


def cpu_quota(process: Path = SELF) -> float | None:
    """The CPU time that the control groups allow, in cores (`docker run --cpus`, Kubernetes); None: no limit."""
    quotas = []
    for folder in _groups("cpu", process):
        match _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"):
            case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):  # "max", "-1": no limit
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def cores() -> int:
    """Cores that this process may use: those it may run on, but no more than its CPU quota, rounded up."""
    quota = cpu_quota()
    return assigned_cores() if quota is None else min(assigned_cores(), max(math.ceil(quota), 1))


def assigned_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(process: Path = SELF) -> int | None:
    """An upper bound of the memory that this process can still allocate; None: unknown."""
    limits = [
        int(words[0])
        for folder in _groups("memory", process)
        for words in (_words(folder / "memory.max"), _words(folder / "memory.limit_in_bytes"))
        if words and words[0].isdecimal()
    ]
    free = _kilobytes(process.parent / "meminfo")
    if "MemAvailable" in free:
        limits.append(1024 * (free["MemAvailable"] + free.get("SwapFree", 0)))
    if (limit := address_space()) is not None:
        limits.append(max(limit - 1024 * _kilobytes(process / "status").get("VmSize", 0), 0))
    return min(limits, default=None)


def address_space() -> int | None:
    """`ulimit -v`, in bytes; None: no limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def open_files() -> int | None:
    """`ulimit -n`; None: no limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def allow_open_files(count: int) -> None:
    """Raise `ulimit -n` to `count`, or to the hard limit if that is lower."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def gigabytes(count: float) -> str:
    """A number of bytes as text, in GB."""
    return f"{count / 1e9:,.1f} GB"


def gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> int:
    """The number of NVIDIA GPUs that the driver lists, whether or not torch can use them."""
    return len(list(driver.glob("*")))


def _groups(controller: str, process: Path) -> Iterator[Path]:
    """The folders of a process's control groups, version 1 or 2, from its own up to the topmost mounted one.

    The limits of all of them apply (cgroups(7)). proc(5) describes the two files.
    """
    try:
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text(encoding="utf-8").splitlines()]
        mounts = [line.partition(" - ") for line in (process / "mountinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return
    for left, _, right in mounts:
        root, point = (name.replace(r"\040", " ") for name in left.split()[3:5])
        kind, _, options = right.split(None, 2)
        if not (kind == "cgroup2" or (kind == "cgroup" and controller in options.split(","))):
            continue
        for _, controllers, path in groups:
            if controller in controllers.split(",") if kind == "cgroup" else not controllers:
                # In a container the path may be that on the host, of which only the part below `root` is mounted.
                inside = Path(path).is_relative_to(root) and ".." not in path
                folder = Path(point, Path(path).relative_to(root) if inside else "")
                yield folder
                while folder != Path(point):
                    folder = folder.parent
                    yield folder


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _kilobytes(path: Path) -> dict[str, int]:
    """The values of lines such as "MemAvailable:   123 kB"; other lines are ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    rows = [line.replace(":", " ").split() for line in lines]
    return {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[2] == "kB" and row[1].isdecimal()}
