"""A worker with one job running and another one prepared, told by the order in which things happen, not by a clock."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from queue_samples import claim, enqueue, finish, get, received, register, wait_until
from sqlalchemy import select

from meddaemon.db import gates, jobs, tables
from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import InputRefused, ModelFailed
from meddaemon.domain.states import JobEvent, JobState
from meddaemon.jobs.worker import Worker, WorkerSettings

STAGED_WORKER = Path(__file__).with_name("staged_worker.py")
# A worker claims ahead what has waited for two looks at the queue.
SETTINGS = WorkerSettings(
    lease_seconds=30, heartbeat_seconds=0.05, backoff_seconds=0, poll_seconds=0.05, drain_seconds=0.2
)


class Line:
    """Stages that note what begins and ends; a stage of a job that is held goes on once it is let go."""

    def __init__(self, database: Database) -> None:
        self.told: list[str] = []
        self.interrupted = threading.Event()
        self.refused: set[int] = set()
        self._database = database
        self._held: dict[str, threading.Event] = {}

    def hold(self, stage: str, job_id: int) -> threading.Event:
        return self._held.setdefault(f"{stage} {job_id}", threading.Event())

    def has(self, *told: str) -> bool:
        return all(each in self.told for each in told)

    def order(self, stage: str) -> list[int]:
        return [int(each.split()[1]) for each in list(self.told) if each.startswith(f"{stage} ")]

    def prepare(self, job: Job) -> str:
        self._pass("prepare", job)
        if job.id in self.refused:
            raise InputRefused("gap", "it has one")
        return f"input of {job.id}"

    def infer(self, job: Job, prepared: str) -> str:
        assert prepared == f"input of {job.id}"
        self.interrupted.clear()
        self._pass("infer", job)
        return f"output of {job.id}"

    def discard(self, prepared: str) -> None:
        self.told.append(f"discard {prepared.rsplit(maxsplit=1)[-1]}")

    def publish(self, job: Job, inferred: str) -> None:
        assert inferred == f"output of {job.id}"
        self._pass("publish", job)
        with self._database.write() as connection:
            finish(connection, job)

    def interrupt(self) -> None:
        self.interrupted.set()

    def _pass(self, stage: str, job: Job) -> None:
        self.told.append(f"{stage} {job.id}")
        held = self._held.get(f"{stage} {job.id}")
        if held is not None:
            wait_until(lambda: held.is_set() or (stage == "infer" and self.interrupted.is_set()))
            if not held.is_set():
                raise ModelFailed("interrupted")
        self.told.append(f"{stage}d {job.id}")


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


@pytest.fixture
def line(database: Database) -> Line:
    return Line(database)


@contextmanager
def _running(
    database: Database, line: Line, settings: WorkerSettings = SETTINGS, ready: Callable[[], bool] = lambda: True
) -> Iterator[threading.Event]:
    stop = threading.Event()
    failed: list[BaseException] = []
    before = len(line.told)

    def run() -> None:
        try:
            Worker(database, "worker", settings, line, ready).run(stop)
        except BaseException as error:
            failed.append(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        assert failed == []
    # Whatever was prepared was inferred or let go, once.
    told = [each for each in line.told[before:] if not each.startswith(("publish", "inferd"))]
    prepared, used = (
        sorted(int(each.split()[1]) for each in told if each.startswith(stages))
        for stages in (("prepared ",), ("infer ", "discard "))
    )
    assert [each for each in prepared if each not in line.refused] == used


def _events(database: Database, job_id: int) -> list[JobEvent]:
    with database.read() as connection:
        return [each.event for each in jobs.history(connection, job_id)]


def _completed(database: Database, *job_ids: int) -> None:
    wait_until(lambda: all(get(database, each).state is JobState.COMPLETED for each in job_ids), what=f"{job_ids}")


def _resting(database: Database, job_id: int) -> None:
    wait_until(lambda: get(database, job_id).state is JobState.PREPARED, what=f"job {job_id} to rest")


def test_the_next_job_is_prepared_while_one_is_inferred_and_the_one_before_is_published(
    database: Database, study: int, line: Line
) -> None:
    first, second, third = (enqueue(database, study) for _ in range(3))
    inferring, publishing, next_inferring = (
        line.hold("infer", first), line.hold("publish", first), line.hold("infer", second),
    )  # fmt: skip
    with _running(database, line):
        wait_until(lambda: line.has(f"infer {first}", f"prepared {second}"), what="the second to be prepared")
        _resting(database, second)
        assert not line.has(f"inferd {first}")
        inferring.set()
        wait_until(lambda: line.has(f"publish {first}", f"infer {second}", f"prepared {third}"), what="all at once")
        publishing.set()
        next_inferring.set()
        _completed(database, first, second, third)
    assert _events(database, first) == [JobEvent.CLAIM, JobEvent.COMPLETE]
    for job_id in (second, third):
        assert _events(database, job_id) == [JobEvent.CLAIM, JobEvent.PREPARE, JobEvent.START, JobEvent.COMPLETE]
        assert get(database, job_id).attempt == 1
    assert line.order("infer") == [first, second, third]


def test_no_more_than_one_job_is_prepared_ahead(database: Database, study: int, line: Line) -> None:
    queued = [enqueue(database, study) for _ in range(4)]
    let_go = line.hold("infer", queued[0])
    with _running(database, line):
        _resting(database, queued[1])
        with database.read() as connection:
            counts = jobs.state_counts(connection)
        let_go.set()
        _completed(database, *queued)
    assert counts == {JobState.EXECUTING: 1, JobState.PREPARED: 1, JobState.AVAILABLE: 2}


def test_without_prefetch_each_job_is_claimed_when_its_turn_has_come(
    database: Database, study: int, line: Line
) -> None:
    queued = [enqueue(database, study) for _ in range(3)]
    with _running(database, line, replace(SETTINGS, prefetch=False)):
        _completed(database, *queued)
    for before, after in pairwise(queued):
        assert line.told.index(f"inferd {before}") < line.told.index(f"prepare {after}")
        assert _events(database, after) == [JobEvent.CLAIM, JobEvent.COMPLETE]


def test_an_urgent_job_begins_next_though_another_one_was_prepared(database: Database, study: int, line: Line) -> None:
    first, second = enqueue(database, study), enqueue(database, study, maximum_attempts=1)
    let_go = line.hold("infer", first)
    with _running(database, line):
        _resting(database, second)
        urgent = enqueue(database, study, priority=0)
        # It is prepared in its stead while the first one still runs.
        _resting(database, urgent)
        assert get(database, second).state is JobState.AVAILABLE
        let_go.set()
        _completed(database, first, second, urgent)
    assert line.order("infer") == [first, urgent, second]
    assert get(database, second).attempt == 1
    with database.read() as connection:
        told = [each.detail for each in jobs.history(connection, second) if each.event is JobEvent.RELEASE]
    assert told == [f"job {urgent} is more urgent"]


def test_an_urgent_job_that_comes_at_the_last_moment_begins_next(database: Database, study: int, line: Line) -> None:
    """Too late to be claimed ahead, or to be noticed by who prepares: the queue is asked once more at the beginning."""
    first, second = enqueue(database, study), enqueue(database, study)
    let_go = line.hold("infer", first)
    with _running(database, line, replace(SETTINGS, poll_seconds=1)):
        wait_until(lambda: line.has(f"infer {first}"))
        _age(database, second, 60)
        _resting(database, second)
        urgent = enqueue(database, study, priority=0)
        let_go.set()
        _completed(database, first, urgent, second)
    assert line.order("infer") == [first, urgent, second]
    # It was put back once, not again and again.
    assert _events(database, second).count(JobEvent.RELEASE) == 1


def _age(database: Database, job_id: int, seconds: float) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE job SET available_at = available_at - {seconds} WHERE id = {job_id}")


def test_an_urgent_job_begins_next_in_a_batch(database: Database, study: int, line: Line) -> None:
    batch = [enqueue(database, study, model_digest="m" * 64) for _ in range(4)]
    let_go = line.hold("infer", batch[1])
    with _running(database, line, replace(SETTINGS, batch_jobs=10)):
        wait_until(lambda: line.has(f"infer {batch[1]}"))
        urgent = enqueue(database, study, model_digest="u" * 64, priority=0)
        let_go.set()
        _completed(database, urgent, *batch)
    assert line.order("infer") == [*batch[:2], urgent, *batch[2:]]


@pytest.mark.parametrize(
    ("batch_jobs", "order"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 1, 3, 4, 5]), (9, [0, 2, 4, 1, 3, 5])]
)
def test_jobs_of_one_model_follow_each_other_for_as_long_as_a_batch_may_be(
    database: Database, study: int, line: Line, batch_jobs: int, order: list[int]
) -> None:
    queued = [enqueue(database, study, model_digest=digest * 64) for digest in "mnmnmn"]
    with _running(database, line, replace(SETTINGS, batch_jobs=batch_jobs, prefetch=False)):
        _completed(database, *queued)
    assert [queued.index(each) for each in line.order("infer")] == order


def test_a_worker_with_idle_hands_takes_what_a_busy_one_could_prepare(
    database: Database, study: int, line: Line
) -> None:
    """A job is claimed ahead only when it has waited for so long that an idle worker would have taken it."""
    first = enqueue(database, study)
    let_go = line.hold("infer", first)
    with _running(database, line, replace(SETTINGS, poll_seconds=5)):
        wait_until(lambda: line.has(f"infer {first}"))
        second = enqueue(database, study)
        idle = Line(database)
        assert Worker(database, "idle", SETTINGS, idle).work_one()
        let_go.set()
        _completed(database, first, second)
    assert idle.order("infer") == [second]
    assert line.order("prepare") == [first]


@pytest.mark.fault(137)
@pytest.mark.parametrize("gate", ["window", "queue"])
def test_when_a_gate_shuts_what_runs_finishes_and_what_is_prepared_is_given_back(
    database: Database, study: int, line: Line, gate: str
) -> None:
    _set_gate(database, gate, shut=False)
    first, second = (enqueue(database, study, window="nights", maximum_attempts=1) for _ in range(2))
    let_go = line.hold("infer", first)
    with _running(database, line):
        _resting(database, second)
        _set_gate(database, gate, shut=True)
        wait_until(lambda: get(database, second).state is JobState.AVAILABLE, what="the second to be given back")
        assert get(database, first).state is JobState.EXECUTING
        let_go.set()
        _completed(database, first)
        assert line.order("infer") == [first]
        _set_gate(database, gate, shut=False)
        _completed(database, second)
    assert get(database, second).attempt == 1


def _set_gate(database: Database, gate: str, *, shut: bool) -> None:
    with database.write() as connection:
        if gate == "window" or not shut:
            until = gates.clock(connection) + timedelta(hours=1)
            gates.keep(connection, "nights", None if shut else until)
        if gate == "queue":
            (gates.pause(connection, "now") if shut else gates.resume(connection))


def test_a_stopping_worker_gives_back_what_is_prepared_and_finishes_what_runs(
    database: Database, study: int, line: Line
) -> None:
    first, second = (enqueue(database, study, maximum_attempts=1) for _ in range(2))
    let_go = line.hold("infer", first)
    with _running(database, line, replace(SETTINGS, drain_seconds=60)) as stop:
        _resting(database, second)
        stop.set()
        let_go.set()
    assert get(database, first).state is JobState.COMPLETED
    assert (get(database, second).state, get(database, second).attempt) == (JobState.AVAILABLE, 0)
    assert _events(database, second) == [JobEvent.CLAIM, JobEvent.PREPARE, JobEvent.RELEASE]
    assert line.order("infer") == [first]


def test_a_stopping_worker_gives_back_both_when_time_is_over(database: Database, study: int, line: Line) -> None:
    queued = [enqueue(database, study, maximum_attempts=1) for _ in range(2)]
    line.hold("infer", queued[0])
    with _running(database, line) as stop:
        _resting(database, queued[1])
        stop.set()
    for job_id in queued:
        assert (get(database, job_id).state, get(database, job_id).attempt) == (JobState.AVAILABLE, 0)


def test_a_job_that_is_cancelled_while_it_rests_disturbs_nobody(database: Database, study: int, line: Line) -> None:
    first, second, third = (enqueue(database, study) for _ in range(3))
    let_go = line.hold("infer", first)
    with _running(database, line):
        _resting(database, second)
        with database.write() as connection:
            jobs.cancel(connection, second)
        # Its place is free for the next one.
        _resting(database, third)
        assert not line.interrupted.is_set()
        let_go.set()
        _completed(database, first, third)
    assert line.order("infer") == [first, third]


def test_a_running_job_that_is_cancelled_costs_the_prepared_one_nothing(
    database: Database, study: int, line: Line
) -> None:
    first, second = enqueue(database, study), enqueue(database, study, maximum_attempts=1)
    line.hold("infer", first)
    with _running(database, line):
        _resting(database, second)
        with database.write() as connection:
            jobs.cancel(connection, first)
        _completed(database, second)
    assert get(database, first).state is JobState.CANCELLED
    assert line.order("infer") == [first, second]


def test_one_heartbeat_keeps_the_leases_of_both_alive(database: Database, study: int, line: Line) -> None:
    settings = replace(SETTINGS, lease_seconds=1.0, heartbeat_seconds=0.1)
    first, second = enqueue(database, study), enqueue(database, study)
    let_go = line.hold("infer", first)
    with _running(database, line, settings):
        _resting(database, second)
        begun = time.monotonic()

        def outlived() -> bool:
            with database.write() as connection:
                assert jobs.expire(connection) == []
            return time.monotonic() > begun + 3 * settings.lease_seconds

        wait_until(outlived)
        assert {each.name for each in threading.enumerate() if each.name == "leases"} == {"leases"}
        let_go.set()
        _completed(database, first, second)
    assert [get(database, each).attempt for each in (first, second)] == [1, 1]


@pytest.mark.fault(134)
def test_what_was_prepared_under_a_lease_that_is_lost_is_not_begun(database: Database, study: int, line: Line) -> None:
    first, second = enqueue(database, study), enqueue(database, study)
    let_go = line.hold("infer", first)
    with _running(database, line, replace(SETTINGS, heartbeat_seconds=60)):
        _resting(database, second)
        with database.write() as connection:
            connection.exec_driver_sql(f"UPDATE job SET lease_expires_at = 0 WHERE id = {second}")
        owner = claim(database, worker="another")
        assert owner.id == second
        let_go.set()
        _completed(database, first)
        with database.write() as connection:
            finish(connection, owner)
    assert line.order("infer") == [first]
    assert get(database, second).worker == "another"


def test_input_that_is_refused_is_discarded_while_another_job_runs(database: Database, study: int, line: Line) -> None:
    first, bad, third = (enqueue(database, study) for _ in range(3))
    line.refused.add(bad)
    let_go = line.hold("infer", first)
    with _running(database, line):
        _resting(database, third)
        assert get(database, bad).state is JobState.DISCARDED
        let_go.set()
        _completed(database, first, third)
    assert get(database, bad).reason == "gap: it has one"


def test_what_is_prepared_does_not_begin_while_the_volume_is_away(database: Database, study: int, line: Line) -> None:
    first, second = enqueue(database, study), enqueue(database, study, maximum_attempts=1)
    let_go = line.hold("infer", first)
    there = threading.Event()
    there.set()
    with _running(database, line, ready=there.is_set):
        _resting(database, second)
        there.clear()
        let_go.set()
        wait_until(lambda: get(database, second).state is JobState.AVAILABLE)
        assert line.order("infer") == [first]
        there.set()
        _completed(database, first, second)


def test_a_queue_that_is_away_when_a_job_is_prepared_is_asked_all_the_same_before_it_begins(
    database: Database, study: int, line: Line, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = enqueue(database, study), enqueue(database, study)
    let_go, prepare = line.hold("infer", first), line.hold("prepare", second)
    with _running(database, line):
        wait_until(lambda: line.has(f"infer {first}", f"prepare {second}"))
        _rename(database, "job", "away")
        prepare.set()
        wait_until(lambda: "cannot reach the queue" in capfd.readouterr().err)
        _rename(database, "away", "job")
        let_go.set()
        _completed(database, first, second)
    assert _events(database, second) == [JobEvent.CLAIM, JobEvent.PREPARE, JobEvent.START, JobEvent.COMPLETE]


def _rename(database: Database, old: str, new: str) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


def test_a_defect_in_the_preparing_thread_ends_the_worker(database: Database, study: int, line: Line) -> None:
    """Nobody would prepare anything any more, and nobody would know."""

    def ready() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Worker(database, "worker", SETTINGS, line, ready).run(threading.Event())


# --- kill -9 ---------------------------------------------------------------------------------------------------------


@contextmanager
def _process(url: str, name: str, folder: Path, lease_seconds: float) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, str(STAGED_WORKER), url, name, str(folder), str(lease_seconds)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[Any]) -> str:
    assert process.stdout is not None
    return str(process.stdout.readline().strip())


@pytest.mark.fault(126)
def test_a_worker_that_is_killed_with_two_jobs_in_hand_loses_neither_and_each_has_one_result(
    database: Database, database_url: str, study: int, tmp_path: Path
) -> None:
    running, resting = enqueue(database, study), enqueue(database, study, maximum_attempts=1)
    with _process(database_url, "victim", tmp_path, 2) as victim:
        assert _line(victim) == f"prepare {running}"
        # Beside each other.
        assert {_line(victim), _line(victim)} == {f"infer {running}", f"prepare {resting}"}
        _resting(database, resting)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    with _process(database_url, "survivor", tmp_path, 60):
        (tmp_path / "go").touch()
        _completed(database, running, resting)
    assert get(database, running).attempt == 2
    assert get(database, resting).attempt == 1, "the end of its worker was not its doing"
    assert _events(database, resting)[:3] == [JobEvent.CLAIM, JobEvent.PREPARE, JobEvent.RELEASE]
    with database.read() as connection:
        results = list(connection.execute(select(tables.result.c.job_id).order_by(tables.result.c.job_id)).scalars())
    assert results == [running, resting]


@pytest.mark.fault(126)
@pytest.mark.parametrize("stage", ["prepare", "infer", "publish", "published"])
def test_a_worker_that_is_killed_at_any_stage_leaves_one_result(
    database: Database, database_url: str, study: int, tmp_path: Path, stage: str
) -> None:
    """Also between what is written of the result and its commit, and between that and what the worker knows of it."""
    job_id = enqueue(database, study)
    (tmp_path / "go").touch()
    (tmp_path / "poison").write_text(f"{stage} {job_id}")
    with _process(database_url, "victim", tmp_path, 1) as victim:
        assert victim.wait(60) == -signal.SIGKILL
    (tmp_path / "poison").unlink()
    with _process(database_url, "survivor", tmp_path, 60):
        _completed(database, job_id)
    assert get(database, job_id).attempt == (1 if stage == "published" else 2)
    with database.read() as connection:
        assert list(connection.execute(select(tables.result.c.job_id)).scalars()) == [job_id]
        deliveries = list(connection.execute(select(tables.delivery.c.result_object_id)).scalars())
    assert len(deliveries) == len(set(deliveries)) == 2


@pytest.mark.fault(135)
def test_a_job_that_kills_every_worker_ends_as_a_dead_letter_and_the_others_are_done(
    database: Database, database_url: str, study: int, tmp_path: Path
) -> None:
    poison = enqueue(database, study, priority=0, maximum_attempts=2)
    others = [enqueue(database, study) for _ in range(2)]
    (tmp_path / "go").touch()
    (tmp_path / "poison").write_text(f"infer {poison}")
    for _ in range(2):
        with _process(database_url, "victim", tmp_path, 1) as victim:
            assert victim.wait(60) == -signal.SIGKILL
    with _process(database_url, "survivor", tmp_path, 60):
        _completed(database, *others)
        wait_until(lambda: get(database, poison).state is JobState.DISCARDED)
    assert get(database, poison).attempt == 2
    assert "attempt 2" in get(database, poison).reason
