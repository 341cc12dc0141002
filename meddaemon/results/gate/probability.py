"""What a Segmentation of probabilities is asked (PS3.3 A.51, type FRACTIONAL)."""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, SegmentationStorage

from meddaemon.domain.result import EncodedObject
from meddaemon.results.gate import segmentation
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.frames import frame_table
from meddaemon.results.probability import CERTAIN, kept_of

_ROUNDED = 0.5 / CERTAIN + 1e-6
"""How far a value may be from the probability that it stands for."""


def _form(_: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    wanted = {
        "SOPClassUID": SegmentationStorage,
        "Modality": "SEG",
        "SegmentationType": "FRACTIONAL",
        "SegmentationFractionalType": "PROBABILITY",
        "MaximumFractionalValue": CERTAIN,
        "SegmentsOverlap": "UNDEFINED",
        "PixelPaddingValue": None,
        "DimensionOrganizationType": None,
    }
    yield from segmentation.differences(dataset, wanted)
    yield from segmentation.pixel_description(dataset, 8)
    yield from segmentation.transfer_syntax(encoded, RLELossless)


def _values(exam: Exam, encoded: EncodedObject, _: Dataset) -> Iterator[str]:
    """Hold every frame against the probabilities that were kept, and what has no frame too."""
    kept = kept_of(exam.request.analysis)
    frames, planes = frame_table(exam, encoded.name), exam.request.analysis.planes
    missing = {(number, plane) for number in range(1, len(kept) + 1) for plane in planes.values()}
    described = zip(frames.sources, frames.segments.tolist(), segmentation.decoded(encoded), strict=True)
    for index, (key, segment, image) in enumerate(described, 1):
        if not 1 <= segment <= len(kept):
            yield f"frame {index} shows segment {segment} of {len(kept)}"
        elif key in planes:
            missing.discard((segment, planes[key]))
            values = np.clip(kept[segment - 1][1][planes[key]].astype(np.float32), 0, 1)
            if not np.abs(image.astype(np.float32) / CERTAIN - values).max() <= _ROUNDED:
                yield f"frame {index} does not show the probability of segment {segment} on plane {planes[key]}"
    for segment, plane in sorted(missing):
        if not kept[segment - 1][1][plane].max() <= _ROUNDED:
            yield f"segment {segment} is probable on plane {plane}, which has no frame"


def _segments(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    wanted = [segment for segment, _ in kept_of(exam.request.analysis)]
    yield from segmentation.segment_descriptions(wanted, dataset.get("SegmentSequence", ()), exam.request.contract)


CHECKS: tuple[Check, ...] = (
    _form,
    segmentation.grid,
    segmentation.places,
    _values,
    segmentation.dimensions,
    _segments,
    segmentation.referenced_series,
)
"""What a Segmentation of probabilities is asked."""
