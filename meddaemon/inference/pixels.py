"""Stored pixel values, frame by frame, from native, deflated and encapsulated pixel data (PS3.5 section 8, annex A).

There is one decoder for each transfer syntax, so that a file gives the same values on every machine. What a code stream
says about itself is compared with the header before a decoder sees it, because decoders allocate what streams claim.
A decoder may still crash: this is meant to run in a process that may.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn, Self

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.errors import UndecodablePixels
from meddaemon.inference import part10
from meddaemon.inference.modality import stored_range

Stored = NDArray[np.generic]

MAXIMUM_FRAGMENTS = 2**20
"""More fragments are not read, whatever the file holds."""

_DEFLATE_RATIO = 1032
"""Deflate never shrinks further: a claim beyond it is false."""

_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_J2K_START = b"\xff\x4f\xff\x51"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "

# Besides memory and system errors, what imagecodecs raises: its own errors are RuntimeErrors, and numpy's say that
# a stream is not what was announced.
_DECODER_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError, OSError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the pixels of one file are stored: one sample per pixel, or three in colour, by plane where `planar`.

    Where they are `paired`, two neighbours have a luminance each and share their colour (4:2:2, native only).

    `begin` is where the data set begins in the file, which has `size` bytes; `value` is where Pixel Data lies,
    counted from the begin of the inflated data set where it is deflated, else from the begin of the file. Stored values
    from the first to the second of `padding` show nothing (PS3.3 C.7.5.1.1.2).
    """

    path: Path
    sop_instance_uid: str
    transfer_syntax_uid: str
    frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    value: part10.PixelValue | None
    begin: int
    size: int
    samples: int = 1
    planar: bool = False
    paired: bool = False
    padding: tuple[int, int] | None = None

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of a stored value, in the byte order of this machine."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.bits_allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """How long one frame is when it is not compressed."""
        return self.rows * self.columns * (2 if self.paired else self.samples) * self.bits_allocated // 8

    def padded(self, stored: Stored) -> NDArray[np.bool_] | None:
        """Return where stored values show nothing; None where every one shows something."""
        if self.padding is None:
            return None
        lowest, highest = self.padding
        one = lowest == highest
        here = np.equal(stored, lowest) if one else np.less_equal(stored, highest) & np.greater_equal(stored, lowest)
        return here if here.any() else None

    def refuse(self, reason: str, message: str, cause: BaseException | None = None) -> NoReturn:
        """Raise `UndecodablePixels` for this file."""
        name = SYNTAXES[self.transfer_syntax_uid].name
        raise UndecodablePixels(
            reason,
            f"{message} (transfer syntax {name})",
            sop_instance_uid=self.sop_instance_uid,
            numbers={"frames": self.frames, "transfer_syntax_uid": self.transfer_syntax_uid},
        ) from cause


class Precision(NamedTuple):
    """What a code stream says about its samples."""

    bits: int
    signed: bool = False


class Damaged(ValueError):
    """A code stream is not what its header announces, or not whole."""


# --- code streams ---------------------------------------------------------------------------------------------------


def _jpeg_precision(stream: bytes, layout: Layout, *, frames: frozenset[int]) -> Precision:
    """Check a JPEG or JPEG-LS stream up to its frame header, and its end; `frames` are the SOF markers allowed.

    Raises `Damaged` for another size, process or number of components, and where the end of the image is missing:
    libjpeg completes what is cut, without a word.
    """
    if stream[:2] != _JPEG_START:
        raise Damaged("no start of image")
    if not stream[-32:].rstrip(b"\0\xff").endswith(_JPEG_END):
        raise Damaged("the stream is cut: no end of image")
    position = 2
    while True:
        marker = stream[position : position + 4]
        if len(marker) < 4 or marker[0] != 0xFF:
            raise Damaged(f"no marker at byte {position}")
        code, length = marker[1], marker[2] << 8 | marker[3]
        if code == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        if length < 2 or code in _STANDALONE or code == 0xDA:
            raise Damaged(f"no frame header before marker {code:02X}")
        if code in _FRAME_HEADERS:
            break
        position += 2 + length
    if code not in frames:
        raise Damaged(f"the process of frame header {code:02X} is another than that of the transfer syntax")
    frame = stream[position + 4 : position + 10]
    if len(frame) < 6:
        raise Damaged("the frame header is cut")
    bits, rows, columns, components = struct.unpack(">BHHB", frame)
    _check_size(layout, rows, columns, components, bits)
    return Precision(bits)


_STANDALONE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
_FRAME_HEADERS = frozenset({*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7})
_BASELINE, _EXTENDED, _LOSSLESS, _JPEG_LS = (
    frozenset({0xC0}),
    frozenset({0xC0, 0xC1}),
    frozenset({0xC3}),
    frozenset({0xF7}),
)


def _jpeg2000_precision(stream: bytes, layout: Layout) -> Precision:
    """Check the SIZ segment of a JPEG 2000 code stream (ISO/IEC 15444-1 A.5.1)."""
    fields = stream[8:42]
    if stream[:4] != _J2K_START or len(fields) < 34:
        raise Damaged("no start of code stream")
    width, height, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack(">8IH", fields)
    depth = stream[42:45]
    if len(depth) < 3 or depth[1:] != b"\x01\x01":
        raise Damaged("the samples are not on every pixel")
    bits = (depth[0] & 0x7F) + 1
    _check_size(layout, height - top, width - left, components, bits)
    if left or top or tile_left or tile_top:
        raise Damaged("the image is offset in its reference grid")
    tiles = -(-width // max(tile_width, 1)) * -(-height // max(tile_height, 1))
    if not tile_width or not tile_height or tiles > _MAXIMUM_TILES:
        raise Damaged(f"{tiles} tiles of {tile_height} × {tile_width}")
    return Precision(bits, bool(depth[0] & 0x80))


_MAXIMUM_TILES = 65535


def _check_size(layout: Layout, rows: int, columns: int, components: int, bits: int) -> None:
    if (rows, columns, components) != (layout.rows, layout.columns, layout.samples):
        raise Damaged(
            f"the stream has {rows} × {columns} pixels of {components} components, its header {layout.rows} ×"
            f" {layout.columns} of {layout.samples}"
        )
    if not 1 <= bits <= layout.bits_allocated:
        raise Damaged(f"the stream has {bits} bits, its header allocates {layout.bits_allocated}")


# --- decoders -------------------------------------------------------------------------------------------------------

Decoder = Callable[[bytes, Layout, Stored], Precision]
"""Decodes a frame into an array of the layout's type and says what the stream said about its samples."""


def _decode_rle(stream: bytes, layout: Layout, out: Stored) -> Precision:
    segments = layout.samples * layout.bits_allocated // 8
    if len(stream) < 64:
        raise Damaged("no RLE header")
    count, *offsets = struct.unpack_from("<16I", stream)
    if count != segments:
        raise Damaged(f"{count} RLE segments for {layout.bits_allocated} bits allocated")
    # The decoder trusts the offsets: one beyond the stream crashes it.
    bounds = [*offsets[:segments], len(stream)]
    if bounds[0] != 64 or any(end <= start for start, end in pairwise(bounds)):
        raise Damaged("the RLE segments do not follow each other within the frame")
    planes = out if layout.samples == 1 else np.empty((layout.samples, layout.rows, layout.columns), out.dtype)
    decoded = imagecodecs.dicomrle_decode(stream, out.dtype.newbyteorder("<"), out=planes.data.cast("B"))
    if len(decoded) != out.nbytes:
        raise Damaged(f"{len(decoded)} bytes instead of {out.nbytes}")
    if planes is not out:
        np.copyto(out, np.moveaxis(planes, 0, -1))
    return Precision(layout.bits_allocated, layout.signed)


def _through(decode: Callable[..., NDArray[np.generic]], stream: bytes, precision: Precision, out: Stored) -> Precision:
    """Decode straight into `out` where the decoder's type has its size, else by a detour."""
    itemsize = 1 if precision.bits <= 8 else 2 if precision.bits <= 16 else 4
    dtype = np.dtype(f"{'i' if precision.signed else 'u'}{itemsize}")
    if itemsize == out.dtype.itemsize:
        decode(stream, out=out.view(dtype))
    else:
        values = decode(stream)
        if values.shape != out.shape or values.dtype != dtype:
            raise Damaged(f"{values.shape} values of type {values.dtype} came out")
        np.copyto(out, values, casting="unsafe")
    return precision


def _jpeg(frames: frozenset[int]) -> Decoder:
    def decode(stream: bytes, layout: Layout, out: Stored) -> Precision:
        precision = _jpeg_precision(stream, layout, frames=frames)
        return _through(_jpeg_decode if layout.samples == 1 else _jpeg_components, stream, precision, out)

    return decode


_jpeg_decode: Callable[..., Stored] = imagecodecs.jpeg8_decode


def _jpeg_components(stream: bytes, out: Stored | None = None) -> Stored:
    # The components as they are stored: what they mean is said by the header, and changed in one place.
    decoded: Stored = imagecodecs.jpeg8_decode(stream, colorspace="YCBCR", outcolorspace="YCBCR", out=out)
    return decoded


def _decode_jpeg_ls(stream: bytes, layout: Layout, out: Stored) -> Precision:
    precision = _jpeg_precision(stream, layout, frames=_JPEG_LS)
    return _through(imagecodecs.jpegls_decode, stream, precision, out)


def _decode_jpeg2000(stream: bytes, layout: Layout, out: Stored) -> Precision:
    stream = _code_stream(stream)
    return _through(_jpeg2k_decode, stream, _jpeg2000_precision(stream, layout), out)


def _jpeg2k_decode(stream: bytes, out: Stored | None = None) -> Stored:
    # Frames are decoded side by side: threads within a frame would only wait for each other.
    decoded: Stored = imagecodecs.jpeg2k_decode(stream, numthreads=1, out=out)
    return decoded


def _decode_htj2k_lossless(stream: bytes, layout: Layout, out: Stored) -> Precision:
    stream = _code_stream(stream)
    precision = _jpeg2000_precision(stream, layout)
    # OpenJPH is several times as fast as OpenJPEG, but what a lossy stream overshoots comes out of it at the other
    # end of the range. (OpenJPEG decodes the lossy syntax.)
    if not _is_reversible(stream):
        raise Damaged("an irreversible stream in a lossless transfer syntax")
    return _through(imagecodecs.htj2k_decode, stream, precision, out)


def _is_reversible(stream: bytes) -> bool:
    """Whether the code stream says that its wavelet is that of whole numbers (ISO/IEC 15444-1 A.6.1)."""
    position = 2
    while stream[position : position + 1] == b"\xff" and stream[position + 1 : position + 2] not in {b"\x90", b""}:
        if stream[position + 1] == 0x52:
            return stream[position + 13 : position + 14] == b"\x01"
        position += 2 + int.from_bytes(stream[position + 2 : position + 4])
    return False


def _code_stream(stream: bytes) -> bytes:
    """Return the code stream alone: some writers wrap it in a JP2 file, which PS3.5 A.4.4 does not allow."""
    if stream.startswith(_JP2_SIGNATURE):
        start = stream.find(_J2K_START)
        return stream[max(start, 0) :]
    return stream


class Syntax(NamedTuple):
    """A transfer syntax that is taken; native where there is no decoder."""

    name: str
    decode: Decoder | None = None
    lossy: bool = False


SYNTAXES: dict[str, Syntax] = {
    part10.IMPLICIT_LITTLE: Syntax("Implicit VR Little Endian"),
    "1.2.840.10008.1.2.1": Syntax("Explicit VR Little Endian"),
    part10.EXPLICIT_BIG: Syntax("Explicit VR Big Endian"),
    part10.DEFLATED_LITTLE: Syntax("Deflated Explicit VR Little Endian"),
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", _decode_rle),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline (Process 1)", _jpeg(_BASELINE), lossy=True),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended (Process 2 and 4)", _jpeg(_EXTENDED), lossy=True),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless (Process 14)", _jpeg(_LOSSLESS)),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG Lossless (Process 14, Selection Value 1)", _jpeg(_LOSSLESS)),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", _decode_jpeg_ls),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-lossless", _decode_jpeg_ls, lossy=True),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless", _decode_jpeg2000),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", _decode_jpeg2000, lossy=True),
    "1.2.840.10008.1.2.4.201": Syntax("HTJ2K Lossless", _decode_htj2k_lossless),
    "1.2.840.10008.1.2.4.202": Syntax("HTJ2K Lossless RPCL", _decode_htj2k_lossless),
    "1.2.840.10008.1.2.4.203": Syntax("HTJ2K", _decode_jpeg2000, lossy=True),
}
"""Every transfer syntax that is taken, with its one decoder."""


# --- reading --------------------------------------------------------------------------------------------------------


def check(layout: Layout) -> None:
    """Refuse what the file cannot hold, by its header alone.

    Raises `UndecodablePixels` with `missing_pixel_data`, `short_pixel_data` or `damaged_pixel_data`.
    """
    value, native = layout.value, SYNTAXES[layout.transfer_syntax_uid].decode is None
    if value is None or value.length == 0:
        layout.refuse("missing_pixel_data", "there is no Pixel Data, or it is empty")
    if native and value.length is None:
        layout.refuse("damaged_pixel_data", "encapsulated pixel data in a native transfer syntax")
    if not native and value.length is not None:
        layout.refuse("damaged_pixel_data", "native pixel data in an encapsulated transfer syntax")
    if value.length is None:
        return
    needed = layout.frames * layout.frame_bytes
    if layout.transfer_syntax_uid == part10.DEFLATED_LITTLE:
        held = min(value.length, layout.size * _DEFLATE_RATIO - value.position)
    else:
        held = min(value.length, layout.size - value.position)
    if needed > held:
        layout.refuse(
            "short_pixel_data",
            f"{layout.frames} × {layout.rows} × {layout.columns} pixels need {needed} bytes, {max(held, 0)} are there",
        )


class Pixels:
    """The pixels of one open file: a context manager that reads one frame after the other.

    Raises `UndecodablePixels` with `short_pixel_data` or `damaged_pixel_data`.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._file = -1
        self._inflated: part10.Inflated | None = None
        self._fragments: list[list[tuple[int, int]]] | None = None

    def __enter__(self) -> Self:
        check(self._layout)
        try:
            self._file = os.open(self._layout.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._layout.refuse("damaged_pixel_data", f"the file cannot be read: {error.strerror}", error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read_into(self, frame: int, out: Stored) -> None:
        """Read the stored values of a frame (from 0) into `out`, contiguous, of the layout's dtype.

        That is [row, column], or [row, column, sample] in colour.
        """
        layout = self._layout
        if layout.paired:
            pairs = np.empty((layout.rows, layout.columns // 2, 4), layout.dtype)
            self._read_frame(frame, pairs)
            out[:, 0::2, 0], out[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
            out[:, 0::2, 1:] = out[:, 1::2, 1:] = pairs[..., 2:]
        elif layout.planar and SYNTAXES[layout.transfer_syntax_uid].decode is None:
            planes = np.empty((layout.samples, layout.rows, layout.columns), layout.dtype)
            self._read_frame(frame, planes)
            np.copyto(out, np.moveaxis(planes, 0, -1))
        else:
            self._read_frame(frame, out)

    def _read_frame(self, frame: int, out: Stored) -> None:
        layout = self._layout
        try:
            decode = SYNTAXES[layout.transfer_syntax_uid].decode
            if decode is not None:
                _settle(out, layout, decode(self._stream(frame), layout, out))
                return
            if layout.transfer_syntax_uid == part10.DEFLATED_LITTLE:
                self._inflate(frame, out)
            else:
                self._read(frame, out)
        except (Damaged, part10.Malformed) as error:
            layout.refuse("damaged_pixel_data", f"frame {frame + 1}: {error}", error)
        except _DECODER_ERRORS as error:
            # Decoders quote sizes and markers, never a patient.
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            layout.refuse("damaged_pixel_data", f"frame {frame + 1}: {said}", error)
        if layout.transfer_syntax_uid == part10.EXPLICIT_BIG:
            self._swap(out)
        _settle(out, layout, Precision(layout.bits_allocated, layout.signed))

    def _read(self, frame: int, out: Stored) -> None:
        position = self._position + frame * out.nbytes
        rest = out.data.cast("B")
        while rest:
            count = os.preadv(self._file, [rest], position)
            if not count:
                self._layout.refuse(
                    "short_pixel_data", f"the file ends {len(rest)} bytes before frame {frame + 1} does"
                )
            rest, position = rest[count:], position + count

    def _inflate(self, frame: int, out: Stored) -> None:
        if self._inflated is None:
            limit = self._position + self._layout.frames * out.nbytes
            self._inflated = part10.Inflated(self._file, self._layout.begin, limit=limit)
        data = self._inflated.read(self._position + frame * out.nbytes, out.nbytes)
        if len(data) != out.nbytes:
            self._layout.refuse("short_pixel_data", f"{len(data)} of {out.nbytes} bytes of frame {frame + 1} are there")
        np.copyto(out, np.frombuffer(data, out.dtype.newbyteorder("<")).reshape(out.shape))

    def _swap(self, out: Stored) -> None:
        if out.dtype.itemsize > 1:
            # A copy of the plane, and yet a third of the time that swapping in place takes.
            out[...] = out.view(out.dtype.newbyteorder(">")).astype(out.dtype)
        elif self._layout.value is not None and self._layout.value.vr == b"OW":
            # Two pixels in each word, the first in its less significant byte (PS3.5 8.1.1).
            flat = out.reshape(-1)
            if flat.size % 2:
                self._layout.refuse("damaged_pixel_data", "an odd number of pixels in words of two")
            flat[:] = flat.reshape(-1, 2)[:, ::-1].reshape(-1)

    @property
    def _position(self) -> int:
        if self._layout.value is None:
            self._layout.refuse("missing_pixel_data", "there is no Pixel Data")
        return self._layout.value.position

    def _stream(self, frame: int) -> bytes:
        """Return the code stream of a frame, its fragments joined."""
        if self._fragments is None:
            self._fragments = self._frames()
        parts = [os.pread(self._file, length, position) for position, length in self._fragments[frame]]
        if sum(map(len, parts)) != sum(length for _, length in self._fragments[frame]):
            raise Damaged("the file became shorter")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _frames(self) -> list[list[tuple[int, int]]]:
        """Return for each frame where its fragments lie (PS3.5 A.4): position and length."""
        fragments = list(self._items())
        count = self._layout.frames
        if not fragments:
            raise Damaged("not even an offset table")
        table, *fragments = fragments
        if count == 1 and fragments:
            return [fragments]
        if len(fragments) == count:
            return [[fragment] for fragment in fragments]
        starts = self._offsets(table, fragments) or self._streams(fragments)
        if len(starts) != count:
            raise Damaged(f"{len(fragments)} fragments for {count} frames, and nothing tells which is whose")
        return [fragments[start:end] for start, end in pairwise([*starts, len(fragments)])]

    def _items(self) -> Iterator[tuple[int, int]]:
        """Yield where the values of the items lie, up to the delimiter."""
        position = self._position
        for _ in range(MAXIMUM_FRAGMENTS):
            head = os.pread(self._file, 8, position)
            if head[:4] == _SEQUENCE_END:
                return
            if len(head) < 8 or head[:4] != _ITEM:
                raise Damaged(f"neither a fragment nor the end of the fragments at byte {position}")
            length = int.from_bytes(head[4:], "little")
            position += 8
            if position + length > self._layout.size:
                raise Damaged(f"a fragment claims {length} bytes, {self._layout.size - position} are there")
            yield position, length
            position += length
        raise Damaged(f"more than {MAXIMUM_FRAGMENTS} fragments")

    def _offsets(self, table: tuple[int, int], fragments: Sequence[tuple[int, int]]) -> list[int]:
        """Return the first fragment of each frame by the Basic Offset Table; empty where there is none."""
        position, length = table
        if length == 0:
            return []
        if length != 4 * self._layout.frames:
            raise Damaged(f"a Basic Offset Table of {length} bytes for {self._layout.frames} frames")
        offsets = struct.unpack(f"<{length // 4}I", os.pread(self._file, length, position))
        begins = {begin - 8 - (position + length): index for index, (begin, _) in enumerate(fragments)}
        if offsets[0] != 0 or any(b <= a for a, b in pairwise(offsets)) or not begins.keys() >= set(offsets):
            raise Damaged("the Basic Offset Table does not point to fragments in order")
        return [begins[offset] for offset in offsets]

    def _streams(self, fragments: Sequence[tuple[int, int]]) -> list[int]:
        """Return the fragments that begin a code stream."""
        begins = (_JPEG_START + b"\xff", _J2K_START)
        heads = (os.pread(self._file, 4, position) for position, _ in fragments)
        return [index for index, head in enumerate(heads) if head.startswith(begins)]


def _settle(out: Stored, layout: Layout, precision: Precision) -> None:
    """Make stored values of decoded ones, in place: no stray high bits, and the sign that the header says.

    Where header and code stream disagree about the sign, the bits are right and the header says what they mean. That
    is no answer for a stream of fewer bits than are stored, once its highest bit is used: raises `Damaged`. What a
    lossy stream of more bits overshoots is cut off at the ends of the range.
    """
    unused = layout.bits_allocated - layout.bits_stored
    same_sign = precision.signed == layout.signed
    if precision.bits < layout.bits_stored:
        if not same_sign and _uses_highest_bit(out, precision):
            raise Damaged(
                f"{precision.bits} bits {'with' if precision.signed else 'without'} a sign in the stream contradict"
                f" {layout.bits_stored} bits {'with' if layout.signed else 'without'} one in its header"
            )
    elif unused and same_sign and SYNTAXES[layout.transfer_syntax_uid].lossy:
        np.clip(out, *stored_range(layout.bits_stored, signed=layout.signed), out=out)
    elif unused and layout.signed:
        np.left_shift(out, unused, out=out)
        np.right_shift(out, unused, out=out)
    elif unused:
        np.bitwise_and(out, np.array((1 << layout.bits_stored) - 1, out.dtype), out=out)


def _uses_highest_bit(out: Stored, precision: Precision) -> bool:
    if precision.signed:
        return bool(out.view(out.dtype.str.replace("u", "i")).min() < 0)
    return bool(out.view(out.dtype.str.replace("i", "u")).max() >= 1 << precision.bits - 1)
