"""Work on many pictures with several processes, and show the progress."""

import itertools
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from tqdm import tqdm

from stages.common import children
from stages.common.errors import UserError

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 4  # batches per process that are in progress or wait to be fetched; limits the memory
SHARED_AHEAD = 1000  # with other machines, of all together: one may hang for a minute while the others go on
LINE_SECONDS = 10  # between two lines if the output is not a terminal


Submit = Callable[[list[A]], Future[list[B]]]
Share = Callable[[Submit[A, B]], AbstractContextManager[Submit[A, B]]]


def in_order(
    function: Callable[[list[A]], list[B]],
    items: Iterable[A],
    processes: int,
    batch: int = 32,
    share: Share[A, B] | None = None,
) -> Iterator[B]:
    """The results of `function`, which takes up to `batch` items and gives one result for each, in the items' order.

    processes: 1: no other process. The function, its items and its results must be picklable. At most
    AHEAD * processes batches are in memory. share: receives the function that submits a batch to a process of this
    machine, and yields one that submits it to any machine; at most SHARED_AHEAD batches are then in memory.
    Raises what the function raises, and UserError if a process dies.
    """
    batches = _batches(iter(items), batch)
    if processes == 1 and share is None:
        for items_of_batch in batches:
            yield from function(items_of_batch)
        return
    # Not forked: this process has threads, and a copy could inherit a lock that one of them holds.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=children.end_with_the_parent)
    ahead = SHARED_AHEAD if share else AHEAD * processes

    def submit_here(items: list[A]) -> "Future[list[B]]":
        return executor.submit(function, items)

    try:
        with share(submit_here) if share else nullcontext(submit_here) as submit:
            waiting = deque(map(submit, itertools.islice(batches, ahead)))
            while waiting:
                results = waiting.popleft().result()
                waiting.extend(map(submit, itertools.islice(batches, 1)))
                yield from results
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; `dvc repro` resumes from here"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _batches(items: Iterator[A], size: int) -> Iterator[list[A]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def progress(items: Iterable[A], name: str, total: int, done: int = 0) -> Iterator[A]:
    """The items, with a bar on a terminal, elsewhere a line every LINE_SECONDS. done: items that were done before."""
    if sys.stderr.isatty():
        yield from tqdm(items, name, total, leave=False, unit=" pictures", initial=done)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, done + 1):
        yield item
        if (now := time.monotonic()) - last > LINE_SECONDS:
            last, rate = now, (count - done) / (now - start)
            left = (total - count) / rate
            print(f"{name}: {count:,} of {total:,} pictures, {rate:,.0f} a second, {left:,.0f} s left", flush=True)
