"""Pictures per second that the server answers, against a loop over the same network in this process.

    python -m benchmarks.serving

With 1, 8 and 64 clients, each of which sends one PNG file of 28 x 28 after the other over one connection. Clients and
server share the cores. Needs a trained model (`dvc repro`) and requirements-serve.txt.
"""

import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from stages.common import paths
from use.batching import PART
from use.classifier import Classifier

CLIENTS = (1, 8, 64)
SECONDS = 8.0
WARM_UP = 200  # requests


def main() -> None:
    """Measure, and print a table in Markdown."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), dtype=np.uint8)).save(buffer, "png")
    content = buffer.getvalue()
    command = [sys.executable, "-m", "use.serve", "--port=0"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            port = int(line.split()[2].rpartition(":")[2])
            asyncio.run(send_requests(port, content, 8, requests=WARM_UP))
            for clients in CLIENTS:
                started = time.perf_counter()
                latencies = np.array(asyncio.run(send_requests(port, content, clients, seconds=SECONDS)))
                rate = len(latencies) / (time.perf_counter() - started)
                rows.append(
                    (f"{clients} client{'s' * (clients > 1)}", rate, *np.percentile(latencies * 1000, (50, 99)))
                )
        finally:
            server.terminate()
    classifier = Classifier(str(paths.MODEL))
    black = np.zeros((1, 1, 28, 28), dtype=np.uint8)

    def decode_and_classify(part_size: int) -> None:
        classifier.classify(np.stack([classifier.prepare(content, "auto").pixels]), part_size=part_size)

    rows += [
        (f"bare loop, {name}", *loop(work))
        for name, work in {
            "network alone, a picture at a time": lambda: classifier.classify(black, part_size=1),
            "with decoding": lambda: decode_and_classify(1),
            f"with decoding, in parts of {PART} as the server": lambda: decode_and_classify(PART),
        }.items()
    ]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| | pictures a second | median, ms | 99th percentile, ms |\n| --- | --- | --- | --- |")
    for name, rate, median, high in rows:
        print(f"| {name} | {rate:,.0f} | {median:.1f} | {high:.1f} |")


def loop(work: Callable[[], object]) -> tuple[float, float, float]:
    """Calls per second, and the median and 99th percentile of their milliseconds."""
    for _ in range(WARM_UP):
        work()
    took, end = [], time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        work()
        took.append(time.perf_counter() - start)
    median, high = np.percentile(np.array(took) * 1000, (50, 99))
    return len(took) / sum(took), float(median), float(high)


async def send_requests(
    port: int, content: bytes, clients: int, seconds: float = 3600, requests: int = sys.maxsize
) -> list[float]:
    """The seconds of each answer; a client stops after this many requests or seconds."""
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    end = time.perf_counter() + seconds

    async def client() -> list[float]:
        took: list[float] = []
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while len(took) < requests and (start := time.perf_counter()) < end:
            writer.write(head + content)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if not answer.startswith(b"http/1.1 200 "):
                raise RuntimeError(answer.decode(errors="replace"))
            await reader.readexactly(int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            took.append(time.perf_counter() - start)
        writer.close()
        return took

    return [second for took in await asyncio.gather(*(client() for _ in range(clients))) for second in took]


if __name__ == "__main__":
    main()
