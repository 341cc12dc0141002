"""Custody of what was sent: which destination is to be asked for what, what it was asked, and what it said.

A request for storage commitment is kept before it is sent. Its report may come to any process, long after, twice or
never: an object is asked for again when its time is over, and each report counts for those objects only that it names
and that have not been sent again since.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Row, Select, case, delete, func, insert, select, true, update

from meddaemon.db import tables
from meddaemon.db.clock import Utc, after, now
from meddaemon.db.deliveries import UNASKED, held_before
from meddaemon.domain.commitment import ReferencedInstance
from meddaemon.domain.custody import EXHAUSTED, LOOKS, CustodyPolicy, CustodyReport, Outcome, outcome_of
from meddaemon.domain.states import DeliveryEvent, DeliveryState, delivery_sources, delivery_target

_delivery, _object, _custody, _item = tables.delivery, tables.result_object, tables.custody, tables.custody_item

SETTLED_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Unconfirmed:
    """An object that a destination took, and of which nobody has said since that it is there."""

    delivery_id: int
    fence: int
    asked: int
    missed: int
    losses: int
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    sender: str
    reason: str

    @property
    def referenced(self) -> ReferencedInstance:
        """How a request names it."""
        return ReferencedInstance(sop_class_uid=self.sop_class_uid, sop_instance_uid=self.sop_instance_uid)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for storage commitment that is kept and not sent yet."""

    id: int
    transaction_uid: str


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a report has changed: how many objects are confirmed, are sent again or held, and are asked for again."""

    destination: str
    committed: int
    failed: int
    unsaid: int
    repeated: bool
    """It was heard before."""


@dataclass(frozen=True, kw_only=True)
class CustodyRow:
    """Where a request of ours stands."""

    id: int
    transaction_uid: str
    destination: str
    objects: int
    committed: int
    asked_at: datetime
    taken_at: datetime | None
    reported_at: datetime | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a result stands at a destination: done when all its objects there are."""

    result_id: int
    study_id: int
    destination: str
    objects: int
    done: int
    done_at: datetime | None
    """When the last became so; None while any is not."""


def settle(connection: Connection, destination: str) -> int:
    """Call done what was sent to a destination for which that suffices; return how much that is."""
    sent = connection.execute(
        select(_delivery.c.id)
        .where(tables.delivery_unconfirmed, _delivery.c.destination == destination)
        .limit(SETTLED_AT_ONCE)
        .with_for_update(skip_locked=True, key_share=True)
    ).scalars()
    return connection.execute(
        update(_delivery).where(_delivery.c.id.in_(sent.all())).values(done_at=_delivery.c.sent_at)
    ).rowcount


def is_waiting(connection: Connection, destination: str, *, due: bool = True) -> bool:
    """Return whether anything that was sent to a destination is not confirmed, and `due` to be asked for."""
    found = select(_delivery.c.id).where(tables.delivery_unconfirmed, _delivery.c.destination == destination)
    return connection.execute((found.where(*_due()) if due else found).limit(1)).first() is not None


def claim(connection: Connection, destination: str, *, lease_seconds: float, limit: int) -> list[Unconfirmed]:
    """Lease what a destination is to be asked for now, the most urgent first, all of it of one sender.

    What belongs to a result of which more is about to be sent there waits for that. Nobody else
    takes it before the lease is over: who asks says by then when it is to be asked for next.
    """
    chosen = (
        connection.execute(
            select(_delivery.c.id)
            .where(tables.delivery_unconfirmed, _delivery.c.destination == destination, *_due(), ~_under_way())
            .order_by(_delivery.c.priority, _delivery.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True)
        )
        .scalars()
        .all()
    )
    found = [_unconfirmed(row) for row in connection.execute(_described(chosen))] if chosen else []
    mine = [each for each in found if each.sender == found[0].sender]
    _let_wait(connection, mine, lease_seconds)
    return mine


def open_request(
    connection: Connection,
    destination: str,
    asked_for: Sequence[Unconfirmed],
    *,
    transaction_uid: str,
    reported_by: Collection[str],
    policy: CustodyPolicy,
) -> Request:
    """Keep a request for storage commitment that is about to be sent."""
    request_id: int = connection.execute(
        insert(_custody)
        .values(
            transaction_uid=transaction_uid,
            destination=destination,
            reported_by=sorted(reported_by),
            maximum_losses=policy.maximum_losses,
            asked_at=now(),
            reason="",
        )
        .returning(_custody.c.id)
    ).scalar_one()
    for each in asked_for:
        item = {"custody_id": request_id, "delivery_id": each.delivery_id}
        connection.execute(insert(_item).values(**item, fence=each.fence, asked=each.asked + 1))
        connection.execute(_updated(each, _delivery.c.state == DeliveryState.SENT, custody_asked=each.asked + 1))
    return Request(id=request_id, transaction_uid=transaction_uid)


def taken(connection: Connection, request: Request, *, report_seconds: float, reason: str = "") -> None:
    """Record that the destination took a request, or may have (`reason`): its report may be out for so long.

    It may have come already.
    """
    connection.execute(
        update(_custody).where(_custody.c.id == request.id).values(taken_at=None if reason else now(), reason=reason)
    )
    _apply_to_open(connection, request, custody_at=after(report_seconds), custody_reason=reason)


def not_asked(connection: Connection, request: Request, *, reason: str, retry_seconds: float) -> None:
    """Forget a request that never reached the destination: the same is asked for later, and counts as not asked."""
    _apply_to_open(
        connection,
        request,
        custody_at=after(retry_seconds),
        custody_reason=reason,
        custody_asked=_delivery.c.custody_asked - 1,
    )
    connection.execute(delete(_item).where(_item.c.custody_id == request.id))
    connection.execute(delete(_custody).where(_custody.c.id == request.id))


def refused(connection: Connection, request: Request, *, reason: str, retry_seconds: float | None) -> None:
    """Record that the destination refused a request: for now, or (None) for good."""
    connection.execute(update(_custody).where(_custody.c.id == request.id).values(reason=reason))
    if retry_seconds is not None:
        _apply_to_open(connection, request, custody_at=after(retry_seconds), custody_reason=reason)
    else:
        _apply_to_open(connection, request, custody_at=now(), custody_reason=reason, custody_asked=EXHAUSTED)


def hear(connection: Connection, report: CustodyReport, ae_title: str) -> Heard | None:
    """Take a report; None when `ae_title` was not asked under its Transaction UID. Hearing it again changes nothing."""
    request = connection.execute(
        select(_custody).where(_custody.c.transaction_uid == report.transaction_uid).with_for_update()
    ).first()
    if request is None or ae_title not in request.reported_by:
        return None
    connection.execute(
        update(_custody)
        .where(_custody.c.id == request.id)
        .values(reported_at=func.coalesce(_custody.c.reported_at, now()))
    )
    rows = connection.execute(
        select(_item, _object.c.sop_class_uid, _object.c.sop_instance_uid, _delivery.c.losses)
        .join(_delivery, _delivery.c.id == _item.c.delivery_id)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(
            _item.c.custody_id == request.id,
            # A report that is repeated with more in it than before is heard for the rest.
            _item.c.outcome.is_(None) | (_item.c.outcome == Outcome.UNSAID),
        )
        .order_by(_delivery.c.id)
    ).all()
    counts = dict.fromkeys(Outcome, 0)
    for row in rows:
        named = ReferencedInstance(sop_class_uid=row.sop_class_uid, sop_instance_uid=row.sop_instance_uid)
        outcome, reason = outcome_of(report, named)
        counts[outcome] += 1
        if outcome == row.outcome:
            continue
        connection.execute(
            update(_item)
            .where(_item.c.custody_id == request.id, _item.c.delivery_id == row.delivery_id)
            .values(outcome=outcome)
        )
        _follow(connection, row, outcome, reason, request.maximum_losses)
    return Heard(
        destination=request.destination,
        committed=counts[Outcome.COMMITTED],
        failed=counts[Outcome.LOST] + counts[Outcome.CONFLICT] + counts[Outcome.UNANSWERABLE],
        unsaid=counts[Outcome.UNSAID],
        repeated=request.reported_at is not None,
    )


def _follow(
    connection: Connection, row: Row[tuple[object, ...]], outcome: Outcome, reason: str, maximum_losses: int
) -> None:
    """Do what a report means for one object, unless it was sent again since."""
    mine = (_delivery.c.id == row.delivery_id, _delivery.c.fence == row.fence)
    if outcome is Outcome.COMMITTED:
        _apply(
            connection,
            DeliveryEvent.COMMIT,
            *mine,
            committed_at=now(),
            done_at=now(),
            custody_reason="",
            reason=case((_delivery.c.state == DeliveryState.HELD, ""), else_=_delivery.c.reason),
        )
        return
    # That an earlier request failed says nothing when it has been asked for again.
    latest = (*mine, _delivery.c.custody_asked == row.asked)
    if outcome is Outcome.LOST:
        _lose(connection, latest, row.losses, maximum_losses, reason)
    elif outcome is Outcome.CONFLICT:
        _apply(connection, DeliveryEvent.DOUBT, *latest, reason=reason, custody_reason=reason)
    else:
        asked = EXHAUSTED if outcome is Outcome.UNANSWERABLE else _delivery.c.custody_asked
        connection.execute(
            update(_delivery)
            .where(*latest, _delivery.c.state == DeliveryState.SENT)
            .values(custody_at=now(), custody_asked=asked, custody_reason=reason)
        )


def found(connection: Connection, each: Unconfirmed) -> None:
    """Record that the destination has it."""
    _apply(connection, DeliveryEvent.VERIFY, *_same(each), verified_at=now(), done_at=now(), custody_reason="")


def missed(connection: Connection, each: Unconfirmed, policy: CustodyPolicy) -> bool:
    """Record that the destination does not find it; return whether that is believed now, and it is sent again."""
    reason = "the destination does not find it by its UID"
    if each.missed + 1 >= LOOKS:
        _lose(connection, _same(each), each.losses, policy.maximum_losses, reason)
        return True
    values = {"custody_missed": each.missed + 1, "custody_reason": reason}
    connection.execute(
        _updated(each, _delivery.c.state == DeliveryState.SENT, custody_at=after(policy.query_pause_seconds), **values)
    )
    return False


def postpone(connection: Connection, waiting: Iterable[Unconfirmed], *, reason: str, seconds: float) -> None:
    """Record that the destination could not be asked, and when to try again."""
    for each in sorted(waiting, key=lambda each: each.delivery_id):
        unsent = _delivery.c.state == DeliveryState.SENT
        connection.execute(_updated(each, unsent, custody_at=after(seconds), custody_reason=reason))


def doubt(connection: Connection, each: Unconfirmed, reason: str) -> None:
    """Record that nobody confirms it: held for a person."""
    _apply(connection, DeliveryEvent.DOUBT, *_same(each), reason=reason, custody_reason=reason)


def unconfirmed(connection: Connection) -> dict[str, tuple[int, datetime]]:
    """Return how much of what each destination took is not confirmed, and since when."""
    rows = connection.execute(
        select(_delivery.c.destination, func.count(), func.min(_delivery.c.sent_at, type_=Utc()))
        .where(tables.delivery_unconfirmed, _delivery.c.wanted == true())
        .group_by(_delivery.c.destination)
        .order_by(_delivery.c.destination)
    )
    return {destination: (count, since) for destination, count, since in rows}


def standings(
    connection: Connection, *, result_ids: Collection[int] | None = None, study_ids: Collection[int] | None = None
) -> list[Standing]:
    """Return how results stand with each of their destinations: some, or those of some studies."""
    result = tables.result
    query = (
        select(
            result.c.id,
            result.c.study_id,
            _delivery.c.destination,
            func.count().label("objects"),
            func.count(_delivery.c.done_at).label("done"),
            func.max(_delivery.c.done_at, type_=Utc()).label("done_at"),
        )
        .join(_object, _object.c.result_id == result.c.id)
        .join(_delivery, _delivery.c.result_object_id == _object.c.id)
        .where(_delivery.c.wanted == true(), _delivery.c.state != DeliveryState.REPLACED)
        .group_by(result.c.id, result.c.study_id, _delivery.c.destination)
        .order_by(result.c.id, _delivery.c.destination)
    )
    if result_ids is not None:
        query = query.where(result.c.id.in_(result_ids))
    if study_ids is not None:
        query = query.where(result.c.study_id.in_(study_ids))
    return [
        Standing(
            result_id=row.id,
            study_id=row.study_id,
            destination=row.destination,
            objects=row.objects,
            done=row.done,
            done_at=row.done_at if row.done == row.objects else None,
        )
        for row in connection.execute(query)
    ]


def requests_of(connection: Connection, delivery_id: int) -> list[CustodyRow]:
    """Return the requests for storage commitment that named a delivery, oldest first."""
    named = select(_item.c.custody_id).where(_item.c.delivery_id == delivery_id)
    objects = select(func.count()).select_from(_item).where(_item.c.custody_id == _custody.c.id)
    committed = objects.where(_item.c.outcome == Outcome.COMMITTED).scalar_subquery()
    rows = connection.execute(
        select(_custody, objects.scalar_subquery().label("objects"), committed.label("committed"))
        .where(_custody.c.id.in_(named))
        .order_by(_custody.c.id)
    )
    return [
        CustodyRow(
            id=row.id,
            transaction_uid=row.transaction_uid,
            destination=row.destination,
            objects=row.objects,
            committed=row.committed,
            asked_at=row.asked_at,
            taken_at=row.taken_at,
            reported_at=row.reported_at,
            reason=row.reason,
        )
        for row in rows
    ]


def _due() -> tuple[ColumnElement[bool], ...]:
    return (_delivery.c.custody_at <= now(), _delivery.c.wanted == true())


def _under_way() -> ColumnElement[bool]:
    """Hold where another object of the same result is on its way to the same destination, and nothing in its way."""
    mine, theirs, other = _object.alias("mine"), _object.alias("theirs"), _delivery.alias("other")
    return (
        select(other.c.id)
        .join(theirs, theirs.c.id == other.c.result_object_id)
        .join(mine, mine.c.result_id == theirs.c.result_id)
        .where(
            mine.c.id == _delivery.c.result_object_id,
            other.c.destination == _delivery.c.destination,
            other.c.state.in_((DeliveryState.PENDING, DeliveryState.SENDING)),
            other.c.wanted == true(),
            ~held_before(other).exists(),
        )
        .correlate(_delivery)
        .exists()
    )


def _described(delivery_ids: Collection[int]) -> Select[tuple[object, ...]]:
    study, result = tables.study, tables.result
    return (
        select(
            _delivery,
            _object.c.sop_class_uid,
            _object.c.sop_instance_uid,
            _object.c.series_instance_uid,
            study.c.study_instance_uid,
        )
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .join(result, result.c.id == _object.c.result_id)
        .join(study, study.c.id == result.c.study_id)
        .where(_delivery.c.id.in_(delivery_ids))
        .order_by(_delivery.c.priority, _delivery.c.id)
    )


def _unconfirmed(row: Row[tuple[object, ...]]) -> Unconfirmed:
    return Unconfirmed(
        delivery_id=row.id,
        fence=row.fence,
        asked=row.custody_asked,
        missed=row.custody_missed,
        losses=row.losses,
        sop_class_uid=row.sop_class_uid,
        sop_instance_uid=row.sop_instance_uid,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        sender=row.sender or "",
        reason=row.custody_reason,
    )


def _let_wait(connection: Connection, waiting: Iterable[Unconfirmed], seconds: float) -> None:
    ids = [each.delivery_id for each in waiting]
    if ids:
        connection.execute(update(_delivery).where(_delivery.c.id.in_(ids)).values(custody_at=after(seconds)))


def _same(each: Unconfirmed) -> tuple[ColumnElement[bool], ...]:
    return (_delivery.c.id == each.delivery_id, _delivery.c.fence == each.fence)


def _updated(each: Unconfirmed, *conditions: ColumnElement[bool], **values: object):  # type: ignore[no-untyped-def]
    return update(_delivery).where(*_same(each), *conditions).values(**values)


def _apply_to_open(connection: Connection, request: Request, **values: object) -> None:
    """Update the objects of a request that no report has said anything of, and that were not asked for again since."""
    # In the order in which `deliveries.keep_wanted` takes them, so that neither waits for the other's rows in turn.
    open_ones = connection.execute(
        select(_delivery.c.id)
        .join(_item, _item.c.delivery_id == _delivery.c.id)
        .where(
            _item.c.custody_id == request.id,
            _item.c.outcome.is_(None),
            _item.c.fence == _delivery.c.fence,
            _item.c.asked == _delivery.c.custody_asked,
            _delivery.c.state == DeliveryState.SENT,
        )
        .order_by(_delivery.c.id)
        .with_for_update(of=_delivery, key_share=True)
    ).scalars()
    connection.execute(update(_delivery).where(_delivery.c.id.in_(open_ones.all())).values(**values))


def _lose(connection: Connection, mine: Iterable[ColumnElement[bool]], losses: int, maximum: int, reason: str) -> None:
    """Have it sent again, under the same UID; or, after so many times, held for a person."""
    if losses >= maximum:
        reason = f"taken and not there, {losses + 1} times: {reason}; look what becomes of it there"
        _apply(connection, DeliveryEvent.DOUBT, *mine, reason=reason, custody_reason=reason, losses=losses + 1)
    else:
        _apply(
            connection,
            DeliveryEvent.LOSE,
            *mine,
            reason=reason,
            custody_reason=reason,
            losses=losses + 1,
            attempt=0,
            available_at=now(),
            # A report that comes late finds what was done by a policy that is another by now.
            done_at=None,
            **UNASKED,
        )


def _apply(connection: Connection, event: DeliveryEvent, *mine: ColumnElement[bool], **values: object) -> None:
    """Take a delivery through `event`; one that is elsewhere by now stays there."""
    connection.execute(
        update(_delivery)
        .where(*mine, _delivery.c.state.in_(delivery_sources(event)))
        .values(state=delivery_target(event), **values)
    )
