"""How images of the source are shown: what their stored values mean, and which of them are bright (PS3.3 C.11)."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue


class Window(NamedTuple):
    """Centre and width in values after the Modality LUT, and the function between (PS3.3 C.11.2.1.2)."""

    centre: float
    width: float
    function: str = "LINEAR"


class Rescale(NamedTuple):
    """What makes real-world values of stored ones; the type says which ("" where the image does not)."""

    slope: float
    intercept: float
    type: str = ""


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


def rescale_of(instance: Dataset, frame: int) -> Rescale | None:
    """Return what the stored values of an image, or of its frame, are multiplied with; None where it is no line."""
    if "ModalityLUTSequence" in instance:
        return None
    for groups in _groups(instance, frame, "PixelValueTransformationSequence"):
        slope, intercept = _number(groups, "RescaleSlope"), _number(groups, "RescaleIntercept")
        if slope is not None and intercept is not None:
            return Rescale(slope, intercept, str(groups.get("RescaleType") or ""))
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
