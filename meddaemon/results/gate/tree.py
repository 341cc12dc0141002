"""Reading content trees and codes (PS3.3 C.17.3, section 8)."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydicom.dataset import Dataset

from meddaemon.domain.codes import Code

_VALUES: Mapping[str, str] = {
    "CONTAINER": "ContinuityOfContent",
    "TEXT": "TextValue",
    "CODE": "ConceptCodeSequence",
    "NUM": "MeasuredValueSequence",
    "UIDREF": "UID",
    "SCOORD": "GraphicData",
    "IMAGE": "ReferencedSOPSequence",
    "COMPOSITE": "ReferencedSOPSequence",
    "WAVEFORM": "ReferencedSOPSequence",
}
"""What each kind of content item holds (PS3.3 C.17.3), of those that we write."""
_NAMELESS = ("IMAGE", "COMPOSITE", "WAVEFORM")
"""Kinds that need no name in a list of key objects."""
_BELOW: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CONTAINS": (("CONTAINER",), tuple(_VALUES)),
    "HAS OBS CONTEXT": (("CONTAINER",), ("TEXT", "CODE", "UIDREF")),
    "HAS ACQ CONTEXT": (("CONTAINER",), ("TEXT", "CODE", "UIDREF")),
    "HAS CONCEPT MOD": (tuple(_VALUES), ("TEXT", "CODE")),
    "HAS PROPERTIES": (("TEXT", "CODE", "NUM"), ("TEXT", "CODE", "NUM", "UIDREF", "SCOORD", "IMAGE")),
    "SELECTED FROM": (("SCOORD",), ("IMAGE",)),
}
"""Which kinds a relationship leads from, and to (PS3.3 Table A.35.3-2)."""


def shape(dataset: Dataset) -> Iterator[str]:
    """Yield what is wrong with the shape of a tree: kinds, names, values, relationships."""
    for item in items_of(dataset):
        kind, name = str(item.get("ValueType")), name_of(item)
        if kind not in _VALUES or _VALUES[kind] not in item or item[_VALUES[kind]].is_empty:
            yield f"{name} is a {kind} without its value"
        if kind not in _NAMELESS and not all(name):
            yield f"a {kind} has no name"
        for child in item.get("ContentSequence", ()):
            above, below = _BELOW.get(str(child.get("RelationshipType")), ((), ()))
            if kind not in above or child.get("ValueType") not in below:
                yield f"{name} {child.get('RelationshipType')} {name_of(child)}"


def items_of(item: Dataset) -> Iterator[Dataset]:
    """Yield a content item and all below it."""
    yield item
    for child in item.get("ContentSequence", ()):
        yield from items_of(child)


def named(group: Dataset, name: tuple[str, str]) -> Iterator[Dataset]:
    """Return the content items of a group that are called so: (code value, coding scheme designator)."""
    return (item for item in group.get("ContentSequence", ()) if name_of(item) == name)


def name_of(item: Dataset) -> tuple[str, str]:
    """Return what a content item is called: (code value, coding scheme designator)."""
    for code in item.get("ConceptNameCodeSequence", ()):
        return str(code.get("CodeValue")), str(code.get("CodingSchemeDesignator"))
    return "", ""


def instances_in(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """Yield the instance references of a study - series - instance hierarchy (PS3.3 C.17.2.1)."""
    for study in dataset.get(keyword, ()):
        for series in study.ReferencedSeriesSequence:
            yield from series.ReferencedSOPSequence


def is_code(items: Any, code: Code) -> bool:
    """Return whether a code sequence says this code, with its meaning."""
    return bool(items) and (
        str(items[0].get("CodeValue")),
        str(items[0].get("CodingSchemeDesignator")),
        str(items[0].get("CodeMeaning")),
    ) == (code.value, code.scheme, code.meaning)
