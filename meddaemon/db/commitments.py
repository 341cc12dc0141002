"""Requests for storage commitment: kept before they are answered, worked until the peer has heard the outcome.

They live like deliveries: claimed under a lease with a fencing token, tried again with a growing delay, held for a
person where the peer will not listen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, update

from meddaemon.db import leases, tables
from meddaemon.db.clock import after, now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.db.paging import earlier
from meddaemon.domain.commitment import CommitmentRequest, ReferencedInstance
from meddaemon.domain.errors import NotFound
from meddaemon.domain.states import DeliveryEvent, DeliveryState, delivery_sources, delivery_target

_commitment = tables.commitment


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A request that is being worked."""

    id: int
    request: CommitmentRequest
    attempt: int
    fence: int


@dataclass(frozen=True, kw_only=True)
class CommitmentRow:
    """Where a request stands."""

    id: int
    transaction_uid: str
    calling_ae_title: str
    instances: int
    failed: int | None
    state: DeliveryState
    attempt: int
    reason: str
    asked_at: datetime
    available_at: datetime
    reported_at: datetime | None


def ask(connection: Connection, request: CommitmentRequest) -> bool:
    """Keep a request; return False when the peer used its Transaction UID before for another one.

    The same request again is reported again: its sender may not have heard the first report.
    """
    wanted = [[each.sop_class_uid, each.sop_instance_uid] for each in request.instances]
    mine = (
        _commitment.c.calling_ae_title == request.calling_ae_title,
        _commitment.c.transaction_uid == request.transaction_uid,
    )
    values = {"state": DeliveryState.PENDING, "attempt": 0, "available_at": now(), "reason": ""}
    added = insert_unless_there(
        connection,
        _commitment,
        {
            "transaction_uid": request.transaction_uid,
            "calling_ae_title": request.calling_ae_title,
            "instances": wanted,
            "fence": 0,
            "asked_at": now(),
            **values,
        },
    )
    if added is not None:
        return True
    known = connection.execute(select(_commitment.c.id, _commitment.c.instances).where(*mine).with_for_update()).one()
    if known.instances != wanted:
        return False
    connection.execute(
        update(_commitment)
        .where(_commitment.c.id == known.id, _commitment.c.state != DeliveryState.SENDING)
        .values(**values)
    )
    return True


def claim(connection: Connection, *, lease_seconds: float, longest_seconds: float = math.inf) -> Claim | None:
    """Lease the request that has been waiting for longest, or whose worker died; None when nothing waits.

    `longest_seconds`: see `leases.is_due`.
    """
    connection.execute(
        update(_commitment)
        .where(
            tables.commitment_open,
            _commitment.c.state == DeliveryState.SENDING,
            _commitment.c.lease_expires_at < now(),
        )
        .values(state=delivery_target(DeliveryEvent.EXPIRE), available_at=now())
    )
    candidate = connection.execute(
        select(_commitment.c.id)
        .where(
            tables.commitment_open,
            _commitment.c.state.in_(delivery_sources(DeliveryEvent.CLAIM)),
            leases.is_due(_commitment, longest_seconds),
        )
        .order_by(_commitment.c.available_at, _commitment.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()
    if candidate is None:
        return None
    row = connection.execute(
        update(_commitment)
        .where(_commitment.c.id == candidate)
        .values(leases.claimed(_commitment, lease_seconds))
        .returning(*_commitment.c)
    ).one()
    request = CommitmentRequest(
        transaction_uid=row.transaction_uid,
        calling_ae_title=row.calling_ae_title,
        instances=tuple(
            ReferencedInstance(sop_class_uid=sop_class, sop_instance_uid=instance)
            for sop_class, instance in row.instances
        ),
    )
    return Claim(id=row.id, request=request, attempt=row.attempt, fence=row.fence)


def accept(connection: Connection, claim: Claim, *, failed: int) -> None:
    """Record that the peer has heard the report, with so many failures in it. Raises LeaseLost."""
    leases.give_up(connection, _commitment, DeliveryEvent.ACCEPT, claim, failed=failed, reason="", reported_at=now())


def fail(connection: Connection, claim: Claim, *, reason: str, delay_seconds: float) -> None:
    """Record that the peer could not be told, and when to try again. Raises LeaseLost."""
    leases.give_up(connection, _commitment, DeliveryEvent.FAIL, claim, reason=reason, available_at=after(delay_seconds))


def refuse(connection: Connection, claim: Claim, *, reason: str) -> None:
    """Record that the peer will not listen: a person must look. Raises LeaseLost."""
    leases.give_up(connection, _commitment, DeliveryEvent.REFUSE, claim, reason=reason)


def requeue(connection: Connection, commitment_id: int) -> None:
    """Report again at once. Raises NotFound."""
    if not leases.requeue(connection, _commitment, commitment_id):
        raise NotFound(f"no commitment {commitment_id} that is held or waits for another attempt")


def listing(connection: Connection, *, before: int | None = None, limit: int = 50) -> Sequence[CommitmentRow]:
    """Return the latest requests, oldest first; with `before`, those that came before that one."""
    query = select(_commitment).where(*earlier(_commitment.c.id, before))
    rows = connection.execute(query.order_by(_commitment.c.id.desc()).limit(limit)).all()
    return [
        CommitmentRow(
            id=row.id,
            transaction_uid=row.transaction_uid,
            calling_ae_title=row.calling_ae_title,
            instances=len(row.instances),
            failed=row.failed,
            state=DeliveryState(row.state),
            attempt=row.attempt,
            reason=row.reason,
            asked_at=row.asked_at,
            available_at=row.available_at,
            reported_at=row.reported_at,
        )
        for row in reversed(rows)
    ]


def state_counts(connection: Connection) -> Mapping[DeliveryState, int]:
    """Return how many requests are in each state in which somebody has not heard of it yet."""
    counted = select(_commitment.c.state, func.count()).group_by(_commitment.c.state)
    return {
        DeliveryState(state): count
        for which in (tables.commitment_open, tables.commitment_held)
        for state, count in connection.execute(counted.where(which))
    }
