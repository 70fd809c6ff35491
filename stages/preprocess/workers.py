"""Work on many pictures with several processes, and show how far it is."""

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

AHEAD = 4  # batches per process that are under way or wait to be fetched: bounds the memory
SHARED_AHEAD = 1000  # the same with other machines, of which one may hang for a minute
LINE_SECONDS = 10  # between two lines where the output is no terminal


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

    processes: 1 for none but this one. The function and what it takes and gives must be picklable. At most
    AHEAD * processes batches are in memory. share: takes what has a worker process compute a batch, and has other
    machines compute some of them; up to SHARED_AHEAD batches are then in memory, so that no machine waits for another.
    Raises what the function raises, and UserError if a process dies.
    """
    batches = _batches(iter(items), batch)
    if processes == 1 and share is None:
        for each in batches:
            yield from function(each)
        return
    # Not forked: this process has threads, and may have a lock that a copy must not hold.
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
            "a worker process was killed, for lack of memory perhaps; `dvc repro` goes on from here"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _batches(items: Iterator[A], size: int) -> Iterator[list[A]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def progress(items: Iterable[A], name: str, total: int, done: int = 0) -> Iterator[A]:
    """The items, with a bar on a terminal and a line every LINE_SECONDS elsewhere. done: how many were there before."""
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
