"""What a step of training costs on the network between hosts: python -m benchmarks.hosts (as root, a minute).

Two and three hosts (network namespaces) sum the gradients of a batch of four parts, without a limit and with 1 Gbit/s
(tc tbf). The median and the fastest of CALLS sums are printed: other programs on the machine disturb the fastest least.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from stages.train import tree
from stages.train.processes import ROUND, STORE, TreeSum, process_group
from tests.imports import ROOT
from tests.network_of_hosts import Host, hosts, ip

NETWORKS = {"cnn of the default recipe": 75_706, "resnet18": 11_689_512}  # weights
PARTS, CALLS, PORT = 4, 40, 29400


def work(count: int) -> None:
    """One of the hosts: sum `count` numbers with the others, CALLS times."""
    torch.set_num_threads(1)  # as in training
    with process_group(torch.device("cpu"), 60) as group:
        sums, own, seconds = TreeSum(group, [torch.zeros(count)]), group.own_shards(PARTS), []
        roots = {node: [torch.ones(count)] for node in tree.roots(own, PARTS)}
        for _ in range(CALLS):
            began = time.perf_counter()
            sums(roots, PARTS)
            seconds.append(time.perf_counter() - began)
    print(f"{1000 * statistics.median(seconds):.1f} {1000 * min(seconds):.1f}", flush=True)


def sent(host: Host) -> int:
    """Bytes that a host has sent."""
    found = re.search(r"TX:.*?\n\s+(\d+)", ip("-n", host.name, "-s", "link", "show", "eth0"), re.DOTALL)
    assert found
    return int(found[1])


def measure(count: int, machines: int, limit: str) -> str:
    """A row of the table. limit: of each host's link, as tc writes it; "" for none."""
    with (
        tempfile.TemporaryDirectory() as folder,
        hosts([Path(folder, str(number)) for number in range(machines)]) as made,
    ):
        for host in made:
            host.folder.mkdir()
            if limit:
                shape = (
                    "qdisc",
                    "add",
                    "dev",
                    "eth0",
                    "root",
                    "tbf",
                    "rate",
                    limit,
                    "burst",
                    "128kb",
                    "latency",
                    "50ms",
                )
                subprocess.run(["tc", "-n", host.name, *shape], check=True, timeout=60)
        head = made[0].address
        store = f"import torch.distributed as d, time; s = d.TCPStore('{head}', {PORT}, is_master=True, " + (
            "wait_for_workers=False); time.sleep(300)"
        )
        server = made[0].start([sys.executable, "-c", store], os.environ, log="store.txt")
        workers = [
            host.start(
                [sys.executable, "-m", "benchmarks.hosts", str(count)],
                {
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    STORE: f"{head}:{PORT}",
                    ROUND: "one",
                    "RANK": str(rank),
                    "WORLD_SIZE": str(machines),
                    "GLOO_SOCKET_IFNAME": "eth0",
                },
            )
            for rank, host in enumerate(made)
        ]
        for worker in workers:
            worker.wait(timeout=280)
        median, fastest = made[0].output().split()
        server.kill()
        mean = sum(map(sent, made)) / machines / CALLS
        return f"{machines} | {limit or 'no limit'} | {mean / 1e6:.2f} | {median} | {fastest}"


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        return work(int(sys.argv[1]))
    print("network | hosts | link | MB sent per host and step | median ms | fastest ms")
    for name, count in NETWORKS.items():
        for machines in (2, 3):
            for limit in ("", "1gbit"):
                print(f"{name} | {measure(count, machines, limit)}", flush=True)
    return None


if __name__ == "__main__":
    main()
