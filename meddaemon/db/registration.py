"""Registering received instances with their series and study, many in one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from sqlalchemy import BindParameter, Connection, Text, Update, bindparam, case, func, insert, null, select, update
from sqlalchemy.dialects import postgresql

from meddaemon.db import tables
from meddaemon.db.clock import after, now
from meddaemon.db.insertion import insert_unless_there
from meddaemon.db.instances import Received, Registration
from meddaemon.domain.errors import IdentityTaken
from meddaemon.domain.identity import same_patient
from meddaemon.domain.states import StudyEvent, StudyState, study_moves

Header = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Namesake:
    """An object with the SOP Instance UID of another: registered, or about to be (then without digest and study)."""

    study_instance_uid: str
    header: Header
    sha256: str = ""
    study_id: int | None = None


def register(connection: Connection, received: Received, *, quiet_seconds: float) -> Registration:
    """Register one instance as `register_all` does. Raises IdentityTaken; then nothing was written."""
    (outcome,) = register_all(connection, [received], quiet_seconds=quiet_seconds)
    if isinstance(outcome, IdentityTaken):
        raise outcome
    return outcome


def register_all(
    connection: Connection, group: Sequence[Received], *, quiet_seconds: float
) -> list[Registration | IdentityTaken]:
    """Register instances in their order, and let their studies wait for `quiet_seconds` from now.

    A new instance of a complete study reopens it as the next generation. An identical re-send changes nothing.
    One of our own results that comes back is registered without reopening anything. One whose SOP Instance UID is
    that of an object of another study or patient is not registered; the others are.
    """
    known = _registered(connection, [each.sop_instance_uid for each in group], lock=True)
    verdicts = _judge(group, known)
    accepted = [each for each, verdict in zip(group, verdicts, strict=True) if isinstance(verdict, _Accepted)]
    studies = _studies(connection, accepted, quiet_seconds)
    # Whoever decides about these studies, or registers other instances of them, is done now or waits until we are:
    # otherwise an instance could slip into a generation that was decided without it.
    connection.execute(_LOCK, {"of": list(studies.values())})
    series = _series(connection, accepted, studies)
    own_results = set(
        connection.execute(_OWN_RESULTS, {"uids": [each.sop_instance_uid for each in accepted]}).scalars()
    )
    rows, touched, resent = [], set(), []
    outcomes: list[Registration | IdentityTaken] = []
    for each, verdict in zip(group, verdicts, strict=True):
        if not isinstance(verdict, _Accepted):
            outcomes.append(IdentityTaken(verdict, _study_of_first(each.sop_instance_uid, known, accepted, studies)))
            continue
        study_id = studies[each.study_instance_uid]
        if verdict.new:
            own = each.sop_instance_uid in own_results
            rows.append(_row(each, series[study_id, each.series_instance_uid], conflict=verdict.conflict, own=own))
            if not own:
                touched.add(study_id)
        else:
            resent.append((study_id, each))
        outcomes.append(Registration(study_id=study_id, new=verdict.new, conflict=verdict.conflict))
    if rows:
        connection.execute(_INSERT, rows)
    touched.update(study_id for study_id, each in resent if _learn_of_sender(connection, each))
    if touched:
        connection.execute(_touched(quiet_seconds), {"of": sorted(touched)})
    return outcomes


def namesakes(connection: Connection, sop_instance_uid: str) -> list[Namesake]:
    """Return every object that is registered under a SOP Instance UID."""
    # Asked for each object before it is acknowledged, mostly in vain: only a question without detours is quick enough.
    asked = _IS_THERE_SQLITE if connection.dialect.name == "sqlite" else _IS_THERE
    if connection.exec_driver_sql(asked, (sop_instance_uid,)).first() is None:
        return []
    return _registered(connection, [sop_instance_uid], lock=False).get(sop_instance_uid, [])


def taken_by(one: Namesake, others: Iterable[Namesake]) -> str | None:
    """Return what another object of its SOP Instance UID differs in, `study` or `patient`; None where in neither."""
    for each in others:
        if each.study_instance_uid != one.study_instance_uid:
            return "study"
        if not same_patient(each.header, one.header):
            return "patient"
    return None


@dataclass(frozen=True, kw_only=True)
class _Accepted:
    """What becomes of one object: a new one, maybe in conflict with another version, or one that is known."""

    new: bool
    conflict: bool


_Registered = Mapping[str, list[Namesake]]
"""The objects of each SOP Instance UID, in order of arrival."""


def _registered(connection: Connection, uids: Sequence[str], *, lock: bool) -> _Registered:
    """Return what is registered under these UIDs; nobody else registers under them before our transaction ends."""
    if lock and connection.dialect.name == "postgresql":
        # Two studies have no row in common that could be locked. SQLite has one writer at a time anyway.
        connection.execute(_LOCK_UIDS, {"uids": sorted(set(uids))})
    found: dict[str, list[Namesake]] = {}
    for uid, sha256, header, study_id, study_instance_uid in connection.execute(_NAMESAKES, {"uids": uids}):
        one = Namesake(sha256=sha256, study_id=study_id, study_instance_uid=study_instance_uid, header=header)
        found.setdefault(uid, []).append(one)
    return found


def _judge(group: Sequence[Received], known: _Registered) -> list[_Accepted | str]:
    """Return how each object is registered, or in what its UID is taken."""
    there = {uid: list(of_uid) for uid, of_uid in known.items()}
    verdicts: list[_Accepted | str] = []
    for each in group:
        others = there.setdefault(each.sop_instance_uid, [])
        one = Namesake(sha256=each.sha256, study_instance_uid=each.study_instance_uid, header=each.header)
        taken = taken_by(one, others)
        if taken is not None:
            verdicts.append(taken)
            continue
        new = all(other.sha256 != each.sha256 for other in others)
        verdicts.append(_Accepted(new=new, conflict=new and bool(others)))
        if new:
            others.append(one)
    return verdicts


def _study_of_first(
    uid: str, known: _Registered, accepted: Sequence[Received], studies: Mapping[str, int]
) -> int | None:
    """Return the study of the first object that had this UID: registered before, or with the same group."""
    if uid in known:
        return known[uid][0].study_id
    return studies[next(each.study_instance_uid for each in accepted if each.sop_instance_uid == uid)]


def _studies(connection: Connection, group: Sequence[Received], quiet_seconds: float) -> dict[str, int]:
    """Return the id of each study by its UID; those that were not there are now."""
    first = {each.study_instance_uid: each for each in reversed(group)}
    ids = {uid: study_id for uid, study_id in connection.execute(_STUDIES, {"uids": list(first)})}  # noqa: C416
    # In one order everywhere: processes that register for the same studies then wait, and do not block each other.
    for uid in sorted(first.keys() - ids.keys()):
        get = first[uid].header.get
        values = {
            "study_instance_uid": uid,
            "state": StudyState.RECEIVING,
            "generation": 1,
            "first_received_at": now(),
            "last_received_at": now(),
            "due_at": after(quiet_seconds),
            "patient_id": _joined(get("PatientID"), 64),
            "accession_number": _joined(get("AccessionNumber"), 64),
            "study_date": _joined(get("StudyDate"), 8),
            "study_description": _joined(get("StudyDescription"), 64),
        }
        inserted = insert_unless_there(connection, tables.study, values)
        ids[uid] = inserted or connection.execute(_STUDIES, {"uids": [uid]}).one().id
    return {uid: ids[uid] for uid in first}


def _series(
    connection: Connection, group: Sequence[Received], studies: Mapping[str, int]
) -> dict[tuple[int, str], int]:
    """Return the id of each series by the id of its study and its UID; those that were not there are now."""
    first = {(studies[each.study_instance_uid], each.series_instance_uid): each for each in reversed(group)}
    rows = connection.execute(_SERIES, {"of": list(studies.values()), "uids": [uid for _, uid in first]})
    ids = {(row.study_id, row.series_instance_uid): int(row.id) for row in rows}
    for study_id, uid in sorted(first.keys() - ids.keys()):
        get = first[study_id, uid].header.get
        values = {
            "study_id": study_id,
            "series_instance_uid": uid,
            "modality": _joined(get("Modality"), 16),
            "series_description": _joined(get("SeriesDescription"), 64),
        }
        inserted = insert_unless_there(connection, tables.series, values)
        assert inserted is not None  # noqa: S101  the study is locked
        ids[study_id, uid] = inserted
    return ids


def _row(received: Received, series_id: int, *, conflict: bool, own: bool) -> dict[str, object]:
    return {
        "series_id": series_id,
        "sop_instance_uid": received.sop_instance_uid,
        "sop_class_uid": received.sop_class_uid,
        "transfer_syntax_uid": received.transfer_syntax_uid,
        "sha256": received.sha256,
        "size": received.size,
        "header": {keyword: list(value) for keyword, value in received.header.items()},
        "calling_ae_title": received.calling_ae_title,
        "called_ae_title": received.called_ae_title,
        "conflict": conflict,
        "own_result": own,
    }


def _learn_of_sender(connection: Connection, received: Received) -> bool:
    """Note that a known object is there (again); return whether its sender, unknown until now, is known now.

    Recovery adopts an object without knowing who sent it. Rules may ask for that, so they are to be asked again.
    """
    instance = tables.instance
    known = instance.c.sha256 == received.sha256
    connection.execute(update(instance).where(known, instance.c.missing).values(missing=False))
    if not received.calling_ae_title:
        return False
    learned = connection.execute(
        update(instance)
        .where(known, instance.c.calling_ae_title == "", instance.c.called_ae_title == "")
        .values(calling_ae_title=received.calling_ae_title, called_ae_title=received.called_ae_title)
    )
    return learned.rowcount == 1


def _joined(value: Sequence[str] | None, width: int) -> str:
    return "\\".join(value or ())[:width]


# What is asked for each group that arrives is built once: building a statement takes longer than running it.
_UIDS: BindParameter[str] = bindparam("uids", expanding=True)
_OF: BindParameter[int] = bindparam("of", expanding=True)
_LOCK = (
    select(tables.study.c.id)
    .where(tables.study.c.id.in_(_OF))
    .order_by(tables.study.c.id)
    .with_for_update(key_share=True)
)
_HASHES = (
    select(func.hashtextextended(func.unnest(bindparam("uids", type_=postgresql.ARRAY(Text))), 0).label("hash"))
    .distinct()
    .order_by("hash")
    .subquery()
)
_LOCK_UIDS = select(func.pg_advisory_xact_lock(_HASHES.c.hash))
_NAMESAKES = (
    select(
        tables.instance.c.sop_instance_uid,
        tables.instance.c.sha256,
        tables.instance.c.header,
        tables.study.c.id,
        tables.study.c.study_instance_uid,
    )
    .join(tables.series, tables.series.c.id == tables.instance.c.series_id)
    .join(tables.study, tables.study.c.id == tables.series.c.study_id)
    .where(tables.instance.c.sop_instance_uid.in_(_UIDS))
    .order_by(tables.instance.c.id)
)
_STUDIES = select(tables.study.c.study_instance_uid, tables.study.c.id).where(
    tables.study.c.study_instance_uid.in_(_UIDS)
)
_SERIES = select(tables.series).where(tables.series.c.study_id.in_(_OF), tables.series.c.series_instance_uid.in_(_UIDS))
_IS_THERE_SQLITE = "SELECT 1 FROM instance WHERE sop_instance_uid = ? LIMIT 1"
_IS_THERE = "SELECT 1 FROM instance WHERE sop_instance_uid = %s LIMIT 1"
_OWN_RESULTS = select(tables.result_object.c.sop_instance_uid).where(tables.result_object.c.sop_instance_uid.in_(_UIDS))
_INSERT = insert(tables.instance).values(received_at=now())


@cache
def _touched(quiet_seconds: float) -> Update:
    study = tables.study
    return (
        update(study)
        .where(study.c.id.in_(_OF))
        .values(
            last_received_at=now(),
            # A study that is held stays held, whatever arrives.
            due_at=case((study.c.state == StudyState.HELD, null()), else_=after(quiet_seconds)),
            # Rules of this generation may already have run (they can have different quiet times): then, too,
            # what arrives now belongs to the next generation.
            generation=study.c.generation
            + case(
                (
                    select(tables.decision.c.id)
                    .where(tables.decision.c.study_id == study.c.id, tables.decision.c.generation == study.c.generation)
                    .exists(),
                    1,
                ),
                else_=case((study.c.state == StudyState.COMPLETE, 1), else_=0),
            ),
            state=case(*((study.c.state == before, then) for before, then in study_moves(StudyEvent.RECEIVE).items())),
        )
    )
