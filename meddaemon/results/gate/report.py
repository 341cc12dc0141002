"""What a measurement report is asked: document, content tree, groups, numbers (PS3.16 TID 1500)."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from meddaemon.domain.outlet import ObjectKind
from meddaemon.domain.result import REPORTED_DIGITS, EncodedObject, Finding, ResultStatus, Segment
from meddaemon.results import sr
from meddaemon.results.gate.exam import Check, Exam
from meddaemon.results.gate.tree import instances_in, is_code, items_of, name_of, named
from meddaemon.results.identity import device_uid

_LONGEST_DS = 16  # characters of VR DS (PS3.5 Table 6.2-1)
_DERIVATION = ("121401", "DCM")

_MEANINGS: Mapping[tuple[str, str], str] = {
    ("126000", "DCM"): "Imaging Measurement Report",
    ("111028", "DCM"): "Image Library",
    ("126200", "DCM"): "Image Library Group",
    ("126010", "DCM"): "Imaging Measurements",
    ("125007", "DCM"): "Measurement Group",
    ("112039", "DCM"): "Tracking Identifier",
    ("112040", "DCM"): "Tracking Unique Identifier",
    ("121071", "DCM"): "Finding",
    ("121191", "DCM"): "Referenced Segment",
}
"""Concepts that viewers recognise by their English meaning: a translated one makes a document unreadable to them."""


def _transfer_syntax(_: Exam, encoded: EncodedObject, __: Dataset) -> Iterator[str]:
    if encoded.transfer_syntax_uid != ExplicitVRLittleEndian:
        yield f"TransferSyntaxUID {encoded.transfer_syntax_uid} is not {ExplicitVRLittleEndian}"


def _flags(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    plausible = exam.request.analysis.status is ResultStatus.PLAUSIBLE
    wanted = {
        "VerificationFlag": "UNVERIFIED",
        "PreliminaryFlag": "PRELIMINARY",
        "CompletionFlag": "COMPLETE" if plausible else "PARTIAL",
    }
    for keyword, value in wanted.items():
        if dataset.get(keyword) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value}"
    if len(dataset.get("ReferencedRequestSequence", ())) != len(exam.request.source.requests):
        yield "Referenced Request Sequence does not hold the requests of the source"
    before = instances_in(dataset, "PredecessorDocumentsSequence")
    known = {str(item.get("ReferencedSOPInstanceUID")) for item in before}
    predecessor = exam.request.predecessor
    if predecessor is not None and predecessor.sop_instance_uid not in known:
        yield f"Predecessor Documents Sequence does not name {predecessor.sop_instance_uid}"


def _root(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    if name_of(dataset) != ("126000", "DCM"):
        yield f"title is {name_of(dataset)}, not Imaging Measurement Report (126000, DCM)"
    template = dataset.get("ContentTemplateSequence") or [Dataset()]
    if (template[0].get("TemplateIdentifier"), template[0].get("MappingResource")) != ("1500", "DCMR"):
        yield "root does not name template 1500 of DCMR"
    names = [name_of(item) for item in dataset.ContentSequence]
    for name, meaning in (
        (("121049", "DCM"), "language"),
        (("121005", "DCM"), "observer type"),
        (("121058", "DCM"), "procedure reported"),
        (("111028", "DCM"), "image library"),
        (("126010", "DCM"), "imaging measurements"),
    ):
        if name not in names:
            yield f"has no {meaning}"
    observers = [item.get("UID") for item in dataset.ContentSequence if name_of(item) == ("121012", "DCM")]
    if observers != [device_uid(exam.request.contract)]:
        yield f"device observer UID is {observers}, not the model's"
    for item in items_of(dataset):
        known = _MEANINGS.get(name_of(item))
        if known is not None and item.ConceptNameCodeSequence[0].get("CodeMeaning") != known:
            yield f"{name_of(item)} is not called {known!r}"


def _library(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    libraries = [item for item in dataset.ContentSequence if name_of(item) == ("111028", "DCM")]
    listed = Counter(
        str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        for library in libraries
        for item in items_of(library)
        if item.get("ValueType") == "IMAGE"
    )
    if listed != Counter(exam.request.source.sop_instance_uids):
        yield f"image library lists {listed.total()} images and not each of {len(exam.request.source.instances)} once"


def _evidence(_: Exam, __: EncodedObject, dataset: Dataset) -> Iterator[str]:
    held = {
        str(instance.ReferencedSOPInstanceUID)
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in dataset.get(keyword, ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    for item in items_of(dataset):
        for reference in item.get("ReferencedSOPSequence", ()):
            if str(reference.ReferencedSOPInstanceUID) not in held:
                yield f"refers to {reference.ReferencedSOPInstanceUID}, which is not in evidence"


def _coordinates(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check 2-D regions: inside their image (0,0 is the top left corner of the top left pixel), polygons closed."""
    rows, columns = exam.request.analysis.drawn[1].shape[1:]
    for item in items_of(dataset):
        if item.get("ValueType") != "SCOORD":
            continue
        points = np.array(item.GraphicData, float).reshape(-1, 2)
        if (points < 0).any() or (points > [columns, rows]).any():
            yield f"SCOORD leaves its image of {rows} rows and {columns} columns"
        if item.GraphicType == "POLYLINE" and not np.array_equal(points[0], points[-1]):
            yield "SCOORD polyline is not closed"


def _groups(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    analysis = exam.request.analysis
    found = [
        group
        for container in dataset.ContentSequence
        if name_of(container) == ("126010", "DCM")
        for group in container.get("ContentSequence", ())
        if name_of(group) == ("125007", "DCM")
    ]
    expected = [
        (segment, finding) for segment in analysis.segments for finding in sr.findings_of(exam.request, segment)
    ]
    if len(found) != len(expected):
        yield f"{len(found)} measurement groups for {len(expected)} findings"
        return
    tracking = Counter(str(item.get("UID")) for group in found for item in named(group, ("112040", "DCM")))
    if tracking.total() != len(found) or any(count > 1 for count in tracking.values()):
        yield "tracking unique identifiers are absent or not unique"
    for number, (group, (segment, finding)) in enumerate(zip(found, expected, strict=True), 1):
        for failure in _group(exam, encoded, group, finding, segment):
            yield f"group {number}: {failure}"


def _group(exam: Exam, encoded: EncodedObject, group: Dataset, finding: Finding, segment: Segment) -> Iterator[str]:
    templates = group.get("ContentTemplateSequence") or [Dataset()]
    if templates[0].get("TemplateIdentifier") != "1411":
        yield "does not name template 1411"
    identifiers = [str(item.get("TextValue")) for item in named(group, ("112039", "DCM"))]
    if identifiers != [segment.tracking_id]:
        yield f"tracking identifier is {identifiers}, not the segment's"
    first = next(iter(sr.findings_of(exam.request, segment)))
    uids = [str(item.get("UID")) for item in named(group, ("112040", "DCM"))]
    if finding is first and uids != [segment.tracking_uid]:
        yield f"tracking unique identifier is {uids}, not the segment's"
    if not any(is_code(item.get("ConceptCodeSequence"), finding.code) for item in named(group, ("121071", "DCM"))):
        yield f"Finding is not {finding.code}"
    contract = exam.request.contract
    for name, wanted in (("111001", contract.name), ("111003", contract.version)):
        if [str(item.get("TextValue")) for item in named(group, (name, "DCM"))] != [wanted]:
            yield f"algorithm identification ({name}, DCM) is not {wanted!r}"
    yield from _referenced_segment(exam, encoded, group, segment)
    yield from _measurements(group, finding)


def _referenced_segment(exam: Exam, encoded: EncodedObject, group: Dataset, segment: Segment) -> Iterator[str]:
    images = [item.ReferencedSOPSequence[0] for item in named(group, ("121191", "DCM"))]
    wanted = exam.referred(ObjectKind.SEG, encoded)
    if wanted is None or len(images) != 1 or str(images[0].ReferencedSOPInstanceUID) != wanted.sop_instance_uid:
        yield "does not refer to the SEG"
        return
    number = images[0].get("ReferencedSegmentNumber")
    if number != segment.number:
        yield f"refers to segment {number}, not {segment.number}"
    written = {item.SegmentNumber: item for item in exam.datasets[wanted.name].get("SegmentSequence", ())}
    if number not in written or not is_code(written[number].get("SegmentedPropertyTypeCodeSequence"), segment.type):
        yield f"segment {number} is not in the SEG as {segment.type}"


def _measurements(group: Dataset, finding: Finding) -> Iterator[str]:
    numbers = [item for item in group.ContentSequence if item.get("ValueType") == "NUM"]
    known = [each for each in finding.measurements if each.value is not None]
    if len(numbers) != len(known):
        yield f"{len(numbers)} numbers for {len(known)} measurements"
        return
    for item, measurement in zip(numbers, known, strict=True):
        if not is_code(item.get("ConceptNameCodeSequence"), measurement.name):
            yield f"number is not called {measurement.name}"
        derived = [each.get("ConceptCodeSequence") for each in named(item, _DERIVATION)]
        wanted = measurement.derivation
        if len(derived) != (wanted is not None) or any(wanted and not is_code(each, wanted) for each in derived):
            yield f"number of {measurement.name} is not said to be {wanted or 'the number itself'}"
        values = item.get("MeasuredValueSequence") or [Dataset()]
        text = str(getattr(values[0].get("NumericValue"), "original_string", values[0].get("NumericValue")))
        unit = values[0].get("MeasurementUnitsCodeSequence")
        if measurement.unit.scheme != "UCUM" or not is_code(unit, measurement.unit):
            yield f"unit of {measurement.name} is not {measurement.unit} of UCUM"
        if len(text) > _LONGEST_DS or not _is_finite(text):
            yield f"value {text!r} of {measurement.name} is not a finite decimal string of at most 16 characters"
        elif measurement.value is None or not math.isclose(
            float(text), measurement.value, rel_tol=10.0 ** (1 - REPORTED_DIGITS)
        ):
            yield f"value {text} of {measurement.name} is not the measured {measurement.value}"


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


CHECKS: tuple[Check, ...] = (_transfer_syntax, _flags, _root, _library, _evidence, _coordinates, _groups)
"""What a report after TID 1500 is asked."""
