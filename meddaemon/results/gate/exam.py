"""What is under examination, and how a check looks at it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset

from meddaemon.domain.result import EncodedObject
from meddaemon.results.request import EncodingRequest, find
from meddaemon.results.skeleton import STUDY_CLASS


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The objects under examination, read back, and what they are held against."""

    request: EncodingRequest
    objects: Sequence[EncodedObject]

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Each object as it reads, by the name that it goes by."""
        return {each.name: dcmread(BytesIO(each.content)) for each in self.objects}

    @cached_property
    def known_instances(self) -> dict[str, str]:
        """SOP Class UID by SOP Instance UID of everything that a result may refer to."""
        inputs = self.request.source.inputs
        known = {str(each.SOPInstanceUID): str(each.SOPClassUID) for series in inputs for each in series.instances}
        known |= {each.sop_instance_uid: each.sop_class_uid for each in self.objects}
        # Structure sets name the study as if it were an instance.
        known[self.request.source.study_instance_uid] = STUDY_CLASS
        return known | {each.sop_instance_uid: each.sop_class_uid for each in self.request.predecessors}

    def referred(self, kind: str, of: EncodedObject) -> EncodedObject | None:
        """Return the object of that kind which one object may refer to: that of an edition which both are of."""
        return find(self.objects, kind, of.edition)


class Check(Protocol):
    """One question to an object: yields what is wrong with it."""

    __name__: str

    def __call__(self, exam: Exam, encoded: EncodedObject, dataset: Dataset, /) -> Iterator[str]:
        """Yield what is wrong with `encoded`, which reads as `dataset`."""
