"""A bounded walk over an encoded data set that proves it whole before it is acknowledged (PS3.5 section 7).

It checks lengths, nesting and terminators and says where the values of top-level elements lie; it decodes no value.
It is iterative, so that hostile nesting costs neither stack nor time, and it never allocates what a length field asks
for.
"""

import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian

MAXIMUM_DEPTH = 64
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_TRAILING_PADDING = 0xFFFCFFFC
SHORT_LENGTH = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"}
    | {b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
_LONG_LENGTH = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs with a length of four bytes whose values are no sequences."""
_EXPLICIT, _IMPLICIT, _LONG = struct.Struct("<HH2sH"), struct.Struct("<HHI"), struct.Struct("<I")


Encoded = bytes | memoryview
"""An encoded data set."""


def mapped(descriptor: int) -> memoryview:
    """Return a file without reading it to memory; it may be closed then, and must not be empty. Raises OSError."""
    pages = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    # It is read here and there: what lies around need not come to memory, too.
    pages.madvise(mmap.MADV_RANDOM)
    return memoryview(pages)


class Malformed(ValueError):
    """The data set is not well-formed; the message says what and at which byte."""


class Element(NamedTuple):
    """Where the value of an element lies, and its VR as it is written (None where the syntax leaves VRs out)."""

    vr: bytes | None
    start: int
    length: int


@dataclass(slots=True)
class _Level:
    """One open sequence or item: where it ends (None: at its delimiter) and how its elements are encoded."""

    is_item: bool
    end: int | None
    implicit: bool
    little: bool
    encapsulated: bool = False


def check(data: Encoded, transfer_syntax_uid: str, wanted: Collection[int] = ()) -> dict[int, Element]:
    """Raise Malformed unless `data` is one whole data set in this transfer syntax.

    `data` is the data set alone: no preamble, no file meta; already inflated where the syntax deflates. Returns those
    of the `wanted` tags that stand at the top level with a defined length.
    """
    syntax = UID(transfer_syntax_uid)
    walk = _Walk(
        data,
        implicit=syntax == ImplicitVRLittleEndian,
        little=syntax != ExplicitVRBigEndian,
        encapsulated=syntax.is_encapsulated if not syntax.is_private and syntax.is_transfer_syntax else None,
        wanted=frozenset(wanted),
    )
    walk.run()
    return walk.found


class _Walk:
    """The walk itself: a position in the data and a stack of open sequences and items."""

    def __init__(
        self, data: Encoded, *, implicit: bool, little: bool, encapsulated: bool | None, wanted: frozenset[int]
    ) -> None:
        self.data = data
        self.size = len(data)
        self.position = 0
        self.encapsulated = encapsulated
        self.levels = [_Level(is_item=True, end=len(data), implicit=implicit, little=little)]
        self.previous_tag = -1
        self.wanted = wanted
        self.found: dict[int, Element] = {}

    def run(self) -> None:
        if not self.size:
            raise Malformed("the data set is empty")
        while True:
            self._close_finished_levels()
            if len(self.levels) == 1 and self.position >= self.size:
                return
            level = self.levels[-1]
            if not level.is_item:
                self._read_item(level)
                continue
            before = self.position
            if level.little:
                self._skip_plain(level)
            if self.position == before:
                self._read_element(level)

    def _close_finished_levels(self) -> None:
        while len(self.levels) > 1 and self.levels[-1].end is not None and self.position >= self.levels[-1].end:
            if self.position > self.levels[-1].end:
                raise Malformed(f"an element runs past its item or sequence at byte {self.position}")
            self.levels.pop()

    def _skip_plain(self, level: _Level) -> None:
        """Go past the elements that need no closer look, which is what nearly all of them are.

        Stops before the first that is not whole, not in order, wanted in another place or no plain value: that one
        is for `_read_element`, which says the same of all that is passed here, and takes ten times as long.
        """
        data, position, end = self.data, self.position, self._bound
        explicit, at_top, previous = not level.implicit, len(self.levels) == 1, self.previous_tag
        while position + 12 <= end:
            if explicit:
                group, number, vr, length = _EXPLICIT.unpack_from(data, position)
                start = position + 8
                if vr not in SHORT_LENGTH:
                    if vr not in _LONG_LENGTH:
                        break
                    (length,) = _LONG.unpack_from(data, start)
                    start += 4
            else:
                group, number, length = _IMPLICIT.unpack_from(data, position)
                start, vr = position + 8, None
            after = start + length
            tag = group << 16 | number
            if after > end or group == 0xFFFE or tag == _PIXEL_DATA:
                break
            if at_top:
                if tag <= previous or group in {0x0000, 0x0002}:
                    break
                previous = tag
                if tag in self.wanted:
                    self.found[tag] = Element(vr, start, length)
            position = after
        self.position = position
        if at_top:
            self.previous_tag = previous

    def _tag(self, level: _Level) -> int:
        group, element = struct.unpack_from("<HH" if level.little else ">HH", self._need(4))
        self.position += 4
        return int(group) << 16 | int(element)

    def _long(self, level: _Level) -> int:
        (value,) = struct.unpack_from("<I" if level.little else ">I", self._need(4))
        self.position += 4
        return int(value)

    def _need(self, count: int) -> bytes:
        chunk = bytes(self.data[self.position : self.position + count])
        if len(chunk) < count:
            raise Malformed(f"cut inside an element header at byte {self.position}")
        return chunk

    def _read_element(self, level: _Level) -> None:
        start = self.position
        tag = self._tag(level)
        if tag == _ITEM_END:
            if self._long(level) or len(self.levels) == 1 or level.end is not None:
                raise Malformed(f"an item delimiter where none belongs at byte {start}")
            self.levels.pop()
            return
        if tag >> 16 == 0xFFFE:
            raise Malformed(f"a sequence delimiter or item where none belongs at byte {start}")
        if len(self.levels) == 1:
            self._check_top_level(tag, start)
        vr, length = self._vr_and_length(level, tag, start)
        if length == _UNDEFINED:
            self._open_undefined(level, tag, vr, start)
        elif vr == b"SQ":
            self._push(
                _Level(is_item=False, end=self._end(length, start), implicit=level.implicit, little=level.little)
            )
        else:
            if tag == _PIXEL_DATA and len(self.levels) == 1 and self.encapsulated and length:
                raise Malformed(f"native pixel data in an encapsulated transfer syntax at byte {start}")
            end = self._end(length, start)
            if len(self.levels) == 1 and tag in self.wanted:
                self.found[tag] = Element(vr, self.position, length)
            self.position = end

    def _check_top_level(self, tag: int, start: int) -> None:
        if tag >> 16 in {0x0000, 0x0002}:
            raise Malformed(f"group {tag >> 16:04X} inside the data set at byte {start}")
        if tag <= self.previous_tag and tag != _TRAILING_PADDING:
            raise Malformed(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) out of order at byte {start}")
        self.previous_tag = tag

    def _vr_and_length(self, level: _Level, tag: int, start: int) -> tuple[bytes | None, int]:
        if level.implicit:
            return None, self._long(level)
        vr = self._need(2)
        self.position += 2
        if vr in SHORT_LENGTH:
            (length,) = struct.unpack_from("<H" if level.little else ">H", self._need(2))
            self.position += 2
            return vr, int(length)
        if not (vr.isalpha() and vr.isupper()):
            raise Malformed(f"element ({tag >> 16:04X},{tag & 0xFFFF:04X}) has no VR at byte {start}")
        # A VR that is not known yet has the long form: all that were added to the Standard since 1993 do.
        self._need(2)
        self.position += 2
        return vr, self._long(level)

    def _open_undefined(self, level: _Level, tag: int, vr: bytes | None, start: int) -> None:
        if tag == _PIXEL_DATA and len(self.levels) == 1 and vr != b"SQ":
            if self.encapsulated is False:
                raise Malformed(f"encapsulated pixel data in a native transfer syntax at byte {start}")
            self._push(_Level(is_item=False, end=None, implicit=True, little=True, encapsulated=True))
        elif vr in {b"SQ", None}:
            self._push(_Level(is_item=False, end=None, implicit=level.implicit, little=level.little))
        elif vr == b"UN":
            # A sequence of unknown VR is encoded in implicit VR little endian (PS3.5 6.2.2).
            self._push(_Level(is_item=False, end=None, implicit=True, little=True))
        else:
            raise Malformed(f"undefined length on VR {vr.decode('ascii', 'replace')} at byte {start}")

    def _read_item(self, level: _Level) -> None:
        start = self.position
        tag = self._tag(level)
        length = self._long(level)
        if tag == _SEQUENCE_END and level.end is None and length == 0:
            self.levels.pop()
        elif tag != _ITEM:
            raise Malformed(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) instead of an item at byte {start}")
        elif level.encapsulated:
            if length == _UNDEFINED:
                raise Malformed(f"a fragment of undefined length at byte {start}")
            self.position = self._end(length, start)
        else:
            end = None if length == _UNDEFINED else self._end(length, start)
            self._push(_Level(is_item=True, end=end, implicit=level.implicit, little=level.little))

    def _end(self, length: int, start: int) -> int:
        end = self.position + length
        bound = self._bound
        if end > bound:
            raise Malformed(f"the element at byte {start} claims {length} bytes, {bound - self.position} are there")
        return end

    @property
    def _bound(self) -> int:
        """Where the innermost sequence or item ends that says where it does."""
        return next((level.end for level in reversed(self.levels) if level.end is not None), self.size)

    def _push(self, level: _Level) -> None:
        if len(self.levels) > 2 * MAXIMUM_DEPTH:
            raise Malformed(f"sequences nested deeper than {MAXIMUM_DEPTH} at byte {self.position}")
        self.levels.append(level)
