"""The report says what the analysis says, points at the right segment, and admits that nobody has looked at it."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import pytest
from dicom_factory import make_series
from pydicom import Dataset, dcmread
from result_samples import BRAIN, KIDNEY, LEFT, analysis_of, ball, contract, geometry_of, request_for

from meddaemon.domain.codes import MILLILITRE, STANDARD_DEVIATION, VOLUME
from meddaemon.domain.result import Finding, Measurement, ResultStatus
from meddaemon.results.encoding import EncodingRequest, ObjectReference, encode
from meddaemon.results.identity import device_uid, series_description


def document(request: EncodingRequest) -> hd.sr.Comprehensive3DSR:
    _, sr = encode(request)
    return hd.sr.Comprehensive3DSR.from_dataset(dcmread(BytesIO(sr.content)))


def test_one_group_per_finding_shares_its_tracking_with_the_segment(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    labels = ball(geometry_of(paths).shape)
    labels[labels.shape[0] // 2 :] *= 2
    kinds = [("Brain", BRAIN, None), ("Left kidney", KIDNEY, LEFT)]
    request = request_for(paths, analysis=analysis_of(labels, geometry_of(paths), kinds=kinds))
    seg, sr = encode(request)
    segments = dcmread(BytesIO(seg.content)).SegmentSequence
    groups = hd.sr.Comprehensive3DSR.from_dataset(
        dcmread(BytesIO(sr.content))
    ).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    for group, segment, wanted in zip(groups, segments, request.analysis.segments, strict=True):
        assert (group.tracking_uid, group.tracking_identifier) == (segment.TrackingUID, segment.TrackingID)
        assert group.finding_type.value == wanted.type.value
        assert group.reference_type.value == "121191"
        assert group.referenced_segment.referenced_sop_instance_uid == seg.sop_instance_uid
        assert group.referenced_segment.referenced_segment_numbers == [wanted.number]
        (volume,) = group.get_measurements()
        assert (volume.name.value, volume.unit.value, volume.unit.scheme_designator) == ("118565006", "mL", "UCUM")
        millilitres = wanted.voxel_count * request.analysis.geometry.voxel_volumes_mm3[0] / 1000
        assert volume.value == pytest.approx(millilitres, rel=1e-5)
    assert [site.laterality.value for site in groups[1].finding_sites] == [LEFT.value]


def with_spread(request: EncodingRequest) -> EncodingRequest:
    """The same result, of a model that was asked again: its volume, and how far that differs."""
    (finding,) = request.analysis.findings
    spread = replace(finding.measurements[0], value=1.25, derivation=STANDARD_DEVIATION)
    findings = (replace(finding, measurements=(*finding.measurements, spread)),)
    return replace(request, analysis=replace(request.analysis, findings=findings))


def test_a_number_that_is_a_standard_deviation_says_so(tmp_path: Path) -> None:
    """PS3.16 TID 1419: HAS CONCEPT MOD Derivation, of CID 7464."""
    (group,) = document(with_spread(request_for(make_series(tmp_path)))).content.get_volumetric_roi_measurement_groups()
    volume, spread = group.get_measurements()
    assert (volume.derivation, volume.name) == (None, spread.name)
    assert (spread.derivation.value, spread.derivation.scheme_designator) == ("386136009", "SCT")
    assert (spread.value, spread.unit.value) == (1.25, "mL")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1469.3184936, "1469.32"),
        (0.00375, "0.00375"),
        (0.0, "0.0"),
        (1e-9 / 3, "3.33333e-10"),
        (123456789.0, "1.23457e+08"),
    ],
)
def test_numbers_fit_a_decimal_string(tmp_path: Path, value: float, text: str) -> None:
    request = request_for(make_series(tmp_path))
    measurement = Measurement(name=VOLUME, value=value, unit=MILLILITRE)
    finding = replace(request.analysis.findings[0], measurements=(measurement,))
    report = document(replace(request, analysis=replace(request.analysis, findings=(finding,))))
    (group,) = report.content.get_volumetric_roi_measurement_groups()
    (number,) = [item for item in group[0].ContentSequence if item.ValueType == "NUM"]
    written = number.MeasuredValueSequence[0].NumericValue
    assert float(written) == float(text)
    assert len(str(written)) <= 16


def test_a_second_finding_on_a_segment_is_tracked_apart_and_a_segment_without_one_is_reported(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    kinds = [("Brain", BRAIN, None), ("Kidney", KIDNEY, None)]
    analysis = analysis_of(ball(geometry_of(paths).shape), geometry_of(paths), kinds=kinds)
    brain = analysis.findings[0]
    again = Finding(code=KIDNEY, segment_number=1, measurements=())
    report = document(request_for(paths, analysis=replace(analysis, findings=(brain, again))))
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.finding_type.value for group in groups] == [BRAIN.value, KIDNEY.value, KIDNEY.value]
    assert len({group.tracking_uid for group in groups}) == 3


def test_nobody_has_verified_it(tmp_path: Path) -> None:
    report = document(request_for(make_series(tmp_path)))
    assert (report.VerificationFlag, report.PreliminaryFlag, report.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    assert "NOT FOR DIAGNOSTIC USE" in report.SeriesDescription


def test_an_implausible_result_says_so_where_it_is_read(tmp_path: Path) -> None:
    paths = make_series(tmp_path)
    reason = "10213 mL is beyond 700 to 2300 mL"
    geometry = geometry_of(paths)
    analysis = analysis_of(ball(geometry.shape), geometry, status=ResultStatus.IMPLAUSIBLE, reason=reason)
    report = document(request_for(paths, analysis=analysis))
    assert report.CompletionFlag == "PARTIAL"
    assert reason in report.CompletionFlagDescription
    assert report.SeriesDescription.startswith("AI IMPLAUSIBLE")
    texts = [
        item.get("TextValue", "")
        for item in report.content.get_volumetric_roi_measurement_groups()[0][0].ContentSequence
    ]
    assert any(reason in text for text in texts)


def test_observer_and_equipment_name_the_model(tmp_path: Path) -> None:
    request = request_for(make_series(tmp_path))
    report = document(request)
    (observer,) = report.content.get_observer_contexts()
    assert observer.observer_identifying_attributes.uid == device_uid(request.contract)
    scanner, model = report.ContributingEquipmentSequence
    assert scanner.Manufacturer == "Factory"
    assert (model.Manufacturer, model.SoftwareVersions, model.DeviceUID) == (
        "deepbet",
        "1.0.2",
        device_uid(request.contract),
    )


def test_the_library_lists_every_image_once_and_all_references_are_in_evidence(tmp_path: Path) -> None:
    request = request_for(make_series(tmp_path, planes=6))
    seg, _ = encode(request)
    report = document(request)
    evidence = {uid for _, _, uid, _ in report.get_evidence()}
    assert evidence == {*request.source.sop_instance_uids, seg.sop_instance_uid}
    (library,) = [item for item in report.content[0].ContentSequence if item.name.value == "111028"]
    images = [item for item in library.ContentSequence[0].ContentSequence if item.ValueType == "IMAGE"]
    assert [item.referenced_sop_instance_uid for item in images] == list(request.source.sop_instance_uids)


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


@pytest.mark.parametrize(
    ("modality", "codes", "expected"),
    [
        ("MR", [code("77", "99SITE", "Schädel"), code("126020", "DCM", "Multiparametric MRI")], "126020"),
        ("MR", [code("77", "99SITE", "Head")], "25056-3"),
        ("MR", None, "25056-3"),
        ("CT", None, "25045-6"),
    ],
)
def test_the_procedure_reported_is_the_imaging_procedure(
    tmp_path: Path, modality: str, codes: list[Dataset] | None, expected: str
) -> None:
    paths = make_series(tmp_path, modality=modality, attributes={"ProcedureCodeSequence": codes})
    report = document(request_for(paths))
    (procedure,) = [item for item in report.content[0].ContentSequence if item.name.value == "121058"]
    assert procedure.value.value == expected


def test_the_replaced_report_and_the_requests_are_named(tmp_path: Path) -> None:
    order = Dataset()
    order.RequestedProcedureID, order.AccessionNumber = "RP1", "A-18"
    before = ObjectReference(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34", sop_instance_uid="2.25.11", series_instance_uid="2.25.12"
    )
    request = request_for(
        make_series(tmp_path, attributes={"RequestAttributesSequence": [order]}), predecessors=(before,)
    )
    report = document(request)
    study = report.PredecessorDocumentsSequence[0]
    assert study.StudyInstanceUID == request.source.study_instance_uid
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.11"
    assert report.ReferencedRequestSequence[0].RequestedProcedureID == "RP1"


@pytest.mark.parametrize("kind", ["SEG", "SR"])
def test_texts_of_the_model_survive_in_utf_8(tmp_path: Path, kind: str) -> None:
    model = contract(
        title="Gehirnmaske – 脳マスク " + "x" * 80, manufacturer="Universität Münster", series_description="脳"
    )
    request = request_for(make_series(tmp_path, charset=None), contract=model)
    (encoded,) = [each for each in encode(request) if each.kind == kind]
    dataset = dcmread(BytesIO(encoded.content))
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert dataset.SeriesDescription == series_description(request) == "AI 脳 - NOT FOR DIAGNOSTIC USE"
    assert dataset.ContributingEquipmentSequence[-1].Manufacturer == "Universität Münster"
