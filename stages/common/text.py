"""Words for messages: keys as they are shown, lists cut short, and the right name nearest to a wrong one."""

import difflib
from collections.abc import Iterable


def shown(key: object) -> str:
    """A key as it stands in a line of text, which it may not break."""
    return str(key) if str(key).isprintable() else repr(key)


def listed(items: Iterable[str], most: int, separator: str = ", ") -> str:
    """The first `most` items, and the number of the others."""
    items = list(items)
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun, such as "1 thread" or "2 processes". plural: if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def nearest(name: str, known: list[str]) -> str:
    """A hint, " (did you mean …?)", at the known name most like `name`; or nothing."""
    close = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
