"""The outbox: one row for each object and destination, drained apart from the jobs that filled it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, ScalarSelect, false, func, insert, select, true, update

from meddaemon.db import filters, tables
from meddaemon.db.clock import after, now
from meddaemon.db.paging import earlier
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.states import DeliveryEvent, DeliveryState, delivery_sources, delivery_target

_delivery, _object = tables.delivery, tables.result_object


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One object on its way to one destination."""

    id: int
    destination: str
    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    attempt: int
    fence: int
    sender: str
    """AE title that most instances of the study came from."""


@dataclass(frozen=True, kw_only=True)
class DeliveryRow:
    """How an object and a destination stand with each other."""

    id: int
    result_id: int
    kind: str
    destination: str
    state: DeliveryState
    attempt: int
    status: int | None
    reason: str
    wanted: bool
    available_at: datetime
    sent_at: datetime | None


def post(
    connection: Connection,
    result_id: int,
    *,
    destinations: Collection[str],
    outlets: Mapping[str, Outlet],
    priority: int,
) -> None:
    """Put each object of a result into the outbox, for every destination that takes it and lacks it.

    `outlets` says what the destinations take that there are; one that is not there any more gets nothing.
    """
    status = connection.execute(select(tables.result.c.status).where(tables.result.c.id == result_id)).scalar_one()
    takers = {
        name: outlets[name]
        for name in destinations
        if name in outlets
        and status in outlets[name].statuses
        and filters.is_satisfied(connection, result_id, outlets[name].when)
    }
    objects = connection.execute(
        select(_object.c.id, _object.c.kind, _object.c.edition)
        .where(_object.c.result_id == result_id)
        .order_by(_object.c.id)
    ).all()
    for object_id, kind, edition in objects:
        there = select(_delivery.c.destination).where(_delivery.c.result_object_id == object_id)
        known = set(connection.execute(there).scalars())
        for destination, outlet in takers.items():
            wanted = kind in outlet.kinds and edition in outlet.editions[0].parts
            if wanted and destination not in known:
                connection.execute(
                    insert(_delivery).values(
                        result_object_id=object_id,
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


def keep_wanted(connection: Connection, destinations: Mapping[int, Collection[str]]) -> None:
    """Let what is not sent yet of these results (by id) go to the destinations given for each, and to no other."""
    rows = connection.execute(
        select(_delivery.c.id, _delivery.c.destination, _delivery.c.wanted, _object.c.result_id)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(_object.c.result_id.in_(destinations), _delivery.c.state != DeliveryState.SENT)
        .order_by(_delivery.c.id)
    ).all()
    for delivery_id, destination, wanted, result_id in rows:
        if wanted != (destination in destinations[result_id]):
            connection.execute(update(_delivery).where(_delivery.c.id == delivery_id).values(wanted=not wanted))


def claim(connection: Connection, *, destination: str, lease_seconds: float, limit: int = 20) -> list[Delivery]:
    """Lease what waits for one destination: the most urgent first, then in the order in which it was made.

    What a dead sender left behind is taken back first.
    """
    _expire(connection, destination)
    waiting = (
        connection.execute(
            select(_delivery.c.id)
            .where(
                _delivery.c.destination == destination,
                tables.delivery_unsent,
                _delivery.c.state.in_(delivery_sources(DeliveryEvent.CLAIM)),
                _delivery.c.available_at <= now(),
                _delivery.c.wanted == true(),
            )
            .order_by(_delivery.c.priority, _delivery.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True, key_share=True)
        )
        .scalars()
        .all()
    )
    if not waiting:
        return []
    connection.execute(
        update(_delivery)
        .where(_delivery.c.id.in_(waiting))
        .values(
            state=delivery_target(DeliveryEvent.CLAIM),
            attempt=_delivery.c.attempt + 1,
            fence=_delivery.c.fence + 1,
            lease_expires_at=after(lease_seconds),
        )
    )
    rows = connection.execute(
        select(_delivery, *_object.c, _sender().label("sender"))
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(_delivery.c.id.in_(waiting))
        .order_by(_delivery.c.priority, _delivery.c.id)
    ).mappings()
    return [
        Delivery(
            id=row[_delivery.c.id],
            destination=row[_delivery.c.destination],
            kind=row[_object.c.kind],
            sop_class_uid=row[_object.c.sop_class_uid],
            sop_instance_uid=row[_object.c.sop_instance_uid],
            transfer_syntax_uid=row[_object.c.transfer_syntax_uid],
            sha256=row[_object.c.sha256],
            attempt=row[_delivery.c.attempt],
            fence=row[_delivery.c.fence],
            sender=row["sender"] or "",
        )
        for row in rows
    ]


def _sender() -> ScalarSelect[str]:
    """Return the AE title that most instances of the study of an object came from."""
    instance, series, result = tables.instance, tables.series, tables.result
    return (
        select(instance.c.calling_ae_title)
        .join(series, series.c.id == instance.c.series_id)
        .join(result, result.c.study_id == series.c.study_id)
        .where(result.c.id == _object.c.result_id, instance.c.own_result == false())
        .group_by(instance.c.calling_ae_title)
        .order_by(func.count().desc(), instance.c.calling_ae_title)
        .limit(1)
        .scalar_subquery()
    )


def accept(connection: Connection, delivery: Delivery, *, status: int, note: str) -> None:
    """Record that the destination took the object. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.ACCEPT, delivery, status=status, reason=note, sent_at=now())


def fail(connection: Connection, delivery: Delivery, *, status: int | None, reason: str, delay_seconds: float) -> None:
    """Record a failure that may pass, and when to try again. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.FAIL, delivery, status=status, reason=reason, available_at=after(delay_seconds))


def refuse(connection: Connection, delivery: Delivery, *, status: int | None, reason: str) -> None:
    """Record that the destination will not take the object: it is held for a person. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.REFUSE, delivery, status=status, reason=reason)


def renew(connection: Connection, waiting: Iterable[Delivery], *, lease_seconds: float) -> set[int]:
    """Extend the leases of what is claimed and has not been sent yet; return what is still to be sent.

    Left out is what another sender took over meanwhile, and what is not wanted any more.
    """
    still = set()
    # In the order in which `keep_wanted` takes them: neither waits for a row while the other waits for its own.
    for delivery in sorted(waiting, key=lambda each: each.id):
        row = connection.execute(
            update(_delivery)
            .where(*_held(delivery), _delivery.c.state == DeliveryState.SENDING, _delivery.c.wanted == true())
            .values(lease_expires_at=after(lease_seconds))
            .returning(_delivery.c.id)
        ).first()
        if row is not None:
            still.add(delivery.id)
    return still


def release(connection: Connection, delivery: Delivery) -> None:
    """Give back what was claimed and not sent. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.RELEASE, delivery, attempt=_delivery.c.attempt - 1)


def requeue(connection: Connection, delivery_id: int) -> None:
    """Send a held or waiting delivery again at once. Raises NotFound."""
    row = connection.execute(
        update(_delivery)
        .where(
            _delivery.c.id == delivery_id,
            _delivery.c.state.in_(delivery_sources(DeliveryEvent.REQUEUE)),
            _delivery.c.wanted == true(),
        )
        .values(state=delivery_target(DeliveryEvent.REQUEUE), available_at=now(), attempt=0)
        .returning(_delivery.c.id)
    ).first()
    if row is None:
        raise NotFound(f"no delivery {delivery_id} of a current result that is held or waits for another attempt")


def listing(
    connection: Connection, *, result_ids: Sequence[int] | None = None, before: int | None = None, limit: int = 1000
) -> list[DeliveryRow]:
    """Return the latest deliveries, of some results or of all, oldest first; with `before`, those made before it."""
    query = (
        select(_delivery, _object.c.result_id, _object.c.kind)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(*earlier(_delivery.c.id, before))
        .order_by(_delivery.c.id.desc())
        .limit(limit)
    )
    if result_ids is not None:
        query = query.where(_object.c.result_id.in_(result_ids))
    return [
        DeliveryRow(
            id=row.id,
            result_id=row.result_id,
            kind=row.kind,
            destination=row.destination,
            state=DeliveryState(row.state),
            attempt=row.attempt,
            status=row.status,
            reason=row.reason,
            wanted=row.wanted,
            available_at=row.available_at,
            sent_at=row.sent_at,
        )
        for row in reversed(connection.execute(query).all())
    ]


def state_counts(connection: Connection) -> dict[tuple[str, DeliveryState], int]:
    """Return how many deliveries each destination has in each state; those left out that are sent or not wanted."""
    counted = select(_delivery.c.destination, _delivery.c.state, func.count()).where(_delivery.c.wanted == true())
    # Each by its own index: what was sent grows for ever.
    return {
        (destination, DeliveryState(state)): count
        for which in (tables.delivery_unsent, tables.delivery_held)
        for destination, state, count in connection.execute(
            counted.where(which).group_by(_delivery.c.destination, _delivery.c.state)
        )
    }


def _expire(connection: Connection, destination: str) -> None:
    over = (
        connection.execute(
            select(_delivery.c.id)
            .where(
                _delivery.c.destination == destination,
                tables.delivery_sending,
                _delivery.c.lease_expires_at < now(),
            )
            .with_for_update(skip_locked=True, key_share=True)
        )
        .scalars()
        .all()
    )
    if over:
        connection.execute(
            update(_delivery)
            .where(_delivery.c.id.in_(over))
            .values(
                state=delivery_target(DeliveryEvent.EXPIRE),
                available_at=now(),
                reason="the sender stopped before it recorded an answer",
            )
        )


def _held(delivery: Delivery) -> tuple[ColumnElement[bool], ...]:
    return (_delivery.c.id == delivery.id, _delivery.c.fence == delivery.fence)


def _apply(connection: Connection, event: DeliveryEvent, delivery: Delivery, **values: object) -> None:
    row = connection.execute(
        update(_delivery)
        .where(*_held(delivery), _delivery.c.state.in_(delivery_sources(event)))
        .values(state=delivery_target(event), lease_expires_at=None, **values)
        .returning(_delivery.c.id)
    ).first()
    if row is None:
        raise LeaseLost(f"delivery {delivery.id}: attempt {delivery.attempt} is over")
