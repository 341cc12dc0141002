"""Reading content trees and codes (PS3.3 C.17.3, section 8)."""

from collections.abc import Iterator
from typing import Any

from pydicom.dataset import Dataset

from meddaemon.domain.codes import Code


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
