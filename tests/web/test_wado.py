"""Retrieving by WADO-RS: every byte is what was stored, and what cannot be had undecoded is refused with a reason."""

import base64
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from meddaemon.db.instances import path_of
from meddaemon.ingest.scan import Malformed
from meddaemon.web.dicom_json import data_set as as_json
from meddaemon.web.elements import as_explicit, read_elements
from meddaemon.web.pixel_frames import Frames, NoFrames
from tests.ingest.encoded import NATIVE, SYNTAXES, Encoded, encoded, written
from tests.web.archive import ORIGIN, SENDER_TOKEN, Site, serving

STORED = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
EXPLICIT = {"Accept": f'multipart/related; type="application/dicom"; transfer-syntax={ExplicitVRLittleEndian}'}
OCTETS = {"Accept": 'multipart/related; type="application/octet-stream"'}


def stored_files(site: Site) -> dict[str, bytes]:
    """Return what lies in the store, by SOP Instance UID."""
    content = [path.read_bytes() for path in site.home.files().values()] + [each.content for each in site.made]
    return {str(dcmread(BytesIO(each), specific_tags=["SOPInstanceUID"]).SOPInstanceUID): each for each in content}


def uid_of(content: bytes) -> str:
    return str(dcmread(BytesIO(content)).SOPInstanceUID)


def of_syntax(site: Site, syntax: str) -> list[Dataset]:
    return [each for each in site.received if each.file_meta.TransferSyntaxUID == syntax]


def test_a_study_leaves_as_it_is_stored_with_its_results(archive_site: Site) -> None:
    files = stored_files(archive_site)
    study = archive_site.received[0].StudyInstanceUID
    answer = archive_site.ask(f"studies/{study}", STORED)
    assert (answer.status, len(answer.parts)) == (200, 11)
    for media_type, content in answer.parts:
        assert content == files[uid_of(content)]
        assert (
            media_type == f"application/dicom; transfer-syntax={dcmread(BytesIO(content)).file_meta.TransferSyntaxUID}"
        )
    segmentation = archive_site.made[0]
    series = archive_site.ask(f"studies/{study}/series/{segmentation.series_instance_uid}", STORED)
    assert [content for _, content in series.parts] == [segmentation.content]
    path = f"studies/{study}/series/{segmentation.series_instance_uid}/instances/{segmentation.sop_instance_uid}"
    alone = archive_site.ask(path, {"Accept": "application/dicom; transfer-syntax=*"})
    assert (alone.body, alone.headers["Content-Type"].split(";")[0]) == (segmentation.content, "application/dicom")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian])
def test_native_objects_leave_in_explicit_little_endian_with_every_value(archive_site: Site, syntax: str) -> None:
    for original in of_syntax(archive_site, syntax):
        answers = [archive_site.ask(archive_site.at(original), accept) for accept in (EXPLICIT, {"Accept": "*/*"}, {})]
        (((media_type, content),), *others) = [answer.parts for answer in answers]
        assert others == [[(media_type, content)]] * 2
        assert media_type.endswith(ExplicitVRLittleEndian)
        read = dcmread(BytesIO(content))
        assert read.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert np.array_equal(read.pixel_array, original.pixel_array)
        del read.PixelData, original.PixelData
        assert read == original


def test_what_is_compressed_is_never_decompressed_here(archive_site: Site) -> None:
    compressed = of_syntax(archive_site, RLELossless)[0]
    refused = archive_site.ask(archive_site.at(compressed), EXPLICIT)
    assert (refused.status, b"transfer-syntax=*" in refused.body) == (406, True)
    # Whoever says nothing gets it as it is, and is told so.
    ((media_type, content),) = archive_site.ask(archive_site.at(compressed), {"Accept": "*/*"}).parts
    assert media_type == f"application/dicom; transfer-syntax={RLELossless}"
    assert content == stored_files(archive_site)[str(compressed.SOPInstanceUID)]
    # Of a whole study, those that can be had (PS3.18 10.4.3.1).
    partial = archive_site.ask(f"studies/{compressed.StudyInstanceUID}", EXPLICIT)
    assert (partial.status, len(partial.parts)) == (206, 9)


def test_metadata_is_what_pydicom_reads(archive_site: Site) -> None:
    for original in archive_site.received:
        answer = archive_site.ask(f"{archive_site.at(original)}/metadata")
        assert answer.headers["Content-Type"] == "application/dicom+json"
        (described,) = answer.json
        bulk = described.pop("7FE00010")
        assert bulk["BulkDataURI"] == f"{archive_site.url}/{archive_site.at(original)}/bulkdata/7FE00010"
        del original.PixelData
        assert comparable(Dataset.from_json(described)) == comparable(original)
    study = archive_site.received[0].StudyInstanceUID
    assert len(archive_site.ask(f"studies/{study}/metadata").json) == 11
    (segmentation,) = archive_site.ask(
        f"studies/{study}/series/{archive_site.made[0].series_instance_uid}/metadata"
    ).json
    expected = dcmread(BytesIO(archive_site.made[0].content))
    del expected.PixelData, segmentation["7FE00010"]
    assert comparable(Dataset.from_json(segmentation)) == comparable(expected)


def comparable(data_set: Dataset) -> dict[str, Any]:
    """Return a data set as its own JSON, numbers as numbers, in UTF-8."""
    data_set.SpecificCharacterSet = "ISO_IR 192"
    plain: dict[str, Any] = json.loads(json.dumps(data_set.to_json_dict()), parse_int=float)
    return plain


def test_frames_are_the_pixels_in_little_endian(archive_site: Site) -> None:
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        original = of_syntax(archive_site, syntax)[0]
        pixels = original.pixel_array.astype("<i2").tobytes()
        ((media_type, frame),) = archive_site.ask(f"{archive_site.at(original)}/frames/1", OCTETS).parts
        assert (frame, media_type) == (pixels, f"application/octet-stream; transfer-syntax={ExplicitVRLittleEndian}")
        ((_, whole),) = archive_site.ask(f"{archive_site.at(original)}/bulkdata/7FE00010", OCTETS).parts
        assert whole[: len(pixels)] == pixels
        alone = archive_site.ask(f"{archive_site.at(original)}/frames/1", {"Accept": "application/octet-stream"})
        assert alone.body == pixels
        assert archive_site.ask(f"{archive_site.at(original)}/frames/2", OCTETS).status == 404
        assert archive_site.ask(f"{archive_site.at(original)}/frames/0", OCTETS).status == 404
        for wrong in ("x", "1,", "-1", "0000000001", "1,2,,3"):
            assert archive_site.ask(f"{archive_site.at(original)}/frames/{wrong}", OCTETS).status == 400


def test_frames_of_a_segmentation_begin_with_a_byte_each(archive_site: Site) -> None:
    segmentation = dcmread(BytesIO(archive_site.made[0].content))
    number = int(segmentation.NumberOfFrames)
    wanted = [number, 1, 2]
    answer = archive_site.ask(f"{archive_site.at(segmentation)}/frames/{','.join(map(str, wanted))}", OCTETS)
    pixels = segmentation.pixel_array
    size = segmentation.Rows * segmentation.Columns
    for each, (_, frame) in zip(wanted, answer.parts, strict=True):
        bits = np.unpackbits(np.frombuffer(frame, np.uint8), bitorder="little")[:size]
        assert np.array_equal(bits.reshape(pixels.shape[1:]), pixels[each - 1])


def test_compressed_frames_pass_through_with_their_media_type(archive_site: Site) -> None:
    original = of_syntax(archive_site, RLELossless)[0]
    path = f"{archive_site.at(original)}/frames/1"
    for accept, media_type in (
        ('multipart/related; type="image/dicom-rle"', "image/dicom-rle"),
        ("*/*", "image/dicom-rle"),
        # As cornerstone asks: whatever it is, in octets.
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", "application/octet-stream"),
    ):
        answer = archive_site.ask(path, {"Accept": accept})
        ((said, frame),) = answer.parts
        assert said == f"{media_type}; transfer-syntax={RLELossless}"
        assert f'type="{media_type}"' in answer.headers["Content-Type"]
        # Four bytes say how many segments an RLE header has: 2 of 16 bits.
        assert frame[:4] == b"\2\0\0\0"
    for accept in ("multipart/related; type=application/octet-stream", "image/jpeg"):
        refused = archive_site.ask(path, {"Accept": accept})
        assert (refused.status, b"image/dicom-rle" in refused.body) == (406, True)


def test_bulk_data_within_sequences_has_a_place(tmp_path: Path) -> None:
    data_set = Dataset()
    data_set.SOPInstanceUID = "1.2.3"
    inner = Dataset()
    inner.add_new(0x00091010, "OB", bytes(range(250)) * 10)
    inner.add_new(0x00091001, "UN", b"abcd")
    data_set.add_new(0x0040A730, "SQ", [Dataset(), inner])
    elements = read_elements(memoryview(written(data_set, ExplicitVRLittleEndian)), ExplicitVRLittleEndian)
    said: Any = as_json(elements, lambda place: f"here/{place}")
    item = said["0040A730"]["Value"][1]
    assert item["00091010"] == {"vr": "OB", "BulkDataURI": "here/0040A730/1/00091010"}
    assert base64.b64decode(item["00091001"]["InlineBinary"]) == b"abcd"


def test_nobody_reads_without_the_right(archive_site: Site) -> None:
    path = archive_site.at(archive_site.received[0])
    for asked in ("studies", path, f"{path}/metadata", f"{path}/frames/1", "studies/1.2.3"):
        for token, status in (("", 401), ("Bearer wrong", 401), (f"Bearer {SENDER_TOKEN}", 403)):
            refused = archive_site.ask(asked, {"Authorization": token})
            assert (refused.status, b"Doe" in refused.body) == (status, False)
    assert archive_site.ask("studies", method="POST").status == 403
    assert archive_site.ask(path, method="HEAD").status == 405
    with archive_site.home.database() as database, serving(archive_site.home, database, readers={}) as port:
        refused = Site(port, archive_site.home, (), ()).ask("studies")
    assert (refused.status, refused.body) == (403, b"nobody may read here\n")


def test_browsers_of_configured_origins_only_are_let_see(archive_site: Site) -> None:
    asking = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    allowed = archive_site.ask("studies", {"Origin": ORIGIN, "Authorization": "", **asking}, method="OPTIONS")
    assert (allowed.status, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    seen = archive_site.ask("studies", {"Origin": ORIGIN})
    assert (seen.status, seen.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    evil = {"Origin": "https://evil.example.org"}
    refused = archive_site.ask("studies", {**evil, "Authorization": "", **asking}, method="OPTIONS")
    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (400, None)
    assert archive_site.ask("studies", evil).headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    "path",
    [
        "studies/1.2.3/metadata",
        "studies/1.2.3",
        "studies/{study}/series/1.2",
        "studies/{study}/series/1.2/instances/1.2/frames/1",
        "{instance}/bulkdata/00100010/0/00100020",
        "{instance}/bulkdata/../../etc/passwd",
        "{instance}/bulkdata/00089999",
        "{instance}/bulkdata/" + "0040A730/0/" * 100 + "00100010",
        "{instance}/rendered",
    ],
)
def test_what_is_not_there_is_not_found(archive_site: Site, path: str) -> None:
    first = archive_site.received[0]
    asked = path.format(study=first.StudyInstanceUID, instance=archive_site.at(first))
    assert archive_site.ask(asked).status == 404


def test_a_path_without_uids_is_refused(archive_site: Site) -> None:
    for path in ("studies/x", "studies/1.2/series/..", "studies/1.2/series/1.3/instances/%2e%2e%2f/metadata"):
        assert archive_site.ask(path).status in {400, 404}
    assert archive_site.ask("studies/x/metadata").status == 400


def test_a_file_that_is_gone_is_said(archive_site: Site) -> None:
    original = archive_site.received[-1]
    stored = next(
        each.sha256 for each in archive_site.home.instances() if each.sop_instance_uid == original.SOPInstanceUID
    )
    path = path_of(archive_site.home.settings.store.instances, str(stored))
    content = path.read_bytes()
    path.unlink()
    try:
        assert archive_site.ask(archive_site.at(original), STORED).status == 404
        assert archive_site.ask(f"studies/{original.StudyInstanceUID}", STORED).status == 206
        described = archive_site.ask(f"studies/{original.StudyInstanceUID}/metadata")
        assert (described.status, len(described.json)) == (206, 1)
        path.write_bytes(b"no DICOM" * 100)
        assert archive_site.ask(f"{archive_site.at(original)}/metadata").status == 500
    finally:
        path.write_bytes(content)


# --- elements, without a server -------------------------------------------------------------------------------------


@given(encoded(NATIVE))
@examples(max_examples=150)
def test_native_data_sets_become_explicit_value_for_value(given_set: Encoded) -> None:
    elements = read_elements(memoryview(given_set.data), given_set.transfer_syntax_uid)
    explicit = b"".join(as_explicit(elements))
    again = read_elements(memoryview(explicit), ExplicitVRLittleEndian)
    one, other = (as_json(each, lambda place: place) for each in (elements, again))
    assert one == other
    if given_set.transfer_syntax_uid != ExplicitVRBigEndian:
        # Words of other byte orders pydicom leaves to whoever uses them.
        before = read_by_pydicom(given_set.data, given_set.transfer_syntax_uid)
        assert read_by_pydicom(explicit, ExplicitVRLittleEndian) == before


def read_by_pydicom(data: bytes, syntax: str) -> Dataset:
    buffer = BytesIO()
    data_set = Dataset()
    data_set.ensure_file_meta()
    data_set.file_meta.TransferSyntaxUID = syntax
    data_set.file_meta.MediaStorageSOPClassUID = data_set.file_meta.MediaStorageSOPInstanceUID = "1.2"
    dcmwrite(buffer, data_set, enforce_file_format=True)
    return dcmread(BytesIO(buffer.getvalue() + data))


@given(encoded(SYNTAXES), st.data())
@examples(max_examples=200)
def test_whatever_is_cut_or_changed_is_malformed_or_read(given_set: Encoded, data: st.DataObject) -> None:
    content = bytearray(given_set.data)
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = content[: data.draw(st.integers(0, len(content)))]
    syntax = given_set.transfer_syntax_uid
    try:
        elements = read_elements(
            memoryview(bytes(cut)), ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax
        )
    except Malformed:
        return
    said = json.dumps(as_json(elements, lambda place: place), allow_nan=False)
    assert "\ud800" not in said
    try:
        frames = Frames(elements, syntax)
        frames.cut(range(1, min(frames.count, 50) + 1))
    except NoFrames:
        pass


FRAMES = [b"a" * 10, b"b" * 300, b"c" * 4, b"d" * 6]


@pytest.mark.parametrize("how", ["one fragment each", "basic", "extended", "many fragments", "single"])
def test_frames_are_found_by_every_table_of_offsets(how: str) -> None:
    data_set = Dataset()
    frames = [b"".join(FRAMES)] if how == "single" else FRAMES
    data_set.NumberOfFrames = len(frames)
    if how == "extended":
        pixels, offsets, lengths = encapsulate_extended(FRAMES)
        data_set.ExtendedOffsetTable, data_set.ExtendedOffsetTableLengths = offsets, lengths
    else:
        several = {"many fragments": 2, "single": 4}.get(how, 1)
        pixels = encapsulate(frames, fragments_per_frame=several, has_bot=how in {"basic", "many fragments"})
    data_set.add_new(0x7FE00010, "OB", pixels)
    data_set["PixelData"].is_undefined_length = True
    elements = read_elements(memoryview(written(data_set, JPEGLSLossless)), JPEGLSLossless)
    found = Frames(elements, JPEGLSLossless)
    assert found.media_type == "image/jls"
    cut = [b"".join(pieces) for pieces in found.cut(range(1, len(frames) + 1))]
    assert [each[: len(frame)] for each, frame in zip(cut, frames, strict=True)] == frames


@pytest.mark.parametrize("table", [[0, 8], [0, 4, 18], [0, 18, 18, 326], [18, 0, 326, 338]])
def test_a_table_of_offsets_that_is_wrong_is_not_believed(table: list[int]) -> None:
    data_set = Dataset()
    data_set.NumberOfFrames = 4
    pixels = encapsulate(FRAMES, has_bot=False)
    offsets = b"".join(offset.to_bytes(4, "little") for offset in table)
    pixels = b"\xfe\xff\x00\xe0" + len(offsets).to_bytes(4, "little") + offsets + pixels[8:]
    data_set.add_new(0x7FE00010, "OB", pixels)
    data_set["PixelData"].is_undefined_length = True
    elements = read_elements(memoryview(written(data_set, RLELossless)), RLELossless)
    with pytest.raises(NoFrames):
        Frames(elements, RLELossless).cut([1])


def test_values_that_are_not_what_their_vr_says_are_shown_as_they_are() -> None:
    data_set = Dataset()
    data_set.add_new(0x00181088, "FD", [math.nan, math.inf, 0.1])
    data_set.add_new(0x00080005, "CS", "GB18030")
    raw = written(data_set, ExplicitVRLittleEndian)
    raw += (
        b"\x10\x00\x10\x00PN\x04\x00\xd5\xc5=\xff" + b"\x10\x00\x30\x10DS\x04\x001,5 " + b"\x20\x00\x13\x00IS\x02\x001A"
    )
    elements = read_elements(memoryview(raw), ExplicitVRLittleEndian)
    said: Any = as_json(elements, str)
    assert said["00181088"] == {"vr": "FD", "Value": [None, None, 0.1]}
    assert said["00080005"]["Value"] == ["ISO_IR 192"]
    assert said["00101030"]["Value"] == ["1,5"]
    assert said["00200013"]["Value"] == ["1A"]
    assert said["00100010"]["Value"][0]["Alphabetic"] == "张"
