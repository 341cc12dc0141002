"""Who asks for which work: what makes a job worth running, a result current and a delivery wanted.

One row for each study, rule and model: the job that the rule asks for in the latest generation in which it was
decided. A job that no row names is outdated: it is cancelled unless it is finished, its result is not current, and
what was not sent yet of it is not sent any more. That is a matter of what stands here, not of who finished when. The
same becomes of a result that tells of a failure as soon as the job is queued again.

Rows change only under the lock on their study and its jobs (`lock`). A worker's completion locks its job before it
asks for `destinations_of`: whichever comes second sees what the first has written.
"""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, insert, not_, or_, select, update

from meddaemon.db import deliveries, jobs, tables
from meddaemon.db.jobs import NewJob
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.rules import FORCED
from meddaemon.domain.states import JobState

_request, _job, _result = tables.request, tables.job, tables.result


def lock(connection: Connection, study_id: int) -> None:
    """Keep others from asking for work on a study, and its workers from completing any, until the transaction ends."""
    # Not locks on the keys: results refer to study and job, and a worker that is about to write one need not wait.
    for table, of_study in ((tables.study, tables.study.c.id), (_job, _job.c.study_id)):
        connection.execute(
            select(table.c.id).where(of_study == study_id).order_by(table.c.id).with_for_update(key_share=True)
        )


def ask(connection: Connection, new: NewJob, destinations: Sequence[str]) -> tuple[int, bool]:
    """Ask for work by a rule, instead of what it asked for before; return the job's id and whether it is new."""
    job_id, is_new = jobs.enqueue(connection, new)
    own = and_(_request.c.study_id == new.study_id, _request.c.rule == new.rule, _request.c.model == new.model)
    values = {"job_id": job_id, "generation": new.generation, "destinations": list(destinations)}
    former = connection.execute(select(_request.c.job_id).where(own)).scalar()
    if former is None:
        connection.execute(insert(_request).values(study_id=new.study_id, rule=new.rule, model=new.model, **values))
        return job_id, is_new
    connection.execute(update(_request).where(own).values(**values))
    if former != job_id:
        jobs.replace(connection, former, by=job_id)
        # What an operator forced on the same instances was that work too: it follows what takes its place.
        connection.execute(
            update(_request)
            .where(_request.c.job_id == former, _request.c.rule.startswith(FORCED))
            .values(job_id=job_id, generation=new.generation)
        )
    return job_id, is_new


def let_go(connection: Connection, *, study_id: int, rule: str, keep: Collection[str] = ()) -> None:
    """Take back what a rule asked for and does not ask for any more; `keep` are models that it still runs."""
    connection.execute(
        delete(_request).where(_request.c.study_id == study_id, _request.c.rule == rule, _request.c.model.not_in(keep))
    )


def rules_of(connection: Connection, study_id: int) -> set[str]:
    """Return the rules that ask for work on a study; operators' own choices are not among them."""
    rows = connection.execute(select(_request.c.rule).distinct().where(_request.c.study_id == study_id))
    return {rule for rule in rows.scalars() if not rule.startswith(FORCED)}


def is_asked_for(job_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Hold for jobs that somebody asks for."""
    return exists(select(_request.c.id).where(_request.c.job_id == job_id))


def is_current() -> ColumnElement[bool]:
    """Hold for results that count: of jobs that somebody asks for, and no failure after which the job was queued again.

    The views of analysts say the same.
    """
    ended = _job.alias()
    still_failed = exists(
        select(ended.c.id).where(
            ended.c.id == _result.c.job_id,
            ended.c.state == JobState.DISCARDED,
            ended.c.finished_at == _result.c.failed_at,
        )
    )
    return and_(is_asked_for(_result.c.job_id), or_(_result.c.failed_at.is_(None), still_failed))


def requeue(connection: Connection, job_id: int) -> None:
    """Let a job run again (`jobs.requeue`); what was not sent yet of its failure is not sent any more.

    Raises NotFound.
    """
    jobs.requeue(connection, job_id)
    failed = connection.execute(select(_result.c.id).where(_result.c.job_id == job_id)).scalars()
    deliveries.keep_wanted(connection, dict.fromkeys(failed, ()))


def destinations_of(connection: Connection, job_id: int) -> tuple[str, ...]:
    """Return where the result of a job goes: wherever anybody who asks for it sends it."""
    rows = connection.execute(
        select(_request.c.destinations).where(_request.c.job_id == job_id).order_by(_request.c.id)
    ).scalars()
    return tuple(dict.fromkeys(destination for destinations in rows for destination in destinations))


def settle(connection: Connection, study_id: int, generation: int, outlets: Mapping[str, Outlet]) -> None:
    """Bring jobs and outbox in line with what is asked for now.

    `outlets` says of each destination what it takes. Work that is asked for again and was only
    cancelled because it was outdated is available again; what a person cancelled or a worker refused is not.
    """
    outdated = select(_job.c.id).where(_job.c.study_id == study_id, not_(is_asked_for(_job.c.id)))
    for job_id in connection.execute(outdated.where(jobs.is_unfinished).order_by(_job.c.id)).scalars().all():
        jobs.cancel_outdated(connection, job_id, generation)
    wanted = select(_job.c.id).where(_job.c.study_id == study_id, is_asked_for(_job.c.id))
    for job_id in connection.execute(wanted.where(jobs.was_outdated).order_by(_job.c.id)).scalars().all():
        jobs.revive(connection, job_id, generation)
    finished = (
        select(_result.c.id, _job.c.id, _job.c.priority, is_current())
        .join(_job, _job.c.id == _result.c.job_id)
        .where(_result.c.study_id == study_id)
        .order_by(_result.c.id)
    )
    named: dict[int, tuple[str, ...]] = {}
    for result_id, job_id, priority, counts in connection.execute(finished).all():
        named[result_id] = destinations_of(connection, job_id) if counts else ()
        deliveries.post(connection, result_id, destinations=named[result_id], outlets=outlets, priority=priority)
    deliveries.keep_wanted(connection, named)
