"""Failures that nobody has told of yet: discarded jobs that somebody asks for, and that have no result of that failure.

However a job came to be discarded, its row says how often it was tried to tell of it (`document_tries`); null is that
nothing is to be told. Whoever tells of one has a lease and a fencing token, as whoever works on a job: to queue the
job again takes both away.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, or_, select, update

from meddaemon.db import jobs, tables
from meddaemon.db.clock import after, now
from meddaemon.db.jobs import Job
from meddaemon.db.requests import is_asked_for
from meddaemon.domain.errors import LeaseLost

STRANGE_SECONDS = 600.0
"""How long the failure of a model that a worker does not have is left to one that has it."""

_job = tables.job


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed job under a lease: the series that its model was to see first, and the how manieth try to tell of it."""

    job: Job
    series_instance_uid: str
    tries: int


def claim(connection: Connection, *, model_digests: Collection[str], lease_seconds: float) -> Failure | None:
    """Lease the failure that is to be told of next; None when there is none.

    `model_digests` are the models that the worker has.
    """
    is_ours = or_(_job.c.model_digest.in_(model_digests), _job.c.finished_at < after(-STRANGE_SECONDS))
    is_free = or_(_job.c.lease_expires_at.is_(None), _job.c.lease_expires_at < now())
    found = connection.execute(
        select(_job.c.id)
        .where(tables.job_undocumented, is_free, is_ours, is_asked_for(_job.c.id))
        .order_by(_job.c.id)
        .limit(1)
        .with_for_update(skip_locked=True, key_share=True)
    ).scalar()
    if found is None:
        return None
    tries = connection.execute(
        update(_job)
        .where(_job.c.id == found)
        .values(
            fence=_job.c.fence + 1,
            document_tries=_job.c.document_tries + 1,
            lease_expires_at=after(lease_seconds),
        )
        .returning(_job.c.document_tries)
    ).scalar_one()
    job = jobs.get(connection, found)
    instance, series = tables.instance, tables.series
    first = next((digest for digests in job.inputs.values() for digest in digests), "")
    of_instance = select(series.c.series_instance_uid).join(instance, instance.c.series_id == series.c.id)
    uid = connection.execute(of_instance.where(instance.c.sha256 == first)).scalar()
    return Failure(job=job, series_instance_uid=uid or "", tries=tries)


def conclude(connection: Connection, failure: Failure) -> None:
    """Note that a failure is told of, in the transaction that writes its result.

    Raises LeaseLost when the job was queued again, somebody else tells of it, or nobody asks for it any more.
    """
    _give_up(connection, failure, document_tries=None, lease_expires_at=None)
    # Whoever asks for other work meanwhile has locked the job: what he has written is seen from here on.
    if (
        connection.execute(select(_job.c.id).where(_job.c.id == failure.job.id, is_asked_for(_job.c.id))).first()
        is None
    ):
        raise LeaseLost(f"job {failure.job.id}: nobody asks for it any more")


def postpone(connection: Connection, failure: Failure, *, delay_seconds: float) -> None:
    """Have a failure told of later. Raises LeaseLost."""
    _give_up(connection, failure, lease_expires_at=after(delay_seconds))


def _give_up(connection: Connection, failure: Failure, **values: object) -> None:
    # A job that was queued again, and failed without a claim, has the same fence.
    held = (_job.c.id == failure.job.id, _job.c.fence == failure.job.fence, _job.c.document_tries == failure.tries)
    if connection.execute(update(_job).where(*held).values(**values).returning(_job.c.id)).first() is None:
        raise LeaseLost(f"job {failure.job.id}: somebody else tells of its failure, or it was queued again")
