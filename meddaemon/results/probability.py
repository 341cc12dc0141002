"""The probabilities that were kept of segments, as one Segmentation of type FRACTIONAL (PS3.3 C.8.20.2)."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import Analysis, ArtefactKind, EncodedObject, LeftOut, Segment
from meddaemon.results.envelope import finish
from meddaemon.results.frames import Frame, run_lengths, with_frames
from meddaemon.results.request import EncodingRequest
from meddaemon.results.seg import describe, one_of_several, planes, segmentation

CERTAIN = 255
"""What stands for a probability of 1 (Maximum Fractional Value)."""

Values: TypeAlias = NDArray[np.float16] | NDArray[np.float32]
Planes: TypeAlias = Values | Sequence[Values]
"""Of one segment: [plane, row, column] of a volume, or [row, column] of each picture."""


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject | LeftOut]:
    """Yield one object of all probabilities that were kept of segments, if any were.

    Segments are described as in the Segmentation of the labels, tracking included, and numbered from 1 in its order.
    Frames without any probability are left out. In RLE Lossless: most of it is 0 or 1.
    """
    kept = kept_of(request.analysis)
    if not kept:
        yield LeftOut(what=ObjectKind.PROBABILITY, why="of no segment the probability of every voxel was kept")
        return
    described = [describe(replace(segment, number=number), request) for number, (segment, _) in enumerate(kept, 1)]
    digest = _digest([values for _, values in kept])
    header = segmentation(request, described[:1], ObjectKind.PROBABILITY, digest=digest)
    header.SegmentSequence = described
    header.SegmentsOverlap = "UNDEFINED"
    one_of_several(header)
    drawn_on = request.analysis.planes
    placed = [(plane, drawn_on[plane.source]) for plane in planes(request, header)]
    probable = [[bool(fraction(values[index]).any()) for _, index in placed] for _, values in kept]
    if not any(map(any, probable)):
        probable = [[True] * len(placed)] * len(kept)  # an object has frames
    # Places are counted over the planes that have a frame at all.
    places = np.cumsum(np.any(probable, axis=0)).tolist()
    shown = [
        (Frame(segment=number, plane=plane, place=place), values[index])
        for number, ((_, values), there) in enumerate(zip(kept, probable, strict=True), 1)
        for (plane, index), place, is_there in zip(placed, places, there, strict=True)
        if is_there
    ]

    def encoded(header: Dataset) -> bytes:
        pixel_data = run_lengths((fraction(values) for _, values in shown), header)
        return with_frames(header, [frame for frame, _ in shown], pixel_data)

    yield finish(header, request, ObjectKind.PROBABILITY, encoded)


def kept_of(analysis: Analysis) -> list[tuple[Segment, Planes]]:
    """Return the segments of which the probability of every voxel was kept, in their order."""
    if not analysis.is_drawn:
        return []
    shape = analysis.drawing.shape
    kept = [each for each in analysis.artefacts if each.kind is ArtefactKind.PROBABILITY]
    if analysis.geometry is not None:
        volumes: dict[str, Planes] = {
            each.of: each.values for each in kept if each.source is None and each.values.shape == shape
        }
        return [(segment, volumes[segment.label]) for segment in analysis.segments if segment.label in volumes]
    pictures = {(each.of, each.source): each.values for each in kept if each.values.shape == shape[1:]}
    found = [
        (segment, [pictures[key] for image in analysis.images if (key := (segment.label, image)) in pictures])
        for segment in analysis.segments
    ]
    return [(segment, values) for segment, values in found if len(values) == shape[0]]


def fraction(values: Values) -> NDArray[np.uint8]:
    """Return probabilities from 0 to 1 as whole numbers from 0 to `CERTAIN`; what strays beyond is its end."""
    scaled = np.rint(np.clip(values.astype(np.float32), 0, 1) * CERTAIN)
    return scaled.astype(np.uint8)


def _digest(kept: Sequence[Planes]) -> str:
    digest = hashlib.sha256()
    for values in kept:
        for plane in values:
            digest.update(fraction(plane).tobytes())
    return digest.hexdigest()
