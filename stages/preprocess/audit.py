"""The audit of a folder of pictures, key `audit` of metrics/data.json: what is in it, and what may be wrong with it.

Copies are found by SHA-256. Near copies are found by a perceptual hash (pHash: which of 63 low frequencies of the
discrete cosine transform are above their median; Zauner 2010) and confirmed by their pixels.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.dataset.folder import Listing, Part
from stages.dataset.packed import Images, Split
from stages.preprocess import survey
from stages.preprocess.selection import Selection, several_labels
from stages.preprocess.survey import Surveyed

LISTED = 1000  # at most so many names of files that were left out, per reason; all are counted
EXAMPLES = 50  # the same for files that were not left out
FREQUENCIES = 8  # in each direction: 64, of which the first, the mean brightness, is not used
SCALE = 128  # of the cosines, which are rounded to whole numbers
# Two hashes are compared if they have a band of 16 bits in common. That finds all pairs that differ in up to 3 bits,
# and most of those that differ in up to NEAR_BITS.
BANDS = 4
NEAR_BITS = 10
NEAR_CORRELATION = 0.95  # of the pixels: two pictures with near hashes are near copies from here on
CROWD = 2000  # if more pictures have a band in common, only equal hashes are compared

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Fingerprints:
    """What the audit needs to know of n packed pictures."""

    hashes: Hashes  # (n,)
    constant: npt.NDArray[np.bool]  # (n,): whether all pixels of a picture are equal

    @staticmethod
    def joined(parts: Sequence["Fingerprints"]) -> "Fingerprints":
        """Those of all parts, one after the other."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *(part.hashes for part in parts)])
        return Fingerprints(hashes, np.concatenate([np.zeros(0, np.bool), *(part.constant for part in parts)]))


def audit(
    listing: Listing,
    surveyed: Sequence[Surveyed],
    selected: Selection,
    unusable: Mapping[str, str],
    splits: Mapping[Part, Split],
    seen: Mapping[Part, Fingerprints],
) -> dict[str, Any]:
    """The whole audit. The same pictures give the same audit on every machine.

    unusable: name of a picture -> why, from both passes. splits: the packed pictures of `selected`; seen: what the
    second pass saw in them.
    """
    names = [picture.name for picture in listing.pictures]
    parts = {
        part: [position for position in selected.parts[part] if names[position] not in unusable] for part in splits
    }
    part_of = {position: part for part, positions in parts.items() for position in positions}
    contents = list(survey.copies(surveyed))
    conflicts = [group for group in contents if several_labels(listing.pictures[position] for position in group)]
    packed_copies = ([position for position in group if position in part_of] for group in contents)
    copies = [group for group in packed_copies if len(group) > 1]
    leaks = [group for group in copies if len({part_of[position] for position in group}) > 1]
    small = Counter(listing.pictures[position].label for position in selected.of_small_classes)
    near = list(_near_copies(splits, seen))
    flat = [parts[part][row] for part in splits for row in np.flatnonzero(seen[part].constant).tolist()]
    return {
        "layout": listing.layout,
        "files": len(listing.pictures),
        "files_in_no_class": len(listing.others),
        "left_out": {
            "unusable": len(unusable),
            "conflicts": len(selected.conflicting),
            "small_classes": len(selected.of_small_classes),
        },
        "exact_copies": {
            "pictures": sum(map(len, copies)),
            "contents": len(copies),
            "contents_in_two_parts": len(leaks),
        },
        "contents_under_two_classes": len(conflicts),
        "near_copies_in_two_parts": len(near),
        "constant_pictures": len(flat),
        "formats": _counted([picture.facts.format for picture in surveyed if picture.facts]),
        "modes": _counted([picture.facts.mode for picture in surveyed if picture.facts]),
        "turned_by_exif": sum(picture.facts.orientation > 1 for picture in surveyed if picture.facts),
        **_sizes(surveyed),
        # Lists, which DVC's tables leave out: `dvc metrics diff` stays a page long.
        "unusable": [{"file": name, "reason": unusable[name]} for name in sorted(unusable)[:LISTED]],
        "conflicts": [[names[position] for position in group] for group in conflicts[:LISTED]],
        "small_classes": [{"class": listing.classes[label], "pictures": small[label]} for label in sorted(small)],
        "copies_in_two_parts": [[names[position] for position in group] for group in leaks[:EXAMPLES]],
        "near_copies": [
            {"file": names[parts[part][row]], "part": part, "like": names[parts[other][like]], "other_part": other}
            for part, row, other, like in near[:EXAMPLES]
        ],
        "constant": [names[position] for position in sorted(flat)[:EXAMPLES]],
        "in_no_class": listing.others[:EXAMPLES],
    }


def _counted(values: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _sizes(surveyed: Sequence[Surveyed]) -> dict[str, list[float]]:
    """Minimum, quartiles and maximum of widths, heights (pixels) and aspect ratios (width / height)."""
    facts = [picture.facts for picture in surveyed if picture.facts]
    sides = np.array([(header.width, header.height) for header in facts]).reshape(-1, 2)
    if not len(sides):
        return {}
    columns = {"width": sides[:, 0], "height": sides[:, 1], "aspect_ratio": sides[:, 0] / sides[:, 1]}
    return {
        name: np.percentile(values, [0, 25, 50, 75, 100], method="nearest").tolist() for name, values in columns.items()
    }


def fingerprints(images: Images) -> Fingerprints:
    """The fingerprints of uint8 (n, C, H, W). Fast if the images fit in the processor's cache as float64."""
    return Fingerprints(perceptual_hash(images), (images == images[:, :, :1, :1]).all(axis=(1, 2, 3)))


def perceptual_hash(images: Images) -> Hashes:
    """A hash of 64 bits for each picture of uint8 (N, C, H, W). Hashes of similar pictures differ in few bits.

    All numbers are whole and below 2^53, which float64 represents exactly, so the order of summation changes no bit.
    """
    grey = images.sum(axis=1, dtype=np.uint16).astype(np.float64)  # (N, H, W)
    down, across = _cosines(grey.shape[1]), _cosines(grey.shape[2])
    spectrum = (down @ grey @ across.T).reshape(len(images), -1)[:, 1:]  # (N, 63)
    bits = spectrum > np.median(spectrum, axis=1, keepdims=True)
    places = np.arange(bits.shape[1], dtype=np.uint64)
    hashes: Hashes = (bits.astype(np.uint64) << places).sum(axis=1, dtype=np.uint64)
    return hashes


@cache
def _cosines(side: int) -> npt.NDArray[np.float64]:
    """The first rows of the DCT-II of `side` values, rounded to whole numbers: (FREQUENCIES, side)."""
    angles = np.pi / (2 * side) * np.outer(np.arange(FREQUENCIES), 2 * np.arange(side) + 1)
    cosines: npt.NDArray[np.float64] = np.rint(SCALE * np.cos(angles))
    return cosines


Pair = tuple[Part, int, Part, int]  # part and row of a picture, and of the earlier picture that it resembles


def _near_copies(splits: Mapping[Part, Split], seen: Mapping[Part, Fingerprints]) -> Iterator[Pair]:
    """Pairs of similar pictures in two parts: each picture of validation and test with the first that it resembles."""
    names = list(splits)
    part = np.concatenate([np.full(len(splits[name]), number) for number, name in enumerate(names)])
    row = np.concatenate([np.arange(len(splits[name])) for name in names])
    everything = Fingerprints.joined([seen[name] for name in names])
    varied = np.flatnonzero(~everything.constant)
    like: dict[int, int] = {}
    for one, other in _near_pairs(everything.hashes[varied], part[varied]):
        early, late = sorted((int(varied[one]), int(varied[other])))
        if like.get(late, late) > early and _is_similar(splits, names, part, row, early, late):
            like[late] = early
    for late, early in sorted(like.items()):
        yield names[part[late]], int(row[late]), names[part[early]], int(row[early])


def _near_pairs(hashes: Hashes, part: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in different parts whose hashes share a band and differ in at most NEAR_BITS, some twice."""
    for band in range(BANDS):
        keys = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        edges = [0, *(np.flatnonzero(np.diff(keys[order])) + 1).tolist(), len(order)]
        for start, end in pairwise(edges):
            members = order[start:end]
            if len(members) > CROWD:  # for instance, plain drawings on white
                members = _duplicates(hashes, members)
            if len(members) < 2 or (part[members] == part[members[0]]).all():
                continue
            for place, one in enumerate(members[:-1]):
                others = members[place + 1 :]
                bits = np.bitwise_count(hashes[others] ^ hashes[one])
                for other in others[(bits <= NEAR_BITS) & (part[others] != part[one])]:
                    yield int(one), int(other)


def _duplicates(hashes: Hashes, members: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The members whose hash another member has, too; at most CROWD of them."""
    _, inverse, counts = np.unique(hashes[members], return_inverse=True, return_counts=True)
    return members[counts[inverse] > 1][:CROWD]


def _is_similar(
    splits: Mapping[Part, Split],
    names: Sequence[Part],
    part: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    one: int,
    other: int,
) -> bool:
    """Whether the pixels of two pictures correlate; neither is constant. Computed in whole numbers."""
    images = (splits[names[part[place]]].gather([row[place]]) for place in (one, other))
    first, second = (image.astype(np.int64).ravel() for image in images)
    sums, squares = [int(first.sum()), int(second.sum())], [int(first @ first), int(second @ second)]
    count, product = len(first), int(first @ second)
    covariance = count * product - sums[0] * sums[1]
    variances = (count * square - total**2 for square, total in zip(squares, sums, strict=True))
    return covariance > 0 and covariance**2 >= NEAR_CORRELATION**2 * math.prod(variances)
