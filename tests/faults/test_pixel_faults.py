"""Pixel data that are absent, short, false or hostile: kept bit for bit, and refused by the loader by name."""

import json
import secrets
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import wire
from dicom_factory import make_series
from encoded_pixels import ENCODERS
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
)
from watched import Watched
from wire import ASSOCIATE_AC, Peer

from meddaemon.domain.errors import InputRefused
from meddaemon.inference.volume import assemble
from meddaemon.ingest.part10 import read_part10

SUCCESS, CANNOT_UNDERSTAND = 0x0000, 0xC000
SYNTAXES = (ExplicitVRLittleEndian, RLELossless, JPEGLosslessSV1, JPEG2000Lossless)
CONTEXTS = [
    (1, wire.VERIFICATION, "1.2.840.10008.1.2"),
    *((2 * index + 3, str(CTImageStorage), str(uid)) for index, uid in enumerate(SYNTAXES)),
]
Edit = Callable[[Dataset], object]
Bytes = Callable[[bytes], bytes]


def encoded(dataset: Dataset, uid: str, change: Bytes | None = None, frames: int = 1) -> None:
    """Encode the pixels of a data set; `change` is done to the code stream, which is then all there is."""
    values = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns)
    stream = ENCODERS[uid](values, values.view(np.uint16), 16)
    dataset.PixelData = encapsulate([stream if change is None else change(stream)] * frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid


def series(folder: Path, edit: Edit, change: Bytes | None = None, syntax: str = ExplicitVRLittleEndian) -> list[Path]:
    """A series of three; the middle one is changed as a data set, then as bytes."""
    paths = make_series(folder, planes=3, rows=16, columns=16, modality="CT", study=secrets.token_hex(4))
    for index, path in enumerate(paths):
        dataset = dcmread(path)
        if syntax != ExplicitVRLittleEndian:
            encoded(dataset, syntax)
        if index == 1:
            edit(dataset)
        dataset.save_as(path)
    if change is not None:
        content = paths[1].read_bytes()
        changed = change(content)
        assert changed != content
        paths[1].write_bytes(changed)
    return paths


def _set(keyword: str, value: object) -> Edit:
    return lambda dataset: setattr(dataset, keyword, value)


def _nothing(_: Dataset) -> None:
    """Only the bytes are changed."""


def _native(dataset: Dataset) -> Dataset:
    dataset.PixelData = bytes(2 * dataset.Rows * dataset.Columns)
    return dataset


def _encoded(uid: str, change: Bytes) -> Edit:
    return lambda dataset: encoded(_native(dataset), uid, change)


def _without_pixels(dataset: Dataset) -> None:
    del dataset.PixelData


def _large(dataset: Dataset) -> None:
    dataset.Rows = dataset.Columns = 65535


def _replaced(old: bytes, new: bytes) -> Bytes:
    return lambda content: content.replace(old, new, 1)


ROWS = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 16)
FRAMES = struct.pack("<HH2sH", 0x28, 0x08, b"IS", 6)

KEPT: dict[str, tuple[Edit, Bytes | None, str, str]] = {
    "no pixel data": (
        _without_pixels,
        None,
        ExplicitVRLittleEndian,
        "missing_pixel_data",
    ),
    "empty pixel data": (_set("PixelData", b""), None, ExplicitVRLittleEndian, "missing_pixel_data"),
    "short pixel data": (_set("PixelData", bytes(510)), None, ExplicitVRLittleEndian, "short_pixel_data"),
    "65535 × 65535": (_large, None, ExplicitVRLittleEndian, "size"),
    "8000 rows": (_set("Rows", 8000), None, ExplicitVRLittleEndian, "short_pixel_data"),
    "2**31 - 1 frames": (_set("NumberOfFrames", 2**31 - 1), None, ExplicitVRLittleEndian, "frames"),
    "2**31 frames": (
        _set("NumberOfFrames", 123456),
        _replaced(FRAMES + b"123456", struct.pack("<HH2sH", 0x28, 0x08, b"IS", 10) + b"2147483648"),
        ExplicitVRLittleEndian,
        "frames",
    ),
    "-1 frames": (_set("NumberOfFrames", -1), None, ExplicitVRLittleEndian, "frames"),
    "abc frames": (
        _set("NumberOfFrames", 123456),
        _replaced(FRAMES + b"123456", FRAMES + b"abc   "),
        ExplicitVRLittleEndian,
        "malformed",
    ),
    "rows of four bytes": (
        _nothing,
        _replaced(ROWS, struct.pack("<HH2sHI", 0x28, 0x10, b"UL", 4, 16)),
        ExplicitVRLittleEndian,
        "unreadable",
    ),
    "7 bits allocated": (_set("BitsAllocated", 7), None, ExplicitVRLittleEndian, "bits"),
    "JPEG cut in its data": (
        _encoded(JPEGLosslessSV1, lambda stream: stream[: len(stream) // 2]),
        None,
        JPEGLosslessSV1,
        "damaged_pixel_data",
    ),
    "JPEG without its last bytes": (
        _encoded(JPEGLosslessSV1, lambda stream: stream[:-2]),
        None,
        JPEGLosslessSV1,
        "damaged_pixel_data",
    ),
    "J2K cut in its data": (
        _encoded(JPEG2000Lossless, lambda stream: stream[: len(stream) // 2]),
        None,
        JPEG2000Lossless,
        "damaged_pixel_data",
    ),
    "RLE segment cut": (
        _encoded(RLELossless, lambda stream: stream[:-40]),
        None,
        RLELossless,
        "damaged_pixel_data",
    ),
    "RLE segment beyond the frame": (
        _encoded(RLELossless, lambda stream: stream[:8] + struct.pack("<I", 2**31) + stream[12:]),
        None,
        RLELossless,
        "damaged_pixel_data",
    ),
    "no fragments": (
        _set("PixelData", struct.pack("<HHI", 0xFFFE, 0xE000, 0)),
        None,
        JPEGLosslessSV1,
        "damaged_pixel_data",
    ),
}


def send(site: Watched, paths: list[Path]) -> list[int]:
    statuses = []
    with Peer(site.port, 60) as peer:
        assert peer.associate(wire.associate_request(CONTEXTS)) == ASSOCIATE_AC
        for path in paths:
            part10 = read_part10(path)
            context = 2 * SYNTAXES.index(part10.transfer_syntax_uid) + 3
            peer.send(wire.store_message(part10.sop_instance_uid, part10.data, context=context))
            statuses.append(peer.status())
        assert peer.echo() == SUCCESS
        peer.release()
    return statuses


@pytest.mark.fault(93, 94, 95, 96)
@pytest.mark.parametrize("name", KEPT)
def test_kept_bit_for_bit_and_refused_by_the_loader(site: Watched, tmp_path: Path, name: str) -> None:
    edit, change, syntax, reason = KEPT[name]
    paths = series(tmp_path, edit, change, syntax)
    assert send(site, paths) == [SUCCESS] * 3
    sent = {part10.sop_instance_uid: part10.data for part10 in map(read_part10, paths)}
    assert {uid: site.stored(uid)[0] for uid in sent} == sent
    rows = {row.sop_instance_uid: row for row in site.home.instances()}
    with pytest.raises(InputRefused) as refused:
        assemble([site.home.files()[rows[uid].sha256] for uid in sent])
    assert refused.value.reason == reason
    if reason != "unreadable":  # whose header cannot be read, nobody can name
        assert refused.value.sop_instance_uid == read_part10(paths[1]).sop_instance_uid


@pytest.mark.fault(96)
@pytest.mark.parametrize("offsets", [[0, 4], [0, 10**6], [8, 0], [0, 0]])
def test_a_wrong_offset_table_is_refused_where_it_is_needed(tmp_path: Path, offsets: list[int]) -> None:
    def edit(dataset: Dataset) -> None:
        encoded(_native(dataset), RLELossless)
        fragment = dataset.PixelData[8:]
        table = struct.pack("<HHI2I", 0xFFFE, 0xE000, 8, *offsets)
        dataset.PixelData = table + fragment * 3
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.NumberOfFrames = 2

    from meddaemon.inference.volume import read_layout, stored_frames  # noqa: PLC0415

    path = series(tmp_path, edit)[1]
    with pytest.raises(InputRefused) as refused:
        list(stored_frames(read_layout(path)))
    assert refused.value.reason == "damaged_pixel_data"


# --- forms that contradict the transfer syntax ------------------------------------------------------------------------


def _without_delimiter(content: bytes) -> bytes:
    assert content.endswith(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    return content[:-8]


def _relabelled(old: str, new: str) -> Bytes:
    """Name another transfer syntax in the file meta, which keeps its length."""

    def change(content: bytes) -> bytes:
        element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(old) + len(old) % 2)
        value = new.encode().ljust(len(old) + len(old) % 2, b"\0")
        at = content.index(element) + len(element)
        return content[:at] + value + content[at + len(value) :]

    return change


FORMS: dict[str, tuple[str, Bytes]] = {
    "no delimiter": (RLELossless, _without_delimiter),
    "native in RLE": (ExplicitVRLittleEndian, _relabelled(ExplicitVRLittleEndian, RLELossless)),
    "encapsulated in native": (RLELossless, _relabelled(RLELossless, ExplicitVRLittleEndian)),
}


@pytest.mark.fault(97)
@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_contradicts_the_syntax_is_refused_by_both(site: Watched, tmp_path: Path, name: str) -> None:
    syntax, change = FORMS[name]
    paths = series(tmp_path, _nothing, change, syntax)
    assert send(site, paths[1:2]) == [CANNOT_UNDERSTAND]
    with pytest.raises(InputRefused) as refused:
        assemble(paths)
    assert refused.value.reason == "damaged_pixel_data"


# --- bombs ------------------------------------------------------------------------------------------------------------

LIMITED = """
import json, resource, sys, time
from pathlib import Path
from meddaemon.domain.errors import InputRefused
from meddaemon.inference.volume import assemble
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.monotonic()
try:
    assemble([Path(each) for each in sys.argv[1:]])
    reason = None
except InputRefused as refused:
    reason = refused.reason
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"reason": reason, "seconds": time.monotonic() - begun, "kilobytes": used}))
"""


def _giant(stream: bytes) -> bytes:
    """SIZ claims 60000 × 60000 (ISO/IEC 15444-1 A.5.1)."""
    at = stream.index(b"\xff\x4f\xff\x51") + 8
    claim = (60_000).to_bytes(4, "big")
    for offset in (0, 4, 16, 20):
        stream = stream[: at + offset] + claim + stream[at + offset + 4 :]
    return stream


def _giant_jpeg(stream: bytes) -> bytes:
    at = stream.index(b"\xff\xc3") + 5
    return stream[:at] + struct.pack(">HH", 60_000, 60_000) + stream[at + 4 :]


def _rle_bomb(_: bytes) -> bytes:
    """20 MB of runs: 1.3 GB once decoded."""
    runs = b"\x81\x00" * 5_000_000
    return struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs


def _deflated(path: Path) -> None:
    """The same object, deflated behind a private element that claims 1.5 GB, of which there are 300 MB of zeros."""
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    content = path.read_bytes()
    (length,) = struct.unpack_from("<I", content, 132 + 8)
    begin = 132 + 12 + length
    plain = zlib.decompress(content[begin:], -15)
    at = plain.index(struct.pack("<HH", 0x10, 0x20))
    compressor = zlib.compressobj(9, wbits=-15)
    parts = [compressor.compress(plain[:at] + struct.pack("<HH2sHI", 0x0F, 0x1010, b"OB", 0, 3 * 2**29))]
    parts += [compressor.compress(bytes(2**24)) for _ in range(18)]
    parts += [compressor.compress(plain[at:]), compressor.flush()]
    path.write_bytes(content[:begin] + b"".join(parts))


BOMBS: dict[str, tuple[str, Edit, str]] = {
    "J2K of 60000 × 60000": (
        JPEG2000Lossless,
        _encoded(JPEG2000Lossless, _giant),
        "damaged_pixel_data",
    ),
    "JPEG of 60000 × 60000": (
        JPEGLosslessSV1,
        _encoded(JPEGLosslessSV1, _giant_jpeg),
        "damaged_pixel_data",
    ),
    "RLE of a gigabyte": (
        RLELossless,
        _encoded(RLELossless, _rle_bomb),
        "damaged_pixel_data",
    ),
    "deflated gigabyte": (ExplicitVRLittleEndian, _nothing, "unreadable"),
}


@pytest.mark.fault(98)
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_neither_memory_nor_time(tmp_path: Path, name: str) -> None:
    syntax, edit, reason = BOMBS[name]
    paths = series(tmp_path, edit, None, syntax)
    if name == "deflated gigabyte":
        _deflated(paths[1])
        assert paths[1].stat().st_size < 2**21
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, paths)], capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert found["reason"] == reason
    assert found["seconds"] < 10
    # Twice the largest file, which is all that was ever there.
    assert found["kilobytes"] < 2 * max(path.stat().st_size for path in paths) / 1024 + 30_000


@pytest.mark.fault(98)
def test_mutated_code_streams_are_decoded_or_refused_never_worse(tmp_path: Path) -> None:
    """500 mutations over every compressed syntax in a process of its own, which must outlive them."""
    from encoded_pixels import image, write  # noqa: PLC0415

    files = []
    for uid in ENCODERS:
        bits = 8 if uid.endswith(".4.50") else 12
        files.append(str(write(tmp_path / uid, image(bits, signed=False, frames=2), bits, uid)))
    script = Path(__file__).resolve().parents[1] / "inference" / "mutated_pixels.py"
    done = subprocess.run(
        [sys.executable, str(script), "42", "1", *files], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = dict(each.split("=") for each in done.stdout.split())
    assert sum(map(int, outcomes.values())) == 42 * len(files) >= 500
    assert set(outcomes) <= {"decoded", "damaged_pixel_data", "short_pixel_data", "missing_pixel_data", "unreadable"}
    assert int(outcomes["damaged_pixel_data"]) > 200


@pytest.mark.soak
@pytest.mark.shared
@pytest.mark.fault(98)
@pytest.mark.parametrize(
    "name",
    [
        *(f"compressed/CT1_{each}.dcm" for each in ("J2KI", "J2KR", "JLSL", "JLSN", "JPLL", "RLE", "RLE_FRAGS")),
        *(f"multiframe/emri_small_{each}.dcm" for each in ("RLE", "jpeg_2k_lossless", "jpeg_ls_lossless")),
        *("compressed/MR1_JPLY.dcm", "compressed/NM1_JLSL.dcm", "other/PT_LUT_GH610.dcm", "other/XA1_J2KR.dcm"),
        *("cxr/PatientA.dcm", "cxr/RG1_J2KI.dcm"),
    ],
)
def test_500_mutations_of_real_files(shared_dicom: Path, name: str) -> None:
    script = Path(__file__).resolve().parents[1] / "inference" / "mutated_pixels.py"
    done = subprocess.run(
        [sys.executable, str(script), "500", "1", str(shared_dicom / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
