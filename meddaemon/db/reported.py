"""A result as messages tell it: findings with their numbers, and what is thought of them."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, select

from meddaemon.db import tables
from meddaemon.domain.codes import Code
from meddaemon.domain.result import Measurement, ResultStatus


@dataclass(frozen=True, kw_only=True)
class ReportedFinding:
    """One finding; `label` is what the contract calls its segment, "" without one."""

    code: Code
    label: str
    present: bool
    measurements: tuple[Measurement, ...]


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
    rows = connection.execute(
        select(finding, tables.segment.c.label)
        .outerjoin(tables.segment, tables.segment.c.id == finding.c.segment_id)
        .where(finding.c.result_id == result_id)
        .order_by(finding.c.id)
    )
    return ReportedResult(
        model=head.model,
        model_version=head.model_version,
        status=ResultStatus(head.status),
        reason=head.reason,
        created_at=head.created_at,
        findings=tuple(
            ReportedFinding(
                code=Code(value=row.code_value, scheme=row.code_scheme, meaning=row.code_meaning),
                label=row.label or "",
                present=row.present,
                measurements=tuple(numbers.get(row.id, ())),
            )
            for row in rows
        ),
    )
