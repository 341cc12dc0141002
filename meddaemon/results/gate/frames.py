"""What describes the frames of an object, read once: a whole-body segmentation has thousands of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from meddaemon.results.gate.exam import Exam

_T = TypeVar("_T")
_Items: TypeAlias = Sequence[Dataset]

_FRAME_CONTENT = Tag("FrameContentSequence")
_PLANE_POSITION = Tag("PlanePositionSequence")
_DERIVATION = Tag("DerivationImageSequence")
_SEGMENT = Tag("SegmentIdentificationSequence")
_NOWHERE = (np.nan, np.nan, np.nan)


@dataclass(frozen=True, kw_only=True)
class FrameTable:
    """The frames of an object in its order, a row for each.

    `positions` are the centres of the first pixels in LPS mm, (frames, 3), NaN where none is said; `indices` the
    dimension index values, (frames, dimensions); `segments` the numbers of their segments, 0 where none is named;
    `sources` SOP Instance UID and frame of what each was derived from, ("", 0) where nothing is named.
    """

    positions: NDArray[np.float64]
    indices: NDArray[np.int64]
    segments: NDArray[np.int64]
    sources: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.sources)


def frame_table(exam: Exam, name: str) -> FrameTable:
    """Return what describes the frames of an object, read when it is first asked for.

    Raises what pydicom raises where an item lacks what it must have.
    """
    known: FrameTable | None = exam.notes.get(("frames", name))
    if known is None:
        known = exam.notes["frames", name] = _read(exam.datasets[name])
    return known


def _read(dataset: Dataset) -> FrameTable:
    items = dataset.PerFrameFunctionalGroupsSequence
    shared = dataset.SharedFunctionalGroupsSequence[0]
    of_all = _segment(shared.get("SegmentIdentificationSequence", ()))
    return FrameTable(
        positions=np.array(list(_each(items, _PLANE_POSITION, _position, _NOWHERE)), np.float64),
        indices=np.array(list(_each(items, _FRAME_CONTENT, _indices)), np.int64),
        segments=np.array(list(_each(items, _SEGMENT, _segment, of_all)), np.int64),
        sources=tuple(_each(items, _DERIVATION, _source, ("", 0))),
    )


def _each(items: _Items, tag: BaseTag, read: Callable[[_Items], _T], otherwise: _T | None = None) -> Iterator[_T]:
    """Yield what one functional group of each frame says; those that are written alike are read once.

    Raises `KeyError` where a frame has none and nothing holds `otherwise`.
    """
    known: dict[bytes, _T] = {}
    for item in items:
        element: Any = item.get_item(tag) if tag in item else None
        if element is None:
            if otherwise is None:
                raise KeyError(tag)
            yield otherwise
        elif isinstance(element, RawDataElement) and element.value is not None:
            if element.value not in known:
                known[element.value] = read(Dataset({tag: element})[tag].value)
            yield known[element.value]
        else:
            yield read(item[tag].value)


def _position(groups: _Items) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in groups[0].ImagePositionPatient)
    return x, y, z


def _indices(groups: _Items) -> tuple[int, ...]:
    values: Any = groups[0].DimensionIndexValues
    return (values,) if isinstance(values, int) else tuple(int(value) for value in values)


def _segment(groups: _Items) -> int:
    return int(groups[0].ReferencedSegmentNumber) if groups else 0


def _source(groups: _Items) -> tuple[str, int]:
    for derivation in groups:
        for image in derivation.SourceImageSequence:
            return str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1))
    return "", 0
