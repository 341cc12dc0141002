"""The gate lets through what the encoders write and refuses each fault, also those no generic validator reports."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_factory import make_series
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, geometry_of, request_for

from meddaemon.domain.errors import ObjectRefusedByGate
from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.gate import check
from meddaemon.results.gate.exam import Exam
from meddaemon.results.gate.iod import attributes


@pytest.fixture(scope="module")
def request_made(tmp_path_factory: pytest.TempPathFactory) -> EncodingRequest:
    paths = make_series(tmp_path_factory.mktemp("series"), planes=4, orientation="oblique", patient_id="SECRET")
    labels = ball(geometry_of(paths).shape)
    labels[2:] *= 2
    kinds = [("Brain", BRAIN, None), ("Kidney", KIDNEY, LEFT)]
    return request_for(paths, analysis=analysis_of(labels, geometry_of(paths), kinds=kinds))


@pytest.fixture(scope="module")
def written(request_made: EncodingRequest) -> tuple[EncodedObject, ...]:
    return encode(request_made)


def mutated(
    written: tuple[EncodedObject, ...], kind: str, mutate: Callable[[Dataset], object]
) -> tuple[EncodedObject, ...]:
    """The same objects with one of them edited and encoded anew."""

    def edited(encoded: EncodedObject) -> EncodedObject:
        dataset = dcmread(BytesIO(encoded.content))
        mutate(dataset)
        buffer = BytesIO()
        dataset.save_as(buffer)
        return replace(encoded, content=buffer.getvalue())

    return tuple(edited(each) if each.kind == kind else each for each in written)


def items(dataset: Dataset, value: str) -> list[Dataset]:
    """All content items with this concept name."""
    found = []
    for child in dataset.get("ContentSequence", ()):
        if child.get("ConceptNameCodeSequence") and child.ConceptNameCodeSequence[0].CodeValue == value:
            found.append(child)
        found.extend(items(child, value))
    return found


def drop_items(dataset: Dataset, value: str) -> None:
    kept = [
        child
        for child in dataset.get("ContentSequence", ())
        if not child.get("ConceptNameCodeSequence") or child.ConceptNameCodeSequence[0].CodeValue != value
    ]
    if "ContentSequence" in dataset:
        dataset.ContentSequence = kept
    for child in kept:
        drop_items(child, value)


def edit(value: str, change: Callable[[Dataset], object]) -> Callable[[Dataset], object]:
    """A mutation of the first content item of that name."""
    return lambda dataset: change(items(dataset, value)[0])


def put(dataset: Any, keyword: str, value: Any) -> None:
    setattr(dataset, keyword, value)


def side(dataset: Dataset) -> Dataset:
    """The laterality of the second segment."""
    coded = dataset.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0]
    return coded.SegmentedPropertyTypeModifierCodeSequence[0]


def add_scoord(dataset: Dataset) -> None:
    region = Dataset()
    region.RelationshipType, region.ValueType = "CONTAINS", "SCOORD"
    region.GraphicType, region.GraphicData = "POLYLINE", [1, 1, 9, 1, 9, 13.5, 1, 1]
    name = Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "111030", "DCM", "Image Region"
    region.ConceptNameCodeSequence = [name]
    items(dataset, "125007")[0].ContentSequence.append(region)


def shift_half_a_slice(dataset: Dataset) -> None:
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0]
        x, y, z = (float(value) for value in position.ImagePositionPatient)
        # Half of 2 mm along the normal (0.48, -0.64, 0.6) of the oblique orientation.
        position.ImagePositionPatient = [x + 0.48, y - 0.64, z + 0.6]


def spoil_dimension_index(dataset: Dataset) -> None:
    frames = dataset.PerFrameFunctionalGroupsSequence
    frames[1].FrameContentSequence[0].DimensionIndexValues = frames[0].FrameContentSequence[0].DimensionIndexValues


def swap_dimension_indices(dataset: Dataset) -> None:
    first, second = (frame.FrameContentSequence[0] for frame in dataset.PerFrameFunctionalGroupsSequence[:2])
    first.DimensionIndexValues, second.DimensionIndexValues = (
        list(second.DimensionIndexValues),
        list(first.DimensionIndexValues),
    )


def swap_sources(dataset: Dataset) -> None:
    first, second = dataset.PerFrameFunctionalGroupsSequence[:2]
    first.DerivationImageSequence, second.DerivationImageSequence = (
        second.DerivationImageSequence,
        first.DerivationImageSequence,
    )


def flip_a_bit(dataset: Dataset) -> None:
    data = bytearray(dataset.PixelData)
    data[7] ^= 0x10
    dataset.PixelData = bytes(data)


def derive(number: Dataset) -> None:
    """Say of a number that it is a standard deviation."""
    derivation, name, value = Dataset(), Dataset(), Dataset()
    derivation.RelationshipType, derivation.ValueType = "HAS CONCEPT MOD", "CODE"
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "121401", "DCM", "Derivation"
    value.CodeValue, value.CodingSchemeDesignator, value.CodeMeaning = "386136009", "SCT", "Standard Deviation"
    derivation.ConceptNameCodeSequence, derivation.ConceptCodeSequence = [name], [value]
    number.ContentSequence = [*number.get("ContentSequence", ()), derivation]


def measured(change: Callable[[Dataset], object]) -> Callable[[Dataset], object]:
    return edit("118565006", lambda number: change(number.MeasuredValueSequence[0]))


def forget_evidence(dataset: Dataset) -> None:
    series = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    del series[-1].ReferencedSOPSequence[-1]


# What, in which object, how, and what the refusal must say. The first nine are those of STANDARDS 3.2 that no
# generic validator reports.
FAULTS: list[tuple[str, str, Callable[[Dataset], object], str]] = [
    ("no tracking uid", "SR", lambda d: drop_items(d, "112040"), "tracking unique identifier"),
    ("no image library", "SR", lambda d: drop_items(d, "111028"), "image library"),
    (
        "segment 9 of 2",
        "SR",
        edit("121191", lambda i: put(i.ReferencedSOPSequence[0], "ReferencedSegmentNumber", 9)),
        "segment 9",
    ),
    ("region outside the image", "SR", add_scoord, "SCOORD leaves its image"),
    ("wrong title", "SR", lambda d: put(d.ConceptNameCodeSequence[0], "CodeValue", "126001"), "title"),
    ("no template", "SR", lambda d: d.pop("ContentTemplateSequence"), "template 1500"),
    (
        "translated meaning",
        "SR",
        edit("125007", lambda i: put(i.ConceptNameCodeSequence[0], "CodeMeaning", "Messgruppe")),
        "Measurement Group",
    ),
    ("shifted by half a slice", "SEG", shift_half_a_slice, "lies 1 mm from"),
    ("bad dimension index", "SEG", spoil_dimension_index, "share the dimension index"),
    # And those that others would report, or would not have been asked.
    ("another patient", "SR", lambda d: put(d, "PatientID", "Q-2"), "PatientID differs"),
    ("another name", "SEG", lambda d: put(d, "PatientName", "Roe^Jane"), "PatientName differs"),
    ("another order", "SEG", lambda d: put(d, "AccessionNumber", "B"), "AccessionNumber differs"),
    ("another study", "SEG", lambda d: put(d, "StudyInstanceUID", "1.2.3"), "StudyInstanceUID differs"),
    ("patient module incomplete", "SR", lambda d: d.pop("PatientSex"), "PatientSex is absent"),
    ("series number of the source", "SR", lambda d: put(d, "SeriesNumber", 3), "SeriesNumber 3"),
    ("series number 0", "SEG", lambda d: put(d, "SeriesNumber", 0), "SeriesNumber 0"),
    ("no research mark", "SR", lambda d: put(d, "SeriesDescription", "Brain"), "SeriesDescription is not"),
    (
        "as if it were not to be believed",
        "SR",
        lambda d: put(d, "SeriesDescription", "AI IMPLAUSIBLE Brain mask - NOT FOR DIAGNOSTIC USE"),
        "SeriesDescription is not",
    ),
    ("no content date", "SEG", lambda d: d.pop("ContentDate"), "ContentDate has no value"),
    ("no character set", "SR", lambda d: put(d, "SpecificCharacterSet", "ISO_IR 100"), "SpecificCharacterSet"),
    (
        "private attribute",
        "SEG",
        lambda d: d.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "x"),
        "private",
    ),
    ("no model equipment", "SR", lambda d: d.ContributingEquipmentSequence.pop(), "does not name the model"),
    ("no scanner equipment", "SEG", lambda d: d.ContributingEquipmentSequence.pop(0), "acquisition equipment"),
    ("other frame of reference", "SEG", lambda d: put(d, "FrameOfReferenceUID", "1.2.3"), "FrameOfReferenceUID"),
    ("indices against positions", "SEG", swap_dimension_indices, "position ind"),
    ("frames name each other's images", "SEG", swap_sources, "mm from the plane of its source image"),
    ("one voxel flipped", "SEG", flip_a_bit, "does not show what is drawn"),
    ("pixel data short", "SEG", lambda d: put(d, "PixelData", d.PixelData[:-20]), "pixel data"),
    (
        "wrong spacing",
        "SEG",
        lambda d: put(d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing", [1.5, 1.3]),
        "drift",
    ),
    (
        "referenced series incomplete",
        "SEG",
        lambda d: d.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop(),
        "Referenced Series Sequence",
    ),
    ("no referenced series", "SEG", lambda d: d.pop("ReferencedSeriesSequence"), "Referenced Series Sequence"),
    (
        "unknown instance",
        "SEG",
        lambda d: put(d.SourceImageSequence[0], "ReferencedSOPInstanceUID", "1.2.3"),
        "refers to 1.2.3",
    ),
    ("duplicate segment", "SEG", lambda d: put(d.SegmentSequence[1], "SegmentNumber", 1), "segments [1, 1]"),
    ("no label", "SEG", lambda d: d.SegmentSequence[0].pop("SegmentLabel"), "is not called as"),
    ("another label", "SEG", lambda d: put(d.SegmentSequence[1], "SegmentLabel", "Right kidney"), "is not called as"),
    ("the other side", "SEG", lambda d: put(side(d), "CodeValue", "24028007"), "segment 2: laterality is not (7771000"),
    (
        "no side",
        "SEG",
        lambda d: (
            d.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].pop("SegmentedPropertyTypeModifierCodeSequence")
        ),
        "segment 2: laterality is not (7771000",
    ),
    ("no algorithm", "SEG", lambda d: d.SegmentSequence[0].pop("SegmentAlgorithmName"), "which algorithm"),
    (
        "another version",
        "SEG",
        lambda d: put(d.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0], "AlgorithmVersion", "9"),
        "segment 2 does not say which algorithm",
    ),
    (
        "thicker",
        "SEG",
        lambda d: put(d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "SliceThickness", 3),
        "SliceThickness 3",
    ),
    ("no colour", "SEG", lambda d: d.SegmentSequence[0].pop("RecommendedDisplayCIELabValue"), "colour"),
    ("other tracking", "SEG", lambda d: put(d.SegmentSequence[0], "TrackingUID", "1.2.3"), "tracking identifiers"),
    (
        "other type",
        "SEG",
        lambda d: put(d.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0], "CodeValue", "1"),
        "SegmentedPropertyTypeCodeSequence",
    ),
    ("overlap", "SEG", lambda d: put(d, "SegmentsOverlap", "YES"), "SegmentsOverlap"),
    ("verified", "SR", lambda d: put(d, "VerificationFlag", "VERIFIED"), "VerificationFlag"),
    ("final", "SR", lambda d: put(d, "PreliminaryFlag", "FINAL"), "PreliminaryFlag"),
    ("no completion", "SR", lambda d: d.pop("CompletionFlag"), "CompletionFlag"),
    ("no observer uid", "SR", lambda d: drop_items(d, "121012"), "device observer"),
    ("no language", "SR", lambda d: drop_items(d, "121049"), "language"),
    ("no procedure", "SR", lambda d: drop_items(d, "121058"), "procedure reported"),
    ("no algorithm in group", "SR", lambda d: drop_items(d, "111001"), "algorithm identification"),
    ("no finding", "SR", lambda d: drop_items(d, "121071"), "Finding is not"),
    ("evidence incomplete", "SR", forget_evidence, "not in evidence"),
    ("another value", "SR", measured(lambda m: put(m, "NumericValue", "1.5")), "is not the measured"),
    ("long value", "SR", measured(lambda m: m.add_new("NumericValue", "DS", "1.50000000000000001")), "16 characters"),
    (
        "unit not UCUM",
        "SR",
        measured(lambda m: put(m.MeasurementUnitsCodeSequence[0], "CodingSchemeDesignator", "SCT")),
        "UCUM",
    ),
    ("a derivation", "SR", edit("118565006", derive), "is not said to be the number itself"),
    ("no measurement", "SR", lambda d: drop_items(d, "118565006"), "0 numbers for 1"),
    (
        "group dropped",
        "SR",
        lambda d: items(d, "126010")[0].ContentSequence.pop(),
        "1 measurement groups for 2",
    ),
    # Attributes, equipment, references: of 827 mutants with one attribute changed or taken out, half passed before.
    ("type 1 absent", "SEG", lambda d: d.pop("ImageType"), "ImageType is absent"),
    (
        "type 1 absent in an item",
        "SEG",
        lambda d: d.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].pop("AlgorithmName"),
        "SegmentationAlgorithmIdentificationSequence.AlgorithmName is absent",
    ),
    ("type 1 empty", "SEG", lambda d: put(d, "ContentLabel", ""), "ContentLabel has no value"),
    ("of another IOD", "SEG", lambda d: put(d, "KVP", "120"), "KVP is no attribute of its IOD"),
    (
        "of another item",
        "SR",
        lambda d: put(d.ContentTemplateSequence[0], "KVP", "120"),
        "ContentTemplateSequence.KVP is no attribute",
    ),
    ("modality of the source", "SEG", lambda d: put(d, "Modality", "CT"), "Modality is not SEG"),
    ("made another day", "SR", lambda d: put(d, "ContentDate", "19990101"), "ContentDate is 19990101"),
    ("another serial number", "SR", lambda d: put(d, "DeviceSerialNumber", "1"), "DeviceSerialNumber is 1"),
    (
        "another version of the model",
        "SEG",
        lambda d: put(d.ContributingEquipmentSequence[-1], "SoftwareVersions", "9"),
        "SoftwareVersions of the model is 9",
    ),
    (
        "model without a name",
        "SR",
        lambda d: d.ContributingEquipmentSequence[-1].pop("ManufacturerModelName"),
        "ManufacturerModelName of the model is None",
    ),
    (
        "another scanner",
        "SEG",
        lambda d: put(d.ContributingEquipmentSequence[0], "Manufacturer", "X"),
        "Manufacturer of the acquisition equipment is X",
    ),
    (
        "evidence of another series",
        "SR",
        lambda d: put(
            d.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2.3"
        ),
        "in series 1.2.3, not",
    ),
    (
        "evidence of another study",
        "SR",
        lambda d: put(d.CurrentRequestedProcedureEvidenceSequence[0], "StudyInstanceUID", "1.2.3"),
        "refers to study 1.2.3",
    ),
    (
        "code without a scheme",
        "SEG",
        lambda d: d.SegmentSequence[0].SegmentedPropertyCategoryCodeSequence[0].pop("CodingSchemeDesignator"),
        "has a code without value, scheme or meaning",
    ),
    (
        "code of nobody",
        "SR",
        edit("121058", lambda i: put(i.ConceptCodeSequence[0], "CodingSchemeDesignator", "99ACME")),
        "does not say whose the coding scheme 99ACME is",
    ),
    (
        "dimensions of another organisation",
        "SEG",
        lambda d: put(d.DimensionIndexSequence[0], "DimensionOrganizationUID", "1.2.3"),
        "not those of one organisation",
    ),
    (
        "planes too far apart",
        "SEG",
        lambda d: put(d.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "SpacingBetweenSlices", 3),
        "SpacingBetweenSlices 3",
    ),
    ("body part of another", "SEG", lambda d: put(d, "BodyPartExamined", "FOOT"), "BodyPartExamined differs"),
    ("item without a value", "SR", edit("121013", lambda i: i.pop("TextValue")), "is a TEXT without its value"),
    ("item of no kind", "SR", edit("121058", lambda i: i.pop("ValueType")), "is a None without its value"),
    ("item without a name", "SR", edit("111002", lambda i: i.pop("ConceptNameCodeSequence")), "a TEXT has no name"),
    (
        "bad relationship",
        "SR",
        edit("118565006", lambda i: put(i, "RelationshipType", "HAS CONCEPT MOD")),
        "HAS CONCEPT MOD ('118565006', 'SCT')",
    ),
    ("another observer", "SR", edit("121016", lambda i: put(i, "TextValue", "1")), "device observer serial number"),
    (
        "another language",
        "SR",
        edit("121049", lambda i: put(i.ConceptCodeSequence[0], "CodeValue", "de")),
        "language is not",
    ),
    ("other weights", "SR", lambda d: drop_items(d, "111002"), "do not name the model and its weights"),
    ("another maker", "SR", edit("122405", lambda i: put(i, "TextValue", "X")), "(122405, DCM) is not"),
    ("segment of another series", "SR", edit("121232", lambda i: put(i, "UID", "1.2.3")), "source series for seg"),
    ("library elsewhere", "SR", edit("112227", lambda i: put(i, "UID", "1.2.3")), "frame of reference that no input"),
    ("two numbers in one", "SR", measured(lambda m: put(m, "FloatingPointValue", 7.5)), "7.5 as a floating point"),
    (
        "one digit more",
        "SR",
        measured(lambda m: put(m, "NumericValue", f"{float(m.NumericValue) * (1 + 5e-6):.8g}")),
        "is not the measured",
    ),
    ("no content at all", "SR", lambda d: d.pop("ContentSequence"), "cannot be examined"),
]


@pytest.mark.parametrize(
    ("kind", "mutate", "says"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_faulty_object_is_refused(
    request_made: EncodingRequest,
    written: tuple[EncodedObject, ...],
    kind: str,
    mutate: Callable[[Dataset], object],
    says: str,
) -> None:
    with pytest.raises(ObjectRefusedByGate) as caught:
        check(mutated(written, kind, mutate), request_made)
    assert says in str(caught.value)
    assert all(line.startswith((kind, "SR")) for line in str(caught.value).splitlines())
    assert "SECRET" not in str(caught.value)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    ("uid", "says"),
    [("source", "is one of the source's"), ("1.02.3", "is not a valid UID"), ("1." * 40 + "1", "valid")],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_object_under_a_wrong_name_is_refused(
    request_made: EncodingRequest, written: tuple[EncodedObject, ...], uid: str, says: str
) -> None:
    name = request_made.source.series_instance_uid if uid == "source" else uid
    renamed = mutated(written, "SEG", lambda dataset: put(dataset, "SeriesInstanceUID", name))
    objects = tuple(replace(each, series_instance_uid=name) if each.kind == "SEG" else each for each in renamed)
    with pytest.raises(ObjectRefusedByGate, match=says):
        check(objects, request_made)


def test_a_report_without_its_segmentation_is_refused(
    request_made: EncodingRequest, written: tuple[EncodedObject, ...]
) -> None:
    with pytest.raises(ObjectRefusedByGate, match="neither source nor result"):
        check(written[1:], request_made)


def test_two_objects_of_a_kind_and_unknown_kinds_are_refused(
    request_made: EncodingRequest, written: tuple[EncodedObject, ...]
) -> None:
    with pytest.raises(ObjectRefusedByGate, match="2 objects are SEG binary"):
        check((*written, written[0]), request_made)
    with pytest.raises(ObjectRefusedByGate, match="XYZ binary: nothing is known"):
        check((*written, replace(written[0], kind="XYZ")), request_made)


def test_objects_of_another_analysis_are_refused(
    request_made: EncodingRequest, written: tuple[EncodedObject, ...], tmp_path: Path
) -> None:
    other = request_for(make_series(tmp_path, planes=4, orientation="oblique", seed="2", patient_id="SECRET"))
    with pytest.raises(ObjectRefusedByGate, match="which is no plane of the volume"):
        check(written, other)


def shifted(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine + np.array([[0, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def reversed_planes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine * [-1, 1, 1, 1]


def swapped_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine[:, [0, 2, 1, 3]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (shifted, "from the plane of its volume"),
        (reversed_planes, "from the plane of its volume"),
        (swapped_axes, "drift"),
    ],
)
def test_a_volume_that_lies_elsewhere_than_its_images_is_refused(
    request_made: EncodingRequest, change: Callable[[NDArray[np.float64]], NDArray[np.float64]], says: str
) -> None:
    analysis = request_made.analysis
    geometry = replace(analysis.geometry, affine_lps=change(analysis.geometry.affine_lps))
    with pytest.raises(ObjectRefusedByGate, match=says):
        encode(replace(request_made, analysis=replace(analysis, geometry=geometry)))


def test_a_volume_in_another_frame_of_reference_is_refused(request_made: EncodingRequest) -> None:
    analysis = request_made.analysis
    geometry = replace(analysis.geometry, frame_of_reference_uid="1.2.3")
    with pytest.raises(ObjectRefusedByGate, match=r"is not the volume's 1\.2\.3"):
        encode(replace(request_made, analysis=replace(analysis, geometry=geometry)))


def test_what_is_copied_from_the_source_may_be_retired(
    request_made: EncodingRequest, written: tuple[EncodedObject, ...]
) -> None:
    for each in written:
        dataset = dcmread(BytesIO(each.content))
        dataset.EthnicGroup = "NONE"
        exam = Exam(request=request_made, objects=written)
        assert list(attributes(exam, each, dataset)) == []


def test_all_faults_are_told_at_once(request_made: EncodingRequest, written: tuple[EncodedObject, ...]) -> None:
    def spoil(dataset: Dataset) -> None:
        dataset.PatientID = "Q-2"
        dataset.VerificationFlag = "VERIFIED"
        dataset.SeriesNumber = 0

    with pytest.raises(ObjectRefusedByGate) as caught:
        check(mutated(written, "SR", spoil), request_made)
    assert [word in str(caught.value) for word in ("PatientID", "VerificationFlag", "SeriesNumber")] == [True] * 3


def test_what_was_written_passes(request_made: EncodingRequest, written: tuple[EncodedObject, ...]) -> None:
    check(written, request_made)
    check(mutated(written, "SEG", lambda dataset: None), request_made)
