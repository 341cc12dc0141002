"""The frames of an image, cut out of its stored bytes: nothing is decoded (PS3.5 section 8 and A.4)."""

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000MC,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEG2000MCLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from meddaemon.web.elements import PIXEL_DATA, Element, in_little_endian

OCTETS = "application/octet-stream"
_MEDIA_TYPES = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1), "image/jpeg"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "image/jls"),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000), "image/jp2"),
    **dict.fromkeys((JPEG2000MCLossless, JPEG2000MC), "image/jpx"),
    **dict.fromkeys((HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "image/jphc"),
    RLELossless: "image/dicom-rle",
}
_FLOATS = {0x7FE00008: 32, 0x7FE00009: 64}
_ROWS, _COLUMNS, _SAMPLES, _ALLOCATED = 0x00280010, 0x00280011, 0x00280002, 0x00280100
_FRAMES, _PHOTOMETRIC = 0x00280008, 0x00280004
_EXTENDED_OFFSETS = 0x7FE00001


class NoFrames(Exception):
    """The frames cannot be told apart; the message says why."""


class Frames:
    """The frames of an image, in order."""

    def __init__(self, elements: Sequence[Element], transfer_syntax_uid: str) -> None:
        """Find the pixels. Raises NoFrames."""
        self._transfer_syntax_uid = transfer_syntax_uid
        self._found = {element.tag: element for element in elements}
        pixels = next((self._found[tag] for tag in (PIXEL_DATA, *_FLOATS) if tag in self._found), None)
        if pixels is None:
            raise NoFrames("the object has no pixels")
        self._pixels = pixels

    @property
    def is_encapsulated(self) -> bool:
        """Whether the frames are compressed."""
        return self._pixels.fragments is not None

    @property
    def media_type(self) -> str:
        """What one frame is (PS3.18 Table 8.7.3-2)."""
        return _MEDIA_TYPES.get(UID(self._transfer_syntax_uid), OCTETS) if self.is_encapsulated else OCTETS

    @property
    def count(self) -> int:
        """How many frames the header says there are."""
        written = self._text(_FRAMES)
        return int(written) if written.isascii() and written.isdigit() and len(written) < 9 else 1

    def cut(self, numbers: Sequence[int]) -> list[list[memoryview]]:
        """Return the pieces of each of these frames, of which the first has number 1. Raises NoFrames."""
        if not all(1 <= number <= self.count for number in numbers):
            raise NoFrames(f"the object has frames 1 to {self.count}")
        if self.is_encapsulated:
            frames = self._encapsulated()
            return [frames[number - 1] for number in numbers]
        return [[frame] for frame in self._native(numbers)]

    def _native(self, numbers: Sequence[int]) -> list[memoryview]:
        """Return native frames in little endian (PS3.5 8.1.1); of single bits, each begins with a byte of its own."""
        bits = self._bits_of_frame()
        value = in_little_endian(self._pixels)
        if len(value) * 8 < bits * self.count:
            raise NoFrames("the object has fewer pixels than its header says")
        if bits % 8 == 0:
            size = bits // 8
            return [value[(number - 1) * size : number * size] for number in numbers]
        frames = []
        for number in numbers:
            begin = (number - 1) * bits
            around = np.frombuffer(value[begin // 8 : -(-(begin + bits) // 8)], np.uint8)
            unpacked = np.unpackbits(around, bitorder="little")[begin % 8 : begin % 8 + bits]
            frames.append(memoryview(np.packbits(unpacked, bitorder="little").tobytes()))
        return frames

    def _bits_of_frame(self) -> int:
        samples = self._number(_SAMPLES, 1)
        if self._text(_PHOTOMETRIC) == "YBR_FULL_422":
            # Two pixels share their colours (PS3.3 C.7.6.3.1.2).
            samples = 2
        allocated = _FLOATS.get(self._pixels.tag) or self._number(_ALLOCATED, 0)
        bits = self._number(_ROWS, 0) * self._number(_COLUMNS, 0) * samples * allocated
        if not bits:
            raise NoFrames("the header does not say how large a frame is")
        return bits

    def _encapsulated(self) -> list[list[memoryview]]:
        """Return the fragments of each frame (PS3.5 A.4)."""
        table, *fragments = self._pixels.fragments or ()
        if self.count == 1:
            return [list(fragments)]
        offsets = self._offsets(table)
        if offsets is None:
            if len(fragments) != self.count:
                raise NoFrames("nothing says where its frames begin")
            return [[fragment] for fragment in fragments]
        # Offsets count from the first fragment's item, whose tag and length take eight bytes.
        position, begin_of = 0, {}
        for index, fragment in enumerate(fragments):
            begin_of[position] = index
            position += 8 + len(fragment)
        begins = [begin_of.get(offset, -1) for offset in offsets]
        if len(begins) != self.count or -1 in begins or any(one >= next_one for one, next_one in pairwise(begins)):
            raise NoFrames("its table of offsets is wrong")
        return [fragments[one:end] for one, end in pairwise([*begins, len(fragments)])]

    def _offsets(self, table: memoryview) -> list[int] | None:
        if len(table) >= 4:
            return [offset for (offset,) in struct.iter_unpack("<I", table[: len(table) // 4 * 4])]
        extended = self._found.get(_EXTENDED_OFFSETS)
        if extended is None or not len(extended.value):
            return None
        return [offset for (offset,) in struct.iter_unpack("<Q", extended.value[: len(extended.value) // 8 * 8])]

    def _number(self, tag: int, default: int) -> int:
        element = self._found.get(tag)
        if element is None or len(element.value) < 2:
            return default
        return int.from_bytes(bytes(element.value[:2]), "little" if element.little else "big")

    def _text(self, tag: int) -> str:
        element = self._found.get(tag)
        return "" if element is None else bytes(element.value[:32]).decode("latin-1").strip(" \0")
