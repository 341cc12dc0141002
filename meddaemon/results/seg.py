"""Segmentation objects: BINARY, on the full source grid (PS3.3 A.51)."""

from typing import Any

import numpy as np
from highdicom import AlgorithmIdentificationSequence, Volume
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
    SegmentsOverlapValues,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from meddaemon.domain.codes import Code
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.result import Analysis, Drawing, EncodedObject, Segment
from meddaemon.results.envelope import device_serial_number, finish
from meddaemon.results.identity import MANUFACTURER, instance_uid, long_string, series_uid
from meddaemon.results.request import EncodingRequest

KIND = "SEG"

MOST_FRAMES = 4096
"""Up to this many frames every plane of every segment is written, so that a reader gets back the source grid without
thinking; beyond it (whole-body models: 100 segments x 500 planes) empty frames are left out, or the object would be
gigabytes of zeros."""


class _Segmentation(Segmentation):
    """A Segmentation whose pixels are ours: known to be labels or masks, and whether these overlap.

    highdicom finds that out by adding up all masks of a volume, 8 bytes for each voxel of it.
    """

    @classmethod
    def _check_and_cast_pixel_array(
        cls,
        pixel_array: NDArray[Any] | Volume,
        segment_numbers: NDArray[Any],
        segmentation_type: SegmentationTypeValues,
        dtype: type,
    ) -> tuple[NDArray[Any] | Volume, SegmentsOverlapValues]:
        if pixel_array.ndim == 4 and isinstance(pixel_array, np.ndarray):
            overlapping = Drawing(masks=np.moveaxis(pixel_array, -1, 0).view(np.bool_)).overlapping
            return pixel_array, SegmentsOverlapValues.YES if overlapping else SegmentsOverlapValues.NO
        return super()._check_and_cast_pixel_array(pixel_array, segment_numbers, segmentation_type, dtype)


def encode_seg(request: EncodingRequest) -> EncodedObject:
    """Write what the analysis draws as a BINARY Segmentation in Explicit VR Little Endian.

    Segments that overlap each have their own frames, and Segments Overlap says so (PS3.3 C.8.20.2).

    Frames lie on the planes of the source, pixel for pixel, in its Frame of Reference. Raises `InputRefused` when
    the source is multi-frame and the volume does not use each of its frames once.
    """
    analysis, contract, source = request.analysis, request.contract, request.source
    seg = _Segmentation(
        source_images=source.instances,
        pixel_array=_in_source_order(request),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(segment, request) for segment in analysis.segments],
        series_instance_uid=series_uid(request, KIND),
        series_number=request.series_number,
        sop_instance_uid=instance_uid(request, KIND),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=MANUFACTURER,  # finish() writes them: highdicom is typed for one only
        device_serial_number=device_serial_number(request),
        content_label="AI_SEGMENTATION",
        content_description=long_string(contract.title),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=_leaves_out_empty_frames(analysis),
    )
    for element in source.body_part:
        seg.add(element)
    _name_dimensions(seg, instance_uid(request, KIND, "dimensions"))
    return finish(seg, request, KIND)


def _in_source_order(request: EncodingRequest) -> NDArray[Any]:
    """Return what is drawn with planes in the order of the source images, or of the frames of the multi-frame source.

    Labels are [plane, row, column], masks [plane, row, column, segment].
    """
    (drawing, geometry), source = request.analysis.drawn, request.source
    # Views, all of it: one byte for each voxel of each mask is enough.
    planes: Any = drawing.labels if drawing.masks is None else np.moveaxis(drawing.masks, 0, -1).view(np.uint8)
    if not source.is_multi_frame:
        return np.asarray(planes)
    frames = len(source.positions)
    if len(source.instances) > 1 or sorted(geometry.frame_numbers) != list(range(1, frames + 1)):
        raise InputRefused(
            "frames_differ",
            f"{len(geometry.frame_numbers)} planes do not use each of {frames} frames of one instance once",
            numbers={"planes": len(geometry.frame_numbers), "frames": frames, "instances": len(source.instances)},
        )
    order = np.argsort(geometry.frame_numbers)
    return np.asarray(planes[::-1] if np.array_equal(order, np.arange(frames)[::-1]) else planes[order])


def _leaves_out_empty_frames(analysis: Analysis) -> bool:
    """Tell whether frames without a voxel of their segment are left out.

    They are when there would be too many. They are, too, when all frames together end on a padding byte (PS3.5
    8.1.1) and fewer frames do not: OHIF (cornerstone adapters 5.14) takes a padded bitmap for a damaged one, which
    concerns grids like 181 x 217 whose area is no multiple of 16.
    """
    drawing, _ = analysis.drawn
    planes, rows, columns = drawing.shape
    every = planes * len(analysis.segments)
    if every > MOST_FRAMES or not _is_padded(every * rows * columns):
        return every > MOST_FRAMES
    drawn = sum(int(np.count_nonzero(drawing.counts(plane)[1:])) for plane in range(planes)) or every
    return not _is_padded(drawn * rows * columns)


def _is_padded(bits: int) -> bool:
    return (bits + 7) // 8 % 2 == 1


def _description(segment: Segment, request: EncodingRequest) -> SegmentDescription:
    contract = request.contract
    red, green, blue = segment.colour
    description = SegmentDescription(
        segment_number=segment.number,
        segment_label=long_string(segment.label),
        segmented_property_category=pydicom_code(segment.category),
        segmented_property_type=pydicom_code(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=long_string(contract.name),
            version=long_string(contract.version),
            family=codes.DCM.ArtificialIntelligence,
            source=long_string(contract.manufacturer) or None,
            parameters=algorithm_parameters(request),
        ),
        tracking_uid=segment.tracking_uid,
        tracking_id=segment.tracking_id,
        display_color=CIELabColor.from_rgb(red, green, blue),
    )
    if segment.laterality is not None:
        # CID 244 is the modifier of a segmented property type (PS3.3 C.8.20.2, Segmented Property Type Modifier).
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            _code_item(segment.laterality)
        ]
    return description


def algorithm_parameters(request: EncodingRequest) -> dict[str, str]:
    """Return what, besides its version, says which algorithm ran: digests of bundle and weights."""
    contract = request.contract
    parameters = {"model sha256": contract.digest, "weights sha256": contract.weights_digest}
    return {name: value for name, value in parameters.items() if value}


def pydicom_code(code: Code) -> PydicomCode:
    """Return the code as pydicom and highdicom speak it."""
    return PydicomCode(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _code_item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def _name_dimensions(seg: Segmentation, uid: str) -> None:
    """Replace the Dimension Organization UID that highdicom draws at random."""
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
