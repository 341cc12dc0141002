"""The elements of a stored data set, as bytes that nobody has decoded (PS3.5 section 7).

Values are slices of the file: nothing is copied, and no pixel is looked at. What is read here was proven whole before
it was stored (`meddaemon.ingest.scan`); where it is not so, reading ends with `Malformed`, never beyond the file.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pydicom.datadict import dictionary_VR
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from meddaemon.ingest.scan import MAXIMUM_DEPTH, SHORT_LENGTH, Malformed

__all__ = ["PIXEL_DATA", "Element", "Malformed", "as_explicit", "in_little_endian", "read_elements"]

PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_REPRESENTATION = 0x00280103
_SHORT = frozenset(vr.decode() for vr in SHORT_LENGTH)
_LONGEST_SHORT = 0xFFFF
_WORDS = {"US": 2, "SS": 2, "OW": 2, "AT": 2, "UL": 4, "SL": 4, "FL": 4, "OF": 4, "OL": 4}
_WORDS |= {"FD": 8, "OD": 8, "SV": 8, "UV": 8, "OV": 8}
"""Bytes of what is swapped in big endian."""


class Element(NamedTuple):
    """One element: its `value` in bytes, or `items` of a sequence, or `fragments` of encapsulated pixel data.

    `little` is the byte order of the value. The first fragment is the Basic Offset Table.
    """

    tag: int
    vr: str
    value: memoryview
    little: bool
    items: "tuple[tuple[Element, ...], ...] | None" = None
    fragments: tuple[memoryview, ...] | None = None


def read_elements(data: memoryview, transfer_syntax_uid: str) -> tuple[Element, ...]:
    """Return the elements of a data set that is not deflated (any more), in their order. Raises Malformed."""
    little = transfer_syntax_uid != ExplicitVRBigEndian
    reader = _Reader(data)
    try:
        return reader.data_set(len(data), implicit=transfer_syntax_uid == ImplicitVRLittleEndian, little=little)
    except struct.error as cut:
        raise Malformed(f"cut inside an element header at byte {reader.position}") from cut


class _Reader:
    """A position in the data; `signed` is whether pixels are, by which the VR of some values is known."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0
        self._depth = 0
        self._signed = False

    def data_set(self, end: int | None, *, implicit: bool, little: bool) -> tuple[Element, ...]:
        """Return the elements up to `end`, or to the delimiter of their item."""
        if self._depth > MAXIMUM_DEPTH:
            raise Malformed(f"sequences nested deeper than {MAXIMUM_DEPTH} at byte {self.position}")
        self._depth += 1
        elements: list[Element] = []
        while end is None or self.position < end:
            tag = self._tag(little=little)
            if tag == _ITEM_END and end is None:
                self._long(little=little)
                break
            elements.append(self._element(tag, implicit=implicit, little=little))
        self._depth -= 1
        return tuple(elements)

    def _element(self, tag: int, *, implicit: bool, little: bool) -> Element:
        vr, length = self._vr_and_length(tag, implicit=implicit, little=little)
        if tag == PIXEL_DATA and length == _UNDEFINED and vr != "SQ":
            fragments = tuple(self._fragments())
            return Element(tag, "OB", self._data[0:0], little=True, fragments=fragments)
        if vr == "SQ" or length == _UNDEFINED:
            # A sequence of unknown VR is encoded in implicit VR little endian (PS3.5 6.2.2).
            unknown = vr == "UN" and not implicit
            items = tuple(
                self._items(None if length == _UNDEFINED else self._end(length), implicit or unknown, little or unknown)
            )
            return Element(tag, "SQ", self._data[0:0], little, items=items)
        end = self._end(length)
        value = self._data[self.position : end]
        self.position = end
        if tag == _PIXEL_REPRESENTATION and len(value) == 2:
            self._signed = bytes(value) in {b"\1\0", b"\0\1"}
        return Element(tag, vr, value, little or vr == "UN")

    def _items(self, end: int | None, implicit: bool, little: bool) -> Iterator[tuple[Element, ...]]:
        while end is None or self.position < end:
            tag, length = self._tag(little=little), self._long(little=little)
            if tag == _SEQUENCE_END and end is None:
                return
            if tag != _ITEM:
                raise Malformed(f"no item where one belongs at byte {self.position}")
            yield self.data_set(None if length == _UNDEFINED else self._end(length), implicit=implicit, little=little)

    def _fragments(self) -> Iterator[memoryview]:
        while True:
            tag, length = self._tag(little=True), self._long(little=True)
            if tag == _SEQUENCE_END:
                return
            if tag != _ITEM:
                raise Malformed(f"no fragment where one belongs at byte {self.position}")
            end = self._end(length)
            yield self._data[self.position : end]
            self.position = end

    def _vr_and_length(self, tag: int, *, implicit: bool, little: bool) -> tuple[str, int]:
        if implicit:
            length = self._long(little=little)
            return self._usual_vr(tag), length
        vr = bytes(self._data[self.position : self.position + 2]).decode("latin-1")
        if vr in _SHORT:
            (length,) = struct.unpack_from("<H" if little else ">H", self._data, self.position + 2)
            self.position += 4
            return vr, int(length)
        self.position += 4
        length = self._long(little=little)
        if vr == "UN" and length != _UNDEFINED:
            usual = self._usual_vr(tag)
            # Its items would be in implicit VR: it stays what it is.
            return ("UN" if usual == "SQ" else usual), length
        return vr, length

    def _usual_vr(self, tag: int) -> str:
        vr = _dictionary_vr(tag)
        if vr == "US or SS":
            return "SS" if self._signed else "US"
        return vr

    def _tag(self, *, little: bool) -> int:
        group, number = struct.unpack_from("<HH" if little else ">HH", self._data, self.position)
        self.position += 4
        return int(group) << 16 | int(number)

    def _long(self, *, little: bool) -> int:
        (value,) = struct.unpack_from("<I" if little else ">I", self._data, self.position)
        self.position += 4
        return int(value)

    def _end(self, length: int) -> int:
        end = self.position + length
        if end > len(self._data):
            raise Malformed(f"an element at byte {self.position} runs past the end")
        return end


@lru_cache(maxsize=4096)
def _dictionary_vr(tag: int) -> str:
    """Return the VR of an attribute whose VR is not written; UN for one that nobody knows (PS3.5 A.1)."""
    if tag & 0xFFFF == 0:
        return "UL"
    if tag >> 16 & 1:
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    # Pixel data, look-up tables and overlays: in implicit VR they are OW.
    return "OW" if vr in {"OB or OW", "US or OW", "US or SS or OW"} else vr


def in_little_endian(element: Element) -> memoryview:
    """Return the value in little endian, whatever it is stored in."""
    size = _WORDS.get(element.vr, 1)
    if element.little or size == 1 or len(element.value) % size:
        return element.value
    return memoryview(np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes())


def as_explicit(elements: Sequence[Element]) -> Iterator[bytes | memoryview]:
    """Yield a data set of native pixels in Explicit VR Little Endian (PS3.5 A.2), value for value as it is."""
    for element in elements:
        if element.fragments is not None:
            raise ValueError("encapsulated pixel data has no explicit VR little endian without decoding it")
        head = struct.pack("<HH", element.tag >> 16, element.tag & 0xFFFF)
        if element.items is not None:
            yield head + b"SQ\0\0" + struct.pack("<I", _UNDEFINED)
            for item in element.items:
                yield struct.pack("<HHI", _ITEM >> 16, _ITEM & 0xFFFF, _UNDEFINED)
                yield from as_explicit(item)
                yield struct.pack("<HHI", _ITEM_END >> 16, _ITEM_END & 0xFFFF, 0)
            yield struct.pack("<HHI", _SEQUENCE_END >> 16, _SEQUENCE_END & 0xFFFF, 0)
            continue
        value = in_little_endian(element)
        vr = element.vr
        if vr in _SHORT and len(value) > _LONGEST_SHORT:
            # Only the long form can say how long it is (PS3.5 6.2.2, note 3).
            vr = "UN"
        if vr in _SHORT:
            yield head + vr.encode("latin-1") + struct.pack("<H", len(value))
        else:
            yield head + vr.encode("latin-1") + b"\0\0" + struct.pack("<I", len(value))
        yield value
