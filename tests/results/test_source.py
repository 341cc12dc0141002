"""What results inherit from headers that are not as they should be."""

from pathlib import Path

import pytest
from dicom_factory import make_series
from pydicom import dcmread
from pydicom.dataset import Dataset
from result_samples import geometry_of

from meddaemon.domain.errors import ContradictoryIdentity, InputRefused
from meddaemon.results.source import TYPE_2, Moment, SourceSeries, read_source


def read(paths: list[Path]) -> SourceSeries:
    return read_source(paths, geometry_of(paths))


def item(**attributes: object) -> Dataset:
    result = Dataset()
    for keyword, value in attributes.items():
        setattr(result, keyword, value)
    return result


@pytest.mark.parametrize("keyword", TYPE_2)
def test_a_missing_type_2_attribute_becomes_empty(tmp_path: Path, keyword: str) -> None:
    source = read(make_series(tmp_path, planes=2, attributes={keyword: None}))
    assert keyword in source.header
    assert str(source.header[keyword].value or "") == ""


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг^Ия"),
        ("ISO_IR 101", "Wałęsa^Łódź"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Zhang^XiaoDong=张^小东="),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東=Ωμέγα"),
    ],
)
def test_every_character_set_arrives_as_unicode(tmp_path: Path, charset: str | list[str] | None, name: str) -> None:
    source = read(make_series(tmp_path, planes=2, charset=charset, patient_name=name))
    assert str(source.header.PatientName).rstrip("=") == name.rstrip("=")


def test_text_is_copied_even_when_too_long_and_values_with_a_grammar_only_when_right(tmp_path: Path) -> None:
    def spoil(_: int, dataset: Dataset) -> None:
        dataset.add_new("PatientID", "LO", "P" * 80)
        dataset.add_new("AccessionNumber", "SH", "A" * 20)
        dataset.add_new("PatientSex", "CS", "X")
        dataset.add_new("PatientBirthDate", "DA", "1970-1-1")
        dataset.add_new("PatientAge", "AS", "53")
        dataset.add_new("StudyTime", "TM", "25:00")

    with pytest.warns(UserWarning, match="Invalid value|exceeds the maximum"):
        paths = make_series(tmp_path, planes=2, edit=spoil)
    header = read(paths).header
    assert header.PatientID == "P" * 80
    assert header.AccessionNumber == "A" * 20
    assert [str(header[keyword].value) for keyword in ("PatientSex", "PatientBirthDate", "StudyTime")] == ["", "", ""]
    assert "PatientAge" not in header


def test_sequences_come_along_without_private_or_incomplete_items(tmp_path: Path) -> None:
    whole = item(CodeValue="24627-2", CodingSchemeDesignator="LN", CodeMeaning="CT Chest")
    whole.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "secret")
    attributes = {
        "ProcedureCodeSequence": [whole, item(CodeValue="half")],
        "OtherPatientIDsSequence": [item(PatientID="Q-2", TypeOfPatientID="TEXT")],
        "IssuerOfAccessionNumberSequence": [item(LocalNamespaceEntityID="RIS")],
        "IssuerOfPatientID": "HOSPITAL",
        "TimezoneOffsetFromUTC": "+0100",
        "ClinicalTrialSponsorName": "ACME",
        "DeidentificationMethod": ["basic", "clean"],
        "SeriesDescription": "must stay behind",
    }
    header = read(make_series(tmp_path, planes=2, attributes=attributes)).header
    assert [dict(code.items()).keys() for code in header.ProcedureCodeSequence] == [
        {0x00080100, 0x00080102, 0x00080104}
    ]
    assert header.OtherPatientIDsSequence[0].PatientID == "Q-2"
    assert header.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"
    assert (header.IssuerOfPatientID, header.TimezoneOffsetFromUTC) == ("HOSPITAL", "+0100")
    assert list(header.DeidentificationMethod) == ["basic", "clean"]
    assert "SeriesDescription" not in header
    assert not any(element.tag.is_private for element in header.iterall())


def test_requests_become_referenced_request_items(tmp_path: Path) -> None:
    request = item(RequestedProcedureID="RP1", ScheduledProcedureStepID="S1", AccessionNumber="A-18")
    (found,) = read(make_series(tmp_path, planes=2, attributes={"RequestAttributesSequence": [request]})).requests
    assert (found.RequestedProcedureID, found.AccessionNumber) == ("RP1", "A-18")
    assert found.StudyInstanceUID == dcmread(next(tmp_path.iterdir())).StudyInstanceUID
    assert "ScheduledProcedureStepID" not in found
    assert found.FillerOrderNumberImagingServiceRequest == ""


@pytest.mark.parametrize(
    ("part", "expected"), [("HEAD", {"BodyPartExamined": "HEAD"}), (None, {}), ("", {}), ("Head/Neck", {})]
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_the_body_part_is_taken_over_where_it_is_a_code_string(
    tmp_path: Path, part: str | None, expected: dict[str, str]
) -> None:
    attributes = {"BodyPartExamined": part, "Laterality": "R"}
    found = read(make_series(tmp_path, planes=2, attributes=attributes)).body_part
    assert {element.keyword: element.value for element in found} == expected


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "IssuerOfPatientID"])
def test_contradictory_identity_is_refused_without_naming_the_patient(tmp_path: Path, keyword: str) -> None:
    def differ(plane: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, f"1.2.{plane}")

    paths = make_series(tmp_path, planes=3, edit=differ, patient_id="SECRET")
    with pytest.raises(ContradictoryIdentity, match=f"3 different values of {keyword}") as caught:
        read(paths)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
def test_a_source_without_identifiers_is_refused(tmp_path: Path, keyword: str) -> None:
    paths = make_series(tmp_path, planes=2)
    for path in paths:
        dataset = dcmread(path)
        setattr(dataset, keyword, "")
        dataset.save_as(path)
    with pytest.raises(InputRefused, match=keyword):
        read(paths)


def test_other_files_than_those_of_the_volume_are_refused(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=4)
    with pytest.raises(InputRefused) as caught:
        read_source(paths[:3], geometry_of(paths))
    assert caught.value.reason == "sources_differ"


def test_what_the_volume_left_out_carries_no_result_but_is_of_the_same_patient(tmp_path: Path) -> None:
    """A stack across, which the contract leaves out, may even lie in another frame of reference."""

    def elsewhere(plane: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID, dataset.FrameOfReferenceUID = f"2.25.9{plane}", "2.25.5"

    paths = make_series(tmp_path, planes=4)
    others = make_series(tmp_path / "others", planes=2, orientation="sagittal", edit=elsewhere)
    source = read_source([*others, *paths], geometry_of(paths))
    assert source.sop_instance_uids == geometry_of(paths).sop_instance_uids
    dataset = dcmread(others[0])
    dataset.PatientID = "SOMEBODY"
    dataset.save_as(others[0])
    with pytest.raises(ContradictoryIdentity) as caught:
        read_source([*others, *paths], geometry_of(paths))
    assert "SOMEBODY" not in str(caught.value)


def test_instances_follow_the_volume_and_not_the_order_of_files(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=5)
    geometry = geometry_of(paths)
    for order in (paths, paths[::-1], [paths[index] for index in (2, 0, 4, 1, 3)]):
        assert read_source(order, geometry).sop_instance_uids == geometry.sop_instance_uids


@pytest.mark.parametrize(
    ("attributes", "moment"),
    [
        ({}, Moment("20240102", "030511")),
        ({"ContentDate": "20240103", "ContentTime": "07"}, Moment("20240103", "070000")),
        ({"AcquisitionDateTime": "20250101101112.5000-0500"}, Moment("20250101", "101112.5000")),
        ({"StudyDate": "20260101", "StudyTime": ""}, Moment("20260101", "000000")),
    ],
)
def test_results_are_dated_by_the_latest_moment_of_the_source(
    tmp_path: Path, attributes: dict[str, str], moment: Moment
) -> None:
    assert read(make_series(tmp_path, planes=2, attributes=attributes)).moment == moment


def test_a_source_without_any_date_still_gives_one_and_always_the_same(tmp_path: Path) -> None:
    undated = {
        f"{what}{part}": None for what in ("Study", "Series", "Acquisition", "Content") for part in ("Date", "Time")
    }
    assert read(make_series(tmp_path, planes=2, attributes=undated)).moment == Moment("19000101", "000000")


def test_a_request_that_only_another_image_names_is_named_too_and_each_once(tmp_path: Path) -> None:
    def order(plane: int, dataset: Dataset) -> None:
        dataset.RequestAttributesSequence = [item(RequestedProcedureID="RP1"), item(RequestedProcedureID=f"RP{plane}")]

    paths = make_series(tmp_path, planes=4, edit=order)
    assert sorted(each.RequestedProcedureID for each in read(paths).requests) == ["RP0", "RP1", "RP2", "RP3"]


PICTURES = {"FrameOfReferenceUID": None, "ImagePositionPatient": None, "ImageOrientationPatient": None}


@pytest.mark.parametrize(
    ("modality", "sop_class"),
    [
        ("CR", "1.2.840.10008.5.1.4.1.1.1"),
        ("DX", "1.2.840.10008.5.1.4.1.1.1.1"),
        ("MG", "1.2.840.10008.5.1.4.1.1.1.2"),
        ("US", "1.2.840.10008.5.1.4.1.1.6.1"),
        ("XA", "1.2.840.10008.5.1.4.1.1.12.1"),
        ("OT", "1.2.840.10008.5.1.4.1.1.7"),
    ],
)
def test_pictures_carry_results_in_the_order_of_their_numbers(tmp_path: Path, modality: str, sop_class: str) -> None:
    attributes = {**PICTURES, "PixelSpacing": None, "Modality": modality, "SOPClassUID": sop_class}
    paths = make_series(tmp_path, planes=3, attributes=attributes)
    source = read_source(paths)
    wanted = sorted((dcmread(path) for path in paths), key=lambda each: each.InstanceNumber)
    assert source.sop_instance_uids == tuple(each.SOPInstanceUID for each in wanted)
    assert (source.modality, source.frame_of_reference_uid, source.positions) == (modality, "", {})
    assert source.instances[0].SamplesPerPixel == 1


def test_planes_need_a_frame_of_reference(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=2)
    geometry = geometry_of(paths)
    for path in paths:
        dataset = dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    with pytest.raises(InputRefused, match="no FrameOfReferenceUID"):
        read_source(paths, geometry)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("cxr/RG1_J2KI.dcm", "CR"),
        ("cxr/PatientA.dcm", "CR"),
        ("cxr/ex-covid_rgb_sc.dcm", ""),
        ("other/MG_OutOfBoundsOverlay.dcm", "MG"),
        ("other/US1_J2KR.dcm", "US"),
        ("other/XA1_J2KR.dcm", "XA"),
        ("nonimage/waveform_ecg.dcm", "ECG"),
    ],
)
def test_real_pictures_and_waveforms_carry_results(shared_dicom: Path, name: str, modality: str) -> None:
    path = shared_dicom / name
    source = read_source([path])
    dataset = dcmread(path, stop_before_pixels=True)
    assert (source.modality, source.sop_instance_uids) == (modality, (dataset.SOPInstanceUID,))
    assert source.study_instance_uid == dataset.StudyInstanceUID
    assert source.moment.date != "19000101" or not dataset.get("StudyDate")


def test_further_inputs_are_named_and_must_be_of_the_same_patient_and_study(tmp_path: Path) -> None:
    first = make_series(tmp_path / "1", planes=3, seed="1")
    order = {"RequestAttributesSequence": [item(RequestedProcedureID="RP9")], "SeriesTime": "235959"}
    second = make_series(tmp_path / "2", planes=2, seed="2", attributes=order)
    source = read_source(first, geometry_of(first), others=[second, first])
    assert [len(each.instances) for each in source.inputs] == [3, 2]
    assert [each.RequestedProcedureID for each in source.requests] == ["RP9"]
    assert source.moment.time == "235959"
    stranger = make_series(tmp_path / "3", planes=2, seed="3", patient_id="P-2")
    with pytest.raises(ContradictoryIdentity, match="different values of PatientID"):
        read_source(first, geometry_of(first), others=[stranger])
    elsewhere = make_series(tmp_path / "4", planes=2, seed="4", study="other")
    with pytest.raises(ContradictoryIdentity, match="StudyInstanceUID"):
        read_source(first, geometry_of(first), others=[elsewhere])
