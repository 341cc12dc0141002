"""Measurement reports after TID 1500 (PS3.16 Annex A): one document for each kind of group, of every result.

A result is told of whatever came of it: also that nothing was found, that nothing can be said, or that what was said
cannot be believed. Each document is written in the forms that are asked for, and for each form of the Segmentation
that it refers to.
"""

from collections.abc import Iterator, Sequence

from meddaemon.domain.outlet import ObjectKind, ReportForm, go_together
from meddaemon.domain.result import EncodedObject
from meddaemon.results.report.content import ON_SEGMENTS, Part, findings_of, measured_value, parts_of
from meddaemon.results.report.document import write
from meddaemon.results.request import EncodingRequest, ObjectReference

__all__ = [
    "KIND",
    "ON_SEGMENTS",
    "Part",
    "edition_of",
    "encode",
    "findings_of",
    "measured_value",
    "parts_of",
    "replaced",
]

KIND = ObjectKind.SR


def encode(request: EncodingRequest, before: Sequence[EncodedObject]) -> Iterator[EncodedObject]:
    """Yield the reports: on the segments of each Segmentation among those `before`, and on what no segment shows."""
    segmentations = [each for each in before if each.kind == ObjectKind.SEG]
    parts = parts_of(request, segmented=bool(segmentations))
    planned = [
        (part, seg, form)
        for part in parts
        for seg in (segmentations if part in ON_SEGMENTS else (None,))
        for form in _forms(request, seg)
    ]
    named = replaced([(part, edition_of(seg, form)) for part, seg, form in planned], request.predecessors)
    for (part, seg, form), before_it in zip(planned, named, strict=True):
        yield write(request, part, parts[part], seg, form, edition_of(seg, form), before_it)


def edition_of(seg: EncodedObject | None, form: ReportForm) -> str:
    """Return how a document is marked: it belongs to the editions of its form, and of what it refers to."""
    return f"{seg.edition}/{form}" if seg is not None and seg.edition else str(form)


def replaced(
    documents: Sequence[tuple[str, str]], predecessors: Sequence[ObjectReference]
) -> list[list[ObjectReference]]:
    """Return which former documents each of these (part, edition) takes the place of: each of them has one successor.

    It is the one of the same edition and part where there is one, else one of the same edition: that is what those
    have who hold the former one.
    """
    named: list[list[ObjectReference]] = [[] for _ in documents]
    for former in predecessors:
        distances = [
            (not go_together(former.edition, edition), former.part != part, former.edition != edition)
            for part, edition in documents
        ]
        named[distances.index(min(distances))].append(former)
    return named


def _forms(request: EncodingRequest, seg: EncodedObject | None) -> tuple[ReportForm, ...]:
    """Return the forms that are asked for, beside that of the Segmentation."""
    wanted = (each.report for each in request.editions if seg is None or seg.edition in each.parts)
    return tuple(dict.fromkeys(wanted))
