"""Results as typed rows: findings, segments and measurements, and the objects and deliveries that carry them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, Row, exists, func, insert, not_, or_, select

from meddaemon.db import deliveries, requests, tables
from meddaemon.db.clock import now
from meddaemon.db.filters import condition
from meddaemon.db.jobs import Job
from meddaemon.db.paging import earlier
from meddaemon.db.requests import is_asked_for, is_current
from meddaemon.domain.filters import Filter
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import Analysis, Artefact, ArtefactKind, EncodedObject, Location, ResultStatus
from meddaemon.domain.states import JobState
from meddaemon.domain.volume import Geometry

_job, _result, _study = tables.job, tables.result, tables.study


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An encoded object, the digest of the file that holds it, and what describes it (keyword -> components)."""

    encoded: EncodedObject
    sha256: str
    header: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, encoded: EncodedObject, header: Mapping[str, Sequence[str]] | None = None) -> "StoredObject":
        """Name an encoded object by its content."""
        return cls(encoded=encoded, sha256=hashlib.sha256(encoded.content).hexdigest(), header=header or {})


@dataclass(frozen=True, kw_only=True)
class StoredArtefact:
    """An artefact, and the digest and length of the file that holds it."""

    artefact: Artefact
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class ArtefactRow:
    """One artefact: what it shows, where it lies, and which file of the results folder holds it."""

    id: int
    result_id: int
    study_id: int
    model: str
    kind: ArtefactKind
    of: str
    unit: str
    shape: tuple[int, ...]
    affine_lps: tuple[tuple[float, ...], ...] | None
    """From (plane, row, column, 1) to LPS mm; None on a picture."""
    frame_of_reference_uid: str
    sop_instance_uid: str | None
    """The picture that it lies on; None in a volume, and so is the following."""
    frame_number: int | None
    sha256: str
    size: int

    @property
    def voxels(self) -> str:
        """Its lengths, in words."""
        return " × ".join(map(str, self.shape))


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One measurement of one finding, with everything that an analyst filters by."""

    id: int
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
    derivation: str
    """What the value is of several, `Standard Deviation` for one; empty for the value itself."""
    key: str
    """What filters call it, whatever its code: `volume`, `mean`, `count`."""
    value: float | None
    """None for what was to be measured and could not be."""
    unit: str
    present: bool
    """False for a finding that was looked for and not found, or could not be looked for."""
    objects: int
    """How many DICOM objects carry the result."""
    sop_instance_uid: str | None
    """The image that a finding is about or a box or landmark lies on; None for others, and so are the following."""
    frame_number: int | None
    low_plane: float | None
    low_row: float | None
    low_column: float | None
    high_plane: float | None
    high_row: float | None
    high_column: float | None
    x: float | None
    """Centre in LPS mm, in a volume."""
    y: float | None
    z: float | None

    @property
    def place(self) -> str:
        """Where a finding is, in words: its centre in the patient, or on its picture, or which image it is about."""
        if self.x is not None and self.y is not None and self.z is not None:
            return f"{self.x:.1f} {self.y:.1f} {self.z:.1f} mm LPS"
        if self.low_row is None or self.low_column is None or self.high_row is None or self.high_column is None:
            return f"image {self.sop_instance_uid} frame {self.frame_number}" if self.sop_instance_uid else ""
        row, column = (self.low_row + self.high_row) / 2, (self.low_column + self.high_column) / 2
        return f"row {row:.1f} column {column:.1f}"


@dataclass(frozen=True, kw_only=True)
class ObjectRow:
    """One result object and where it stands with each destination."""

    id: int
    result_id: int
    kind: str
    part: str
    edition: str
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
    current: bool
    """Whether it counts (`requests.is_current`)."""
    requeued: bool
    """Whether it tells of a failure after which the job was queued again."""
    is_bare: bool
    """Whether it tells of a failure of which there is no document; why stands in its reason."""
    successor: int | None
    """The job that takes its place."""
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
    outlets: Mapping[str, Outlet],
    artefacts: Sequence[StoredArtefact] = (),
) -> int:
    """Write a result with its findings, objects, artefacts and outbox rows, in the transaction that completes the job.

    Of a discarded job it is the one that tells of the failure. `outlets` says of each destination what it takes. A job
    that nobody asks for any more (outdated, and requeued by an operator) posts nothing.
    """
    # As the database has it: in Python it would be rounded.
    failed_at = select(_job.c.finished_at).where(_job.c.id == job.id, _job.c.state == JobState.DISCARDED)
    result_id = connection.execute(
        insert(_result)
        .values(
            job_id=job.id,
            failed_at=failed_at.scalar_subquery(),
            study_id=job.study_id,
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
    _record_findings(connection, result_id, analysis)
    for stored in objects:
        _record_object(connection, result_id, stored)
    for kept in artefacts:
        _record_artefact(connection, result_id, kept, analysis.geometry)
    destinations = requests.destinations_of(connection, job.id)
    deliveries.post(connection, result_id, destinations=destinations, outlets=outlets, priority=job.priority)
    return int(result_id)


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
                laterality_value=segment.laterality.value if segment.laterality else "",
                laterality_meaning=segment.laterality.meaning if segment.laterality else "",
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
                segment_id=None if finding.segment_number is None else segment_ids[finding.segment_number],
                code_value=finding.code.value,
                code_scheme=finding.code.scheme,
                code_meaning=finding.code.meaning,
                present=finding.present,
                label=finding.label or None,
                laterality_value=finding.laterality.value if finding.laterality else "",
                laterality_meaning=finding.laterality.meaning if finding.laterality else "",
                tracking_uid=finding.tracking_uid,
            )
            .returning(tables.finding.c.id)
        ).scalar_one()
        if place := analysis.location(finding):
            connection.execute(insert(tables.location).values(finding_id=finding_id, **_columns(place)))
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
                    derivation_value=measurement.derivation.value if measurement.derivation else "",
                    derivation_meaning=measurement.derivation.meaning if measurement.derivation else "",
                    key=measurement.key,
                )
            )


def _columns(place: Location) -> dict[str, object]:
    """Return a location as a row; on a picture there is no plane, and of an image as a whole no corner."""
    low, high = ((None,) * (3 - len(corner)) + corner for corner in (place.low, place.high))
    x, y, z = place.centre_lps or (None, None, None)
    return {
        "sop_instance_uid": place.sop_instance_uid,
        "frame_number": place.frame_number,
        "frame_of_reference_uid": place.frame_of_reference_uid,
        **dict(zip(("low_plane", "low_row", "low_column"), low, strict=True)),
        **dict(zip(("high_plane", "high_row", "high_column"), high, strict=True)),
        "x": x,
        "y": y,
        "z": z,
    }


def _record_object(connection: Connection, result_id: int, stored: StoredObject) -> None:
    encoded = stored.encoded
    connection.execute(
        insert(tables.result_object).values(
            result_id=result_id,
            kind=encoded.kind,
            part=encoded.part,
            edition=encoded.edition,
            sop_class_uid=encoded.sop_class_uid,
            sop_instance_uid=encoded.sop_instance_uid,
            series_instance_uid=encoded.series_instance_uid,
            transfer_syntax_uid=encoded.transfer_syntax_uid,
            sha256=stored.sha256,
            size=len(encoded.content),
            header={keyword: list(value) for keyword, value in stored.header.items()},
        )
    )


def _record_artefact(connection: Connection, result_id: int, kept: StoredArtefact, geometry: Geometry | None) -> None:
    artefact = kept.artefact
    sop_instance_uid, frame_number = artefact.source or (None, None)
    place = geometry if artefact.source is None else None
    connection.execute(
        insert(tables.artefact).values(
            result_id=result_id,
            kind=artefact.kind.value,
            of=artefact.of,
            unit_value=artefact.unit.value,
            shape=list(artefact.values.shape),
            affine_lps=None if place is None else place.affine_lps.tolist(),
            frame_of_reference_uid="" if place is None else place.frame_of_reference_uid,
            sop_instance_uid=sop_instance_uid,
            frame_number=frame_number,
            sha256=kept.sha256,
            size=kept.size,
        )
    )


def artefacts(
    connection: Connection, *, study_id: int | None = None, result_id: int | None = None, superseded: bool = False
) -> list[ArtefactRow]:
    """Return what is kept beside the results of a study, or beside one result, in the order in which it was made."""
    kept = tables.artefact
    statement = (
        select(kept, _result.c.study_id, _result.c.model)
        .join(_result, _result.c.id == kept.c.result_id)
        .order_by(kept.c.id)
    )
    if study_id is not None:
        statement = statement.where(_result.c.study_id == study_id)
    if result_id is not None:
        statement = statement.where(kept.c.result_id == result_id)
    elif not superseded:
        statement = statement.where(is_current())
    return [
        ArtefactRow(
            id=row.id,
            result_id=row.result_id,
            study_id=row.study_id,
            model=row.model,
            kind=ArtefactKind(row.kind),
            of=row.of,
            unit=row.unit_value,
            shape=tuple(row.shape),
            affine_lps=None if row.affine_lps is None else tuple(map(tuple, row.affine_lps)),
            frame_of_reference_uid=row.frame_of_reference_uid,
            sop_instance_uid=row.sop_instance_uid,
            frame_number=row.frame_number,
            sha256=row.sha256,
            size=row.size,
        )
        for row in connection.execute(statement)
    ]


def predecessor_objects(connection: Connection, job: Job) -> list[ObjectRow]:
    """Return the objects of the result whose place the next result of this job takes, if it is outdated.

    That is the latest one that has any, be it of the job that it replaces or of its own failures: each result is the
    successor of the one before, so that none has two.
    """
    found = tables.result_object
    former = select(_job.c.replaces).where(_job.c.id == job.id).scalar_subquery()
    latest = (
        select(func.max(_result.c.id))
        .join(found, found.c.result_id == _result.c.id)
        .where(or_(_result.c.job_id == job.id, _result.c.job_id == former))
        .scalar_subquery()
    )
    rows = connection.execute(
        select(found)
        .join(_result, _result.c.id == found.c.result_id)
        .where(_result.c.id == latest, not_(is_current()))
        .order_by(found.c.id)
    )
    return [_object(row) for row in rows]


def objects_of(connection: Connection, result_id: int) -> list[ObjectRow]:
    """Return the objects of one result."""
    found = tables.result_object
    rows = connection.execute(select(found).where(found.c.result_id == result_id).order_by(found.c.id))
    return [_object(row) for row in rows]


def objects_by_result(connection: Connection, result_ids: Sequence[int]) -> dict[int, list[ObjectRow]]:
    """Return the objects of results, by the number of the result."""
    found = tables.result_object
    objects: dict[int, list[ObjectRow]] = {}
    for row in connection.execute(select(found).where(found.c.result_id.in_(result_ids)).order_by(found.c.id)):
        objects.setdefault(row.result_id, []).append(_object(row))
    return objects


def heads(connection: Connection, *, study_id: int) -> list[ResultHead]:
    """Return the results of a study, oldest first."""
    later, made = _job.alias(), tables.result_object
    successor = select(func.max(later.c.id)).where(later.c.replaces == _result.c.job_id).scalar_subquery()
    rows = connection.execute(
        select(
            _result,
            is_current().label("current"),
            is_asked_for(_result.c.job_id).label("asked_for"),
            successor.label("successor"),
            exists(select(made.c.id).where(made.c.result_id == _result.c.id)).label("has_objects"),
        )
        .where(_result.c.study_id == study_id)
        .order_by(_result.c.id)
    )
    return [
        ResultHead(
            id=row.id,
            job_id=row.job_id,
            status=ResultStatus(row.status),
            reason=row.reason,
            model=row.model,
            model_version=row.model_version,
            created_at=row.created_at,
            current=row.current,
            requeued=row.asked_for and not row.current,
            is_bare=row.failed_at is not None and not row.has_objects,
            successor=None if row.asked_for else row.successor,
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
    satisfying: Filter | None = None,
    before: int | None = None,
    limit: int = 1000,
) -> list[ResultRow]:
    """Return measurements, newest first, that satisfy all that is asked.

    `code` is a code value or meaning of finding, segment or measurement, `satisfying` a filter of the results language.

    With `before`, those that were made before the measurement of that id.
    """
    finding, measurement, segment = tables.finding, tables.measurement, tables.segment
    place, carried = tables.location, tables.result_object
    objects = select(func.count(carried.c.id)).where(carried.c.result_id == _result.c.id).scalar_subquery()
    statement = (
        select(
            measurement.c.id,
            _result.c.id.label("result_id"),
            _result.c.created_at,
            _study.c.id.label("study_id"),
            _study.c.study_instance_uid,
            _study.c.accession_number,
            _job.c.generation,
            not_(is_current()).label("superseded"),
            _result.c.model,
            _result.c.model_version,
            _result.c.status,
            _result.c.reason,
            finding.c.code_value.label("finding_value"),
            finding.c.code_scheme.label("finding_scheme"),
            finding.c.code_meaning.label("finding"),
            func.coalesce(segment.c.label, finding.c.label).label("segment"),
            measurement.c.code_value.label("measurement_value"),
            measurement.c.code_meaning.label("measurement"),
            measurement.c.derivation_meaning.label("derivation"),
            measurement.c.key,
            measurement.c.value,
            measurement.c.unit_value.label("unit"),
            finding.c.present,
            objects.label("objects"),
            place.c.sop_instance_uid,
            place.c.frame_number,
            place.c.low_plane,
            place.c.low_row,
            place.c.low_column,
            place.c.high_plane,
            place.c.high_row,
            place.c.high_column,
            place.c.x,
            place.c.y,
            place.c.z,
        )
        .join(_study, _study.c.id == _result.c.study_id)
        .join(_job, _job.c.id == _result.c.job_id)
        .join(finding, finding.c.result_id == _result.c.id)
        .join(measurement, measurement.c.finding_id == finding.c.id)
        .outerjoin(segment, segment.c.id == finding.c.segment_id)
        .outerjoin(place, place.c.finding_id == finding.c.id)
        .where(*earlier(measurement.c.id, before))
        .order_by(measurement.c.id.desc())
        .limit(limit)
    )
    if not superseded:
        statement = statement.where(is_current())
    if code is not None:
        wanted = func.lower(code)
        named = (
            finding.c.code_value,
            finding.c.code_meaning,
            segment.c.type_value,
            segment.c.type_meaning,
            measurement.c.code_value,
            measurement.c.code_meaning,
            measurement.c.key,
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
    if satisfying is not None:
        statement = statement.where(condition(satisfying))
    return [
        ResultRow(
            **{
                **row._mapping,
                "superseded": bool(row.superseded),
                "present": bool(row.present),
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
        part=row.part,
        edition=row.edition,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_instance_uid=row.series_instance_uid,
        sha256=row.sha256,
        size=row.size,
    )
