"""The header of one DICOM file: a bounded scan for the attributes that make a volume (PS3.10 7.1, PS3.5 section 7).

It walks over everything up to the pixel data, keeps the few values that `SCHEMA` names and copies nothing else. It is
iterative, so that hostile nesting costs no stack; it reads a window at a time, so that no length field decides how much
memory is used; and it reads with pread, because a memory map of a file that shrinks kills the process.
"""

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DEFLATED_LITTLE = "1.2.840.10008.1.2.1.99"

MAXIMUM_DEPTH = 64
MAXIMUM_HEADER_BYTES = 2**28
"""A header of more bytes, without the long values that are passed over, is not read."""

MAXIMUM_VALUE_BYTES = 2**18
"""No value that is looked for is longer; a Modality LUT has 128 KiB at most."""

MAXIMUM_INFLATED_HEADER = 2**28
"""So much of a deflated data set may lie before its pixel data: deflate shrinks up to 1032 times."""

_WINDOW = 2**15
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_PIXEL_GROUP = 0x7FE0
_SHORT = frozenset({b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH"})
_SHORT_LENGTH = _SHORT | {b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
_LONG_LENGTH = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_TEXT_VRS = frozenset({b"AE", b"CS", b"DS", b"IS", b"LO", b"SH", b"UI", b"LT", b"ST", b"UC", b"UT", b"UN"})
_WORD_VRS = frozenset({b"US", b"SS", b"UN"})
_LONG_VRS = frozenset({b"UL", b"UN"})
_DOUBLE_VRS = frozenset({b"FD", b"UN"})
_TABLE_VRS = frozenset({b"US", b"SS", b"OW", b"UN"})
_PIXEL_VRS = frozenset({b"OB", b"OW"})
_SEQUENCE_VRS = frozenset({b"SQ", b"UN"})


class Malformed(ValueError):
    """The file is not well-formed; the message says what and where, and quotes no value."""


class Kind(Enum):
    """What the value of an attribute is made of."""

    TEXT = "text"
    WORDS = "words"
    TABLE = "table"
    LONGS = "longs"
    DOUBLES = "doubles"


_NUMBERS = {Kind.LONGS: "I", Kind.DOUBLES: "d"}
"""Numbers by which images are told apart; what is no such number is passed over, and no reason to refuse a file."""


class Wanted(NamedTuple):
    """An attribute that is looked for: keyword, kind or what is looked for in a sequence, and the VRs it may have."""

    keyword: str
    kind: "Kind | Schema"
    vrs: frozenset[bytes] = _SEQUENCE_VRS


Schema = Mapping[int, Wanted]


def _text(keyword: str) -> Wanted:
    return Wanted(keyword, Kind.TEXT, _TEXT_VRS)


def _words(keyword: str) -> Wanted:
    return Wanted(keyword, Kind.WORDS, _WORD_VRS)


def _longs(keyword: str) -> Wanted:
    return Wanted(keyword, Kind.LONGS, _LONG_VRS)


def _doubles(keyword: str) -> Wanted:
    return Wanted(keyword, Kind.DOUBLES, _DOUBLE_VRS)


_RESCALE: Schema = {
    0x00281052: _text("RescaleIntercept"),
    0x00281053: _text("RescaleSlope"),
    0x00281054: _text("RescaleType"),
}
_CLASSIC_MOMENT: Schema = {
    0x00180081: _text("EchoTime"),
    0x00180082: _text("InversionTime"),
    0x00181060: _text("TriggerTime"),
    0x00200012: _text("AcquisitionNumber"),
    0x00200100: _text("TemporalPositionIdentifier"),
    0x00541300: _text("FrameReferenceTime"),
}
"""What tells images of one place apart; in a legacy converted image it has found no place of its own."""
_MODALITY_LUT: Schema = {0x00283002: _words("LUTDescriptor"), 0x00283006: Wanted("LUTData", Kind.TABLE, _TABLE_VRS)}
_FUNCTIONAL_GROUPS: Schema = {
    0x00189114: Wanted("MREchoSequence", {0x00189082: _doubles("EffectiveEchoTime")}),
    0x00189117: Wanted("MRDiffusionSequence", {0x00189087: _doubles("DiffusionBValue")}),
    0x00189118: Wanted("CardiacSynchronizationSequence", {0x00209153: _doubles("NominalCardiacTriggerDelayTime")}),
    0x00209111: Wanted(
        "FrameContentSequence",
        {0x00209128: _longs("TemporalPositionIndex"), 0x00209156: _words("FrameAcquisitionNumber")},
    ),
    0x00209170: Wanted("UnassignedSharedConvertedAttributesSequence", _CLASSIC_MOMENT),
    0x00209171: Wanted("UnassignedPerFrameConvertedAttributesSequence", _CLASSIC_MOMENT),
    0x00209113: Wanted("PlanePositionSequence", {0x00200032: _text("ImagePositionPatient")}),
    0x00209116: Wanted("PlaneOrientationSequence", {0x00200037: _text("ImageOrientationPatient")}),
    0x00289110: Wanted("PixelMeasuresSequence", {0x00280030: _text("PixelSpacing")}),
    0x00289145: Wanted("PixelValueTransformationSequence", _RESCALE),
}
FILE_META: Schema = {
    0x00020003: _text("MediaStorageSOPInstanceUID"),
    0x00020010: _text("TransferSyntaxUID"),
}
SCHEMA: Schema = {
    0x00080005: _text("SpecificCharacterSet"),
    0x00080008: _text("ImageType"),
    0x00080018: _text("SOPInstanceUID"),
    0x00080060: _text("Modality"),
    0x00100020: _text("PatientID"),
    0x00100021: _text("IssuerOfPatientID"),
    **_CLASSIC_MOMENT,
    0x00189087: _doubles("DiffusionBValue"),
    0x0020000D: _text("StudyInstanceUID"),
    0x0020000E: _text("SeriesInstanceUID"),
    0x00200013: _text("InstanceNumber"),
    0x00200032: _text("ImagePositionPatient"),
    0x00200037: _text("ImageOrientationPatient"),
    0x00200052: _text("FrameOfReferenceUID"),
    0x00280002: _words("SamplesPerPixel"),
    0x00280004: _text("PhotometricInterpretation"),
    0x00280008: _text("NumberOfFrames"),
    0x00280010: _words("Rows"),
    0x00280011: _words("Columns"),
    0x00280030: _text("PixelSpacing"),
    0x00280100: _words("BitsAllocated"),
    0x00280101: _words("BitsStored"),
    0x00280102: _words("HighBit"),
    0x00280103: _words("PixelRepresentation"),
    0x00280120: _words("PixelPaddingValue"),
    0x00280121: _words("PixelPaddingRangeLimit"),
    **_RESCALE,
    0x00283000: Wanted("ModalityLUTSequence", _MODALITY_LUT),
    0x52009229: Wanted("SharedFunctionalGroupsSequence", _FUNCTIONAL_GROUPS),
    0x52009230: Wanted("PerFrameFunctionalGroupsSequence", _FUNCTIONAL_GROUPS),
}


@dataclass(slots=True)
class Attributes:
    """What was found in a data set or an item, by keyword; what is absent or empty has no entry.

    `texts` are as they stand in the file, without trailing spaces and NULs; `words` unsigned 16-bit numbers; `numbers`
    unsigned 32-bit and double-precision ones.
    """

    texts: dict[str, bytes] = field(default_factory=dict)
    words: dict[str, tuple[int, ...]] = field(default_factory=dict)
    sequences: dict[str, list["Attributes"]] = field(default_factory=dict)
    numbers: dict[str, tuple[float, ...]] = field(default_factory=dict)


class PixelValue(NamedTuple):
    """Where the value of Pixel Data begins in its data set; `length` None where it is encapsulated in fragments."""

    position: int
    length: int | None
    vr: bytes | None


@dataclass(frozen=True, slots=True)
class Header:
    """What was found in a file; `begin` is where its data set begins, `size` how long the file is."""

    meta: Attributes
    data_set: Attributes
    pixels: PixelValue | None
    begin: int
    size: int


class Source(Protocol):
    """Bytes of a data set that are read forwards."""

    def read(self, position: int, count: int) -> bytes:
        """Return the bytes from `position` on, fewer than `count` only at the end."""
        ...


class _File:
    def __init__(self, file: int) -> None:
        self._file = file

    def read(self, position: int, count: int) -> bytes:
        return os.pread(self._file, count, position)


class Inflated:
    """A deflated data set (PS3.5 A.5), inflated as far as it is read; positions only grow.

    Raises `Malformed` where the stream is corrupt or cut, or goes beyond `limit` bytes.
    """

    def __init__(self, file: int, begin: int, *, limit: int) -> None:
        self._file, self._next, self._limit = file, begin, limit
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._held, self._base = bytearray(), 0

    def read(self, position: int, count: int) -> bytes:
        """Return the inflated bytes from `position` on, fewer than `count` only at the end."""
        while self._base + len(self._held) < position + count and not self._inflate.eof:
            # What lies before the position is never asked for again.
            passed = min(len(self._held), max(0, position - self._base))
            del self._held[:passed]
            self._base += passed
            self._more()
        start = position - self._base
        return bytes(self._held[start : start + count])

    def _more(self) -> None:
        if self._base + len(self._held) > self._limit:
            raise Malformed(f"the deflated data set has more than {self._limit} bytes where its header should end")
        compressed = self._inflate.unconsumed_tail
        if not compressed:
            compressed = os.pread(self._file, _WINDOW, self._next)
            self._next += len(compressed)
            if not compressed:
                raise Malformed("the deflated data set ends early")
        try:
            self._held += self._inflate.decompress(compressed, 2**20)
        except zlib.error as error:
            raise Malformed("the deflated data set is corrupt") from error


def read(file: int) -> Header:
    """Read the header of the Part 10 file with this descriptor; raises `Malformed` and `OSError`."""
    size = os.fstat(file).st_size
    first = os.pread(file, _WINDOW, 0)
    if first[128:132] != b"DICM":
        raise Malformed("not a DICOM file (PS3.10): no prefix DICM at byte 128")
    walk = _Walk(_File(file), first, 132, size, implicit=False, little=True)
    meta = walk.run(FILE_META, first_group=0x0002, last_group=0x0002)
    begin = walk.position
    syntax = meta.texts.get("TransferSyntaxUID", b"").decode("ascii", "replace")
    if not syntax:
        raise Malformed("the file meta information names no Transfer Syntax UID")
    implicit, little = syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG
    if syntax == DEFLATED_LITTLE:
        inflated = Inflated(file, begin, limit=MAXIMUM_INFLATED_HEADER)
        walk = _Walk(inflated, b"", 0, None, implicit=False, little=True)
    else:
        walk = _Walk(_File(file), first, begin, size, implicit=implicit, little=little)
    data_set = walk.run(SCHEMA, first_group=0, last_group=_PIXEL_GROUP)
    return Header(meta=meta, data_set=data_set, pixels=walk.pixels, begin=begin, size=size)


@dataclass(slots=True)
class _Level:
    """One open sequence (`items`) or item (`into`): where it ends (None: at its delimiter), how it is encoded."""

    schema: Schema
    end: int | None
    implicit: bool
    little: bool
    into: Attributes | None = None
    items: list[Attributes] | None = None


class _Walk:
    """A position in a data set, a window of its bytes, and a stack of open sequences and items."""

    def __init__(
        self, source: Source, window: bytes, position: int, size: int | None, *, implicit: bool, little: bool
    ) -> None:
        self._source, self._window, self._base = source, window, 0
        self.position = position
        self._size = size
        self._implicit, self._little = implicit, little
        self._read = 0
        self._first_group = self._last_group = 0
        self._previous = -1
        self._levels: list[_Level] = []
        self.pixels: PixelValue | None = None

    def run(self, schema: Schema, *, first_group: int, last_group: int) -> Attributes:
        """Return what `schema` names at the top level; stops at a group beyond these two, or at pixel data."""
        found = Attributes()
        top = _Level(schema, self._size, self._implicit, self._little, into=found)
        self._first_group, self._last_group = first_group, last_group
        self._previous = -1
        self._levels = [top]
        while True:
            level = self._levels[-1]
            if level.end is not None and self.position >= level.end:
                if self.position > level.end:
                    raise Malformed(f"an element runs past its item or sequence at byte {self.position}")
                if len(self._levels) == 1:
                    return found
                self._levels.pop()
            elif level.into is None:
                self._item(level)
            else:
                if level.little:
                    self._pass(level, level.into)
                if self.position != level.end and self._element(level, level.into):
                    return found

    def _need(self, count: int) -> int:
        """Return where in the window the next `count` bytes begin; raises `Malformed` when they are not there."""
        start = self.position - self._base
        if start + count > len(self._window):
            self._window, self._base, start = self._source.read(self.position, max(count, _WINDOW)), self.position, 0
            self._read += len(self._window)
            if self._read > MAXIMUM_HEADER_BYTES:
                raise Malformed(f"the header has more than {MAXIMUM_HEADER_BYTES} bytes")
            if len(self._window) < count:
                raise Malformed(f"cut inside an element at byte {self.position}")
        return start

    def _pass(self, level: _Level, into: Attributes) -> None:
        """Go past the elements in the window that need no closer look, which is what nearly all of them are.

        Keeps what is looked for among them. Stops before everything else: `_element` says the same of all that is
        passed here, and takes several times as long.
        """
        schema, window, implicit, unpack = level.schema, self._window, level.implicit, _HEAD_LITTLE.unpack_from
        at_top, bound = len(self._levels) == 1, self._bound
        limit = len(window) if bound is None else min(len(window), bound - self._base)
        stop = self._last_group << 16 if self._last_group == _PIXEL_GROUP and at_top else (self._last_group + 1) << 16
        position, last = self.position - self._base, limit - 12
        # The order of elements is checked at the top level only.
        previous, ordered = (self._previous, -1) if at_top else (-1, 0)
        while position <= last:
            group, number, third, fourth = unpack(window, position)
            tag = group << 16 | number
            if tag <= previous or tag >= stop:
                break
            if implicit:
                start = position + 8
                after = start + (third | fourth << 16)
            elif third in _SHORT_LITTLE:
                start = position + 8
                after = start + fourth
            elif third in _LONG_LITTLE_VRS:
                start = position + 12
                after = start + _LONG_LITTLE.unpack_from(window, position + 8)[0]
            else:
                break
            if after > limit:
                break
            if tag in schema:
                keyword, kind, vrs = schema[tag]
                if not isinstance(kind, Kind) or not (implicit or window[position + 4 : position + 6] in vrs):
                    break
                self._keep(into, keyword, kind, window[start:after], "<")
            position, previous = after, tag & ordered
        self.position = position + self._base
        if at_top:
            self._previous = previous

    def _element(self, level: _Level, into: Attributes) -> bool:
        """Go past the next element of a data set or item, or into or out of it; True where the walk ends."""
        at_top, bound, begin = len(self._levels) == 1, self._bound, self.position
        if bound is None:
            if at_top and not self._source.read(begin, 1):
                return True  # a deflated data set says nowhere how long it is
        elif begin >= bound:
            raise Malformed(f"an item without its end at byte {begin}")
        start = self._need(8)
        group, number = (_TAG_LITTLE if level.little else _TAG_BIG).unpack_from(self._window, start)
        tag = group << 16 | number
        if tag == _ITEM_END and level.end is None and not at_top:
            self.position += 8
            self._levels.pop()
            return False
        if at_top and not self._first_group <= group <= self._last_group and group != 0xFFFE:
            return True
        self._check_place(tag, at_top=at_top)
        vr, length = self._vr_and_length(level, tag, start)
        if tag == _PIXEL_DATA and at_top:
            self.pixels = PixelValue(self.position, None if length == _UNDEFINED else length, vr)
            return True
        wanted = level.schema.get(tag)
        if wanted is not None and wanted.vrs in {_LONG_VRS, _DOUBLE_VRS} and vr is not None and vr not in wanted.vrs:
            wanted = None
        kind = wanted.kind if wanted else None
        if length == _UNDEFINED or vr == b"SQ" or isinstance(kind, Mapping):
            self._open(level, into, tag, vr, length, wanted)
            return False
        after = self.position + length
        if bound is not None and after > bound:
            raise Malformed(f"element {_name(tag)} claims {length} bytes, {bound - self.position} are there")
        if wanted is not None and isinstance(kind, Kind):
            self._check_value(wanted, vr, length)
            start = self._need(length)
            order = "<" if level.little or vr == b"UN" else ">"
            self._keep(into, wanted.keyword, kind, self._window[start : start + length], order)
        self.position = after
        return False

    def _check_place(self, tag: int, *, at_top: bool) -> None:
        """Refuse an element where none belongs."""
        if tag >> 16 == 0xFFFE:
            raise Malformed(f"a delimiter or item where none belongs at byte {self.position}")
        if at_top:
            if tag <= self._previous:
                raise Malformed(f"element {_name(tag)} out of order at byte {self.position}")
            self._previous = tag

    def _vr_and_length(self, level: _Level, tag: int, start: int) -> tuple[bytes | None, int]:
        """Return the VR, None where none is written, and the length of an element, and go to its value."""
        long = _LONG_LITTLE if level.little else _LONG_BIG
        if level.implicit:
            self.position += 8
            return None, int(long.unpack_from(self._window, start + 4)[0])
        vr = self._window[start + 4 : start + 6]
        if vr in _SHORT_LENGTH:
            self.position += 8
            return vr, int.from_bytes(self._window[start + 6 : start + 8], "little" if level.little else "big")
        # A VR that is not known yet has the long form: all that were added to the Standard since 1993 do.
        if not (vr.isalpha() and vr.isupper()):
            raise Malformed(f"element {_name(tag)} has no VR at byte {self.position}")
        start = self._need(12)
        self.position += 12
        return vr, int(long.unpack_from(self._window, start + 8)[0])

    @property
    def _bound(self) -> int | None:
        """Where the innermost sequence or item ends that says where it does."""
        return next((level.end for level in reversed(self._levels) if level.end is not None), None)

    def _check_value(self, wanted: Wanted, vr: bytes | None, length: int) -> None:
        if vr is not None and vr not in wanted.vrs:
            raise Malformed(f"{wanted.keyword} has the VR {vr.decode('ascii', 'replace')}")
        if length > MAXIMUM_VALUE_BYTES:
            raise Malformed(f"{wanted.keyword} has {length} bytes")

    def _keep(self, into: Attributes, keyword: str, kind: Kind, raw: bytes, order: str) -> None:
        if keyword in into.texts or keyword in into.words or keyword in into.numbers:
            raise Malformed(f"{keyword} occurs twice")
        if kind is Kind.TEXT:
            raw = raw.rstrip(b" \0")
            if raw:
                into.texts[keyword] = raw
        elif code := _NUMBERS.get(kind):
            size = struct.calcsize(f"={code}")
            if raw and not len(raw) % size:
                into.numbers[keyword] = struct.unpack(f"{order}{len(raw) // size}{code}", raw)
        elif len(raw) % 2:
            raise Malformed(f"{keyword} has {len(raw)} bytes, which are no whole number of values")
        elif raw:
            into.words[keyword] = struct.unpack(f"{order}{len(raw) // 2}H", raw)

    def _open(
        self, level: _Level, into: Attributes, tag: int, vr: bytes | None, length: int, wanted: Wanted | None
    ) -> None:
        """Open a sequence, or go past one of known length in which nothing is looked for."""
        name = wanted.keyword if wanted else _name(tag)
        if tag == _PIXEL_DATA and vr in _PIXEL_VRS:
            # An icon, encapsulated as the image is: fragments instead of items.
            self._levels.append(_Level({}, None, implicit=True, little=True))
            return
        if vr is not None and vr not in _SEQUENCE_VRS:
            raise Malformed(f"{name} with the VR {vr.decode('ascii', 'replace')} is no sequence")
        kind = wanted.kind if wanted else {}
        if isinstance(kind, Kind):
            raise Malformed(f"{name} is a sequence")
        end = None if length == _UNDEFINED else self.position + length
        bound = self._bound
        if end is not None and bound is not None and end > bound:
            raise Malformed(f"{name} claims {length} bytes, {bound - self.position} are there")
        if wanted is None and end is not None:
            self.position = end
            return
        if len(self._levels) > 2 * MAXIMUM_DEPTH:
            raise Malformed(f"sequences nested deeper than {MAXIMUM_DEPTH}")
        items: list[Attributes] = []
        if wanted is not None:
            if wanted.keyword in into.sequences:
                raise Malformed(f"{name} occurs twice")
            into.sequences[wanted.keyword] = items
        # A sequence of unknown VR is encoded in implicit VR little endian (PS3.5 6.2.2).
        implicit, little = (True, True) if vr == b"UN" else (level.implicit, level.little)
        self._levels.append(_Level(kind, end, implicit, little, items=items))

    def _item(self, level: _Level) -> None:
        bound = self._bound
        if bound is not None and self.position >= bound:
            raise Malformed(f"a sequence without its end at byte {self.position}")
        start = self._need(8)
        group, number, length = (_ITEM_LITTLE if level.little else _ITEM_BIG).unpack_from(self._window, start)
        tag = group << 16 | number
        begin = self.position
        self.position += 8
        if tag == _SEQUENCE_END and level.end is None:
            self._levels.pop()
            return
        if tag != _ITEM or (level.items is None and length == _UNDEFINED):
            raise Malformed(f"({group:04X},{number:04X}) instead of an item at byte {begin}")
        end = None if length == _UNDEFINED else self.position + length
        if end is not None and bound is not None and end > bound:
            raise Malformed(f"the item at byte {begin} claims {length} bytes, {bound - self.position} are there")
        if level.items is None:
            self.position += length
            return
        item = Attributes()
        level.items.append(item)
        self._levels.append(_Level(level.schema, end, level.implicit, level.little, into=item))


def _name(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


# Group, element, and then the two halves of the length (implicit), or the VR and a short length.
_HEAD_LITTLE = struct.Struct("<HHHH")
_TAG_LITTLE, _TAG_BIG = struct.Struct("<HH"), struct.Struct(">HH")
_LONG_LITTLE, _LONG_BIG = struct.Struct("<I"), struct.Struct(">I")
_ITEM_LITTLE, _ITEM_BIG = struct.Struct("<HHI"), struct.Struct(">HHI")
_SHORT_LITTLE = frozenset(int.from_bytes(vr, "little") for vr in _SHORT_LENGTH)
_LONG_LITTLE_VRS = frozenset(int.from_bytes(vr, "little") for vr in _LONG_LENGTH | {b"SQ"})
