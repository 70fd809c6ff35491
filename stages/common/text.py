"""Words for messages: keys as they are shown, and the right name nearest to a wrong one."""

import difflib


def shown(key: object) -> str:
    """A key as it stands in a line of text, which it may not break."""
    return str(key) if str(key).isprintable() else repr(key)


def nearest(name: str, known: list[str]) -> str:
    """A hint, " (did you mean …?)", at the known name most like `name`; or nothing."""
    close = difflib.get_close_matches(name, [str(item) for item in known], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
