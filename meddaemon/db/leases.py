"""Rows that are worked under a lease with a fencing token, and go through `DELIVERY_TRANSITIONS`.

What waits to be said to a peer lives so, whatever it is: deliveries, reports on storage commitment, notices.
"""

from typing import Protocol

from sqlalchemy import ColumnElement, Connection, Table, or_, update

from meddaemon.db.clock import after, now
from meddaemon.domain.errors import LeaseLost
from meddaemon.domain.states import DeliveryEvent, DeliveryState, delivery_sources, delivery_target


class Leased(Protocol):
    """A row as whoever claimed it has it: it is his as long as nobody has claimed it since."""

    @property
    def id(self) -> int:
        """Which row it is."""

    @property
    def attempt(self) -> int:
        """How many times it was claimed."""

    @property
    def fence(self) -> int:
        """Grows with every claim."""


def is_due(table: Table, longest_seconds: float) -> ColumnElement[bool]:
    """Return the condition that a row that waits need not wait any more; failures make it wait so long at most.

    A clock that was set back has no say in it: what has not failed is due, and what would have to wait for longer.
    """
    due = (table.c.state == DeliveryState.PENDING, table.c.available_at <= now())
    return or_(*due, table.c.available_at > after(longest_seconds))


def claimed(table: Table, lease_seconds: float) -> dict[str, object]:
    """Return what a claim makes of a row."""
    return {
        "state": delivery_target(DeliveryEvent.CLAIM),
        "attempt": table.c.attempt + 1,
        "fence": table.c.fence + 1,
        "lease_expires_at": after(lease_seconds),
    }


def is_held(table: Table, row: Leased) -> ColumnElement[bool]:
    """Return the condition that a row is still that of the one who claimed it."""
    return (table.c.id == row.id) & (table.c.fence == row.fence)


def give_up(connection: Connection, table: Table, event: DeliveryEvent, row: Leased, **values: object) -> None:
    """End the lease of a row by `event`. Raises LeaseLost where somebody else has it by now."""
    found = connection.execute(
        update(table)
        .where(is_held(table, row), table.c.state.in_(delivery_sources(event)))
        .values(state=delivery_target(event), lease_expires_at=None, **values)
        .returning(table.c.id)
    ).first()
    if found is None:
        raise LeaseLost(f"{table.name} {row.id}: attempt {row.attempt} is over")


def requeue(
    connection: Connection, table: Table, row_id: int, *conditions: ColumnElement[bool], **values: object
) -> bool:
    """Let a row that is held or waits be claimed at once, as if it were new; False where there is none such."""
    return _requeued(connection, table, table.c.id == row_id, *conditions, **values) == 1


def requeue_held(connection: Connection, table: Table, *conditions: ColumnElement[bool], **values: object) -> int:
    """Let all rows that are held, under these conditions, be claimed at once, as if they were new; return how many."""
    return _requeued(connection, table, table.c.state == DeliveryState.HELD, *conditions, **values)


def _requeued(connection: Connection, table: Table, *conditions: ColumnElement[bool], **values: object) -> int:
    return connection.execute(
        update(table)
        .where(table.c.state.in_(delivery_sources(DeliveryEvent.REQUEUE)), *conditions)
        .values(state=delivery_target(DeliveryEvent.REQUEUE), available_at=now(), attempt=0, **values)
    ).rowcount
