"""Whatever happens in whatever order, jobs move by the table of states and by nothing else.

Hypothesis drives the real queue on real SQLite beside a model of it that fits on a page. Hours pass, and with them
leases, windows, deadlines and turns, by moving every time in the database back.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from queue_samples import OUTLETS, OVER, new_job, received
from sqlalchemy import Connection
from sqlalchemy.engine import URL

from meddaemon.db import gates, jobs, registration, requests
from meddaemon.db.engine import Database
from meddaemon.db.jobs import Job
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.schedule import URGENT, WhenLate, patience
from meddaemon.domain.states import JOB_TRANSITIONS, JobEvent, JobState

MAXIMUM_ATTEMPTS = 2
HOUR = 3600.0
AGEING = 600.0
DIGESTS = {"m": "m" * 64, "n": "n" * 64}
WORK = st.tuples(
    st.sampled_from("pqrs"),
    st.sampled_from("mn"),
    st.integers(0, 2),
    st.sampled_from(["", "", "", "w"]),
    st.sampled_from([(None, WhenLate.RUN), (None, WhenLate.RUN), (5000.0, WhenLate.RUN), (700.0, WhenLate.DISCARD)]),
)
"""Rule, model, priority, window, deadline and what is done about it."""


@dataclass
class Expected:
    """What the model knows of a job."""

    key: str
    model: str
    priority: int
    window: str
    deadline_seconds: float | None
    when_late: WhenLate
    queued: float
    available: float
    patience: float
    deadline: float | None = None
    state: JobState = JobState.AVAILABLE
    attempt: int = 0
    fence: int = 0
    lease_until: float = 0.0
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

    def begin_again(self, now: float) -> None:
        self.attempt, self.queued, self.available = 0, now, now
        self.deadline = None if self.deadline_seconds is None else now + self.deadline_seconds

    @property
    def turn(self) -> float:
        return self.queued + self.patience

    def is_missed(self, now: float) -> bool:
        return self.when_late is WhenLate.DISCARD and self.deadline is not None and self.deadline < now

    def grown(self, now: float) -> int:
        """Return the priority that it has by now: one step nearer to 1 for every `AGEING` that it has waited."""
        if self.priority == URGENT:
            return URGENT
        steps = 1
        while self.turn - now > steps * AGEING:
            steps += 1
        return steps


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
        self.asked_for: dict[tuple[str, str], int] = {}
        """The job that is asked for, by rule and model."""
        self.claims: list[Job] = []
        self.clock = 1e6
        """By which the model goes; a little passes with every step."""
        self.paused = False
        self.window_until = 0.0

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    # --- what can happen

    @initialize(many=st.lists(WORK, min_size=3, max_size=6))
    def enqueue_many(self, many: list[tuple[str, str, int, str, tuple[float | None, WhenLate]]]) -> None:
        for work in many:
            self.enqueue(work, 1, "a")

    @rule(work=WORK, generation=st.integers(1, 3), inputs=st.sampled_from("ab"))
    def enqueue(
        self, work: tuple[str, str, int, str, tuple[float | None, WhenLate]], generation: int, inputs: str
    ) -> None:
        asking, model, priority, window, (seconds, when_late) = work
        key = f"{asking} {model} {inputs}"
        new = new_job(
            self.study,
            key=key,
            rule=asking,
            model=model,
            model_digest=DIGESTS[model],
            generation=generation,
            priority=priority,
            patience=patience(priority, AGEING, seconds),
            window=window,
            deadline_seconds=seconds,
            when_late=when_late,
            maximum_attempts=MAXIMUM_ATTEMPTS,
        )
        with self.database.write() as connection:
            job_id, is_new = requests.ask(connection, new, ["pacs"])
            requests.settle(connection, self.study, generation, OUTLETS)
        now = self._tick()
        known = {each.key: each_id for each_id, each in self.expected.items()}
        assert is_new is (key not in known)
        assert known.get(key, job_id) == job_id
        if is_new:
            self.expected[job_id] = Expected(
                key=key,
                model=model,
                priority=priority,
                window=window,
                deadline_seconds=seconds,
                when_late=when_late,
                queued=now,
                available=now,
                patience=new.patience,
                deadline=None if seconds is None else now + seconds,
            )
        self.asked_for[asking, model] = job_id
        for each_id, each in self.expected.items():
            if each_id not in self.asked_for.values():
                each.outdated = each.take(JobEvent.CANCEL) or each.outdated
            elif each.outdated and each.take(JobEvent.REQUEUE):
                each.begin_again(now)

    @rule(
        lease=st.sampled_from([OVER, HOUR]), like=st.sampled_from(["", "m", "n"]), waited=st.sampled_from([0.0, 300.0]),
        models=st.sampled_from([None, "m", "mn"]),
    )  # fmt: skip
    def claim(self, lease: float, like: str, waited: float, models: str | None) -> None:
        with self.database.write() as connection:
            job = jobs.claim(
                connection,
                worker="w",
                lease_seconds=lease,
                model_digests=None if models is None else [DIGESTS[each] for each in models],
                ageing_seconds=AGEING,
                waited_seconds=waited,
                like=DIGESTS.get(like, ""),
            )
        self._expire()
        now = self._tick()
        waiting = self._claimable(now, waited, models or "mn")
        wanted = waiting[0] if waiting else None
        if wanted is not None and (grown := self.expected[wanted].grown(now)) != URGENT:
            alike = [each for each in waiting if self.expected[each].model == like]
            wanted = next((each for each in alike if self.expected[each].grown(now) <= grown), wanted)
        assert (None if job is None else job.id) == wanted
        if job is not None:
            each = self.expected[job.id]
            assert each.take(JobEvent.CLAIM)
            each.attempt, each.fence, each.lease_until = each.attempt + 1, each.fence + 1, now + lease
            assert (job.attempt, job.fence) == (each.attempt, each.fence)
            self.claims.append(job)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def prepare(self, data: st.DataObject) -> None:
        self._by_a_worker(data, JobEvent.PREPARE, jobs.prepare)

    @rule(like=st.sampled_from(["", "m", "n"]))
    def prefetch(self, like: str) -> None:
        self.claim(HOUR, like, 0.0, None)
        executing = [job for job in self.claims[-1:] if self.expected[job.id].state is JobState.EXECUTING]
        for job in executing:
            self._do(job, JobEvent.PREPARE, jobs.prepare)

    @precondition(lambda self: any(each.state is JobState.PREPARED for each in self.expected.values()))
    @rule(data=st.data(), models=st.sampled_from(["m", "mn"]))
    def start(self, data: st.DataObject, models: str) -> None:
        """Begin what was prepared, or give it back: an older claim of the same job is told that it is too late."""
        resting = [job for job in self.claims if self.expected[job.id].state is JobState.PREPARED]
        held = data.draw(st.sampled_from(resting))
        each, now = self.expected[held.id], self._tick()
        digests = [DIGESTS[model] for model in models]
        if each.fence != held.fence:
            with pytest.raises(LeaseLost), self.database.write() as connection:
                jobs.start(connection, held, model_digests=digests, ageing_seconds=AGEING)
            return
        with self.database.write() as connection:
            begun = jobs.start(connection, held, model_digests=digests, ageing_seconds=AGEING)
        more_urgent = [
            other for other in self._claimable(now, 0.0, models) if self.expected[other].grown(now) < each.grown(now)
        ]
        assert begun is (self._is_open(each, now) and not each.is_missed(now) and not more_urgent)
        assert each.take(JobEvent.START if begun else JobEvent.RELEASE)
        each.attempt -= not begun

    @rule()
    def pause(self) -> None:
        with self.database.write() as connection:
            gates.pause(connection, "maintenance")
        self.paused = True

    @rule()
    def resume(self) -> None:
        with self.database.write() as connection:
            gates.resume(connection)
        self.paused = False

    @rule(seconds=st.sampled_from([None, 1000.0, 2500.0]))
    def the_window_opens_or_closes(self, seconds: float | None) -> None:
        with self.database.write() as connection:
            until = None if seconds is None else gates.clock(connection) + timedelta(seconds=seconds)
            gates.keep(connection, "w", until)
        self.window_until = 0.0 if seconds is None else self.clock + seconds

    @rule(seconds=st.sampled_from([AGEING, 1300.0, HOUR]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds
        with self.database.write() as connection:
            for column in ("turn_at", "deadline_at", "available_at", "lease_expires_at"):
                connection.exec_driver_sql(f"UPDATE job SET {column} = {column} - {seconds}")
            connection.exec_driver_sql(f"UPDATE gate SET open_until = open_until - {seconds} WHERE name = 'w'")

    @rule()
    def miss(self) -> None:
        with self.database.write() as connection:
            missed = jobs.miss(connection)
        now = self._tick()
        late = [
            job_id
            for job_id, each in self.expected.items()
            if each.is_missed(now) and JobEvent.MISS in JOB_TRANSITIONS[each.state]
        ]
        assert sorted(missed) == sorted(late)
        assert all(self.expected[job_id].take(JobEvent.MISS) for job_id in late)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def hurry(self, data: st.DataObject) -> None:
        each = self._by_the_operator(data, JobEvent.HURRY, jobs.hurry)
        if each is not None:
            each.queued = each.available = self._tick()
            each.priority, each.patience, each.window = URGENT, patience(URGENT, AGEING), ""
            each.deadline = each.deadline_seconds = None

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
        if each is not None and event is JobEvent.FAIL:
            each.available = self._tick() + backoff

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), over=st.booleans())
    def renew(self, data: st.DataObject, over: bool) -> None:
        held = self._draw(data)
        seconds = OVER if over else HOUR
        each = self._do(held, None, lambda connection, job: jobs.renew(connection, job, lease_seconds=seconds))
        if each is not None:
            each.lease_until = self._tick() + seconds

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self._by_the_operator(data, JobEvent.CANCEL, jobs.cancel)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        each = self._by_the_operator(data, JobEvent.REQUEUE, jobs.requeue)
        if each is not None:
            each.begin_again(self._tick())
            each.deadline = None

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

    def _tick(self) -> float:
        self.clock += 1e-3
        return self.clock

    def _is_open(self, each: Expected, now: float) -> bool:
        return not self.paused and (each.window == "" or self.window_until > now)

    def _claimable(self, now: float, waited: float, models: str) -> list[int]:
        """Return the jobs that may be claimed, the one whose turn is earliest first."""
        waiting = [
            (each.turn, job_id)
            for job_id, each in self.expected.items()
            if JobEvent.CLAIM in JOB_TRANSITIONS[each.state]
            and each.available <= now - waited
            and each.model in models
            and self._is_open(each, now)
            and not each.is_missed(now)
        ]
        return [job_id for _, job_id in sorted(waiting)]

    def _draw(self, data: st.DataObject) -> Job:
        return data.draw(st.sampled_from(self.claims))

    def _by_a_worker(
        self, data: st.DataObject, event: JobEvent, operation: Callable[[Connection, Job], object]
    ) -> Expected | None:
        return self._do(self._draw(data), event, operation)

    def _do(self, held: Job, event: JobEvent | None, operation: Callable[[Connection, Job], object]) -> Expected | None:
        """Let a worker do something with a claim that it made at any time before; return the job where it could."""
        each = self.expected[held.id]
        # To renew a lease is no event; who may give a job back may renew it.
        if (event or JobEvent.RELEASE) not in JOB_TRANSITIONS[each.state] or each.fence != held.fence:
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
        expired, now = [], self._tick()
        for job_id, each in self.expected.items():
            if JobEvent.RELEASE in JOB_TRANSITIONS[each.state] and each.lease_until < now:
                if each.state is JobState.PREPARED:
                    assert each.take(JobEvent.RELEASE)
                    each.attempt -= 1
                else:
                    assert each.take(JobEvent.EXPIRE if each.attempt < MAXIMUM_ATTEMPTS else JobEvent.EXHAUST)
                    each.available = now
                expired.append(job_id)
        return sorted(expired)


def test_jobs_move_by_the_table_of_states_and_by_nothing_else(migrated: Callable[[str], URL]) -> None:
    Queue.pattern = Path(str(migrated("sqlite").database))
    run_state_machine_as_test(
        Queue,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
