"""What others announce of studies (MPPS, IAN): kept before it is answered, and told to the studies afterwards.

An announcement may come before the first image, between images, or after the study was decided. Whoever keeps one
touches no study; `tell` does so later, in a transaction of its own, when the announcement is committed: whatever
study is committed after that is looked at with the announcement in sight.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, exists, func, insert, not_, or_, select, update

from meddaemon.db import holds, studies, tables
from meddaemon.db.clock import after, now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.domain.completeness import Announcement, AnnouncementSource
from meddaemon.domain.errors import NotFound
from meddaemon.domain.states import (
    ANNOUNCEMENT_TRANSITIONS,
    DELIVERY_TAKEN,
    AnnouncementState,
    StudyEvent,
    StudyState,
    study_moves,
)

_announcement, _about, _named = tables.announcement, tables.announced_study, tables.announced_instance
EXAMPLES = 3
KEPT_SECONDS = 30 * 86_400.0
"""How long an announcement is kept after its last change."""
_AT_A_TIME = 100


@dataclass(frozen=True, kw_only=True)
class NewAnnouncement:
    """What a peer announces: the studies, and the instances that belong to them."""

    source: AnnouncementSource
    sop_instance_uid: str
    ae_title: str
    state: AnnouncementState
    study_instance_uids: tuple[str, ...]
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AnnouncementRow:
    """An announcement, and when it last changed."""

    announcement: Announcement
    changed_at: datetime


def keep(connection: Connection, new: NewAnnouncement) -> bool:
    """Keep an announcement; return False when there is one of that UID."""
    added = insert_unless_there(
        connection,
        _announcement,
        {
            "source": new.source,
            "sop_instance_uid": new.sop_instance_uid,
            "ae_title": new.ae_title,
            "state": new.state,
            "changed_at": now(),
        },
    )
    if added is None:
        return False
    _list(connection, _about, added, "study_instance_uid", new.study_instance_uids)
    _list(connection, _named, added, "sop_instance_uid", new.sop_instance_uids)
    return True


def amend(
    connection: Connection,
    sop_instance_uid: str,
    source: AnnouncementSource,
    *,
    state: AnnouncementState | None,
    sop_instance_uids: Sequence[str] | None,
) -> bool:
    """Change the state of an announcement or the instances that it names, all of them; None leaves them as they are.

    Returns False when it may not be changed any more. Raises NotFound.
    """
    known = connection.execute(
        select(_announcement.c.id, _announcement.c.state)
        .where(_announcement.c.sop_instance_uid == sop_instance_uid, _announcement.c.source == source)
        .with_for_update()
    ).first()
    if known is None:
        raise NotFound(f"no {source.value} {sop_instance_uid}")
    target = AnnouncementState(known.state) if state is None else state
    if target not in ANNOUNCEMENT_TRANSITIONS[AnnouncementState(known.state)]:
        return False
    connection.execute(
        update(_announcement).where(_announcement.c.id == known.id).values(state=target, changed_at=now(), told=False)
    )
    if sop_instance_uids is not None:
        connection.execute(delete(_named).where(_named.c.announcement_id == known.id))
        _list(connection, _named, known.id, "sop_instance_uid", sop_instance_uids)
    return True


def names_any(connection: Connection, sop_instance_uid: str) -> bool:
    """Return whether an announcement has named instances."""
    query = select(_named.c.sop_instance_uid).join(_announcement)
    return connection.execute(query.where(_announcement.c.sop_instance_uid == sop_instance_uid)).first() is not None


def untold(connection: Connection) -> list[int]:
    """Return announcements whose studies do not know of them yet."""
    return list(
        connection.execute(
            select(_announcement.c.id).where(tables.announcement_untold).order_by(_announcement.c.id).limit(_AT_A_TIME)
        ).scalars()
    )


def tell(connection: Connection, announcement_id: int) -> None:
    """Let the studies of an announcement be looked at: those that wait, that are held or that were given up.

    No generation begins: that is for instances. What was decided stays decided, a contradiction stays one.
    """
    study = tables.study
    connection.execute(update(_announcement).where(_announcement.c.id == announcement_id).values(told=True))
    uids = select(_about.c.study_instance_uid).where(_about.c.announcement_id == announcement_id)
    # Locked in the order in which listeners lock them, which is not that of every database's collation.
    for uid in sorted(connection.execute(uids).scalars()):
        concerned = connection.execute(
            select(study.c.id, study.c.state).where(study.c.study_instance_uid == uid).with_for_update(key_share=True)
        ).first()
        if concerned is None:
            continue
        if concerned.state == StudyState.HELD:
            holds.reconsider(connection, concerned.id)
        elif concerned.state == StudyState.RECEIVING or studies.was_discarded(connection, concerned.id):
            connection.execute(
                update(study)
                .where(study.c.id == concerned.id, study.c.state.in_(study_moves(StudyEvent.REOPEN)))
                .values(state=StudyState.RECEIVING, due_at=now())
            )


def fulfilled(connection: Connection) -> list[int]:
    """Return studies that wait, got instances since they were looked at, and have all that was announced of them."""
    study, in_study = tables.study, _about.c.study_instance_uid == tables.study.c.study_instance_uid
    of_study = select(_announcement.c.id).join(_about).where(in_study)
    in_announcement = _named.c.announcement_id == _announcement.c.id
    named = select(_named.c.sop_instance_uid).where(in_announcement).correlate(_announcement)
    rows = connection.execute(
        select(study.c.id).where(
            study.c.due_at > now(),
            or_(study.c.looked_at.is_(None), study.c.looked_at < study.c.last_received_at),
            of_study.where(named.exists()).exists(),
            ~of_study.where(
                or_(_announcement.c.state == AnnouncementState.IN_PROGRESS, named.where(_is_missing()).exists())
            ).exists(),
        )
    )
    return list(rows.scalars())


def hasten(connection: Connection, study_id: int) -> None:
    """Let a study that waits be looked at now."""
    study = tables.study
    connection.execute(update(study).where(study.c.id == study_id, study.c.due_at > now()).values(due_at=now()))


def of_study(connection: Connection, study_instance_uid: str) -> list[AnnouncementRow]:
    """Return what is announced of a study, oldest first, compared with what is here now."""
    rows = connection.execute(
        select(
            _announcement,
            select(func.count()).where(_named.c.announcement_id == _announcement.c.id).scalar_subquery().label("named"),
            select(func.count())
            .where(_named.c.announcement_id == _announcement.c.id, _is_missing())
            .scalar_subquery()
            .label("missing"),
        )
        .join(_about)
        .where(_about.c.study_instance_uid == study_instance_uid)
        .order_by(_announcement.c.id)
    )
    return [
        AnnouncementRow(
            announcement=Announcement(
                source=AnnouncementSource(row.source),
                uid=row.sop_instance_uid,
                ae_title=row.ae_title,
                state=AnnouncementState(row.state),
                named=row.named,
                missing=row.missing,
                examples=_examples(connection, row.id) if row.missing else (),
            ),
            changed_at=row.changed_at,
        )
        for row in rows.all()
    ]


def forget(connection: Connection) -> int:
    """Delete what has not changed for so long that nobody needs it any more; return how many there were."""
    old = _announcement.c.changed_at < after(-KEPT_SECONDS)
    return connection.execute(delete(_announcement).where(old)).rowcount


def count_here(connection: Connection, study_id: int, destinations: Collection[str]) -> int:
    """Return how many instances of a study its sender can have that are here: received, or ours and sent there.

    `destinations` are those that are the sender.
    """
    instance, series, result, made, sent = (
        tables.instance,
        tables.series,
        tables.result,
        tables.result_object,
        tables.delivery,
    )
    received = select(instance.c.sop_instance_uid).join(series).where(series.c.study_id == study_id)
    delivered = (
        select(made.c.sop_instance_uid)
        .join(result, result.c.id == made.c.result_id)
        .join(sent, sent.c.result_object_id == made.c.id)
        .where(
            result.c.study_id == study_id,
            sent.c.destination.in_(destinations),
            sent.c.state.in_(DELIVERY_TAKEN),
        )
    )
    return int(connection.execute(select(func.count()).select_from(received.union(delivered).subquery())).scalar_one())


def _list(connection: Connection, table: Table, announcement_id: int, column: str, uids: Iterable[str]) -> None:
    rows = [{"announcement_id": announcement_id, column: uid} for uid in dict.fromkeys(uids)]
    if rows:
        connection.execute(insert(table), rows)


def _is_missing() -> ColumnElement[bool]:
    """Hold for an announced instance that is nowhere here: received (for whatever study), or a result of ours."""
    instance, made = tables.instance, tables.result_object
    return and_(
        not_(exists(select(instance.c.id).where(instance.c.sop_instance_uid == _named.c.sop_instance_uid))),
        not_(exists(select(made.c.id).where(made.c.sop_instance_uid == _named.c.sop_instance_uid))),
    )


def _examples(connection: Connection, announcement_id: int) -> tuple[str, ...]:
    rows = connection.execute(
        select(_named.c.sop_instance_uid)
        .where(_named.c.announcement_id == announcement_id, _is_missing())
        .order_by(_named.c.sop_instance_uid)
        .limit(EXAMPLES)
    )
    return tuple(rows.scalars())
