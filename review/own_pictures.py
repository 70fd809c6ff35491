"""The audit of own pictures (the key `audit` of metrics/data.json), for the page of a run.

The pictures come from the folder data.images in its present state: neither Git nor DVC keeps them.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from integrity.revisions import Revision
from review import pictures
from stages.common import paths
from stages.common.errors import UserError
from stages.common.params import Section
from stages.common.preparation import Preparation
from stages.dataset.folder import Reader
from stages.dataset.pictures import UnusablePictureError, decode

MOST_SHOWN = 12  # groups of pictures of each kind
MOST_LISTED = 100  # rows of a table
MOST_IN_GROUP = 4
# On grey, so that white drawings on a transparent background are visible.
THUMBNAIL = Preparation(channels="rgb", image_size=[64, 64], resize="pad", background=[200, 200, 200])

Thumbnail = Callable[[str], str | None]  # from the name of a picture to its data: URI; None if unreadable


class _Part(Section):
    model_config = ConfigDict(extra="ignore", strict=False)


class Unusable(_Part):
    """A picture that was left out, and the reason."""

    file: str
    reason: str


class Near(_Part):
    """Two pictures in different parts that look the same."""

    file: str
    part: str
    like: str
    other_part: str


class Audit(_Part):
    """The keys that the page shows, as stages/preprocess/audit.py writes them."""

    layout: str
    files: int
    left_out: dict[str, int]
    exact_copies: dict[str, int]
    contents_under_two_classes: int
    near_copies_in_two_parts: int
    constant_pictures: int
    turned_by_exif: int
    formats: dict[str, int]
    modes: dict[str, int]
    width: list[float]
    height: list[float]
    aspect_ratio: list[float]
    unusable: list[Unusable]
    conflicts: list[list[str]]
    copies_in_two_parts: list[list[str]]
    near_copies: list[Near]
    constant: list[str]


def section(run: Revision, root: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The values of the page's section, or None for a published data set; and notes. root: the project's folder."""
    document = run.metrics.get(paths.DATA_METRICS.as_posix(), {})
    if "audit" not in document:
        return None, []
    try:
        audit = Audit.model_validate(document["audit"])
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        return None, [f"{run.name}: {paths.DATA_METRICS}: audit.{place} is not valid; `dvc repro` writes it again"]
    images = (run.ran_with or run.params or {}).get("data.images")
    folder = root / str(images) if images else None
    galleries = _galleries(audit, _thumbnails(folder))
    notes = (
        []
        if folder and folder.exists()
        else [f"the pictures are unavailable: no folder {images or 'data.images'} here"]
    )
    return {
        "layout": audit.layout,
        "numbers": _numbers(audit, document.get("images", {})),
        "sizes": _sizes(audit),
        "kinds": [
            ", ".join(f"{name} ({number:,})" for name, number in counts.items())
            for counts in (audit.formats, audit.modes)
        ],
        "classes": _classes(document.get("classes", [])),
        "unusable": [(picture.file, picture.reason) for picture in audit.unusable[:MOST_LISTED]],
        "galleries": [gallery for gallery in galleries if gallery["groups"]],
    }, notes


def _numbers(audit: Audit, parts: Any) -> list[tuple[str, str]]:
    rows = [("pictures found", audit.files)]
    counts = parts.items() if isinstance(parts, dict) else []
    rows += [(f"in the {part} part", count) for part, count in counts if isinstance(count, int)]
    names = {
        "unusable": "left out: cannot be used",
        "conflicts": "left out: the same file under several classes",
        "small_classes": "left out: the class is too small",
    }
    rows += [(names.get(reason, f"left out: {reason}"), count) for reason, count in audit.left_out.items()]
    rows += [
        ("files with exact copies", audit.exact_copies.get("pictures", 0)),
        ("the same file in two parts", audit.exact_copies.get("contents_in_two_parts", 0)),
        ("near copies in two parts", audit.near_copies_in_two_parts),
        ("of a single colour", audit.constant_pictures),
        ("rotated as EXIF says", audit.turned_by_exif),
    ]
    return [(name, f"{count:,}") for name, count in rows]


def _sizes(audit: Audit) -> list[list[str]]:
    rows = (("width, pixels", audit.width), ("height, pixels", audit.height), ("width / height", audit.aspect_ratio))
    return [[name, *(f"{value:,.4g}" if value % 1 else f"{value:,.0f}" for value in values)] for name, values in rows]


def _classes(rows: Any) -> list[list[str]]:
    """The number of pictures of each class in each part; empty if the file lacks it."""
    parts = ("train", "validation", "test")
    usable = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [[str(row.get("class", "")), *(str(row.get(part, "")) for part in parts)] for row in usable]


def _galleries(audit: Audit, thumbnail: Thumbnail) -> list[dict[str, Any]]:
    """Groups of pictures, with titles and explanations."""
    near = [[pair.file, pair.like] for pair in audit.near_copies]
    captions = [[f"{pair.part}: {pair.file}", f"{pair.other_part}: {pair.like}"] for pair in audit.near_copies]
    kinds: list[tuple[str, str, Sequence[Sequence[str]], Sequence[Sequence[str]], int]] = [
        (
            "The same file under several classes",
            "All of them are left out, because none of their labels can be trusted.",
            audit.conflicts,
            audit.conflicts,
            audit.contents_under_two_classes,
        ),
        (
            "The same file in two parts",
            "The published parts overlap, so results on them are too good.",
            audit.copies_in_two_parts,
            audit.copies_in_two_parts,
            audit.exact_copies.get("contents_in_two_parts", 0),
        ),
        (
            "Near copies in two parts",
            "Different files that look the same. If they show one scene, person or series, keep them in one part: "
            "preprocess.group_by.",
            near,
            captions,
            audit.near_copies_in_two_parts,
        ),
        (
            "A single colour",
            "Nothing can be learnt from these. White drawings on a transparent background vanish on white.",
            [[name] for name in audit.constant],
            [[name] for name in audit.constant],
            audit.constant_pictures,
        ),
    ]
    return [
        {
            "title": f"{title} ({count:,})",
            "text": text,
            "groups": [
                [{"source": thumbnail(name), "caption": caption} for name, caption in _few(group, captions)]
                for group, captions in zip(groups[:MOST_SHOWN], names[:MOST_SHOWN], strict=True)
            ],
        }
        for title, text, groups, names, count in kinds
    ]


def _few(group: Sequence[str], captions: Sequence[str]) -> Iterable[tuple[str, str]]:
    return list(zip(group, captions, strict=True))[:MOST_IN_GROUP]


def _thumbnails(folder: Path | None) -> Thumbnail:
    """A function that reads thumbnails; it returns None for a picture that cannot be read."""

    def thumbnail(name: str) -> str | None:
        if folder is None or ".." in Path(name).parts or Path(name).is_absolute():  # a metrics file may be forged
            return None
        try:
            return pictures.data_uri(decode(Reader(folder).read(name), THUMBNAIL))
        except (UnusablePictureError, UserError, OSError, KeyError):
            return None

    return thumbnail
