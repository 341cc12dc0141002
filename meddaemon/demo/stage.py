"""The stage of the demo: a PACS and a scanner that are ours, and the real daemon between them, on loopback."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from meddaemon.config.settings import Settings
from meddaemon.db import processes
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.errors import MeddaemonError
from meddaemon.durable import Staging, write_new
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.ingest.store import as_part10
from meddaemon.results.dimse import RemoteEntity, store
from meddaemon.results.transport import Outgoing, Verdict

START_SECONDS, STOP_SECONDS = 60.0, 20.0
T = TypeVar("T")


class DemoFailed(MeddaemonError):
    """The demo did not come to its end; the message says where it stopped."""


class Pacs:
    """The demo's PACS: keeps every object that arrives as a file named by its kind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staging = Staging(folder / "incoming")

    def take(self, incoming: Incoming) -> None:
        """Keep one object."""
        content = as_part10(
            incoming.data,
            sop_class_uid=incoming.sop_class_uid,
            sop_instance_uid=incoming.sop_instance_uid,
            transfer_syntax_uid=incoming.transfer_syntax_uid,
        )
        write_new(self._folder / f"{incoming.sop_instance_uid}.dcm", content, self._staging)

    @contextmanager
    def listening(self) -> Iterator[Listener]:
        """Serve on a port of the system's choice."""
        settings = ListenerSettings(
            ae_title="DEMO_PACS",
            host="127.0.0.1",
            port=0,
            maximum_associations=4,
            maximum_pdu_bytes=131_072,
            idle_timeout_seconds=60,
            association_timeout_seconds=30,
            message_timeout_seconds=60,
        )
        with Listener(settings, self.take) as listener:
            yield listener
        self._staging.close()


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A daemon that runs: its supervisor's process id, its database and where it listens."""

    pid: int
    database: Database
    host: str
    port: int


@contextmanager
def running_daemon(settings: Settings, folder: Path) -> Iterator[Daemon]:
    """Run `meddaemon serve`, logging to `daemon.log` in `folder`; give it once every role is there."""
    database = Database(settings.database.url)
    database.upgrade()
    with (folder / "daemon.log").open("wb") as logs:
        process = subprocess.Popen(
            [sys.executable, "-m", "meddaemon", "serve", "--config", str(settings.file)],
            stdout=logs,
            stderr=logs,
            stdin=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if not key.startswith("MEDDAEMON_")},
        )
        try:
            address = poll(lambda: _address(database, process), START_SECONDS, "the daemon to start")
            host, _, port = address.rpartition(":")
            yield Daemon(pid=process.pid, database=database, host=host, port=int(port))
        finally:
            database.close()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(database: Database, process: subprocess.Popen[bytes]) -> str | None:
    if process.poll() is not None:
        raise DemoFailed(f"the daemon ended with exit code {process.returncode}; see daemon.log in the demo's folder")
    try:
        database.require_schema()
        with database.read() as connection:
            running = {each.role: each.address for each in processes.listing(connection)}
    except (MeddaemonError, DatabaseUnavailable):
        return None  # the daemon has not made its database yet
    return running["listen"] if {"listen", "work", "deliver"} <= set(running) else None


def send(series: list[Path], remote: RemoteEntity) -> None:
    """Send a series by C-STORE; every image must be taken. Raises DemoFailed."""
    outgoing = [_outgoing(path) for path in series]
    for answer in store(remote, outgoing):
        if answer.verdict is not Verdict.TAKEN:
            raise DemoFailed(f"{answer.outgoing.path.name} was not taken: {answer.reason}")


def _outgoing(path: Path) -> Outgoing:
    incoming = read_part10(path)
    return Outgoing(
        path=path,
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
    )


def poll(look: Callable[[], T | None], seconds: float, what: str) -> T:
    """Return what `look` finds, asking again and again. Raises DemoFailed when nothing has come in time."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        pause.wait(0.1)
    raise DemoFailed(f"waited {seconds:.0f} s for {what} in vain; see daemon.log in the demo's folder")
