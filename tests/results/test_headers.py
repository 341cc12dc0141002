"""Whatever one header lacks or spoils, both objects are written, pass the gate and carry what could be carried."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from dicom_factory import make_series
from pydicom import Dataset, dcmread
from result_samples import request_for

from meddaemon.domain.result import EncodedObject
from meddaemon.results.encoding import encode
from meddaemon.results.source import TYPE_2


def read(objects: Sequence[EncodedObject]) -> list[Dataset]:
    return [dcmread(BytesIO(each.content)) for each in objects]


@pytest.mark.parametrize(
    "keyword",
    [
        *TYPE_2,
        "SliceThickness",
        "Manufacturer",
        "SoftwareVersions",
        "BodyPartExamined",
        "PositionReferenceIndicator",
        "SeriesNumber",
        "AcquisitionDate",
        "Modality",
        "StudyDescription",
    ],
)
def test_a_single_missing_attribute(tmp_path: Path, keyword: str) -> None:
    for dataset in read(encode(request_for(make_series(tmp_path, planes=3, attributes={keyword: None})))):
        assert str(dataset.get(keyword) or "") == "" or keyword not in TYPE_2


@pytest.mark.parametrize(
    "keyword", ["StudyDescription", "PatientAge", "PatientWeight", "PregnancyStatus", "IssuerOfPatientID"]
)
def test_an_empty_attribute_stays_empty_and_an_absent_one_absent(tmp_path: Path, keyword: str) -> None:
    def empty(_: int, dataset: Dataset) -> None:
        setattr(dataset, keyword, None)

    for dataset in read(encode(request_for(make_series(tmp_path / "empty", planes=3, edit=empty)))):
        assert keyword in dataset
        assert dataset[keyword].is_empty
    for dataset in read(encode(request_for(make_series(tmp_path / "gone", planes=3, attributes={keyword: None})))):
        assert keyword not in dataset


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 144", "Люкceмбypг^Ия"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Zhang^XiaoDong=张^小东"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小東=Ωμέγα"),
    ],
)
def test_every_character_set(tmp_path: Path, charset: str | list[str] | None, name: str) -> None:
    for dataset in read(encode(request_for(make_series(tmp_path, planes=3, charset=charset, patient_name=name)))):
        assert str(dataset.PatientName) == name
        assert dataset.SpecificCharacterSet == "ISO_IR 192"


def test_bytes_beyond_ascii_without_a_character_set_are_read_as_latin_1(tmp_path: Path) -> None:
    paths = make_series(tmp_path, planes=3, charset="ISO_IR 100", patient_name="Müller^Jürgen")
    for path in paths:
        content = path.read_bytes()
        element = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"
        assert content.count(element) == 1
        path.write_bytes(content.replace(element, b""))
    assert "SpecificCharacterSet" not in dcmread(paths[0])
    assert [str(each.PatientName) for each in read(encode(request_for(paths)))] == ["Müller^Jürgen"] * 2


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("keyword", "vr", "value", "carried"),
    [
        ("PatientSex", "CS", "X", ""),
        ("PatientSex", "CS", "U", ""),
        ("PatientBirthDate", "DA", "1970.01.31", "19700131"),
        ("PatientBirthDate", "DA", "31.01.1970", ""),
        ("StudyDate", "DA", "20241399", ""),
        ("StudyTime", "TM", "noon", ""),
        ("PatientID", "LO", "P" * 70, "P" * 70),
        ("PatientID", "LO", "A\\B", "['A', 'B']"),
        ("PatientName", "PN", "N" * 70, "N" * 70),
        ("PatientName", "PN", "A^B^C^D^E^F^G", "A^B^C^D^E^F^G"),
        ("AccessionNumber", "SH", "A" * 20, "A" * 20),
        ("StudyID", "SH", "S" * 20, "S" * 20),
        ("PatientAge", "AS", "53", None),
        ("PatientWeight", "DS", "heavy", None),
        ("BodyPartExamined", "CS", "Head/Neck", None),
        ("TimezoneOffsetFromUTC", "SH", "+0530", "+0530"),
    ],
)
def test_a_single_bad_value(tmp_path: Path, keyword: str, vr: str, value: str, carried: str | None) -> None:
    def spoil(_: int, dataset: Dataset) -> None:
        dataset.add_new(keyword, vr, "" if vr == "DS" else value)

    paths = make_series(tmp_path, planes=3, edit=spoil)
    if vr == "DS":
        for path in paths:
            # pydicom will not write such a value: put it into the bytes, even length, explicit VR.
            at = path.read_bytes().index(b"\x10\x00\x30\x10DS\x00\x00")
            content = path.read_bytes()
            path.write_bytes(content[:at] + b"\x10\x00\x30\x10DS\x06\x00heavy " + content[at + 8 :])
    for dataset in read(encode(request_for(paths))):
        found = str(dataset[keyword].value or "") if keyword in dataset else None
        assert found == carried


@pytest.mark.parametrize("part", ["KNEE", None])
@pytest.mark.parametrize("laterality", ["R", "", None])
def test_a_segmentation_has_no_laterality_of_its_series(
    tmp_path: Path, part: str | None, laterality: str | None
) -> None:
    attributes = {"BodyPartExamined": part, "Laterality": laterality}
    seg, sr = read(encode(request_for(make_series(tmp_path, planes=3, attributes=attributes))))
    assert seg.get("BodyPartExamined") == part
    assert "Laterality" not in seg
    assert "BodyPartExamined" not in sr


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_patient_is_logged_or_warned_about(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def spoil(_: int, dataset: Dataset) -> None:
        dataset.add_new("PatientName", "PN", "SECRET=" * 5)
        dataset.add_new("PatientBirthDate", "DA", "SECRET")
        dataset.add_new("PatientID", "LO", "SECRET" * 20)

    request = request_for(make_series(tmp_path / "series", planes=3, edit=spoil))
    recwarn.clear()
    caplog.clear()
    with caplog.at_level("DEBUG"):
        encode(request)
    assert "SECRET" not in caplog.text
    assert not [warning for warning in recwarn if "SECRET" in str(warning.message)]
    assert "SECRET" not in "".join(capfd.readouterr())
