"""From stored values to real-world values: rescale or Modality LUT, plane by plane (PS3.3 C.11.1).

A volume holds int16 where that holds every real-world value exactly, which is half the memory of float32 and what CT
and MR are made of; else float32, rounded once from double precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from meddaemon.inference.part10 import Attributes

INT16 = np.iinfo(np.int16)
_BLOCK = 2**15
"""So many values are transformed at a time: they stay in the cache, and no plane is copied whole as float64."""

_FLOAT32_MAXIMUM = float(np.finfo(np.float32).max)


class NotWhole(Exception):
    """A plane has values that int16 does not hold."""


class NotFinite(ValueError):
    """A real-world value is no finite number in float32."""


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """Modality transformation of one plane: value = slope · stored value + intercept."""

    slope: float
    intercept: float

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers stay whole numbers of few bits."""
        return all(float(each).is_integer() and abs(each) < 2**15 for each in (self.slope, self.intercept))

    def range(self, lowest: int, highest: int) -> tuple[float, float]:
        """Return the smallest and largest value that stored values from `lowest` to `highest` can become."""
        ends = self.slope * lowest + self.intercept, self.slope * highest + self.intercept
        return min(ends), max(ends)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Modality LUT: the value of stored value `first` + i is `values[i]`; beyond the ends, that of the end."""

    first: int
    values: NDArray[np.uint16] = field(repr=False)

    @property
    def is_whole(self) -> bool:
        """Whether every value is one of int16."""
        return int(self.values.max()) <= INT16.max


Modality = Rescale | Table


class MalformedTable(ValueError):
    """A Modality LUT contradicts itself."""


def table(item: Attributes, *, signed: bool) -> Table:
    """Return the LUT of an item of Modality LUT Sequence (PS3.3 C.11.1.1); raises `MalformedTable`."""
    descriptor, data = item.words.get("LUTDescriptor", ()), item.words.get("LUTData", ())
    if len(descriptor) != 3:
        raise MalformedTable(f"a LUT Descriptor of {len(descriptor)} values")
    count, first, bits = descriptor
    count = count or 2**16
    if signed and first >= 2**15:
        first -= 2**16
    values = np.array(data, dtype=np.uint16)
    if bits == 8 and len(values) == -(-count // 2) and count > 1:
        # Two entries in each word, the first in its less significant byte.
        values = values.astype("<u2").view(np.uint8).astype(np.uint16)[:count]
    if bits not in {8, 16} or len(values) != count:
        raise MalformedTable(f"{len(data)} words for {count} entries of {bits} bits")
    if bits == 8 and values.max() > 0xFF:
        raise MalformedTable("entries of 8 bits are larger than 255")
    return Table(first=first, values=values)


def stored_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """Return the smallest and largest stored value."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def apply(
    stored: NDArray[np.generic], modality: Modality, out: NDArray[np.int16] | NDArray[np.float32], bits: int
) -> None:
    """Write the real-world values of a plane into `out`, which may be `stored` itself seen as int16.

    `bits` is how many bits are stored. Raises `NotWhole` when `out` is int16 and does not hold every value exactly,
    `NotFinite` when it is float32 and a value would be infinite.
    """
    if isinstance(modality, Table):
        _look_up(stored, modality, out)
    elif out.dtype == np.int16:
        _rescale_whole(stored, modality, out, bits)
    else:
        _rescale(stored, modality, out, bits)


def _look_up(stored: NDArray[np.generic], modality: Table, out: NDArray[np.generic]) -> None:
    if out.dtype == np.int16 and not modality.is_whole:
        raise NotWhole
    values = modality.values.astype(out.dtype)
    for part, target in _blocks(stored, out):
        indices = part.astype(np.int64)
        indices -= modality.first
        np.take(values, indices, mode="clip", out=target)


def _rescale_whole(stored: NDArray[np.generic], modality: Rescale, out: NDArray[np.generic], bits: int) -> None:
    if not modality.is_whole:
        raise NotWhole
    lowest, highest = stored_range(bits, signed=stored.dtype.kind == "i")
    # Only the end that may be too far is looked for.
    if not _fits(modality, lowest, 0 if lowest else highest):
        lowest = int(stored.min())
    if not _fits(modality, lowest, highest) and not _fits(modality, lowest, int(stored.max())):
        raise NotWhole
    # Modulo 2**16 every step is exact, and the last value fits: so it is the right one, whatever came between.
    target = out.view(np.uint16)
    if not np.shares_memory(stored, out):
        np.copyto(target, stored, casting="unsafe")
    if modality.slope != 1:
        np.multiply(target, np.uint16(int(modality.slope) & 0xFFFF), out=target)
    if modality.intercept:
        np.add(target, np.uint16(int(modality.intercept) & 0xFFFF), out=target)


def _fits(modality: Rescale, lowest: int, highest: int) -> bool:
    low, high = modality.range(lowest, highest)
    return low >= INT16.min and high <= INT16.max


def _rescale(stored: NDArray[np.generic], modality: Rescale, out: NDArray[np.generic], bits: int) -> None:
    low, high = modality.range(*stored_range(bits, signed=stored.dtype.kind == "i"))
    may_overflow = not max(abs(low), abs(high)) <= _FLOAT32_MAXIMUM
    for part, target in _blocks(stored, out):
        values = part.astype(np.float64)
        # Double precision, so that float32 rounds once.
        values *= modality.slope
        values += modality.intercept
        if may_overflow and not (np.abs(values) <= _FLOAT32_MAXIMUM).all():
            raise NotFinite
        target[...] = values


def _blocks(
    stored: NDArray[np.generic], out: NDArray[np.generic]
) -> Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]]:
    flat, target = stored.reshape(-1), out.reshape(-1)
    return [(flat[at : at + _BLOCK], target[at : at + _BLOCK]) for at in range(0, flat.size, _BLOCK)]
