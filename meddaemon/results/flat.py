"""What a Segmentation says of pictures, which may lie nowhere in the patient (PS3.3 A.51.5.1).

Without a Frame of Reference each of its pixels is that of an image which its frame names, and no macro says where it
lies or how large it is: Pixel Measures are for what lies in the patient, and what a radiograph says of its pixels is
said at its detector. Pictures that have a Frame of Reference share it with the Segmentation; where each also has a
place in it, so has its frame.
"""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import SecondaryCaptureImageStorage

from meddaemon.domain.codes import Code
from meddaemon.domain.errors import InputRefused
from meddaemon.results.frames import Plane, encoded
from meddaemon.results.request import EncodingRequest
from meddaemon.results.skeleton import SOURCE_IMAGE, code_item, image_item, item
from meddaemon.results.source import TYPE_2, SourceSeries, frames_of, is_multi_frame

SEGMENTED = Code(value="113076", scheme="DCM", meaning="Segmentation")
_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
"""What says where a picture lies, and of how many numbers."""
_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio")
"""What says how high and wide a pixel is, wherever that is measured."""
_FINEST = 1000
"""The proportions of a pixel are written in whole numbers up to this."""

Image = tuple[str, int]
"""SOP Instance UID and frame, from 1."""


def stand_in(request: EncodingRequest) -> Dataset:
    """Return one image to make a header from: highdicom takes a single one of those that lie nowhere.

    Raises `InputRefused` when a picture is no frame of the source, or not of its size.
    """
    for each in request.analysis.images:
        _refuse_another(request, each)
    instances = request.source.instances
    image = Dataset()
    for keyword in (*TYPE_2, "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        image.add(instances[0][keyword])
    image.SOPClassUID = SecondaryCaptureImageStorage
    image.Modality = request.source.modality
    image.Rows, image.Columns = instances[0].Rows, instances[0].Columns
    return image


def complete(seg: Dataset, request: EncodingRequest) -> None:
    """Say of a Segmentation of the stand-in which pictures it is of, how they lie, and by what frames are counted."""
    source = request.source
    for keyword, value in series_attributes(request).items():
        setattr(seg, keyword, value)
    uids = list(dict.fromkeys(uid for uid, _ in request.analysis.images))
    classes = {uid: str(source.instance(uid).SOPClassUID) for uid in uids}
    seg.SourceImageSequence, named = (
        [item(ReferencedSOPClassUID=classes[uid], ReferencedSOPInstanceUID=uid) for uid in uids] for _ in range(2)
    )
    seg.ReferencedSeriesSequence = [
        item(SeriesInstanceUID=source.series_instance_uid, ReferencedInstanceSequence=named)
    ]
    # What has no position has a label to be counted by (PS3.3 C.7.6.16.2.2).
    pointers = [tag_for_keyword("FrameLabel"), tag_for_keyword("FrameContentSequence")]
    if [each.DimensionIndexPointer for each in seg.DimensionIndexSequence] != pointers[:1]:
        seg.DimensionIndexSequence = [
            *seg.DimensionIndexSequence,
            item(
                DimensionIndexPointer=pointers[0],
                FunctionalGroupPointer=pointers[1],
                DimensionDescriptionLabel="Frame Label",
            ),
        ]


def series_attributes(request: EncodingRequest) -> Mapping[str, object]:
    """Return what pictures have in common that their Segmentation says, too."""
    source = request.source
    said: dict[str, object] = {"PatientOrientation": _orientation(request)}
    if source.frame_of_reference_uid:
        said["FrameOfReferenceUID"] = source.frame_of_reference_uid
        said["PositionReferenceIndicator"] = str(source.instances[0].get("PositionReferenceIndicator") or "")
    ratio = _aspect(request)
    if ratio != (1, 1) and not lie_somewhere(request):
        said["PixelAspectRatio"] = list(ratio)
    return said


def planes_of(request: EncodingRequest) -> list[Plane]:
    """Return what describes the frames of each picture, in their order."""
    placed = lie_somewhere(request)
    planes = []
    for number, image in enumerate(request.analysis.images, 1):
        shown = image_item(request, image)
        shown.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
        shown.SpatialLocationsPreserved = "YES"
        derived = item(DerivationCodeSequence=[code_item(SEGMENTED)], SourceImageSequence=[shown])
        planes.append(
            Plane(
                source=image,
                derivation=encoded(item(DerivationImageSequence=[derived])),
                content=encoded(item(FrameLabel=f"Image {number}")),
                position=encoded(_place(request, image)) if placed else b"",
            )
        )
    return planes


def lie_somewhere(request: EncodingRequest) -> bool:
    """Return whether every picture says where it lies in the Frame of Reference of all of them."""
    source, images = request.source, request.analysis.images
    return bool(source.frame_of_reference_uid) and all(_lies_somewhere(source, image) for image in images)


def _lies_somewhere(source: SourceSeries, image: Image) -> bool:
    instance = source.instance(image[0])
    if frames_of(instance) > 1 and not is_multi_frame(instance):
        return False  # what is said once cannot be the place of each
    plane = source.image(*image)
    return all(len(_numbers(plane, keyword)) == count for keyword, count in _PLACE.items())


def _place(request: EncodingRequest, image: Image) -> Dataset:
    plane = request.source.image(*image)
    measures = item(PixelSpacing=plane.PixelSpacing)
    if _numbers(plane, "SliceThickness"):
        measures.SliceThickness = plane.SliceThickness
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=plane.ImagePositionPatient)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=plane.ImageOrientationPatient)],
        PixelMeasuresSequence=[measures],
    )


def _orientation(request: EncodingRequest) -> list[str]:
    """Return Patient Orientation where all pictures have the same one (type 2C: empty where nobody knows)."""
    said = {_strings(each.get("PatientOrientation")) for each in request.source.instances}
    only = said.pop()
    sound = not said and len(only) == 2 and all(each.isascii() and each.isupper() for each in only)
    return list(only) if sound else []


def _aspect(request: EncodingRequest) -> tuple[int, int]:
    """Return the height and width of pixels in proportion, where they are not square and all pictures say the same.

    A Segmentation that says no spacing must say that (PS3.3 Table C.7-11c, Pixel Aspect Ratio).
    """
    grid = request.analysis.pictures
    if grid is not None and grid.spacing_mm is not None:
        said: set[tuple[float, float]] = {grid.spacing_mm}
    else:
        said = {spacing or aspect for spacing, aspect in map(sizes_of, request.source.instances)}
    row, column = said.pop()
    if said or not 1 / _FINEST <= row / column <= _FINEST:
        return 1, 1
    return Fraction(row / column).limit_denominator(_FINEST).as_integer_ratio()


def sizes_of(plane: Dataset) -> tuple[tuple[float, float] | None, tuple[int, int]]:
    """Return the distance of (rows, columns) in mm that an image says, None where it says none that can be.

    And how high and wide its pixels are in proportion, which counts without a distance.
    """
    found = {keyword: values for keyword in _SIZES if len(values := _numbers(plane, keyword)) == 2 and min(values) > 0}
    row, column = found.pop("PixelAspectRatio", (1, 1))
    spacing = next(((high, wide) for high, wide in found.values()), None)
    return spacing, (int(row), int(column))


def _strings(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else ()


def _numbers(instance: Dataset, keyword: str) -> tuple[float, ...]:
    """Return what an attribute says, if all of it are numbers."""
    value = instance.get(keyword)
    values = tuple(map(float, value if isinstance(value, MultiValue) else [] if value is None else [value]))
    return values if all(map(math.isfinite, values)) else ()


def _refuse_another(request: EncodingRequest, image: Image) -> None:
    """Refuse to draw on what is no frame of the source, or not of its size."""
    uid, frame = image
    shape = request.analysis.drawing.shape[1:]
    try:
        instance = request.source.instance(uid)
    except KeyError as error:
        raise InputRefused("frames_differ", "is a picture, but no source instance", sop_instance_uid=uid) from error
    if not 1 <= frame <= (frames := frames_of(instance)):
        raise InputRefused("frames_differ", f"frame {frame} of {frames} is a picture", sop_instance_uid=uid)
    if (size := (instance.get("Rows"), instance.get("Columns"))) != shape:
        message = f"has {size[0]} x {size[1]} pixels, what is drawn on it {shape[0]} x {shape[1]}"
        raise InputRefused("sizes_differ", message, sop_instance_uid=uid)
