"""Grayscale Softcopy Presentation State: outlines and labels over the images of the source (PS3.3 A.33.1)."""

from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from highdicom.color import CIELabColor
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import GrayscaleSoftcopyPresentationStateStorage

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject, LeftOut
from meddaemon.results.envelope import finish
from meddaemon.results.flat import sizes_of
from meddaemon.results.identity import RESEARCH_MARK, long_string
from meddaemon.results.request import EncodingRequest
from meddaemon.results.scene import Mark
from meddaemon.results.skeleton import begin, image_item, item, name_side
from meddaemon.results.window import Lookup, Rescale, rescale_of, voi_of

KIND = ObjectKind.PR
MOST_IMAGES = 1024
MOST_POINTS = 200_000
"""Of the images with the most to show, and of all outlines together: 1.6 MB."""
LONGEST_LINE = 4096
"""Points of one polyline: its coordinates must fit the 64 KB of VR FL in Explicit VR (PS3.5 section 7.1.2)."""
_Image = tuple[str, int]
_Drawn = tuple[Mark, list[NDArray[np.float64]]]


def encode(request: EncodingRequest, _: Sequence[EncodedObject]) -> Iterator[EncodedObject | LeftOut]:
    """Yield one presentation of the grey images on which anything is shown; of colour images there is none."""
    marks = drawn_on(request)
    shown = list(marks)
    if not shown:
        yield LeftOut(what=KIND, why="nothing is shown on a grey image")
        return
    if left := len({image for mark in request.scene.marks for image in request.scene.images_of(mark)}) - len(shown):
        why = f"there are too many, too much is drawn on them, or they are not grey as the other {len(shown)} are"
        yield LeftOut(what=f"{KIND} on {left} images", why=why)
    obj = begin(request, KIND, GrayscaleSoftcopyPresentationStateStorage, "PR")
    obj.PresentationCreationDate, obj.PresentationCreationTime = request.source.moment
    obj.ContentLabel = "AI_FINDINGS"
    obj.ContentDescription = long_string(f"{request.contract.title} - {RESEARCH_MARK}")
    obj.ContentCreatorName = ""  # a person's name, and there was none
    obj.ReferencedSeriesSequence = [
        item(SeriesInstanceUID=request.source.series_instance_uid, ReferencedImageSequence=_images(request, shown))
    ]
    rescale = rescale_of(request.source.instance(shown[0][0]), shown[0][1])
    if rescale is not None and rescale != Rescale(1.0, 0.0):
        obj.RescaleSlope, obj.RescaleIntercept = _decimal(rescale.slope), _decimal(rescale.intercept)
        obj.RescaleType = rescale.type
    obj.DisplayedAreaSelectionSequence = list(_areas(request, shown))
    obj.GraphicLayerSequence = list(_layers(request, marks))
    obj.GraphicAnnotationSequence = [
        _annotation(request, image, mark, graphics) for image, drawn in marks.items() for mark, graphics in drawn
    ]
    if windows := list(_windows(request, shown)):
        obj.SoftcopyVOILUTSequence = windows
    inverse = request.source.instance(shown[0][0]).get("PhotometricInterpretation") == "MONOCHROME1"
    obj.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    name_side(obj, request)
    yield finish(obj, request, KIND)


def drawn_on(request: EncodingRequest) -> dict[_Image, list[_Drawn]]:
    """Return what the presentation draws on which images, in their order: grey ones on which anything is shown.

    A presentation has one Modality LUT and one Presentation LUT for all its images: where they differ from image to
    image, as in PET, it is of those that are like the one with the most to show. Of more images, or more outlines, than
    anybody would load those with the least to show are left out.
    """
    scene = request.scene
    shown: dict[int, float] = {}
    for mark in scene.marks:
        for index in scene.images_of(mark):
            area = scene.areas[index, mark.segment - 1] if mark.segment is not None else mark.size or 1.0
            shown[index] = shown.get(index, 0.0) + float(area)
    ranked = sorted(shown, key=lambda index: (-shown[index], index))
    likeness = {index: alike for index in ranked if (alike := _likeness(request, scene.images[index])) is not None}
    like = next(iter(likeness.values()), None)
    kept: dict[int, list[_Drawn]] = {}
    points = 0
    for index in islice((each for each, alike in likeness.items() if alike == like), MOST_IMAGES):
        drawn = [(mark, scene.polygons(mark, index)) for mark in scene.marks if scene.shows(mark, index)]
        points += sum(len(polygon) for _, polygons in drawn for polygon in polygons)
        if kept and points > MOST_POINTS:
            break
        kept[index] = drawn
    return {scene.images[index]: kept[index] for index in sorted(kept)}


def _likeness(request: EncodingRequest, image: _Image) -> tuple[object, ...] | None:
    """Return what images of one presentation have in common; None of one that can have none."""
    instance = request.source.instance(image[0])
    photometric = str(instance.get("PhotometricInterpretation") or "")
    rescale = rescale_of(instance, image[1])
    if photometric not in {"MONOCHROME1", "MONOCHROME2"} or rescale is None:
        return None
    return photometric, rescale


def _images(request: EncodingRequest, images: Sequence[_Image]) -> list[Dataset]:
    """Return a reference to each image; frames of one instance in one reference (PS3.3 Table 10-3)."""
    made: dict[str, Dataset] = {}
    for image in images:
        reference = image_item(request, image)
        known = made.setdefault(image[0], reference)
        if known is not reference:
            frames = known.ReferencedFrameNumber
            known.ReferencedFrameNumber = [*([frames] if isinstance(frames, int) else frames), image[1]]
    return list(made.values())


class _Area(NamedTuple):
    """How large an image is: pixels, and of a pixel (rows, columns) mm, or their proportion where nobody knows mm."""

    columns: int
    rows: int
    spacing: tuple[float, float] | None
    aspect: tuple[int, int]


def _areas(request: EncodingRequest, images: Sequence[_Image]) -> Iterator[Dataset]:
    """Yield the displayed area: all of each image (PS3.3 C.10.4); pixels are as large as the image says."""
    for area, members in _alike(images, [_area(request, image) for image in images]):
        made = item(
            ReferencedImageSequence=_images(request, members),
            DisplayedAreaTopLeftHandCorner=[1, 1],
            DisplayedAreaBottomRightHandCorner=[area.columns, area.rows],
            PresentationSizeMode="SCALE TO FIT",
        )
        if area.spacing is not None:
            made.PresentationPixelSpacing = [_decimal(each) for each in area.spacing]
        else:
            made.PresentationPixelAspectRatio = list(area.aspect)
        yield made


def _area(request: EncodingRequest, image: _Image) -> _Area:
    plane, geometry = request.source.image(*image), request.analysis.geometry
    spacing, aspect = sizes_of(plane) if geometry is None else (geometry.spacing[1:], (1, 1))
    return _Area(int(plane.Columns), int(plane.Rows), spacing, aspect)


def _windows(request: EncodingRequest, images: Sequence[_Image]) -> Iterator[Dataset]:
    """Yield the windows, or tables, that the images themselves have (PS3.3 C.11.8): without, they are not applied."""
    shown = [voi_of(request.source.instance(uid), frame) for uid, frame in images]
    for voi, members in _alike(images, shown):
        if voi is None:
            continue
        made = item(ReferencedImageSequence=_images(request, members))
        if isinstance(voi, Lookup):
            made.VOILUTSequence = [_table(voi)]
        else:
            made.WindowCenter, made.WindowWidth = _decimal(voi.centre), _decimal(voi.width)
            if voi.function != "LINEAR":
                made.VOILUTFunction = voi.function
        yield made


def _table(voi: Lookup) -> Dataset:
    made = Dataset()
    # Of both signs the words are the same; the VR says which the first value has.
    words = np.array([voi.entries % 2**16, voi.first % 2**16, voi.bits], np.uint16)
    signed = voi.first < 0
    made.add_new("LUTDescriptor", "SS" if signed else "US", (words.view(np.int16) if signed else words).tolist())
    made.add_new("LUTData", "OW", voi.data)
    return made


_Value = TypeVar("_Value", bound=Hashable)


def _alike(images: Sequence[_Image], values: Sequence[_Value]) -> list[tuple[_Value, list[_Image]]]:
    """Return the images of each value."""
    groups: dict[_Value, list[_Image]] = {}
    for image, value in zip(images, values, strict=True):
        groups.setdefault(value, []).append(image)
    return list(groups.items())


def _layers(request: EncodingRequest, marks: dict[_Image, list[_Drawn]]) -> Iterator[Dataset]:
    """Yield one layer for each mark that is shown, in its colour (PS3.3 C.10.7)."""
    shown = {id(mark) for drawn in marks.values() for mark, _ in drawn}
    for order, mark in enumerate((each for each in request.scene.marks if id(each) in shown), 1):
        yield item(
            GraphicLayer=layer_of(request, mark),
            GraphicLayerOrder=order,
            GraphicLayerRecommendedDisplayCIELabValue=list(CIELabColor.from_rgb(*mark.colour).value),
            GraphicLayerDescription=long_string(mark.name),
        )


def layer_of(request: EncodingRequest, mark: Mark) -> str:
    """Return the layer that a mark is drawn on (VR CS)."""
    return f"AI_{request.scene.marks.index(mark) + 1}"


def _annotation(
    request: EncodingRequest, image: _Image, mark: Mark, polygons: Sequence[NDArray[np.float64]]
) -> Dataset:
    """Return the outlines of one mark on one image and its name, in PIXEL: (column, row), 0 being the edge of the
    first pixel (PS3.3 C.10.5.1.2).
    """  # noqa: D205
    corner = polygons[0].min(axis=0)
    instance = request.source.instance(image[0])
    text = item(
        UnformattedTextValue=long_string(mark.name),
        AnchorPointAnnotationUnits="PIXEL",
        AnchorPoint=[
            float(np.clip(corner[1], 0, int(instance.Columns))),
            float(np.clip(corner[0], 0, int(instance.Rows))),
        ],
        AnchorPointVisibility="N",
    )
    return item(
        ReferencedImageSequence=[image_item(request, image)],
        GraphicLayer=layer_of(request, mark),
        GraphicObjectSequence=[
            _graphic(line)
            for polygon in polygons
            for line in lines_of(_within(polygon, instance), closed=len(polygon) > 1)
        ],
        TextObjectSequence=[text],
    )


def _within(polygon: NDArray[np.float64], instance: Dataset) -> NDArray[np.float64]:
    """Return a polygon whose corners lie on the image, as a box beyond its edge ends there."""
    clipped: NDArray[np.float64] = np.clip(polygon, 0, (int(instance.Rows), int(instance.Columns)))
    return clipped


def lines_of(polygon: NDArray[np.float64], *, closed: bool) -> list[NDArray[np.float64]]:
    """Return a closed polygon as polylines that each fit their attribute, one beginning where another ends."""
    points = np.concatenate([polygon, polygon[:1]]) if closed else polygon
    step = LONGEST_LINE - 1
    return [points[start : start + LONGEST_LINE] for start in range(0, max(len(points) - 1, 1), step)]


def _graphic(line: NDArray[np.float64]) -> Dataset:
    made = item(
        GraphicAnnotationUnits="PIXEL",
        GraphicDimensions=2,
        NumberOfGraphicPoints=len(line),
        GraphicData=[float(each) for each in line[:, ::-1].ravel()],
        GraphicType="POLYLINE" if len(line) > 1 else "POINT",
    )
    if len(line) > 1 and np.array_equal(line[0], line[-1]):
        made.GraphicFilled = "N"
    return made


def _decimal(value: float) -> str:
    """Return a number as VR DS can hold it."""
    return f"{value:.10g}"
