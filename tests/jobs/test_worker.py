"""The worker on a real queue: what becomes of a job when its work ends in any way, or does not end."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from queue_samples import OneStage, claim, enqueue, finish, get, received, register, somebody_waits, wait_until
from sqlalchemy import select

from meddaemon.db import jobs, tables
from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import InputRefused, LeaseLost, ModelFailed, UnsoundVolume
from meddaemon.domain.states import JobEvent, JobState
from meddaemon.jobs.worker import Worker, WorkerSettings

BLOCKED_WORKER = Path(__file__).with_name("blocked_worker.py")
SETTINGS = WorkerSettings(
    lease_seconds=30, heartbeat_seconds=0.05, backoff_seconds=0, poll_seconds=0.05, drain_seconds=0.2
)


class Interrupted(Exception):
    """What `process` raises when it is interrupted."""


class Work:
    """Work that goes on until it may end or is interrupted; says when it has begun."""

    def __init__(self, database: Database, *, obeys: bool = True) -> None:
        self.begun, self.interrupted, self.may_end = threading.Event(), threading.Event(), threading.Event()
        self._database = database
        self._obeys = obeys

    def process(self, job: Job) -> None:
        self.begun.set()
        wait_until(lambda: self.may_end.is_set() or (self._obeys and self.interrupted.is_set()))
        if not self.may_end.is_set():
            raise Interrupted
        with self._database.write() as connection:
            finish(connection, job)

    def interrupt(self) -> None:
        self.interrupted.set()


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def _worker(
    database: Database,
    process: Callable[[Job], None],
    interrupt: Callable[[], None] = lambda: None,
    settings: WorkerSettings = SETTINGS,
) -> Worker[None, None]:
    return Worker(database, "worker", settings, OneStage(process, interrupt))


@contextmanager
def _running(worker: Worker[Any, Any]) -> Iterator[threading.Event]:
    """Run a worker in a thread and give the event that stops it."""
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def _events(database: Database, job_id: int) -> list[JobEvent]:
    with database.read() as connection:
        return [each.event for each in jobs.history(connection, job_id)]


def _results(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.execute(select(tables.result.c.job_id)).scalars())


def _raise(error: Exception) -> Callable[[Job], None]:
    def process(_: Job) -> None:
        raise error

    return process


def test_a_worker_completes_what_waits_and_then_finds_nothing(database: Database, study: int) -> None:
    queued = [enqueue(database, study) for _ in range(2)]

    def process(job: Job) -> None:
        with database.write() as connection:
            finish(connection, job)

    worker = _worker(database, process)
    assert [worker.work_one() for _ in range(3)] == [True, True, False]
    assert [get(database, each).state for each in queued] == [JobState.COMPLETED] * 2
    assert _results(database) == queued


def test_refused_input_discards_the_job_at_once(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    refused = UnsoundVolume("gap", "8 mm between planes 3 and 4", sop_instance_uid="1.2.3.4")
    assert _worker(database, _raise(refused)).work_one()
    job = get(database, job_id)
    assert (job.state, job.attempt) == (JobState.DISCARDED, 1)
    assert job.reason == "gap: 8 mm between planes 3 and 4 (instance 1.2.3.4)"
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.REFUSE]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelFailed("it ran out of time"), "it ran out of time"),
        # The message of a stranger may name a patient: its kind must do.
        (ValueError("DOE^JANE"), "ValueError"),
        (OSError(28, "No space left", "/secret"), "OSError"),
    ],
)
def test_a_failure_is_tried_again_until_attempts_are_used_up(
    database: Database, study: int, error: Exception, reason: str
) -> None:
    job_id = enqueue(database, study, maximum_attempts=2)
    worker = _worker(database, _raise(error))
    assert worker.work_one()
    assert (get(database, job_id).state, get(database, job_id).reason) == (JobState.RETRYABLE, reason)
    assert worker.work_one()
    assert not worker.work_one()
    assert get(database, job_id).state is JobState.DISCARDED
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.FAIL, JobEvent.CLAIM, JobEvent.EXHAUST]


def test_one_bad_job_does_not_hold_up_the_next(database: Database, study: int) -> None:
    bad = enqueue(database, study, priority=0, maximum_attempts=1)
    good = enqueue(database, study)

    def process(job: Job) -> None:
        if job.id == bad:
            raise InputRefused("bad", "this one never works")
        with database.write() as connection:
            finish(connection, job)

    with _running(_worker(database, process)):
        wait_until(lambda: get(database, good).state is JobState.COMPLETED)
    assert get(database, bad).state is JobState.DISCARDED


def test_a_lease_is_kept_alive_for_as_long_as_the_work_takes(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    work = Work(database)
    settings = WorkerSettings(
        lease_seconds=1.0, heartbeat_seconds=0.1, backoff_seconds=0, poll_seconds=0.05, drain_seconds=0
    )
    with _running(_worker(database, work.process, work.interrupt, settings)):
        assert work.begun.wait(30)
        begun = time.monotonic()

        def outlived() -> bool:
            with database.write() as connection:
                assert jobs.claim(connection, worker="another", lease_seconds=60) is None
            return time.monotonic() > begun + 3 * settings.lease_seconds

        wait_until(outlived)
        work.may_end.set()
        wait_until(lambda: get(database, job_id).state is JobState.COMPLETED)
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.COMPLETE]


def test_a_cancelled_job_is_interrupted_and_writes_nothing(database: Database, study: int) -> None:
    job_id, next_id = enqueue(database, study, priority=0), enqueue(database, study)
    work = Work(database)
    with _running(_worker(database, work.process, work.interrupt)):
        assert work.begun.wait(30)
        with database.write() as connection:
            jobs.cancel(connection, job_id)
        assert work.interrupted.wait(30)
        work.may_end.set()
        wait_until(lambda: get(database, next_id).state is JobState.COMPLETED)
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.CANCEL]
    assert _results(database) == [next_id]


def test_work_that_cannot_be_interrupted_writes_nothing_either(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    work = Work(database, obeys=False)
    with _running(_worker(database, work.process, work.interrupt)):
        assert work.begun.wait(30)
        with database.write() as connection:
            jobs.cancel(connection, job_id)
        assert work.interrupted.wait(30)
        work.may_end.set()
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.CANCEL]
    assert _results(database) == []


def test_a_stopping_worker_lets_its_job_finish(database: Database, study: int) -> None:
    job_id, waiting = enqueue(database, study), enqueue(database, study)
    work = Work(database)
    settings = WorkerSettings(
        lease_seconds=30, heartbeat_seconds=1, backoff_seconds=0, poll_seconds=0.05, drain_seconds=60
    )
    with _running(_worker(database, work.process, work.interrupt, settings)) as stop:
        assert work.begun.wait(30)
        stop.set()
        work.may_end.set()
    assert get(database, job_id).state is JobState.COMPLETED
    assert get(database, waiting).state is JobState.AVAILABLE
    assert not work.interrupted.is_set()


def test_a_stopping_worker_gives_back_what_takes_too_long(database: Database, study: int) -> None:
    job_id = enqueue(database, study, maximum_attempts=1)
    work = Work(database)
    with _running(_worker(database, work.process, work.interrupt)) as stop:
        assert work.begun.wait(30)
        stop.set()
    assert work.interrupted.is_set()
    assert (get(database, job_id).state, get(database, job_id).attempt) == (JobState.AVAILABLE, 0)
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.RELEASE]


def test_a_stopped_worker_claims_nothing(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    stop = threading.Event()
    stop.set()
    _worker(database, _raise(AssertionError("was worked"))).run(stop)
    assert get(database, job_id).state is JobState.AVAILABLE


def test_a_worker_whose_lease_is_lost_leaves_the_job_to_its_new_owner(database: Database, study: int) -> None:
    enqueue(database, study)
    settings = WorkerSettings(
        lease_seconds=-1, heartbeat_seconds=60, backoff_seconds=0, poll_seconds=0.05, drain_seconds=0
    )
    owners = []

    def process(job: Job) -> None:
        owners.append(claim(database, worker="another"))
        with pytest.raises(LeaseLost), database.write() as connection:
            finish(connection, job)
        raise ModelFailed("which must not be written down")

    _worker(database, process, settings=settings).work_one()
    (owner,) = owners
    assert get(database, owner.id) == owner
    assert _results(database) == []
    with database.write() as connection:
        finish(connection, owner)
    assert _results(database) == [owner.id]


def test_a_worker_outlives_a_queue_that_is_away(
    database: Database, study: int, capfd: pytest.CaptureFixture[str]
) -> None:
    job_id = enqueue(database, study)
    _move(database, "job", "away")

    def process(job: Job) -> None:
        with database.write() as connection:
            finish(connection, job)

    with _running(_worker(database, process)):
        wait_until(lambda: "cannot reach the queue" in capfd.readouterr().err)
        _move(database, "away", "job")
        wait_until(lambda: get(database, job_id).state is JobState.COMPLETED)


def test_work_ends_when_its_lease_cannot_be_renewed_in_time(database: Database, study: int) -> None:
    """Nobody says that the lease is lost; that it must be follows from the time that has passed."""
    job_id = enqueue(database, study)
    work = Work(database)
    settings = WorkerSettings(
        lease_seconds=1.0, heartbeat_seconds=0.1, backoff_seconds=0, poll_seconds=0.05, drain_seconds=0
    )
    with _running(_worker(database, work.process, work.interrupt, settings)):
        assert work.begun.wait(30)
        _move(database, "job", "away")
        assert work.interrupted.wait(30)
        _move(database, "away", "job")
        wait_until(lambda: len(_events(database, job_id)) >= 3)
    assert _events(database, job_id)[:3] == [JobEvent.CLAIM, JobEvent.EXPIRE, JobEvent.CLAIM]


def _move(database: Database, old: str, new: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


# --- kill -9 -----------------------------------------------------------------------------------------------------


def _start(url: str, name: str, gate: Path, lease_seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(BLOCKED_WORKER), url, name, str(gate), str(lease_seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def _ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.fault(126)
def test_the_job_of_a_killed_worker_runs_again_within_its_lease_and_has_one_result(
    database: Database, database_url: str, study: int, tmp_path: Path
) -> None:
    job_id = enqueue(database, study)
    gate = tmp_path / "gate"
    with _ended(_start(database_url, "victim", gate, 2)) as victim:
        assert _line(victim) == f"{job_id} 1 1"
        with _ended(_start(database_url, "survivor", gate, 2)) as survivor:
            victim.send_signal(signal.SIGKILL)
            killed = time.monotonic()
            victim.wait()
            assert _line(survivor) == f"{job_id} 2 2"
            again_after = time.monotonic() - killed
            gate.touch()
            assert _line(survivor) == "completed"
    # A lease, a look at the queue, and what a busy machine takes to start the second worker.
    assert again_after < 2 + 0.1 + 10
    assert _results(database) == [job_id]
    assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.EXPIRE, JobEvent.CLAIM, JobEvent.COMPLETE]
    assert get(database, job_id).worker == "survivor"


@pytest.mark.fault(134)
def test_a_worker_that_was_stopped_past_its_lease_writes_nothing_when_it_goes_on(
    database: Database, database_url: str, study: int, tmp_path: Path
) -> None:
    """The fencing token, not the clock of the worker, decides."""
    job_id = enqueue(database, study)
    gate = tmp_path / "gate"
    with _ended(_start(database_url, "sleeper", gate, 1)) as sleeper:
        assert _line(sleeper) == f"{job_id} 1 1"
        sleeper.send_signal(signal.SIGSTOP)
        with _ended(_start(database_url, "other", gate, 1)) as other:
            assert _line(other) == f"{job_id} 2 2"
            gate.touch()
            assert _line(other) == "completed"
        next_id = enqueue(database, study)
        sleeper.send_signal(signal.SIGCONT)
        # It goes on to the end of its work, learns there that it is too late, and takes the next job.
        assert _line(sleeper) == f"{next_id} 1 1"
        assert _line(sleeper) == "completed"
    assert _results(database) == [job_id, next_id]
    assert get(database, job_id).worker == "other"
    assert _events(database, job_id).count(JobEvent.COMPLETE) == 1


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_heartbeat_that_meets_the_completion_leaves_the_model_alone(database: Database, study: int) -> None:
    """It waits for the commit, and then finds no lease to renew: the work is done, not lost."""
    job_id = enqueue(database, study)
    interrupts: list[None] = []

    def process(job: Job) -> None:
        with database.write() as connection:
            finish(connection, job)
            wait_until(lambda: somebody_waits(database), what="the heartbeat")

    assert _worker(database, process, lambda: interrupts.append(None)).work_one()
    assert get(database, job_id).state is JobState.COMPLETED
    assert interrupts == []


@pytest.mark.fault(104)
def test_a_worker_without_the_store_s_volume_claims_nothing_until_it_is_there(database: Database, study: int) -> None:
    """Every job would fail for a reason that is not its own, and use up its attempts."""
    queued = enqueue(database, study)
    asked, there = threading.Semaphore(0), threading.Event()

    def ready() -> bool:
        asked.release()
        return there.is_set()

    def process(job: Job) -> None:
        with database.write() as connection:
            finish(connection, job)

    with _running(Worker(database, "worker", SETTINGS, OneStage(process), ready)):
        for _ in range(3):
            assert asked.acquire(timeout=30)
        assert (get(database, queued).state, get(database, queued).attempt) == (JobState.AVAILABLE, 0)
        there.set()
        wait_until(lambda: get(database, queued).state is JobState.COMPLETED)
