"""The header scan says what pydicom says of every real file and of every data set that can be made; or refuses."""

import os
import random
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydicom import config as pydicom_config
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from meddaemon.inference import part10

PIXEL_DATA = 0x7FE00010
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def scanned(path: Path) -> part10.Header:
    file = os.open(path, os.O_RDONLY)
    try:
        return part10.read(file)
    finally:
        os.close(file)


def plain(found: part10.Attributes) -> dict[str, object]:
    """What was found, as one dictionary."""
    sequences = {name: [plain(item) for item in items] for name, items in found.sequences.items()}
    return {**found.texts, **found.words, **found.numbers, **sequences}


CODES = {part10.Kind.LONGS: ("I", 4), part10.Kind.DOUBLES: ("d", 8)}


def expected(dataset: Dataset, schema: part10.Schema, *, little: bool) -> dict[str, object]:
    """The same by pydicom, from the bytes of its elements."""
    values: dict[str, object] = {}
    for tag, (keyword, kind, _) in schema.items():
        if tag not in dataset:
            continue
        if not isinstance(kind, part10.Kind):
            items = dataset[tag].value or []
            values[keyword] = [expected(item, kind, little=little) for item in items]
            continue
        raw = dataset.get_item(tag)
        assert isinstance(raw, RawDataElement | DataElement)
        value = raw.value
        if isinstance(value, str | MultiValue):  # pydicom has converted it already
            value = "\\".join([value] if isinstance(value, str) else value).encode("ascii")
        if not isinstance(value, bytes):
            continue
        if kind is part10.Kind.TEXT:
            value = value.rstrip(b" \0")
            if value:
                values[keyword] = value
        elif value:
            code, size = CODES.get(kind, ("H", 2))
            if len(value) % size == 0:
                values[keyword] = struct.unpack(f"{'<' if little else '>'}{len(value) // size}{code}", value)
    return values


def assert_equal_to_pydicom(path: Path) -> None:
    header = scanned(path)
    with pydicom_config.disable_value_validation():
        dataset = dcmread(path, defer_size=None)
    assert plain(header.meta) == expected(dataset.file_meta, part10.FILE_META, little=True)
    little = dataset.original_encoding[1]
    assert plain(header.data_set) == expected(dataset, part10.SCHEMA, little=bool(little))
    pixels = dataset.get_item(PIXEL_DATA)
    assert (header.pixels is None) == (pixels is None)
    if header.pixels is not None and isinstance(pixels, RawDataElement):
        assert header.pixels.position == pixels.value_tell
        assert (header.pixels.length is None) == (pixels.length == 0xFFFFFFFF)


REFUSED = {
    "broken/no_meta.dcm",
    "broken/meta_missing_tsyntax.dcm",
    "broken/rtplan_truncated.dcm",
    "nonimage/rtstruct.dcm",
}


@pytest.mark.shared
def test_every_real_file_reads_as_with_pydicom(shared_dicom: Path) -> None:
    refused = set()
    paths = sorted(shared_dicom.rglob("*.dcm"))
    for path in [*paths[::7], *(path for path in paths if path.parent.parent.name != "series")]:
        try:
            scanned(path)
        except part10.Malformed:
            refused.add(str(path.relative_to(shared_dicom)))
            continue
        assert_equal_to_pydicom(path)
    assert refused == REFUSED


def _texts(keyword: str) -> st.SearchStrategy[object]:
    number = st.decimals(-1e4, 1e4, allow_nan=False, places=3).map(str)
    if "UID" in keyword:
        return st.from_regex(r"1\.2(\.[1-9][0-9]{0,6}){1,5}", fullmatch=True)
    if keyword in {"InstanceNumber", "AcquisitionNumber", "TemporalPositionIdentifier"}:
        return st.integers(-5, 5000).map(str)
    if keyword == "NumberOfFrames":
        return st.integers(1, 5000).map(str)
    if keyword in {"ImageType", "PhotometricInterpretation", "PatientID", "IssuerOfPatientID"}:
        return st.text("ABC 0_", max_size=16)
    if keyword == "SpecificCharacterSet":
        return st.just("ISO_IR 100")
    return st.lists(number, max_size=6)


NUMBERS: dict[part10.Kind, st.SearchStrategy[object]] = {
    part10.Kind.WORDS: st.integers(0, 65535),
    part10.Kind.LONGS: st.integers(0, 2**32 - 1),
    part10.Kind.DOUBLES: st.floats(allow_nan=False),
}


TABLES: dict[str, st.SearchStrategy[object]] = {
    "LUTData": st.binary(min_size=2, max_size=64).map(lambda raw: raw[: len(raw) // 2 * 2]),
    "LUTDescriptor": st.lists(st.integers(0, 32767), min_size=3, max_size=3),
}


def _data_sets(schema: part10.Schema) -> st.SearchStrategy[Dataset]:
    """Some of what is looked for, and much that is not, before and behind it."""
    choices: dict[str, st.SearchStrategy[object]] = {}
    for keyword, kind, _ in schema.values():
        if kind is part10.Kind.TEXT:
            choices[keyword] = _texts(keyword)
        elif keyword in TABLES:
            choices[keyword] = TABLES[keyword]
        elif isinstance(kind, part10.Kind) and kind in NUMBERS:
            choices[keyword] = NUMBERS[kind]
        else:
            choices[keyword] = st.lists(_data_sets(kind), max_size=2)  # type: ignore[arg-type]

    @st.composite
    def build(draw: st.DrawFn) -> Dataset:
        dataset = Dataset()
        for keyword, value in draw(st.fixed_dictionaries({}, optional=choices)).items():
            if keyword.endswith("Sequence"):
                setattr(dataset, keyword, Sequence(value))
                dataset[keyword].is_undefined_length = draw(st.booleans())  # type: ignore[attr-defined]
                for item in dataset[keyword].value:
                    item.is_undefined_length_sequence_item = draw(st.booleans())
            elif keyword == "LUTData":
                dataset.add_new(keyword, "OW", value)
            elif keyword.startswith("PixelPadding"):
                # Its VR would be that of the pixels, of which this data set may say nothing.
                dataset.add_new(keyword, "US", value)
            else:
                setattr(dataset, keyword, value)
        for tag, vr, other in draw(st.lists(_others, max_size=6, unique_by=lambda each: each[0])):
            dataset.add_new(tag, vr, other)
        return dataset

    return build()


def _nested(value: bytes, depth: int) -> Sequence:
    item = Dataset()
    item.add_new(0x00091001, "OB", value)
    item.is_undefined_length_sequence_item = bool(depth % 2)
    if depth:
        item.add_new(0x00091002, "SQ", _nested(value, depth - 1))
        item[0x00091002].is_undefined_length = bool(depth % 2)
    return Sequence([item, Dataset()])


_even = st.binary(max_size=40).map(lambda raw: raw[: len(raw) // 2 * 2])
_others: st.SearchStrategy[tuple[int, str, object]] = st.one_of(
    st.tuples(st.sampled_from([0x00091010, 0x00291010, 0x00431010]), st.sampled_from(["OB", "UN"]), _even),
    st.tuples(st.just(0x00291020), st.just("OB"), st.binary(min_size=1, max_size=4).map(lambda raw: raw * 20_000)),
    st.tuples(st.just(0x00104000), st.just("LT"), st.text("xyz", max_size=20)),
    st.tuples(st.just(0x00081140), st.just("SQ"), st.builds(_nested, _even, st.integers(0, 5))),
    st.tuples(st.just(0x00182010), st.just("FD"), st.floats(-10, 10)),
    st.tuples(st.just(0x00280009), st.just("AT"), st.just(0x00181063)),
)


@settings(
    max_examples=150, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(dataset=_data_sets(part10.SCHEMA), syntax=st.sampled_from(SYNTAXES), pixels=st.booleans())
def test_every_data_set_reads_as_with_pydicom(
    tmp_path_factory: pytest.TempPathFactory, dataset: Dataset, syntax: str, pixels: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.dcm"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    if pixels:
        dataset.add_new(PIXEL_DATA, "OW", bytes(24))
    with pydicom_config.disable_value_validation():
        dcmwrite(path, FileDataset(str(path), dataset, file_meta=meta, preamble=bytes(128)), enforce_file_format=True)
    assert_equal_to_pydicom(path)


# --- hostile ----------------------------------------------------------------------------------------------------------


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    if vr in {b"OB", b"OW", b"SQ", b"UN", b"UT"}:
        return struct.pack("<HH2sHI", group, number, vr, 0, length) + value
    return struct.pack("<HH2sH", group, number, vr, length) + value


def file_of(path: Path, data_set: bytes, syntax: str = ExplicitVRLittleEndian) -> Path:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = element(2, 3, b"UI", b"1.2.3\0") + element(2, 0x10, b"UI", uid)
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + data_set)
    return path


UNDEFINED = 0xFFFFFFFF
ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
OPEN = element(8, 0x1140, b"SQ", b"", UNDEFINED) + ITEM

HOSTILE = {
    "a length beyond the file": element(0x10, 0x20, b"UN", b"x", 2**31),
    "a value of megabytes": element(0x28, 0x30, b"UT", b"1" * 2**20),
    "no VR": b"\x08\0\x18\0\0\0\0\0",
    "deep nesting": OPEN * 100_000,
    "a tag twice": element(0x28, 0x10, b"US", b"\1\0") * 2,
    "tags in falling order": element(0x28, 0x11, b"US", b"\1\0") + element(0x28, 0x10, b"US", b"\1\0"),
    "an item delimiter at the top": struct.pack("<HHI", 0xFFFE, 0xE00D, 0),
    "an item in place of an element": struct.pack("<HHI", 0xFFFE, 0xE000, 0),
    "a sequence without items": element(8, 0x1140, b"SQ", b"", UNDEFINED) + bytes(8),
    "a sequence without its end": OPEN + element(8, 0x1150, b"UI", b"1.2\0"),
    "an undefined length of text": element(0x10, 0x20, b"LO", b"").replace(b"LO\0\0", b"UT\0\0" + b"\xff" * 4),
    "rows in four bytes": element(0x28, 0x10, b"UL", b"\1\0\0\0"),
    "rows in one byte": element(0x28, 0x10, b"UN", b"\1"),
    "an item longer than its sequence": element(
        0x5200, 0x9230, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, 100) + b"12345678"
    ),
    "an item without its end in a sequence that ends": element(
        0x5200, 0x9230, b"SQ", ITEM + element(8, 1, b"UL", bytes(4))
    ),
    "functional groups that are text": element(0x5200, 0x9230, b"UT", b"1234"),
    "cut in a tag": b"\x08\0\x18",
}


@pytest.mark.fault(95)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_well_formed_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(part10.Malformed):
        scanned(file_of(tmp_path / "file", HOSTILE[name]))


def _deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return compressor.compress(data) + compressor.flush()


def test_a_deflated_header_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part10, "MAXIMUM_INFLATED_HEADER", 2**22)
    bomb = _deflate(element(0x29, 0x1010, b"OB", bytes(2**26)))
    assert len(bomb) < 2**17
    with pytest.raises(part10.Malformed, match="more than"):
        scanned(file_of(tmp_path / "file", bomb, DeflatedExplicitVRLittleEndian))


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_deflated_header_is_refused(tmp_path: Path, damage: str) -> None:
    data = _deflate(element(0x29, 0x1010, b"OB", random.Random(1).randbytes(2000)))
    data = data[:-400] if damage == "cut" else b"\x07" + data[1:]
    with pytest.raises(part10.Malformed):
        scanned(file_of(tmp_path / "file", data, DeflatedExplicitVRLittleEndian))


def test_mutated_headers_are_read_or_refused_never_worse(tmp_path: Path) -> None:
    """Bytes changed, left out and doubled in headers with everything that is looked for, in every native syntax."""
    random_ = random.Random(7)
    inside = Dataset()
    inside.ImagePositionPatient, inside.PixelSpacing = [1, 2, 3], [1, 1]
    dataset = Dataset()
    dataset.SOPInstanceUID, dataset.Rows, dataset.PixelSpacing = "1.2.3", 4, [1, 1]
    group = Dataset()
    group.PlanePositionSequence, group.PixelMeasuresSequence = Sequence([inside]), Sequence([inside])
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group] * 3)
    dataset.add_new(0x00091002, "SQ", _nested(b"12", 4))
    outcomes = {"read": 0, "refused": 0}
    path = tmp_path / "file"
    for syntax in SYNTAXES[:3]:
        dcmwrite(path, dataset, implicit_vr=syntax == SYNTAXES[0], little_endian=syntax != SYNTAXES[2])
        body = path.read_bytes()
        for _ in range(700):
            changed = bytearray(body)
            for _ in range(random_.randint(1, 4)):
                at = random_.randrange(len(changed))
                how = random_.randrange(4)
                if how == 0:
                    changed[at] = random_.choice([0, 0xFF, 0xFE, random_.randrange(256)])
                elif how == 1:
                    del changed[at : at + random_.randint(1, 12)]
                elif how == 2:
                    changed[at:at] = changed[at : at + random_.randint(1, 40)]
                else:
                    del changed[max(at, 8) :]
            try:
                scanned(file_of(path, bytes(changed), syntax))
                outcomes["read"] += 1
            except part10.Malformed:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 200, outcomes
