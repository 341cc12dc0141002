"""What is under examination, and how a check looks at it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any, Protocol

from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.request import EncodingRequest, find
from meddaemon.results.skeleton import STUDY_CLASS
from meddaemon.results.source import INHERITED
from meddaemon.results.texts import understood

VERBATIM = frozenset({*INHERITED, "ReferencedRequestSequence"})
"""What the source says, word for word: it may say it badly, and refers to objects of others."""
_MUCH_PIXEL_DATA = (ObjectKind.SEG, ObjectKind.PROBABILITY)
"""Kinds whose pixel data are looked at where they are: a copy of them may be hundreds of megabytes."""


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The objects under examination, read back, and what they are held against."""

    request: EncodingRequest
    objects: Sequence[EncodedObject]
    notes: dict[Any, Any] = field(default_factory=dict, compare=False)
    """What checks of one object have read of it, for those that follow."""

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Each object as it reads, by the name that it goes by; segmentations without their pixel data."""
        return {
            each.name: understood(dcmread(BytesIO(each.content), stop_before_pixels=each.kind in _MUCH_PIXEL_DATA))
            for each in self.objects
        }

    @cached_property
    def known_instances(self) -> dict[str, str]:
        """SOP Class UID by SOP Instance UID of everything that a result may refer to."""
        inputs = self.request.source.inputs
        known = {str(each.SOPInstanceUID): str(each.SOPClassUID) for series in inputs for each in series.instances}
        known |= {each.sop_instance_uid: each.sop_class_uid for each in self.objects}
        # Structure sets name the study as if it were an instance.
        known[self.request.source.study_instance_uid] = STUDY_CLASS
        return known | {each.sop_instance_uid: each.sop_class_uid for each in self.request.predecessors}

    @cached_property
    def series_of(self) -> dict[str, str]:
        """Series Instance UID by SOP Instance UID of everything that a result may refer to."""
        inputs = self.request.source.inputs
        known = {uid: series.series_instance_uid for series in inputs for uid in series.sop_instance_uids}
        known |= {each.sop_instance_uid: each.series_instance_uid for each in self.objects}
        return known | {each.sop_instance_uid: each.series_instance_uid for each in self.request.predecessors}

    def made_items(self, name: str) -> list[Dataset]:
        """Return the items of an object that are ours, of sequences that are written alike only the first one's."""
        if ("items", name) not in self.notes:
            seen: set[bytes] = set()
            self.notes["items", name] = [
                each
                for element in self.datasets[name]
                if element.VR == "SQ" and keyword_for_tag(element.tag) not in VERBATIM
                for item in element.value
                for each in distinct(item, seen)
            ]
        made: list[Dataset] = self.notes["items", name]
        return made

    def referred(self, kind: str, of: EncodedObject) -> EncodedObject | None:
        """Return the object of that kind which one object may refer to: that of an edition which both are of."""
        return find(self.objects, kind, of.edition)


class Check(Protocol):
    """One question to an object: yields what is wrong with it."""

    __name__: str

    def __call__(self, exam: Exam, encoded: EncodedObject, dataset: Dataset, /) -> Iterator[str]:
        """Yield what is wrong with `encoded`, which reads as `dataset`."""


def distinct(dataset: Dataset, seen: set[bytes] | None = None) -> Iterator[Dataset]:
    """Yield a data set and all items within it, of sequences that are written alike only the first one's.

    `seen` are the values of sequences that were met. Thousands of frames hold the same few sequences.
    """
    outermost = seen is None
    seen = set() if seen is None else seen
    yield dataset
    for tag in dataset.keys():  # noqa: SIM118  to iterate a data set is to convert every value
        element: Any = dataset.get_item(tag)
        if element.VR not in ("SQ", None):
            continue
        if outermost or not isinstance(element, RawDataElement) or element.value is None:
            element = dataset[tag]
        elif element.value in seen:
            continue
        else:
            seen.add(element.value)
            element = Dataset({tag: element})[tag]
        if element.VR == "SQ":
            for item in element.value or ():
                yield from distinct(item, seen)


def requests(exam: Exam, dataset: Dataset) -> Iterator[str]:
    """Yield that a document does not name the requests of the source, word for word (PS3.3 C.17.2.3)."""
    if _said(dataset.get("ReferencedRequestSequence", ())) != _said(exam.request.source.requests):
        yield "Referenced Request Sequence does not hold the requests of the source"


def _said(items: Iterable[Dataset]) -> list[dict[str, object]]:
    """Return what items say, however it was read: what is empty is "", items are lists."""
    return [
        {each.keyword: _said(each.value) if each.VR == "SQ" else str(each.value or "") for each in item}
        for item in items
    ]
