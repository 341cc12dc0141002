"""Studies: which are due, what they hold, what was decided about them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import (
    Connection,
    Double,
    Row,
    ScalarSelect,
    and_,
    delete,
    false,
    func,
    insert,
    null,
    select,
    type_coerce,
    union,
    update,
)

from meddaemon.db import holds, tables
from meddaemon.db.clock import after, now
from meddaemon.db.instances import path_of
from meddaemon.db.paging import earlier
from meddaemon.domain.errors import NotFound
from meddaemon.domain.series import Instance
from meddaemon.domain.states import StudyEvent, StudyState, study_moves

_AT_ONCE = 500
"""Identifiers in one statement."""

DISCARDED = "discarded"
"""Key in the detail of a decision that gave a study up because parts of it were missing."""


@dataclass(frozen=True, kw_only=True)
class DueStudy:
    """A study to look at: `quiet_for` seconds without an instance, `waited` since the first of its generation."""

    id: int
    study_instance_uid: str
    generation: int
    quiet_for: float
    waited: float


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """One line of the list of studies."""

    id: int
    study_instance_uid: str
    state: StudyState
    generation: int
    patient_id: str
    accession_number: str
    study_date: str
    study_description: str
    first_received_at: datetime
    last_received_at: datetime
    series: int
    instances: int
    conflicts: int
    jobs: int
    held_for: str
    """In what it contradicts itself, or that it is incomplete, as long as nobody released it."""
    waiting: Mapping[str, str]
    """What each rule that was not asked yet waits for."""
    due_at: datetime | None


def lock_due(connection: Connection, study_id: int) -> DueStudy | None:
    """Return a study that is due and lock it until the transaction ends; None when others have it or it is not due."""
    study = tables.study
    row = connection.execute(
        select(
            study.c.id,
            study.c.study_instance_uid,
            study.c.generation,
            type_coerce(now() - study.c.last_received_at, Double).label("quiet_for"),
            type_coerce(now() - func.coalesce(_began_at(), study.c.last_received_at), Double).label("waited"),
        )
        .where(study.c.id == study_id, study.c.due_at <= now())
        # Not a lock on the key: the workers' results refer to the study and need not wait.
        .with_for_update(skip_locked=True, key_share=True)
    ).first()
    if row is None:
        return None
    return DueStudy(
        id=row.id,
        study_instance_uid=row.study_instance_uid,
        generation=row.generation,
        quiet_for=row.quiet_for,
        waited=row.waited,
    )


def _began_at() -> ScalarSelect[datetime]:
    """Return when the first instance of a study's generation arrived; null when it began without any.

    An instance that arrives after a decision belongs to the next generation: those of this one are younger than
    every decision of another.
    """
    study, series, instance, decision = tables.study, tables.series, tables.instance, tables.decision
    before = select(func.max(decision.c.at)).where(
        decision.c.study_id == study.c.id, decision.c.generation < study.c.generation
    )
    return (
        select(func.min(instance.c.received_at))
        .join(series, series.c.id == instance.c.series_id)
        .where(
            series.c.study_id == study.c.id,
            instance.c.own_result == false(),
            instance.c.received_at > func.coalesce(before.scalar_subquery(), 0.0),
        )
        .scalar_subquery()
    )


def due_ids(connection: Connection, *, limit: int = 20) -> list[int]:
    """Return studies that are due, longest due first."""
    study = tables.study
    rows = connection.execute(select(study.c.id).where(study.c.due_at <= now()).order_by(study.c.due_at).limit(limit))
    return list(rows.scalars())


def postpone(connection: Connection, study_id: int, seconds: float, reason: str) -> None:
    """Let a study that cannot be looked at now wait, and say why."""
    study = tables.study
    generation = connection.execute(
        update(study)
        .where(study.c.id == study_id)
        .values(due_at=after(seconds), looked_at=now())
        .returning(study.c.generation)
    ).scalar_one()
    record_decision(
        connection,
        study_id=study_id,
        generation=generation,
        rule="(all)",
        matched=False,
        reason=reason,
        detail={},
    )


def reopen_for_changed_models(connection: Connection, digests: Mapping[str, str]) -> list[int]:
    """Let the rules be asked again of studies whose unfinished jobs were made for another version of their model.

    `digests` maps the models that are configured to their digests. Returns the studies.
    """
    job = tables.job
    unfinished = select(job.c.study_id, job.c.model, job.c.model_digest)
    stale = sorted(
        {
            row.study_id
            for part in (tables.job_waiting, tables.job_executing)
            for row in connection.execute(unfinished.where(part))
            if digests.get(row.model) != row.model_digest
        }
    )
    _reopen(connection, stale)
    return stale


def reopen_for_admitted_models(connection: Connection, admitted: Collection[str]) -> list[int]:
    """Let the rules be asked again of studies that a model did not run on because it was not admitted, and now is.

    Only what was decided last counts. Returns the studies.
    """
    study, decision = tables.study, tables.decision
    rows = connection.execute(
        select(study.c.id, decision.c.detail)
        .join(decision, and_(decision.c.study_id == study.c.id, decision.c.generation == study.c.generation))
        .where(
            decision.c.reason.contains("is not admitted", autoescape=True),
            study.c.state.in_(study_moves(StudyEvent.REOPEN)),
        )
    )
    waiting = sorted({row.id for row in rows if set(admitted).intersection(row.detail.get("not_admitted", ()))})
    _reopen(connection, waiting)
    return waiting


def _reopen(connection: Connection, study_ids: Sequence[int]) -> None:
    for first in range(0, len(study_ids), _AT_ONCE):
        connection.execute(
            update(tables.study)
            .where(
                tables.study.c.id.in_(study_ids[first : first + _AT_ONCE]),
                tables.study.c.state.in_(study_moves(StudyEvent.REOPEN)),
            )
            .values(state=StudyState.RECEIVING, generation=tables.study.c.generation + 1, due_at=now())
        )


def load_instances(connection: Connection, study_id: int, store: Path) -> dict[str, tuple[Instance, ...]]:
    """Return the instances of a study by Series Instance UID, in order of arrival.

    Later versions under a SOP Instance UID that was there already, and our own results, are left out.
    """
    instance, series = tables.instance, tables.series
    rows = connection.execute(
        select(instance, series.c.series_instance_uid)
        .join(series, series.c.id == instance.c.series_id)
        .where(
            series.c.study_id == study_id,
            instance.c.conflict == false(),
            instance.c.own_result == false(),
        )
        .order_by(series.c.id, instance.c.id)
    )
    found: dict[str, list[Instance]] = {}
    for row in rows:
        found.setdefault(row.series_instance_uid, []).append(_instance(row, store))
    return {uid: tuple(instances) for uid, instances in found.items()}


def decided_rules(connection: Connection, study_id: int, generation: int) -> dict[str, bool]:
    """Return the rules that were decided for this generation, and whether each matched.

    Those that gave the study up because parts were missing are not among them: others may say more of it now.
    """
    decision = tables.decision
    rows = connection.execute(
        select(decision.c.rule, decision.c.matched, decision.c.detail).where(
            decision.c.study_id == study_id, decision.c.generation == generation
        )
    )
    return {row.rule: row.matched for row in rows if not row.detail.get(DISCARDED)}


def was_discarded(connection: Connection, study_id: int) -> bool:
    """Return whether a rule gave the study up, in its generation, because parts were missing."""
    study, decision = tables.study, tables.decision
    of_generation = and_(decision.c.study_id == study.c.id, decision.c.generation == study.c.generation)
    details = connection.execute(select(decision.c.detail).join(study, of_generation).where(study.c.id == study_id))
    return any(detail.get(DISCARDED) for detail in details.scalars())


def record_decision(
    connection: Connection,
    *,
    study_id: int,
    generation: int,
    rule: str,
    matched: bool,
    reason: str,
    detail: Mapping[str, object],
) -> None:
    """Keep what a rule decided about a generation of a study, and everything it saw; the latest word counts."""
    known = tables.decision.c
    connection.execute(
        delete(tables.decision).where(known.study_id == study_id, known.generation == generation, known.rule == rule)
    )
    connection.execute(
        insert(tables.decision).values(
            study_id=study_id,
            generation=generation,
            rule=rule,
            matched=matched,
            reason=reason,
            detail=dict(detail),
            at=now(),
        )
    )


def wait_for(
    connection: Connection, study_id: int, seconds: float | None, waiting: Mapping[str, str] | None = None
) -> None:
    """Let the study be due in so many seconds; without a number, it is complete.

    `waiting` says what each rule that was not asked waits for.
    """
    study = tables.study
    values: dict[str, object] = (
        {"state": StudyState.COMPLETE, "due_at": None} if seconds is None else {"due_at": after(seconds)}
    )
    here = study.c.state.in_(study_moves(StudyEvent.COMPLETE))
    connection.execute(
        update(study)
        .where(study.c.id == study_id, here)
        .values(**values, looked_at=now(), waiting=dict(waiting) if waiting else null())
    )


def senders(connection: Connection, study_id: int) -> list[str]:
    """Return the AE titles that sent instances of a study."""
    instance, series = tables.instance, tables.series
    rows = connection.execute(
        select(instance.c.calling_ae_title).join(series).where(series.c.study_id == study_id).distinct()
    )
    return sorted(filter(None, rows.scalars()))


def find_study(connection: Connection, wanted: str) -> int:
    """Return the id of the study that `wanted` names: an id, a Study/Series/SOP Instance UID or an accession number.

    Raises NotFound when there is none, or more than one.
    """
    study, series, instance = tables.study, tables.series, tables.instance
    # One query for each kind of name: joined by OR, no index would serve, and every instance would be read.
    named = [
        select(study.c.id).where(study.c.study_instance_uid == wanted),
        select(study.c.id).where(study.c.accession_number == wanted),
        select(series.c.study_id).where(series.c.series_instance_uid == wanted),
        select(series.c.study_id).join(instance).where(instance.c.sop_instance_uid == wanted),
    ]
    if wanted.isascii() and wanted.isdecimal() and len(wanted) < 12:
        named.append(select(study.c.id).where(study.c.id == int(wanted)))
    found = connection.execute(union(*named).limit(10)).scalars().all()
    if not found:
        raise NotFound(f"no study, series, instance or accession number {wanted!r}; see `meddaemon studies`")
    if len(found) > 1:
        # An id is not taken before an accession number: whoever means the other would release or run the wrong study.
        uids = connection.execute(select(study.c.study_instance_uid).where(study.c.id.in_(found)).order_by(study.c.id))
        raise NotFound(f"{wanted!r} names more than one study: name it by its UID, {' or '.join(uids.scalars())}")
    return int(found[0])


def summaries(
    connection: Connection, *, limit: int = 50, before: int | None = None, study_id: int | None = None
) -> list[StudySummary]:
    """Return the studies that arrived last, newest first; with `before`, those that came before that one."""
    study, series, instance, job = tables.study, tables.series, tables.instance, tables.job
    # Counted for each study that is shown, not for all.
    count = select(func.count())
    members = count.select_from(series).where(series.c.study_id == study.c.id)
    parts = count.select_from(series.join(instance)).where(series.c.study_id == study.c.id)
    conflicts = count.select_from(series.join(instance)).where(
        series.c.study_id == study.c.id, tables.instance_conflict
    )
    jobs = count.select_from(job).where(job.c.study_id == study.c.id)
    rows = connection.execute(
        select(
            study,
            members.scalar_subquery().label("series"),
            parts.scalar_subquery().label("instances"),
            conflicts.scalar_subquery().label("conflicts"),
            jobs.scalar_subquery().label("jobs"),
        )
        .where(*((study.c.id == study_id,) if study_id is not None else ()), *earlier(study.c.id, before))
        .order_by(study.c.id.desc())
        .limit(limit)
    ).all()
    held_for = holds.kinds(connection, [row.id for row in rows])
    return [
        StudySummary(
            id=row.id,
            study_instance_uid=row.study_instance_uid,
            state=StudyState(row.state),
            generation=row.generation,
            patient_id=row.patient_id,
            accession_number=row.accession_number,
            study_date=row.study_date,
            study_description=row.study_description,
            first_received_at=row.first_received_at,
            last_received_at=row.last_received_at,
            series=row.series,
            instances=row.instances,
            conflicts=row.conflicts,
            jobs=row.jobs,
            held_for=", ".join(held_for.get(row.id, ())),
            waiting=row.waiting or {},
            due_at=row.due_at,
        )
        for row in rows
    ]


def shared_series(connection: Connection, study_id: int) -> dict[str, list[str]]:
    """Return the series of a study that other studies have, too, and the Study Instance UIDs of those."""
    own, series, study = tables.series, tables.series.alias(), tables.study
    rows = connection.execute(
        select(own.c.series_instance_uid, study.c.study_instance_uid)
        .join(series, and_(series.c.series_instance_uid == own.c.series_instance_uid, series.c.id != own.c.id))
        .join(study, study.c.id == series.c.study_id)
        .where(own.c.study_id == study_id)
        .order_by(study.c.id)
    )
    shared: dict[str, list[str]] = {}
    for series_instance_uid, study_instance_uid in rows:
        shared.setdefault(series_instance_uid, []).append(study_instance_uid)
    return shared


def in_conflict(connection: Connection) -> list[int]:
    """Return the studies that hold different objects under one SOP Instance UID."""
    series, instance = tables.series, tables.instance
    rows = connection.execute(
        select(series.c.study_id).join(instance).where(tables.instance_conflict).distinct().order_by(series.c.study_id)
    )
    return list(rows.scalars())


def _instance(row: Row[tuple[object, ...]], store: Path) -> Instance:
    return Instance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        path=path_of(store, row.sha256),
        sha256=row.sha256,
        size=row.size,
        header={keyword: tuple(value) for keyword, value in row.header.items()},
        called_ae_title=row.called_ae_title,
        calling_ae_title=row.calling_ae_title,
    )
