"""Studies that wait for a person: they contradict themselves, or parts are missing and a rule wants it so.

They are held until an operator releases them, and not held for the same thing again. One that is only incomplete goes
on by itself when more of it arrives, or when others say more of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from meddaemon.db import tables
from meddaemon.db.clock import now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.domain.errors import NotFound
from meddaemon.domain.identity import Contradiction
from meddaemon.domain.states import StudyEvent, StudyState, study_moves

_contradiction = tables.contradiction
INCOMPLETE = "incomplete"
"""The kind of what is no contradiction, but a part that is missing."""


@dataclass(frozen=True, kw_only=True)
class ContradictionRow:
    """What was found against a study; released when an operator let it go on in spite of it."""

    kind: str
    reason: str
    at: datetime
    released_at: datetime | None


def record(connection: Connection, study_id: int, found: Sequence[Contradiction]) -> list[Contradiction]:
    """Keep what was found in a study; return what no operator has released."""
    for each in found:
        insert_unless_there(
            connection,
            _contradiction,
            {
                "study_id": study_id,
                "kind": each.kind,
                "subject": each.subject,
                "value": each.value,
                "reason": each.reason,
                "at": now(),
            },
        )
    columns = (_contradiction.c.kind, _contradiction.c.subject, _contradiction.c.value)
    rows = connection.execute(
        select(*columns).where(_contradiction.c.study_id == study_id, _contradiction.c.released_at.is_not(None))
    )
    released = {tuple(row) for row in rows}
    return [each for each in found if (each.kind, each.subject, each.value) not in released]


def hold(connection: Connection, study_id: int) -> None:
    """Let no rule be carried out for a study until it is released."""
    study = tables.study
    connection.execute(
        update(study)
        .where(study.c.id == study_id, study.c.state.in_(study_moves(StudyEvent.HOLD)))
        .values(state=StudyState.HELD, due_at=None, looked_at=now())
    )


def supplemented(connection: Connection) -> list[int]:
    """Return studies that are held because they are incomplete, and to which something was added since."""
    study, other = tables.study, _contradiction.alias()
    contradicts_itself = select(other.c.id).where(
        other.c.study_id == study.c.id, other.c.released_at.is_(None), other.c.kind != INCOMPLETE
    )
    rows = connection.execute(
        select(study.c.id).where(
            tables.study_held, study.c.looked_at < study.c.last_received_at, ~contradicts_itself.exists()
        )
    )
    return list(rows.scalars())


def reconsider(connection: Connection, study_id: int, *, quiet_seconds: float = 0.0) -> None:
    """Let a study that is held only because it is incomplete be looked at once it has been quiet for this long.

    What is still missing then holds it again.
    """
    study = tables.study
    is_open = (_contradiction.c.study_id == study_id, _contradiction.c.released_at.is_(None))
    if connection.execute(select(_contradiction.c.id).where(*is_open, _contradiction.c.kind != INCOMPLETE)).first():
        return
    connection.execute(delete(_contradiction).where(*is_open))
    connection.execute(
        update(study)
        .where(study.c.id == study_id, study.c.state.in_(study_moves(StudyEvent.RELEASE)))
        .values(state=StudyState.RECEIVING, due_at=study.c.last_received_at + quiet_seconds)
    )


def release(connection: Connection, study_id: int, *, quiet_seconds: float) -> None:
    """Let a held study go on in spite of all that was found; it is due once it has been quiet for this long.

    Raises NotFound when it is not held.
    """
    study = tables.study
    released = connection.execute(
        update(study)
        .where(study.c.id == study_id, study.c.state.in_(study_moves(StudyEvent.RELEASE)))
        .values(state=StudyState.RECEIVING, due_at=study.c.last_received_at + quiet_seconds)
    )
    if released.rowcount != 1:
        raise NotFound(f"study {study_id} is not held; see `meddaemon studies`")
    connection.execute(
        update(_contradiction)
        .where(_contradiction.c.study_id == study_id, _contradiction.c.released_at.is_(None))
        .values(released_at=now())
    )


def listing(connection: Connection, study_id: int) -> list[ContradictionRow]:
    """Return everything that was found in a study, in order."""
    rows = connection.execute(
        select(_contradiction).where(_contradiction.c.study_id == study_id).order_by(_contradiction.c.id)
    )
    return [ContradictionRow(kind=row.kind, reason=row.reason, at=row.at, released_at=row.released_at) for row in rows]


def kinds(connection: Connection, study_ids: Sequence[int]) -> dict[int, list[str]]:
    """Return in what each of these studies contradicts itself, as long as it is not released."""
    rows = connection.execute(
        select(_contradiction.c.study_id, _contradiction.c.kind)
        .where(_contradiction.c.study_id.in_(study_ids), _contradiction.c.released_at.is_(None))
        .distinct()
        .order_by(_contradiction.c.kind)
    )
    found: dict[int, list[str]] = {}
    for study_id, kind in rows:
        found.setdefault(study_id, []).append(kind)
    return found


def held(connection: Connection) -> list[int]:
    """Return the studies that are held."""
    study = tables.study
    rows = connection.execute(select(study.c.id).where(tables.study_held).order_by(study.c.id))
    return list(rows.scalars())
