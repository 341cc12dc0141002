"""The last look at what was encoded, before anything may be delivered.

The objects are read back from their bytes and held against the source images and the analysis. Generic validators
find no fault in an object that contradicts another one: a wrong patient, a shifted frame, a number that is not the
model's. Failures name attributes, UIDs and numbers, never a patient.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from pydicom.dataset import Dataset

from meddaemon.domain.errors import ObjectRefusedByGate
from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import EncodedObject
from meddaemon.results.gate import (
    capture,
    common,
    paper,
    parametric,
    presentation,
    probability,
    report,
    segmentation,
    selection,
    structure,
)
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.request import EncodingRequest

_CHECKS: Mapping[str, tuple[Check, ...]] = {
    ObjectKind.SEG: segmentation.CHECKS,
    ObjectKind.SR: report.CHECKS,
    ObjectKind.PROBABILITY: probability.CHECKS,
    ObjectKind.PM: parametric.CHECKS,
    ObjectKind.RTSTRUCT: structure.CHECKS,
    ObjectKind.SC: capture.CHECKS,
    ObjectKind.PR: presentation.CHECKS,
    ObjectKind.PDF: paper.CHECKS,
    ObjectKind.KO: selection.CHECKS,
}
"""What each kind of object is asked beside what all are asked."""


def check(objects: Sequence[EncodedObject], request: EncodingRequest) -> None:
    """Refuse result objects that contradict their source, the analysis or each other.

    Raises `ObjectRefusedByGate` with every failure, one a line.
    """
    exam = Exam(request=request, objects=objects)
    failures = [
        f"{count} objects are {name}" for name, count in Counter(each.name for each in objects).items() if count > 1
    ]
    for encoded in objects:
        own = _CHECKS.get(encoded.kind)
        if own is None:
            failures.append(f"{encoded.name}: nothing is known of this kind of object")
            continue
        for examine in (*common.CHECKS, *own):
            found = _findings(examine, exam, encoded, exam.datasets[encoded.name])
            failures.extend(f"{encoded.name} {failure}" for failure in found)
    if failures:
        raise ObjectRefusedByGate("\n".join(failures))


def _findings(examine: Check, exam: Exam, encoded: EncodedObject, dataset: Dataset) -> list[str]:
    try:
        return list(examine(exam, encoded, dataset))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # An object that lacks what a check must look at has failed that check. The error's text may hold a value.
        return [f"cannot be examined for {examine.__name__.strip('_')}: {type(error).__name__}"]
