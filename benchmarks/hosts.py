"""The time that a step of training spends on the network between hosts: `python -m benchmarks.hosts` (root, a minute).

Two and three hosts (network namespaces) sum the gradients of a batch of four shards, without a limit and with 1 Gbit/s
(tc tbf). It prints the median and the minimum of CALLS sums; other programs disturb the minimum least.
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
SHARDS, CALLS, PORT = 4, 40, 29400


def sum_with_others(count: int) -> None:
    """On one of the hosts: sum `count` numbers with the others, CALLS times."""
    torch.set_num_threads(1)  # as in training
    with process_group(torch.device("cpu"), 60) as group:
        sums, own, seconds = TreeSum(group, [torch.zeros(count)]), group.own_shards(SHARDS), []
        roots = {node: [torch.ones(count)] for node in tree.roots(own, SHARDS)}
        for _ in range(CALLS):
            start = time.perf_counter()
            sums(roots, SHARDS)
            seconds.append(time.perf_counter() - start)
    print(f"{1000 * statistics.median(seconds):.1f} {1000 * min(seconds):.1f}", flush=True)


def sent_bytes(host: Host) -> int:
    """Bytes that a host has sent."""
    match = re.search(r"TX:.*?\n\s+(\d+)", ip("-n", host.name, "-s", "link", "show", "eth0"), re.DOTALL)
    assert match
    return int(match[1])


def measure(weights: int, host_count: int, limit: str) -> str:
    """One row of the table. limit: bandwidth of each host's link as tc takes it; "": none."""
    with (
        tempfile.TemporaryDirectory() as folder,
        hosts([Path(folder, str(number)) for number in range(host_count)]) as machines,
    ):
        for host in machines:
            host.folder.mkdir()
            if limit:
                shape = f"qdisc add dev eth0 root tbf rate {limit} burst 128kb latency 50ms"
                subprocess.run(["tc", "-n", host.name, *shape.split()], check=True, timeout=60)
        head = machines[0].address
        store = f"import torch.distributed as d, time; s = d.TCPStore('{head}', {PORT}, is_master=True, " + (
            "wait_for_workers=False); time.sleep(300)"
        )
        server = machines[0].start([sys.executable, "-c", store], os.environ, log="store.txt")
        workers = [
            host.start(
                [sys.executable, "-m", "benchmarks.hosts", str(weights)],
                {
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    STORE: f"{head}:{PORT}",
                    ROUND: "one",
                    "RANK": str(rank),
                    "WORLD_SIZE": str(host_count),
                    "GLOO_SOCKET_IFNAME": "eth0",
                },
            )
            for rank, host in enumerate(machines)
        ]
        for worker in workers:
            worker.wait(timeout=280)
        median, fastest = machines[0].output().split()
        server.kill()
        mean = sum(map(sent_bytes, machines)) / host_count / CALLS
        return f"{host_count} | {limit or 'no limit'} | {mean / 1e6:.2f} | {median} | {fastest}"


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        return sum_with_others(int(sys.argv[1]))
    print("network | hosts | link | MB sent per host and step | median ms | fastest ms")
    for name, weights in NETWORKS.items():
        for host_count in (2, 3):
            for limit in ("", "1gbit"):
                print(f"{name} | {measure(weights, host_count, limit)}", flush=True)
    return None


if __name__ == "__main__":
    main()
