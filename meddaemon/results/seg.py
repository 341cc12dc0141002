"""Segmentation objects, on the full source grid (PS3.3 A.51): BINARY, and as a label map."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationFractionalTypeValues,
    SegmentationTypeValues,
    SegmentDescription,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code as PydicomCode
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from meddaemon.domain.codes import Code
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.outlet import ObjectKind, SegmentationForm
from meddaemon.domain.result import Analysis, EncodedObject, Labels, LeftOut, Segment
from meddaemon.domain.volume import Geometry
from meddaemon.results import flat
from meddaemon.results.envelope import device_serial_number, finish
from meddaemon.results.frames import Frame, Plane, native_bits, planes_of, run_lengths, with_frames
from meddaemon.results.identity import MANUFACTURER, instance_uid, long_string, series_uid
from meddaemon.results.request import EncodingRequest
from meddaemon.results.skeleton import name_thickness, say_lossy, series_number
from meddaemon.results.source import is_multi_frame

KIND = ObjectKind.SEG

_SAME_DIRECTION = 1e-4
"""Direction cosines that differ by less are the same: 0.05 mm over half a metre."""
_EVEN_MM = 0.05

MOST_FRAMES = 4096
"""Up to this many frames every plane of every segment is written, so that a reader gets back the source grid without
thinking; beyond it (whole-body models: 100 segments x 500 planes) empty frames are left out, or the object would be
gigabytes of zeros."""


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject | LeftOut]:
    """Yield the Segmentation of what is drawn, if anything is, in each form that is asked for.

    Segments that overlap cannot be one label map. Their BINARY Segmentation then is that of every edition.
    """
    if not request.analysis.is_drawn:
        yield LeftOut(what=KIND, why="nothing was drawn")
        return
    forms = {edition.segmentation for edition in request.editions}
    if SegmentationForm.LABELMAP not in forms:
        yield encode_seg(request)
    elif why := why_no_label_map(request.analysis):
        yield LeftOut(what=f"{KIND} {SegmentationForm.LABELMAP}", why=why)
        yield replace(encode_seg(request), edition="")
    else:
        if SegmentationForm.BINARY in forms:
            yield encode_seg(request)
        yield encode_label_map(request)


def why_no_label_map(analysis: Analysis) -> str:
    """Return why what is drawn cannot be written as a label map; "" where it can be."""
    if analysis.is_drawn and analysis.drawing.overlapping:
        return "segments overlap, and a label map holds one for each voxel: the BINARY Segmentation goes in its place"
    return ""


def encode_seg(request: EncodingRequest) -> EncodedObject:
    """Write what the analysis draws as a BINARY Segmentation in Explicit VR Little Endian.

    Segments that overlap each have their own frames, and Segments Overlap says so (PS3.3 C.8.20.2).

    Frames lie on the planes of the source, pixel for pixel, in its Frame of Reference; those of pictures on the images
    that they name. Raises `InputRefused` when the planes are not frames of the source, or do not lie parallel to each
    other.
    """
    drawing = request.analysis.drawing
    described = descriptions(request)
    omit_empty = _leaves_out_empty_frames(request)
    if len(described) == 1 and request.analysis.geometry is not None:
        pixels = np.stack([drawing.mask(1, plane) for plane in range(drawing.shape[0])]).view(np.uint8)
        header = segmentation(request, described, pixels=pixels, omit_empty=omit_empty)
        return finish(header, request, KIND, edition=SegmentationForm.BINARY)
    header = segmentation(request, described[:1])
    header.SegmentSequence = described
    header.SegmentsOverlap = "YES" if drawing.overlapping else "NO"
    one_of_several(header)
    drawn_on = request.analysis.planes
    frames = _frames(request, planes(request, header), drawn_on, omit_empty=omit_empty)
    masks = (drawing.mask(frame.segment, drawn_on[frame.plane.source]) for frame in frames)

    def encoded(header: Dataset) -> bytes:
        return with_frames(header, frames, native_bits(header, masks, len(frames)))

    return finish(header, request, KIND, encoded, edition=SegmentationForm.BINARY)


def encode_label_map(request: EncodingRequest) -> EncodedObject:
    """Write what the analysis draws as a label map (PS3.3 A.51, Label Map Segmentation) in RLE Lossless.

    In that alone, though JPEG-LS would halve it (0.9 for 2.1 MB: 100 segments on 300 x 512 x 512): dcmqi 1.5.7 takes
    JPEG-LS Lossless for a lossy syntax and refuses it, OHIF (cornerstone adapters 5.14) cannot get at its frames.

    There is a frame for every plane. Its values are the numbers of the segments, which are those of the BINARY one;
    0 is background. Above 255 segments they take 16 bits; OHIF (cornerstone adapters 5.14) then shows the 257th as the
    first, in BINARY too. Raises `InputRefused` as `encode_seg` does, and where segments overlap.
    """
    drawing = request.analysis.drawing
    if why := why_no_label_map(request.analysis):
        raise InputRefused("segments_overlap", why)
    header = segmentation(request, descriptions(request), SegmentationForm.LABELMAP)
    drawn_on = request.analysis.planes
    shown = planes(request, header)
    frames = [Frame(plane=plane, place=place) for place, plane in enumerate(shown, 1)]
    narrow = header.BitsAllocated == 8

    def image(plane: Plane) -> Labels:
        numbers = drawing.numbers(drawn_on[plane.source])
        return numbers.astype(np.uint8, copy=False) if narrow else numbers.astype(np.uint16, copy=False)

    def encoded(header: Dataset) -> bytes:
        return with_frames(header, frames, run_lengths(map(image, shown), header))

    return finish(header, request, KIND, encoded, edition=SegmentationForm.LABELMAP)


def one_of_several(header: Dataset) -> None:
    """Make the header of one segment that of several: each frame says whose it is.

    Frames of several segments do not follow each other in space.
    """
    del header.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
    header.pop("DimensionOrganizationType", None)


def planes(request: EncodingRequest, header: Dataset) -> list[Plane]:
    """Return what describes the frames of each plane of the header along the stack, or of each picture."""
    return planes_of(header) if request.analysis.geometry is not None else flat.planes_of(request)


_TYPES = {
    SegmentationForm.BINARY: (SegmentationTypeValues.BINARY, ExplicitVRLittleEndian),
    SegmentationForm.LABELMAP: (SegmentationTypeValues.LABELMAP, RLELossless),
    ObjectKind.PROBABILITY: (SegmentationTypeValues.FRACTIONAL, RLELossless),
}


def segmentation(
    request: EncodingRequest,
    described: Sequence[SegmentDescription],
    form: SegmentationForm | ObjectKind = SegmentationForm.BINARY,
    *,
    pixels: NDArray[np.uint8] | None = None,
    digest: str = "",
    omit_empty: bool = False,
) -> Segmentation:
    """Return what highdicom makes of labels [plane, row, column] in a form, or a header that describes each plane.

    The header is that of frames of a single pixel: what describes a plane is the same for every segment, and
    highdicom would compress frames with what is installed (gdcm ends the process over small ones).
    A probability is a form, too, and a kind of its own; `digest` is what its bytes depend on beside the analysis.
    """
    contract, source, geometry = request.contract, request.source, request.analysis.geometry
    kind = form if form is ObjectKind.PROBABILITY else KIND
    named = [each for each in ("" if form in (SegmentationForm.BINARY, kind) else str(form), digest) if each]
    segmentation_type, transfer_syntax = _TYPES[form]
    images = [flat.stand_in(request)] if geometry is None else images_of(request)
    rows, columns = images[0].Rows, images[0].Columns
    if pixels is None:
        images = [_with(image, Rows=1, Columns=1) for image in images]
    seg = Segmentation(
        source_images=images,
        pixel_array=np.zeros((len(images), 1, 1), np.uint8) if pixels is None else pixels,
        segmentation_type=segmentation_type,
        segment_descriptions=described,
        # A series is of one class.
        series_instance_uid=series_uid(request, " ".join([kind, *named[: kind is KIND]])),
        series_number=request.first_series_number if kind is KIND else series_number(request, ObjectKind.PROBABILITY),
        sop_instance_uid=instance_uid(request, kind, *named),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=MANUFACTURER,  # finish() writes them: highdicom is typed for one only
        device_serial_number=device_serial_number(request),
        content_label="AI_SEGMENTATION" if kind is KIND else "AI_PROBABILITY",
        content_description=long_string(contract.title),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=omit_empty,
        fractional_type=SegmentationFractionalTypeValues.PROBABILITY,
        max_fractional_value=255,
    )
    for element in source.body_part:
        seg.add(element)
    if geometry is None:
        flat.complete(seg, request)
    else:
        name_frames(seg, request)
        name_thickness(seg, request)
    say_lossy(seg, request)
    _name_dimensions(seg, instance_uid(request, kind, *named, "dimensions"))
    if geometry is not None and not _is_evenly_stacked(geometry):
        seg.pop("DimensionOrganizationType", None)
        seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].pop("SpacingBetweenSlices", None)
    seg.Rows, seg.Columns = rows, columns
    seg.file_meta.TransferSyntaxUID = transfer_syntax
    if pixels is not None and _is_padded(seg.NumberOfFrames * seg.Rows * seg.Columns):
        seg.PixelData = seg.PixelData[:-1] + b"\0"  # it pads with the character 0; PS3.5 6.2 says 00H
    return seg


def _frames(
    request: EncodingRequest, planes: Sequence[Plane], drawn_on: Mapping[tuple[str, int], int], *, omit_empty: bool
) -> list[Frame]:
    """Return the frames of each segment along the stack, which is the order of `planes`: of those that are drawn on."""
    areas = request.scene.areas
    every = {segment.number for segment in request.analysis.segments}
    shown = [every.intersection((np.flatnonzero(areas[drawn_on[each.source]]) + 1).tolist()) for each in planes]
    if not omit_empty or not any(shown):
        shown = [every] * len(planes)  # an object has frames
    kept = [(plane, segments) for plane, segments in zip(planes, shown, strict=True) if segments]
    return [
        Frame(segment=number, plane=plane, place=place)
        for number in sorted(every)
        for place, (plane, segments) in enumerate(kept, 1)
        if number in segments
    ]


def frame_number(request: EncodingRequest, segment: int, image: tuple[str, int]) -> int:
    """Return which frame, from 1, of the BINARY Segmentation of pictures shows a segment on one of them."""
    pictures, areas = request.analysis.images, request.scene.areas
    place = pictures.index(image)
    if not _leaves_out_empty_frames(request) or not areas.any():
        return (segment - 1) * len(pictures) + place + 1
    return int(np.count_nonzero(areas[:, : segment - 1]) + np.count_nonzero(areas[: place + 1, segment - 1]))


def images_of(request: EncodingRequest) -> list[Dataset]:
    """Return each plane as a single-frame image that is parallel to all others.

    Raises `InputRefused` when the planes are not those of the source, or when they lie across each other.
    """
    source = request.source
    wanted = list(request.analysis.images)
    if missing := [each for each in wanted if each not in source.orientations]:
        raise InputRefused(
            "frames_differ",
            f"{len(missing)} of {len(wanted)} planes are no frames of the {len(source.instances)} source instances",
            numbers={"planes": len(wanted), "missing": len(missing), "instances": len(source.instances)},
        )
    orientation = source.orientations[wanted[0]]
    turned = max(float(np.abs(source.orientations[each] - orientation).max()) for each in wanted)
    if not turned < _SAME_DIRECTION:
        raise InputRefused(
            "orientations_differ",
            f"the planes do not lie parallel to each other: their direction cosines differ by up to {turned:.3g}",
            numbers={"difference": turned},
        )
    images = [source.image(*each) for each in wanted]
    # highdicom compares directions digit by digit.
    directions = images[0].ImageOrientationPatient
    return [
        image if image.ImageOrientationPatient == directions else _with(image, ImageOrientationPatient=directions)
        for image in images
    ]


def _with(image: Dataset, **changes: object) -> Dataset:
    # Neither copy() nor setting an attribute: both write to the elements of the image.
    changed = Dataset()
    changed.update(image)
    for keyword, value in changes.items():
        changed.add_new(image[keyword].tag, image[keyword].VR, value)
    return changed


def name_frames(made: Dataset, request: EncodingRequest) -> None:
    """Name the instances, each once, and their frames, where highdicom was given the frames as images."""
    source = request.source
    classes = {str(each.SOPInstanceUID): each.SOPClassUID for each in source.instances if is_multi_frame(each)}
    if not classes:
        return
    frames = {tuple(source.positions[each].tolist()): each[1] for each in request.analysis.images}
    derived = [item.DerivationImageSequence[0].SourceImageSequence[0] for item in made.PerFrameFunctionalGroupsSequence]
    for item, image in zip(made.PerFrameFunctionalGroupsSequence, derived, strict=True):
        if image.ReferencedSOPInstanceUID in classes:
            position = item.PlanePositionSequence[0].ImagePositionPatient
            image.ReferencedFrameNumber = frames[tuple(map(float, position))]
    made.SourceImageSequence = _once(made.SourceImageSequence)
    named = [*derived, *made.SourceImageSequence]
    for series in made.ReferencedSeriesSequence:
        series.ReferencedInstanceSequence = _once(series.ReferencedInstanceSequence)
        named += series.ReferencedInstanceSequence
    for image in named:
        image.ReferencedSOPClassUID = classes.get(image.ReferencedSOPInstanceUID, image.ReferencedSOPClassUID)


def _once(items: Iterable[Dataset]) -> list[Dataset]:
    return list({str(item.ReferencedSOPInstanceUID): item for item in items}.values())


def _is_evenly_stacked(geometry: Geometry) -> bool:
    """Tell whether planes follow each other at one distance, straight above each other: not with gantry tilt."""
    positions = geometry.positions
    if len(positions) < 2:
        return True
    even = positions[0] + np.outer(np.linspace(0, 1, len(positions)), positions[-1] - positions[0])
    aside = (positions[-1] - positions[0]) @ geometry.axes[:, 1:]
    return bool(np.abs(positions - even).max() < _EVEN_MM and np.abs(aside).max() < _EVEN_MM)


def _leaves_out_empty_frames(request: EncodingRequest) -> bool:
    """Tell whether frames without a voxel of their segment are left out.

    They are when there would be too many. They are, too, when all frames together end on a padding byte (PS3.5
    8.1.1) and fewer frames do not: OHIF (cornerstone adapters 5.14) takes a padded bitmap for a damaged one, which
    concerns grids like 181 x 217 whose area is no multiple of 16.
    """
    planes, rows, columns = request.analysis.drawing.shape
    every = planes * len(request.analysis.segments)
    if every > MOST_FRAMES or not _is_padded(every * rows * columns):
        return every > MOST_FRAMES
    drawn = int(np.count_nonzero(request.scene.areas)) or every
    return not _is_padded(drawn * rows * columns)


def _is_padded(bits: int) -> bool:
    return (bits + 7) // 8 % 2 == 1


def descriptions(request: EncodingRequest) -> list[SegmentDescription]:
    """Return what is said of each segment."""
    return [describe(segment, request) for segment in request.analysis.segments]


def describe(segment: Segment, request: EncodingRequest) -> SegmentDescription:
    """Return what is said of a segment: its codes, its colour, the algorithm, how it is tracked."""
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
