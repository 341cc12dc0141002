import pytest
from encoded import written
from hypothesis import given
from hypothesis import strategies as st
from pydicom.charset import encode_string, python_encoding
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from meddaemon.ingest import scan
from meddaemon.ingest.header import DESCRIBING, IDENTITY, MAXIMUM_COMPONENTS, MAXIMUM_VALUE_CHARACTERS, read_header

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
EXTRA = (
    "DiffusionBValue",
    "AcquisitionDateTime",
    "FrameIncrementPointer",
    "SmallestImagePixelValue",
    "PatientComments",
)


def header_of(data_set: Dataset, syntax: str = ExplicitVRLittleEndian) -> dict[str, tuple[str, ...]]:
    return dict(read_header(written(data_set, syntax), syntax, EXTRA))


def series() -> Dataset:
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    data_set.SOPInstanceUID = "1.2.3"
    data_set.Modality = "MR"
    data_set.SeriesDescription = "tête Köpf 頭"
    data_set.PatientID = "P 1"
    data_set.PatientComments = "one\\comment"
    data_set.RepetitionTime = "2000"
    data_set.AcquisitionDateTime = "20240102030405"
    data_set.DiffusionBValue = 1000.5
    data_set.ImageOrientationPatient = ["1", "0", "-0.5", "0", "1e-1", "0"]
    data_set.Rows = 513
    data_set.PixelRepresentation = 1
    data_set.FrameIncrementPointer = [0x00181063, 0x00540010]
    data_set.add_new("SmallestImagePixelValue", "SS", -2)
    data_set.InstanceNumber = 7
    data_set.EchoTime = ""
    return data_set


@pytest.mark.parametrize("syntax", NATIVE)
def test_every_kind_of_value_is_read_in_every_syntax(syntax: str) -> None:
    header = header_of(series(), syntax)
    assert set(header) == {*IDENTITY, *DESCRIBING, *EXTRA}
    assert {keyword: value for keyword, value in header.items() if value} == {
        "SOPInstanceUID": ("1.2.3",),
        "ImageType": ("ORIGINAL", "PRIMARY", "M", "ND"),
        "Modality": ("MR",),
        "SeriesDescription": ("tête Köpf 頭",),
        "PatientID": ("P 1",),
        "PatientComments": ("one\\comment",),
        "RepetitionTime": ("2000",),
        "AcquisitionDateTime": ("20240102030405",),
        "DiffusionBValue": ("1000.5",),
        "ImageOrientationPatient": ("1", "0", "-0.5", "0", "1e-1", "0"),
        "Rows": ("513",),
        "FrameIncrementPointer": ("(0018,1063)", "(0054,0010)"),
        "SmallestImagePixelValue": ("-2",),
        "InstanceNumber": ("7",),
    }


NAMES = {
    "ISO_IR 100": "Buc^Jérôme",
    "ISO_IR 144": "Люкceмбypг",
    "ISO_IR 126": "Διονυσιος",
    "ISO_IR 192": "Wang^XiaoDong=王^小東",
    "GB18030": "Wang^XiaoDong=王^小东",
    "ISO_IR 13": "ﾔﾏﾀﾞ^ﾀﾛｳ",
}


def with_text(charset: bytes, text: bytes) -> bytes:
    """Return a data set of a character set and a Series Description."""
    charset, text = (value + b" " * (len(value) % 2) for value in (charset, text))
    data = b"\x08\x00\x05\x00CS" + len(charset).to_bytes(2, "little") + charset
    return data + b"\x08\x00\x3e\x10LO" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("charset", NAMES)
def test_text_is_read_in_its_character_set(charset: str) -> None:
    data = with_text(charset.encode(), NAMES[charset].encode(python_encoding[charset]))
    assert read_header(data, ExplicitVRLittleEndian)["SeriesDescription"] == (NAMES[charset],)


def test_text_is_read_through_code_extensions() -> None:
    text = encode_string("山田 太郎", [python_encoding[""], python_encoding["ISO 2022 IR 87"]])
    data = with_text(b"\\ISO 2022 IR 87", text)
    assert read_header(data, ExplicitVRLittleEndian)["SeriesDescription"] == ("山田 太郎",)


@given(st.binary(max_size=12), st.binary(max_size=24))
def test_no_character_set_and_no_text_stops_the_reader(charset: bytes, text: bytes) -> None:
    for component in read_header(with_text(charset, text), ExplicitVRLittleEndian)["SeriesDescription"]:
        assert "\0" not in component
        component.encode()  # no lone surrogates: databases refuse them


@pytest.mark.parametrize("charset", [b"unicode_escape", b"idna", b"utf-7", b"zip", b"rot13", b"punycode", b"\xff\0x"])
def test_codecs_of_python_are_no_character_sets(charset: bytes) -> None:
    data = with_text(charset, rb"a\ud800")
    assert read_header(data, ExplicitVRLittleEndian)["SeriesDescription"] == ("a", "ud800")


def test_values_are_bounded() -> None:
    data_set = Dataset()
    data_set.ImageType = [f"V{number}" for number in range(1000)]
    data_set.PatientComments = "x" * 100_000
    header = header_of(data_set, ImplicitVRLittleEndian)
    assert len(header["ImageType"]) == MAXIMUM_COMPONENTS
    assert header["PatientComments"] == ("x" * MAXIMUM_VALUE_CHARACTERS,)


@pytest.mark.parametrize("vr", [b"OB", b"SQ", b"ZZ", b"UN"])
def test_a_value_of_an_unfitting_vr_is_absent_and_unknown_vr_is_looked_up(vr: bytes) -> None:
    data = b"\x28\x00\x10\x00" + vr + b"\0\0\x00\x00\x00\x00"
    assert read_header(data, ExplicitVRLittleEndian)["Rows"] == ()
    data = b"\x28\x00\x10\x00UN\0\0\x02\x00\x00\x00\x07\x00"
    assert read_header(data, ExplicitVRLittleEndian)["Rows"] == ("7",)


def test_a_number_that_is_no_whole_number_of_bytes_is_absent() -> None:
    assert read_header(b"\x28\x00\x10\x00US\x03\x00abc", ExplicitVRLittleEndian)["Rows"] == ()


def test_what_is_not_whole_is_malformed() -> None:
    with pytest.raises(scan.Malformed):
        read_header(b"\x28\x00\x10\x00US\x03\x00ab", ExplicitVRLittleEndian)
