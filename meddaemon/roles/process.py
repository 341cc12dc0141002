"""What every role has: its database, its store, its sign of life, and the signals that it heeds."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meddaemon.config.settings import Settings
from meddaemon.db import processes
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.errors import MeddaemonError
from meddaemon.ingest.quota import Quota
from meddaemon.ingest.receive import Receiver
from meddaemon.ingest.recovery import recover
from meddaemon.ingest.store import InstanceStore
from meddaemon.ingest.volume import open_volume
from meddaemon.telemetry import log

DRAIN_SECONDS = 8.0
"""How long work in hand may go on after SIGTERM; what is not done then is given back or taken up later."""
SIGN_OF_LIFE_SECONDS = 5.0
TICK_SECONDS = 0.5
EXPIRY_WARNING_DAYS = 30
"""How long before its end a certificate is spoken of."""
SUPERVISOR = "MEDDAEMON_SUPERVISOR_PID"
_log = log(__name__)


class Signals(threading.Event):
    """Set by SIGTERM and SIGINT; SIGHUP has `hung_up` called, in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hung_up: Callable[[], None] = lambda: None


@contextmanager
def database_of(settings: Settings, *, check: bool = False) -> Iterator[Database]:
    """Give the database, whose schema is the one that this code needs; `check` has a SQLite file looked through."""
    database = Database(settings.database.url)
    try:
        if check:
            database.require_sound()
        database.require_schema()
        yield database
    finally:
        database.close()


@contextmanager
def announced(database: Database, role: str, address: str, stop: threading.Event) -> Iterator[None]:
    """Say that this process is there, again and again until the end; then that it has gone."""
    name = process_name(role)
    with database.write() as connection:
        processes.announce(
            connection, name=name, role=role, pid=os.getpid(), host=socket.gethostname(), address=address
        )

    def say() -> None:
        while not stop.wait(SIGN_OF_LIFE_SECONDS):
            guarded("sign of life", lambda: _seen(database, name))()

    teller = threading.Thread(target=say, name="sign-of-life", daemon=True)
    teller.start()
    try:
        yield
    finally:
        try:
            with database.write() as connection:
                processes.withdraw(connection, name, os.getpid())
        except DatabaseUnavailable as failure:
            # Its silence will say the same.
            _log.warning("cannot sign off", reason=type(failure).__name__)


def _seen(database: Database, name: str) -> None:
    with database.write() as connection:
        processes.seen(connection, name)


def store_of(settings: Settings, database: Database) -> InstanceStore:
    """Return the store that this database is the index of. Raises VolumeGone when it is not there."""
    return InstanceStore(
        settings.store.directory,
        minimum_free_bytes=settings.store.minimum_free_bytes,
        volume=open_volume(database, settings.store.directory),
    )


@contextmanager
def recovered_store(settings: Settings) -> Iterator[tuple[Database, InstanceStore]]:
    """Give database and store of a role that receives, after a recovery; the supervisor has checked it.

    What was acknowledged before is filed whatever its sender may send now: the quota of the day is no matter here.
    """
    with database_of(settings, check=SUPERVISOR not in os.environ) as database:
        store = store_of(settings, database)
        recover(database, store, receiver_of(settings, database, store))
        yield database, store
        store.close()


def receiver_of(settings: Settings, database: Database, store: InstanceStore, quota: Quota | None = None) -> Receiver:
    """Return the receiver that these settings describe."""
    return Receiver(
        database,
        store,
        quiet_seconds=settings.shortest_quiet_seconds,
        keywords=sorted(settings.keywords),
        quota=quota,
    )


def guarded(name: str, task: Callable[[], object]) -> Callable[[], None]:
    """Let a timed task survive a database that is away for a while; anything else is a defect and is told as one."""

    def run() -> None:
        try:
            task()
        except DatabaseUnavailable as failure:
            _log.error("the database is out of reach", task=name, reason=type(failure).__name__)
        except MeddaemonError as failure:
            _log.error("a timed task failed", task=name, reason=str(failure))

    return run


def wait_until(done: Callable[[], bool], seconds: float) -> None:
    """Wait until it is so, but no longer than so many seconds."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not done() and time.monotonic() < deadline:
        pause.wait(0.05)


def process_name(role: str) -> str:
    """Return how this process is known to the others."""
    return f"{role}@{socket.gethostname()}:{os.getpid()}"
