"""Which job may begin, and which goes first: turns, deadlines, batches, gates, on every database."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from queue_samples import OVER, claim, enqueue, finish, get, received, register, somebody_waits, wait_until

from meddaemon.db import gates, jobs
from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.schedule import WhenLate
from meddaemon.domain.states import JobEvent, JobState

AGEING = 600.0
M, N = "m" * 64, "n" * 64


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def _claim(database: Database, **options: Any) -> int | None:
    with database.write() as connection:
        job = jobs.claim(connection, worker="w", lease_seconds=60, ageing_seconds=AGEING, **options)
    return None if job is None else job.id


def _start(database: Database, job: Job) -> bool:
    with database.write() as connection:
        return jobs.start(connection, job, ageing_seconds=AGEING)


def _prepared(database: Database, **options: Any) -> Job:
    held = claim(database, **options)
    with database.write() as connection:
        jobs.prepare(connection, held)
    return held


def _pass(database: Database, seconds: float, *job_ids: int) -> None:
    """Let so much time pass for these jobs: what counts for them is how long ago something was."""
    with database.write() as connection:
        for job_id in job_ids:
            connection.exec_driver_sql(
                f"UPDATE job SET turn_at = turn_at - {seconds}, deadline_at = deadline_at - {seconds}, "
                f"available_at = available_at - {seconds} WHERE id = {job_id}"
            )


def _open(database: Database, window: str, seconds: float | None) -> None:
    with database.write() as connection:
        until = None if seconds is None else gates.clock(connection) + timedelta(seconds=seconds)
        gates.keep(connection, window, until)


def _pause(database: Database) -> None:
    with database.write() as connection:
        gates.pause(connection, "the power is to be cut")


def _resume(database: Database) -> None:
    with database.write() as connection:
        gates.resume(connection)


def _events(database: Database, job_id: int) -> list[JobEvent]:
    with database.read() as connection:
        return [each.event for each in jobs.history(connection, job_id)]


# --- turns -----------------------------------------------------------------------------------------------------------


def test_waiting_makes_a_job_as_urgent_as_a_fresh_one_and_never_more_urgent_than_priority_0(
    database: Database, study: int
) -> None:
    old = enqueue(database, study, priority=5)
    _pass(database, 2.5 * AGEING, old)
    fresh = {priority: enqueue(database, study, priority=priority) for priority in (4, 3, 2, 1)}
    _pass(database, 100 * AGEING, ancient := enqueue(database, study, priority=9))
    urgent = enqueue(database, study, priority=0)
    order = [_claim(database) for _ in range(7)]
    assert order == [urgent, ancient, fresh[1], fresh[2], old, fresh[3], fresh[4]]


def test_the_nearer_its_deadline_the_sooner_a_job_goes(database: Database, study: int) -> None:
    usual = enqueue(database, study, priority=2)
    far = enqueue(database, study, priority=3, deadline_seconds=100 * AGEING)
    near = enqueue(database, study, priority=9, deadline_seconds=AGEING)
    urgent = enqueue(database, study, priority=0, deadline_seconds=1e6)
    assert [_claim(database) for _ in range(4)] == [urgent, near, usual, far]


@pytest.mark.parametrize("when_late", WhenLate)
def test_a_job_that_is_late_runs_or_is_discarded_with_the_reason(
    database: Database, study: int, when_late: WhenLate
) -> None:
    late = enqueue(database, study, deadline_seconds=100, when_late=when_late)
    enqueue(database, study, deadline_seconds=100_000, when_late=when_late, priority=9)
    _pass(database, 101, late)
    if when_late is WhenLate.RUN:
        assert _miss(database) == []
        assert _claim(database) == late
        return
    # It does not begin, even while nobody has set it aside.
    assert _claim(database) != late
    assert _miss(database) == [late]
    job = get(database, late)
    assert job.state is JobState.DISCARDED
    assert job.reason.startswith("it had not begun at its deadline, 20")
    assert job.finished_at is not None
    assert _events(database, late) == [JobEvent.MISS]
    # Who wants it all the same gets it.
    with database.write() as connection:
        jobs.requeue(connection, late)
    assert _miss(database) == []
    assert _claim(database) == late


def _miss(database: Database) -> list[int]:
    with database.write() as connection:
        return jobs.miss(connection)


def test_a_deadline_counts_anew_when_work_is_asked_for_again(database: Database, study: int) -> None:
    first = enqueue(database, study, rule="r", deadline_seconds=100, when_late=WhenLate.DISCARD, inputs={"a": ("1",)})
    work = {"rule": "r", "key": get(database, first).key, "deadline_seconds": 100}
    enqueue(database, study, rule="r", generation=2)
    _pass(database, 101, first)
    assert get(database, first).state is JobState.CANCELLED
    assert enqueue(database, study, generation=3, **work) == first
    assert get(database, first).state is JobState.AVAILABLE
    assert _miss(database) == []


def test_what_runs_at_its_deadline_runs_to_its_end_and_what_only_rests_is_given_back(
    database: Database, study: int
) -> None:
    running = enqueue(database, study, deadline_seconds=100, when_late=WhenLate.DISCARD, priority=0)
    resting = enqueue(database, study, deadline_seconds=100, when_late=WhenLate.DISCARD)
    job = claim(database)
    held = _prepared(database)
    assert (job.id, held.id) == (running, resting)
    _pass(database, 101, running, resting)
    late = get(database, resting)
    assert _miss(database) == []
    assert not _start(database, late)
    assert _miss(database) == [resting]
    with database.write() as connection:
        finish(connection, job)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_takes_jobs_of_its_model_and_never_before_one_that_is_more_urgent(
    database: Database, study: int
) -> None:
    other = enqueue(database, study, model_digest=N, priority=5)
    alike = [enqueue(database, study, model_digest=M, priority=5) for _ in range(2)]
    later = enqueue(database, study, model_digest=M, priority=6)
    assert [_claim(database, like=M) for _ in range(2)] == alike
    assert _claim(database, like=M) == other
    more_urgent = enqueue(database, study, model_digest=N, priority=4)
    another = enqueue(database, study, model_digest=M, priority=5)
    assert _claim(database, like=M) == more_urgent
    assert _claim(database, like=M) == another
    assert _claim(database, like=N) == later


def test_urgent_jobs_go_one_after_the_other_whatever_their_model(database: Database, study: int) -> None:
    queued = [enqueue(database, study, model_digest=digest, priority=0) for digest in (N, M, N, M)]
    assert [_claim(database, like=M) for _ in queued] == queued


def test_waiting_ends_a_batch(database: Database, study: int) -> None:
    """What has waited long enough is more urgent than what the batch would take."""
    waiting = enqueue(database, study, model_digest=N, priority=5)
    alike = enqueue(database, study, model_digest=M, priority=5)
    _pass(database, 1.5 * AGEING, waiting)
    assert _claim(database, like=M) == waiting
    assert _claim(database, like=M) == alike


# --- what is prepared ahead ------------------------------------------------------------------------------------------


def test_a_prepared_job_begins_when_nothing_more_urgent_waits(database: Database, study: int) -> None:
    enqueue(database, study)
    held = _prepared(database)
    enqueue(database, study)
    assert get(database, held.id).state is JobState.PREPARED
    assert _start(database, held)
    assert _events(database, held.id) == [JobEvent.CLAIM, JobEvent.PREPARE, JobEvent.START]
    with database.write() as connection:
        finish(connection, held)


@pytest.mark.parametrize("priority", [0, 4])
def test_a_prepared_job_is_given_back_for_a_more_urgent_one(database: Database, study: int, priority: int) -> None:
    job_id = enqueue(database, study, maximum_attempts=1)
    held = _prepared(database)
    urgent = enqueue(database, study, priority=priority)
    assert not _start(database, held)
    assert (get(database, job_id).state, get(database, job_id).attempt) == (JobState.AVAILABLE, 0)
    assert [_claim(database) for _ in range(2)] == [urgent, job_id]


def test_what_others_cannot_run_does_not_hold_up_what_is_prepared(database: Database, study: int) -> None:
    enqueue(database, study, model_digest=M)
    held = _prepared(database)
    enqueue(database, study, model_digest=N, priority=0)
    with database.write() as connection:
        assert jobs.start(connection, held, model_digests=[M], ageing_seconds=AGEING)


def test_a_prepared_job_is_not_completed_and_its_worker_s_end_costs_it_no_attempt(
    database: Database, study: int
) -> None:
    enqueue(database, study, maximum_attempts=1)
    held = _prepared(database, lease_seconds=OVER, worker="dead")
    with pytest.raises(LeaseLost), database.write() as connection:
        finish(connection, held)
    again = claim(database)
    assert (again.id, again.attempt, again.fence) == (held.id, 1, 2)
    with database.read() as connection:
        released = jobs.history(connection, held.id)[2]
    assert (released.event, released.attempt) == (JobEvent.RELEASE, 0)
    assert released.detail == "worker dead stopped renewing its lease in attempt 1"
    with pytest.raises(LeaseLost), database.write() as connection:
        jobs.start(connection, held)


def test_the_lease_of_a_prepared_job_is_renewed_and_its_job_can_be_cancelled(database: Database, study: int) -> None:
    enqueue(database, study)
    held = _prepared(database, lease_seconds=OVER)
    with database.write() as connection:
        jobs.renew(connection, held, lease_seconds=60)
        assert jobs.expire(connection) == []
        jobs.cancel(connection, held.id)
    with pytest.raises(LeaseLost), database.write() as connection:
        jobs.renew(connection, held, lease_seconds=60)


def test_only_what_others_have_had_time_to_take_is_claimed_ahead(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    assert _claim(database, waited_seconds=5) is None
    _pass(database, 6, job_id)
    assert _claim(database, waited_seconds=5) == job_id


# --- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault(137)
def test_nothing_begins_in_a_window_that_is_closed(database: Database, study: int) -> None:
    queued = enqueue(database, study, window="nights", priority=1)
    always = enqueue(database, study)
    assert _claim(database) == always, "a window that nobody ever opened is closed"
    _open(database, "nights", OVER)
    assert _claim(database) is None, "it closes by the clock of the database, whether anybody looks or not"
    _open(database, "nights", 60)
    assert _claim(database) == queued
    enqueue(database, study, window="nights")
    _open(database, "nights", None)
    assert _claim(database) is None


@pytest.mark.fault(137)
def test_what_runs_at_the_close_finishes_and_what_is_prepared_does_not_begin(database: Database, study: int) -> None:
    _open(database, "nights", 60)
    for _ in range(2):
        enqueue(database, study, window="nights")
    running, resting = claim(database), _prepared(database)
    _open(database, "nights", None)
    assert not _start(database, resting)
    assert get(database, resting.id).state is JobState.AVAILABLE
    with database.write() as connection:
        jobs.renew(connection, running, lease_seconds=60)
        finish(connection, running)


def test_jobs_of_open_windows_go_by_their_turns_as_one_queue(database: Database, study: int) -> None:
    for window in ("nights", "weekends"):
        _open(database, window, 60)
    queued = [enqueue(database, study, window=window) for window in ("weekends", "", "nights", "", "weekends")]
    assert [_claim(database) for _ in queued] == queued


def test_a_window_is_kept_open_and_told_once(database: Database, study: int) -> None:
    def keep(seconds: float | None) -> bool:
        with database.write() as connection:
            return gates.keep(connection, "nights", None if seconds is None else at + timedelta(seconds=seconds))

    with database.read() as connection:
        at = gates.clock(connection)
    assert [keep(each) for each in (None, None, 60, 60, 90, None, None)] == [
        True,
        False,
        True,
        False,
        True,
        True,
        False,
    ]


def test_a_window_that_is_configured_no_longer_is_shut_and_what_waits_for_it_is_told(
    database: Database, study: int
) -> None:
    for window in ("nights", "weekends", "lunch"):
        _open(database, window, 60)
    lost = enqueue(database, study, window="nights")
    with database.write() as connection:
        assert [(gate.name, gate.waiting) for gate in gates.remove(connection, but=["lunch"])] == [("nights", 1)]
    assert _claim(database) is None
    with database.read() as connection:
        assert [(gate.name, gate.open, gate.waiting) for gate in gates.listing(connection)] == [
            ("", True, 0),
            ("lunch", True, 0),
            ("nights", False, 1),
        ]
    with database.write() as connection:
        jobs.hurry(connection, lost)
    assert _claim(database) == lost


def test_a_paused_queue_begins_nothing_and_goes_on_where_it_was(database: Database, study: int) -> None:
    _open(database, "nights", 60)
    for window in ("", "", "nights"):
        enqueue(database, study, window=window)
    running, resting = claim(database), _prepared(database)
    _pause(database)
    with database.read() as connection:
        queue = gates.listing(connection)[0]
    assert (queue.open, queue.reason) == (False, "the power is to be cut")
    assert _claim(database) is None
    assert not _start(database, resting)
    with database.write() as connection:
        finish(connection, running)
    _resume(database)
    assert _claim(database) == resting.id
    with database.read() as connection:
        assert gates.listing(connection)[0].open


def test_why_a_job_does_not_begin_is_told(database: Database, study: int) -> None:
    def why(window: str) -> str:
        with database.read() as connection:
            return gates.why_shut(connection, window)

    assert [why(each) for each in ("", "nights")] == ["", "window 'nights' is closed"]
    _open(database, "nights", 60)
    assert why("nights") == ""
    _pause(database)
    assert {why(each) for each in ("", "nights")} == {"the queue is paused: the power is to be cut"}


def test_leases_run_out_in_a_paused_queue_too(database: Database, study: int) -> None:
    enqueue(database, study)
    held = claim(database, lease_seconds=OVER)
    _pause(database)
    assert _claim(database) is None
    assert get(database, held.id).state is JobState.RETRYABLE


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize("begin", ["claim", "start"])
def test_who_pauses_waits_for_whoever_is_about_to_begin(database: Database, study: int, begin: str) -> None:
    """So after a pause nothing begins any more: what was first is seen to run."""
    enqueue(database, study)
    held = _prepared(database) if begin == "start" else None
    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            assert jobs.start(connection, held) if held else jobs.claim(connection, worker="w", lease_seconds=60)
            paused = threads.submit(_pause, database)
            wait_until(lambda: somebody_waits(database), what="the pause")
            assert not paused.done()
        paused.result(30)
    with database.read() as connection:
        assert jobs.state_counts(connection) == {JobState.EXECUTING: 1}


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_who_begins_waits_for_whoever_is_about_to_pause(database: Database, study: int) -> None:
    enqueue(database, study)
    begun = threading.Event()

    def begin() -> int | None:
        begun.set()
        return _claim(database)

    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            gates.pause(connection, "now")
            claimed = threads.submit(begin)
            assert begun.wait(30)
            wait_until(lambda: somebody_waits(database), what="the claim")
        assert claimed.result(30) is None


# --- the operator ----------------------------------------------------------------------------------------------------


def test_an_operator_lets_a_waiting_job_go_first(database: Database, study: int) -> None:
    urgent = enqueue(database, study, priority=0)
    job_id = enqueue(database, study, window="nights", priority=9, deadline_seconds=100, when_late=WhenLate.DISCARD)
    _pass(database, 101, job_id)
    with database.write() as connection:
        jobs.hurry(connection, job_id)
    assert _miss(database) == []
    assert [_claim(database) for _ in range(2)] == [urgent, job_id]
    assert _events(database, job_id) == [JobEvent.HURRY, JobEvent.CLAIM]


@pytest.mark.parametrize("end", [jobs.cancel, None])
def test_what_does_not_wait_cannot_be_hurried(
    database: Database, study: int, end: Callable[[Any, int], None] | None
) -> None:
    job_id = enqueue(database, study)
    with database.write() as connection:
        if end is None:
            assert jobs.claim(connection, worker="w", lease_seconds=60) is not None
        else:
            end(connection, job_id)
    with pytest.raises(NotFound, match="does not take"), database.write() as connection:
        jobs.hurry(connection, job_id)
