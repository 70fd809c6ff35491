"""What is in a folder of pictures, and what may be wrong with it: the key `audit` of metrics/data.json.

Copies are found by SHA-256. Near copies are found by a perceptual hash (pHash: the signs of 63 low frequencies of the
discrete cosine transform, relative to their median; Zauner 2010) and confirmed by their pixels.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.dataset.folder import Listing, Part
from stages.dataset.packed import Images, Split
from stages.preprocess.selection import Selection, several_labels
from stages.preprocess.survey import Surveyed

LISTED = 1000  # files that were left out, of each kind; all are counted
EXAMPLES = 50  # of what was not
BLOCK_BYTES = 2**19  # of pictures at a time: few enough to stay in the processor's cache as float64
FREQUENCIES = 8  # a side: 64 bits, of which the first is of the mean brightness and always 0
SCALE = 128  # of the cosines, as whole numbers
BANDS = (
    4  # of 16 bits. Hashes are compared that have one in common: all that differ in 3 bits or fewer, most of those …
)
NEAR_BITS = 10  # … that differ in so many
NEAR_CORRELATION = 0.95  # of the pixels of two pictures with near hashes, from which they are near copies
CROWD = 2000  # pictures with the same band, above which only equal hashes are compared

Hashes = npt.NDArray[np.uint64]


def audit(
    listing: Listing,
    found: Sequence[Surveyed],
    selected: Selection,
    unusable: Mapping[str, str],
    splits: Mapping[Part, Split],
) -> dict[str, Any]:
    """All of the audit. The same pictures give the same audit, on whatever machine.

    unusable: why not, by the name of the picture, from both passes. splits: what was packed of `selected`.
    """
    name = [picture.name for picture in listing.pictures]
    parts = {part: [each for each in selected.parts[part] if name[each] not in unusable] for part in splits}
    part_of = {position: part for part, positions in parts.items() for position in positions}
    contents = list(_copies(found))
    conflicts = [group for group in contents if several_labels(listing.pictures[position] for position in group)]
    copies = [kept for group in contents if len(kept := [each for each in group if each in part_of]) > 1]
    leaks = [group for group in copies if len({part_of[position] for position in group}) > 1]
    small = Counter(listing.pictures[position].label for position in selected.of_small_classes)
    hashes, constant = _hashed(splits)
    near = list(_near_copies(splits, hashes, constant))
    flat = [parts[part][row] for part in splits for row in np.flatnonzero(constant[part]).tolist()]
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
        "formats": _counted([each.facts.format for each in found if each.facts]),
        "modes": _counted([each.facts.mode for each in found if each.facts]),
        "turned_by_exif": sum(each.facts.orientation > 1 for each in found if each.facts),
        **_sizes(found),
        # Lists, which DVC's tables leave out: `dvc metrics diff` stays a page long.
        "unusable": [{"file": each, "reason": unusable[each]} for each in sorted(unusable)[:LISTED]],
        "conflicts": [[name[position] for position in group] for group in conflicts[:LISTED]],
        "small_classes": [{"class": listing.classes[label], "pictures": small[label]} for label in sorted(small)],
        "copies_in_two_parts": [[name[position] for position in group] for group in leaks[:EXAMPLES]],
        "near_copies": [
            {"file": name[parts[part][row]], "part": part, "like": name[parts[other][like]], "other_part": other}
            for part, row, other, like in near[:EXAMPLES]
        ],
        "constant": [name[position] for position in sorted(flat)[:EXAMPLES]],
        "in_no_class": listing.others[:EXAMPLES],
    }


def _copies(found: Sequence[Surveyed]) -> Iterator[list[int]]:
    """The positions of files with the same content, for each content that is there twice or more."""
    first: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    for position, each in enumerate(found):
        if each.digest and (other := first.setdefault(each.digest, position)) != position:
            groups.setdefault(other, [other]).append(position)
    yield from (groups[position] for position in sorted(groups))


def _counted(values: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _sizes(found: Sequence[Surveyed]) -> dict[str, list[float]]:
    """Least, quartiles and largest of widths, heights (pixels) and aspect ratios (width / height)."""
    sides = np.array([(each.facts.width, each.facts.height) for each in found if each.facts]).reshape(-1, 2)
    if not len(sides):
        return {}
    columns = {"width": sides[:, 0], "height": sides[:, 1], "aspect_ratio": sides[:, 0] / sides[:, 1]}
    return {
        name: np.percentile(values, [0, 25, 50, 75, 100], method="nearest").tolist() for name, values in columns.items()
    }


def _hashed(splits: Mapping[Part, Split]) -> tuple[dict[Part, Hashes], dict[Part, npt.NDArray[np.bool]]]:
    """The perceptual hash of each picture, and whether all its pixels are the same."""
    hashes, constant = {}, {}
    for part, split in splits.items():
        hashes[part], constant[part] = np.zeros(len(split), np.uint64), np.zeros(len(split), np.bool)
        block = max(1, BLOCK_BYTES // math.prod(split.image_shape))
        for start in range(0, len(split), block):
            rows = slice(start, min(start + block, len(split)))
            images = split[rows]
            hashes[part][rows] = perceptual_hash(images)
            constant[part][rows] = (images == images[:, :, :1, :1]).all(axis=(1, 2, 3))
    return hashes, constant


def perceptual_hash(images: Images) -> Hashes:
    """64 bits for each picture of uint8 (N, C, H, W); two that look the same differ in few of them.

    Computed in whole numbers below 2^53, which float64 holds exactly: no order of summation can change a bit.
    """
    grey = images.sum(axis=1, dtype=np.uint16).astype(np.float64)  # (N, H, W)
    down, across = _cosines(grey.shape[1]), _cosines(grey.shape[2])
    spectrum = (down @ grey @ across.T).reshape(len(images), -1)[:, 1:]  # (N, 63)
    bits = spectrum > np.median(spectrum, axis=1, keepdims=True)
    places = np.arange(bits.shape[1], dtype=np.uint64)
    hashes: Hashes = (bits.astype(np.uint64) << places).sum(axis=1, dtype=np.uint64)
    return hashes


def _cosines(side: int) -> npt.NDArray[np.float64]:
    """The first rows of the DCT-II of `side` values, as whole numbers: (FREQUENCIES, side)."""
    angles = np.pi / (2 * side) * np.outer(np.arange(FREQUENCIES), 2 * np.arange(side) + 1)
    cosines: npt.NDArray[np.float64] = np.rint(SCALE * np.cos(angles))
    return cosines


Pair = tuple[Part, int, Part, int]  # a part and a position in it, and the same of the picture that is like it


def _near_copies(
    splits: Mapping[Part, Split], hashes: Mapping[Part, Hashes], constant: Mapping[Part, npt.NDArray[np.bool]]
) -> Iterator[Pair]:
    """Pairs of pictures in two parts that look the same: each picture of validation and test with the first like it."""
    names = list(splits)
    part = np.concatenate([np.full(len(splits[name]), number) for number, name in enumerate(names)])
    row = np.concatenate([np.arange(len(splits[name])) for name in names])
    every = np.concatenate([hashes[name] for name in names])
    varied = np.flatnonzero(~np.concatenate([constant[name] for name in names]))
    like: dict[int, int] = {}
    for one, other in _near_pairs(every[varied], part[varied]):
        early, late = sorted((int(varied[one]), int(varied[other])))
        if like.get(late, late) > early and _looks_the_same(splits, names, part, row, early, late):
            like[late] = early
    for late, early in sorted(like.items()):
        yield names[part[late]], int(row[late]), names[part[early]], int(row[early])


def _near_pairs(hashes: Hashes, part: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in different parts whose hashes share a band and differ in NEAR_BITS at most; some twice."""
    for band in range(BANDS):
        keys = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(keys, kind="stable")
        edges = [0, *(np.flatnonzero(np.diff(keys[order])) + 1).tolist(), len(order)]
        for start, end in pairwise(edges):
            members = order[start:end]
            if len(members) > CROWD:  # of plain drawings on white, say
                members = _equal_first(hashes, members)
            if len(members) < 2 or (part[members] == part[members[0]]).all():
                continue
            for place, one in enumerate(members[:-1]):
                others = members[place + 1 :]
                bits = np.bitwise_count(hashes[others] ^ hashes[one])
                for other in others[(bits <= NEAR_BITS) & (part[others] != part[one])]:
                    yield int(one), int(other)


def _equal_first(hashes: Hashes, members: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of a crowd, those whose hash is there twice, CROWD of them at most."""
    _, inverse, counts = np.unique(hashes[members], return_inverse=True, return_counts=True)
    return members[counts[inverse] > 1][:CROWD]


def _looks_the_same(
    splits: Mapping[Part, Split],
    names: Sequence[Part],
    part: npt.NDArray[np.int64],
    row: npt.NDArray[np.int64],
    one: int,
    other: int,
) -> bool:
    """Whether the pixels of two pictures, neither of them constant, correlate; in whole numbers."""
    first, second = (splits[names[part[each]]].gather([row[each]]).astype(np.int64).ravel() for each in (one, other))
    sums, squares = [int(each.sum()) for each in (first, second)], [int(each @ each) for each in (first, second)]
    count, product = len(first), int(first @ second)
    covariance = count * product - sums[0] * sums[1]
    variances = (count * square - total**2 for square, total in zip(squares, sums, strict=True))
    return covariance > 0 and covariance**2 >= NEAR_CORRELATION**2 * math.prod(variances)
