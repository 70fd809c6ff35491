"""Classify the pictures of several requests together, as many as are waiting."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

import numpy as np

from stages.network.device import Map
from use.classifier import Classifier
from use.model import Outputs
from use.prepare import Pixels

# Pictures per call of the network, like inference.PART. A single picture takes as long as a full part: 2 ms with the
# default network.
PART = 16
MAX_BATCH = 256  # pictures


class Batching:
    """Computes one batch at a time. The result for a picture does not depend on the others in its batch."""

    def __init__(self, classifier: Classifier, pool: Executor, parallel: Map) -> None:
        """pool: runs the batches. parallel: see inference.predict."""
        self.classifier, self.pool, self.parallel = classifier, pool, parallel
        self.waiting: asyncio.Queue[tuple[Pixels, asyncio.Future[Outputs]]] = asyncio.Queue()

    async def classify(self, pixels: Pixels) -> Outputs:
        """Outputs (K,), or for regression (1,), for a picture (C, H, W)."""
        result: asyncio.Future[Outputs] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((pixels, result))
        return await result

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A context in which batches are computed."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()

    async def _run(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < MAX_BATCH and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(pixels, result) for pixels, result in batch if not result.done()]  # its client may have left
            if not batch:
                continue
            try:
                outputs = await asyncio.get_running_loop().run_in_executor(self.pool, self._compute, batch)
            except Exception as error:  # any kind: every waiting request gets it
                for _, result in batch:
                    if not result.done():
                        result.set_exception(error)
                continue
            for (_, result), row in zip(batch, outputs, strict=True):
                if not result.done():
                    result.set_result(row)

    def _compute(self, batch: list[tuple[Pixels, asyncio.Future[Outputs]]]) -> Outputs:
        return self.classifier.classify(np.stack([pixels for pixels, _ in batch]), self.parallel, PART)
