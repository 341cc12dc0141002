"""Gates that a job passes to begin: the queue's own, which operators shut, and one for each window of the week.

A gate is open until a time, by the database's clock: a window shuts by itself when nobody keeps it open, and one that
was never opened is shut. Who claims a job and who shuts its gate meet at the gate's row: whichever comes second sees
what the first has done.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, delete, func, select, update

from meddaemon.db import tables
from meddaemon.db.clock import now
from meddaemon.db.insertion import insert_unless_there

QUEUE = ""
"""The gate of all jobs; its row is there from the beginning."""

FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)

_gate = tables.gate


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate; `waiting` is how many jobs wait that name it, and `reason` why an operator shut it."""

    name: str
    open: bool
    open_until: datetime
    reason: str
    changed_at: datetime
    waiting: int


def open_names(connection: Connection) -> list[str]:
    """Return the names of the gates that are open; none at all while the queue's own is shut."""
    names = list(connection.execute(select(_gate.c.name).where(_gate.c.open_until > now())).scalars())
    return sorted(names) if QUEUE in names else []


def passes(connection: Connection, name: str) -> bool:
    """Return whether a job of this gate may begin, and keep the gate from being shut until the transaction ends."""
    wanted = {QUEUE, name}
    rows = connection.execute(
        select(_gate.c.name)
        .where(_gate.c.name.in_(wanted), _gate.c.open_until > now())
        .order_by(_gate.c.id)
        .with_for_update(read=True)
    )
    return set(rows.scalars()) == wanted


def is_open(connection: Connection, name: str) -> bool:
    """Return whether a gate is open, whatever becomes of the queue."""
    wanted = select(_gate.c.id).where(_gate.c.name == name, _gate.c.open_until > now())
    return connection.execute(wanted).first() is not None


def why_shut(connection: Connection, name: str) -> str:
    """Return why no job of this gate may begin, "" when one may."""
    shut = select(_gate.c.reason).where(_gate.c.name == QUEUE, _gate.c.open_until <= now())
    reason = connection.execute(shut).scalar()
    if reason is not None:
        return f"the queue is paused: {reason}"
    return "" if is_open(connection, name) else f"window {name!r} is closed"


def pause(connection: Connection, reason: str) -> None:
    """Shut the queue: no job begins, those that run go on, and what was prepared is given back."""
    _set(connection, QUEUE, open_until=now(), reason=reason)


def resume(connection: Connection) -> None:
    """Open the queue."""
    _set(connection, QUEUE, open_until=FOREVER, reason="")


def keep(connection: Connection, name: str, until: datetime | None) -> bool:
    """Have the gate of a window open until then, or shut; return whether that changes anything."""
    row = connection.execute(select(_gate.c.open_until, now().label("now")).where(_gate.c.name == name)).first()
    if row is None:
        insert_unless_there(connection, _gate, {"name": name, "open_until": 0.0, "reason": "", "changed_at": now()})
    is_open = row is not None and row.open_until > row.now
    if until is None and not is_open:
        return row is None
    if row is not None and row.open_until == until:
        return False
    _set(connection, name, open_until=now() if until is None else until, reason="")
    return True


def remove(connection: Connection, *, but: Collection[str]) -> list[Gate]:
    """Remove the gates of windows that are not there any more; return those for which jobs wait, which never begin."""
    gone = [gate for gate in listing(connection) if gate.name not in {QUEUE, *but}]
    connection.execute(delete(_gate).where(_gate.c.name.in_([gate.name for gate in gone])))
    return [gate for gate in gone if gate.waiting]


def clock(connection: Connection) -> datetime:
    """Return what time it is by the database, whose clock decides when a gate is open."""
    return connection.execute(select(now())).scalar_one()


def listing(connection: Connection) -> list[Gate]:
    """Return every gate, the queue's own first, and also those that jobs name and that are not there."""
    job = tables.job
    waiting = select(job.c.gate, func.count()).where(tables.job_waiting).group_by(job.c.gate)
    counts: dict[str, int] = dict(connection.execute(waiting).all())
    at = clock(connection)
    gates = [
        _as_gate(row, counts.pop(row.name, 0))
        for row in connection.execute(select(_gate, now().label("now")).order_by(_gate.c.name))
    ]
    lost = [
        Gate(
            name=name,
            open=False,
            open_until=at,
            reason="there is no such window any more",
            changed_at=at,
            waiting=count,
        )
        for name, count in sorted(counts.items())
    ]
    return [*gates, *lost]


def _as_gate(row: Row[tuple[object, ...]], waiting: int) -> Gate:
    return Gate(
        name=row.name,
        open=row.open_until > row.now,
        open_until=row.open_until,
        reason=row.reason,
        changed_at=row.changed_at,
        waiting=waiting,
    )


def _set(connection: Connection, name: str, *, open_until: object, reason: str) -> None:
    connection.execute(
        update(_gate).where(_gate.c.name == name).values(open_until=open_until, reason=reason, changed_at=now())
    )
