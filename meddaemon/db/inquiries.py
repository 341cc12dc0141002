"""Asking the peer that sent a study how many instances it has: who is to be asked, and what was answered.

The question is a row and so is the answer, because no transaction may be open while a peer is waited for.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Double, insert, select, type_coerce, update

from meddaemon.db import tables
from meddaemon.db.clock import now

_inquiry = tables.inquiry


@dataclass(frozen=True, kw_only=True)
class Question:
    """A study that a peer is to be asked about."""

    id: int
    study_id: int
    study_instance_uid: str
    wanted_at: float
    """Tells this question from a later one to the same peer about the same study (seconds since 1970)."""


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """What a peer was asked `age` seconds ago and has answered: a count, or a problem, or nothing yet.

    It is `outdated` once an instance has arrived since it was asked.
    """

    ae_title: str
    age: float
    outdated: bool
    answered_at: datetime | None
    instances: int | None
    problem: str


def want(connection: Connection, study_id: int, ae_title: str, *, afresh: bool) -> None:
    """Have a peer asked about a study; the caller holds the lock on the study.

    What it answered before stands until it answers again, unless it is asked `afresh`.
    """
    asked: dict[str, object] = {"wanted_at": now(), "answered_at": None, "problem": ""}
    if afresh:
        asked["instances"] = None
    again = connection.execute(
        update(_inquiry).where(_inquiry.c.study_id == study_id, _inquiry.c.ae_title == ae_title).values(**asked)
    )
    if not again.rowcount:
        connection.execute(insert(_inquiry).values(study_id=study_id, ae_title=ae_title, **asked))


def next_for(connection: Connection, ae_title: str) -> Question | None:
    """Return the question to a peer that has been open for longest; None when there is none."""
    study = tables.study
    row = connection.execute(
        select(
            _inquiry.c.id,
            type_coerce(_inquiry.c.wanted_at, Double).label("wanted_at"),
            study.c.id.label("study_id"),
            study.c.study_instance_uid,
        )
        .join(study, study.c.id == _inquiry.c.study_id)
        .where(tables.inquiry_open, _inquiry.c.ae_title == ae_title)
        .order_by(_inquiry.c.wanted_at, _inquiry.c.id)
        .limit(1)
    ).first()
    return None if row is None else Question(**row._mapping)


def answer(connection: Connection, question: Question, *, instances: int | None, problem: str = "") -> None:
    """Keep what a peer answered, unless it is to be asked anew, and let the study be looked at."""
    study = tables.study
    # In the order of the others: the study first.
    connection.execute(select(study.c.id).where(study.c.id == question.study_id).with_for_update(key_share=True))
    kept = connection.execute(
        update(_inquiry)
        .where(_inquiry.c.id == question.id, type_coerce(_inquiry.c.wanted_at, Double) == question.wanted_at)
        .values(answered_at=now(), instances=instances, problem=problem)
    )
    if kept.rowcount:
        connection.execute(
            update(study).where(study.c.id == question.study_id, study.c.due_at > now()).values(due_at=now())
        )


def of_study(connection: Connection, study_id: int, ae_titles: Collection[str] | None = None) -> list[Inquiry]:
    """Return what these peers, or all, were asked about a study and what they answered."""
    study = tables.study
    query = (
        select(
            _inquiry,
            type_coerce(now() - _inquiry.c.wanted_at, Double).label("age"),
            # By what the rows say: the time from one statement to the next is no part of it.
            (_inquiry.c.wanted_at <= study.c.last_received_at).label("outdated"),
        )
        .join(study, study.c.id == _inquiry.c.study_id)
        .where(_inquiry.c.study_id == study_id)
        .order_by(_inquiry.c.id)
    )
    if ae_titles is not None:
        query = query.where(_inquiry.c.ae_title.in_(ae_titles))
    return [
        Inquiry(
            ae_title=row.ae_title,
            age=row.age,
            outdated=bool(row.outdated),
            answered_at=row.answered_at,
            instances=row.instances,
            problem=row.problem,
        )
        for row in connection.execute(query)
    ]
