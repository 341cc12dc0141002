"""Segmentations of pictures: as readers that are not ours see them, as reports name them, and as the gate does."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
from dicom_factory import make_series
from other_objects import image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)
from reported_samples import NODULE, request_of
from result_samples import ANATOMY, KIDNEY, LEFT
from test_encoder_contract import identity_is_that_of_the_source, names_are_good

from meddaemon.domain.contract import ModelKind, SegmentContract
from meddaemon.domain.errors import InputRefused, ObjectRefusedByGate
from meddaemon.domain.outlet import Edition, ObjectKind, SegmentationForm
from meddaemon.domain.picture import PictureGrid, Pictures
from meddaemon.domain.result import Artefact, ArtefactKind, EncodedObject
from meddaemon.evaluation.masks import LiesNowhere, read_pictures, read_segmentation
from meddaemon.evaluation.pictures import places
from meddaemon.results import seg as seg_module
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPE = (9, 14)
"""Rows and columns: not equal, and a frame ends within a byte, so that some empty frames are left out."""
TWO = {
    "kind": ModelKind.SEGMENTATION,
    "segments": (
        SegmentContract(label=1, name="Kidney", category=ANATOMY, type=KIDNEY, colour=(1, 200, 3), laterality=LEFT),
        SegmentContract(label=2, name="Nodule", category=ANATOMY, type=NODULE, colour=(200, 2, 3)),
    ),
}
DATED = {"PatientName": "Doe^Jane", "StudyID": "S", "StudyDate": "20240102", "Modality": "DX"}


def written(folder: Path, *, count: int = 1, frames: int = 0, colour: bool = False, **attributes: Any) -> list[Path]:
    """Pictures of noise: `count` instances, of `frames` where there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (*([frames] if frames else []), *SHAPE, *([3] if colour else []))
    pixels = np.random.default_rng(5).integers(0, 255, shape, dtype=np.uint8)
    if frames and colour:
        return [tall(folder, pixels, DATED | attributes)]
    return [image(folder, pixels, name=str(n), **(DATED | attributes)) for n in range(1, count + 1)]


def tall(folder: Path, pixels: np.ndarray, said: dict[str, Any]) -> Path:
    """Several frames in colour, which are none of the images that others are tested with."""
    path = image(folder, pixels[0], name="1", **said)
    dataset = dcmread(path)
    dataset.NumberOfFrames, dataset.PixelData = len(pixels), pixels.tobytes()
    dataset.save_as(path)
    return path


def localizers(folder: Path) -> list[Path]:
    """Slices across each other, each of which says where it lies."""

    def turn(plane: int, dataset: Dataset) -> None:
        if plane:
            dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    return make_series(folder, planes=2, rows=SHAPE[0], columns=SHAPE[1], modality="CT", edit=turn)


MULTI = {"SOPClassUID": UltrasoundMultiFrameImageStorage, "Modality": "US"}
KINDS: dict[str, Callable[[Path], list[Path]]] = {
    "one radiograph": lambda folder: written(folder, SOPClassUID=ComputedRadiographyImageStorage, Modality="CR"),
    "two, darker where more": lambda folder: written(
        folder, count=2, PhotometricInterpretation="MONOCHROME1", PatientOrientation=["L", "F"]
    ),
    "pixels that are higher than wide": lambda folder: written(folder, ImagerPixelSpacing=[0.3, 0.2]),
    "calibrated": lambda folder: written(folder, PixelSpacing=[0.2, 0.2], ImagerPixelSpacing=[0.25, 0.25]),
    "mammograms of one frame of reference": lambda folder: written(
        folder,
        count=2,
        SOPClassUID=DigitalMammographyXRayImageStorageForPresentation,
        Modality="MG",
        FrameOfReferenceUID="1.2.7",
        PositionReferenceIndicator="",
    ),
    "a screen in colour": lambda folder: written(
        folder, colour=True, SOPClassUID=SecondaryCaptureImageStorage, Modality="OT"
    ),
    "frames of ultrasound": lambda folder: written(
        folder, frames=3, colour=True, PhotometricInterpretation="YBR_FULL", PixelAspectRatio=[4, 5], **MULTI
    ),
    "frames of two runs": lambda folder: written(
        folder, count=2, frames=2, SOPClassUID=XRayAngiographicImageStorage, Modality="XA", FrameOfReferenceUID="1.2.7"
    ),
    "with loss": lambda folder: written(
        folder, LossyImageCompression="01", LossyImageCompressionRatio="12.5", LossyImageCompressionMethod="ISO_10918_1"
    ),
    "across each other": localizers,
}


ONLY_SEG = frozenset({ObjectKind.SEG})
WITH_REPORTS = frozenset({ObjectKind.SEG, ObjectKind.SR})
WITH_LABEL_MAP = tuple(Edition(segmentation=form) for form in SegmentationForm)


def sources_in(paths: Sequence[Path]) -> list[tuple[str, int]]:
    headers = [dcmread(path, stop_before_pixels=True) for path in paths]
    return [(str(each.SOPInstanceUID), n + 1) for each in headers for n in range(int(each.get("NumberOfFrames") or 1))]


def drawn_on(paths: Sequence[Path], *, overlap: bool = False, empty: bool = False, **changes: Any) -> EncodingRequest:
    """A kidney on every picture, and a nodule on the last; `overlap`: the nodule lies in the kidney."""
    sources = sources_in(paths)
    masks = np.zeros((2, len(sources), *SHAPE), np.bool_)
    if not empty:
        for number in range(len(sources)):
            masks[0, number, 1 : 5 + number, 2:9] = True
        masks[1, -1, 2 if overlap else 8, 3:12] = True
    drawn = {"masks": masks} if overlap else {"labels": (masks[0] + 2 * masks[1]).astype(np.uint8)}
    grid = PictureGrid(shape=masks.shape[1:], sources=tuple(sources))
    said = {**drawn, "pictures": grid, "artefacts": changes.pop("artefacts", ())}
    return request_of(paths, TWO, said, **({"kinds": ONLY_SEG} | changes))


def read(request: EncodingRequest) -> dict[str, Dataset]:
    return {each.name: dcmread(BytesIO(each.content)) for each in encode(request)}


def shown_in(dataset: Dataset) -> dict[tuple[int, str, int], np.ndarray]:
    """Each frame by its segment (0: all of them) and the image that it names, as pydicom reads it."""
    frames = dataset.pixel_array.reshape(-1, *SHAPE)
    found = {}
    for item, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, frames, strict=True):
        ((named,),) = ([*each.SourceImageSequence] for each in item.DerivationImageSequence)
        segment = item.SegmentIdentificationSequence[0] if "SegmentIdentificationSequence" in item else Dataset()
        key = (int(segment.get("ReferencedSegmentNumber", 0)), str(named.ReferencedSOPInstanceUID))
        found[*key, int(named.get("ReferencedFrameNumber", 1))] = pixels
    assert len(found) == len(frames)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_is_what_was_drawn_on_the_image_that_it_names(kind: str, tmp_path: Path) -> None:
    request = drawn_on(KINDS[kind](tmp_path), editions=WITH_LABEL_MAP)
    objects, drawing = read(request), request.analysis.drawing
    binary, labelled = (shown_in(objects[f"SEG {form}"]) for form in ("binary", "labelmap"))
    for place, (uid, frame) in enumerate(request.analysis.images):
        for number in (1, 2):
            shown = binary.pop((number, uid, frame), np.zeros(SHAPE))
            np.testing.assert_array_equal(shown, drawing.mask(number, place))
        np.testing.assert_array_equal(labelled.pop((0, uid, frame)), drawing.numbers(place))
    assert binary == labelled == {}
    multi = {str(each.SOPInstanceUID) for each in request.source.instances if int(each.get("NumberOfFrames") or 1) > 1}
    for item in objects["SEG binary"].PerFrameFunctionalGroupsSequence:
        named = item.DerivationImageSequence[0].SourceImageSequence[0]
        assert ("ReferencedFrameNumber" in named) == (named.ReferencedSOPInstanceUID in multi)
        assert named.ReferencedSOPClassUID == request.source.instance(named.ReferencedSOPInstanceUID).SOPClassUID


@pytest.mark.parametrize("kind", ["two, darker where more", "frames of ultrasound", "frames of two runs"])
def test_highdicom_finds_what_is_drawn_on_an_image(kind: str, tmp_path: Path) -> None:
    request = drawn_on(KINDS[kind](tmp_path))
    (binary,) = encode(request)
    segmentation = hd.seg.segread(BytesIO(binary.content))
    for uid in request.source.sop_instance_uids:
        places = {frame: place for place, (it, frame) in enumerate(request.analysis.images) if it == uid}
        found = (
            segmentation.get_pixels_by_source_frame(uid, list(places), assert_missing_frames_are_empty=True)
            if len(places) > 1
            else segmentation.get_pixels_by_source_instance([uid], assert_missing_frames_are_empty=True)
        )
        for frame, place in zip(found, places.values(), strict=True):
            for number in (1, 2):
                np.testing.assert_array_equal(frame[..., number - 1], request.analysis.drawing.mask(number, place))


SAID: dict[str, dict[str, Any]] = {
    "one radiograph": {},
    "two, darker where more": {"PatientOrientation": ["L", "F"]},
    "pixels that are higher than wide": {"PixelAspectRatio": [3, 2]},
    "calibrated": {},
    "mammograms of one frame of reference": {"FrameOfReferenceUID": "1.2.7", "PositionReferenceIndicator": ""},
    "frames of ultrasound": {"PixelAspectRatio": [4, 5]},
    "frames of two runs": {"FrameOfReferenceUID": "1.2.7", "PositionReferenceIndicator": ""},
    "with loss": {"LossyImageCompression": "01", "LossyImageCompressionMethod": "ISO_10918_1"},
}


@pytest.mark.parametrize("kind", SAID)
def test_what_lies_nowhere_is_not_said_to_lie_anywhere(kind: str, tmp_path: Path) -> None:
    """PS3.3 A.51.5: without a place there is no Pixel Measures either, whatever the image says of its pixels."""
    for dataset in read(drawn_on(KINDS[kind](tmp_path), editions=WITH_LABEL_MAP)).values():
        wanted = {"PatientOrientation": "", "LossyImageCompression": "00"} | SAID[kind]
        assert {keyword: dataset.get(keyword) for keyword in wanted} == wanted
        for keyword in {"FrameOfReferenceUID", "PixelAspectRatio"} - wanted.keys():
            assert keyword not in dataset
        everything = {element.keyword for element in dataset.iterall()}
        assert not everything & {"PixelSpacing", "ImagerPixelSpacing", "ImagePositionPatient", "SliceThickness"}


def test_pictures_that_say_where_they_lie_are_drawn_on_there(tmp_path: Path) -> None:
    paths = KINDS["across each other"](tmp_path)
    dataset = read(drawn_on(paths))["SEG binary"]
    images = {str(each.SOPInstanceUID): each for each in map(dcmread, paths)}
    assert {dataset.FrameOfReferenceUID} == {each.FrameOfReferenceUID for each in images.values()}
    for item in dataset.PerFrameFunctionalGroupsSequence:
        own = images[item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert item.PlanePositionSequence[0].ImagePositionPatient == own.ImagePositionPatient
        assert item.PlaneOrientationSequence[0].ImageOrientationPatient == own.ImageOrientationPatient
        assert item.PixelMeasuresSequence[0].PixelSpacing == own.PixelSpacing
    assert len({str(item.PlaneOrientationSequence) for item in dataset.PerFrameFunctionalGroupsSequence}) == 2


def test_frames_are_counted_by_segment_and_by_picture(tmp_path: Path) -> None:
    dataset = read(drawn_on(KINDS["frames of two runs"](tmp_path)))["SEG binary"]
    assert dataset.NumberOfFrames == 8
    counted = [
        (list(item.FrameContentSequence[0].DimensionIndexValues), item.FrameContentSequence[0].FrameLabel)
        for item in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert counted == [([number, place], f"Image {place}") for number in (1, 2) for place in (1, 2, 3, 4)]
    pointers = [(each.DimensionIndexPointer, each.FunctionalGroupPointer) for each in dataset.DimensionIndexSequence]
    assert pointers == [(0x0062000B, 0x0062000A), (0x00209453, 0x00209111)]


def test_segments_that_overlap_have_frames_each_and_no_label_map(tmp_path: Path) -> None:
    request = drawn_on(KINDS["two, darker where more"](tmp_path), overlap=True, editions=WITH_LABEL_MAP)
    objects = read(request)
    assert list(objects) == ["SEG"]
    assert objects["SEG"].SegmentsOverlap == "YES"
    uid, frame = request.analysis.images[1]
    shown = shown_in(objects["SEG"])
    assert (shown[1, uid, frame] & shown[2, uid, frame]).sum() == 6


def test_probabilities_of_pictures_are_one_object(tmp_path: Path) -> None:
    paths = KINDS["frames of ultrasound"](tmp_path)
    ramp = np.linspace(0, 1, 126, dtype=np.float32).reshape(SHAPE)
    kept = [
        Artefact(kind=ArtefactKind.PROBABILITY, of="Nodule", values=ramp / n, source=source)
        for n, source in enumerate(sources_in(paths), 1)
    ]
    only = frozenset({ObjectKind.PROBABILITY})
    (dataset,) = read(drawn_on(paths, artefacts=tuple(kept), kinds=only)).values()
    assert dataset.SegmentationFractionalType == "PROBABILITY"
    shown = shown_in(dataset)
    for each in kept:
        assert each.source is not None
        np.testing.assert_array_equal(shown[1, *each.source], np.rint(each.values * 255))
    # Of one that was kept on some pictures only there is none: it would say that it is nowhere on the others.
    assert read(drawn_on(paths, artefacts=tuple(kept[1:]), kinds=only)) == {}


def test_empty_frames_are_left_out_where_there_would_be_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = KINDS["frames of two runs"](tmp_path)
    monkeypatch.setattr(seg_module, "MOST_FRAMES", 7)
    objects = read(drawn_on(paths, kinds=WITH_REPORTS))
    assert objects["SEG binary"].NumberOfFrames == 5
    groups_name_their_frames(objects)
    assert read(drawn_on(paths, empty=True))["SEG binary"].NumberOfFrames == 8


def groups_name_their_frames(objects: dict[str, Dataset]) -> None:
    """The area that a group says is that of the frame that it names, and the image the one that this is of."""
    report, shown = objects["SR areas binary/3d"], objects["SEG binary"]
    frames = shown.pixel_array.reshape(-1, *SHAPE)
    groups = hd.sr.Comprehensive3DSR.from_dataset(report).content.get_planar_roi_measurement_groups()
    assert len(groups) == 5
    for group in groups:
        reference, source = (each.ReferencedSOPSequence[0] for each in group.referenced_segmentation_frame)
        assert "ReferencedSegmentNumber" not in reference
        number = int(reference.ReferencedFrameNumber)
        item = shown.PerFrameFunctionalGroupsSequence[number - 1]
        named = item.DerivationImageSequence[0].SourceImageSequence[0]
        for keyword in ("ReferencedSOPInstanceUID", "ReferencedFrameNumber"):
            assert source.get(keyword) == named.get(keyword)
        (area,) = group.get_measurements()
        assert area.value == frames[number - 1].sum()


def test_reports_name_the_frame_that_shows_an_area(tmp_path: Path) -> None:
    """What is not on a picture is told of the picture, as what was looked for and not found always is."""
    paths = KINDS["frames of two runs"](tmp_path)
    objects = read(drawn_on(paths, editions=WITH_LABEL_MAP, kinds=WITH_REPORTS))
    groups_name_their_frames(objects)
    absent = hd.sr.Comprehensive3DSR.from_dataset(objects["SR classes 3d"]).content.get_image_measurement_groups()
    about = [each.source_images[0].ReferencedSOPSequence[0] for each in absent]
    assert [(each.ReferencedSOPInstanceUID, each.ReferencedFrameNumber) for each in about] == sources_in(paths)[:3]
    labelled = hd.sr.Comprehensive3DSR.from_dataset(objects["SR areas labelmap/3d"]).content
    found = labelled.get_planar_roi_measurement_groups()
    said = [group.referenced_segmentation_frame[0].ReferencedSOPSequence[0] for group in found]
    assert [each.ReferencedSegmentNumber for each in said] == [1, 1, 1, 1, 2]
    assert not any("ReferencedFrameNumber" in each for each in said)


def test_every_other_object_shows_what_it_showed(tmp_path: Path) -> None:
    """Outlines and summary do not depend on the Segmentation; those who read none get the same as ever."""
    paths = KINDS["two, darker where more"](tmp_path)
    request = drawn_on(paths, kinds=frozenset(ObjectKind))
    pixels = np.stack([dcmread(path).pixel_array for path in paths]).astype(np.float32)
    shown = Pictures(frames=pixels, sources=request.analysis.images, series_instance_uid="1.2.5")
    objects = list(encode(replace(request, shown=shown)))
    assert {each.kind for each in objects} == set(ObjectKind) - {
        ObjectKind.PM,
        ObjectKind.PROBABILITY,
        ObjectKind.RTSTRUCT,
    }
    names_are_good(objects)
    identity_is_that_of_the_source(objects, request)
    nowhere = replace(request, shown=shown, analysis=replace(request.analysis, pictures=None))
    before = {each.name: each.content for each in encode(nowhere)}
    assert "SEG binary" not in before
    assert [each.content == before[each.name] for each in objects if each.name in {"PR", "SC", "PDF"}] == [True] * 3
    (presented,) = (dcmread(BytesIO(each.content)) for each in objects if each.kind == ObjectKind.PR)
    assert len(presented.GraphicAnnotationSequence) == 3
    assert {each.name: each.content for each in objects} == {
        each.name: each.content for each in encode(replace(request, shown=shown))
    }


def test_what_is_empty_everywhere_has_a_segmentation_and_no_area(tmp_path: Path) -> None:
    objects = read(drawn_on(KINDS["one radiograph"](tmp_path), empty=True, kinds=WITH_REPORTS))
    assert not objects["SEG binary"].pixel_array.any()
    assert list(objects) == ["SEG binary", "SR classes 3d"]


@pytest.mark.parametrize("source", [("1.2.3.1", 4), ("1.2.3.9", 1)], ids=["frame", "instance"])
def test_a_picture_that_is_not_there_is_refused(source: tuple[str, int], tmp_path: Path) -> None:
    request = drawn_on(written(tmp_path, frames=3, **MULTI))
    grid = PictureGrid(shape=(3, *SHAPE), sources=(("1.2.3.1", 1), ("1.2.3.1", 2), source))
    with pytest.raises(InputRefused, match="picture"):
        encode(replace(request, analysis=replace(request.analysis, pictures=grid)))


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    request = drawn_on(written(tmp_path))
    labels = np.zeros((1, *SHAPE[::-1]), np.uint8)
    grid = PictureGrid(shape=labels.shape, sources=(("1.2.3.1", 1),))
    with pytest.raises(InputRefused, match="9 x 14 pixels"):
        encode(replace(request, analysis=replace(request.analysis, pictures=grid, labels=labels)))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> EncodingRequest:
    folder = tmp_path_factory.mktemp("pictures")
    paths = written(folder, frames=4, PatientOrientation=["L", "F"], ImagerPixelSpacing=[0.3, 0.2], **MULTI)
    return drawn_on(paths, kinds=WITH_REPORTS, editions=(Edition(), Edition(segmentation=SegmentationForm.LABELMAP)))


@pytest.fixture(scope="module")
def passed(asked: EncodingRequest) -> dict[str, EncodedObject]:
    return {each.name: each for each in encode(asked)}


def frame(index: int, change: Callable[[Dataset], object]) -> Callable[[Dataset], object]:
    return lambda dataset: change(dataset.PerFrameFunctionalGroupsSequence[index])


def source(keyword: str, value: Any) -> Callable[[Dataset], object]:
    def change(item: Dataset) -> None:
        named = item.DerivationImageSequence[0].SourceImageSequence[0]
        if value is None:
            del named[keyword]
        else:
            setattr(named, keyword, value)

    return change


def twice(item: Dataset) -> None:
    named = item.DerivationImageSequence[0]
    named.SourceImageSequence = [named.SourceImageSequence[0]] * 2


def place(item: Dataset) -> None:
    item.PixelMeasuresSequence = [Dataset()]
    item.PixelMeasuresSequence[0].PixelSpacing = [0.3, 0.2]


def to(keyword: str, value: Any) -> Callable[[Dataset], object]:
    return lambda dataset: setattr(dataset, keyword, value)


def without(keyword: str) -> Callable[[Dataset], object]:
    return lambda dataset: dataset.pop(keyword)


def counted(value: Any) -> Callable[[Dataset], object]:
    return lambda item: setattr(item.FrameContentSequence[0], "DimensionIndexValues", value)


def swapped(dataset: Dataset) -> None:
    one, other = dataset.PerFrameFunctionalGroupsSequence[:2]
    one.DerivationImageSequence, other.DerivationImageSequence = (
        other.DerivationImageSequence,
        one.DerivationImageSequence,
    )


def a_pixel_more(dataset: Dataset) -> None:
    content = bytearray(dataset.PixelData)
    content[0] |= 1
    dataset.PixelData = bytes(content)


def counted_by_position(dataset: Dataset) -> None:
    dataset.DimensionIndexSequence[1].DimensionIndexPointer = 0x00200032


def refer(keyword: str, value: Any, name: str = "121214") -> Callable[[Dataset], object]:
    """Change what the first group of a report refers to; the imaging measurements are the last container."""

    def change(dataset: Dataset) -> None:
        (item,) = (
            each
            for each in dataset.ContentSequence[-1].ContentSequence[0].ContentSequence
            if each.ConceptNameCodeSequence[0].CodeValue == name
        )
        setattr(item.ReferencedSOPSequence[0], keyword, value)

    return change


OF_FRAMES: list[tuple[str, Callable[[Dataset], object], str]] = [
    ("another instance", frame(0, source("ReferencedSOPInstanceUID", "1.2.3.77")), "which is no picture"),
    ("a frame that is not there", frame(0, source("ReferencedFrameNumber", 9)), "which is no picture"),
    ("all frames", frame(2, source("ReferencedFrameNumber", None)), "names no frame of"),
    ("two images", frame(0, twice), "among 2, which is no picture"),
    ("each other's images", swapped, "does not show"),
    ("a spacing", frame(1, place), "frame 2 lies in the patient, unlike its image"),
    ("a frame of reference", to("FrameOfReferenceUID", "1.2.7"), "FrameOfReferenceUID is not that of the pictures"),
    ("the other way round", to("PatientOrientation", ["R", "F"]), "PatientOrientation is not that of the pictures"),
    ("square pixels", without("PixelAspectRatio"), "PixelAspectRatio is not that of the pictures"),
    ("another size", lambda d: (to("Rows", 14)(d), to("Columns", 9)(d)), "grid 14 x 9 is not"),
    ("no label", frame(0, lambda item: item.FrameContentSequence[0].pop("FrameLabel")), "has not the label"),
    ("another study", to("StudyInstanceUID", "1.2.44"), "StudyInstanceUID"),
    ("another patient", to("PatientID", "SOMEBODY"), "PatientID"),
    ("no series", lambda d: setattr(d.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2.8"), "Referenced Series"),
]
OF_BINARY: list[tuple[str, Callable[[Dataset], object], str]] = [
    ("a pixel more", a_pixel_more, "does not show what is drawn of segment 1 on plane 0"),
    ("a repeated index", frame(1, counted([1, 1])), "share the dimension index"),
    ("indices of each other", frame(1, counted([1, 7])), "picture indices do not follow the pictures"),
    ("counted by position", counted_by_position, "are not ['ReferencedSegmentNumber', 'FrameLabel']"),
]
OF_REPORTS: list[tuple[str, Callable[[Dataset], object], str]] = [
    ("another frame", refer("ReferencedFrameNumber", 2), "refers to frame 2, which does not show segment 1"),
    ("a frame beyond", refer("ReferencedFrameNumber", 99), "refers to frame 99 of 8"),
    ("both", refer("ReferencedSegmentNumber", 1), "not to one of both"),
    ("another image", refer("ReferencedFrameNumber", 3, "121233"), "lies on frame 3, not 1"),
    ("another object", refer("ReferencedSOPInstanceUID", "1.2.3.4", "121214"), "does not refer to the SEG"),
]


@pytest.mark.parametrize(
    ("name", "mutate", "says"),
    [
        pytest.param(name, mutate, says, id=f"{name}: {fault}")
        for name, faults in (
            ("SEG binary", [*OF_FRAMES, *OF_BINARY]),
            ("SEG labelmap", [OF_FRAMES[0], OF_FRAMES[4], OF_FRAMES[5]]),
            ("SR areas binary/3d", OF_REPORTS),
            (
                "SR areas labelmap/3d",
                [("another segment", refer("ReferencedSegmentNumber", 2), "refers to segment 2, not 1")],
            ),
        )
        for fault, mutate, says in faults
    ],
)
def test_a_fault_is_refused(
    asked: EncodingRequest,
    passed: dict[str, EncodedObject],
    name: str,
    mutate: Callable[[Dataset], object],
    says: str,
) -> None:
    dataset = dcmread(BytesIO(passed[name].content))
    mutate(dataset)
    file = BytesIO()
    dataset.save_as(file)
    seen = [each for each in passed.values() if each.kind == ObjectKind.SEG and each.name != name]
    with pytest.raises(ObjectRefusedByGate) as caught:
        check([replace(passed[name], content=file.getvalue()), *(seen if name.startswith("SR") else [])], asked)
    assert says in str(caught.value)


def test_pixels_are_those_of_the_rows(asked: EncodingRequest, passed: dict[str, EncodedObject]) -> None:
    check(list(passed.values()), asked)
    first, *others = asked.analysis.segments
    told = replace(asked.analysis, segments=(replace(first, voxel_count=first.voxel_count + 1), *others))
    with pytest.raises(ObjectRefusedByGate, match=f"its row {first.voxel_count + 1}"):
        check([passed["SEG binary"]], replace(asked, analysis=told))


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_reference_it_is_read_as_it_was_drawn(tmp_path: Path, kind: str) -> None:
    paths = KINDS[kind](tmp_path)
    request = drawn_on(paths, editions=WITH_LABEL_MAP)
    images = sources_in(paths)
    for each in encode(request):
        (tmp_path / "seg.dcm").write_bytes(each.content)
        found = read_pictures(tmp_path / "seg.dcm")
        of_its = places(images, found)
        assert list(of_its) == images
        for number, source in enumerate(images):
            for segment in (1, 2):
                expected = request.analysis.drawing.mask(segment, number)
                assert (found.mask([segment], of_its[source]) == expected).all()


def test_in_space_it_is_refused_by_name(tmp_path: Path) -> None:
    (seg,) = encode(drawn_on(KINDS["one radiograph"](tmp_path)))
    (tmp_path / "seg.dcm").write_bytes(seg.content)
    with pytest.raises(LiesNowhere, match="pictures that lie nowhere"):
        read_segmentation(tmp_path / "seg.dcm")


BEYOND_THEM = (
    # It asks for this macro in the shared groups and in those of the frames, and refuses it in both.
    ("SEG", "pixelmed", "DerivationImageSequence/: SharedFunctionalGroupsSequence/Item"),
    ("SEG", "pixelmed", "PatientOrientation: Incorrect value multiplicity - got 2 but expected 1-1"),
    ("SEG", "pixelmed", "GeneralSeriesModule/Laterality"),
    # They work in space.
    ("SEG", "dcmqi", "Failed to get image directions|no volume written"),
    ("SEG", "ohif", "reading 'ImageOrientationPatient'"),
)
"""What readers and validators are known not to do with what lies nowhere: object, tool, message."""


@pytest.mark.peer
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_validators_find_nothing_but_their_own_limits(tmp_path: Path) -> None:
    script = os.environ.get("MEDDAEMON_VALIDATORS")
    if not script:
        pytest.skip("MEDDAEMON_VALIDATORS does not name a validate.sh")
    folder, messages = tmp_path / "together", tmp_path / "messages"
    for kind in ("two, darker where more", "frames of two runs"):
        paths = KINDS[kind](folder / kind)
        for each in encode(drawn_on(paths, kinds=WITH_REPORTS)):
            (folder / kind / f"{kind} {each.name.replace('/', ' ')}.dcm".replace(" ", "_")).write_bytes(each.content)
    subprocess.run(["bash", script, str(folder), str(messages)], capture_output=True, check=False)
    said = [each for each in messages.glob("*.txt") if "_SEG" in each.name or "_SR" in each.name]
    assert len(said) > 20
    for each in said:
        tool = each.name.split(".")[-2]
        found = re.findall(r"^\s*(?:Error|ERROR|FATAL|E:|F:).*", each.read_text(errors="replace"), re.MULTILINE)
        known = [text for name, by, text in BEYOND_THEM if f"_{name}" in each.name and by == tool]
        assert [line for line in found if not any(re.search(text, line) for text in known)] == [], each.name
