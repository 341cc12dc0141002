"""What a report says, before it is a tree: which finding goes into which document, and how each is told of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from meddaemon.domain.codes import ABSENT, PRESENT, UNDETERMINED, Code
from meddaemon.domain.contract import ModelKind
from meddaemon.domain.errors import InputRefused
from meddaemon.domain.result import Analysis, Finding, Measurement, ResultStatus, Segment, reported
from meddaemon.domain.uids import derived_uid
from meddaemon.results.request import EncodingRequest

NOTHING_FOUND = Code(value="111241", scheme="DCM", meaning="All algorithms succeeded; without findings")
NOTHING_SUCCEEDED = Code(value="111245", scheme="DCM", meaning="No algorithms succeeded; without findings")
"""What became of the run as a whole, where it found nothing (PS3.16 CID 6047)."""

_SAYS_WHETHER = frozenset({ModelKind.CLASSIFICATION, ModelKind.DETECTION, ModelKind.LANDMARKS})
"""Models whose answer it is whether something is there; others measure what is."""


class Part(StrEnum):
    """The documents of one result: readers take one kind of group at a time."""

    VOLUMES = "volumes"
    """Segmented volumes (TID 1411)."""
    BOXES = "boxes"
    """Boxes and landmarks on an image (TID 1410)."""
    CLASSES = "classes"
    """What is said of an image or of the study as a whole: classes, numbers, what was not found (TID 1501)."""
    AREAS = "areas"
    """Segments on pictures (TID 1410)."""


ON_SEGMENTS = frozenset({Part.VOLUMES, Part.AREAS})
"""The documents that refer to a Segmentation."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One group: a finding, the segment that it is about, and how it is tracked."""

    finding: Finding
    segment: Segment | None
    tracking_id: str
    tracking_uid: str


def parts_of(request: EncodingRequest, *, segmented: bool) -> dict[Part, tuple[Entry, ...]]:
    """Return the documents of a result and the groups of each, in the order of the analysis.

    `segmented` tells whether there is a Segmentation to refer to. Raises `InputRefused` when nothing is said at all.
    """
    analysis = request.analysis
    segmented = segmented and analysis.is_drawn
    in_volume = segmented and analysis.geometry is not None
    entries: dict[Part, list[Entry]] = {part: [] for part in Part}
    if in_volume:
        entries[Part.VOLUMES] = [
            _on_segment(segment, finding, ordinal)
            for segment in analysis.segments
            for ordinal, finding in enumerate(findings_of(request, segment))
        ]
    segments = {segment.number: segment for segment in analysis.segments}
    for ordinal, finding in enumerate(analysis.findings, 1):
        segment = None if finding.segment_number is None else segments[finding.segment_number]
        if segment is not None and in_volume:
            continue
        part = Part.CLASSES
        if finding.box is not None or finding.landmark is not None:
            part = Part.BOXES
        elif segment is not None and segmented and finding.present:
            part = Part.AREAS
        entries[part].append(_by_itself(request, finding, segment, ordinal))
    found = {part: tuple(each) for part, each in entries.items() if each}
    if not found:
        raise InputRefused("nothing_said", "a report needs at least one finding, present or not")
    return found


def findings_of(request: EncodingRequest, segment: Segment) -> list[Finding]:
    """Return the findings on a segment; one without any is reported all the same, without measurement."""
    found = [finding for finding in request.analysis.findings if finding.segment_number == segment.number]
    return found or [Finding(code=segment.type, segment_number=segment.number, measurements=())]


def _on_segment(segment: Segment, finding: Finding, ordinal: int) -> Entry:
    """Return a group on a segment, tracked as the segment is; a further one on the same segment by itself.

    Readers merge groups that share tracking identifiers.
    """
    if ordinal == 0:
        return Entry(
            finding=finding, segment=segment, tracking_id=segment.tracking_id, tracking_uid=segment.tracking_uid
        )
    return Entry(
        finding=finding,
        segment=segment,
        tracking_id=finding.tracking_id or segment.tracking_id,
        tracking_uid=finding.tracking_uid or derived_uid(segment.tracking_uid, str(ordinal)),
    )


def _by_itself(request: EncodingRequest, finding: Finding, segment: Segment | None, ordinal: int) -> Entry:
    source = request.source
    unnamed = derived_uid("tracking", *source.sop_instance_uids, request.contract.digest, str(ordinal))
    return Entry(
        finding=finding,
        segment=segment,
        tracking_id=finding.tracking_id or f"{request.contract.name} finding {ordinal}",
        tracking_uid=finding.tracking_uid or unnamed,
    )


def side_of(entry: Entry) -> tuple[Code, Code | None]:
    """Return what a finding is of, and which side: those of its segment, where it has one."""
    segment, finding = entry.segment, entry.finding
    return (finding.code, finding.laterality) if segment is None else (segment.type, segment.laterality)


def measured_value(measurement: Measurement) -> float:
    """Return the value as it is reported: rounded to significant digits. Raises ValueError where there is none."""
    if measurement.value is None:
        raise ValueError(f"{measurement.name} was not measured")
    return reported(measurement.value)


def numbers_of(finding: Finding) -> list[Measurement]:
    """Return what was measured; what could not be is no number (PixelMed takes one without value for an error)."""
    return [each for each in finding.measurements if each.value is not None and math.isfinite(each.value)]


def presence(finding: Finding, request: EncodingRequest) -> Code | None:
    """Return whether something is there, as CID 240 says it; None where a measurement says it by itself."""
    kind = request.contract.kind
    if not request.analysis.status.is_answer:
        return UNDETERMINED
    if finding.present:
        return PRESENT if kind in _SAYS_WHETHER else None
    # Of an object that was not found there is no certainty; of anything else, none means that nobody could look.
    unmeasured = bool(finding.measurements) and not numbers_of(finding)
    if unmeasured and kind not in {ModelKind.DETECTION, ModelKind.LANDMARKS}:
        return UNDETERMINED
    return ABSENT


def summary(request: EncodingRequest) -> Code | None:
    """Return what became of the run where nothing was found or nothing could be said; None where there is something.

    That nothing was found is said only of an answer that may be believed.
    """
    analysis = request.analysis
    if analysis.status.is_answer and (any(finding.present for finding in analysis.findings) or _bare(analysis)):
        return None
    return NOTHING_FOUND if analysis.status is ResultStatus.PLAUSIBLE else NOTHING_SUCCEEDED


def _bare(analysis: Analysis) -> bool:
    """Return whether there is a segment about which nothing is said but that it is there."""
    about = {finding.segment_number for finding in analysis.findings}
    return any(segment.number not in about for segment in analysis.segments)


def caveat(analysis: Analysis) -> str:
    """Return why a result is less than one that may be believed; empty where it may."""
    status = analysis.status
    return (
        "" if status is ResultStatus.PLAUSIBLE else f"{status.value.capitalize().replace('_', ' ')}: {analysis.reason}"
    )


def parameters_of(entry: Entry, request: EncodingRequest) -> Sequence[str]:
    """Return the settings of the contract that decided over a finding: from which score on it is reported."""
    contract = request.contract
    for each in contract.classes:
        if each.finding == entry.finding.code:
            threshold = [] if each.threshold is None else [f"threshold: {each.threshold:g}"]
            return [*threshold, *([f"highest of: {each.group}"] if each.group else [])]
    return [f"threshold: {each.threshold:g}" for each in contract.objects if each.finding == entry.finding.code][:1]
