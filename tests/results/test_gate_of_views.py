"""The gate refuses each fault of what is made for people, old viewers and planning systems."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from sources import SOURCES
from test_gate import drop_items, edit, mutated, put

from meddaemon.domain.errors import ObjectRefusedByGate
from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check

Mutation = Callable[[Dataset], object]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> EncodingRequest:
    return SOURCES["axial CT"](tmp_path_factory.mktemp("series"))


@pytest.fixture(scope="module")
def made(asked: EncodingRequest) -> tuple[EncodedObject, ...]:
    return encode(asked)


def of(value: Callable[[Dataset], Any], keyword: str, to: Any) -> Mutation:
    """A mutation of an attribute of some item."""
    return lambda dataset: put(value(dataset), keyword, to)


def darker(dataset: Dataset) -> None:
    pixels = bytearray(dataset.PixelData)
    pixels[300_000] ^= 0x40
    dataset.PixelData = bytes(pixels)


def without_colour(dataset: Dataset) -> None:
    pixels = np.frombuffer(dataset.PixelData, np.uint8).reshape(-1, 3).mean(axis=1).astype(np.uint8)
    dataset.PixelData = np.repeat(pixels, 3).tobytes()


def first_graphic(dataset: Dataset) -> Dataset:
    return dataset.GraphicAnnotationSequence[0].GraphicObjectSequence[0]


def moved(by: float, start: int = 0) -> Mutation:
    def move(dataset: Dataset) -> None:
        graphic = first_graphic(dataset)
        graphic.GraphicData = [v + by if n % 2 == start else v for n, v in enumerate(graphic.GraphicData)]

    return move


def first_contour(dataset: Dataset) -> Dataset:
    return dataset.ROIContourSequence[0].ContourSequence[0]


def contour_moved(axis: int, by: float) -> Mutation:
    def move(dataset: Dataset) -> None:
        contour = first_contour(dataset)
        contour.ContourData = [
            f"{float(v) + by:.3f}" if n % 3 == axis else str(v) for n, v in enumerate(contour.ContourData)
        ]

    return move


def swap_maps(dataset: Dataset) -> None:
    one, other = dataset.PerFrameFunctionalGroupsSequence[:2]
    one.DerivationImageSequence, other.DerivationImageSequence = (
        other.DerivationImageSequence,
        one.DerivationImageSequence,
    )


def upside_down(dataset: Dataset) -> None:
    """Right by the positions, and not as readers read it."""
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    values = np.frombuffer(dataset.FloatPixelData, "<f4").reshape(len(frames), -1)
    dataset.PerFrameFunctionalGroupsSequence = frames[::-1]
    dataset.FloatPixelData = values[::-1].tobytes()


def louder(dataset: Dataset) -> None:
    values = np.frombuffer(dataset.FloatPixelData, "<f4").copy()
    values[5] += 1e-4
    dataset.FloatPixelData = values.tobytes()


def shared(dataset: Dataset) -> Dataset:
    return dataset.SharedFunctionalGroupsSequence[0]


def mapping(dataset: Dataset) -> Dataset:
    return shared(dataset).RealWorldValueMappingSequence[0]


def forget_reference(dataset: Dataset) -> None:
    kept = [each for each in dataset.ContentSequence if each.ValueType in {"IMAGE", "COMPOSITE"}]
    dataset.ContentSequence = [each for each in dataset.ContentSequence if each is not kept[0]]
    series = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    uid = kept[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    for each in series:
        each.ReferencedSOPSequence = [it for it in each.ReferencedSOPSequence if it.ReferencedSOPInstanceUID != uid]


def forget_evidence(dataset: Dataset) -> None:
    del dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]


def say_twice(dataset: Dataset) -> None:
    dataset.ContentSequence.append(dataset.ContentSequence[-1])


def other_value_type(dataset: Dataset) -> None:
    kept = next(each for each in dataset.ContentSequence if each.ValueType in {"IMAGE", "COMPOSITE"})
    kept.ValueType = "COMPOSITE" if kept.ValueType == "IMAGE" else "IMAGE"


def swap_layers(keyword: str) -> Mutation:
    def swap(dataset: Dataset) -> None:
        first, second = dataset.GraphicLayerSequence[:2]
        first[keyword].value, second[keyword].value = second[keyword].value, first[keyword].value

    return swap


def modifier(dataset: Dataset) -> Dataset:
    identified = dataset.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    return identified.SegmentedPropertyTypeModifierCodeSequence[0]


def padded(dataset: Dataset) -> None:
    dataset.EncapsulatedDocument = dataset.EncapsulatedDocument[:-200]


FAULTS: list[tuple[str, str, Mutation, str]] = [
    ("one pixel", "SC", darker, "not that of these pixels"),
    ("no finding drawn", "SC", without_colour, "largest finding"),
    ("black", "SC", lambda d: put(d, "PixelData", bytes(len(d.PixelData))), "shows nothing"),
    ("short", "SC", lambda d: put(d, "PixelData", d.PixelData[:-6]), "do not fit"),
    ("planes of colour", "SC", lambda d: put(d, "PlanarConfiguration", 1), "PlanarConfiguration"),
    ("as YBR", "SC", lambda d: put(d, "PhotometricInterpretation", "YBR_FULL"), "PhotometricInterpretation"),
    ("an original", "SC", lambda d: put(d, "ImageType", ["ORIGINAL", "PRIMARY"]), "ImageType"),
    ("nothing burned in", "SC", lambda d: put(d, "BurnedInAnnotation", "NO"), "BurnedInAnnotation"),
    ("source forgotten", "SC", lambda d: d.SourceImageSequence.pop(), "Source Image Sequence"),
    ("lossy", "SC", lambda d: put(d, "LossyImageCompression", "01"), "LossyImageCompression"),
    ("no mark", "SC", lambda d: put(d, "DerivationDescription", "x"), "DerivationDescription lacks"),
    ("turned", "SC", lambda d: put(d, "PatientOrientation", ["R", "F"]), "Patient Orientation"),
    ("digitized film", "SC", lambda d: put(d, "ConversionType", "DF"), "ConversionType"),
    ("half a pixel", "PR", moved(0.5), "does not go around the voxels"),
    ("half a pixel down", "PR", moved(0.5, 1), "does not go around the voxels"),
    ("beyond the image", "PR", moved(900), "leaves the image"),
    ("points miscounted", "PR", of(first_graphic, "NumberOfGraphicPoints", 3), "another number of points"),
    ("display units", "PR", of(first_graphic, "GraphicAnnotationUnits", "DISPLAY"), "not in pixels"),
    ("not drawn", "PR", lambda d: d.GraphicAnnotationSequence.pop(0), "does not draw"),
    (
        "drawn on another",
        "PR",
        lambda d: put(
            d.GraphicAnnotationSequence[0].ReferencedImageSequence[0],
            "ReferencedSOPInstanceUID",
            d.GraphicAnnotationSequence[-1].ReferencedImageSequence[0].ReferencedSOPInstanceUID,
        ),
        "does not",
    ),
    (
        "called something else",
        "PR",
        of(lambda d: d.GraphicAnnotationSequence[0].TextObjectSequence[0], "UnformattedTextValue", "Spleen"),
        "is not called",
    ),
    ("no rescale", "PR", lambda d: d.pop("RescaleIntercept"), "Modality LUT"),
    ("inverse", "PR", lambda d: put(d, "PresentationLUTShape", "INVERSE"), "PresentationLUTShape"),
    (
        "another window",
        "PR",
        of(lambda d: d.SoftcopyVOILUTSequence[0], "WindowWidth", "80"),
        "window of frame",
    ),
    ("another unit", "PR", lambda d: put(d, "RescaleType", "US"), "Modality LUT"),
    (
        "another function",
        "PR",
        of(lambda d: d.SoftcopyVOILUTSequence[0], "VOILUTFunction", "SIGMOID"),
        "window of frame",
    ),
    (
        "other pixels",
        "PR",
        of(lambda d: d.DisplayedAreaSelectionSequence[0], "PresentationPixelSpacing", [1.5, 1.5]),
        "high and wide",
    ),
    (
        "part of the image",
        "PR",
        of(lambda d: d.DisplayedAreaSelectionSequence[0], "DisplayedAreaBottomRightHandCorner", [5, 5]),
        "not the whole",
    ),
    ("a layer too many", "PR", lambda d: d.GraphicLayerSequence.append(d.GraphicLayerSequence[0]), "layers have one"),
    ("no colour", "PR", lambda d: d.GraphicLayerSequence[0].pop(0x00700401), "has not the colour"),
    ("other colours", "PR", swap_layers("GraphicLayerRecommendedDisplayCIELabValue"), "has not the colour"),
    ("other names", "PR", swap_layers("GraphicLayerDescription"), "is not called"),
    ("the other side", "PR", lambda d: put(d, "Laterality", "R"), "Laterality differs"),
    ("the other side", "SC", lambda d: put(d, "Laterality", "R"), "Laterality differs"),
    ("as a circle", "PR", of(first_graphic, "GraphicType", "CIRCLE"), "is drawn as ['CIRCLE']"),
    (
        "called so elsewhere",
        "PR",
        of(lambda d: d.GraphicAnnotationSequence[0].TextObjectSequence[0], "AnchorPoint", [0.0, 0.0]),
        "has its name elsewhere",
    ),
    ("another series", "PR", of(lambda d: d.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2"), "series"),
    ("no mark", "PR", lambda d: put(d, "ContentDescription", "x"), "ContentDescription lacks"),
    ("no creation date", "PR", lambda d: put(d, "PresentationCreationDate", ""), "PresentationCreationDate"),
    ("one value", "PM", louder, "does not hold the values"),
    ("frames name each other's images", "PM", swap_maps, "mm from its image"),
    ("upside down", "PM", upside_down, "in the order in which they lie"),
    ("scaled", "PM", of(mapping, "RealWorldValueSlope", 2.0), "as they stand"),
    ("rescaled", "PM", of(lambda d: shared(d).PixelValueTransformationSequence[0], "RescaleSlope", 2), "as they stand"),
    ("of another class", "PM", of(mapping, "LUTExplanation", "saliency: Spleen"), "is not called 'saliency: Cyst'"),
    ("thicker", "PM", of(lambda d: shared(d).PixelMeasuresSequence[0], "SliceThickness", 9), "SliceThickness 9"),
    ("another unit", "PM", of(lambda d: mapping(d).MeasurementUnitsCodeSequence[0], "CodeValue", "%"), "unit is not"),
    (
        "another quantity",
        "PM",
        of(lambda d: mapping(d).QuantityDefinitionSequence[0].ConceptCodeSequence[0], "CodeValue", "1"),
        "quantity is not",
    ),
    (
        "wider pixels",
        "PM",
        of(lambda d: shared(d).PixelMeasuresSequence[0], "PixelSpacing", [1.5, 1.3]),
        "drift",
    ),
    ("frame of reference", "PM", lambda d: put(d, "FrameOfReferenceUID", "1.2.3"), "FrameOfReferenceUID"),
    ("a frame short", "PM", lambda d: put(d, "NumberOfFrames", 4), "no map of this result"),
    ("no anatomy", "PM", lambda d: shared(d).pop("FrameAnatomySequence"), "Frame Anatomy"),
    ("no mark", "PM", lambda d: put(d, "ContentDescription", "x"), "ContentDescription lacks"),
    ("another type", "PDF", lambda d: put(d, "MIMETypeOfEncapsulatedDocument", "text/xml"), "MIMEType"),
    ("cut short", "PDF", padded, "are no PDF"),
    ("a length", "PDF", lambda d: put(d, "EncapsulatedDocumentLength", 10), "are no PDF"),
    (
        "another page",
        "PDF",
        lambda d: put(d, "EncapsulatedDocument", d.EncapsulatedDocument.replace(b"/Type /Page", b"/Type /Pagf", 1)),
        "not that of this document",
    ),
    ("verified", "PDF", lambda d: put(d, "VerificationFlag", "VERIFIED"), "VerificationFlag"),
    ("no mark", "PDF", lambda d: put(d, "DocumentTitle", "x"), "DocumentTitle lacks"),
    ("burned in", "PDF", lambda d: put(d, "BurnedInAnnotation", "YES"), "BurnedInAnnotation"),
    ("no source", "PDF", lambda d: d.SourceInstanceSequence.pop(), "Source Instance Sequence"),
    ("another title", "PDF", lambda d: put(d.ConceptNameCodeSequence[0], "CodeValue", "1"), "title"),
    ("scanned", "PDF", lambda d: put(d, "ConversionType", "SD"), "ConversionType"),
    ("another modality", "PDF", lambda d: put(d, "Modality", "OT"), "Modality"),
    ("off the plane", "RTSTRUCT", contour_moved(2, 0.5), "mm from the plane"),
    ("half a voxel", "RTSTRUCT", contour_moved(0, 0.6), "along the edges"),
    ("a voxel", "RTSTRUCT", contour_moved(0, 1.25), "do not go around"),
    ("open", "RTSTRUCT", of(first_contour, "ContourGeometricType", "OPEN_PLANAR"), "is not closed"),
    ("points miscounted", "RTSTRUCT", of(first_contour, "NumberOfContourPoints", 3), "points, not 3"),
    ("a contour lost", "RTSTRUCT", lambda d: d.ROIContourSequence[0].ContourSequence.pop(), "do not go around"),
    ("frame of reference", "RTSTRUCT", lambda d: put(d, "FrameOfReferenceUID", "1.2"), "FrameOfReferenceUID"),
    ("approved", "RTSTRUCT", lambda d: put(d, "ApprovalStatus", "APPROVED"), "ApprovalStatus"),
    (
        "by hand",
        "RTSTRUCT",
        of(lambda d: d.StructureSetROISequence[0], "ROIGenerationAlgorithm", "MANUAL"),
        "algorithm",
    ),
    ("another name", "RTSTRUCT", of(lambda d: d.StructureSetROISequence[1], "ROIName", "Spleen"), "not called"),
    ("another colour", "RTSTRUCT", of(lambda d: d.ROIContourSequence[0], "ROIDisplayColor", [0, 0, 0]), "colour"),
    ("a region lost", "RTSTRUCT", lambda d: d.RTROIObservationsSequence.pop(), "is of regions"),
    (
        "another organ",
        "RTSTRUCT",
        of(lambda d: d.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0], "CodeValue", "1"),
        "not identified",
    ),
    ("the other side", "RTSTRUCT", of(modifier, "CodeValue", "24028007"), "region 2: laterality is not (7771000"),
    (
        "an image lost",
        "RTSTRUCT",
        lambda d: (
            d.ReferencedFrameOfReferenceSequence[0]
            .RTReferencedStudySequence[0]
            .RTReferencedSeriesSequence[0]
            .ContourImageSequence.pop()
        ),
        "names 4 images",
    ),
    ("a reference lost", "KO", forget_reference, "does not name"),
    ("evidence lost", "KO", forget_evidence, "evidence names"),
    ("said twice", "KO", say_twice, "names"),
    ("as another type", "KO", other_value_type, "names"),
    ("another title", "KO", lambda d: put(d.ConceptNameCodeSequence[0], "CodeValue", "113002"), "title is"),
    ("another template", "KO", lambda d: put(d.ContentTemplateSequence[0], "TemplateIdentifier", "1500"), "2010"),
    ("no observer", "KO", lambda d: drop_items(d, "121012"), "observer"),
    ("no description", "KO", lambda d: drop_items(d, "113012"), "description lacks"),
    ("no mark", "KO", edit("113012", lambda item: put(item, "TextValue", "x")), "description lacks"),
    ("another modality", "KO", lambda d: put(d, "Modality", "SR"), "Modality"),
]


@pytest.mark.parametrize(
    ("kind", "mutate", "says"), [fault[1:] for fault in FAULTS], ids=[f"{fault[1]} {fault[0]}" for fault in FAULTS]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_faulty_object_is_refused(
    asked: EncodingRequest, made: tuple[EncodedObject, ...], kind: str, mutate: Mutation, says: str
) -> None:
    objects = made if kind == "KO" else tuple(each for each in made if each.kind == kind)
    with pytest.raises(ObjectRefusedByGate) as caught:
        check(mutated(objects, kind, mutate), asked)
    assert says in str(caught.value)
    assert all(line.startswith(kind) for line in str(caught.value).splitlines())
    assert "Doe" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_written_passes(asked: EncodingRequest, made: tuple[EncodedObject, ...]) -> None:
    for kind in ("SC", "PR", "PM", "PDF", "RTSTRUCT", "KO"):
        check(mutated(made, kind, lambda dataset: None), asked)


def test_a_manifest_without_its_objects_is_refused(asked: EncodingRequest, made: tuple[EncodedObject, ...]) -> None:
    with pytest.raises(ObjectRefusedByGate, match="neither source nor result"):
        check(tuple(each for each in made if each.kind == "KO"), asked)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_windows_and_lines_are_of_the_pictures_too(tmp_path: Path) -> None:
    asked = SOURCES["grey pictures"](tmp_path)
    made = encode(asked)
    with pytest.raises(ObjectRefusedByGate, match="is not where"):
        check(mutated(tuple(each for each in made if each.kind == "PR"), "PR", moved(1)), asked)
