"""What the queue promises, on every database that it runs on."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from queue_samples import OVER, claim, enqueue, get, new_job, received, register, somebody_waits, wait_until
from running import run_together
from sqlalchemy import Connection

from meddaemon.db import jobs
from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.states import JobEvent, JobState

CLAIMER = Path(__file__).with_name("claimer.py")


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def _claim_or_none(database: Database) -> Job | None:
    with database.write() as connection:
        return jobs.claim(connection, worker="another", lease_seconds=60)


def _expire(database: Database) -> list[int]:
    with database.write() as connection:
        return jobs.expire(connection)


def _fail(database: Database, job: Job, *, backoff_seconds: float = 0.0) -> JobState:
    with database.write() as connection:
        return jobs.fail(connection, job, "it failed", backoff_seconds=backoff_seconds)


def _events(database: Database, job_id: int) -> list[JobEvent]:
    with database.read() as connection:
        return [each.event for each in jobs.history(connection, job_id)]


# --- enqueue -----------------------------------------------------------------------------------------------------


def test_what_was_queued_comes_back_as_it_was(database: Database, study: int) -> None:
    new = new_job(study, inputs={"t1": ("a",), "flair": ("b", "c")}, priority=2)
    with database.write() as connection:
        job_id, is_new = jobs.enqueue(connection, new)
        job = jobs.get(connection, job_id)
    assert is_new
    assert {name: getattr(job, name) for name in NEW_JOB_FIELDS} == {
        name: getattr(new, name) for name in NEW_JOB_FIELDS
    }
    assert (job.state, job.attempt, job.fence, job.finished_at) == (JobState.AVAILABLE, 0, 0, None)


NEW_JOB_FIELDS = tuple(new_job(1).__dataclass_fields__)


def test_the_same_work_is_queued_once(database: Database, study: int) -> None:
    with database.write() as connection:
        first, is_new = jobs.enqueue(connection, new_job(study, key="same"))
        again = jobs.enqueue(connection, new_job(study, key="same", priority=0))
    assert is_new
    assert again == (first, False)
    with database.write() as connection:
        assert jobs.enqueue(connection, new_job(study, key="same", generation=2)) == (first, False)
    assert get(database, first).state is JobState.AVAILABLE
    assert get(database, first).priority == 5


def test_the_same_work_asked_for_at_the_same_time_is_queued_once(database: Database, study: int) -> None:
    asked = threading.Event()

    def ask_later() -> tuple[int, bool]:
        assert asked.wait(30)
        with database.write() as connection:
            return jobs.enqueue(connection, new_job(study, key="same"))

    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            first = jobs.enqueue(connection, new_job(study, key="same"))
            later = threads.submit(ask_later)
            asked.set()
            if database.dialect == "postgresql":
                wait_until(lambda: somebody_waits(database) or later.done())
        assert later.result(30) == (first[0], False)


@pytest.mark.parametrize("state", [JobState.AVAILABLE, JobState.RETRYABLE, JobState.EXECUTING])
def test_work_on_an_earlier_generation_is_cancelled(database: Database, study: int, state: JobState) -> None:
    stale = enqueue(database, study, rule="rule")
    if state is not JobState.AVAILABLE:
        held = claim(database)
    if state is JobState.RETRYABLE:
        _fail(database, held)
    fresh = enqueue(database, study, rule="rule", generation=2)
    job = get(database, stale)
    assert (job.state, job.reason) == (JobState.CANCELLED, "not asked for any more since generation 2")
    assert job.finished_at is not None
    assert get(database, fresh).state is JobState.AVAILABLE
    if state is JobState.EXECUTING:
        with pytest.raises(LeaseLost), database.write() as connection:
            jobs.renew(connection, held, lease_seconds=60)


def test_only_the_same_work_is_cancelled(database: Database, study: int) -> None:
    other_study = register(database, received("other", study="9.9", series="9.9.1")).study_id
    done = enqueue(database, study, rule="rule", priority=0)
    with database.write() as connection:
        jobs.complete(connection, _required(jobs.claim(connection, worker="w", lease_seconds=60)))
    kept = [
        enqueue(database, study, rule="rule", model="other"),
        enqueue(database, study, rule="other"),
        enqueue(database, other_study, rule="rule"),
        enqueue(database, study, rule="rule", generation=2),
    ]
    assert [get(database, each).state for each in kept] == [JobState.AVAILABLE] * 4
    assert get(database, done).state is JobState.COMPLETED


def _required(job: Job | None) -> Job:
    assert job is not None
    return job


# --- claim -------------------------------------------------------------------------------------------------------


def test_the_most_urgent_goes_first_then_the_oldest(database: Database, study: int) -> None:
    queued = [enqueue(database, study, priority=priority) for priority in (5, 9, 0, 5, 0)]
    order = [claim(database).id for _ in queued]
    assert order == [queued[2], queued[4], queued[0], queued[3], queued[1]]
    assert _claim_or_none(database) is None


def test_a_claim_is_told_to_everybody(database: Database, study: int) -> None:
    enqueue(database, study)
    job = claim(database, worker="me")
    assert (job.state, job.attempt, job.fence, job.worker) == (JobState.EXECUTING, 1, 1, "me")
    assert get(database, job.id) == job


@pytest.mark.fault(139)
def test_processes_never_claim_the_same_job(database: Database, database_url: str, study: int) -> None:
    queued = {enqueue(database, study, priority=number % 3) for number in range(30)}
    said = run_together(*[[str(CLAIMER), database_url, f"worker {number}"] for number in range(4)])
    claims = [line for written in said for line in written.splitlines()]
    assert sorted(claims) == sorted(f"{job_id} 1" for job_id in queued)


@pytest.mark.fault(139)
def test_threads_never_claim_the_same_job(database: Database, study: int) -> None:
    queued = [enqueue(database, study) for _ in range(24)]
    together = threading.Barrier(8)

    def work(_: int) -> list[int]:
        together.wait(30)
        claimed = []
        while (job := _claim_or_none(database)) is not None:
            claimed.append(job.id)
        return claimed

    with ThreadPoolExecutor(8) as threads:
        claimed = [job_id for each in threads.map(work, range(8)) for job_id in each]
    assert sorted(claimed) == queued


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_claim_does_not_wait_for_another_claim(database: Database, study: int) -> None:
    first, second = enqueue(database, study), enqueue(database, study)
    with database.write() as one, database.write() as other:
        assert _required(jobs.claim(one, worker="one", lease_seconds=60)).id == first
        assert _required(jobs.claim(other, worker="other", lease_seconds=60)).id == second


def test_a_worker_claims_only_what_it_can_run(database: Database, study: int) -> None:
    """A worker with another version of a model, or without it, leaves the job to those who have it."""
    job_id = enqueue(database, study, model_digest="d" * 64)
    for digests in ([], ["e" * 64]):
        with database.write() as connection:
            assert jobs.claim(connection, worker="w", lease_seconds=60, model_digests=digests) is None
    with database.read() as connection:
        assert jobs.waiting_models(connection) == {("model", "d" * 64): 1}
    with database.write() as connection:
        held = jobs.claim(connection, worker="w", lease_seconds=60, model_digests=["e" * 64, "d" * 64])
    assert _required(held).id == job_id
    with database.read() as connection:
        assert jobs.waiting_models(connection) == {}


# --- the lease and its fencing token -----------------------------------------------------------------------------


def test_a_job_whose_lease_is_over_runs_again(database: Database, study: int) -> None:
    enqueue(database, study)
    first = claim(database, lease_seconds=OVER, worker="dead")
    assert _expire(database) == [first.id]
    job = get(database, first.id)
    assert job.state is JobState.RETRYABLE
    # Which worker it was, with its host, is for the history alone: the reason of a failure goes to the PACS.
    assert job.reason == "the worker stopped renewing its lease in attempt 1"
    with database.read() as connection:
        assert jobs.history(connection, job.id)[-1].detail == "worker dead stopped renewing its lease in attempt 1"
    assert (claim(database).fence, get(database, first.id).attempt) == (2, 2)


def test_a_claim_finds_what_a_dead_worker_held(database: Database, study: int) -> None:
    """Nobody else needs to be alive for that."""
    enqueue(database, study)
    first = claim(database, lease_seconds=OVER)
    second = claim(database)
    assert (second.id, second.attempt) == (first.id, 2)
    assert _events(database, first.id) == [JobEvent.CLAIM, JobEvent.EXPIRE, JobEvent.CLAIM]


def test_a_lease_that_is_renewed_is_not_over(database: Database, study: int) -> None:
    enqueue(database, study)
    job = claim(database, lease_seconds=OVER)
    with database.write() as connection:
        jobs.renew(connection, job, lease_seconds=60)
    assert _expire(database) == []
    assert _claim_or_none(database) is None


LATE: dict[str, Callable[[Connection, Job], object]] = {
    "complete": jobs.complete,
    "renew": lambda connection, job: jobs.renew(connection, job, lease_seconds=60),
    "fail": lambda connection, job: jobs.fail(connection, job, "late", backoff_seconds=1),
    "refuse": lambda connection, job: jobs.refuse(connection, job, "late"),
    "release": jobs.release,
}


@pytest.mark.fault(134)
@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("meanwhile", ["taken back", "claimed by another", "cancelled", "claimed again by itself"])
def test_a_worker_that_comes_too_late_writes_nothing(database: Database, study: int, late: str, meanwhile: str) -> None:
    enqueue(database, study)
    held = claim(database, lease_seconds=OVER if meanwhile != "cancelled" else 60)
    if meanwhile == "cancelled":
        with database.write() as connection:
            jobs.cancel(connection, held.id)
    else:
        _expire(database)
    if "claimed" in meanwhile:
        claim(database, worker="other" if "another" in meanwhile else held.worker)
    before, events = get(database, held.id), _events(database, held.id)
    with pytest.raises(LeaseLost, match=f"job {held.id}"), database.write() as connection:
        LATE[late](connection, held)
    assert get(database, held.id) == before
    assert _events(database, held.id) == events


# --- attempts ----------------------------------------------------------------------------------------------------


@pytest.mark.fault(135)
def test_the_backoff_doubles_until_the_job_is_a_dead_letter(database: Database, study: int) -> None:
    job_id = enqueue(database, study, maximum_attempts=4)
    delays = []
    for _ in range(3):
        assert _fail(database, claim(database), backoff_seconds=100) is JobState.RETRYABLE
        with database.read() as connection:
            failed = jobs.history(connection, job_id)[-1]
            delays.append(jobs.get(connection, job_id).available_at - failed.at)
        assert _claim_or_none(database) is None, "claimed before its time"
        _make_due(database, job_id)
    assert [round(delay / timedelta(seconds=100)) for delay in delays] == [1, 2, 4]
    assert _fail(database, claim(database), backoff_seconds=100) is JobState.DISCARDED
    job = get(database, job_id)
    assert (job.state, job.attempt, job.reason) == (JobState.DISCARDED, 4, "it failed")
    assert job.finished_at is not None
    assert _claim_or_none(database) is None
    assert _events(database, job_id)[-1] is JobEvent.EXHAUST


def _make_due(database: Database, job_id: int) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE job SET available_at = 0 WHERE id = {job_id}")


@pytest.mark.fault(135)
def test_a_job_that_kills_its_workers_is_a_dead_letter_in_the_end(database: Database, study: int) -> None:
    job_id = enqueue(database, study, maximum_attempts=2)
    for _ in range(2):
        claim(database, lease_seconds=OVER)
    assert _expire(database) == [job_id]
    job = get(database, job_id)
    assert job.state is JobState.DISCARDED
    assert "attempt 2" in job.reason
    assert job.finished_at is not None
    assert _claim_or_none(database) is None


def test_a_job_that_was_given_back_lost_no_attempt(database: Database, study: int) -> None:
    enqueue(database, study, maximum_attempts=1)
    for round_ in range(3):
        job = claim(database)
        assert (job.attempt, job.fence) == (1, round_ + 1)
        with database.write() as connection:
            jobs.release(connection, job)
        assert get(database, job.id).state is JobState.AVAILABLE
    assert _fail(database, claim(database)) is JobState.DISCARDED


def test_refused_input_is_not_tried_again(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    with database.write() as connection:
        jobs.refuse(connection, _required(jobs.claim(connection, worker="w", lease_seconds=60)), "gap: 3 mm")
    job = get(database, job_id)
    assert (job.state, job.reason, job.attempt) == (JobState.DISCARDED, "gap: 3 mm", 1)
    assert job.finished_at is not None


def test_a_completed_job_is_over_for_good(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    with database.write() as connection:
        held = _required(jobs.claim(connection, worker="w", lease_seconds=OVER))
    with database.write() as connection:
        completed = jobs.complete(connection, held)
    assert completed == get(database, job_id)
    job = get(database, job_id)
    assert job.state is JobState.COMPLETED
    assert job.finished_at is not None
    assert _expire(database) == []
    for operate in (jobs.cancel, jobs.requeue):
        with pytest.raises(NotFound, match="completed"), database.write() as connection:
            operate(connection, job_id)
    for late in LATE.values():
        with pytest.raises(LeaseLost), database.write() as connection:
            late(connection, held)


# --- the operator ------------------------------------------------------------------------------------------------


def test_a_cancelled_job_is_not_claimed_until_it_is_requeued(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    with database.write() as connection:
        jobs.cancel(connection, job_id)
    assert get(database, job_id).finished_at is not None
    assert _claim_or_none(database) is None
    with pytest.raises(NotFound, match="cancelled"), database.write() as connection:
        jobs.cancel(connection, job_id)
    with database.write() as connection:
        jobs.requeue(connection, job_id)
    job = claim(database)
    assert (job.id, job.attempt, job.finished_at) == (job_id, 1, None)


def test_a_requeued_job_has_fresh_attempts_and_waits_no_longer(database: Database, study: int) -> None:
    job_id = enqueue(database, study, maximum_attempts=2)
    _fail(database, claim(database), backoff_seconds=3600)
    with database.write() as connection:
        jobs.requeue(connection, job_id)
    assert get(database, job_id).reason == ""
    assert _fail(database, claim(database)) is JobState.RETRYABLE
    assert _fail(database, claim(database)) is JobState.DISCARDED
    with database.write() as connection:
        jobs.requeue(connection, job_id)
    assert claim(database).fence == 4


def test_a_job_that_waits_or_runs_cannot_be_requeued(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    for _ in range(2):
        with pytest.raises(NotFound, match="does not take"), database.write() as connection:
            jobs.requeue(connection, job_id)
        _claim_or_none(database)


@pytest.mark.parametrize("operate", [jobs.cancel, jobs.requeue, jobs.get])
def test_a_job_that_is_not_there_is_told(database: Database, operate: Callable[[Connection, int], object]) -> None:
    with pytest.raises(NotFound, match="no job 12345"), database.write() as connection:
        operate(connection, 12345)


# --- what is written down ----------------------------------------------------------------------------------------


def test_every_step_is_an_event(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    _fail(database, claim(database, worker="first"))
    held = claim(database, worker="second")
    with database.write() as connection:
        jobs.complete(connection, held)
    with database.read() as connection:
        history = jobs.history(connection, job_id)
    assert [(each.event, each.state, each.attempt, each.worker, each.detail) for each in history] == [
        (JobEvent.CLAIM, JobState.EXECUTING, 1, "first", ""),
        (JobEvent.FAIL, JobState.RETRYABLE, 1, "first", "it failed"),
        (JobEvent.CLAIM, JobState.EXECUTING, 2, "second", ""),
        (JobEvent.COMPLETE, JobState.COMPLETED, 2, "second", ""),
    ]
    assert [each.at for each in history] == sorted(each.at for each in history)


def test_what_the_operator_did_is_not_told_of_a_worker(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    claim(database, worker="it")
    for operate in (jobs.cancel, jobs.requeue):
        with database.write() as connection:
            operate(connection, job_id)
    with database.read() as connection:
        assert [(each.event, each.worker, each.detail) for each in jobs.history(connection, job_id)] == [
            (JobEvent.CLAIM, "it", ""),
            (JobEvent.CANCEL, "", "by the operator"),
            (JobEvent.REQUEUE, "", "by the operator"),
        ]


def test_an_event_without_its_commit_never_was(database: Database, study: int) -> None:
    job_id = enqueue(database, study)

    def stumble() -> None:
        with database.write() as connection:
            assert jobs.claim(connection, worker="w", lease_seconds=60) is not None
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        stumble()
    assert get(database, job_id).state is JobState.AVAILABLE
    assert _events(database, job_id) == []


def test_a_reason_with_any_character_is_kept(database: Database, study: int) -> None:
    """Messages may quote what a hostile file says; PostgreSQL takes no NUL and neither takes half a character."""
    job_id = enqueue(database, study)
    with database.write() as connection:
        held = _required(jobs.claim(connection, worker="w", lease_seconds=60))
        jobs.refuse(connection, held, "not a number: '\0\ud800é'")
    assert get(database, job_id).reason == "not a number: '\ufffd?é'"


def test_lists_and_counts_agree(database: Database, study: int) -> None:
    queued = [enqueue(database, study) for _ in range(3)]
    claim(database)
    with database.read() as connection:
        assert [job.id for job in jobs.listing(connection)] == queued[::-1]
        assert [job.id for job in jobs.listing(connection, state=JobState.EXECUTING)] == queued[:1]
        assert jobs.listing(connection, study_id=study + 1) == []
        assert len(jobs.listing(connection, limit=2)) == 2
        assert jobs.state_counts(connection) == {JobState.AVAILABLE: 2, JobState.EXECUTING: 1}
