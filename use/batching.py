"""Pictures of several requests, classified together: as many at a time as are waiting."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

import numpy as np

from stages.network.device import Map
from use.classifier import Classifier
from use.model import Logs
from use.prepare import Pixels

# Pictures computed at once, as inference.PART: a lone picture waits for so many, 2 ms for the default network.
PART = 16
MOST = 256  # pictures of a batch


class Batching:
    """One batch at a time. A picture's result does not depend on those that it happens to be with."""

    def __init__(self, classifier: Classifier, pool: Executor, parallel: Map) -> None:
        """pool: runs the batches. parallel: as inference.predict takes it."""
        self.classifier, self.pool, self.parallel = classifier, pool, parallel
        self.waiting: asyncio.Queue[tuple[Pixels, asyncio.Future[Logs]]] = asyncio.Queue()

    async def classify(self, pixels: Pixels) -> Logs:
        """Log-probabilities (K,) of a picture (C, H, W)."""
        result: asyncio.Future[Logs] = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((pixels, result))
        return await result

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A block in which batches are computed."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()

    async def _run(self) -> None:
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < MOST and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(pixels, result) for pixels, result in batch if not result.done()]  # its client may have gone
            if not batch:
                continue
            try:
                log_p = await asyncio.get_running_loop().run_in_executor(self.pool, self._compute, batch)
            except Exception as error:  # of any kind: each waiting request is told
                for _, result in batch:
                    if not result.done():
                        result.set_exception(error)
                continue
            for (_, result), row in zip(batch, log_p, strict=True):
                if not result.done():
                    result.set_result(row)

    def _compute(self, batch: list[tuple[Pixels, asyncio.Future[Logs]]]) -> Logs:
        return self.classifier.classify(np.stack([pixels for pixels, _ in batch]), self.parallel, PART)
