"""What a Segmentation is asked: grid, frames, dimensions, segments (PS3.3 A.51, C.8.20)."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from meddaemon.domain.result import EncodedObject
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.tree import is_code

_TOLERANCE_MM = 1e-3
# The affine of a volume is fitted to all its planes, which may stray from it a little (`inference` allows 0.06 mm).
_GRID_TOLERANCE_MM = 0.1


def _transfer_syntax(_: Exam, encoded: EncodedObject, __: Dataset) -> Iterator[str]:
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"


def _grid(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    geometry = exam.request.analysis.drawn[1]
    for name, uid in (("source", source.frame_of_reference_uid), ("volume", geometry.frame_of_reference_uid)):
        if str(dataset.get("FrameOfReferenceUID")) != uid:
            yield f"FrameOfReferenceUID {dataset.get('FrameOfReferenceUID')} is not the {name}'s {uid}"
    if (dataset.Rows, dataset.Columns) != geometry.shape[1:]:
        yield f"grid {dataset.Rows} x {dataset.Columns} is not the volume's {geometry.shape[1]} x {geometry.shape[2]}"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_spacing, column_spacing = (float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing)
    in_plane = np.column_stack([directions[3:] * row_spacing, directions[:3] * column_spacing])
    # Over the whole grid, so that an error too small to see in one voxel is seen at the far corner.
    drift = np.abs((in_plane - geometry.affine_lps[:3, 1:3]) * geometry.shape[1:]).max()
    if not drift < _GRID_TOLERANCE_MM:
        yield f"orientation and spacing drift {drift:.3g} mm from the volume over its width"


def _frames(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold every frame against the image it names: position, and voxel by voxel the labels of its plane."""
    analysis, source = exam.request.analysis, exam.request.source
    items = dataset.PerFrameFunctionalGroupsSequence
    bits = int(dataset.NumberOfFrames) * int(dataset.Rows) * int(dataset.Columns)
    if len(items) != int(dataset.NumberOfFrames) or len(dataset.PixelData) != (bits + 15) // 16 * 2:
        yield f"{len(items)} frame descriptions or the pixel data do not fit {dataset.NumberOfFrames} frames"
        return
    drawing, geometry = analysis.drawn
    planes = {
        key: plane for plane, key in enumerate(zip(geometry.sop_instance_uids, geometry.frame_numbers, strict=True))
    }
    counts: Counter[int] = Counter()
    for number, (item, mask) in enumerate(zip(items, _masks(dataset), strict=True), 1):
        key = _named_source(item)
        segment = _segment_number(item, dataset)
        if key not in planes:
            yield f"frame {number} names {key}, which is no plane of the volume"
            continue
        position = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        for name, wanted in (
            ("source image", source.positions[key]),
            ("volume", geometry.positions[planes[key]]),
        ):
            distance = float(np.linalg.norm(position - wanted))
            if not distance < (_TOLERANCE_MM if name == "source image" else _GRID_TOLERANCE_MM):
                yield f"frame {number} lies {distance:.4g} mm from the plane of its {name} {key[0]}"
        if not 1 <= segment <= len(analysis.segments):
            yield f"frame {number} shows segment {segment} of {len(analysis.segments)}"
        elif not np.array_equal(mask, drawing.mask(segment, planes[key])):
            yield f"frame {number} does not show what is drawn of segment {segment} on plane {planes[key]}"
        counts[segment] += int(np.count_nonzero(mask))
    drawn = sum((Counter(dict(enumerate(drawing.counts(plane)))) for plane in range(geometry.shape[0])), Counter[int]())
    for segment in (each.number for each in analysis.segments):
        expected = int(drawn[segment])
        if counts[segment] != expected:
            yield f"segment {segment} has {counts[segment]} voxels, the drawing {expected}"


def _dimensions(_: Exam, __: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that dimension index values are unique and one-to-one with segment and position (PS3.3 C.7.6.17)."""
    indices: dict[tuple[int, ...], int] = {}
    positions: dict[int, tuple[float, ...]] = {}
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1):
        values = item.FrameContentSequence[0].DimensionIndexValues
        index = tuple(int(value) for value in (values if not isinstance(values, int) else [values]))
        if index in indices:
            yield f"frames {indices[index]} and {number} share the dimension index {index}"
        indices[index] = number
        if len(index) != len(dataset.DimensionIndexSequence) or index[0] != _segment_number(item, dataset):
            yield f"frame {number} has dimension index {index}, but shows segment {_segment_number(item, dataset)}"
        position = tuple(float(value) for value in item.PlanePositionSequence[0].ImagePositionPatient)
        if positions.setdefault(index[-1], position) != position:
            yield f"frame {number} has position index {index[-1]} of another position"
    ranked = sorted(positions)
    if len(set(positions.values())) != len(positions):
        yield "one position has several position indices"
    if len(ranked) > 2:
        # In order along the normal: successive positions go on in one direction.
        steps = [np.subtract(positions[b], positions[a]) for a, b in pairwise(ranked)]
        if any(float(np.dot(steps[0], step)) <= 0 for step in steps):
            yield "position indices do not follow the positions"


def _segments(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    wanted = exam.request.analysis.segments
    items = dataset.get("SegmentSequence", ())
    if [item.get("SegmentNumber") for item in items] != [segment.number for segment in wanted]:
        yield f"segments {[item.get('SegmentNumber') for item in items]} are not 1 to {len(wanted)}"
        return
    for segment, item in zip(wanted, items, strict=True):
        name = f"segment {segment.number}"
        if not item.get("SegmentLabel"):
            yield f"{name} has no label"
        if item.get("SegmentAlgorithmType") != "AUTOMATIC" or not item.get("SegmentAlgorithmName"):
            yield f"{name} does not say which algorithm made it"
        if "RecommendedDisplayCIELabValue" not in item:
            yield f"{name} has no colour"
        if (item.get("TrackingID"), item.get("TrackingUID")) != (segment.tracking_id, segment.tracking_uid):
            yield f"{name} has other tracking identifiers than the analysis"
        for keyword, code in (
            ("SegmentedPropertyCategoryCodeSequence", segment.category),
            ("SegmentedPropertyTypeCodeSequence", segment.type),
        ):
            if not is_code(item.get(keyword), code):
                yield f"{name}: {keyword} is not {code}"
    overlap = "YES" if exam.request.analysis.drawn[0].overlapping else "NO"
    if dataset.get("SegmentsOverlap") != overlap:
        yield f"SegmentsOverlap is not {overlap}"


def _referenced_series(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    named = Counter(
        (str(series.SeriesInstanceUID), str(instance.ReferencedSOPInstanceUID))
        for series in dataset.get("ReferencedSeriesSequence", ())
        for instance in series.ReferencedInstanceSequence
    )
    wanted = Counter((source.series_instance_uid, uid) for uid in source.sop_instance_uids)
    if named != wanted:
        yield f"Referenced Series Sequence names {named.total()} instances and not each of {wanted.total()} once"


def _masks(dataset: Dataset) -> Iterator[NDArray[np.bool_]]:
    """Yield the frames of BINARY pixel data, [row, column]; frames are packed without gaps (PS3.5 8.1.1)."""
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    size = int(dataset.Rows) * int(dataset.Columns)
    for start in range(0, int(dataset.NumberOfFrames) * size, size):
        first, offset = divmod(start, 8)
        bits = np.unpackbits(packed[first : first + (offset + size + 7) // 8], bitorder="little")
        yield bits[offset : offset + size].reshape(int(dataset.Rows), int(dataset.Columns)).view(np.bool_)


def _named_source(item: Dataset) -> tuple[str, int]:
    for derivation in item.get("DerivationImageSequence", ()):
        for image in derivation.SourceImageSequence:
            return str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))
    return "", 0


def _segment_number(item: Dataset, dataset: Dataset) -> int:
    for groups in (item, dataset.SharedFunctionalGroupsSequence[0]):
        for identification in groups.get("SegmentIdentificationSequence", ()):
            return int(identification.ReferencedSegmentNumber)
    return 0


CHECKS: tuple[Check, ...] = (_transfer_syntax, _grid, _frames, _dimensions, _segments, _referenced_series)
"""What a BINARY Segmentation is asked."""
