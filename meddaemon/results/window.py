"""How images of the source are shown: what their stored values mean, and which of them are bright (PS3.3 C.11)."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


class Window(NamedTuple):
    """Centre and width in values after the Modality LUT, and the function between (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: str = "LINEAR"


class Lookup(NamedTuple):
    """A table in place of a window (PS3.3 C.11.2.1.1): value `first` + i of `entries` shown as entry i of so many bits.

    `data` are 16-bit words, the less significant byte first; of entries of 8 bits there may be two in each.
    """

    entries: int
    first: int
    bits: int
    data: bytes


class Rescale(NamedTuple):
    """What makes real-world values of stored ones; the type says which."""

    slope: float
    intercept: float
    type: str = "US"


def window_of(instance: Dataset, frame: int) -> Window | None:
    """Return the first window of an image, or of its frame; None where it has none that can be applied."""
    for groups in _groups(instance, frame, "FrameVOILUTSequence"):
        centre, width = _number(groups, "WindowCenter"), _number(groups, "WindowWidth")
        function = str(groups.get("VOILUTFunction") or "LINEAR")
        if function not in {"LINEAR", "LINEAR_EXACT", "SIGMOID"} or centre is None or width is None:
            continue
        if width >= 1 or (width > 0 and function != "LINEAR"):
            return Window(centre, width, function)
    return None


def lookup_of(instance: Dataset, frame: int) -> Lookup | None:
    """Return the first VOI LUT of an image, or of its frame; None where there is none, or it contradicts itself."""
    for groups in _groups(instance, frame, "FrameVOILUTSequence"):
        for table in groups.get("VOILUTSequence") or ():
            return _lookup(table, signed=instance.get("PixelRepresentation") == 1)
    return None


def voi_of(instance: Dataset, frame: int) -> Window | Lookup | None:
    """Return how bright the values of an image, or of its frame, are: by its window, or by its table without one."""
    return window_of(instance, frame) or lookup_of(instance, frame)


def _lookup(table: Dataset, *, signed: bool) -> Lookup | None:
    descriptor, data = _words(table, "LUTDescriptor"), _words(table, "LUTData")
    if len(descriptor) != 3:
        return None
    count, first, bits = (int(each) for each in descriptor)
    count = count or 2**16
    words = {count, -(-count // 2)} if bits == 8 else {count}
    if not 8 <= bits <= 16 or len(data) not in words:
        return None
    # What was read without a VR has lost its sign; what was read with one has it.
    said = table.get("LUTDescriptor")
    signed = signed if isinstance(said, bytes) else int(said[1]) < 0
    return Lookup(count, first - 2**16 if signed and first >= 2**15 else first, bits, data.tobytes())


def _words(table: Dataset, keyword: str) -> NDArray[np.uint16]:
    """Return 16-bit words, which stand there as numbers or as bytes; none where they are neither."""
    value = table.get(keyword)
    if isinstance(value, bytes):
        return np.frombuffer(value[: len(value) // 2 * 2], "<u2")
    try:
        return np.atleast_1d(np.array(value, np.int64)).astype("<u2")
    except (TypeError, ValueError, OverflowError):
        return np.zeros(0, "<u2")


def rescale_of(instance: Dataset, frame: int) -> Rescale | None:
    """Return what the stored values of an image, or of its frame, are multiplied with; None where it is no line."""
    if "ModalityLUTSequence" in instance:
        return None
    for groups in _groups(instance, frame, "PixelValueTransformationSequence"):
        slope, intercept = _number(groups, "RescaleSlope"), _number(groups, "RescaleIntercept")
        if slope is not None and intercept is not None:
            # Those of CT are Hounsfield units where it does not say (PS3.3 C.8.2.1), all others unspecified.
            untold = "HU" if instance.get("Modality") == "CT" else "US"
            return Rescale(slope, intercept, str(groups.get("RescaleType") or untold))
    return Rescale(1.0, 0.0)


def _groups(instance: Dataset, frame: int, keyword: str) -> Iterator[Dataset]:
    """Yield where attributes of a frame may stand: its own functional group, the shared one, the instance itself."""
    per_frame: Sequence[Dataset] = instance.get("PerFrameFunctionalGroupsSequence") or ()
    shared: Sequence[Dataset] = instance.get("SharedFunctionalGroupsSequence") or ()
    for groups in (*per_frame[frame - 1 : frame], *shared):
        yield from groups.get(keyword) or ()
    yield instance


def _number(groups: Dataset, keyword: str) -> float | None:
    try:
        value = groups.get(keyword)
        number = float(value[0] if isinstance(value, MultiValue) else value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return number if math.isfinite(number) else None
