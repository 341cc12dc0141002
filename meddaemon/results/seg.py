"""Segmentation objects: BINARY, on the full source grid (PS3.3 A.51)."""

from collections.abc import Iterator, Sequence

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian

from meddaemon.domain.codes import Code
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.outlet import ObjectKind, SegmentationForm
from meddaemon.domain.result import Analysis, EncodedObject, Segment
from meddaemon.domain.volume import Geometry
from meddaemon.results.envelope import device_serial_number, finish
from meddaemon.results.frames import Frame, Plane, planes_of, with_frames
from meddaemon.results.identity import MANUFACTURER, instance_uid, long_string, series_uid
from meddaemon.results.request import EncodingRequest

KIND = ObjectKind.SEG

MOST_FRAMES = 4096
"""Up to this many frames every plane of every segment is written, so that a reader gets back the source grid without
thinking; beyond it (whole-body models: 100 segments x 500 planes) empty frames are left out, or the object would be
gigabytes of zeros."""


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject]:
    """Yield the Segmentation of what is drawn, if anything is."""
    if request.analysis.is_drawn:
        yield encode_seg(request)


def encode_seg(request: EncodingRequest) -> EncodedObject:
    """Write what the analysis draws as a BINARY Segmentation in Explicit VR Little Endian.

    Segments that overlap each have their own frames, and Segments Overlap says so (PS3.3 C.8.20.2).

    Frames lie on the planes of the source, pixel for pixel, in its Frame of Reference. Raises `InputRefused` when
    the source is multi-frame and the planes are not frames of one instance.
    """
    drawing, _ = request.analysis.drawn
    order = _in_source_order(request)
    described = [_description(segment, request) for segment in request.analysis.segments]
    omit_empty = _leaves_out_empty_frames(request.analysis)
    if len(described) == 1 and all(plane is not None for plane in order):
        pixels = np.stack([drawing.mask(1, plane) for plane in order if plane is not None]).view(np.uint8)
        return finish(
            _segmentation(request, pixels, described, omit_empty=omit_empty),
            request,
            KIND,
            edition=SegmentationForm.BINARY,
        )
    # One empty frame for each plane of the source: what describes it is the same for every segment.
    nothing = np.broadcast_to(np.uint8(0), (len(order), *drawing.shape[1:]))
    header = _segmentation(request, nothing, described[:1], omit_empty=False)
    header.SegmentSequence = described
    header.SegmentsOverlap = "YES" if drawing.overlapping else "NO"
    # Each frame says whose it is, and frames of several segments do not follow each other in space.
    del header.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    header.pop("DimensionOrganizationType", None)
    frames = _frames(request, planes_of(header), omit_empty=omit_empty)
    return finish(header, request, KIND, lambda header: with_frames(header, frames), edition=SegmentationForm.BINARY)


def _segmentation(
    request: EncodingRequest,
    pixels: NDArray[np.uint8],
    described: Sequence[SegmentDescription],
    *,
    omit_empty: bool,
) -> Segmentation:
    """Return what highdicom makes of labels whose planes are in the order of the source."""
    contract, source = request.contract, request.source
    seg = Segmentation(
        source_images=source.instances,
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
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
        omit_empty_frames=omit_empty,
    )
    for element in source.body_part:
        seg.add(element)
    _name_dimensions(seg, instance_uid(request, KIND, "dimensions"))
    if _is_padded(seg.NumberOfFrames * seg.Rows * seg.Columns):
        seg.PixelData = seg.PixelData[:-1] + b"\0"  # it pads with the character 0; PS3.5 6.2 says 00H
    return seg


def _frames(request: EncodingRequest, planes: Sequence[Plane], *, omit_empty: bool) -> Iterator[Frame]:
    """Yield the frames of each segment along the stack, which is the order of `planes`: of those that are drawn on."""
    drawing, geometry = request.analysis.drawn
    drawn_on = {source: index for index, source in enumerate(_sources(geometry))}
    stack = [(plane, drawn_on[plane.source]) for plane in planes if plane.source in drawn_on]
    every = {segment.number for segment in request.analysis.segments}
    shown = [every.intersection(np.flatnonzero(drawing.counts(index)).tolist()) for _, index in stack]
    if not omit_empty or not any(shown):
        shown = [every] * len(stack)  # an object has frames
    kept = [(*each, segments) for each, segments in zip(stack, shown, strict=True) if segments]
    for number in sorted(every):
        for place, (plane, index, segments) in enumerate(kept, 1):
            if number in segments:
                yield Frame(segment=number, plane=plane, place=place, mask=drawing.mask(number, index))


def _in_source_order(request: EncodingRequest) -> list[int | None]:
    """Return which plane of what is drawn each image of the source shows, or each frame of the one that has several.

    None is for a frame that is not drawn on: another time, or another stack.
    """
    (_, geometry), source = request.analysis.drawn, request.source
    if not source.is_multi_frame:
        return list(range(geometry.shape[0]))
    drawn_on = {each: index for index, each in enumerate(_sources(geometry))}
    if len(source.instances) > 1 or not drawn_on.keys() <= source.positions.keys():
        raise InputRefused(
            "frames_differ",
            f"{len(drawn_on)} planes are not frames of one multi-frame instance with {len(source.positions)} of them",
            numbers={"planes": len(drawn_on), "frames": len(source.positions), "instances": len(source.instances)},
        )
    return [drawn_on.get(each) for each in source.positions]


def _sources(geometry: Geometry) -> list[tuple[str, int]]:
    """Return the SOP Instance UID and the frame of each plane."""
    return list(zip(geometry.sop_instance_uids, geometry.frame_numbers, strict=True))


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
