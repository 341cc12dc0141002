"""What a Segmentation is asked: grid, frames, dimensions, segments (PS3.3 A.51, C.8.20)."""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)

from meddaemon.domain.codes import Code
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.outlet import SegmentationForm
from meddaemon.domain.result import EncodedObject, Segment
from meddaemon.domain.volume import Geometry
from meddaemon.results.gate import flat
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.frames import frame_table
from meddaemon.results.gate.tree import is_code
from meddaemon.results.identity import long_string

BACKGROUND = Code(value="125040", scheme="DCM", meaning="Background")
LABEL_MAP_SEGMENTATION_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")  # pydicom has no name for it
_SAME_DIRECTION = 1e-4
_TOLERANCE_MM = 1e-3
# The affine of a volume is fitted to all its planes, which may stray from it a little (`inference` allows 0.06 mm).
_GRID_TOLERANCE_MM = 0.1


def _form(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that the object is of the form that its name says, and encoded as that is."""
    binary = encoded.edition != SegmentationForm.LABELMAP
    wide = len(exam.request.analysis.segments) > 255
    wanted = {
        "SOPClassUID": SegmentationStorage if binary else LABEL_MAP_SEGMENTATION_STORAGE,
        "Modality": "SEG",
        "SegmentationType": "BINARY" if binary else "LABELMAP",
        "PixelPaddingValue": None if binary else 0,
        "SegmentsOverlap": "YES" if exam.request.analysis.drawing.overlapping else "NO",
    }
    yield from differences(dataset, wanted)
    yield from pixel_description(dataset, 1 if binary else 16 if wide else 8)
    yield from transfer_syntax(encoded, ExplicitVRLittleEndian if binary else RLELossless)


def differences(dataset: Dataset, wanted: Mapping[str, object]) -> Iterator[str]:
    """Yield which attributes do not have the value that they should; None is for those that should be absent."""
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is not {value}" if value is not None else f"{keyword} should be absent"


def pixel_description(dataset: Dataset, bits: int) -> Iterator[str]:
    """Yield what is wrong with the description of pixels of so many bits (PS3.3 C.8.20.2)."""
    wanted = {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0}
    yield from differences(dataset, wanted | {"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"})


def transfer_syntax(encoded: EncodedObject, wanted: UID) -> Iterator[str]:
    """Yield that an object is not encoded as its form is."""
    if encoded.transfer_syntax_uid != wanted:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {wanted}"


def grid(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that frames lie in the volume pixel for pixel: its frame of reference, its size, its directions."""
    source = exam.request.source
    geometry = exam.request.analysis.geometry
    if geometry is None:
        yield from flat.grid(exam, dataset)
        return
    for name, uid in (("source", source.frame_of_reference_uid), ("volume", geometry.frame_of_reference_uid)):
        if str(dataset.get("FrameOfReferenceUID")) != uid:
            yield f"FrameOfReferenceUID {dataset.get('FrameOfReferenceUID')} is not the {name}'s {uid}"
    if (dataset.Rows, dataset.Columns) != geometry.shape[1:]:
        yield f"grid {dataset.Rows} x {dataset.Columns} is not the volume's {geometry.shape[1]} x {geometry.shape[2]}"
    yield from measures(exam, geometry, dataset)


def measures(exam: Exam, geometry: Geometry, dataset: Dataset) -> Iterator[str]:
    """Check that frames are as wide, as thick and as far apart as those of the volume, and lie in its directions."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    said = shared.PixelMeasuresSequence[0]
    between = said.get("SpacingBetweenSlices")
    if between is not None and not abs(float(between) - geometry.spacing[0]) * geometry.shape[0] < _GRID_TOLERANCE_MM:
        yield f"SpacingBetweenSlices {between} is not the volume's {geometry.spacing[0]:g}"
    thickness = exam.request.source.image(*exam.request.analysis.images[0]).get("SliceThickness")
    wanted = geometry.spacing[0] if thickness is None else float(thickness)
    if not np.isclose(float(said.SliceThickness), wanted, rtol=1e-6):
        yield f"SliceThickness {said.SliceThickness} is not {wanted:g}"
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_spacing, column_spacing = (float(value) for value in said.PixelSpacing)
    in_plane = np.column_stack([directions[3:] * row_spacing, directions[:3] * column_spacing])
    # Over the whole grid, so that an error too small to see in one voxel is seen at the far corner.
    drift = np.abs((in_plane - geometry.affine_lps[:3, 1:3]) * geometry.shape[1:]).max()
    if not drift < _GRID_TOLERANCE_MM:
        yield f"orientation and spacing drift {drift:.3g} mm from the volume over its width"


def places(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold every frame against the image that it names: it is a plane of the volume, and lies where both do."""
    geometry, source = exam.request.analysis.geometry, exam.request.source
    frames = frame_table(exam, encoded.name)
    if len(frames) != int(dataset.NumberOfFrames):
        yield f"{len(frames)} frame descriptions do not fit {dataset.NumberOfFrames} frames"
    if geometry is None:
        yield from flat.places(exam, frames, dataset)
        return
    planes = exam.request.analysis.planes
    known = np.array([key in planes for key in frames.sources], np.bool_)
    for number in np.flatnonzero(~known) + 1:
        yield f"frame {number} names {frames.sources[number - 1]}, which is no plane of the volume"
    named = [key for key in frames.sources if key in planes]
    if not named:
        return
    there = frames.positions[known]
    for name, wanted, tolerance in (
        ("source image", np.array([source.positions[key] for key in named]), _TOLERANCE_MM),
        ("volume", geometry.positions[[planes[key] for key in named]], _GRID_TOLERANCE_MM),
    ):
        distances = np.linalg.norm(there - wanted, axis=1)
        for index in np.flatnonzero(~(distances < tolerance)):
            number = np.flatnonzero(known)[index] + 1
            yield f"frame {number} lies {distances[index]:.4g} mm from the plane of its {name} {named[index][0]}"
    shared = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    turned = np.abs(np.array([source.orientations[key] for key in dict.fromkeys(named)]) - np.array(shared, float))
    if not turned.max() < _SAME_DIRECTION:
        yield f"a source image is turned against the frames: direction cosines differ by {turned.max():.3g}"
    if dataset.get("DimensionOrganizationType") == "3D":
        steps = np.diff(frames.positions, axis=0)
        aside = frames.positions[-1] - frames.positions[0]
        aside = aside - (aside @ geometry.axes[:, 0]) * geometry.axes[:, 0]
        strays = max(np.abs(aside).max(), np.abs(steps - steps[:1]).max(initial=0))
        if strays > _GRID_TOLERANCE_MM:
            yield "DimensionOrganizationType is 3D, but the frames do not follow each other evenly and straight"


def _voxels(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold every frame against what is drawn on its plane, voxel by voxel."""
    read = _label_maps if encoded.edition == SegmentationForm.LABELMAP else _masks
    yield from read(exam, encoded, dataset)


def _masks(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    analysis = exam.request.analysis
    drawing, frames, planes = analysis.drawing, frame_table(exam, encoded.name), analysis.planes
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    size, numbers = rows * columns, len(analysis.segments)
    packed = _native(encoded, (len(frames) * size + 15) // 16 * 2)
    if packed is None:
        yield f"the pixel data are not {len(frames)} frames of {rows} x {columns}, or not the last element"
        return
    counts = np.zeros(numbers + 1, np.int64)
    for index, (key, segment) in enumerate(zip(frames.sources, frames.segments.tolist(), strict=True)):
        # Frames are packed without gaps (PS3.5 8.1.1).
        first, offset = divmod(index * size, 8)
        bits = np.unpackbits(packed[first : first + (offset + size + 7) // 8], bitorder="little")
        mask = bits[offset : offset + size].reshape(rows, columns).view(np.bool_)
        if not 1 <= segment <= numbers:
            yield f"frame {index + 1} shows segment {segment} of {numbers}"
            continue
        if key in planes and not np.array_equal(mask, drawing.mask(segment, planes[key])):
            yield f"frame {index + 1} does not show what is drawn of segment {segment} on plane {planes[key]}"
        counts[segment] += np.count_nonzero(mask)
    yield from _compare_counts(exam, counts)


def _label_maps(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    analysis = exam.request.analysis
    drawing, frames, planes = analysis.drawing, frame_table(exam, encoded.name), analysis.planes
    numbers = len(analysis.segments)
    counts = np.zeros(numbers + 1, np.int64)
    for index, (key, image) in enumerate(zip(frames.sources, decoded(encoded), strict=True)):
        if image.max() > numbers:
            yield f"frame {index + 1} shows segment {image.max()} of {numbers}"
            continue
        if key in planes and not np.array_equal(image, drawing.numbers(planes[key])):
            yield f"frame {index + 1} does not show what is drawn on plane {planes[key]}"
        counts += np.bincount(image.ravel(), minlength=numbers + 1)
    for plane in sorted(set(planes.values()) - {planes.get(key) for key in frames.sources}):
        yield f"plane {plane} has no frame"
    yield from _compare_counts(exam, counts)


def _compare_counts(exam: Exam, counts: NDArray[np.int64]) -> Iterator[str]:
    drawing = exam.request.analysis.drawing
    drawn = np.zeros_like(counts)
    for plane in range(drawing.shape[0]):
        found = drawing.counts(plane)
        drawn[: len(found)] += found
    for segment in np.flatnonzero(counts[1:] != drawn[1:]) + 1:
        yield f"segment {segment} has {counts[segment]} voxels, the drawing {drawn[segment]}"
    for each in exam.request.analysis.segments:
        if counts[each.number] != each.voxel_count:
            yield f"segment {each.number} has {counts[each.number]} voxels, its row {each.voxel_count}"


def _native(encoded: EncodedObject, length: int) -> NDArray[np.uint8] | None:
    """Return native Pixel Data where they are, when they are of that length and end the object."""
    content = encoded.content
    for vr in (b"OB", b"OW"):
        if content[-length - 12 :][:12] == struct.pack("<HH2s2xI", 0x7FE0, 0x0010, vr, length):
            return np.frombuffer(content, np.uint8, length, len(content) - length)
    return None


def decoded(encoded: EncodedObject) -> Iterator[NDArray[np.uint8] | NDArray[np.uint16]]:
    """Yield the frames of compressed Pixel Data, [row, column].

    Raises ValueError for what cannot be decoded. With the decoder of pydicom: ours is what is examined.
    """
    try:
        yield from iter_pixels(BytesIO(encoded.content), raw=True, decoding_plugin="pydicom")
    except RuntimeError as error:
        raise ValueError("the pixel data cannot be decoded") from error


def dimensions(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that dimension index values are unique and one-to-one with segment and position (PS3.3 C.7.6.17)."""
    frames = frame_table(exam, encoded.name)
    indices = frames.indices
    pointed = dataset.DimensionIndexSequence
    pointers = [str(keyword_for_tag(each.DimensionIndexPointer)) for each in pointed]
    organised = [str(each.DimensionOrganizationUID) for each in dataset.DimensionOrganizationSequence]
    if len(organised) != 1 or {str(each.get("DimensionOrganizationUID")) for each in pointed} != {*organised}:
        yield "the dimensions are not those of one organisation"
    lies = exam.request.analysis.geometry is not None
    wanted = ["ReferencedSegmentNumber", "ImagePositionPatient" if lies else "FrameLabel"]
    wanted = wanted[0 if frames.segments.any() else 1 :]
    if pointers != wanted or indices.shape[1:] != (len(wanted),):
        yield f"dimensions {pointers} are not {wanted}, or the frames do not have an index value for each"
        return
    first: dict[tuple[int, ...], int] = {}
    for number, index in enumerate(map(tuple, indices.tolist()), 1):
        if first.setdefault(index, number) != number:
            yield f"frames {first[index]} and {number} share the dimension index {index}"
    if len(wanted) > 1:
        for row in np.flatnonzero(indices[:, 0] != frames.segments):
            shown = frames.segments[row]
            yield f"frame {row + 1} has dimension index {tuple(indices[row].tolist())}, but shows segment {shown}"
    if not lies:
        yield from flat.ranks(exam, frames)
        return
    ranks, firsts = np.unique(indices[:, -1], return_index=True)
    positions = frames.positions[firsts]
    for row in np.flatnonzero((positions[np.searchsorted(ranks, indices[:, -1])] != frames.positions).any(axis=1)):
        yield f"frame {row + 1} has position index {indices[row, -1]} of another position"
    if len(np.unique(positions, axis=0)) != len(positions):
        yield "one position has several position indices"
    if len(ranks) > 2:
        # In order along the normal: successive positions go on in one direction.
        steps = np.diff(positions, axis=0)
        if (steps @ steps[0] <= 0).any():
            yield "position indices do not follow the positions"


def _segments(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    items = list(dataset.get("SegmentSequence", ()))
    if encoded.edition == SegmentationForm.LABELMAP:
        background = items.pop(0) if items and items[0].get("SegmentNumber") == 0 else Dataset()
        for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
            if not is_code(background.get(keyword), BACKGROUND):
                yield f"segment 0: {keyword} is not {BACKGROUND}"
    yield from segment_descriptions(exam.request.analysis.segments, items, exam.request.contract)


def segment_descriptions(wanted: Sequence[Segment], items: Sequence[Dataset], contract: ModelContract) -> Iterator[str]:
    """Yield how descriptions of segments, numbered from 1, differ from those that are wanted."""
    if [item.get("SegmentNumber") for item in items] != list(range(1, len(wanted) + 1)):
        yield f"segments {[item.get('SegmentNumber') for item in items]} are not 1 to {len(wanted)}"
        return
    for number, (segment, item) in enumerate(zip(wanted, items, strict=True), 1):
        name = f"segment {number}"
        if item.get("SegmentLabel") != long_string(segment.label):
            yield f"{name} is not called as in the analysis"
        made_by = next(iter(item.get("SegmentationAlgorithmIdentificationSequence", ())), Dataset())
        names = item.get("SegmentAlgorithmName"), made_by.get("AlgorithmName"), made_by.get("AlgorithmVersion")
        model = long_string(contract.name)
        parameters = str(made_by.get("AlgorithmParameters"))
        if (
            item.get("SegmentAlgorithmType") != "AUTOMATIC"
            or names != (model, model, long_string(contract.version))
            or not all(digest in parameters for digest in (contract.digest, contract.weights_digest))
        ):
            yield f"{name} does not say which algorithm made it"
        if item.get("RecommendedDisplayCIELabValue") != list(CIELabColor.from_rgb(*segment.colour).value):
            yield f"{name} has not the colour {segment.colour}"
        if (item.get("TrackingID"), item.get("TrackingUID")) != (segment.tracking_id, segment.tracking_uid):
            yield f"{name} has other tracking identifiers than the analysis"
        for keyword, code in (
            ("SegmentedPropertyCategoryCodeSequence", segment.category),
            ("SegmentedPropertyTypeCodeSequence", segment.type),
        ):
            if not is_code(item.get(keyword), code):
                yield f"{name}: {keyword} is not {code}"
        yield from (f"{name}: {failure}" for failure in side(item.SegmentedPropertyTypeCodeSequence[0], segment))


def side(coded: Dataset, segment: Segment) -> Iterator[str]:
    """Yield that the type of a segment is not modified by its laterality, and by nothing else."""
    said = coded.get("SegmentedPropertyTypeModifierCodeSequence", ())
    if len(said) != (segment.laterality is not None) or any(
        segment.laterality is None or not is_code([each], segment.laterality) for each in said
    ):
        yield f"laterality is not {segment.laterality or 'left out'}"


def referenced_series(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that every source image is named once (PS3.3 C.12.4)."""
    source = exam.request.source
    named = Counter(
        (str(series.SeriesInstanceUID), str(instance.ReferencedSOPInstanceUID))
        for series in dataset.get("ReferencedSeriesSequence", ())
        for instance in series.ReferencedInstanceSequence
    )
    uids = {uid for uid, _ in exam.request.analysis.images}
    wanted = Counter((source.series_instance_uid, uid) for uid in uids)
    if named != wanted:
        yield f"Referenced Series Sequence names {named.total()} instances and not each of {wanted.total()} once"


CHECKS: tuple[Check, ...] = (_form, grid, places, _voxels, dimensions, _segments, referenced_series)
"""What a Segmentation is asked, in either form."""
