"""The count of faults that were really injected, and of those survived, which the suite prints at its end."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

INJECTED: Counter[str] = Counter()
SURVIVED: Counter[str] = Counter()
KILLS_OF: Counter[str] = Counter()  # by the stage that was at work


@contextmanager
def faults(kind: str) -> Iterator[Counter[str]]:
    """Within the block, `count[kind] += 1` for each fault that has happened; they are survived if the block ends well.

    kind: in the plural, as the closing line names it.
    """
    count: Counter[str] = Counter({kind: 0})
    try:
        yield count
    finally:
        INJECTED.update(count)
    SURVIVED.update(count)


def state() -> list[dict[str, int]]:
    """The counts, to be sent from one process to another."""
    return [dict(each) for each in (INJECTED, SURVIVED, KILLS_OF)]


def add(counts: list[dict[str, int]]) -> None:
    """Add the `state` of another process."""
    for mine, theirs in zip((INJECTED, SURVIVED, KILLS_OF), counts, strict=False):
        mine.update(theirs)


def line() -> str:
    """The closing line, such as "faults: 41 injected, 41 survived (15 kills, 8 full disks)"; "" if there were none."""
    if not INJECTED.total():
        return ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in INJECTED.most_common())
    text = f"faults: {INJECTED.total()} injected, {SURVIVED.total()} survived ({kinds})"
    if KILLS_OF:
        text += f"; kills while {', '.join(f'{stage} {count}' for stage, count in KILLS_OF.items())}"
    return text
