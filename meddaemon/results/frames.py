"""The frames of a segmentation, written as bytes.

A whole-body result has thousands of frames, and as many descriptions of them: a data set for each, as highdicom and
pydicom make them, costs tens of seconds and three times the memory. What differs from frame to frame are two numbers
and a place, so that the header is left to highdicom and the last two elements of the object are written here.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset

from meddaemon.domain.errors import InputRefused
from meddaemon.results import rle

_LONGEST = 0xFFFFFFFE  # bytes of a value with a stated length (PS3.5 7.1.1)

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """What the frames of one plane, or of one picture, share.

    `source` is SOP Instance UID and frame number; encoded are what they were derived from, what else is said of their
    content, and where they lie.
    """

    source: tuple[str, int]
    derivation: bytes
    content: bytes = b""
    position: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame: of which plane, at which place along the stack (1-based), and its segment, 0 in a label map."""

    plane: Plane
    place: int
    segment: int = 0


def planes_of(skeleton: Dataset) -> list[Plane]:
    """Return what describes each frame of an object that has one for each plane, in its order."""
    planes = []
    for item in skeleton.PerFrameFunctionalGroupsSequence:
        derivation, position = Dataset(), Dataset()
        derivation.DerivationImageSequence = item.DerivationImageSequence
        position.PlanePositionSequence = item.PlanePositionSequence
        image = item.DerivationImageSequence[0].SourceImageSequence[0]
        source = str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))
        planes.append(Plane(source=source, derivation=encoded(derivation), position=encoded(position)))
    return planes


def with_frames(header: Dataset, frames: Sequence[Frame], pixel_data: Iterable[bytes]) -> bytes:
    """Return a Part 10 file in Explicit VR Little Endian, encapsulated or not: the header, its frames, their pixels.

    `header` is a segmentation; frames that it has are replaced. `pixel_data` are the bytes of the last element, as
    `native_bits` or `run_lengths` give them. Raises `InputRefused` where the frames do not fit into one object.
    """
    del header.PerFrameFunctionalGroupsSequence
    del header.PixelData
    items = [_item(frame) for frame in frames]
    length = sum(map(len, items))
    _refuse_more_than_fits(length, len(items), header)
    header.NumberOfFrames = len(items)
    file = BytesIO()
    header.save_as(file, enforce_file_format=True)
    file.write(struct.pack("<HH2s2xI", 0x5200, 0x9230, b"SQ", length))
    file.writelines(items)
    file.writelines(pixel_data)
    # Of the same bytes: a copy would be another of hundreds of megabytes.
    return file.getvalue()


def native_bits(header: Dataset, masks: Iterable[Mask], count: int) -> Iterator[bytes]:
    """Yield Pixel Data of `count` frames of one bit for each pixel (PS3.5 8.1.1), of as many bytes as are even.

    Raises `InputRefused` where they do not fit into one object.
    """
    filled = -(-count * header.Rows * header.Columns // 8)
    length = filled + filled % 2
    _refuse_more_than_fits(length, count, header)
    yield struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", length)
    packed = Packed()
    for mask in masks:
        yield packed.add(mask)
    yield packed.finished() + bytes(length - filled)


def run_lengths(images: Iterable[NDArray[np.uint8] | NDArray[np.uint16]], header: Dataset) -> Iterator[bytes]:
    """Yield encapsulated Pixel Data of frames [row, column] in RLE Lossless (PS3.5 A.4.2), one fragment for each."""
    fragments = [rle.encoded(image) for image in images]
    offsets = np.cumsum([0, *(len(each) + 8 for each in fragments[:-1])])
    _refuse_more_than_fits(int(offsets[-1]), len(fragments), header)
    yield struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
    yield struct.pack("<HHI", 0xFFFE, 0xE000, 4 * len(fragments)) + offsets.astype("<u4").tobytes()
    for each in fragments:
        yield struct.pack("<HHI", 0xFFFE, 0xE000, len(each))
        yield each
    yield struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def _refuse_more_than_fits(length: int, count: int, header: Dataset) -> None:
    if length > _LONGEST:
        raise InputRefused(
            "too_many_frames",
            f"{count} frames of {header.Rows} x {header.Columns} do not fit into one segmentation",
            numbers={"frames": count, "bytes": length},
        )


class Packed:
    """Frames of one bit for each pixel, packed without gaps, the first pixel in the lowest bit (PS3.5 8.1.1)."""

    def __init__(self) -> None:
        self._rest: Mask = np.zeros(0, np.bool_)
        """Pixels that do not fill a byte yet."""

    def add(self, mask: Mask) -> bytes:
        """Return the bytes that a further frame [row, column] fills."""
        pixels = mask.ravel()
        if self._rest.size:
            pixels = np.concatenate([self._rest, pixels])
        whole = pixels.size // 8 * 8
        self._rest = pixels[whole:].copy()
        return np.packbits(pixels[:whole], bitorder="little").tobytes()

    def finished(self) -> bytes:
        """Return what is left over."""
        return np.packbits(self._rest, bitorder="little").tobytes()


def _item(frame: Frame) -> bytes:
    """Return one item of the Per-Frame Functional Groups Sequence, in the order of its tags."""
    indices = (frame.segment, frame.place) if frame.segment else (frame.place,)
    content = struct.pack(f"<HH2sH{len(indices)}I", 0x0020, 0x9157, b"UL", 4 * len(indices), *indices)
    content += frame.plane.content
    groups = frame.plane.derivation + _sequence_of_one(0x0020, 0x9111, content) + frame.plane.position
    if frame.segment:
        segment = struct.pack("<HH2sHH", 0x0062, 0x000B, b"US", 2, frame.segment)
        groups += _sequence_of_one(0x0062, 0x000A, segment)
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(groups)) + groups


def _sequence_of_one(group: int, element: int, content: bytes) -> bytes:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
    return struct.pack("<HH2s2xI", group, element, b"SQ", len(item)) + item


def encoded(dataset: Dataset) -> bytes:
    """Return a data set as it stands in an item, in Explicit VR Little Endian."""
    file = BytesIO()
    stream = DicomIO(file)
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, dataset)
    return file.getvalue()
