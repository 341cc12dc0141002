"""Notices that a result is done at a destination: one for each who wants to be told, told until he has heard.

Each is told in one form (`domain.notices`): the same result, destination, form and target make one notice for ever.

They live like deliveries: claimed under a lease with a fencing token, tried again with a growing delay, held for a
person where the peer will not listen.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, and_, select, true, update

from meddaemon.db import leases, tables
from meddaemon.db.clock import after, now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.db.paging import earlier
from meddaemon.domain.errors import NotFound
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.states import DeliveryEvent, DeliveryState, delivery_sources, delivery_target

_notice, _delivery, _object = tables.notice, tables.delivery, tables.result_object
RESULTS_AT_ONCE = 200
_is_open = and_(
    _delivery.c.done_at.is_(None),
    _delivery.c.wanted == true(),
    # What another edition took the place of will never be there.
    _delivery.c.state != DeliveryState.REPLACED,
)


@dataclass(frozen=True, kw_only=True)
class Available:
    """One object that is at a destination, and the file that holds it."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A notice that is being told: of which objects of a study, and to whom."""

    id: int
    result_id: int
    target: str
    study_instance_uid: str
    objects: tuple[Available, ...]
    created_at: datetime
    attempt: int
    fence: int


@dataclass(frozen=True, kw_only=True)
class NoticeRow:
    """Where a notice stands."""

    id: int
    result_id: int
    destination: str
    form: NoticeForm
    target: str
    state: DeliveryState
    attempt: int
    reason: str
    available_at: datetime
    sent_at: datetime | None


def is_anything_new(connection: Connection, destination: str) -> bool:
    """Return whether something has become done at a destination that nobody was asked to tell of yet."""
    new = select(_delivery.c.id).where(tables.delivery_unnoticed, _delivery.c.destination == destination)
    return connection.execute(new.limit(1)).first() is not None


def post(connection: Connection, destination: str, targets: Collection[Target]) -> int:
    """Make the notices of results that have become done at a destination as a whole; return of how many.

    Of a result of which an object is not done yet, or held, nobody is told. Where nobody wants to be told, that is
    noted, so that whoever does one day is not told of the past.
    """
    # Who comes at the same time waits for the first, and then finds nothing.
    new = (
        select(_object.c.result_id)
        .join(_delivery, _delivery.c.result_object_id == _object.c.id)
        .where(tables.delivery_unnoticed, _delivery.c.destination == destination)
    )
    of_result = select(_delivery.c.id).join(_object, _object.c.id == _delivery.c.result_object_id)
    open_ones = of_result.with_only_columns(_object.c.result_id).where(
        _delivery.c.destination == destination, _is_open, _object.c.result_id.in_(new)
    )
    whole = connection.execute(
        new.where(_object.c.result_id.not_in(open_ones)).group_by(_object.c.result_id).limit(RESULTS_AT_ONCE)
    ).scalars()
    done = sorted(whole)
    for result_id in done:
        for told in targets:
            values = {"result_id": result_id, "destination": destination, "reason": ""}
            values |= {"form": told.form, "target": told.target}
            fresh = {"state": DeliveryState.PENDING, "attempt": 0, "fence": 0}
            times = {"available_at": now(), "created_at": now()}
            insert_unless_there(connection, _notice, {**values, **fresh, **times})
    mine = of_result.where(_delivery.c.destination == destination, _object.c.result_id.in_(done))
    locked = connection.execute(mine.order_by(_delivery.c.id).with_for_update(of=_delivery, key_share=True)).scalars()
    connection.execute(update(_delivery).where(_delivery.c.id.in_(locked.all())).values(noticed=True))
    return len(done)


def claim(
    connection: Connection,
    destination: str,
    form: NoticeForm,
    *,
    lease_seconds: float,
    longest_seconds: float = math.inf,
) -> Notice | None:
    """Lease the notice of a destination that has waited for longest, or whose sender died; None when none waits.

    That of a result that is not done there any more waits until it is.
    `longest_seconds`: see `leases.is_due`.
    """
    mine = (tables.notice_open, _notice.c.destination == destination, _notice.c.form == form)
    connection.execute(
        update(_notice)
        .where(*mine, _notice.c.state == DeliveryState.SENDING, _notice.c.lease_expires_at < now())
        .values(state=delivery_target(DeliveryEvent.EXPIRE), available_at=now())
    )
    waiting = _notice.c.state.in_(delivery_sources(DeliveryEvent.CLAIM))
    there = (
        select(_delivery.c.id)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(_object.c.result_id == _notice.c.result_id, _delivery.c.destination == destination)
        .correlate(_notice)
    )
    # What was done may be reported lost since.
    is_done = and_(there.where(_delivery.c.done_at.is_not(None)).exists(), ~there.where(_is_open).exists())
    candidate = connection.execute(
        select(_notice.c.id)
        .where(*mine, waiting, leases.is_due(_notice, longest_seconds), is_done)
        .order_by(_notice.c.available_at, _notice.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()
    if candidate is None:
        return None
    row = connection.execute(
        update(_notice)
        .where(_notice.c.id == candidate)
        .values(leases.claimed(_notice, lease_seconds))
        .returning(*_notice.c)
    ).one()
    objects = connection.execute(
        select(_object, tables.study.c.study_instance_uid)
        .join(_delivery, _delivery.c.result_object_id == _object.c.id)
        .join(tables.result, tables.result.c.id == _object.c.result_id)
        .join(tables.study, tables.study.c.id == tables.result.c.study_id)
        .where(
            _object.c.result_id == row.result_id,
            _delivery.c.destination == destination,
            _delivery.c.done_at.is_not(None),
        )
        .order_by(_object.c.id)
    ).all()
    return Notice(
        id=row.id,
        result_id=row.result_id,
        target=row.target,
        study_instance_uid=objects[0].study_instance_uid,
        objects=tuple(
            Available(
                kind=each.kind,
                sop_class_uid=each.sop_class_uid,
                sop_instance_uid=each.sop_instance_uid,
                series_instance_uid=each.series_instance_uid,
                sha256=each.sha256,
                size=each.size,
            )
            for each in objects
        ),
        created_at=row.created_at,
        attempt=row.attempt,
        fence=row.fence,
    )


def accept(connection: Connection, notice: Notice, *, note: str) -> None:
    """Record that the peer has heard it. Raises LeaseLost."""
    leases.give_up(connection, _notice, DeliveryEvent.ACCEPT, notice, reason=note, sent_at=now())


def fail(connection: Connection, notice: Notice, *, reason: str, delay_seconds: float) -> None:
    """Record that the peer could not be told, and when to try again. Raises LeaseLost."""
    leases.give_up(connection, _notice, DeliveryEvent.FAIL, notice, reason=reason, available_at=after(delay_seconds))


def refuse(connection: Connection, notice: Notice, *, reason: str) -> None:
    """Record that the peer will not listen: a person must look. Raises LeaseLost."""
    leases.give_up(connection, _notice, DeliveryEvent.REFUSE, notice, reason=reason)


def requeue(connection: Connection, notice_id: int) -> None:
    """Tell it again at once. Raises NotFound."""
    if not leases.requeue(connection, _notice, notice_id):
        raise NotFound(f"no notice {notice_id} that is held or waits for another attempt")


def requeue_held(connection: Connection, destination: str) -> int:
    """Tell again at once all that is held of a destination; return how many notices. Raises NotFound."""
    count = leases.requeue_held(connection, _notice, _notice.c.destination == destination)
    if not count:
        raise NotFound(f"no notice of {destination!r} is held")
    return count


def listing(
    connection: Connection,
    *,
    result_id: int | None = None,
    state: DeliveryState | None = None,
    destination: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[NoticeRow]:
    """Return the latest notices, oldest first: of a result, in a state, of a destination, before an id, or all."""
    query = select(_notice).where(*earlier(_notice.c.id, before)).order_by(_notice.c.id.desc()).limit(limit)
    if result_id is not None:
        query = query.where(_notice.c.result_id == result_id)
    if state is not None:
        query = query.where(_notice.c.state == state)
    if destination is not None:
        query = query.where(_notice.c.destination == destination)
    return [
        NoticeRow(
            id=row.id,
            result_id=row.result_id,
            destination=row.destination,
            form=NoticeForm(row.form),
            target=row.target,
            state=DeliveryState(row.state),
            attempt=row.attempt,
            reason=row.reason,
            available_at=row.available_at,
            sent_at=row.sent_at,
        )
        for row in reversed(connection.execute(query).all())
    ]
