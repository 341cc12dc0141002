"""What the outbox promises: filled with the result or not at all, drained by leases, each destination on its own."""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from queue_samples import (
    OUTLETS,
    OVER,
    analysis,
    claim,
    enqueue,
    finish,
    get,
    new_job,
    received,
    record,
    register,
    somebody_waits,
    stored_objects,
    wait_until,
)
from sqlalchemy import Connection, func, select, update

from meddaemon.db import deliveries, jobs, requests, results, studies, tables
from meddaemon.db.deliveries import Delivery, DeliveryRow
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import ResultStatus
from meddaemon.domain.states import DELIVERY_TAKEN, DELIVERY_TRANSITIONS, DeliveryEvent, DeliveryState, JobState

KILLED = Path(__file__).with_name("killed_before_commit.py")


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def _finished(database: Database, study: int, **values: object) -> int:
    """Queue, claim and complete a job; return the id of its result."""
    enqueue(database, study, **values)
    job = claim(database)
    with database.write() as connection:
        return finish(connection, job)


def _claim(database: Database, *, lease_seconds: float = 60, destination: str = "pacs") -> list[Delivery]:
    with database.write() as connection:
        return deliveries.claim(connection, destination=destination, lease_seconds=lease_seconds)


def _listing(database: Database) -> list[DeliveryRow]:
    with database.read() as connection:
        return deliveries.listing(connection)


def _states(database: Database) -> list[DeliveryState]:
    return [row.state for row in _listing(database)]


def _rows(database: Database) -> dict[str, int]:
    counted = ("result", "segment", "finding", "measurement", "result_object", "delivery")
    with database.read() as connection:
        return {
            name: connection.execute(select(func.count()).select_from(tables.metadata.tables[name])).scalar_one()
            for name in counted
        }


# --- one transaction ---------------------------------------------------------------------------------------------

EVERYTHING = {"result": 1, "segment": 1, "finding": 1, "measurement": 1, "result_object": 2, "delivery": 2}
NOTHING = dict.fromkeys(EVERYTHING, 0)


def test_result_outbox_and_completion_are_there_together(database: Database, study: int) -> None:
    job_id = enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
        assert _seen_by_others(database) == (NOTHING, JobState.EXECUTING, job_id)
    assert _seen_by_others(database) == (EVERYTHING, JobState.COMPLETED, job_id)


def _seen_by_others(database: Database) -> tuple[dict[str, int], JobState, int]:
    with database.read() as connection:
        (job,) = jobs.listing(connection)
    return _rows(database), job.state, job.id


def test_a_process_killed_before_its_commit_leaves_nothing(database: Database, database_url: str, study: int) -> None:
    job_id = enqueue(database, study)
    arguments = [sys.executable, str(KILLED), database_url]
    killed = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert killed.stdout == "written\n"
    assert killed.returncode == -9
    assert _rows(database) == NOTHING
    assert get(database, job_id).state is JobState.EXECUTING
    # Its lease was over at once: the work is done again, and there is one result.
    job = claim(database)
    assert (job.id, job.attempt) == (job_id, 2)
    with database.write() as connection:
        finish(connection, job)
    assert _rows(database) == EVERYTHING


def test_a_worker_that_comes_too_late_leaves_no_result(database: Database, study: int) -> None:
    enqueue(database, study)
    late = claim(database, lease_seconds=OVER)
    job = claim(database)
    with pytest.raises(LeaseLost), database.write() as connection:
        finish(connection, late)
    assert _rows(database) == NOTHING
    with database.write() as connection:
        finish(connection, job)
    with pytest.raises(LeaseLost), database.write() as connection:
        finish(connection, late)
    assert _rows(database) == EVERYTHING


def test_a_job_has_one_result_whoever_writes(database: Database, study: int) -> None:
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
    with pytest.raises(DatabaseUnavailable), database.write() as connection:
        record(connection, job)
    assert _rows(database) == EVERYTHING


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_completion_and_admission_of_one_study_do_not_block_each_other(database: Database, study: int) -> None:
    """Admission holds the study and wants the stale job; completion holds the job and refers to the study."""
    stale = enqueue(database, study, rule="rule")
    held = claim(database)
    admitted = threading.Event()

    def admit() -> None:
        with database.write() as connection:
            assert studies.lock_due(connection, study) is not None
            admitted.set()
            requests.lock(connection, study)
            requests.ask(connection, new_job(study, generation=2), ["pacs"])
            requests.settle(connection, study, 2, OUTLETS)

    with ThreadPoolExecutor(1) as threads:
        with database.write() as connection:
            completed = jobs.complete(connection, held)
            admission = threads.submit(admit)
            assert admitted.wait(30)
            wait_until(lambda: somebody_waits(database))
            record(connection, completed)
        admission.result(30)
    assert get(database, stale).state is JobState.COMPLETED
    assert claim(database).generation == 2
    # Whichever came second saw what the first had written: the outdated result is there and is not sent.
    assert [(row.state, row.wanted) for row in _listing(database)] == [(DeliveryState.PENDING, False)] * 2


# --- what is posted ----------------------------------------------------------------------------------------------


def test_each_destination_gets_the_kinds_that_it_takes(database: Database, study: int) -> None:
    enqueue(database, study, destinations=("pacs", "research", "nothing"), priority=2)
    job = claim(database)
    with database.write() as connection:
        result_id = finish(connection, job, outlets={"research": Outlet(kinds=("SR",)), "nothing": Outlet(kinds=())})
    assert [(row.kind, row.destination, row.result_id, row.state) for row in _listing(database)] == [
        ("SEG", "pacs", result_id, DeliveryState.PENDING),
        ("SR", "pacs", result_id, DeliveryState.PENDING),
        ("SR", "research", result_id, DeliveryState.PENDING),
    ]


@pytest.mark.parametrize("status", ResultStatus)
def test_what_nobody_believes_leaves_only_where_it_is_asked_for(
    database: Database, study: int, status: ResultStatus
) -> None:
    enqueue(database, study, destinations=("pacs", "research"))
    job = claim(database)
    with database.write() as connection:
        results.record(
            connection,
            jobs.complete(connection, job),
            replace(analysis(), status=status, reason="too much"),
            stored_objects(job),
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets={"pacs": Outlet(kinds=("SR",)), "research": Outlet(kinds=("SR",), statuses=tuple(ResultStatus))},
        )
    believed = status is ResultStatus.PLAUSIBLE
    assert [row.destination for row in _listing(database)] == [*(["pacs"] if believed else []), "research"]


def test_a_claim_names_the_object_and_its_file(database: Database, study: int) -> None:
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
    claimed = _claim(database)
    assert [(each.sop_instance_uid, each.sha256, each.kind) for each in claimed] == [
        (each.encoded.sop_instance_uid, each.sha256, each.encoded.kind) for each in stored_objects(job)
    ]
    assert [(each.attempt, each.fence, each.destination) for each in claimed] == [(1, 1, "pacs")] * 2


def test_a_result_goes_wherever_anybody_who_asks_for_it_sends_it(database: Database, study: int) -> None:
    same = {"key": "same"}
    enqueue(database, study, **same, rule="first")
    enqueue(database, study, **same, rule="second", destinations=("early", "pacs"))
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
    for _ in range(2):
        enqueue(database, study, **same, rule="third", destinations=("pacs", "late", "gone"))
    assert [(row.kind, row.destination) for row in _listing(database)] == [
        ("SEG", "pacs"),
        ("SEG", "early"),
        ("SR", "pacs"),
        ("SR", "early"),
        ("SEG", "late"),
        ("SR", "late"),
    ]
    with database.read() as connection:
        assert requests.destinations_of(connection, job.id) == ("pacs", "early", "late", "gone")


def test_what_a_rule_lets_go_is_not_sent_to_its_destinations(database: Database, study: int) -> None:
    """Another rule still asks for the work: its destinations get it."""
    enqueue(database, study, key="same", rule="first", destinations=("research",))
    enqueue(database, study, key="same", rule="second")
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
        requests.let_go(connection, study_id=study, rule="first")
        requests.settle(connection, study, 2, OUTLETS)
    assert _claim(database, destination="research") == []
    assert len(_claim(database)) == 2
    assert {row.destination: row.wanted for row in _listing(database)} == {"pacs": True, "research": False}
    (unwanted, *_) = [row.id for row in _listing(database) if not row.wanted]
    with pytest.raises(NotFound, match="current result"), database.write() as connection:
        deliveries.requeue(connection, unwanted)
    with database.read() as connection:
        assert deliveries.state_counts(connection) == {("pacs", DeliveryState.SENDING): 2}


@pytest.mark.parametrize("first", ["completed", "asked for"])
def test_no_destination_is_lost_when_a_job_completes_meanwhile(database: Database, study: int, first: str) -> None:
    enqueue(database, study, key="same", rule="first")
    job = claim(database)
    begun = threading.Event()

    def ask() -> None:
        assert begun.wait(30)
        enqueue(database, study, key="same", rule="second", destinations=("research",))

    def complete() -> None:
        assert begun.wait(30)
        with database.write() as connection:
            finish(connection, job)

    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(ask if first == "completed" else complete)
        with database.write() as connection:
            if first == "completed":
                finish(connection, job)
            else:
                requests.lock(connection, study)
                requests.ask(connection, new_job(study, key="same", rule="second"), ["research"])
                requests.settle(connection, study, 1, OUTLETS)
            begun.set()
            if database.dialect == "postgresql":
                wait_until(lambda: somebody_waits(database) or later.done())
        later.result(30)
    assert {(row.destination, row.wanted) for row in _listing(database)} == {("pacs", True), ("research", True)}


# --- leases and answers ------------------------------------------------------------------------------------------


def test_the_most_urgent_goes_first_and_no_more_than_was_asked_for(database: Database, study: int) -> None:
    later = _finished(database, study, priority=5)
    urgent = _finished(database, study, priority=0)
    with database.write() as connection:
        first = deliveries.claim(connection, destination="pacs", lease_seconds=60, limit=3)
    # No result is torn apart for it.
    owner = {row.id: row.result_id for row in _listing(database)}
    assert [owner[each.id] for each in first] == [urgent, urgent, later, later]
    assert _claim(database) == []


def test_senders_never_claim_the_same_delivery(database: Database, study: int) -> None:
    for _ in range(6):
        _finished(database, study)
    together = threading.Barrier(6)

    def send(_: int) -> list[int]:
        together.wait(30)
        claimed: list[int] = []
        while True:
            with database.write() as connection:
                found = deliveries.claim(connection, destination="pacs", lease_seconds=60, limit=1)
            if not found:
                return claimed
            claimed += [each.id for each in found]

    with ThreadPoolExecutor(6) as threads:
        claimed = sorted(each for mine in threads.map(send, range(6)) for each in mine)
    assert claimed == [row.id for row in _listing(database)]


def test_answers_are_kept_with_their_status(database: Database, study: int) -> None:
    _finished(database, study)
    seg, sr = _claim(database)
    with database.write() as connection:
        deliveries.accept(connection, seg, status=0xB000, note="coercion")
        deliveries.refuse(connection, sr, status=0xA900, reason="does not match")
    taken, held = _listing(database)
    assert (taken.state, taken.status, taken.reason) == (DeliveryState.SENT, 0xB000, "coercion")
    assert taken.sent_at is not None
    assert (held.state, held.status, held.reason, held.sent_at) == (
        DeliveryState.HELD,
        0xA900,
        "does not match",
        None,
    )
    assert _claim(database) == []
    with database.read() as connection:
        assert deliveries.state_counts(connection) == {("pacs", DeliveryState.HELD): 1}


def test_a_failed_delivery_waits_and_other_destinations_do_not(database: Database, study: int) -> None:
    _finished(database, study, destinations=("pacs", "research"))
    for each in _claim(database):
        with database.write() as connection:
            deliveries.fail(connection, each, status=None, reason="no route", delay_seconds=100)
    assert _claim(database) == []
    assert len(_claim(database, destination="research")) == 2
    waiting = _listing(database)[0]
    assert (waiting.state, waiting.attempt, waiting.reason) == (DeliveryState.RETRYABLE, 1, "no route")
    with database.write() as connection:
        connection.execute(update(tables.delivery).values(available_at=tables.delivery.c.available_at - 100.0))
    assert [each.attempt for each in _claim(database)] == [2, 2]


def test_the_delay_of_a_failure_is_the_one_that_was_said(database: Database, study: int) -> None:
    _finished(database, study)
    created = _listing(database)[0].available_at
    with database.write() as connection:
        deliveries.fail(connection, _only_first(connection), status=0xA700, reason="full", delay_seconds=1000)
    delay = _listing(database)[0].available_at - created
    assert timedelta(seconds=1000) <= delay < timedelta(seconds=1030)


def _only_first(connection: Connection) -> Delivery:
    first, other = deliveries.claim(connection, destination="pacs", lease_seconds=60, limit=1)
    deliveries.release(connection, other)
    return first


def test_what_a_dead_sender_held_is_sent_again_under_the_same_uid(database: Database, study: int) -> None:
    _finished(database, study)
    first = _claim(database, lease_seconds=OVER)
    again = _claim(database)
    assert [each.sop_instance_uid for each in again] == [each.sop_instance_uid for each in first]
    assert [(each.attempt, each.fence) for each in again] == [(2, 2)] * 2


LATE: dict[str, Callable[[Connection, Delivery], None]] = {
    "accept": lambda connection, late: deliveries.accept(connection, late, status=0, note=""),
    "fail": lambda connection, late: deliveries.fail(connection, late, status=1, reason="late", delay_seconds=1),
    "refuse": lambda connection, late: deliveries.refuse(connection, late, status=1, reason="late"),
}


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("meanwhile", ["claimed by another", "sent by another", "expired"])
def test_a_sender_that_comes_too_late_writes_nothing(database: Database, study: int, late: str, meanwhile: str) -> None:
    _finished(database, study)
    held = _claim(database, lease_seconds=OVER)[0]
    if meanwhile == "expired":
        with database.write() as connection:
            deliveries.claim(connection, destination="pacs", lease_seconds=60, limit=0)
        assert _states(database)[0] is DeliveryState.RETRYABLE
    else:
        again = _claim(database)[0]
    if meanwhile == "sent by another":
        with database.write() as connection:
            deliveries.accept(connection, again, status=0, note="")
    before = _listing(database)
    with pytest.raises(LeaseLost, match=f"delivery {held.id}"), database.write() as connection:
        LATE[late](connection, held)
    assert _listing(database) == before


@pytest.mark.parametrize("state", DeliveryState)
def test_only_what_waits_or_is_held_can_be_requeued(database: Database, study: int, state: DeliveryState) -> None:
    _finished(database, study)
    if state is not DeliveryState.PENDING:
        first = _claim(database)[0]
        with database.write() as connection:
            if state is DeliveryState.SENT:
                deliveries.accept(connection, first, status=0, note="")
            elif state is DeliveryState.RETRYABLE:
                deliveries.fail(connection, first, status=None, reason="away", delay_seconds=3600)
            elif state is DeliveryState.HELD:
                deliveries.refuse(connection, first, status=0xC000, reason="no")
            elif state in {*DELIVERY_TAKEN, DeliveryState.REPLACED}:
                connection.execute(update(tables.delivery).where(tables.delivery.c.id == first.id).values(state=state))
    first_id = _listing(database)[0].id
    assert _states(database)[0] is state
    if DeliveryEvent.REQUEUE in DELIVERY_TRANSITIONS[state]:
        with database.write() as connection:
            deliveries.requeue(connection, first_id)
        assert _states(database)[0] is DeliveryState.PENDING
        (again,) = (each for each in _claim(database) if each.id == first_id)
        assert again.attempt == 1
    else:
        with pytest.raises(NotFound), database.write() as connection:
            deliveries.requeue(connection, first_id)
        assert _states(database)[0] is state


def test_a_requeue_of_what_is_not_there_is_told(database: Database) -> None:
    with pytest.raises(NotFound, match="no delivery 99"), database.write() as connection:
        deliveries.requeue(connection, 99)


def test_all_that_is_held_at_a_destination_is_sent_again_and_nothing_else(database: Database, study: int) -> None:
    for model in ("one", "other"):
        _finished(database, study, model=model, destinations=("pacs", "research"))
    held = [*_claim(database), *_claim(database, destination="research")]
    assert len(held) == 8
    with database.write() as connection:
        for each in held[1:]:
            deliveries.refuse(connection, each, status=0xC000, reason="no")
        deliveries.accept(connection, held[0], status=0, note="")
    with database.write() as connection:
        assert deliveries.requeue_held(connection, "pacs") == 3
    states = {each.id: each.state for each in _listing(database)}
    assert [states[each.id] for each in held] == [
        DeliveryState.SENT,
        *[DeliveryState.PENDING] * 3,
        *[DeliveryState.HELD] * 4,
    ]
    with pytest.raises(NotFound, match="nothing of a current result is held at 'pacs'"), database.write() as connection:
        deliveries.requeue_held(connection, "pacs")
    with database.read() as connection:
        found = deliveries.listing(connection, state=DeliveryState.HELD, destination="research")
    assert [each.id for each in found] == [each.id for each in held[4:]]


# --- generations -------------------------------------------------------------------------------------------------


def _ends(database: Database, study: int) -> list[tuple[int, bool, int | None]]:
    with database.read() as connection:
        return [(head.id, head.current, head.successor) for head in results.heads(connection, study_id=study)]


def test_a_result_supersedes_that_of_the_generation_before(database: Database, study: int) -> None:
    other = _finished(database, study, rule="rule", model="other")
    first = _finished(database, study, rule="rule")
    others = _finished(database, study, rule="another rule")
    enqueue(database, study, rule="rule", generation=2)
    job = claim(database)
    # Outdated from the moment in which other work was asked for, whatever becomes of that.
    assert _ends(database, study) == [(other, True, None), (first, False, job.id), (others, True, None)]
    with database.read() as connection:
        predecessors = results.predecessor_objects(connection, job)
    assert {each.result_id for each in predecessors} == {first}
    assert [each.kind for each in predecessors] == ["SEG", "SR"]
    with database.write() as connection:
        second = finish(connection, job, value=1500.0)
    with database.read() as connection:
        current = results.query(connection, model="model", study_id=study)
        everything = results.query(connection, model="model", study_id=study, superseded=True)
    assert {row.result_id for row in current} == {others, second}
    assert {(row.result_id, row.value, row.superseded, row.generation) for row in everything} == {
        (first, 1400.0, True, 1),
        (others, 1400.0, False, 1),
        (second, 1500.0, False, 2),
    }


@pytest.mark.parametrize("state", [DeliveryState.PENDING, DeliveryState.RETRYABLE, DeliveryState.SENDING])
def test_what_is_outdated_before_it_is_sent_is_not_sent_after_its_successor(
    database: Database, study: int, state: DeliveryState
) -> None:
    first = _finished(database, study, rule="rule")
    claimed = _claim(database) if state is not DeliveryState.PENDING else []
    if state is DeliveryState.RETRYABLE:
        for each in claimed:
            with database.write() as connection:
                deliveries.fail(connection, each, status=None, reason="away", delay_seconds=0)
    second = _finished(database, study, rule="rule", generation=2)
    if state is DeliveryState.SENDING:
        # One got no answer, the other was given back, or the sender died.
        with database.write() as connection:
            deliveries.fail(connection, claimed[0], status=None, reason="no answer", delay_seconds=0)
            deliveries.release(connection, claimed[1])
    owner = {row.id: row.result_id for row in _listing(database)}
    assert {owner[each.id] for each in _claim(database)} == {second} != {first}


def test_an_outdated_job_that_an_operator_requeues_has_a_result_that_does_not_count(
    database: Database, study: int
) -> None:
    stale = enqueue(database, study, rule="rule")
    later = _finished(database, study, rule="rule", generation=2)
    with database.write() as connection:
        jobs.requeue(connection, stale)
    job = claim(database)
    assert job.id == stale
    with database.write() as connection:
        outdated = finish(connection, job)
    assert _ends(database, study) == [(later, True, None), (outdated, False, None)]
    assert {row.result_id for row in _listing(database)} == {later}


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_workers_that_finish_at_the_same_time_do_not_make_two_current_results(database: Database, study: int) -> None:
    stale = enqueue(database, study, rule="rule")
    enqueue(database, study, rule="rule", generation=2)
    with database.write() as connection:
        jobs.requeue(connection, stale)
    held = {job.id: job for job in (claim(database), claim(database))}
    with database.write() as one, database.write() as another:
        finish(one, held[stale])
        finish(another, held[stale + 1])
    with database.read() as connection:
        (current,) = results.query(connection)
    assert current.generation == 2
    assert {row.result_id for row in _listing(database)} == {current.result_id}


def test_the_place_of_a_job_without_a_result_is_that_of_its_predecessor(database: Database, study: int) -> None:
    first = _finished(database, study, rule="rule")
    enqueue(database, study, rule="rule", generation=2)
    third = _finished(database, study, rule="rule", generation=3)
    fourth = _finished(database, study, rule="rule", generation=4)
    assert _ends(database, study) == [(first, False, 3), (third, False, 4), (fourth, True, None)]


def test_a_job_whose_asker_changes_still_has_its_predecessor(database: Database, study: int) -> None:
    """In generation 1 one rule asks; in generation 2 another asks for the new work before the first does."""
    first = _finished(database, study, rule="always", key="one image")
    enqueue(database, study, rule="two images", key="two images", generation=2)
    enqueue(database, study, rule="always", key="two images", generation=2)
    job = claim(database)
    with database.read() as connection:
        assert {each.result_id for each in results.predecessor_objects(connection, job)} == {first}
    with database.write() as connection:
        second = finish(connection, job)
    assert _ends(database, study) == [(first, False, job.id), (second, True, None)]


@pytest.mark.parametrize("forced_first", [True, False])
def test_what_was_forced_follows_the_work_that_takes_its_place(
    database: Database, study: int, *, forced_first: bool
) -> None:
    rules = ["forced: model on 1", "rule"]
    for rule in rules if forced_first else rules[::-1]:
        enqueue(database, study, rule=rule, key="one image", destinations=[rule[:4]])
    job = claim(database)
    with database.write() as connection:
        first = finish(connection, job)
    successor = enqueue(database, study, rule="rule", key="two images", generation=2)
    job = claim(database)
    with database.write() as connection:
        second = finish(connection, job)
    assert _ends(database, study) == [(first, False, successor), (second, True, None)]
    with database.read() as connection:
        assert set(requests.destinations_of(connection, successor)) == {"forc", "pacs"}
    # What nobody but an operator asked for stands, whatever the rules say.
    with database.write() as connection:
        requests.let_go(connection, study_id=study, rule="rule")
        requests.settle(connection, study, 3, OUTLETS)
    assert _ends(database, study)[1] == (second, True, None)


# --- queries -----------------------------------------------------------------------------------------------------


def test_findings_come_back_with_their_numbers_exactly(database: Database, study: int) -> None:
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        finish(connection, job, value=1394.0625000000002)
    said = analysis()
    with database.read() as connection:
        (row,) = results.query(connection)
        (head,) = results.heads(connection, study_id=study)
    assert row.value == 1394.0625000000002
    assert (row.unit, row.finding_value, row.segment, row.status) == ("mL", "12738006", "Brain", said.status)
    assert (head.seconds, head.provenance) == ({"predict": 1.0}, {"device": "cpu"})


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, [1500.0, 1400.0]),
        ({"minimum": 1400.0, "maximum": 1400.0}, [1400.0]),
        ({"minimum": 1400.5}, [1500.0]),
        ({"code": "BRAIN"}, [1500.0, 1400.0]),
        ({"code": "118565006"}, [1500.0, 1400.0]),
        ({"code": "volume"}, [1500.0, 1400.0]),
        ({"code": "liver"}, []),
        ({"model": "other"}, [1500.0]),
        ({"limit": 1}, [1500.0]),
    ],
)
def test_results_are_filtered(database: Database, study: int, asked: dict[str, object], found: list[float]) -> None:
    _finished(database, study)
    enqueue(database, study, model="other")
    job = claim(database)
    with database.write() as connection:
        finish(connection, job, value=1500.0)
    with database.read() as connection:
        assert [row.value for row in results.query(connection, **asked)] == found  # type: ignore[arg-type]


def test_results_are_filtered_by_time(database: Database, study: int) -> None:
    _finished(database, study)
    with database.read() as connection:
        (row,) = results.query(connection)
        assert results.query(connection, since=row.created_at) == [row]
        assert results.query(connection, until=row.created_at) == []
        assert results.query(connection, since=row.created_at + timedelta(seconds=1)) == []
