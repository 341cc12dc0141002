"""Received instances: registered with their study, or refused with a reason."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    Table,
    Update,
    bindparam,
    case,
    false,
    func,
    insert,
    null,
    select,
    update,
)

from meddaemon.db import tables
from meddaemon.db.clock import after, now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.domain.errors import IdentityTaken
from meddaemon.domain.identity import same_patient
from meddaemon.domain.states import StudyEvent, StudyState, study_moves


@dataclass(frozen=True, kw_only=True)
class Received:
    """One object that lies in the store under its final name, about to be registered."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    sha256: str
    size: int
    header: Mapping[str, tuple[str, ...]]
    calling_ae_title: str
    called_ae_title: str


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """What the index says of one stored file."""

    sop_instance_uid: str
    size: int
    missing: bool


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What became of a received object: registered anew or known already; in conflict with an earlier version."""

    study_id: int
    new: bool
    conflict: bool


def register(connection: Connection, received: Received, *, quiet_seconds: float) -> Registration:
    """Register an instance with its series and study, and let the study wait for `quiet_seconds` from now.

    A new instance of a complete study reopens it as the next generation. An identical re-send changes nothing.
    One of our own results that comes back is registered without reopening anything.

    Raises IdentityTaken; then the transaction is to be rolled back.
    """
    conflict = _in_conflict(connection, received)
    first = received.header.get
    study_id = _get_or_insert(
        connection,
        tables.study,
        {"study_instance_uid": received.study_instance_uid},
        {
            "state": StudyState.RECEIVING,
            "generation": 1,
            "first_received_at": now(),
            "last_received_at": now(),
            "due_at": after(quiet_seconds),
            "patient_id": _joined(first("PatientID"), 64),
            "accession_number": _joined(first("AccessionNumber"), 64),
            "study_date": _joined(first("StudyDate"), 8),
            "study_description": _joined(first("StudyDescription"), 64),
        },
    )
    # Whoever decides about this study, or registers another instance of it, is done now or waits until we are:
    # otherwise an instance could slip into a generation that was decided without it.
    connection.execute(_LOCK, {"of": study_id})
    series_id = _get_or_insert(
        connection,
        tables.series,
        {"study_id": study_id, "series_instance_uid": received.series_instance_uid},
        {
            "modality": _joined(first("Modality"), 16),
            "series_description": _joined(first("SeriesDescription"), 64),
        },
    )
    own_result = connection.execute(_OWN_RESULT, {"uid": received.sop_instance_uid}).first() is not None
    added = insert_unless_there(
        connection,
        tables.instance,
        {
            "series_id": series_id,
            "sop_instance_uid": received.sop_instance_uid,
            "sop_class_uid": received.sop_class_uid,
            "transfer_syntax_uid": received.transfer_syntax_uid,
            "sha256": received.sha256,
            "size": received.size,
            "header": {keyword: list(value) for keyword, value in received.header.items()},
            "calling_ae_title": received.calling_ae_title,
            "called_ae_title": received.called_ae_title,
            "received_at": now(),
            "conflict": conflict,
            "own_result": own_result,
        },
    )
    new = added is not None
    if (new and not own_result) or (not new and _learn_of_sender(connection, received)):
        connection.execute(_touched(quiet_seconds), {"of": study_id})
    return Registration(study_id=study_id, new=new, conflict=new and conflict)


def _learn_of_sender(connection: Connection, received: Received) -> bool:
    """Note that a known object is there (again); return whether its sender, unknown until now, is known now.

    Recovery adopts an object without knowing who sent it. Rules may ask for that, so they are to be asked again.
    """
    instance = tables.instance
    known = instance.c.sha256 == received.sha256
    connection.execute(update(instance).where(known, instance.c.missing).values(missing=False))
    if not received.calling_ae_title:
        return False
    learned = connection.execute(
        update(instance)
        .where(known, instance.c.calling_ae_title == "", instance.c.called_ae_title == "")
        .values(calling_ae_title=received.calling_ae_title, called_ae_title=received.called_ae_title)
    )
    return learned.rowcount == 1


def update_header(connection: Connection, sha256: str, header: Mapping[str, tuple[str, ...]]) -> None:
    """Keep what was read of an instance's header after it had been registered."""
    plain = {keyword: list(value) for keyword, value in header.items()}
    connection.execute(update(tables.instance).where(tables.instance.c.sha256 == sha256).values(header=plain))


@dataclass(frozen=True, kw_only=True)
class Version:
    """One content that was registered under a SOP Instance UID."""

    sop_class_uid: str
    sha256: str


def versions(connection: Connection, sop_instance_uid: str) -> list[Version]:
    """Return every content that was registered under a SOP Instance UID, in order of arrival."""
    instance = tables.instance
    rows = connection.execute(
        select(instance.c.sop_class_uid, instance.c.sha256)
        .where(instance.c.sop_instance_uid == sop_instance_uid)
        .order_by(instance.c.id)
    )
    return [Version(sop_class_uid=row.sop_class_uid, sha256=row.sha256) for row in rows]


def is_registered(connection: Connection, sha256: str) -> bool:
    """Return whether an object with exactly this content is registered."""
    found = connection.execute(select(tables.instance.c.id).where(tables.instance.c.sha256 == sha256)).first()
    return found is not None


def refuse(
    connection: Connection,
    *,
    status: int,
    reason: str,
    sop_instance_uid: str = "",
    study_instance_uid: str = "",
    sha256: str = "",
    calling_ae_title: str = "",
    called_ae_title: str = "",
) -> None:
    """Keep a record of an object that was not taken; UIDs that are longer than a UID can be are cut."""
    connection.execute(
        insert(tables.refusal).values(
            at=now(),
            status=status,
            reason=reason,
            sop_instance_uid=sop_instance_uid[:64],
            study_instance_uid=study_instance_uid[:64],
            sha256=sha256,
            calling_ae_title=calling_ae_title[:16],
            called_ae_title=called_ae_title[:16],
        )
    )


def indexed(connection: Connection, prefix: str) -> dict[str, Indexed]:
    """Return what the index says of the instances whose digest begins with `prefix`, by digest."""
    return _indexed(connection, tables.instance, tables.instance.c.missing, prefix)


def indexed_results(connection: Connection, prefix: str) -> dict[str, Indexed]:
    """Return what the index says of the result objects whose digest begins with `prefix`, by digest."""
    return _indexed(connection, tables.result_object, false(), prefix)


def _indexed(connection: Connection, table: Table, missing: ColumnElement[bool], prefix: str) -> dict[str, Indexed]:
    rows = connection.execute(
        select(table.c.sha256, table.c.sop_instance_uid, table.c.size, missing).where(table.c.sha256.startswith(prefix))
    )
    return {row[0]: Indexed(sop_instance_uid=row[1], size=row[2], missing=bool(row[3])) for row in rows}


def lock(connection: Connection, sha256s: Sequence[str]) -> None:
    """Keep re-sends of these instances from being registered until the transaction ends."""
    column = tables.instance.c.sha256
    connection.execute(select(column).where(column.in_(sha256s)).order_by(column).with_for_update(key_share=True))


def note_missing(connection: Connection, sha256s: Collection[str], *, missing: bool) -> None:
    """Note whether the files of these instances are gone, so that jobs and operators are told so."""
    known = tables.instance.c.sha256.in_(sha256s)
    connection.execute(update(tables.instance).where(known).values(missing=missing))


def path_of(store: Path, sha256: str) -> Path:
    """Return where an object lies in a content-addressed folder: `ab/cd/abcd….dcm`."""
    return store / sha256[:2] / sha256[2:4] / f"{sha256}.dcm"


# What is asked for each object that arrives is built once: building a statement takes longer than running it.
_LOCK = select(tables.study.c.id).where(tables.study.c.id == bindparam("of")).with_for_update(key_share=True)
_LOCK_UID = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("uid"), 0)))
_NAMESAKES = (
    select(tables.instance.c.sha256, tables.instance.c.header, tables.study.c.id, tables.study.c.study_instance_uid)
    .join(tables.series, tables.series.c.id == tables.instance.c.series_id)
    .join(tables.study, tables.study.c.id == tables.series.c.study_id)
    .where(tables.instance.c.sop_instance_uid == bindparam("uid"))
)
_OWN_RESULT = select(tables.result_object.c.id).where(tables.result_object.c.sop_instance_uid == bindparam("uid"))


@cache
def _touched(quiet_seconds: float) -> Update:
    study = tables.study
    return (
        update(study)
        .where(study.c.id == bindparam("of"))
        .values(
            last_received_at=now(),
            # A study that is held stays held, whatever arrives.
            due_at=case((study.c.state == StudyState.HELD, null()), else_=after(quiet_seconds)),
            # Rules of this generation may already have run (they can have different quiet times): then, too,
            # what arrives now belongs to the next generation.
            generation=study.c.generation
            + case(
                (
                    select(tables.decision.c.id)
                    .where(tables.decision.c.study_id == study.c.id, tables.decision.c.generation == study.c.generation)
                    .exists(),
                    1,
                ),
                else_=case((study.c.state == StudyState.COMPLETE, 1), else_=0),
            ),
            state=case(*((study.c.state == before, then) for before, then in study_moves(StudyEvent.RECEIVE).items())),
        )
    )


def _in_conflict(connection: Connection, received: Received) -> bool:
    """Return whether another object of the same study and patient has this SOP Instance UID.

    Raises IdentityTaken when one of another study or patient has it.
    """
    same_uid = {"uid": received.sop_instance_uid}
    if connection.dialect.name == "postgresql":
        # Two studies have no row in common that could be locked. SQLite has one writer at a time anyway.
        connection.execute(_LOCK_UID, same_uid)
    namesakes = connection.execute(_NAMESAKES, same_uid).all()
    if any(each.sha256 == received.sha256 for each in namesakes):
        return False
    for each in namesakes:
        if each.study_instance_uid != received.study_instance_uid:
            raise IdentityTaken("study", each.id)
        if not same_patient(each.header, received.header):
            raise IdentityTaken("patient", each.id)
    return bool(namesakes)


@cache
def _found(table: Table, columns: tuple[str, ...]) -> Select[Any]:
    return select(table.c.id).where(*(table.c[column] == bindparam(column) for column in columns))


def _get_or_insert(
    connection: Connection, table: Table, key: Mapping[str, object], values: Mapping[str, object]
) -> int:
    find = _found(table, tuple(key))
    found = connection.execute(find, dict(key)).scalar()
    if found is None:
        found = insert_unless_there(connection, table, {**key, **values})
    if found is None:
        found = connection.execute(find, dict(key)).scalar_one()
    return int(found)


def _joined(value: tuple[str, ...] | None, width: int) -> str:
    return "\\".join(value or ())[:width]


def alarms(connection: Connection) -> int:
    """Return how many objects were refused because their UID names one of another study or patient."""
    refusal = tables.refusal.c
    query = select(func.count()).where(refusal.reason.startswith(IdentityTaken.ALARM))
    return int(connection.execute(query).scalar_one())


def counts(connection: Connection) -> dict[str, int]:
    """Return how many instances are stored, in conflict, and missing from the store."""
    instance = tables.instance
    row = connection.execute(
        select(
            func.count(),
            func.count(case((instance.c.conflict, 1), else_=null())),
            func.count(case((instance.c.missing, 1), else_=null())),
        ).select_from(instance)
    ).one()
    return {"stored": row[0], "conflicts": row[1], "missing": row[2]}
