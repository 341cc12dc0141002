"""RLE Lossless (PS3.5 annex G), a frame at once: label maps are long runs.

What pydicom's encoder gives depends on which plugins are installed, and the same result must be the same bytes.
"""

import struct

import numpy as np
from numpy.typing import NDArray

_LONGEST = 128
"""Pixels that one code stands for."""
_WORTH_A_RUN = 3


def encoded(image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Return one frame [row, column] as RLE: header and segments, the bytes of highest significance first."""
    wide = np.ascontiguousarray(image, dtype=image.dtype.newbyteorder(">"))
    bytes_of = wide.view(np.uint8).reshape(*image.shape, image.itemsize)
    segments = [_segment(bytes_of[..., index]) for index in range(image.itemsize)]
    offsets = np.cumsum([64, *(len(each) for each in segments[:-1])]).tolist()
    header = struct.pack("<16I", len(segments), *offsets, *[0] * (15 - len(segments)))
    return b"".join((header, *segments))


def _segment(image: NDArray[np.uint8]) -> bytes:
    """Return the codes of one byte of each pixel, an even number of bytes; no code reaches into another row."""
    _, columns = image.shape
    pixels = image.ravel()
    differs = np.ones(pixels.size, np.bool_)
    np.not_equal(pixels[1:], pixels[:-1], out=differs[1:])
    differs[::columns] = True
    runs = np.flatnonzero(differs)
    long = np.diff(runs, append=pixels.size) >= _WORTH_A_RUN
    # Short runs that follow each other in a row are given as they are, together.
    begins = long | (runs % columns == 0)
    begins[1:] |= long[:-1]
    starts, repeated = runs[begins], long[begins]
    lengths = np.diff(starts, append=pixels.size)
    counts = -(-lengths // _LONGEST)
    ordinals = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(starts, counts) + _LONGEST * ordinals
    lengths = np.minimum(np.repeat(lengths, counts) - _LONGEST * ordinals, _LONGEST)
    repeated = np.repeat(repeated, counts) & (lengths > 1)
    sizes = np.where(repeated, 2, lengths + 1)
    ends = np.cumsum(sizes)
    places = ends - sizes
    codes = np.zeros(int(ends[-1]) + int(ends[-1]) % 2, np.uint8)
    codes[places] = np.where(repeated, 257 - lengths, lengths - 1)
    codes[places[repeated] + 1] = pixels[starts[repeated]]
    plain = lengths[~repeated]
    within = np.arange(plain.sum()) - np.repeat(np.cumsum(plain) - plain, plain)
    codes[np.repeat(places[~repeated] + 1, plain) + within] = pixels[np.repeat(starts[~repeated], plain) + within]
    return codes.tobytes()
