"""Data sets that are broken, huge, or say what nobody expects: refused with C000, or kept bit for bit."""

import json
import secrets
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
import wire
from dicom_factory import make_series
from encoded import deflated, explicit, item
from pydicom.fileset import FileSet
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from running import Home
from watched import Watched
from wire import ASSOCIATE_AC, Peer

from meddaemon.cli.explain import explain
from meddaemon.db import tables
from meddaemon.domain.errors import UnsoundVolume
from meddaemon.inference.volume import assemble
from meddaemon.ingest.deflate import MAXIMUM_INFLATED_BYTES
from meddaemon.ingest.header import MAXIMUM_VALUE_CHARACTERS
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.scan import MAXIMUM_DEPTH

SUCCESS, CANNOT_UNDERSTAND = 0x0000, 0xC000
SYNTAXES = {
    3: str(ExplicitVRLittleEndian),
    5: str(ImplicitVRLittleEndian),
    7: str(ExplicitVRBigEndian),
    9: str(DeflatedExplicitVRLittleEndian),
}
EXPLICIT, IMPLICIT, BIG, DEFLATED = SYNTAXES
CONTEXTS = [(1, wire.VERIFICATION, wire.IMPLICIT), *((each, str(CTImageStorage), SYNTAXES[each]) for each in SYNTAXES)]

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HHI", 0xFFFE, element, 0) for element in (0xE000, 0xE00D, 0xE0DD))
OPEN_ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
OPEN_SEQUENCE = explicit(0x0008, 0x1140, b"SQ", b"", length=UNDEFINED)


def ct(uid: str, *, early: bytes = b"", middle: bytes = b"", late: bytes = b"", pixels: bytes = bytes(8)) -> bytes:
    """Return an object in explicit VR little endian.

    `early` stands where the rest of group 0008 belongs, `middle` between the identity and the pixels, `late` at the
    end.
    """
    return b"".join(
        (
            explicit(0x0008, 0x0016, b"UI", wire.uid_value(CTImageStorage)),
            explicit(0x0008, 0x0018, b"UI", wire.uid_value(uid)),
            explicit(0x0008, 0x0060, b"CS", b"CT"),
            early,
            explicit(0x0010, 0x0020, b"LO", b"DATA"),
            explicit(0x0020, 0x000D, b"UI", b"2.25.48\0"),
            explicit(0x0020, 0x000E, b"UI", b"2.25.49\0"),
            middle,
            explicit(0x7FE0, 0x0010, b"OW", pixels),
            late,
        )
    )


def implicit(uid: str) -> bytes:
    """Return the same in implicit VR little endian."""
    values = (
        (0x0008, 0x0016, wire.uid_value(CTImageStorage)),
        (0x0008, 0x0018, wire.uid_value(uid)),
        (0x0020, 0x000D, b"2.25.48\0"),
        (0x0020, 0x000E, b"2.25.49\0"),
        (0x7FE0, 0x0010, bytes(8)),
    )
    return b"".join(struct.pack("<HHL", group, element, len(value)) + value for group, element, value in values)


def big_endian(uid: str) -> bytes:
    """Return the same in explicit VR big endian."""
    texts = (
        (0x0008, 0x0016, wire.uid_value(CTImageStorage)),
        (0x0008, 0x0018, wire.uid_value(uid)),
        (0x0020, 0x000D, b"2.25.48\0"),
        (0x0020, 0x000E, b"2.25.49\0"),
    )
    head = b"".join(struct.pack(">HH2sH", group, element, b"UI", len(text)) + text for group, element, text in texts)
    return head + struct.pack(">HH2sHL", 0x7FE0, 0x0010, b"OW", 0, 8) + bytes(8)


def send(site: Watched, uid: str, data: bytes, context: int = EXPLICIT) -> int:
    """Send an object on an association of its own and return the status; the listener must serve afterwards."""
    with Peer(site.port, 60) as peer:
        assert peer.associate(wire.associate_request(CONTEXTS)) == ASSOCIATE_AC
        peer.send(wire.store_message(uid, data, context=context))
        status = peer.status()
        assert peer.echo() == SUCCESS
        peer.release()
    return status


def new_uid() -> str:
    return f"2.25.{secrets.randbits(100)}"


def header(site: Watched, uid: str) -> dict[str, list[str]]:
    (row,) = (row for row in site.home.instances() if row.sop_instance_uid == uid)
    return dict(row.header)


Make = Callable[[str], bytes]


def nested(depth: int) -> bytes:
    inside = explicit(0x0008, 0x0100, b"SH", b"1 ")
    return (OPEN_SEQUENCE + OPEN_ITEM) * depth + inside + (ITEM_END + SEQUENCE_END) * depth


# --- what is refused ----------------------------------------------------------------------------------------------

CUT = {
    "in a value": lambda uid: ct(uid)[:-3],
    "in the header of the pixels": lambda uid: ct(uid)[: -8 - 6],
    "in the last header but its tag": lambda uid: ct(uid)[: -8 - 8],
    "in a text": lambda uid: ct(uid, late=explicit(0xFFFC, 0xFFFC, b"LO", b"ab"))[:-1],
    "in a sequence": lambda uid: ct(uid, middle=nested(1)[:-12]),
    "all but a byte": lambda uid: ct(uid)[:1],
}
LENGTHS = {
    "undefined length of a text": lambda uid: ct(uid, early=explicit(0x0008, 0x103E, b"UT", b"", length=UNDEFINED)),
    "undefined length of pixels": lambda uid: ct(uid)[:-12] + struct.pack("<L", UNDEFINED) + bytes(8),
    "a sequence without delimiters": lambda uid: ct(uid, early=OPEN_SEQUENCE + OPEN_ITEM),
    "an item without its delimiter": lambda uid: ct(uid, early=OPEN_SEQUENCE + OPEN_ITEM + SEQUENCE_END),
    "a length of 4 GiB less 2": lambda uid: ct(uid)[:-12] + struct.pack("<L", 2**32 - 2) + bytes(8),
    "an item of 4 GiB less 2": lambda uid: ct(
        uid, early=OPEN_SEQUENCE + struct.pack("<HHL", 0xFFFE, 0xE000, 2**32 - 2)
    ),
}
ORDER = {
    "elements out of order": lambda uid: ct(uid, middle=explicit(0x0008, 0x0070, b"LO", b"late")),
    "an element twice": lambda uid: ct(uid, early=explicit(0x0008, 0x0060, b"CS", b"MR")),
    "pixels twice": lambda uid: ct(uid, late=explicit(0x7FE0, 0x0010, b"OW", bytes(8))),
}
GROUPS = {
    "a command element": lambda uid: explicit(0x0000, 0x0900, b"US", b"\0\0") + ct(uid),
    "file meta": lambda uid: explicit(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2\0") + ct(uid),
    "a whole file": lambda uid: bytes(128) + b"DICM" + explicit(0x0002, 0, b"UL", bytes(4)) + ct(uid),
}
BEYOND = {
    "zeros after the end": lambda uid: ct(uid) + bytes(6),
    "text after the end": lambda uid: ct(uid) + b"trailing garbage",
    "an odd byte after the end": lambda uid: ct(uid) + b"\0",
}


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(make, id=name, marks=pytest.mark.fault(48)) for name, make in CUT.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.fault(50)) for name, make in LENGTHS.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.fault(55)) for name, make in ORDER.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.fault(57)) for name, make in GROUPS.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.fault(64)) for name, make in BEYOND.items()),
    ],
)
def test_what_is_broken_is_refused(site: Watched, make: Make) -> None:
    uid, before = new_uid(), set(site.home.files())
    assert send(site, uid, make(uid)) == CANNOT_UNDERSTAND
    assert set(site.home.files()) == before
    assert site.home.half_received() == []
    assert (site.home.refusals()[-1].sop_instance_uid, site.home.refusals()[-1].status) == (uid, CANNOT_UNDERSTAND)


@pytest.mark.fault(49)
@pytest.mark.parametrize("data", [b"", bytes(1000), secrets.token_bytes(100_000), b"\xff" * 1000, b"%PDF-1.4\n" * 50])
def test_what_is_no_data_set_is_refused_at_once(site: Watched, data: bytes) -> None:
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        assert send(site, new_uid(), data) == CANNOT_UNDERSTAND
        seconds.append(time.monotonic() - begun)
    assert min(seconds) < 1  # of three: the machine may be busy


ENCODED = {EXPLICIT: ct, IMPLICIT: implicit, BIG: big_endian, DEFLATED: lambda uid: deflated(ct(uid))}


@pytest.mark.fault(56)
@pytest.mark.parametrize("agreed", ENCODED, ids=SYNTAXES.get)
@pytest.mark.parametrize("sent", ENCODED, ids=SYNTAXES.get)
def test_only_what_was_agreed_on_is_understood(site: Watched, agreed: int, sent: int) -> None:
    uid = new_uid()
    data = ENCODED[sent](uid)
    assert send(site, uid, data, agreed) == (SUCCESS if agreed == sent else CANNOT_UNDERSTAND)
    assert site.stored(uid) == ([data] if agreed == sent else [])


@pytest.mark.fault(52)
@pytest.mark.parametrize("depth", [MAXIMUM_DEPTH + 1, 1_000, 10_000, 200_000])
@pytest.mark.parametrize("closed", [True, False])
def test_hostile_nesting_is_refused_at_once(site: Watched, depth: int, closed: bool) -> None:
    spent = site.cpu_seconds()
    data = ct("2.25.5", early=nested(depth) if closed else (OPEN_SEQUENCE + OPEN_ITEM) * depth)
    assert send(site, "2.25.5", data) == CANNOT_UNDERSTAND
    assert site.cpu_seconds() - spent < 2


def bomb() -> bytes:
    machine = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    pieces = [machine.compress(bytes(2**20)) for _ in range(MAXIMUM_INFLATED_BYTES // 2**20 + 1)]
    return b"".join(pieces) + machine.flush()


DEFLATED_WRONGLY = {
    "not deflated": ct,
    "with the header of zlib": lambda uid: zlib.compress(ct(uid)),
    "cut": lambda uid: deflated(ct(uid))[:-5],
    "damaged": lambda uid: deflated(ct(uid, pixels=secrets.token_bytes(2000)))[:300] + secrets.token_bytes(1500),
    "followed by something": lambda uid: deflated(ct(uid)) + b"MZ\x90\0",
    "deflated and cut before": lambda uid: deflated(ct(uid)[:-3]),
    "nothing": lambda uid: b"",
    "a bomb": lambda uid: bomb(),
}


@pytest.mark.fault(65)
@pytest.mark.parametrize("name", DEFLATED_WRONGLY)
def test_a_wrong_deflate_stream_is_refused_with_bounded_memory(site: Watched, name: str) -> None:
    uid, memory = new_uid(), site.status("VmRSS")
    assert send(site, uid, DEFLATED_WRONGLY[name](uid), DEFLATED) == CANNOT_UNDERSTAND
    assert site.status("VmRSS") - memory < 50_000


# --- what is kept -------------------------------------------------------------------------------------------------


def named(uid: str, name: bytes, charset: bytes = b"ISO_IR 100") -> bytes:
    """Return an object with a Patient's Name in a character set."""
    mark = explicit(0x0010, 0x0020, b"LO", b"DATA")
    data = ct(uid).replace(mark, explicit(0x0010, 0x0010, b"PN", name + b" " * (len(name) % 2)) + mark)
    return explicit(0x0008, 0x0005, b"CS", charset + b" " * (len(charset) % 2)) + data


def elements(count: int) -> bytes:
    """Return private elements of a few groups."""
    return b"".join(explicit(0x0029 + 2 * (n // 5000), 0x1000 + n % 5000, b"LO", b"ab") for n in range(count))


def unknown(vr: bytes, value: bytes) -> bytes:
    """Return an element of a VR that nobody knows, in the long form (PS3.5 7.1.2)."""
    return struct.pack("<HH2sHL", 0x0029, 0x1001, vr, 0, len(value)) + value


KEPT = [
    pytest.param(lambda uid: ct(uid, early=nested(60)), id="60 levels", marks=pytest.mark.fault(51)),
    *(
        pytest.param(make, id=name, marks=pytest.mark.fault(53))
        for name, make in {
            "10 000 elements": lambda uid: ct(uid, middle=elements(10_000)),
            "50 000 items": lambda uid: ct(uid, early=explicit(0x0008, 0x1140, b"SQ", item(b"") * 50_000)),
            "200 000 values": lambda uid: ct(uid, middle=explicit(0x0029, 0x1001, b"UT", b"1\\" * 200_000)),
        }.items()
    ),
    *(
        pytest.param(make, id=name, marks=pytest.mark.fault(54))
        for name, make in {
            "a VR of the future": lambda uid: ct(uid, middle=unknown(b"ZZ", bytes(4))),
            "the same and long": lambda uid: ct(uid, middle=unknown(b"QX", bytes(300_000))),
        }.items()
    ),
    *(
        pytest.param(make, id=name, marks=pytest.mark.fault(58))
        for name, make in {
            "a character set of nobody": lambda uid: named(uid, b"M\xfcller", b"ISO_IR 999"),
            "a codec that is no character set": lambda uid: named(uid, b"\\x41", b"unicode_escape"),
            "bytes that are no UTF-8": lambda uid: named(uid, b"M\xff\xfe\xc3", b"ISO_IR 192"),
            "an escape into nothing": lambda uid: named(uid, b"A\x1b$)Q\xff", b"\\ISO 2022 IR 149"),
        }.items()
    ),
    *(
        pytest.param(make, id=name, marks=pytest.mark.fault(59))
        for name, make in {
            "markup": lambda uid: named(uid, b"<script>alert(1)</script>"),
            "a statement": lambda uid: named(uid, b"Robert'); DROP TABLE study;--"),
            "control characters": lambda uid: named(uid, b"A\0B\r\nC\x1b[2J\x07\x08"),
            "a template": lambda uid: named(uid, b"{{7*7}}${x}%n%s"),
        }.items()
    ),
    pytest.param(lambda uid: named(uid, b"x" * 65_500), id="a name of 64 kB", marks=pytest.mark.fault(60)),
    *(
        pytest.param(make, id=name, marks=pytest.mark.fault(64))
        for name, make in {
            "an odd length": lambda uid: ct(uid, early=explicit(0x0008, 0x103E, b"LO", b"odd")),
            "padding after the end": lambda uid: ct(uid, late=explicit(0xFFFC, 0xFFFC, b"OB", bytes(10))),
        }.items()
    ),
]


@pytest.mark.parametrize("make", KEPT)
def test_what_is_unusual_and_whole_is_kept_bit_for_bit(site: Watched, make: Make) -> None:
    uid, spent = new_uid(), site.cpu_seconds()
    data = make(uid)
    assert send(site, uid, data) == SUCCESS
    assert site.stored(uid) == [data]
    assert site.cpu_seconds() - spent < 5
    # What is shown of it is bounded and printable, and one line of the log is one event.
    assert all(len(part) <= MAXIMUM_VALUE_CHARACTERS for value in header(site, uid).values() for part in value)
    with site.home.database() as database, database.read() as connection:
        assert "".join(explain(connection, uid)).isprintable()
    lines = site.role.log_text().splitlines()
    assert all(line.isprintable() and isinstance(json.loads(line), dict) for line in lines)


@pytest.mark.fault(58)
def test_what_is_no_text_is_shown_with_replacements(site: Watched) -> None:
    uid = new_uid()
    assert send(site, uid, named(uid, b"M\xff\xfeller", b"ISO_IR 192")) == SUCCESS
    assert header(site, uid)["PatientName"] == ["M\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}ller"]


NO_NUMBERS = {
    "not a number": (b"1.5\\1.25", b"nan\\1.25", "not_finite"),
    "out of range": (b"1.5\\1.25", b"1e999\\1 ", "not_finite"),
    "no number at all": (b"1.5\\1.25", b"one\\half", "malformed"),
}


@pytest.mark.fault(61)
@pytest.mark.parametrize("name", NO_NUMBERS)
def test_numbers_and_dates_that_are_none_are_kept_and_refused_by_the_worker(
    site: Watched, tmp_path: Path, name: str
) -> None:
    right, wrong, reason = NO_NUMBERS[name]
    files = make_series(tmp_path, planes=3, study=f"61 {name}", modality="CT")
    sent = {}
    for file in files:
        content = file.read_bytes()
        assert right in content
        file.write_bytes(content.replace(right, wrong).replace(b"20240102", b"2024AB99"))
        data = read_part10(file).data
        uid = str(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
        assert send(site, uid, data) == SUCCESS
        sent[uid] = data
    assert {uid: site.stored(uid)[0] for uid in sent} == sent
    stored = [site.home.files()[row.sha256] for row in site.home.instances() if row.sop_instance_uid in sent]
    with pytest.raises(UnsoundVolume) as refused:
        assemble(stored)
    assert refused.value.reason == reason


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("import")


@pytest.mark.fault(67)
@pytest.mark.parametrize(
    ("preamble", "kind"),
    [
        (b"MZ\x90\0", "PE program"),
        (b"\x7fELF\x02", "ELF program"),
        (b"#!/bin/sh\n", "script"),
        (b"?", "something else"),
    ],
)
def test_what_stands_before_the_prefix_is_told_and_not_kept(
    folder: Path, tmp_path: Path, preamble: bytes, kind: str
) -> None:
    home = Home.make(folder / "home")
    (file,) = make_series(tmp_path, planes=1, study=preamble.hex(), modality="CT")
    content = file.read_bytes()
    file.write_bytes(preamble.ljust(128, b"\x90") + content[128:])
    done = home.cli("import", file)
    assert (done.returncode, done.stdout) == (0, "1 taken, 0 known already, 0 refused\n")
    assert f'"holds": "{kind}"' in done.stderr or f"holds={kind}" in done.stderr
    for path in home.files().values():
        assert path.read_bytes()[:128] == bytes(128)


@pytest.mark.fault(68)
def test_a_dicomdir_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    """A DICOMDIR is one more file that is no object: what it names is not looked for."""
    home = Home.make(folder / "dicomdir")
    outside = make_series(tmp_path / "outside", planes=2, study="outside", modality="CT")
    inside = tmp_path / "inside"
    fileset = FileSet()
    for file in make_series(tmp_path / "inside", planes=2, study="inside", modality="CT"):
        fileset.add(file)
        file.unlink()
    fileset.write(inside)
    directory = (inside / "DICOMDIR").read_bytes()
    assert b"PT000000" in directory
    (inside / "DICOMDIR").write_bytes(directory.replace(b"PT000000\\", b"../../..\\"))
    (inside / "link").symlink_to(outside[0].parent)
    (inside / "link.dcm").symlink_to(outside[0])
    archive = inside / "more.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(outside[0], "../../escaped.dcm")
    before = set(tmp_path.rglob("*"))
    done = home.cli("import", inside)
    assert done.returncode == 1
    assert "2 taken" in done.stdout
    assert "DICOMDIR" in done.stderr
    assert "more.zip" in done.stderr
    assert set(tmp_path.rglob("*")) == before
    assert {row.study_instance_uid for row in home.rows(tables.study)} == {
        str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)
        for path in inside.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in {"DICOMDIR", "more.zip"}
    }
