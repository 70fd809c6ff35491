"""Text for messages: printable keys, shortened lists, suggestions for wrong names."""

import difflib
from collections.abc import Iterable


def shown(key: object) -> str:
    """A key as text on one line."""
    return str(key) if str(key).isprintable() else repr(key)


def listed(items: Iterable[str], most: int, separator: str = ", ") -> str:
    """The first `most` items, and the number of the others."""
    items = list(items)
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun, such as "1 thread" or "2 processes". plural: if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def nearest(name: str, known: list[str]) -> str:
    """A hint, " (did you mean …?)", with the most similar known name; empty if none is similar."""
    close = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
