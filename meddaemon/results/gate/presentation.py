"""What a presentation is asked (PS3.3 A.33.1): that lines go around what was drawn, and images look as they do."""

from collections.abc import Iterator

import numpy as np
from highdicom.color import CIELabColor
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, GrayscaleSoftcopyPresentationStateStorage

from meddaemon.domain.result import EncodedObject
from meddaemon.results.flat import sizes_of
from meddaemon.results.gate.areas import agree, around, covered
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.identity import RESEARCH_MARK, long_string
from meddaemon.results.presentation import layer_of
from meddaemon.results.scene import Mark
from meddaemon.results.window import Lookup, Rescale, Window, rescale_of, voi_of

_Image = tuple[str, int]


def _document(_: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    for keyword, value in (("SOPClassUID", GrayscaleSoftcopyPresentationStateStorage), ("Modality", "PR")):
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"
    if RESEARCH_MARK not in str(dataset.get("ContentDescription")):
        yield f"ContentDescription lacks {RESEARCH_MARK!r}"
    for keyword in ("ContentLabel", "PresentationCreationDate", "PresentationCreationTime"):
        if not dataset.get(keyword):
            yield f"{keyword} has no value"


def _series(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    if [str(each.SeriesInstanceUID) for each in dataset.ReferencedSeriesSequence] != [source.series_instance_uid]:
        yield "Referenced Series Sequence does not name the series of the source, and it alone"
    for uid, frame in _presented(dataset):
        if (uid, frame) not in exam.request.scene.images:
            yield f"refers to frame {frame} of {uid}, on which no result lies"


def _grey(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that stored values become what they become in each image: Modality LUT, window, Presentation LUT."""
    source = exam.request.source
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    said = Rescale(slope, intercept, str(dataset.get("RescaleType", "US")))
    for uid, frame in _presented(dataset):
        instance = source.instance(uid)
        rescale = rescale_of(instance, frame)
        if rescale is None or rescale.type != said.type or not np.allclose(rescale[:2], said[:2], rtol=1e-9):
            yield f"Modality LUT is {tuple(said)}, that of frame {frame} of {uid} is {rescale and tuple(rescale)}"
        shape = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}.get(str(instance.PhotometricInterpretation))
        if shape is None or dataset.get("PresentationLUTShape") != shape:
            yield f"PresentationLUTShape {dataset.get('PresentationLUTShape')} is not {shape}, which {uid} needs"
        wanted = voi_of(instance, frame)
        found = [voi_of(each, 1) for each in dataset.get("SoftcopyVOILUTSequence", ()) if (uid, frame) in _images(each)]
        if len(found) != (wanted is not None) or not all(_alike(each, wanted) for each in found):
            yield f"window of frame {frame} of {uid} is {found}, not {wanted}"


def _alike(found: Window | Lookup | None, wanted: Window | Lookup | None) -> bool:
    """Return whether two windows are one; centre and width are written with ten digits."""
    if isinstance(found, Window) and isinstance(wanted, Window):
        return found.function == wanted.function and np.allclose(found[:2], wanted[:2], rtol=1e-9)
    return found == wanted


def _displayed(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    areas = [(image, area) for area in dataset.DisplayedAreaSelectionSequence for image in _images(area)]
    if sorted(image for image, _ in areas) != sorted(_presented(dataset)):
        yield "Displayed Area Selection Sequence does not name each image once"
    for (uid, frame), area in areas:
        instance = exam.request.source.instance(uid)
        corners = [*area.DisplayedAreaTopLeftHandCorner, *area.DisplayedAreaBottomRightHandCorner]
        if corners != [1, 1, instance.Columns, instance.Rows]:
            yield f"displayed area of {uid} is {corners}, not the whole of {instance.Columns} x {instance.Rows}"
        geometry = exam.request.analysis.geometry
        spacing, aspect = sizes_of(exam.request.source.image(uid, frame))
        wanted = spacing if geometry is None else geometry.spacing[1:]
        keyword = "PresentationPixelAspectRatio" if wanted is None else "PresentationPixelSpacing"
        found = [float(each) for each in area.get(keyword, ())]
        if len(found) != 2 or not np.allclose(found, wanted or aspect, rtol=1e-6):
            yield f"pixels of {uid} are {found} high and wide, not {wanted or aspect}"


def _layers(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    layers = [str(each.GraphicLayer) for each in dataset.GraphicLayerSequence]
    if len(set(layers)) != len(layers):
        yield "two layers have one name"
    marks = {layer_of(exam.request, mark): mark for mark in exam.request.scene.marks}
    for each in dataset.GraphicLayerSequence:
        mark = marks.get(str(each.GraphicLayer))
        if mark is None or each.get("GraphicLayerDescription") != long_string(mark.name):
            yield f"layer {each.GraphicLayer} is not called {mark and mark.name!r}"
        elif each.get("GraphicLayerRecommendedDisplayCIELabValue") != list(CIELabColor.from_rgb(*mark.colour).value):
            yield f"layer {each.GraphicLayer} has not the colour {mark.colour}"
    if {str(each.GraphicLayer) for each in dataset.GraphicAnnotationSequence} != set(layers):
        yield "layers are not those of the annotations"


def _annotations(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Hold what lines go around on each image against the voxels there; nothing shown may lack there."""
    scene = exam.request.scene
    marks = {layer_of(exam.request, mark): mark for mark in scene.marks}
    drawn: set[tuple[_Image, str]] = set()
    for annotation in dataset.GraphicAnnotationSequence:
        mark = marks.get(str(annotation.GraphicLayer))
        for image in _images(annotation):
            if mark is None or image not in scene.images or image not in _presented(dataset):
                yield f"draws {annotation.GraphicLayer} on frame {image[1]} of {image[0]}, where nothing is to be drawn"
                continue
            drawn.add((image, str(annotation.GraphicLayer)))
            yield from _drawing(exam, image, mark, annotation)
    for image in _presented(dataset):
        for layer, mark in marks.items():
            if image in scene.images and scene.shows(mark, scene.images.index(image)) and (image, layer) not in drawn:
                yield f"does not draw {layer} on frame {image[1]} of {image[0]}"


def _drawing(exam: Exam, image: _Image, mark: Mark, annotation: Dataset) -> Iterator[str]:
    scene, instance = exam.request.scene, exam.request.source.instance(image[0])
    lines = [
        np.reshape(np.array(each.GraphicData, np.float64), (-1, 2))[:, ::-1]
        for each in annotation.GraphicObjectSequence
    ]
    where = f"{annotation.GraphicLayer} on frame {image[1]} of {image[0]}"
    units = [each.GraphicAnnotationUnits for each in annotation.GraphicObjectSequence]
    units += [each.AnchorPointAnnotationUnits for each in annotation.TextObjectSequence]
    if {*units} != {"PIXEL"}:
        yield f"{where} is not in pixels"
    kinds = {each.GraphicType for each in annotation.GraphicObjectSequence}
    if kinds != {"POINT" if mark.is_point else "POLYLINE"}:
        yield f"{where} is drawn as {sorted(kinds)}"
    points = np.concatenate(lines)
    for each in annotation.TextObjectSequence:
        anchor = np.array(each.AnchorPoint, np.float64)[::-1]
        if (anchor < points.min(axis=0) - 1e-3).any() or (anchor > points.max(axis=0) + 1e-3).any():
            yield f"{where} has its name elsewhere"
    if any(
        len(line) != each.NumberOfGraphicPoints
        for line, each in zip(lines, annotation.GraphicObjectSequence, strict=True)
    ):
        yield f"{where} has another number of points than it says"
    limits = (int(instance.Rows), int(instance.Columns))
    if any((line < 0).any() or (line > limits).any() for line in lines):
        yield f"{where} leaves the image"
    index = scene.images.index(image)
    if mark.segment is not None and scene.drawing is not None:
        if not agree(around(lines), covered(scene.drawing.mask(mark.segment, index))):
            yield f"{where} does not go around the voxels of segment {mark.segment}"
    elif not scene.shows(mark, index) or not np.allclose(
        np.clip([np.add(mark.low[1:], 0.5), np.add(mark.high[1:], 0.5)], 0, limits),
        [np.concatenate(lines).min(axis=0), np.concatenate(lines).max(axis=0)],
        atol=1e-3,
    ):
        yield f"{where} is not where {mark.name!r} was found"
    if [str(each.UnformattedTextValue) for each in annotation.TextObjectSequence] != [long_string(mark.name)]:
        yield f"{where} is not called {mark.name!r}"


def _presented(dataset: Dataset) -> list[_Image]:
    return [image for series in dataset.ReferencedSeriesSequence for image in _images(series)]


def _images(item: Dataset) -> list[_Image]:
    """Return the (SOP Instance UID, frame) of each image that an item refers to."""
    found = []
    for reference in item.get("ReferencedImageSequence", ()):
        frames = reference.get("ReferencedFrameNumber") or 1
        numbers = [frames] if isinstance(frames, int) else frames
        found += [(str(reference.ReferencedSOPInstanceUID), int(frame)) for frame in numbers]
    return found


CHECKS: tuple[Check, ...] = (_document, _series, _grey, _displayed, _layers, _annotations)
"""What a presentation is asked."""
