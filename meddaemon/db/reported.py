"""A result as messages tell it: findings with their numbers and places, and what is thought of them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from meddaemon.db import tables
from meddaemon.domain.codes import Code
from meddaemon.domain.result import Location, Measurement, ResultStatus

_ANATOMICAL_STRUCTURE = frozenset({"91723000", "123037004"})
"""Category of what is anatomy (PS3.16 CID 7150), as it is coded, and as it was."""


@dataclass(frozen=True, kw_only=True)
class ReportedFinding:
    """One finding; `label` is what the contract calls its segment, drawn or not, "" without one.

    `site` is the anatomy that is its segment, `laterality` the side. `place` is where it lies, if it has a box, a
    landmark or an image of its own; `low` and `high` are its corners on that image (row, column), as DICOM counts them.
    """

    code: Code
    label: str
    present: bool
    measurements: tuple[Measurement, ...]
    site: Code | None = None
    laterality: Code | None = None
    place: Location | None = None
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ReportedResult:
    """One result, its findings in the order in which they were recorded."""

    model: str
    model_version: str
    status: ResultStatus
    reason: str
    created_at: datetime
    findings: tuple[ReportedFinding, ...]


def reported_result(connection: Connection, result_id: int) -> ReportedResult:
    """Return a result that is there, with the numbers that its report and the database have."""
    result, finding, measurement = tables.result, tables.finding, tables.measurement
    head = connection.execute(select(result).where(result.c.id == result_id)).one()
    numbers: dict[int, list[Measurement]] = {}
    of_result = select(measurement).join(finding, finding.c.id == measurement.c.finding_id)
    for row in connection.execute(of_result.where(finding.c.result_id == result_id).order_by(measurement.c.id)):
        derivation = Code(value=row.derivation_value, scheme="SCT", meaning=row.derivation_meaning)
        numbers.setdefault(row.finding_id, []).append(
            Measurement(
                name=Code(value=row.code_value, scheme=row.code_scheme, meaning=row.code_meaning),
                value=row.value,
                unit=Code(value=row.unit_value, scheme="UCUM", meaning=row.unit_meaning),
                derivation=derivation if row.derivation_value else None,
                key=row.key,
            )
        )
    places = {place.finding_id: place for place in connection.execute(_places(result_id))}
    in_result = connection.execute(select(tables.segment).where(tables.segment.c.result_id == result_id))
    segments = {segment.id: segment for segment in in_result}
    rows = connection.execute(select(finding).where(finding.c.result_id == result_id).order_by(finding.c.id))
    return ReportedResult(
        model=head.model,
        model_version=head.model_version,
        status=ResultStatus(head.status),
        reason=head.reason,
        created_at=head.created_at,
        findings=tuple(
            ReportedFinding(
                code=Code(value=row.code_value, scheme=row.code_scheme, meaning=row.code_meaning),
                present=row.present,
                measurements=tuple(numbers.get(row.id, ())),
                **_on(segments.get(row.segment_id), row),
                **_at(places.get(row.id)),
            )
            for row in rows
        ),
    )


def _on(segment: Row[Any] | None, finding: Row[Any]) -> dict[str, Any]:
    """Return what a finding takes from its segment, or says itself where it has none."""
    named = finding if segment is None else segment
    side = Code(value=named.laterality_value, scheme="SCT", meaning=named.laterality_meaning)
    said = {"label": named.label or "", "laterality": side if side.value else None}
    if segment is not None and segment.category_value in _ANATOMICAL_STRUCTURE:
        said["site"] = Code(value=segment.type_value, scheme=segment.type_scheme, meaning=segment.type_meaning)
    return said


def _places(result_id: int) -> Select[Any]:
    location, finding, instance = tables.location, tables.finding, tables.instance
    image = (instance.c.sop_instance_uid == location.c.sop_instance_uid) & instance.c.conflict.is_(False)
    return (
        select(location, instance.c.header)
        .join(finding, finding.c.id == location.c.finding_id)
        .outerjoin(instance, image)
        .where(finding.c.result_id == result_id)
    )


def _at(row: Row[Any] | None) -> dict[str, Any]:
    """Return where a finding lies."""
    if row is None:
        return {}
    place = Location(
        low=_corner(row.low_plane, row.low_row, row.low_column),
        high=_corner(row.high_plane, row.high_row, row.high_column),
        sop_instance_uid=row.sop_instance_uid,
        frame_number=row.frame_number,
        frame_of_reference_uid=row.frame_of_reference_uid,
        centre_lps=None if row.x is None else (row.x, row.y, row.z),
    )
    rows, columns = ((row.header or {}).get(keyword) for keyword in ("Rows", "Columns"))
    if not (place.low and rows and columns):
        return {"place": place}
    low, high = place.on_image(int(rows[0]), int(columns[0]))
    return {"place": place, "low": low, "high": high}


def _corner(*numbers: float | None) -> tuple[float, ...]:
    return tuple(each for each in numbers if each is not None)
