"""The outbox: one row for each object and destination, drained apart from the jobs that filled it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select, update

from meddaemon.db import tables
from meddaemon.db.clock import after, now
from meddaemon.domain.errors import LeaseLost, NotFound
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
    available_at: datetime
    sent_at: datetime | None


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
        select(_delivery, *_object.c)
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
        )
        for row in rows
    ]


def accept(connection: Connection, delivery: Delivery, *, status: int, note: str) -> None:
    """Record that the destination took the object. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.ACCEPT, delivery, status=status, reason=note, sent_at=now())


def fail(connection: Connection, delivery: Delivery, *, status: int | None, reason: str, delay_seconds: float) -> None:
    """Record a failure that may pass, and when to try again. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.FAIL, delivery, status=status, reason=reason, available_at=after(delay_seconds))


def refuse(connection: Connection, delivery: Delivery, *, status: int | None, reason: str) -> None:
    """Record that the destination will not take the object: it is held for a person. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.REFUSE, delivery, status=status, reason=reason)


def renew(connection: Connection, waiting: Sequence[Delivery], *, lease_seconds: float) -> None:
    """Extend the leases of what is claimed and has not been sent yet; what another sender took stays its own."""
    for delivery in waiting:
        connection.execute(
            update(_delivery)
            .where(
                _delivery.c.id == delivery.id,
                _delivery.c.fence == delivery.fence,
                _delivery.c.state == DeliveryState.SENDING,
            )
            .values(lease_expires_at=after(lease_seconds))
        )


def release(connection: Connection, delivery: Delivery) -> None:
    """Give back what was claimed and not sent. Raises LeaseLost."""
    _apply(connection, DeliveryEvent.RELEASE, delivery, attempt=_delivery.c.attempt - 1)


def requeue(connection: Connection, delivery_id: int) -> None:
    """Send a held or waiting delivery again at once. Raises NotFound."""
    row = connection.execute(
        update(_delivery)
        .where(_delivery.c.id == delivery_id, _delivery.c.state.in_(delivery_sources(DeliveryEvent.REQUEUE)))
        .values(state=delivery_target(DeliveryEvent.REQUEUE), available_at=now(), attempt=0)
        .returning(_delivery.c.id)
    ).first()
    if row is None:
        raise NotFound(f"no delivery {delivery_id} that is held or waits for another attempt")


def listing(connection: Connection, *, result_ids: Sequence[int] | None = None, limit: int = 1000) -> list[DeliveryRow]:
    """Return the latest deliveries, of some results or of all, oldest first."""
    query = (
        select(_delivery, _object.c.result_id, _object.c.kind)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
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
            available_at=row.available_at,
            sent_at=row.sent_at,
        )
        for row in reversed(connection.execute(query).all())
    ]


def state_counts(connection: Connection) -> dict[tuple[str, DeliveryState], int]:
    """Return how many deliveries each destination has in each state."""
    rows = connection.execute(
        select(_delivery.c.destination, _delivery.c.state, func.count()).group_by(
            _delivery.c.destination, _delivery.c.state
        )
    )
    return {(destination, DeliveryState(state)): count for destination, state, count in rows}


def _expire(connection: Connection, destination: str) -> None:
    connection.execute(
        update(_delivery)
        .where(
            _delivery.c.destination == destination,
            tables.delivery_unsent,
            _delivery.c.state == DeliveryState.SENDING,
            _delivery.c.lease_expires_at < now(),
        )
        .values(
            state=delivery_target(DeliveryEvent.EXPIRE),
            available_at=now(),
            reason="the sender stopped before it recorded an answer",
        )
    )


def _apply(connection: Connection, event: DeliveryEvent, delivery: Delivery, **values: object) -> None:
    held: tuple[ColumnElement[bool], ...] = (_delivery.c.id == delivery.id, _delivery.c.fence == delivery.fence)
    row = connection.execute(
        update(_delivery)
        .where(*held, _delivery.c.state.in_(delivery_sources(event)))
        .values(state=delivery_target(event), lease_expires_at=None, **values)
        .returning(_delivery.c.id)
    ).first()
    if row is None:
        raise LeaseLost(f"delivery {delivery.id}: attempt {delivery.attempt} is over")
