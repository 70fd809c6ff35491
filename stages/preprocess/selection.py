"""Decide which pictures are used, and in which part: from their content, before any is decoded."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stages.common import paths
from stages.common.errors import UserError
from stages.common.text import listed, shown
from stages.dataset.folder import Listing, Part, Picture
from stages.preprocess import survey
from stages.preprocess.options import PATH, Preprocess
from stages.preprocess.split import drawn
from stages.preprocess.survey import Surveyed

PARTS: tuple[Part, ...] = ("train", "validation", "test")
REMEDY = {
    "train": "set smaller fractions",
    "validation": "set a larger preprocess.validation_fraction",
    "test": "set a larger preprocess.test_fraction",
}  # for a part without pictures
SHOWN = 10  # entries of a list in a message


@dataclass
class Selection:
    """The pictures of each part and those left out, as positions in the listing, in its order."""

    classes: tuple[str, ...]  # none for regression
    labels: dict[int, int]  # position in the listing's classes -> position in `classes`
    parts: dict[Part, list[int]] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)  # position -> what is wrong with the header
    conflicting: list[int] = field(default_factory=list)
    of_small_classes: list[int] = field(default_factory=list)


def select(listing: Listing, surveyed: Sequence[Surveyed], options: Preprocess) -> Selection:
    """Choose the pictures. Raises UserError, in one line, if the options do not say what to do.

    surveyed: the result of the first pass, in the listing's order.
    """
    unusable = {position: picture.reason for position, picture in enumerate(surveyed) if picture.facts is None}
    conflicting = conflicts(listing, surveyed, unusable, options.on_conflict)
    left_out = {*unusable, *conflicting}
    parts: dict[Part, list[int]] = {part: [] for part in PARTS}
    published = {picture.part for picture in listing.pictures if picture.part}
    for position, picture in enumerate(listing.pictures):
        if position not in left_out:
            parts[part_of(picture, surveyed[position], published, options)].append(position)
    small = small_classes(listing, parts, options)
    of_small = [position for part in PARTS for position in parts[part] if listing.pictures[position].label in small]
    used = [label for label in range(len(listing.classes)) if label not in small]
    if listing.classes and len(used) < 2:
        raise UserError(f"{paths.PARAMS}: preprocess.small_classes is drop, and that leaves {len(used)} classes")
    for part in PARTS:
        parts[part] = [position for position in parts[part] if listing.pictures[position].label not in small]
        if not parts[part] and (part != "validation" or options.validation_fraction):
            raise UserError(f"no picture is in the {part} part; {REMEDY[part]}, or another preprocess.seed")
    return Selection(
        tuple(listing.classes[label] for label in used),
        {label: place for place, label in enumerate(used)},
        parts,
        unusable,
        conflicting,
        sorted(of_small),
    )


def conflicts(
    listing: Listing, surveyed: Sequence[Surveyed], unusable: Mapping[int, str], on_conflict: str
) -> list[int]:
    """The usable pictures with the same content as a picture with another label. Raises UserError."""
    pictures = listing.pictures
    usable = (group for group in survey.copies(surveyed) if group[0] not in unusable)
    groups = [group for group in usable if several_labels(pictures[position] for position in group)]
    if groups and on_conflict == "error":
        same = (" = ".join(shown(pictures[position].name) for position in group) for group in groups)
        what = "in several classes" if listing.classes else "with several labels"
        raise UserError(
            f"the same picture {what}: {listed(same, SHOWN, '; ')}; remove the wrong ones, or set "
            f"preprocess.on_conflict: drop, which leaves all of them out"
        )
    return sorted(position for group in groups for position in group)


def several_labels(pictures: Iterable[Picture]) -> bool:
    """Whether the pictures differ in class or value."""
    return len({(picture.label, picture.value) for picture in pictures}) > 1


def part_of(picture: Picture, surveyed: Surveyed, published: set[Part], options: Preprocess) -> Part:
    """The part of a picture: as published, or drawn.

    published: the published parts. If validation or test is not among them, it is drawn from train.
    Raises UserError if the picture has no group, and preprocess.group_by needs one.
    """
    if picture.part and picture.part != "train":
        return picture.part
    test, validation = (
        0.0 if picture.part and part in published else fraction
        for part, fraction in (("test", options.test_fraction), ("validation", options.validation_fraction))
    )
    return drawn(key(picture, surveyed.digest, options.group_by), options.seed, test, validation)


def key(picture: Picture, digest: bytes, group_by: str) -> bytes:
    """What determines the part of a picture: its content or its group. Raises UserError."""
    if group_by == "none":
        return digest
    if group_by == "column":
        if picture.group is None:
            raise UserError(f"{shown(picture.name)}: has no group in labels.csv; preprocess.group_by: column needs one")
        return b"group " + picture.group.encode()
    match = re.search(group_by.removeprefix(PATH), picture.name)
    if not match or (group := match[1] if match.re.groups else match[0]) is None:
        raise UserError(f"{shown(picture.name)}: no match for preprocess.group_by in this path: {group_by}")
    return b"group " + group.encode()


def small_classes(listing: Listing, parts: Mapping[Part, Sequence[int]], options: Preprocess) -> set[int]:
    """The labels of the classes that lack pictures in a part that is not empty. Raises UserError."""
    pictures = listing.pictures
    counts = {part: Counter(pictures[position].label for position in parts[part]) for part in PARTS if parts[part]}
    lacking = {
        label: [part for part in counts if not counts[part][label]]
        for label in range(len(listing.classes))
        if not all(count[label] for count in counts.values())
    }
    if lacking and options.small_classes == "error":
        rows = [
            f"{shown(listing.classes[label])} ({sum(count[label] for count in counts.values())} pictures, none in "
            f"{' and '.join(missing)})"
            for label, missing in lacking.items()
        ]
        raise UserError(
            f"classes that are not in every part: {listed(rows, SHOWN)}; add pictures, set larger fractions "
            "or another preprocess.seed, or preprocess.small_classes: drop"
        )
    return set(lacking)
