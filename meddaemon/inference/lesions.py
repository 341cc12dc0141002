"""Segments of things apart: each connected part becomes a segment of its own, the largest first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.contract import LesionContract, SegmentContract
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Drawing, Labels
from meddaemon.inference.measure import Mask, Place, components, places_of, segment_places, segment_within

MM3_PER_ML = 1000.0
MAX_MASK_BYTES = 2**34
"""So much do the masks of lesions take at most that overlap those of other segments."""

_TOUCHING: Mapping[int, int] = {6: 1, 18: 2, 26: 3}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A segment as it is drawn: all of one of the contract (`ordinal` 0), or one of its lesions, counted from 1.

    `of` is the number of the contract's segment, from 1.
    """

    expected: SegmentContract
    of: int
    count: int
    volume_ml: float = 0.0
    ordinal: int = 0

    @property
    def name(self) -> str:
        """What it is called: `Lesion 2`."""
        return f"{self.expected.name} {self.ordinal}" if self.ordinal else self.expected.name

    @property
    def place(self) -> str:
        """What tells it from the others of the run, whatever is drawn beside it: `2.1`."""
        return f"{self.of}.{self.ordinal}" if self.ordinal else str(self.of)


@dataclass(frozen=True, kw_only=True)
class Lesions:
    """What was found of one segment: how many, how much all of them are, and those that are kept, the largest first.

    `parts` are numbered within `place`, and `order` names the kept ones with their voxels and mL.
    """

    found: int
    count: int
    volume_ml: float
    place: Place
    parts: NDArray[np.int32]
    order: NDArray[np.int64]
    counts: NDArray[np.int64]
    volumes_ml: NDArray[np.float64]


_NOWHERE = (slice(0, 0),) * 3
_NOTHING = Lesions(
    found=0,
    count=0,
    volume_ml=0.0,
    place=_NOWHERE,
    parts=np.zeros((0, 0, 0), np.int32),
    order=np.zeros(0, np.int64),
    counts=np.zeros(0, np.int64),
    volumes_ml=np.zeros(0),
)


def find(mask: Mask, place: Place, voxel_volumes_mm3: NDArray[np.float64], wanted: LesionContract) -> Lesions:
    """Return the lesions in a part of the grid, `place`, that holds them all.

    Of equal volume, the one that begins first is the first. `voxel_volumes_mm3` are those of every plane of the grid.
    """
    parts, found = components(mask, touching=_TOUCHING[wanted.connectivity])
    counts, volumes = np.zeros(found + 1, np.int64), np.zeros(found + 1)
    for plane, volume in zip(parts, voxel_volumes_mm3[place[0]], strict=True):
        in_plane = np.bincount(plane.ravel(), minlength=found + 1)
        counts += in_plane
        volumes += in_plane * (volume / MM3_PER_ML)
    # So little less is not less: a limit of a whole number of voxels takes just as many of them.
    large = np.flatnonzero(volumes[1:] >= wanted.minimum_ml * (1 - 1e-9)) + 1
    order = large[np.argsort(-volumes[large], kind="stable")]
    kept = order[: wanted.most]
    return Lesions(
        found=len(order),
        count=int(counts[order].sum()),
        volume_ml=float(volumes[order].sum()),
        place=place,
        parts=parts,
        order=kept,
        counts=counts[kept],
        volumes_ml=volumes[kept],
    )


def split(
    drawing: Drawing, segments: Sequence[SegmentContract], voxel_volumes_mm3: NDArray[np.float64]
) -> tuple[Drawing, dict[int, Lesions]]:
    """Return the drawing with each lesion as a segment of its own, and the lesions by the number of their segment.

    Segments are numbered as `drawn` lists them. Raises `ModelFailed` when the masks of them all would be too much.
    """
    found: dict[int, Lesions] = {}
    for number, place in enumerate(segment_places(drawing, len(segments)), 1):
        wanted = segments[number - 1].lesions
        if wanted is not None and place is not None:
            found[number] = find(segment_within(drawing, number, place), place, voxel_volumes_mm3, wanted)
        elif wanted is not None:
            found[number] = _NOTHING
    if drawing.labels is None and drawing.overlapping:
        return Drawing(masks=_apart(drawing, len(segments), found)), found
    return Drawing(labels=_renumbered(drawing, len(segments), found)), found


def drawn(
    segments: Sequence[SegmentContract], sizes: Sequence[tuple[int, float]], found: Mapping[int, Lesions]
) -> list[Part]:
    """Return the segments as they are drawn, in the order of their numbers; an empty one is there, too.

    `sizes` are voxels and mL of each segment of the contract.
    """
    parts = []
    for number, (expected, (count, volume_ml)) in enumerate(zip(segments, sizes, strict=True), 1):
        whole = Part(expected=expected, of=number, count=count, volume_ml=volume_ml)
        if number not in found:
            parts.append(whole)
            continue
        lesions = found[number]
        parts += [
            replace(whole, ordinal=ordinal, count=int(voxels), volume_ml=float(volume))
            for ordinal, (voxels, volume) in enumerate(zip(lesions.counts, lesions.volumes_ml, strict=True), 1)
        ] or [replace(whole, count=0, volume_ml=0.0)]
    return parts


def _numbers(segments: int, found: Mapping[int, Lesions]) -> Iterator[range]:
    """Yield which numbers each segment of the contract is drawn with."""
    first = 1
    for number in range(1, segments + 1):
        numbers = range(first, first + (max(1, len(found[number].order)) if number in found else 1))
        yield numbers
        first = numbers.stop


def _renumbered(drawing: Drawing, segments: int, found: Mapping[int, Lesions]) -> Labels:
    """Return labels of everything that is drawn, which does not overlap."""
    numbers = list(_numbers(segments, found))
    dtype = np.dtype(np.uint8 if numbers[-1][-1] <= np.iinfo(np.uint8).max else np.uint16)
    if drawing.labels is not None:
        table = np.zeros(int(np.iinfo(drawing.labels.dtype).max) + 1, dtype)
        for number, own in enumerate(numbers, 1):
            if number < len(table) and number not in found:
                table[number] = own[0]
        labels: Labels = table[drawing.labels]
    else:
        labels = np.zeros(drawing.shape, dtype)
        for number, own in enumerate(numbers, 1):
            if number not in found:
                for plane in range(len(labels)):
                    labels[plane][drawing.mask(number, plane)] = own[0]
    for number, lesions in found.items():
        table = np.zeros(int(lesions.parts.max(initial=0)) + 1, dtype)
        table[lesions.order] = numbers[number - 1][: len(lesions.order)]
        for plane, parts in zip(labels[lesions.place], lesions.parts, strict=True):
            numbered = table[parts]
            np.copyto(plane, numbered, where=numbered > 0)
    return labels


def _apart(drawing: Drawing, segments: int, found: Mapping[int, Lesions]) -> NDArray[np.bool_]:
    """Return a mask of everything that is drawn. Memory is taken only where something is: the rest is never written."""
    numbers = list(_numbers(segments, found))
    shape = (numbers[-1][-1], *drawing.shape)
    if (size := int(np.prod(shape, dtype=np.int64))) > MAX_MASK_BYTES:
        raise ModelFailed(f"{shape[0]} segments that overlap would take {size} bytes: let fewer lesions be kept")
    masks = np.zeros(shape, np.bool_)
    for number, own in enumerate(numbers, 1):
        if number not in found:
            for plane in range(shape[1]):
                masks[own[0] - 1, plane] = drawing.mask(number, plane)
            continue
        lesions = found[number]
        boxes = places_of(lesions.parts, int(lesions.parts.max(initial=0)))
        for drawn_as, part in zip(own, lesions.order, strict=False):
            box = boxes[part - 1]
            if box is not None:
                masks[drawn_as - 1][lesions.place][box] = lesions.parts[box] == part
    return masks
