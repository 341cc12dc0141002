"""Whatever happens in whatever order, jobs move by the table of states and by nothing else.

Hypothesis drives the real queue on real SQLite beside a model of it that fits on a page.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from queue_samples import KINDS, OVER, new_job, received
from sqlalchemy import Connection
from sqlalchemy.engine import URL

from meddaemon.db import jobs, registration, requests
from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.states import JOB_TRANSITIONS, JobEvent, JobState

MAXIMUM_ATTEMPTS = 2
HOUR = 3600.0


@dataclass
class Expected:
    """What the model knows of a job."""

    key: str
    priority: int
    state: JobState = JobState.AVAILABLE
    attempt: int = 0
    fence: int = 0
    lease_over: bool = False
    waits: bool = False
    outdated: bool = False
    """Why it is cancelled, if it is: nobody asks for it any more."""
    events: list[JobEvent] = field(default_factory=list)

    def take(self, event: JobEvent) -> bool:
        """Move by the table; return False where it has no way."""
        if event not in JOB_TRANSITIONS[self.state]:
            return False
        self.state = JOB_TRANSITIONS[self.state][event]
        self.events.append(event)
        self.outdated = False
        return True


class Queue(RuleBasedStateMachine):
    """Operations on the queue, each done to the database and to the model."""

    pattern: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="meddaemon-queue-"))
        shutil.copyfile(self.pattern, self.folder / "queue.sqlite")
        self.database = Database(f"sqlite:///{self.folder}/queue.sqlite")
        with self.database.write() as connection:
            self.study = registration.register(connection, received("a"), quiet_seconds=0).study_id
        self.expected: dict[int, Expected] = {}
        self.asked_for: dict[str, int] = {}
        """The job that the one rule there is asks for, by model."""
        self.claims: list[Job] = []

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    # --- what can happen

    @rule(
        model=st.sampled_from(["m", "n"]), generation=st.integers(1, 3), inputs=st.sampled_from("ab"),
        priority=st.integers(0, 2),
    )  # fmt: skip
    def enqueue(self, model: str, generation: int, inputs: str, priority: int) -> None:
        key = f"{model} {inputs}"
        new = new_job(
            self.study,
            key=key,
            model=model,
            generation=generation,
            priority=priority,
            maximum_attempts=MAXIMUM_ATTEMPTS,
        )
        with self.database.write() as connection:
            job_id, is_new = requests.ask(connection, new, ["pacs"])
            requests.settle(connection, self.study, generation, KINDS)
        known = {each.key: each_id for each_id, each in self.expected.items()}
        assert is_new is (key not in known)
        assert known.get(key, job_id) == job_id
        if is_new:
            self.expected[job_id] = Expected(key=key, priority=priority)
        self.asked_for[model] = job_id
        for each_id, each in self.expected.items():
            if each_id not in self.asked_for.values():
                each.outdated = each.take(JobEvent.CANCEL) or each.outdated
            elif each.outdated and each.take(JobEvent.REQUEUE):
                each.attempt, each.waits = 0, False

    @rule(over=st.booleans())
    def claim(self, over: bool) -> None:
        with self.database.write() as connection:
            job = jobs.claim(connection, worker="w", lease_seconds=OVER if over else HOUR)
        self._expire()
        waiting = [
            (each.priority, job_id)
            for job_id, each in self.expected.items()
            if JobEvent.CLAIM in JOB_TRANSITIONS[each.state] and not each.waits
        ]
        assert (None if job is None else job.id) == (min(waiting)[1] if waiting else None)
        if job is not None:
            each = self.expected[job.id]
            assert each.take(JobEvent.CLAIM)
            each.attempt, each.fence, each.lease_over = each.attempt + 1, each.fence + 1, over
            assert (job.attempt, job.fence) == (each.attempt, each.fence)
            self.claims.append(job)

    @rule()
    def expire(self) -> None:
        with self.database.write() as connection:
            expired = jobs.expire(connection)
        assert sorted(expired) == self._expire()

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        self._by_a_worker(data, JobEvent.COMPLETE, jobs.complete)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        self._by_a_worker(data, JobEvent.REFUSE, lambda connection, job: jobs.refuse(connection, job, "no"))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        each = self._by_a_worker(data, JobEvent.RELEASE, jobs.release)
        if each is not None:
            each.attempt -= 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), wait=st.booleans())
    def fail(self, data: st.DataObject, wait: bool) -> None:
        held = self._draw(data)
        event = JobEvent.FAIL if held.attempt < MAXIMUM_ATTEMPTS else JobEvent.EXHAUST
        backoff = HOUR if wait else OVER
        each = self._do(held, event, lambda connection, job: jobs.fail(connection, job, "x", backoff_seconds=backoff))
        if each is not None:
            each.waits = wait and event is JobEvent.FAIL

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), over=st.booleans())
    def renew(self, data: st.DataObject, over: bool) -> None:
        held = self._draw(data)
        seconds = OVER if over else HOUR
        each = self._do(held, None, lambda connection, job: jobs.renew(connection, job, lease_seconds=seconds))
        if each is not None:
            each.lease_over = over

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._by_the_operator(data, JobEvent.CANCEL, jobs.cancel)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        each = self._by_the_operator(data, JobEvent.REQUEUE, jobs.requeue)
        if each is not None:
            each.attempt, each.waits = 0, False

    # --- what must hold

    @invariant()
    def database_and_model_agree(self) -> None:
        with self.database.read() as connection:
            for job in jobs.listing(connection):
                each = self.expected[job.id]
                assert (job.state, job.attempt, job.fence) == (each.state, each.attempt, each.fence)
                over = job.state in {JobState.COMPLETED, JobState.DISCARDED, JobState.CANCELLED}
                assert (job.finished_at is not None) is over
            counts = jobs.state_counts(connection)
        assert sum(counts.values()) == len(self.expected)

    @invariant()
    def the_history_leads_through_the_table_to_the_state(self) -> None:
        with self.database.read() as connection:
            for job_id, each in self.expected.items():
                state = JobState.AVAILABLE
                history = jobs.history(connection, job_id)
                for happened in history:
                    assert JOB_TRANSITIONS[state].get(happened.event) == happened.state
                    state = happened.state
                assert state is each.state
                assert [happened.event for happened in history] == each.events

    # --- how

    def _draw(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from(self.claims))

    def _by_a_worker(
        self, data: st.DataObject, event: JobEvent, operation: Callable[[Connection, Job], object]
    ) -> Expected | None:
        return self._do(self._draw(data), event, operation)

    def _do(self, held: Job, event: JobEvent | None, operation: Callable[[Connection, Job], object]) -> Expected | None:
        """Let a worker do something with a claim that it made at any time before; return the job where it could."""
        each = self.expected[held.id]
        if each.state is not JobState.EXECUTING or each.fence != held.fence:
            with pytest.raises(LeaseLost), self.database.write() as connection:
                operation(connection, held)
            return None
        with self.database.write() as connection:
            operation(connection, held)
        assert event is None or each.take(event)
        return each

    def _by_the_operator(
        self, data: st.DataObject, event: JobEvent, operation: Callable[[Connection, int], None]
    ) -> Expected | None:
        job_id = data.draw(st.sampled_from(sorted(self.expected)))
        each = self.expected[job_id]
        if not each.take(event):
            with pytest.raises(NotFound), self.database.write() as connection:
                operation(connection, job_id)
            return None
        with self.database.write() as connection:
            operation(connection, job_id)
        return each

    def _expire(self) -> list[int]:
        expired = []
        for job_id, each in self.expected.items():
            if each.state is JobState.EXECUTING and each.lease_over:
                assert each.take(JobEvent.EXPIRE if each.attempt < MAXIMUM_ATTEMPTS else JobEvent.EXHAUST)
                each.waits = False
                expired.append(job_id)
        return sorted(expired)


def test_jobs_move_by_the_table_of_states_and_by_nothing_else(migrated: Callable[[str], URL]) -> None:
    Queue.pattern = Path(str(migrated("sqlite").database))
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
