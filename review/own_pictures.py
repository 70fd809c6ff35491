"""What the audit of own pictures found (the key `audit` of metrics/data.json), for the page of a run.

The pictures themselves come from the folder that data.images names, as it is now: Git and DVC keep none of them.
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
# On grey, so that white drawings on a transparent ground can be seen.
THUMBNAIL = Preparation(channels="rgb", image_size=[64, 64], resize="pad", background=[200, 200, 200])

Thumbnail = Callable[[str], str | None]  # the data: URI of a picture by its name; None: it cannot be read


class _Part(Section):
    model_config = ConfigDict(extra="ignore", strict=False)


class Unusable(_Part):
    """A picture that was left out, and why."""

    file: str
    reason: str


class Near(_Part):
    """Two pictures in two parts that look the same."""

    file: str
    part: str
    like: str
    other_part: str


class Audit(_Part):
    """As stages/preprocess/audit.py writes it; what is not shown is left out."""

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
    """The values of the page's section, and notes; None if the run is of a published data set.

    root: of the project.
    """
    document = run.metrics.get(paths.DATA_METRICS.as_posix(), {})
    if "audit" not in document:
        return None, []
    try:
        audit = Audit.model_validate(document["audit"])
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        return None, [f"{run.name}: {paths.DATA_METRICS}: audit.{place} cannot be read; `dvc repro` writes it again"]
    images = (run.ran_with or run.params or {}).get("data.images")
    folder = root / str(images) if images else None
    galleries = _galleries(audit, _thumbnails(folder))
    notes = [] if folder and folder.exists() else [f"the pictures are not here: no {images or 'data.images'}"]
    return {
        "layout": audit.layout,
        "numbers": _numbers(audit, document.get("images", {})),
        "sizes": _sizes(audit),
        "kinds": [
            ", ".join(f"{name} ({number:,})" for name, number in counts.items())
            for counts in (audit.formats, audit.modes)
        ],
        "classes": _classes(document.get("classes", [])),
        "unusable": [(each.file, each.reason) for each in audit.unusable[:MOST_LISTED]],
        "galleries": [gallery for gallery in galleries if gallery["groups"]],
    }, notes


def _numbers(audit: Audit, parts: Any) -> list[tuple[str, str]]:
    rows = [("pictures found", audit.files)]
    counts = parts.items() if isinstance(parts, dict) else []
    rows += [(f"in the {part} part", count) for part, count in counts if isinstance(count, int)]
    words = {
        "unusable": "left out: cannot be used",
        "conflicts": "left out: the same file under several classes",
        "small_classes": "left out: of a class that is too small",
    }
    rows += [(words.get(reason, f"left out: {reason}"), count) for reason, count in audit.left_out.items()]
    rows += [
        ("files that are there twice or more", audit.exact_copies.get("pictures", 0)),
        ("the same file in two parts", audit.exact_copies.get("contents_in_two_parts", 0)),
        ("near copies in two parts", audit.near_copies_in_two_parts),
        ("of one colour all over", audit.constant_pictures),
        ("turned, as EXIF says", audit.turned_by_exif),
    ]
    return [(name, f"{count:,}") for name, count in rows]


def _sizes(audit: Audit) -> list[list[str]]:
    rows = (("width, pixels", audit.width), ("height, pixels", audit.height), ("width / height", audit.aspect_ratio))
    return [[name, *(f"{value:,.4g}" if value % 1 else f"{value:,.0f}" for value in values)] for name, values in rows]


def _classes(rows: Any) -> list[list[str]]:
    """Pictures of each class in each part, as far as the file has them."""
    parts = ("train", "validation", "test")
    usable = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [[str(row.get("class", "")), *(str(row.get(part, "")) for part in parts)] for row in usable]


def _galleries(audit: Audit, thumbnail: Thumbnail) -> list[dict[str, Any]]:
    """Groups of pictures, each with a title and what to make of them."""
    near = [[each.file, each.like] for each in audit.near_copies]
    under = [[f"{each.part}: {each.file}", f"{each.other_part}: {each.like}"] for each in audit.near_copies]
    kinds: list[tuple[str, str, Sequence[Sequence[str]], Sequence[Sequence[str]], int]] = [
        (
            "The same file under several classes",
            "All of them are left out: no label of theirs can be trusted.",
            audit.conflicts,
            audit.conflicts,
            audit.contents_under_two_classes,
        ),
        (
            "The same file in two parts",
            "Published parts that overlap: results on them are too good.",
            audit.copies_in_two_parts,
            audit.copies_in_two_parts,
            audit.exact_copies.get("contents_in_two_parts", 0),
        ),
        (
            "Near copies in two parts",
            "Other files that look the same. If they show one scene, person or series, keep them together: "
            "preprocess.group_by.",
            near,
            under,
            audit.near_copies_in_two_parts,
        ),
        (
            "One colour all over",
            "Nothing can be learnt from these. White drawings on a transparent ground vanish on a white background.",
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
    """A reader of small pictures; those that cannot be read are left out."""

    def thumbnail(name: str) -> str | None:
        if folder is None or ".." in Path(name).parts or Path(name).is_absolute():  # of a metrics file, which may lie
            return None
        try:
            return pictures.data_uri(decode(Reader(folder).read(name), THUMBNAIL))
        except (UnusablePictureError, UserError, OSError, KeyError):
            return None

    return thumbnail
