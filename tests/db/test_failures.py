"""Failures in the database: who is to tell of one finds it once, and it counts while it is how its job has ended."""

from collections.abc import Callable

import pytest
from queue_samples import OUTLETS, OVER, claim, enqueue, finish, get, received, register, stored_objects
from sqlalchemy import text

from meddaemon.db import deliveries, failures, jobs, outcomes, requests, results
from meddaemon.db.engine import Database
from meddaemon.db.failures import STRANGE_SECONDS, Failure
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import LeaseLost
from meddaemon.domain.filters import parse_filter
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import Analysis, ResultStatus
from meddaemon.domain.schedule import WhenLate
from meddaemon.domain.states import JobState

DIGEST = "d" * 64
ALL = dict.fromkeys(OUTLETS, Outlet(kinds=("SEG", "SR"), statuses=tuple(ResultStatus)))


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def _open(database: Database, *, lease_seconds: float = 60.0, digest: str = DIGEST) -> Failure | None:
    with database.write() as connection:
        return failures.claim(connection, model_digests=[digest], lease_seconds=lease_seconds)


def _told(database: Database, failure: Failure, *, documented: bool = True) -> int:
    """Tell of a failure as the pipeline does; return the number of the result."""
    kinds = [f"SR{failure.job.fence}"] if documented else []
    with database.write() as connection:
        failures.conclude(connection, failure)
        return results.record(
            connection,
            failure.job,
            Analysis(status=ResultStatus.FAILED, reason=failure.job.reason, segments=(), findings=()),
            stored_objects(failure.job, kinds),
            model_version="1",
            series_instance_uid=failure.series_instance_uid,
            provenance={},
            seconds={},
            outlets={"pacs": Outlet(kinds=tuple(kinds), statuses=tuple(ResultStatus))},
        )


def _refused(database: Database) -> Job:
    job = claim(database)
    with database.write() as connection:
        jobs.refuse(connection, job, "gap: 8 mm")
    return get(database, job.id)


def _failed(database: Database, *, documented: bool = True) -> int:
    """Refuse the next job and tell of it."""
    _refused(database)
    failure = _open(database)
    assert failure is not None
    return _told(database, failure, documented=documented)


def _requeue(database: Database, job_id: int) -> None:
    with database.write() as connection:
        requests.requeue(connection, job_id)


def _current(database: Database, study: int) -> list[int]:
    with database.read() as connection:
        return [each.id for each in results.heads(connection, study_id=study) if each.current]


def _predecessor(database: Database, job_id: int) -> set[int]:
    with database.read() as connection:
        return {each.result_id for each in results.predecessor_objects(connection, jobs.get(connection, job_id))}


def _wanted(database: Database) -> dict[int, bool]:
    with database.read() as connection:
        return {each.result_id: each.wanted for each in deliveries.listing(connection)}


# --- every way in -------------------------------------------------------------------------------------------------


def _exhaust(database: Database) -> None:
    job = claim(database)
    with database.write() as connection:
        jobs.fail(connection, job, "the model raised", backoff_seconds=0)


def _expire(database: Database) -> None:
    claim(database, lease_seconds=OVER)
    with database.write() as connection:
        jobs.expire(connection)


def _miss(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE job SET deadline_at = 1"))
        jobs.miss(connection)


@pytest.mark.parametrize("discard", [_refused, _exhaust, _expire, _miss])
def test_whatever_way_a_job_fails_it_is_told_of_once(
    database: Database, study: int, discard: Callable[[Database], object]
) -> None:
    late = {"deadline_seconds": 60.0, "when_late": WhenLate.DISCARD}
    job_id = enqueue(database, study, maximum_attempts=1, **late)
    assert _open(database) is None
    discard(database)
    job = get(database, job_id)
    assert job.state is JobState.DISCARDED
    failure = _open(database)
    assert failure is not None
    assert (failure.job.reason, failure.tries) == (job.reason, 1)
    assert _open(database) is None
    result = _told(database, failure)
    with pytest.raises(LeaseLost):
        _told(database, failure)
    assert _open(database) is None
    assert _current(database, study) == [result]
    with database.read() as connection:
        (head,) = results.heads(connection, study_id=study)
        assert (head.status, head.reason) == (ResultStatus.FAILED, job.reason)
        assert results.query(connection, superseded=True) == []
        assert outcomes.outcomes(connection, "model") == []
        assert connection.execute(text("SELECT status FROM v_result")).scalars().all() == ["failed"]


def test_who_dies_while_he_tells_of_a_failure_is_followed_by_another(database: Database, study: int) -> None:
    enqueue(database, study)
    _refused(database)
    first, second = _open(database, lease_seconds=OVER), _open(database)
    assert first is not None
    assert second is not None
    assert second.tries == 2
    with pytest.raises(LeaseLost):
        _told(database, first)
    with pytest.raises(LeaseLost), database.write() as connection:
        failures.postpone(connection, first, delay_seconds=0)
    with database.write() as connection:
        failures.postpone(connection, second, delay_seconds=60)
    assert _open(database) is None
    with pytest.raises(LeaseLost):
        _told(database, failures.Failure(job=second.job, series_instance_uid="", tries=1))
    assert _current(database, study) == []


def test_a_job_that_is_queued_again_is_not_told_of(database: Database, study: int) -> None:
    job_id = enqueue(database, study, maximum_attempts=1, deadline_seconds=60.0, when_late=WhenLate.DISCARD)
    _refused(database)
    failure = _open(database)
    assert failure is not None
    _requeue(database, job_id)
    with pytest.raises(LeaseLost):
        _told(database, failure)
    # Nor is who began before told of the next failure, to which no claim led.
    _miss(database)
    with pytest.raises(LeaseLost):
        _told(database, failure)
    _requeue(database, job_id)
    with database.write() as connection:
        jobs.cancel(connection, job_id)
    assert _open(database) is None


def test_what_nobody_asks_for_is_told_of_when_somebody_does_again(database: Database, study: int) -> None:
    job_id = enqueue(database, study, rule="rule", key="first")
    _refused(database)
    claimed = _open(database, lease_seconds=OVER)
    assert claimed is not None
    enqueue(database, study, rule="rule", key="second", generation=2)
    with pytest.raises(LeaseLost, match="nobody asks"):
        _told(database, claimed)
    assert _open(database) is None
    enqueue(database, study, rule="rule", key="first", generation=3)
    again = _open(database)
    assert again is not None
    assert again.job.id == job_id


def test_a_failure_of_a_model_that_is_not_here_is_left_for_a_while_to_who_has_it(
    database: Database, study: int
) -> None:
    enqueue(database, study)
    _refused(database)
    assert _open(database, digest="e" * 64) is None
    with database.write() as connection:
        connection.execute(text(f"UPDATE job SET finished_at = finished_at - {STRANGE_SECONDS}"))
    assert _open(database, digest="e" * 64) is not None


def test_the_series_is_that_of_the_first_input(database: Database) -> None:
    row = received("a slice", series="1.2.3.7")
    study = register(database, row).study_id
    enqueue(database, study, inputs={"image": (row.sha256,), "other": ("b" * 64,)})
    _refused(database)
    failure = _open(database)
    assert failure is not None
    assert failure.series_instance_uid == "1.2.3.7"


# --- what counts, and what follows what ----------------------------------------------------------------------------


def test_a_failure_that_is_mended_gives_way_to_the_answer_and_is_not_sent_any_more(
    database: Database, study: int
) -> None:
    job_id = enqueue(database, study)
    first = _failed(database)
    assert _wanted(database) == {first: True}
    _requeue(database, job_id)
    assert _wanted(database) == {first: False}
    assert _current(database, study) == []
    second = _failed(database)
    assert _current(database, study) == [second]
    _requeue(database, job_id)
    job = claim(database)
    assert _predecessor(database, job_id) == {second}
    with database.write() as connection:
        answer = finish(connection, job)
    assert _current(database, study) == [answer]
    with database.write() as connection:
        requests.settle(connection, study, 1, ALL)
    assert _wanted(database) == {first: False, second: False, answer: True}
    with database.read() as connection:
        heads = {each.id: each for each in results.heads(connection, study_id=study)}
        current = connection.execute(text("SELECT result_id FROM v_result")).scalars().all()
        former = connection.execute(text("SELECT result_id FROM v_all_result WHERE superseded")).scalars().all()
        assert outcomes.count_superseded(connection, "model") == 0
    assert [heads[each].requeued for each in (first, second, answer)] == [True, True, False]
    assert (current, sorted(former)) == ([answer], [first, second])


def test_the_second_failure_follows_the_first_and_what_was_never_written_follows_nothing(
    database: Database, study: int
) -> None:
    job_id = enqueue(database, study)
    first = _failed(database)
    _requeue(database, job_id)
    _failed(database, documented=False)
    _requeue(database, job_id)
    _refused(database)
    assert _predecessor(database, job_id) == {first}


def test_over_generations_each_document_has_one_successor(database: Database, study: int) -> None:
    enqueue(database, study, rule="rule", key="one image")
    job = claim(database)
    with database.write() as connection:
        answer = finish(connection, job)
    rerun = enqueue(database, study, rule="rule", key="two images", generation=2)
    assert _predecessor(database, rerun) == {answer}
    failed = _failed(database)
    third = enqueue(database, study, rule="rule", key="three images", generation=3)
    assert _wanted(database)[failed] is False
    assert _predecessor(database, third) == {failed}
    without = _failed(database, documented=False)
    fourth = enqueue(database, study, rule="rule", key="four images", generation=4)
    assert _predecessor(database, fourth) == {failed}
    assert _current(database, study) == []
    # What failed is asked for again: it counts again, and its next result follows what came meanwhile.
    job = claim(database)
    with database.write() as connection:
        later = finish(connection, job)
    enqueue(database, study, rule="rule", key="two images", generation=5)
    assert _current(database, study) == [failed]
    assert without not in _current(database, study)
    _requeue(database, rerun)
    assert _predecessor(database, rerun) == {later}


def test_a_destination_may_say_of_which_failures_it_hears(database: Database, study: int) -> None:
    enqueue(database, study)
    result = _failed(database)
    statuses = (ResultStatus.FAILED,)
    for said, wanted in (('model = "model"', True), ('model = "other"', False), ("volume > 30 mL", False)):
        outlet = Outlet(kinds=("SR1", "SR2"), statuses=statuses, when=parse_filter(said))
        with database.write() as connection:
            deliveries.post(connection, result, destinations=[said], outlets={said: outlet}, priority=5)
            posted = [each for each in deliveries.listing(connection) if each.destination == said]
        assert bool(posted) is wanted, said
