"""The roles of the daemon and their supervisor: where everything is put together, started, watched and drained.

Each role is a process: `listen` receives by DICOM and `web` by HTTP, `work` runs models, `deliver` owns every timed
thing (completeness, expired leases, deliveries). `serve` runs them all on one machine; on several, each role runs
alone against one database.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

from meddaemon.config.settings import Settings
from meddaemon.db import processes
from meddaemon.db.engine import Database
from meddaemon.domain.errors import MeddaemonError
from meddaemon.durable import try_lock
from meddaemon.ingest.volume import open_volume
from meddaemon.roles.process import SUPERVISOR, Signals
from meddaemon.roles.slots import worker_environments
from meddaemon.telemetry import log

KILL_SECONDS = 13.0
"""When the supervisor ends a role that does not: well before the 15 seconds in which `serve` promises to be gone."""
_PR_SET_PDEATHSIG = 1
_log = log(__name__)


class AlreadyRunning(MeddaemonError):
    """Another `meddaemon serve` works on this store."""


ROLES = ("listen", "web", "work", "deliver")


def run_role(role: str, settings: Settings) -> None:
    """Run one role in this process until SIGTERM or SIGINT."""
    stop = _heed_signals()
    if (supervisor := os.environ.get(SUPERVISOR)) is not None:
        # A supervisor that was killed takes its children with it; nobody else would.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(supervisor):
            return
    # Only what the role needs comes into its process: a listener has no use for encoders, nor a worker for web pages.
    module = import_module(f"meddaemon.roles.{role}")
    run = cast("Callable[[Settings, Signals], None]", getattr(module, role))
    run(settings, stop)


def serve(settings: Settings) -> None:
    """Run every role as a supervised child process until SIGTERM or SIGINT; return once all have ended.

    SIGHUP is passed on to the listener. Raises AlreadyRunning when another `serve` works on the same store.
    """
    stop = _heed_signals()
    database = Database(settings.database.url)
    # Before anything is written: the folder may be one under which the volume is not mounted.
    database.require_sound()
    with only_one(settings.store.directory):
        database.upgrade(create=False)
        open_volume(database, settings.store.directory)
        roles = [
            *["listen"] * settings.listener.processes,
            *["web"] * settings.web.enabled,
            "deliver",
        ]
        workers = worker_environments(settings.worker, os.environ)
        children = [*map(_Child, roles), *(_Child("work", environment=each) for each in workers)]
        ready = False
        stop.hung_up = partial(_hang_up, [child for child in children if child.role == "listen"])
        try:
            while not stop.wait(0.2):
                for child in children:
                    child.keep_running(settings.file)
                if not ready and _all_announced(database, children):
                    ready = True
                    notify("READY=1")
                    _log.info("ready")
        finally:
            notify("STOPPING=1")
            _end(children)
            database.close()


def notify(state: str) -> None:
    """Tell systemd about our state, where it listens (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())


@dataclass
class _Child:
    """A role in a process of its own, started again after ever longer pauses when it ends unasked."""

    role: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its environment has beyond ours."""
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started_at: float = 0.0
    start_after: float = field(default=0.0)

    def hang_up(self) -> None:
        """Pass SIGHUP on."""
        process = self.process
        if process is not None:
            process.send_signal(signal.SIGHUP)

    def keep_running(self, config: Path | None) -> None:
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            self.failures = 1 if now - self.started_at > 60 else self.failures + 1
            self.start_after = now + min(2 ** (self.failures - 1), 30)
            self.process = None
            _log.error("a role ended unasked", role=self.role, code=code, again_in=round(self.start_after - now))
        if self.process is None and now >= self.start_after:
            arguments = [sys.executable, "-m", "meddaemon", self.role]
            if config is not None:
                arguments += ["--config", str(config)]
            self.started_at = now
            environment = {**os.environ, **self.environment, SUPERVISOR: str(os.getpid())}
            self.process = subprocess.Popen(arguments, env=environment)


def _hang_up(children: list[_Child]) -> None:
    for child in children:
        child.hang_up()


def _end(children: list[_Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + KILL_SECONDS
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.error("a role did not end in time and was killed", pid=process.pid)
            process.kill()
            process.wait()


def _all_announced(database: Database, children: list[_Child]) -> bool:
    with database.read() as connection:
        announced = {process.pid for process in processes.listing(connection)}
    return all(child.process is not None and child.process.pid in announced for child in children)


@contextmanager
def only_one(store: Path) -> Iterator[None]:
    """Keep every other `serve` from this store. Raises AlreadyRunning."""
    store.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = try_lock(store / "serve.lock")
    if lock is None:
        raise AlreadyRunning(f"another `meddaemon serve` works on {store}")
    with lock:
        yield


def _heed_signals() -> Signals:
    """Return what SIGTERM, SIGINT and SIGHUP speak to.

    Not set by the handler itself: that runs in the middle of whatever the main thread does, which may be holding
    the event's own lock. The signal's number goes through a pipe to a thread that may wait for it.
    """
    stop = Signals()
    told, teller = os.pipe()
    os.set_blocking(teller, False)
    signal.set_wakeup_fd(teller)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while os.read(told, 1) == bytes([signal.SIGHUP]):
            # Whatever becomes of that, the next signal is heard.
            threading.Thread(target=stop.hung_up, name="hangup", daemon=True).start()
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop
