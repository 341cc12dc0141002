"""Whole results of one model as they stand now, for who compares them with a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, func, not_, select

from meddaemon.db import tables
from meddaemon.db.requests import is_current
from meddaemon.db.results import ObjectRow, objects_by_result
from meddaemon.domain.codes import CERTAINTY_OF_FINDING, MILLILITRE, VOLUME
from meddaemon.domain.filters import Measured, names_of
from meddaemon.domain.result import ResultStatus

_job, _result, _study = tables.job, tables.result, tables.study
_CHUNK = 500
"""How many studies or results are asked for at once: databases take only so many parameters."""


@dataclass(frozen=True, kw_only=True)
class FoundRow:
    """One finding of a result: what it is, whether it is there, how sure that is, and where it lies.

    `certainty` is from 0 to 1, None where the finding has none or it could not be told. `segment` is the label of what
    was drawn, "" for a finding that is not. Corners are edges of pixels (row, column), `planes` those of voxels, and
    `centre_lps` is in mm, each None where there is none; `sop_instance_uid` is "" for a finding about the study as a
    whole. `measured` are all its numbers.
    """

    code_value: str
    code_scheme: str
    code_meaning: str
    present: bool
    certainty: float | None
    segment: str
    volume_ml: float | None
    sop_instance_uid: str
    frame_number: int
    low: tuple[float, float] | None
    high: tuple[float, float] | None
    planes: tuple[float, float] | None
    centre_lps: tuple[float, float, float] | None
    measured: tuple[Measured, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One result that somebody asks for, with its findings and its objects."""

    result_id: int
    created_at: datetime
    study_id: int
    study_instance_uid: str
    series_instance_uid: str
    model: str
    model_version: str
    model_digest: str
    status: ResultStatus
    reason: str
    findings: tuple[FoundRow, ...]
    objects: tuple[ObjectRow, ...]


def outcomes(connection: Connection, model: str, *, version: str | None = None) -> list[Outcome]:
    """Return the current results of a model, oldest first; those that are superseded or withdrawn are left out.

    So are those that tell of a failure: `unanswered` does.
    """
    statement = (
        select(_result, _study.c.study_instance_uid)
        .join(_study, _study.c.id == _result.c.study_id)
        .where(_result.c.model == model, _result.c.failed_at.is_(None), is_current())
        .order_by(_result.c.id)
    )
    if version is not None:
        statement = statement.where(_result.c.model_version == version)
    rows = connection.execute(statement).all()
    found: list[Outcome] = []
    for first in range(0, len(rows), _CHUNK):
        chunk = rows[first : first + _CHUNK]
        ids = [row.id for row in chunk]
        findings, objects = _findings(connection, ids), objects_by_result(connection, ids)
        found += [
            Outcome(
                result_id=row.id,
                created_at=row.created_at,
                study_id=row.study_id,
                study_instance_uid=row.study_instance_uid,
                series_instance_uid=row.series_instance_uid,
                model=row.model,
                model_version=row.model_version,
                model_digest=row.model_digest,
                status=ResultStatus(row.status),
                reason=row.reason,
                findings=tuple(findings.get(row.id, ())),
                objects=tuple(objects.get(row.id, ())),
            )
            for row in chunk
        ]
    return found


def count_superseded(connection: Connection, model: str, *, version: str | None = None) -> int:
    """Return how many results of a model nobody asks for any more; failures are none."""
    former = (_result.c.model == model, _result.c.failed_at.is_(None), not_(is_current()))
    statement = select(func.count(_result.c.id)).where(*former)
    if version is not None:
        statement = statement.where(_result.c.model_version == version)
    return int(connection.execute(statement).scalar_one())


def models(connection: Connection) -> list[str]:
    """Return the names of the models that have results."""
    return list(connection.execute(select(_result.c.model).distinct().order_by(_result.c.model)).scalars())


def patients(connection: Connection, studies: Sequence[str]) -> Mapping[str, str]:
    """Return for each study, by its UID, the first of these that has the same Patient ID.

    One without a Patient ID is not in the answer, and neither are any where all have the same: that is nobody's.
    """
    of_patient: dict[str, list[str]] = {}
    for first in range(0, len(studies), _CHUNK):
        wanted = _study.c.study_instance_uid.in_(studies[first : first + _CHUNK])
        rows = connection.execute(select(_study.c.study_instance_uid, _study.c.patient_id).where(wanted))
        for uid, patient_id in rows:
            if patient_id:
                of_patient.setdefault(patient_id, []).append(uid)
    groups = [same for same in of_patient.values() if len(same) < len(studies)]
    return {uid: min(same) for same in groups for uid in same}


def unanswered(connection: Connection, model: str, studies: Sequence[str]) -> Mapping[str, str]:
    """Return why studies, by their UID, have no result of a model: the state of the latest job, or that none is there.

    A study that is not known here is not in the answer.
    """
    said: dict[str, str] = {}
    for first in range(0, len(studies), _CHUNK):
        wanted = _study.c.study_instance_uid.in_(studies[first : first + _CHUNK])
        known = connection.execute(select(_study.c.study_instance_uid, _study.c.id).where(wanted)).all()
        said.update({uid: _state(connection, model, study_id) for uid, study_id in known})
    return said


def _state(connection: Connection, model: str, study_id: int) -> str:
    latest = connection.execute(
        select(_job.c.id, _job.c.state, _job.c.reason)
        .where(and_(_job.c.study_id == study_id, _job.c.model == model))
        .order_by(_job.c.id.desc())
        .limit(1)
    ).first()
    if latest is None:
        return "the model was not asked for it"
    return f"job {latest.id} is {latest.state}{f': {latest.reason}' if latest.reason else ''}"


def _findings(connection: Connection, result_ids: Sequence[int]) -> dict[int, list[FoundRow]]:
    finding, segment, place, measured = tables.finding, tables.segment, tables.location, tables.measurement
    rows = connection.execute(
        select(
            finding.c.id,
            finding.c.result_id,
            finding.c.code_value,
            finding.c.code_scheme,
            finding.c.code_meaning,
            finding.c.present,
            segment.c.label,
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
        .outerjoin(segment, segment.c.id == finding.c.segment_id)
        .outerjoin(place, place.c.finding_id == finding.c.id)
        .where(finding.c.result_id.in_(result_ids))
        .order_by(finding.c.id)
    ).all()
    values = connection.execute(
        select(measured)
        .join(finding, finding.c.id == measured.c.finding_id)
        .where(finding.c.result_id.in_(result_ids))
        .order_by(measured.c.id)
    ).all()
    numbers = {
        (each.finding_id, each.code_value): each.value
        for each in values
        if not each.derivation_value and (each.code_value != VOLUME.value or each.unit_value == MILLILITRE.value)
    }
    all_of: dict[int, list[Measured]] = {}
    for each in values:
        names = names_of(each.key, each.code_value, each.code_meaning, derived=bool(each.derivation_value))
        all_of.setdefault(each.finding_id, []).append(Measured(names=names, value=each.value, unit=each.unit_value))
    found: dict[int, list[FoundRow]] = {}
    for row in rows:
        certainty = numbers.get((row.id, CERTAINTY_OF_FINDING.value))
        low, high = ((row.low_row, row.low_column), (row.high_row, row.high_column))
        planes = (row.low_plane, row.high_plane)
        found.setdefault(row.result_id, []).append(
            FoundRow(
                code_value=row.code_value,
                code_scheme=row.code_scheme,
                code_meaning=row.code_meaning,
                present=bool(row.present),
                certainty=None if certainty is None else certainty / 100,
                segment=row.label or "",
                volume_ml=numbers.get((row.id, VOLUME.value)),
                sop_instance_uid=row.sop_instance_uid or "",
                frame_number=row.frame_number or 0,
                low=None if None in low else low,
                high=None if None in high else high,
                planes=None if None in planes else planes,
                centre_lps=None if row.x is None else (row.x, row.y, row.z),
                measured=tuple(all_of.get(row.id, ())),
            )
        )
    return found
