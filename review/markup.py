"""HTML and SVG in which text cannot become markup: whatever is not already `Markup` is escaped where it is put in.

Names of classes, branches and parameters are chosen by people, and some of them by people far away.
"""

import html

from stages.common.errors import printable


class Markup(str):
    """Text that is HTML already: made by `tag`, `escape` and `join`, or a file of ours."""

    __slots__ = ()


Child = Markup | str | int
VOID = frozenset(["img", "link", "meta"])  # elements that HTML ends by themselves


def escape(text: Child) -> Markup:
    """Text as HTML. What is not printable, such as a mark that turns the direction of reading, becomes a ?."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(printable(str(text))))


def join(*children: Child, between: str = "") -> Markup:
    """Children one after the other."""
    return Markup(escape(between).join(escape(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. In the name of an attribute _ stands for -, and one at the end goes (class_); None leaves it out."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def _number(value: str | float) -> str:
    """Coordinates to a hundredth: smaller pages, and no last digits of a float."""
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def prose(text: str) -> Markup:
    """A sentence in which `this` is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick too many
        parts = ["'".join(parts)]
    return join(*(tag("code", part) if at % 2 else part for at, part in enumerate(parts)))
