"""Received instances: what is known of them, and which were refused with what reason."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, false, func, insert, select, update

from meddaemon.db import tables
from meddaemon.db.clock import after, now

COUNTED_TO = 100_000
"""How far instances are counted where somebody waits for the answer."""
_CHUNK = 500
"""How many UIDs are asked for at once: databases take only so many parameters."""


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


def used(connection: Connection, sop_instance_uids: Sequence[str]) -> dict[str, str]:
    """Return the digest of what is used of each of these instances, by its UID, unless its file is gone."""
    instance = tables.instance
    found: dict[str, str] = {}
    for first in range(0, len(sop_instance_uids), _CHUNK):
        wanted = instance.c.sop_instance_uid.in_(sop_instance_uids[first : first + _CHUNK])
        rows = connection.execute(
            select(instance.c.sop_instance_uid, instance.c.sha256).where(
                wanted, instance.c.conflict == false(), instance.c.missing == false()
            )
        )
        found.update({row.sop_instance_uid: row.sha256 for row in rows})
    return found


def is_registered(connection: Connection, sha256: str) -> bool:
    """Return whether an object with exactly this content is registered."""
    found = connection.execute(select(tables.instance.c.id).where(tables.instance.c.sha256 == sha256)).first()
    return found is not None


def latest(connection: Connection, *, limit: int) -> list[str]:
    """Return the digests of the instances that were registered last and are not known to be gone."""
    instance = tables.instance
    query = select(instance.c.sha256).where(instance.c.missing == false()).order_by(instance.c.id.desc()).limit(limit)
    return list(connection.execute(query).scalars())


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
    """Return what the index says of result objects and artefacts whose digest begins with `prefix`, by digest."""
    kept = _indexed(connection, tables.artefact, false(), prefix)
    return kept | _indexed(connection, tables.result_object, false(), prefix)


def _indexed(connection: Connection, table: Table, missing: ColumnElement[bool], prefix: str) -> dict[str, Indexed]:
    sha256 = table.c.sha256
    # A range, because LIKE goes by no index; "g" follows every digit of a digest in every collation.
    rows = connection.execute(
        select(sha256, table.c.sop_instance_uid, table.c.size, missing).where(sha256 >= prefix, sha256 < f"{prefix}g")
    )
    return {row[0]: Indexed(sop_instance_uid=row[1] or "", size=row[2], missing=bool(row[3])) for row in rows}


def lock(connection: Connection, sha256s: Sequence[str]) -> None:
    """Keep re-sends of these instances from being registered until the transaction ends."""
    column = tables.instance.c.sha256
    connection.execute(select(column).where(column.in_(sha256s)).order_by(column).with_for_update(key_share=True))


def note_missing(connection: Connection, sha256s: Collection[str], *, missing: bool) -> None:
    """Note whether the files of these instances are gone, so that jobs and operators are told so."""
    known = tables.instance.c.sha256.in_(sha256s)
    connection.execute(update(tables.instance).where(known).values(missing=missing))


def path_of(store: Path, sha256: str) -> Path:
    """Return where an object lies in a content-addressed folder: `ab/abcd….dcm`."""
    return store / sha256[:2] / f"{sha256}.dcm"


def alarms(connection: Connection) -> int:
    """Return how many objects were refused because their UID names one of another study or patient."""
    query = select(func.count()).select_from(tables.refusal).where(tables.refusal_alarm)
    return int(connection.execute(query).scalar_one())


def bytes_by_caller(connection: Connection, *, within_seconds: float) -> dict[str, int]:
    """Return how many bytes each calling AE title has stored within the last so many seconds."""
    instance = tables.instance.c
    caller = instance.calling_ae_title
    query = select(caller, func.sum(instance.size)).where(instance.id > _last_before(connection, within_seconds))
    return {each: int(size) for each, size in connection.execute(query.group_by(caller))}


def _last_before(connection: Connection, seconds: float) -> int:
    """Return the id after which instances were received within the last so many seconds.

    Ids grow with time, so it is narrowed down step by step: no index goes by time, which each instance would pay for.
    """
    instance = tables.instance.c
    first, last = 0, connection.execute(select(func.max(instance.id))).scalar() or 0
    while first < last:
        middle = (first + last) // 2
        later = select(instance.received_at > after(-seconds)).where(instance.id > middle).order_by(instance.id)
        if connection.execute(later.limit(1)).scalar_one():
            last = middle
        else:
            first = middle + 1
    return first


def count(connection: Connection) -> int:
    """Return how many instances are registered; reads a whole index."""
    return int(connection.execute(select(func.count()).select_from(tables.instance)).scalar_one())


def counts(connection: Connection) -> dict[str, int]:
    """Return how many instances are stored, at most COUNTED_TO, how many in conflict, and missing from the store."""
    some = select(tables.instance.c.id).limit(COUNTED_TO).subquery()
    every = select(func.count()).select_from(tables.instance)
    of = {
        "stored": select(func.count()).select_from(some),
        "conflicts": every.where(tables.instance_conflict),
        "missing": every.where(tables.instance_missing),
    }
    return {what: int(connection.execute(query).scalar_one()) for what, query in of.items()}
