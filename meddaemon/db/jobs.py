"""The job queue: one row a job, moved by the transitions of `domain.states` and by nothing else.

Of the jobs that may begin, the one whose turn is earliest goes first (`domain.schedule.patience`); a turn never changes
while a job waits, so that an index has the order. A gate that is shut holds back the jobs that name it (`db.gates`).

A claim gives a lease and a fencing token (`fence`). Whoever writes for a job carries that token, so a worker that
was paused past its lease writes nothing (LeaseLost). On PostgreSQL claims skip rows that others hold; on SQLite
writers follow one another.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, or_, select, type_coerce, update

from meddaemon.db import gates, tables
from meddaemon.db.clock import Utc, after, now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.db.paging import earlier
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.schedule import URGENT, WhenLate, level, patience
from meddaemon.domain.states import JobEvent, JobState, sources, target

_job = tables.job

is_unfinished = _job.c.state.in_(sources(JobEvent.CANCEL))
"""Holds for jobs that wait or run."""

PARTS = (tables.job_waiting, tables.job_executing, tables.job_finished)
"""The conditions of the indexes that have all jobs together; whoever asks for states asks part by part."""
_PART = {
    **dict.fromkeys((JobState.AVAILABLE, JobState.RETRYABLE), tables.job_waiting),
    **dict.fromkeys((JobState.EXECUTING, JobState.PREPARED), tables.job_executing),
    **dict.fromkeys((JobState.COMPLETED, JobState.DISCARDED, JobState.CANCELLED), tables.job_finished),
}

_OUTDATED = "not asked for any more since generation"
was_outdated = and_(_job.c.state == JobState.CANCELLED, _job.c.reason.startswith(_OUTDATED))
"""Holds for jobs that were cancelled because nobody asked for them any more."""

LONGEST_BACKOFF_SECONDS = 3600.0
AGEING_SECONDS = 1800.0
"""So much waiting counts as much as one step of priority, where nothing else is said."""
MISSED_AT_ONCE = 1000
"""So many jobs are discarded in one transaction, so that no worker waits long for its end."""

_NOT_BY_A_WORKER = frozenset({JobEvent.EXPIRE, JobEvent.MISS, JobEvent.HURRY, JobEvent.CANCEL, JobEvent.REQUEUE})
"""Events that somebody else causes than the worker that had the job last."""

_AFRESH = {
    "attempt": 0,
    "available_at": now(),
    "turn_at": type_coerce(now() + _job.c.patience, Utc),
    "deadline_at": type_coerce(now() + _job.c.deadline_seconds, Utc),
    "finished_at": None,
    "document_tries": None,
    "reason": "",
}
"""What a job that is queued again begins with."""
_FAILED = {"document_tries": 0, "lease_expires_at": None}
"""What every failure leaves, whatever it was: somebody is to tell of it (`db.failures`)."""
_UNWORKED = {"attempt": _job.c.attempt - 1, "lease_expires_at": None}
"""What an attempt that does not count leaves."""


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """Work to be queued.

    `inputs` maps an input key of the model to the content digests of its instances; `caveat` says why the result is
    not to be believed whatever it is (the operator forced a series that the model does not take). `patience` is what
    `domain.schedule.patience` says of its priority and deadline, `window` the gate that it must pass ("" is none), and
    `deadline_seconds` counts from now until it should have begun.
    """

    key: str
    study_id: int
    generation: int
    rule: str
    model: str
    model_digest: str
    inputs: Mapping[str, tuple[str, ...]]
    priority: int
    maximum_attempts: int
    patience: float
    window: str = ""
    deadline_seconds: float | None = None
    when_late: WhenLate = WhenLate.RUN
    caveat: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it stands in the queue."""

    id: int
    key: str
    study_id: int
    generation: int
    rule: str
    model: str
    model_digest: str
    inputs: Mapping[str, tuple[str, ...]]
    replaces: int | None
    caveat: str
    priority: int
    window: str
    patience: float
    turn_at: datetime
    deadline_at: datetime | None
    deadline_seconds: float | None
    when_late: WhenLate
    state: JobState
    attempt: int
    maximum_attempts: int
    fence: int
    worker: str
    reason: str
    available_at: datetime
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class JobHistory:
    """One event in the life of a job."""

    at: datetime
    event: JobEvent
    state: JobState
    attempt: int
    worker: str
    detail: str


def enqueue(connection: Connection, new: NewJob) -> tuple[int, bool]:
    """Queue the job unless the same work was queued before; return its id and whether it is new.

    Work that an earlier generation queued belongs to this one from now on.
    """
    job_id = insert_unless_there(
        connection,
        _job,
        {
            "key": new.key,
            "study_id": new.study_id,
            "generation": new.generation,
            "rule": new.rule,
            "model": new.model,
            "model_digest": new.model_digest,
            "inputs": {key: list(value) for key, value in new.inputs.items()},
            "caveat": new.caveat,
            "priority": new.priority,
            "gate": new.window,
            "patience": new.patience,
            "turn_at": after(new.patience),
            "deadline_at": None if new.deadline_seconds is None else after(new.deadline_seconds),
            "deadline_seconds": new.deadline_seconds,
            "when_late": new.when_late,
            "state": JobState.AVAILABLE,
            "attempt": 0,
            "maximum_attempts": new.maximum_attempts,
            "available_at": now(),
            "fence": 0,
            "worker": "",
            "reason": "",
            "created_at": now(),
        },
    )
    if job_id is not None:
        return job_id, True
    job_id = connection.execute(select(_job.c.id).where(_job.c.key == new.key)).scalar_one()
    connection.execute(
        update(_job).where(_job.c.id == job_id, _job.c.generation < new.generation).values(generation=new.generation)
    )
    return job_id, False


def replace(connection: Connection, former: int, *, by: int) -> None:
    """Note that a job takes the place of another; of one without a document, the place of what that one replaced."""
    result, made = tables.result, tables.result_object
    documents = select(made.c.id).join(result, result.c.id == made.c.result_id).where(result.c.job_id == former)
    has_any = connection.execute(documents.limit(1)).first() is not None
    predecessor = former if has_any else get(connection, former).replaces
    if predecessor not in {None, by}:
        connection.execute(update(_job).where(_job.c.id == by).values(replaces=predecessor))


def cancel_outdated(connection: Connection, job_id: int, generation: int) -> None:
    """Cancel a job that nobody asks for any more since this generation."""
    reason = f"{_OUTDATED} {generation}"
    _apply(connection, JobEvent.CANCEL, _job.c.id == job_id, finished_at=now(), reason=reason, detail=reason)


def revive(connection: Connection, job_id: int, generation: int) -> None:
    """Make a job available again that was cancelled because nobody asked for it."""
    detail = f"asked for again by generation {generation}"
    _apply(connection, JobEvent.REQUEUE, _job.c.id == job_id, was_outdated, **_AFRESH, detail=detail)


def claim(
    connection: Connection,
    *,
    worker: str,
    lease_seconds: float,
    model_digests: Collection[str] | None = None,
    ageing_seconds: float = AGEING_SECONDS,
    waited_seconds: float = 0.0,
    like: str = "",
) -> Job | None:
    """Take the job whose turn is earliest of those that may begin, and lease it; None when there is none.

    `model_digests` are the models that the worker has, exactly as jobs name them; None is every model. A job of the
    model `like` goes before those that are no more urgent by now, except before priority 0. Only jobs that have been
    available for `waited_seconds` are taken. What a dead worker left behind is taken back first.
    """
    expire(connection)
    wanted = _claimable(model_digests, waited_seconds)
    first = _first(connection, *wanted, lock=True)
    if first is None:
        return None
    if like not in {"", first.model_digest} and (grown := _level(first, ageing_seconds)) != URGENT:
        no_more_urgent = _job.c.turn_at <= first.now + timedelta(seconds=grown * ageing_seconds)
        first = _first(connection, *wanted, _job.c.model_digest == like, no_more_urgent, lock=True) or first
    if not gates.passes(connection, first.gate):
        return None
    row = _apply(
        connection,
        JobEvent.CLAIM,
        _job.c.id == first.id,
        attempt=_job.c.attempt + 1,
        fence=_job.c.fence + 1,
        worker=worker,
        lease_expires_at=after(lease_seconds),
    )
    return None if row is None else _as_job(row)


def prepare(connection: Connection, job: Job) -> None:
    """Let a claimed job rest until the worker's hands are free. Raises LeaseLost."""
    _require(_apply(connection, JobEvent.PREPARE, *_held(job)), job)


def must_wait(
    connection: Connection,
    job: Job,
    *,
    model_digests: Collection[str] | None = None,
    ageing_seconds: float = AGEING_SECONDS,
    waited_seconds: float = 0.0,
) -> str:
    """Return why a prepared job may not begin now, "" when it may.

    Its gate is shut, its deadline has passed, or a job waits that is more urgent by now.
    """
    if why := gates.why_shut(connection, job.window):
        return why
    if job.when_late is WhenLate.DISCARD and job.deadline_at is not None and job.deadline_at < gates.clock(connection):
        return "its deadline has passed"
    first = _first(connection, *_claimable(model_digests, waited_seconds))
    if first is None:
        return ""
    own = URGENT if job.priority == URGENT else level((job.turn_at - first.now).total_seconds(), ageing_seconds)
    return f"job {first.id} is more urgent" if _level(first, ageing_seconds) < own else ""


def start(
    connection: Connection,
    job: Job,
    *,
    model_digests: Collection[str] | None = None,
    ageing_seconds: float = AGEING_SECONDS,
) -> bool:
    """Begin a prepared job, or give it back when it may not begin now; return whether it begins. Raises LeaseLost."""
    why = must_wait(connection, job, model_digests=model_digests, ageing_seconds=ageing_seconds)
    if why or not gates.passes(connection, job.window):
        release(connection, job, why)
        return False
    _require(_apply(connection, JobEvent.START, *_held(job)), job)
    return True


def _claimable(model_digests: Collection[str] | None, waited_seconds: float) -> tuple[ColumnElement[bool], ...]:
    return (
        _job.c.available_at <= after(-waited_seconds),
        or_(_job.c.when_late == WhenLate.RUN, _job.c.deadline_at.is_(None), _job.c.deadline_at > now()),
        *(() if model_digests is None else (_job.c.model_digest.in_(model_digests),)),
    )


def _first(
    connection: Connection, *wanted: ColumnElement[bool], lock: bool = False
) -> Row[tuple[int, int, datetime, str, str, datetime]] | None:
    """Return the waiting job with the earliest turn behind the gates that are open."""
    query = (
        select(_job.c.id, _job.c.priority, _job.c.turn_at, _job.c.gate, _job.c.model_digest, now().label("now"))
        .where(tables.job_waiting, *wanted)
        .order_by(_job.c.turn_at, _job.c.id)
        .limit(1)
    )
    if lock:
        query = query.with_for_update(skip_locked=True, key_share=True)
    # One look for each gate, which goes straight to the job; they are few.
    heads = [connection.execute(query.where(_job.c.gate == name)).first() for name in gates.open_names(connection)]
    return min((head for head in heads if head is not None), key=lambda head: (head.turn_at, head.id), default=None)


def _level(row: Row[tuple[int, int, datetime, str, str, datetime]], ageing_seconds: float) -> int:
    if row.priority == URGENT:
        return URGENT
    return level((row.turn_at - row.now).total_seconds(), ageing_seconds)


def renew(connection: Connection, job: Job, *, lease_seconds: float) -> None:
    """Extend the lease. Raises LeaseLost when somebody else holds the job, or it was cancelled."""
    renewed = connection.execute(
        update(_job)
        .where(*_held(job), _job.c.state.in_(sources(JobEvent.RELEASE)))
        .values(lease_expires_at=after(lease_seconds))
        .returning(_job.c.id)
    ).first()
    if renewed is None:
        raise LeaseLost(f"job {job.id}: the lease of attempt {job.attempt} is over")


def complete(connection: Connection, job: Job) -> Job:
    """Finish the job, in the transaction that writes its result; return it as it stands now. Raises LeaseLost."""
    return _as_job(_require(_apply(connection, JobEvent.COMPLETE, *_held(job), finished_at=now(), reason=""), job))


def is_completed(connection: Connection, job: Job) -> bool:
    """Return whether this very claim of the job has completed it."""
    found = get(connection, job.id)
    return found.state is JobState.COMPLETED and found.fence == job.fence


def fail(connection: Connection, job: Job, reason: str, *, backoff_seconds: float) -> JobState:
    """End a failed attempt: another one after a backoff that doubles each time, or the dead letter.

    Raises LeaseLost.
    """
    if job.attempt >= job.maximum_attempts:
        row = _apply(connection, JobEvent.EXHAUST, *_held(job), finished_at=now(), reason=reason, detail=reason)
    else:
        delay = min(backoff_seconds * 2 ** min(job.attempt - 1, 30), LONGEST_BACKOFF_SECONDS)
        row = _apply(connection, JobEvent.FAIL, *_held(job), available_at=after(delay), reason=reason, detail=reason)
    return JobState(_require(row, job).state)


def refuse(connection: Connection, job: Job, reason: str) -> None:
    """Discard the job because its input cannot give a right answer. Raises LeaseLost."""
    _require(_apply(connection, JobEvent.REFUSE, *_held(job), finished_at=now(), reason=reason, detail=reason), job)


def release(connection: Connection, job: Job, detail: str = "") -> None:
    """Give a claimed job back unworked; the attempt does not count. Raises LeaseLost."""
    _require(_apply(connection, JobEvent.RELEASE, *_held(job), **_UNWORKED, detail=detail), job)


def expire(connection: Connection) -> list[int]:
    """Take back the jobs whose lease ran out; a job that used up its attempts so is discarded.

    The attempt of one that rested does not count: whatever befell its worker was not its doing.
    """
    rows = connection.execute(
        select(_job.c.id, _job.c.state, _job.c.attempt, _job.c.maximum_attempts, _job.c.fence, _job.c.worker)
        .where(tables.job_executing, _job.c.lease_expires_at < now())
        .with_for_update(skip_locked=True, key_share=True)
    ).all()
    for row in rows:
        reason = f"the worker stopped renewing its lease in attempt {row.attempt}"
        # Which one, with its host, is for the history alone: a reason may go to the PACS.
        detail = f"worker {row.worker} stopped renewing its lease in attempt {row.attempt}"
        held = (_job.c.id == row.id, _job.c.fence == row.fence)
        if row.state == JobState.PREPARED:
            _apply(connection, JobEvent.RELEASE, *held, **_UNWORKED, detail=detail)
        elif row.attempt >= row.maximum_attempts:
            _apply(connection, JobEvent.EXHAUST, *held, finished_at=now(), reason=reason, detail=detail)
        else:
            _apply(connection, JobEvent.EXPIRE, *held, available_at=now(), reason=reason, detail=detail)
    return [row.id for row in rows]


def miss(connection: Connection) -> list[int]:
    """Discard the jobs that are of no use any more because their deadline has passed; at most so many at once."""
    late = (
        select(_job.c.id, _job.c.deadline_at)
        .where(tables.job_missable, _job.c.deadline_at < now())
        .order_by(_job.c.deadline_at)
        .limit(MISSED_AT_ONCE)
        .with_for_update(skip_locked=True, key_share=True)
    )
    rows = connection.execute(late).all()
    for row in rows:
        reason = f"it had not begun at its deadline, {row.deadline_at:%Y-%m-%d %H:%M:%S} UTC"
        _apply(connection, JobEvent.MISS, _job.c.id == row.id, finished_at=now(), reason=reason, detail=reason)
    return [row.id for row in rows]


def hurry(connection: Connection, job_id: int) -> None:
    """Let a waiting job begin before all others, outside its window and however late. Raises NotFound."""
    urgent = patience(URGENT, AGEING_SECONDS)
    values = {"priority": URGENT, "patience": urgent, "turn_at": after(urgent), "available_at": now(), "gate": ""}
    _operate(connection, JobEvent.HURRY, job_id, **values, deadline_at=None, deadline_seconds=None)


def cancel(connection: Connection, job_id: int) -> None:
    """Cancel a job that is not finished. Raises NotFound when it is, or does not exist."""
    _operate(connection, JobEvent.CANCEL, job_id, finished_at=now())


def requeue(connection: Connection, job_id: int) -> None:
    """Make a discarded, cancelled or waiting job available at once, with fresh attempts, however late.

    Raises NotFound.
    """
    _operate(connection, JobEvent.REQUEUE, job_id, **{**_AFRESH, "deadline_at": None})


def get(connection: Connection, job_id: int) -> Job:
    """Return one job. Raises NotFound."""
    row = connection.execute(select(_job).where(_job.c.id == job_id)).first()
    if row is None:
        raise NotFound(f"no job {job_id}; see `meddaemon jobs list`")
    return _as_job(row)


def listing(
    connection: Connection,
    *,
    state: JobState | None = None,
    study_id: int | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Job]:
    """Return jobs, newest first; with `before`, those that were made before that one."""
    query = select(_job).where(*earlier(_job.c.id, before)).order_by(_job.c.id.desc()).limit(limit)
    if state is not None:
        query = query.where(_job.c.state == state, _PART[state])
    if study_id is not None:
        query = query.where(_job.c.study_id == study_id)
    return [_as_job(row) for row in connection.execute(query)]


def history(connection: Connection, job_id: int) -> list[JobHistory]:
    """Return the events of a job in the order in which they happened."""
    event = tables.job_event
    return [
        JobHistory(
            at=row.at,
            event=JobEvent(row.event),
            state=JobState(row.state),
            attempt=row.attempt,
            worker=row.worker,
            detail=row.detail,
        )
        for row in connection.execute(select(event).where(event.c.job_id == job_id).order_by(event.c.id))
    ]


def waiting_models(connection: Connection) -> dict[tuple[str, str], int]:
    """Return how many jobs wait for each model, by its name and digest."""
    rows = connection.execute(
        select(_job.c.model, _job.c.model_digest, func.count())
        .where(tables.job_waiting)
        .group_by(_job.c.model, _job.c.model_digest)
    )
    return {(model, digest): count for model, digest, count in rows}


def state_counts(connection: Connection) -> dict[JobState, int]:
    """Return how many jobs are in each state."""
    counted = select(_job.c.state, func.count()).group_by(_job.c.state)
    return {JobState(state): count for part in PARTS for state, count in connection.execute(counted.where(part))}


def _held(job: Job) -> tuple[ColumnElement[bool], ...]:
    return (_job.c.id == job.id, _job.c.fence == job.fence)


def _apply(
    connection: Connection, event: JobEvent, *where: ColumnElement[bool], detail: str = "", **values: object
) -> Row[tuple[object, ...]] | None:
    """Move one job by `event` where the table of states allows it, and write the event down."""
    if target(event) is JobState.DISCARDED:
        values |= _FAILED
    row = connection.execute(
        update(_job)
        .where(*where, _job.c.state.in_(sources(event)))
        .values(state=target(event), **values)
        .returning(*_job.c)
    ).first()
    if row is not None:
        connection.execute(
            insert(tables.job_event).values(
                job_id=row.id,
                at=now(),
                event=event,
                state=row.state,
                attempt=row.attempt,
                worker="" if event in _NOT_BY_A_WORKER else row.worker,
                detail=detail,
            )
        )
    return row


def _require(row: Row[tuple[object, ...]] | None, job: Job) -> Row[tuple[object, ...]]:
    if row is None:
        raise LeaseLost(f"job {job.id}: the lease of attempt {job.attempt} is over")
    return row


def _operate(connection: Connection, event: JobEvent, job_id: int, **values: object) -> None:
    if _apply(connection, event, _job.c.id == job_id, detail="by the operator", **values) is None:
        state = get(connection, job_id).state
        raise NotFound(f"job {job_id} is {state}: it does not take the event {event}")


def _as_job(row: Row[tuple[object, ...]]) -> Job:
    return Job(
        id=row.id,
        key=row.key,
        study_id=row.study_id,
        generation=row.generation,
        rule=row.rule,
        model=row.model,
        model_digest=row.model_digest,
        inputs={key: tuple(value) for key, value in row.inputs.items()},
        replaces=row.replaces,
        caveat=row.caveat,
        priority=row.priority,
        window=row.gate,
        patience=row.patience,
        turn_at=row.turn_at,
        deadline_at=row.deadline_at,
        deadline_seconds=row.deadline_seconds,
        when_late=WhenLate(row.when_late),
        state=JobState(row.state),
        attempt=row.attempt,
        maximum_attempts=row.maximum_attempts,
        fence=row.fence,
        worker=row.worker,
        reason=row.reason,
        available_at=row.available_at,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
