"""Text from a source to its results: read as the Standard says it, and written in its own character set on demand."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from dicom_factory import make_series
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from result_samples import contract, geometry_of, request_for

from meddaemon.domain.character_sets import character_sets
from meddaemon.domain.result import EncodedObject, LeftOut
from meddaemon.results.encoding import EncodingRequest, encode
from meddaemon.results.source import SourceSeries, read_source
from meddaemon.results.texts import character_sets_of, say, understood
from meddaemon.results.transcoding import as_syntax

JAPANESE = ("", "ISO 2022 IR 87"), "Yamada^Tarou=山田^太郎=やまだ^たろう", "脳の予本"
KOREAN = ("", "ISO 2022 IR 149"), "Hong^Gildong=洪^吉洞=홍^길동", "뇌 MR 김"
CHINESE = ("", "ISO 2022 IR 58"), "Zhang^XiaoDong=张^小东", "脑 MR 张"
MIXED = ("ISO 2022 IR 100", "ISO 2022 IR 144"), "Люк^Jürgen", "Mü Люк é"
OF_ONE_VALUE = [
    (("ISO_IR 13",), "ﾔﾏﾀﾞ^ﾀﾛｳ", "ﾉｳ"),
    (("GB18030",), "Wang^XiaoDong=王^小东", "脑乗"),
    (("ISO_IR 203",), "Œuvre^Ÿ", "5 € Œ"),
    (("ISO_IR 166",), "สมชาย^ใจดี", "สมอง"),
    (("ISO_IR 138",), "שרון^דבורה", "מוח"),
]
SETS = [JAPANESE, KOREAN, CHINESE, MIXED, *OF_ONE_VALUE]


def series(folder: Path, terms: Sequence[str], name: str, description: str) -> list[Path]:
    """A series whose texts are written in these character sets; that they are right says test_character_sets.py."""

    def spoken(_: int, dataset: Dataset) -> None:
        dataset.PatientName, dataset.StudyDescription = name, description
        dataset.OtherPatientNames = [name, name]
        dataset.PatientComments = f"{description}\r\n{description}"
        dataset.RequestAttributesSequence = [Dataset()]
        dataset.RequestAttributesSequence[0].RequestedProcedureDescription = description
        assert say(dataset, character_sets(terms))

    return make_series(folder, planes=3, edit=spoken)


def with_bytes(folder: Path, keyword: str, vr: str, value: bytes) -> list[Path]:
    """A series in whose headers an attribute has this VR and value, which no writer would write."""

    def spoil(_: int, dataset: Dataset) -> None:
        tag = Tag(tag_for_keyword(keyword) or 0)
        padded = value + b" " * (len(value) % 2)
        dataset[tag] = RawDataElement(tag, vr, len(padded), padded, 0, False, True)
        dataset.set_original_encoding(False, True, "ISO_IR 100")

    return make_series(folder, planes=3, edit=spoil)


def read(paths: list[Path]) -> SourceSeries:
    return read_source(paths, geometry_of(paths))


def encoded(request: EncodingRequest) -> tuple[tuple[EncodedObject, ...], dict[str, str]]:
    left_out: list[LeftOut] = []
    objects = encode(request, left_out.append)
    return objects, {each.what: each.why for each in left_out}


@pytest.mark.parametrize(("terms", "name", "description"), SETS)
def test_names_arrive_as_they_are(terms: Sequence[str], name: str, description: str, tmp_path: Path) -> None:
    source = read(series(tmp_path, terms, name, description))
    header = source.header
    assert (str(header.PatientName), header.StudyDescription) == (name, description)
    assert [*map(str, header.OtherPatientNames)] == [name, name]
    assert header.PatientComments == f"{description}\r\n{description}"
    assert source.requests[0].RequestedProcedureDescription == description
    assert source.left_out == ()


def test_escape_sequences_are_read_though_the_header_does_not_announce_them(tmp_path: Path) -> None:
    name = b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"
    paths = make_series(tmp_path, planes=3, patient_name="N" * len(name))
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"N" * len(name), name))
    assert str(read(paths).header.PatientName) == "山田^太郎"


@pytest.mark.parametrize(
    ("keyword", "vr", "value", "carried"),
    [
        ("StudyInstanceUID", "UI", b"1.2.003\0", "1.2.003"),
        ("StudyInstanceUID", "UI", b"1.2.3 ", "1.2.3"),
        ("PatientID", "LO", b"P\0\0\0", "P"),
        ("PatientID", "LO", b" P 1  ", " P 1"),
        ("PatientID", "UT", b"P-1", "P-1"),
        ("PatientID", "IS", b"12", "12"),
        ("PatientID", "LO", b"P\x07Q", None),
        ("PatientName", "PN", b"\x1b$)Xabc", None),
        ("PatientName", "PN", b"=A^B=", "=A^B"),
        ("PatientBirthDate", "DA", b"1970.01.31", "19700131"),
        ("PatientBirthDate", "DA", b"31.01.1970", None),
        ("StudyDate", "DA", b"20240101-20240202", None),
        ("StudyTime", "TM", b"10:11:12.5", "101112.5"),
        ("StudyTime", "TM", b"10", "10"),
        ("PatientAge", "AS", b"53Y", "053Y"),
        ("PatientSex", "CS", b"m ", "M"),
        ("PatientSex", "CS", b"Female", None),
        ("PatientWeight", "DS", b"70.1234567890123999", "70.1234567890124"),
        ("PatientWeight", "DS", b"70,5", None),
        ("PatientWeight", "FD", b"\0\0\0\0\0\x80Q@", "70.0"),
        ("PatientSize", "DS", b"1.8\\1.9", None),
        ("PregnancyStatus", "IS", b"4 ", "4"),
        ("PregnancyStatus", "US", b"\4\0\3\0", None),
        ("ProcedureCodeSequence", "LO", b"junk", None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_value_is_copied_in_its_meaning_or_it_is_said_that_it_is_not(
    keyword: str, vr: str, value: bytes, carried: str | None, tmp_path: Path
) -> None:
    objects, left_out = encoded(request_for(with_bytes(tmp_path, keyword, vr, value)))
    for each in objects:
        found = dcmread(BytesIO(each.content)).get(keyword)
        assert str(found or "") == (carried or "")
    assert (f"{keyword} of the source" in left_out) is (carried is None)


@pytest.mark.parametrize("keyword", ["SeriesNumber", "InstanceNumber", "SliceThickness"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_number_that_is_none_stops_no_result(keyword: str, tmp_path: Path) -> None:
    vr = "DS" if keyword == "SliceThickness" else "IS"
    assert len(encode(request_for(with_bytes(tmp_path, keyword, vr, b"3.x")))) == 2


def test_what_is_empty_in_an_item_stays_empty_and_an_order_keeps_its_issuer(tmp_path: Path) -> None:
    issuer, patient, step, other_step = Dataset(), Dataset(), Dataset(), Dataset()
    issuer.LocalNamespaceEntityID = "RIS"
    patient.PatientID, patient.IssuerOfPatientID, patient.TypeOfPatientID = "Q-2", None, "TEXT"
    step.RequestedProcedureID, step.ScheduledProcedureStepID = "RP1", "S1"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning, code.CodingSchemeVersion = "C1", "99RIS", "Head", ""
    step.RequestedProcedureCodeSequence = other_step.RequestedProcedureCodeSequence = [code]
    other_step.RequestedProcedureID, other_step.ScheduledProcedureStepID = "RP1", "S2"
    attributes = {
        "AccessionNumber": "A-1",
        "IssuerOfAccessionNumberSequence": [issuer],
        "OtherPatientIDsSequence": [patient, Dataset()],
        "RequestAttributesSequence": [step, other_step],
    }
    request = request_for(make_series(tmp_path, planes=3, attributes=attributes))
    (request_item,) = request.source.requests
    assert request_item.AccessionNumber == "A-1"
    assert "CodingSchemeVersion" not in request_item.RequestedProcedureCodeSequence[0], "of a code nothing is empty"
    assert request_item.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "RIS"
    objects, left_out = encoded(request)
    for each in objects:
        (found,) = dcmread(BytesIO(each.content)).OtherPatientIDsSequence
        assert (found.PatientID, found.IssuerOfPatientID, found.TypeOfPatientID) == ("Q-2", "", "TEXT")
    assert "OtherPatientIDsSequence of the source" in left_out


@pytest.mark.parametrize(("terms", "name", "description"), SETS)
def test_results_are_in_the_character_set_of_their_source_where_that_is_wanted(
    terms: Sequence[str], name: str, description: str, tmp_path: Path
) -> None:
    request = request_for(series(tmp_path, terms, name, description), contract=contract(title=description))
    spoken, left_out = encoded(replace(request, in_source_set=True))
    assert not [what for what in left_out if "character set" in what]
    for each in spoken:
        dataset = understood(dcmread(BytesIO(each.content)))
        assert character_sets_of(dataset) == character_sets(terms)
        assert (str(dataset.PatientName), dataset.StudyDescription) == (name, description)
        assert dataset.ContributingEquipmentSequence[-1].ContributionDescription == description
    plain = encode(request)
    assert {each.sop_instance_uid for each in plain}.isdisjoint(each.sop_instance_uid for each in spoken)
    assert [each.content for each in encode(replace(request, in_source_set=True))] == [each.content for each in spoken]


def test_an_object_of_which_the_set_lacks_a_character_is_in_utf_8_and_it_is_said(tmp_path: Path) -> None:
    request = request_for(series(tmp_path, *MIXED), contract=contract(title="脳"))
    objects, left_out = encoded(replace(request, in_source_set=True))
    sets = "ISO 2022 IR 100\\ISO 2022 IR 144"
    for each in objects:
        dataset = dcmread(BytesIO(each.content))
        assert dataset.SpecificCharacterSet == "ISO_IR 192"
        assert str(dataset.PatientName) == MIXED[1]
        assert "in ISO_IR 192" in left_out[f"the character set {sets} in {each.name}"]


def test_a_source_of_plain_ascii_has_results_without_character_set(tmp_path: Path) -> None:
    request = request_for(make_series(tmp_path, planes=3, charset=None))
    for each in encode(replace(request, in_source_set=True)):
        assert "SpecificCharacterSet" not in dcmread(BytesIO(each.content))


@pytest.mark.parametrize(("terms", "name", "description"), [CHINESE, MIXED])
def test_another_transfer_syntax_says_the_same(
    terms: Sequence[str], name: str, description: str, tmp_path: Path
) -> None:
    request = request_for(series(tmp_path / "source", terms, name, description))
    report = encode(replace(request, in_source_set=True))[1]
    path = tmp_path / "report"
    path.write_bytes(report.content)
    with as_syntax(path, ExplicitVRLittleEndian, ImplicitVRLittleEndian) as other:
        dataset = understood(dcmread(other))
    assert dataset.original_encoding == (True, True)
    assert (str(dataset.PatientName), dataset.StudyDescription) == (name, description)


@pytest.mark.peer
@pytest.mark.parametrize(("terms", "name", "description"), [KOREAN, CHINESE, MIXED, *OF_ONE_VALUE[3:]])
def test_dcmtk_reads_the_same(terms: Sequence[str], name: str, description: str, tmp_path: Path) -> None:
    """It knows no Japanese on Debian, whose iconv lacks it, and no ISO_IR 203."""
    program = shutil.which("dcmconv")
    if program is None:
        pytest.skip("dcmtk is not installed")
    request = request_for(series(tmp_path, terms, name, description))
    for each in encode(replace(request, in_source_set=True)):
        (tmp_path / "object").write_bytes(each.content)
        subprocess.run([program, "+U8", tmp_path / "object", tmp_path / "utf-8"], check=True)
        dataset = dcmread(tmp_path / "utf-8")
        assert (str(dataset.PatientName), dataset.StudyDescription) == (name, description)


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_names_of_real_files_are_said_again_in_their_own_sets(shared_dicom: Path) -> None:
    paths = [*(shared_dicom / "charset").iterdir(), *(shared_dicom / "derived" / "japanese_name").iterdir()]
    for path in paths:
        dataset = understood(dcmread(path, stop_before_pixels=True))
        sets, name = character_sets_of(dataset), str(dataset.PatientName)
        said = sets.encode(name, "\\^=")
        assert sets.is_known
        assert sets.decode(said, "\\^=") == name
        assert name == _by_pydicom(path)
    assert len(paths) == 14


def _by_pydicom(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).PatientName)
