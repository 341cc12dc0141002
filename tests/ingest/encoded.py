"""Encoded data sets, written by pydicom, as values that hypothesis draws."""

import struct
import zlib
from dataclasses import dataclass

from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
SYNTAXES = (*NATIVE, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit)
PIXEL_DATA = 0x7FE00010

_text = st.text("ABC xyz09", max_size=12)
_SCALARS = {
    0x00080008: ("CS", st.lists(st.sampled_from(["ORIGINAL", "PRIMARY", "M"]), max_size=3)),
    0x00080060: ("CS", st.sampled_from(["MR", "CT", ""])),
    0x0008103E: ("LO", _text),
    0x00081155: ("UI", st.sampled_from(["1.2.3", "2.25.17", ""])),
    0x00100010: ("PN", _text),
    0x00101030: ("DS", st.floats(0, 200, width=16).map(lambda number: f"{number:.4g}")),
    0x00104000: ("LT", _text),
    0x00180080: ("DS", st.just("")),
    0x00189087: ("FD", st.floats(allow_nan=False, allow_infinity=False)),
    0x00280010: ("US", st.integers(0, 65535)),
    0x00281201: ("OW", st.binary(max_size=10).map(lambda value: value + b"\0" * (len(value) % 2))),
    0x00400280: ("ST", _text),
    0x00409210: ("SH", _text),
    0x0040A160: ("UT", _text),
    0x00091001: ("UN", st.binary(max_size=8)),
    0x00091010: ("OB", st.binary(max_size=8).map(lambda value: value + b"\0" * (len(value) % 2))),
}
_SEQUENCES = (0x00081110, 0x00081140, 0x00400275, 0x0040A730, 0x52009230)


@dataclass(frozen=True)
class Encoded:
    """A data set as it travels, inflated where its syntax deflates, and where its top-level elements end."""

    data: bytes
    transfer_syntax_uid: str
    ends: frozenset[int]


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 3) -> Dataset:
    """Draw a data set with sequences of defined and undefined length, nested up to `depth`."""
    data_set = Dataset()
    for tag in draw(st.lists(st.sampled_from(sorted(_SCALARS)), max_size=4, unique=True)):
        vr, values = _SCALARS[tag]
        data_set.add(DataElement(tag, vr, draw(values)))
    if depth:
        for tag in draw(st.lists(st.sampled_from(_SEQUENCES), max_size=2, unique=True)):
            items = draw(st.lists(data_sets(depth=depth - 1), max_size=2))
            for item in items:
                item.is_undefined_length_sequence_item = draw(st.booleans())
            element = DataElement(tag, "SQ", Sequence(items))
            element.is_undefined_length = draw(st.booleans())
            data_set.add(element)
    return data_set


@st.composite
def encoded(draw: st.DrawFn, syntaxes: tuple[str, ...] = SYNTAXES) -> Encoded:
    """Draw a data set of at least one element in one of these transfer syntaxes."""
    syntax = draw(st.sampled_from(syntaxes))
    data_set = draw(data_sets())
    data_set.add(DataElement(0x00080018, "UI", "1.2.3"))
    if syntax == JPEGBaseline8Bit:
        frames = draw(st.lists(st.binary(min_size=2, max_size=20), min_size=1, max_size=3))
        pixels = DataElement(PIXEL_DATA, "OB", encapsulate(frames, has_bot=draw(st.booleans())))
        pixels.is_undefined_length = True
        data_set.add(pixels)
    elif draw(st.booleans()):
        data_set.add(DataElement(PIXEL_DATA, "OW", draw(st.binary(max_size=20)) * 2))
    return encode(data_set, syntax)


def encode(data_set: Dataset, syntax: str) -> Encoded:
    """Return the data set as it travels in this syntax, before it is deflated."""
    pieces = []
    for tag in sorted(data_set.keys()):
        single = Dataset()
        single[tag] = data_set[tag]
        pieces.append(written(single, syntax))
    ends, position = set(), 0
    for piece in pieces:
        position += len(piece)
        ends.add(position)
    return Encoded(data=b"".join(pieces), transfer_syntax_uid=str(syntax), ends=frozenset(ends))


def written(data_set: Dataset, syntax: str) -> bytes:
    """Return the bytes that pydicom writes for a data set, never deflated."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    write_dataset(buffer, data_set)
    return bytes(buffer.getvalue())


def deflated(data: bytes) -> bytes:
    """Return the raw deflate stream of a data set (PS3.5 A.5)."""
    machine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return machine.compress(data) + machine.flush()


def explicit(group: int, element: int, vr: bytes, value: bytes, *, length: int | None = None) -> bytes:
    """Return one element in explicit VR little endian, of another length than it claims where asked."""
    claimed = len(value) if length is None else length
    if vr in {b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OV", b"SV", b"UV", b"OD", b"OF", b"OL"}:
        return struct.pack("<HH2sHI", group, element, vr, 0, claimed) + value
    return struct.pack("<HH2sH", group, element, vr, claimed) + value


def item(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content) if length is None else length) + content
