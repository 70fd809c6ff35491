"""Train with several numbers of processes, one after the other, and print the SHA-256 of the results of each.

    python -m tests.workers PROCESSESxTHREADS …

in a folder where the train stage can run. As torchrun's workers do, each process finds the others through a store. But
they are forked from this process, since importing torch in each would take most of the time.
"""

import hashlib
import os
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch.distributed as dist

from stages.common import paths
from stages.train import __main__ as stage
from stages.train.processes import ENDED, ROUND, STORE

OUTPUTS = (paths.MODEL, paths.TRAIN_METRICS, paths.TRAINING_CURVES)


def fork(size: int, threads: int, store: str) -> list[int]:
    """Start a group's processes; returns their exit statuses."""
    children = []
    for rank in range(size):
        if child := os.fork():
            children.append(child)
            continue
        os.environ |= {"MACHINE_THREADS": str(threads)}
        if size > 1:
            numbers = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            os.environ |= {name: str(number) for name, number in numbers.items()}
            os.environ |= {STORE: store, ROUND: f"{size}x{threads}", ENDED: str(Path(tempfile.mkdtemp(), "ended"))}
        status = 1
        try:
            stage.main()
            status = 0
        except BaseException:  # a worker that lost another one exits without a word
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    """Run the combinations on the command line."""
    port = listening()
    for combination in sys.argv[1:]:
        size, threads = map(int, combination.split("x"))
        statuses = fork(size, threads, f"127.0.0.1:{port}")
        if any(statuses):
            sys.exit(f"{combination}: exit statuses {statuses}")
        print(
            "ended",
            combination,
            hashlib.sha256(b"".join(path.read_bytes() for path in OUTPUTS)).hexdigest(),
            flush=True,
        )
        for path in OUTPUTS:
            path.unlink()


def listening() -> int:
    """The port of a store in a process of its own, whose threads a fork of this one must not copy."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    parent = os.getpid()
    if not os.fork():
        fd = listener.detach()
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=fd)
        while os.getppid() == parent:
            time.sleep(0.2)
        del store
        os._exit(0)
    listener.close()
    return port


if __name__ == "__main__":
    main()
