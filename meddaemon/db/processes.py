"""Which processes of the daemon are alive, and where they listen."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from meddaemon.db import tables
from meddaemon.db.clock import after, now

_process = tables.process


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process; `address` is `host:port` for a listener; `silent_for` is seconds since its last sign of life."""

    name: str
    role: str
    pid: int
    host: str
    address: str
    started_at: datetime
    silent_for: float


def announce(connection: Connection, *, name: str, role: str, pid: int, host: str, address: str = "") -> None:
    """Say that a process has started; one that was killed and has been silent for an hour is forgotten."""
    connection.execute(delete(_process).where((_process.c.name == name) | (_process.c.seen_at < after(-3600))))
    connection.execute(
        insert(_process).values(
            name=name, role=role, pid=pid, host=host, address=address, started_at=now(), seen_at=now()
        )
    )


def seen(connection: Connection, name: str) -> None:
    """Say that a process is alive."""
    connection.execute(update(_process).where(_process.c.name == name).values(seen_at=now()))


def withdraw(connection: Connection, name: str, pid: int) -> None:
    """Say that a process has ended in good order."""
    connection.execute(delete(_process).where(_process.c.name == name, _process.c.pid == pid))


def listing(connection: Connection) -> list[Process]:
    """Return the processes that have started and not ended in good order."""
    rows = connection.execute(select(_process, now().label("time")).order_by(_process.c.role, _process.c.name))
    return [
        Process(
            name=row.name,
            role=row.role,
            pid=row.pid,
            host=row.host,
            address=row.address,
            started_at=row.started_at,
            silent_for=(row.time - row.seen_at).total_seconds(),
        )
        for row in rows
    ]
