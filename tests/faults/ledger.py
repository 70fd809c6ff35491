"""Counts the injected and the survived faults; pytest prints them at its end."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

INJECTED: Counter[str] = Counter()
SURVIVED: Counter[str] = Counter()
KILLS_OF: Counter[str] = Counter()  # per stage that was running


@contextmanager
def faults(kind: str) -> Iterator[Counter[str]]:
    """A block that does `count[kind] += 1` for each injected fault. They are survived unless the block raises.

    kind: a plural, such as "full disks", for the summary.
    """
    count: Counter[str] = Counter({kind: 0})
    try:
        yield count
    finally:
        INJECTED.update(count)
    SURVIVED.update(count)


def state() -> list[dict[str, int]]:
    """The counts, to send to another process."""
    return [dict(counter) for counter in (INJECTED, SURVIVED, KILLS_OF)]


def add(counts: list[dict[str, int]]) -> None:
    """Add the counts of another process, from its `state`."""
    for counter, added in zip((INJECTED, SURVIVED, KILLS_OF), counts, strict=False):
        counter.update(added)


def line() -> str:
    """The summary, such as "faults: 41 injected, 41 survived (15 kills, 8 full disks)"; "" without faults."""
    if not INJECTED.total():
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in INJECTED.most_common())
    text = f"faults: {INJECTED.total()} injected, {SURVIVED.total()} survived ({kinds})"
    if KILLS_OF:
        text += f"; kills while {', '.join(f'{stage} {count}' for stage, count in KILLS_OF.items())}"
    return text
