"""The worker loop: one job at a time, under a lease that a second thread keeps alive."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from meddaemon.db import jobs
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import InputRefused, LeaseLost, MeddaemonError
from meddaemon.telemetry import log

_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker works; times in seconds."""

    lease_seconds: float
    heartbeat_seconds: float
    backoff_seconds: float
    poll_seconds: float
    drain_seconds: float
    model_digests: Collection[str] | None = None
    """The models that this worker can run, as jobs name them; None is any."""


class Worker:
    """Claims jobs and has them worked by `process`; `interrupt` makes a running `process` fail at once.

    `process` must write the result and complete the job in one transaction, and may raise:
    InputRefused (the job is discarded), LeaseLost (nothing is written), anything else (another attempt).
    """

    def __init__(
        self,
        database: Database,
        name: str,
        settings: WorkerSettings,
        process: Callable[[Job], None],
        interrupt: Callable[[], None],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Jobs are only claimed while `ready` says so."""
        self._database = database
        self._name = name
        self._ready = ready
        self._settings = settings
        self._process = process
        self._interrupt = interrupt

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; a job in hand then has `drain_seconds` to finish, else it is given back."""
        while not stop.is_set():
            try:
                worked = self._ready() and self.work_one(stop)
            except DatabaseUnavailable as failure:
                # The database is away: leases run out by themselves, so waiting loses nothing.
                _log.error("cannot reach the queue", reason=type(failure).__name__)
                worked = False
            if not worked:
                stop.wait(self._settings.poll_seconds)

    def work_one(self, stop: threading.Event | None = None) -> bool:
        """Claim and work one job; return False when none waited."""
        asked = time.monotonic()
        with self._database.write() as connection:
            job = jobs.claim(
                connection,
                worker=self._name,
                lease_seconds=self._settings.lease_seconds,
                model_digests=self._settings.model_digests,
            )
        if job is None:
            return False
        _log.info("job claimed", job=job.id, model=job.model, attempt=job.attempt)
        expires = asked + self._settings.lease_seconds
        stopping = stop or threading.Event()
        with _Heartbeat(self._database, job, self._settings, expires, stopping, self._interrupt) as heartbeat:
            outcome = self._attempt(job)
        self._settle(job, outcome, heartbeat)
        return True

    def _attempt(self, job: Job) -> Exception | None:
        try:
            self._process(job)
        except Exception as error:  # noqa: BLE001  one of the four places where errors become outcomes
            return error
        return None

    def _settle(self, job: Job, outcome: Exception | None, heartbeat: "_Heartbeat") -> None:
        """Write down how the attempt ended; a lost lease means that somebody else does."""
        said = {"job": job.id, "model": job.model, "attempt": job.attempt}
        if outcome is None:
            _log.info("job completed", **said)
            return
        try:
            with self._database.write() as connection:
                if heartbeat.lost or isinstance(outcome, LeaseLost):
                    _log.warning("job lost: its lease is over, nothing was written", **said)
                elif heartbeat.draining:
                    jobs.release(connection, job)
                    _log.info("job given back: this worker is stopping", **said)
                elif isinstance(outcome, InputRefused):
                    jobs.refuse(connection, job, str(outcome))
                    _log.warning("job discarded: its input was refused", reason=outcome.reason, **said)
                else:
                    reason = str(outcome) if isinstance(outcome, MeddaemonError) else type(outcome).__name__
                    state = jobs.fail(connection, job, reason, backoff_seconds=self._settings.backoff_seconds)
                    unforeseen = None if isinstance(outcome, MeddaemonError) else outcome
                    _log.error("job failed", state=state.value, reason=reason, exc_info=unforeseen, **said)
        except LeaseLost:
            _log.warning("job lost: its lease is over, nothing was written", **said)


class _Heartbeat:
    """Keeps a lease alive while a job is worked, and interrupts the work when it is lost or the drain time is over."""

    def __init__(
        self,
        database: Database,
        job: Job,
        settings: WorkerSettings,
        expires: float,
        stop: threading.Event,
        interrupt: Callable[[], None],
    ) -> None:
        self.lost = False
        self.draining = False
        self._database = database
        self._job = job
        self._settings = settings
        self._expires = expires  # by the monotonic clock of this process; never later than the database sees it
        self._stop = stop
        self._interrupt = interrupt
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._renew, name=f"lease-{job.id}", daemon=True),
            threading.Thread(target=self._drain, name=f"drain-{job.id}", daemon=True),
        ]

    def __enter__(self) -> "_Heartbeat":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _renew(self) -> None:
        while not self._done.wait(self._settings.heartbeat_seconds):
            try:
                asked = time.monotonic()
                with self._database.write() as connection:
                    jobs.renew(connection, self._job, lease_seconds=self._settings.lease_seconds)
                self._expires = asked + self._settings.lease_seconds
            except LeaseLost:
                if not self._is_completed():
                    self._give_up()
                return
            except DatabaseUnavailable:
                # Away for a moment is survivable as long as the lease lasts.
                if time.monotonic() > self._expires:
                    self._give_up()
                    return

    def _is_completed(self) -> bool:
        """Return whether the lease is gone because the work is done: the commit comes just before its return."""
        with self._database.read() as connection:
            return jobs.is_completed(connection, self._job)

    def _give_up(self) -> None:
        self.lost = True
        self._interrupt()

    def _drain(self) -> None:
        while not self._done.wait(0.2):
            if self._stop.is_set():
                if not self._done.wait(self._settings.drain_seconds):
                    self.draining = True
                    self._interrupt()
                return
