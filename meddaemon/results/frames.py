"""Many frames of a BINARY segmentation, written as bytes.

A whole-body result has thousands of frames, and as many descriptions of them: a data set for each, as highdicom and
pydicom make them, costs tens of seconds and three times the memory. What differs from frame to frame are two numbers
and a place, so that the header is left to highdicom and the last two elements of the object are written here.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset

from meddaemon.domain.errors import InputRefused

_LONGEST = 0xFFFFFFFE  # bytes of a value with a stated length (PS3.5 7.1.1)

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """What the frames of one plane share.

    `source` is SOP Instance UID and frame number; encoded are what they were derived from, and where they lie.
    """

    source: tuple[str, int]
    derivation: bytes
    position: bytes


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame: its segment, and of which plane and at which place along the stack (1-based) it is."""

    segment: int
    plane: Plane
    place: int
    mask: Mask
    """[row, column]"""


def planes_of(skeleton: Dataset) -> list[Plane]:
    """Return what describes each frame of an object that has one for each plane, in its order."""
    planes = []
    for item in skeleton.PerFrameFunctionalGroupsSequence:
        derivation, position = Dataset(), Dataset()
        derivation.DerivationImageSequence = item.DerivationImageSequence
        position.PlanePositionSequence = item.PlanePositionSequence
        image = item.DerivationImageSequence[0].SourceImageSequence[0]
        source = str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))
        planes.append(Plane(source=source, derivation=_encoded(derivation), position=_encoded(position)))
    return planes


def with_frames(header: Dataset, frames: Iterable[Frame]) -> bytes:
    """Return a Part 10 file in Explicit VR Little Endian: the header, and the frames in the order in which they come.

    `header` is a BINARY segmentation of several segments; frames that it has are replaced. Raises `InputRefused` where
    the frames would not fit into one object.
    """
    del header.PerFrameFunctionalGroupsSequence
    vr = header["PixelData"].VR
    del header.PixelData
    items: list[bytes] = []
    packed = Packed()
    for frame in frames:
        items.append(_item(frame))
        packed.add(frame.mask)
    pixels = packed.finished()
    groups, pixel_bytes = sum(map(len, items)), sum(map(len, pixels))
    if max(groups, pixel_bytes) > _LONGEST:
        raise InputRefused(
            "too_many_frames",
            f"{len(items)} frames of {header.Rows} x {header.Columns} do not fit into one segmentation",
            numbers={"frames": len(items), "bytes": pixel_bytes},
        )
    header.NumberOfFrames = len(items)
    file = BytesIO()
    header.save_as(file, enforce_file_format=True)
    return b"".join(
        (
            file.getvalue(),
            struct.pack("<HH2s2xI", 0x5200, 0x9230, b"SQ", groups),
            *items,
            struct.pack("<HH2s2xI", 0x7FE0, 0x0010, vr.encode(), pixel_bytes),
            *pixels,
        )
    )


class Packed:
    """Frames of one bit for each pixel, packed without gaps, the first pixel in the lowest bit (PS3.5 8.1.1)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._rest: Mask = np.zeros(0, np.bool_)
        """Pixels that do not fill a byte yet."""

    def add(self, mask: Mask) -> None:
        """Append a frame [row, column]."""
        pixels = mask.ravel()
        if self._rest.size:
            pixels = np.concatenate([self._rest, pixels])
        whole = pixels.size // 8 * 8
        self._parts.append(np.packbits(pixels[:whole], bitorder="little").tobytes())
        self._rest = pixels[whole:].copy()

    def finished(self) -> Sequence[bytes]:
        """Return the bytes, of which there is an even number."""
        parts = self._parts
        if self._rest.size:
            parts.append(np.packbits(self._rest, bitorder="little").tobytes())
        return [*parts, b"\0"] if sum(map(len, parts)) % 2 else parts


def _item(frame: Frame) -> bytes:
    """Return one item of the Per-Frame Functional Groups Sequence, in the order of its tags."""
    content = struct.pack("<HH2sHII", 0x0020, 0x9157, b"UL", 8, frame.segment, frame.place)
    segment = struct.pack("<HH2sHH", 0x0062, 0x000B, b"US", 2, frame.segment)
    groups = b"".join(
        (
            frame.plane.derivation,
            _sequence_of_one(0x0020, 0x9111, content),
            frame.plane.position,
            _sequence_of_one(0x0062, 0x000A, segment),
        )
    )
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(groups)) + groups


def _sequence_of_one(group: int, element: int, content: bytes) -> bytes:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
    return struct.pack("<HH2s2xI", group, element, b"SQ", len(item)) + item


def _encoded(dataset: Dataset) -> bytes:
    file = BytesIO()
    stream = DicomIO(file)
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, dataset)
    return file.getvalue()
