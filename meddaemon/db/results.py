"""Results as typed rows: findings, segments and measurements, and the objects and deliveries that carry them."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Row, false, func, insert, or_, select, update

from meddaemon.db import tables
from meddaemon.db.clock import now
from meddaemon.db.jobs import Job
from meddaemon.domain.result import Analysis, EncodedObject, ResultStatus
from meddaemon.domain.states import DeliveryEvent, DeliveryState, delivery_sources, delivery_target

_result, _study = tables.result, tables.study

_BEFORE_SENT = "before it was sent"
"""Ends the reason of a delivery that is held because another result took the place of this one."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An encoded object and the digest of the file that holds it."""

    encoded: EncodedObject
    sha256: str

    @classmethod
    def of(cls, encoded: EncodedObject) -> "StoredObject":
        """Name an encoded object by its content."""
        return cls(encoded=encoded, sha256=hashlib.sha256(encoded.content).hexdigest())


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One measurement of one finding, with everything that an analyst filters by."""

    result_id: int
    created_at: datetime
    study_id: int
    study_instance_uid: str
    accession_number: str
    generation: int
    superseded: bool
    model: str
    model_version: str
    status: ResultStatus
    reason: str
    finding_value: str
    finding_scheme: str
    finding: str
    segment: str
    measurement_value: str
    measurement: str
    value: float
    unit: str


@dataclass(frozen=True, kw_only=True)
class ObjectRow:
    """One result object and where it stands with each destination."""

    id: int
    result_id: int
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class ResultHead:
    """A result without its numbers."""

    id: int
    job_id: int
    status: ResultStatus
    reason: str
    model: str
    model_version: str
    created_at: datetime
    superseded_by: int | None
    withdrawn: bool
    seconds: Mapping[str, float]
    provenance: Mapping[str, str]


def record(
    connection: Connection,
    job: Job,
    analysis: Analysis,
    objects: Sequence[StoredObject],
    *,
    model_version: str,
    series_instance_uid: str,
    provenance: Mapping[str, str],
    seconds: Mapping[str, float],
    deliveries: Mapping[str, Sequence[str]],
) -> int:
    """Write a result with its findings, objects and outbox rows; the one of the latest generation counts.

    It supersedes results of the same work on earlier generations, and is superseded at once where a later one is
    there (a stale job that an operator requeued).

    `deliveries` maps a destination to the kinds of object that it takes. To be called in the transaction that
    completes the job.
    """
    result_id = connection.execute(
        insert(_result)
        .values(
            job_id=job.id,
            study_id=job.study_id,
            generation=job.generation,
            model=job.model,
            model_version=model_version,
            model_digest=job.model_digest,
            series_instance_uid=series_instance_uid,
            status=analysis.status,
            reason=analysis.reason,
            provenance=dict(provenance),
            seconds=dict(seconds),
            created_at=now(),
        )
        .returning(_result.c.id)
    ).scalar_one()
    is_current = _take_over(connection, result_id, job)
    _record_findings(connection, result_id, analysis)
    for stored in objects:
        _record_object(connection, result_id, stored)
    if is_current:
        _post(connection, result_id, job.priority, deliveries)
    return int(result_id)


def reassess(connection: Connection, job: Job) -> None:
    """Let the result of a job that is asked for again, if there is one, count as that of its new generation."""
    result_id = connection.execute(
        update(_result)
        .where(_result.c.job_id == job.id)
        .values(generation=job.generation, superseded_by=None, withdrawn=False)
        .returning(_result.c.id)
    ).scalar()
    if result_id is not None and _take_over(connection, result_id, job):
        _release(connection, result_id)


def withdraw(connection: Connection, *, study_id: int, rule: str, generation: int, keep: Collection[str] = ()) -> None:
    """Mark results that a rule asked for in earlier generations and does not any more, and hold their deliveries."""
    withdrawn = connection.execute(
        update(_result)
        .where(
            _result.c.study_id == study_id,
            _result.c.generation < generation,
            _result.c.model.not_in(keep),
            _result.c.superseded_by.is_(None),
            _result.c.job_id.in_(select(tables.job.c.id).where(tables.job.c.rule == rule)),
        )
        .values(withdrawn=True)
        .returning(_result.c.id)
    ).scalars()
    _hold(connection, withdrawn.all(), f"withdrawn by generation {generation}, {_BEFORE_SENT}")


def _take_over(connection: Connection, result_id: int, job: Job) -> bool:
    """Supersede the results of the same work on earlier generations; return whether this one is the latest itself."""
    superseded = connection.execute(
        update(_result)
        .where(_result.c.superseded_by.is_(None), *_same_work(job), _result.c.generation < job.generation)
        .values(superseded_by=result_id)
        .returning(_result.c.id)
    ).scalars()
    _hold(connection, superseded.all(), f"superseded by result {result_id}, {_BEFORE_SENT}")
    later = connection.execute(
        select(func.max(_result.c.id)).where(*_same_work(job), _result.c.generation > job.generation)
    ).scalar()
    if later is not None:
        connection.execute(update(_result).where(_result.c.id == result_id).values(superseded_by=later))
    return later is None


def _hold(connection: Connection, result_ids: Sequence[int], reason: str) -> None:
    """Keep what was not sent yet of these results from being sent after its successor."""
    delivery = tables.delivery
    objects = select(tables.result_object.c.id).where(tables.result_object.c.result_id.in_(result_ids))
    connection.execute(
        update(delivery)
        .where(
            delivery.c.result_object_id.in_(objects),
            delivery.c.state.in_(delivery_sources(DeliveryEvent.SUPERSEDE)),
        )
        .values(state=delivery_target(DeliveryEvent.SUPERSEDE), reason=reason)
    )


def _release(connection: Connection, result_id: int) -> None:
    """Let go what was held because another result had taken the place of this one, which counts again."""
    delivery = tables.delivery
    objects = select(tables.result_object.c.id).where(tables.result_object.c.result_id == result_id)
    connection.execute(
        update(delivery)
        .where(
            delivery.c.result_object_id.in_(objects),
            delivery.c.state == DeliveryState.HELD,
            delivery.c.reason.endswith(_BEFORE_SENT),
        )
        .values(state=delivery_target(DeliveryEvent.REQUEUE), reason="", available_at=now())
    )


def _record_findings(connection: Connection, result_id: int, analysis: Analysis) -> None:
    segment_ids: dict[int, int] = {}
    for segment in analysis.segments:
        segment_ids[segment.number] = connection.execute(
            insert(tables.segment)
            .values(
                result_id=result_id,
                number=segment.number,
                label=segment.label,
                category_value=segment.category.value,
                category_scheme=segment.category.scheme,
                category_meaning=segment.category.meaning,
                type_value=segment.type.value,
                type_scheme=segment.type.scheme,
                type_meaning=segment.type.meaning,
                voxel_count=segment.voxel_count,
                tracking_uid=segment.tracking_uid,
            )
            .returning(tables.segment.c.id)
        ).scalar_one()
    for finding in analysis.findings:
        finding_id = connection.execute(
            insert(tables.finding)
            .values(
                result_id=result_id,
                segment_id=segment_ids[finding.segment_number],
                code_value=finding.code.value,
                code_scheme=finding.code.scheme,
                code_meaning=finding.code.meaning,
            )
            .returning(tables.finding.c.id)
        ).scalar_one()
        for measurement in finding.measurements:
            connection.execute(
                insert(tables.measurement).values(
                    finding_id=finding_id,
                    code_value=measurement.name.value,
                    code_scheme=measurement.name.scheme,
                    code_meaning=measurement.name.meaning,
                    value=measurement.value,
                    unit_value=measurement.unit.value,
                    unit_meaning=measurement.unit.meaning,
                )
            )


def _record_object(connection: Connection, result_id: int, stored: StoredObject) -> None:
    encoded = stored.encoded
    connection.execute(
        insert(tables.result_object).values(
            result_id=result_id,
            kind=encoded.kind,
            sop_class_uid=encoded.sop_class_uid,
            sop_instance_uid=encoded.sop_instance_uid,
            series_instance_uid=encoded.series_instance_uid,
            transfer_syntax_uid=encoded.transfer_syntax_uid,
            sha256=stored.sha256,
            size=len(encoded.content),
        )
    )


def _post(connection: Connection, result_id: int, priority: int, deliveries: Mapping[str, Sequence[str]]) -> None:
    """Put each object of a result into the outbox, for every destination that takes its kind and lacks it."""
    for row in objects_of(connection, result_id):
        there = connection.execute(
            select(tables.delivery.c.destination).where(tables.delivery.c.result_object_id == row.id)
        ).scalars()
        known = set(there)
        for destination, kinds in deliveries.items():
            if row.kind in kinds and destination not in known:
                connection.execute(
                    insert(tables.delivery).values(
                        result_object_id=row.id,
                        destination=destination,
                        priority=priority,
                        state=DeliveryState.PENDING,
                        attempt=0,
                        available_at=now(),
                        fence=0,
                        reason="",
                        created_at=now(),
                    )
                )


def widen(connection: Connection, job_id: int, deliveries: Mapping[str, Sequence[str]]) -> None:
    """Let the result of a job, there already or still to come, go to these destinations too."""
    job = tables.job
    row = connection.execute(
        select(job.c.destinations, job.c.priority).where(job.c.id == job_id).with_for_update(key_share=True)
    ).one()
    wanted = list(dict.fromkeys((*row.destinations, *deliveries)))
    connection.execute(update(job).where(job.c.id == job_id).values(destinations=wanted))
    result_id = connection.execute(select(_result.c.id).where(_result.c.job_id == job_id)).scalar()
    if result_id is not None:
        _post(connection, result_id, row.priority, deliveries)


def superseded_by(connection: Connection, job: Job) -> list[ObjectRow]:
    """Return the objects of the result that the result of this job will supersede."""
    found = tables.result_object
    rows = connection.execute(
        select(found)
        .join(_result, _result.c.id == found.c.result_id)
        .where(_result.c.superseded_by.is_(None), *_same_work(job), _result.c.generation < job.generation)
        .order_by(found.c.id)
    )
    return [_object(row) for row in rows]


def _same_work(job: Job) -> tuple[ColumnElement[bool], ...]:
    """Select results of the same study, model and rule."""
    return (
        _result.c.study_id == job.study_id,
        _result.c.model == job.model,
        _result.c.job_id.in_(select(tables.job.c.id).where(tables.job.c.rule == job.rule)),
    )


def objects_of(connection: Connection, result_id: int) -> list[ObjectRow]:
    """Return the objects of one result."""
    found = tables.result_object
    rows = connection.execute(select(found).where(found.c.result_id == result_id).order_by(found.c.id))
    return [_object(row) for row in rows]


def heads(connection: Connection, *, study_id: int) -> list[ResultHead]:
    """Return the results of a study, oldest first."""
    rows = connection.execute(select(_result).where(_result.c.study_id == study_id).order_by(_result.c.id))
    return [
        ResultHead(
            id=row.id,
            job_id=row.job_id,
            status=ResultStatus(row.status),
            reason=row.reason,
            model=row.model,
            model_version=row.model_version,
            created_at=row.created_at,
            superseded_by=row.superseded_by,
            withdrawn=row.withdrawn,
            seconds=row.seconds,
            provenance=row.provenance,
        )
        for row in rows
    ]


def query(
    connection: Connection,
    *,
    model: str | None = None,
    code: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    study_id: int | None = None,
    superseded: bool = False,
    limit: int = 1000,
) -> list[ResultRow]:
    """Return measurements, newest first; `code` is a code value or meaning of finding, segment or measurement."""
    finding, measurement, segment = tables.finding, tables.measurement, tables.segment
    statement = (
        select(
            _result.c.id.label("result_id"),
            _result.c.created_at,
            _study.c.id.label("study_id"),
            _study.c.study_instance_uid,
            _study.c.accession_number,
            _result.c.generation,
            _result.c.superseded_by,
            _result.c.withdrawn,
            _result.c.model,
            _result.c.model_version,
            _result.c.status,
            _result.c.reason,
            finding.c.code_value.label("finding_value"),
            finding.c.code_scheme.label("finding_scheme"),
            finding.c.code_meaning.label("finding"),
            segment.c.label.label("segment"),
            measurement.c.code_value.label("measurement_value"),
            measurement.c.code_meaning.label("measurement"),
            measurement.c.value,
            measurement.c.unit_value.label("unit"),
        )
        .join(_study, _study.c.id == _result.c.study_id)
        .join(finding, finding.c.result_id == _result.c.id)
        .join(measurement, measurement.c.finding_id == finding.c.id)
        .outerjoin(segment, segment.c.id == finding.c.segment_id)
        .order_by(measurement.c.id.desc())
        .limit(limit)
    )
    if not superseded:
        statement = statement.where(_result.c.superseded_by.is_(None), _result.c.withdrawn == false())
    if code is not None:
        wanted = func.lower(code)
        named = (
            finding.c.code_value,
            finding.c.code_meaning,
            segment.c.type_value,
            segment.c.type_meaning,
            measurement.c.code_value,
            measurement.c.code_meaning,
        )
        statement = statement.where(or_(*(func.lower(column) == wanted for column in named)))
    if model is not None:
        statement = statement.where(_result.c.model == model)
    if study_id is not None:
        statement = statement.where(_study.c.id == study_id)
    if minimum is not None:
        statement = statement.where(measurement.c.value >= minimum)
    if maximum is not None:
        statement = statement.where(measurement.c.value <= maximum)
    if since is not None:
        statement = statement.where(_result.c.created_at >= since)
    if until is not None:
        statement = statement.where(_result.c.created_at < until)
    return [
        ResultRow(
            **{
                **{key: value for key, value in row._mapping.items() if key not in {"superseded_by", "withdrawn"}},
                "superseded": row.superseded_by is not None or row.withdrawn,
                "status": ResultStatus(row.status),
            }
        )
        for row in connection.execute(statement)
    ]


def _object(row: Row[tuple[object, ...]]) -> ObjectRow:
    return ObjectRow(
        id=row.id,
        result_id=row.result_id,
        kind=row.kind,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_instance_uid=row.series_instance_uid,
        sha256=row.sha256,
        size=row.size,
    )
