"""What happened to a study, as `meddaemon explain` tells it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Integer, and_, cast, func, or_, select

from meddaemon.db import tables
from meddaemon.db.paging import earlier


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """One series and how many of its instances are special."""

    series_instance_uid: str
    modality: str
    series_description: str
    instances: int
    conflicts: int
    own_results: int
    missing: int
    calling_ae_titles: str


@dataclass(frozen=True, kw_only=True)
class RefusalRow:
    """One object that was not taken."""

    id: int
    at: datetime
    sop_instance_uid: str
    study_instance_uid: str
    status: int
    reason: str
    calling_ae_title: str

    @property
    def status_code(self) -> str:
        """The status as the Standard writes it, such as `A700H`."""
        return f"{self.status:04X}H"


@dataclass(frozen=True, kw_only=True)
class DecisionRow:
    """One rule's decision about one generation."""

    generation: int
    rule: str
    matched: bool
    reason: str
    detail: Mapping[str, Any]
    at: datetime


def series(connection: Connection, study_id: int) -> list[SeriesRow]:
    """Return the series of a study in order of arrival."""
    table, instance = tables.series, tables.instance
    rows = connection.execute(
        select(
            table.c.series_instance_uid,
            table.c.modality,
            table.c.series_description,
            func.count(instance.c.id),
            func.coalesce(func.sum(cast(instance.c.conflict, Integer)), 0),
            func.coalesce(func.sum(cast(instance.c.own_result, Integer)), 0),
            func.coalesce(func.sum(cast(instance.c.missing, Integer)), 0),
            func.coalesce(func.min(instance.c.calling_ae_title), ""),
        )
        .outerjoin(instance, instance.c.series_id == table.c.id)
        .where(table.c.study_id == study_id)
        .group_by(table.c.id, table.c.series_instance_uid, table.c.modality, table.c.series_description)
        .order_by(table.c.id)
    )
    return [
        SeriesRow(
            series_instance_uid=row[0],
            modality=row[1],
            series_description=row[2],
            instances=row[3],
            conflicts=int(row[4]),
            own_results=int(row[5]),
            missing=int(row[6]),
            calling_ae_titles=row[7],
        )
        for row in rows
    ]


def refusals(
    connection: Connection, uid: str | None = None, *, before: int | None = None, limit: int = 1000
) -> list[RefusalRow]:
    """Return the latest refused objects, of one SOP Instance or Study Instance UID or of all, oldest first.

    With `before`, those that came before that one.
    """
    table = tables.refusal
    query = select(table).where(*earlier(table.c.id, before)).order_by(table.c.id.desc()).limit(limit)
    if uid is not None:
        query = query.where(or_(table.c.sop_instance_uid == uid, table.c.study_instance_uid == uid))
    return [
        RefusalRow(
            id=row.id,
            at=row.at,
            sop_instance_uid=row.sop_instance_uid,
            study_instance_uid=row.study_instance_uid,
            status=row.status,
            reason=row.reason,
            calling_ae_title=row.calling_ae_title,
        )
        for row in reversed(connection.execute(query).all())
    ]


def decisions(connection: Connection, study_id: int) -> list[DecisionRow]:
    """Return the decisions about a study in the order in which they were made."""
    table = tables.decision
    return [
        DecisionRow(
            generation=row.generation,
            rule=row.rule,
            matched=row.matched,
            reason=row.reason,
            detail=row.detail,
            at=row.at,
        )
        for row in connection.execute(select(table).where(table.c.study_id == study_id).order_by(table.c.id))
    ]


def admitted_by_force(connection: Connection, job_ids: Sequence[int]) -> dict[int, str]:
    """Return why the model of a job was let in without a green check, for those of the jobs whose model was.

    A result knows it of the run that made it; of a job without one, the decision that asked for it does.
    """
    job, result, decision = tables.job, tables.result, tables.decision
    asked_for = and_(
        decision.c.study_id == job.c.study_id, decision.c.generation == job.c.generation, decision.c.rule == job.c.rule
    )
    rows = connection.execute(
        select(job.c.id, job.c.model, result.c.provenance, decision.c.detail)
        .outerjoin(result, and_(result.c.job_id == job.c.id, result.c.failed_at.is_(None)))
        .outerjoin(decision, asked_for)
        .where(job.c.id.in_(job_ids))
    )
    found = {
        row.id: (row.detail or {}).get("admitted_by_force", {}).get(row.model)
        if row.provenance is None
        else row.provenance.get("admitted_by_force")
        for row in rows
    }
    return {job_id: str(reason) for job_id, reason in found.items() if reason}
