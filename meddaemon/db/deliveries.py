"""The outbox: one row for each object and destination, drained apart from the jobs that filled it."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    ScalarSelect,
    Select,
    TextClause,
    and_,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from meddaemon.db import filters, leases, tables
from meddaemon.db.clock import after, now
from meddaemon.db.paging import earlier
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.outlet import REFERENCES, Edition, Outlet, choose_edition, next_edition, says, turn
from meddaemon.domain.states import (
    DELIVERY_TAKEN,
    DeliveryEvent,
    DeliveryState,
    delivery_sources,
    delivery_target,
)

_delivery, _object = tables.delivery, tables.result_object
_other = _delivery.alias()
UNASKED = {"custody_at": 0.0, "custody_asked": 0, "custody_missed": 0}
"""What is known of the custody of an object that is sent, for the first time or again."""
_AFRESH: Mapping[str, object] = {"losses": 0, "faults": 0, "custody_reason": "", **UNASKED}


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One object on its way to one destination."""

    id: int
    result_id: int
    destination: str
    kind: str
    part: str
    edition: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    attempt: int
    fence: int
    sender: str
    """AE title that most instances of the study came from when it was claimed first."""


@dataclass(frozen=True, kw_only=True)
class DeliveryRow:
    """How an object and a destination stand with each other."""

    id: int
    result_id: int
    object_id: int
    kind: str
    part: str
    edition: str
    sop_instance_uid: str
    destination: str
    state: DeliveryState
    attempt: int
    status: int | None
    reason: str
    waits_for: str
    """The kind of what it refers to and is held there: it is not sent before that; "" where there is none."""
    wanted: bool
    posted_at: datetime
    available_at: datetime
    sent_at: datetime | None
    committed_at: datetime | None
    verified_at: datetime | None
    done_at: datetime | None
    custody_at: datetime
    custody_asked: int
    losses: int
    custody_reason: str


@dataclass(frozen=True, kw_only=True)
class _Made:
    """An object of a result, as editions are chosen by."""

    id: int
    kind: str
    part: str
    edition: str


def post(
    connection: Connection,
    result_id: int,
    *,
    destinations: Collection[str],
    outlets: Mapping[str, Outlet],
    priority: int,
) -> None:
    """Put the objects of a result into the outbox, for every destination that takes them and lacks them.

    Of the editions that it may be given a destination gets the first that was made, whole; the one that it has begun
    to get, it keeps. `outlets` says what the destinations take that there are; one that is not there any more gets
    nothing.
    """
    made = _made(connection, result_id)
    known = _known(connection, result_id)
    status = _status(connection, result_id)
    wanted = {
        name: _wanted(outlets[name], made, known.get(name, {}))
        for name in destinations
        if name in outlets
        and status in outlets[name].statuses
        and filters.is_satisfied(connection, result_id, outlets[name].when)
    }
    for each in made:
        for name, taken in wanted.items():
            if each in taken:
                _put(connection, each.id, name, priority)


def unsent(
    connection: Connection, result_id: int, *, destinations: Collection[str], outlets: Mapping[str, Outlet]
) -> list[tuple[str, str]]:
    """Return what destinations ask for and do not get of a result, and why: name and reason.

    Of a result that has no object, nothing is said.
    """
    made, known = _made(connection, result_id), _known(connection, result_id)
    if not made:
        return []
    return [
        (name, why)
        for name in destinations
        for why in (
            _why_not(outlets[name], made, known.get(name, {}), connection, result_id)
            if name in outlets
            else ["there is no such destination any more"]
        )
    ]


def _why_not(
    outlet: Outlet, made: Sequence[_Made], known: Mapping[int, DeliveryState], connection: Connection, result_id: int
) -> list[str]:
    status = _status(connection, result_id)
    if not known and status not in outlet.statuses:
        return [f"it takes no result that is {status}"]
    if not known and not filters.is_satisfied(connection, result_id, outlet.when):
        lacking = filters.lacks(connection, result_id, outlet.when)
        asked = f" ({outlet.asked})" if outlet.asked else ""
        why = f": nothing here is called {' or '.join(map(repr, lacking))}, in a unit that compares" if lacking else ""
        return [f"it is none of the results that this destination takes{asked}{why}"]
    there = {each.kind for each in made}
    reasons = [f"{kind} was not made" for kind in outlet.kinds if kind not in there]
    got = [*_wanted(outlet, made, known), *(each for each in made if known.get(each.id) not in (None, _REPLACED))]
    forms = ", ".join(map(str, outlet.editions))
    for kind, part in sorted(says([each for each in made if each.kind in outlet.kinds]) - says(got)):
        reasons.append(f"{' '.join(filter(None, (kind, part)))} was not made in a form that it may be given ({forms})")
    return reasons


_REPLACED = DeliveryState.REPLACED


def _status(connection: Connection, result_id: int) -> str:
    return str(connection.execute(select(tables.result.c.status).where(tables.result.c.id == result_id)).scalar_one())


def _made(connection: Connection, result_id: int) -> list[_Made]:
    """Return the objects of a result, in the order in which they leave."""
    rows = connection.execute(
        select(_object.c.id, _object.c.kind, _object.c.part, _object.c.edition)
        .where(_object.c.result_id == result_id)
        .order_by(_object.c.id)
    )
    made = [_Made(id=row.id, kind=row.kind, part=row.part, edition=row.edition) for row in rows]
    return sorted(made, key=lambda each: (turn(each.kind), each.id))


def _known(connection: Connection, result_id: int) -> dict[str, dict[int, DeliveryState]]:
    """Return how the objects of a result (by id) stand with each destination that has them in its outbox."""
    rows = connection.execute(
        select(_delivery.c.destination, _object.c.id, _delivery.c.state)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(_object.c.result_id == result_id)
    )
    known: dict[str, dict[int, DeliveryState]] = {}
    for destination, object_id, state in rows:
        known.setdefault(destination, {})[object_id] = DeliveryState(state)
    return known


def _wanted(outlet: Outlet, made: Sequence[_Made], known: Mapping[int, DeliveryState]) -> list[_Made]:
    """Return what is to be put into the outbox of a destination beside what is there."""
    asked = [each for each in made if each.kind in outlet.kinds]
    begun = [each for each in made if known.get(each.id, _REPLACED) is not _REPLACED]
    edition = choose_edition(outlet.editions, asked, begun=begun)
    parts = edition.parts if edition else {""}
    return [each for each in asked if each.id not in known and each.edition in parts]


def _put(connection: Connection, object_id: int, destination: str, priority: int, *, wanted: bool = True) -> None:
    connection.execute(
        insert(_delivery).values(
            result_object_id=object_id,
            destination=destination,
            priority=priority,
            state=DeliveryState.PENDING,
            attempt=0,
            available_at=now(),
            fence=0,
            reason="",
            wanted=wanted,
            created_at=now(),
        )
    )


def substitute(
    connection: Connection, refused: Collection[Delivery], *, editions: Sequence[Edition], reason: str
) -> Edition | None:
    """Have a destination get another edition of a result, in place of the one of which it refuses some objects.

    `refused` are of one result, and claimed. The next of `editions` that has none of these and says all the same is
    put into the outbox; what is not part of it is replaced, what is part of both waits again. Returns that edition;
    None, and nothing is changed, where there is none, or where something of the present one was sent already: the
    destination would have the same result twice. Raises LeaseLost.
    """
    first = next(iter(refused))
    made = {each.id: each for each in _made(connection, first.result_id)}
    rows = connection.execute(
        select(_delivery)
        .where(_delivery.c.result_object_id.in_(made), _delivery.c.destination == first.destination)
        .order_by(_delivery.c.id)
        .with_for_update(key_share=True)
    ).all()
    ours = {row.id: row for row in rows}
    for each in refused:
        row = ours.get(each.id)
        if row is None or (row.state, row.fence) != (DeliveryState.SENDING, each.fence):
            raise LeaseLost(f"delivery {each.id}: attempt {each.attempt} is over")
    current = [row for row in rows if row.state != _REPLACED and made[row.result_object_id].edition]
    if any(row.sent_at is not None or row.state in DELIVERY_TAKEN for row in current):
        return None
    out = {made[ours[each.id].result_object_id] for each in refused}
    out |= {made[row.result_object_id] for row in rows if row.state == _REPLACED}
    kinds = {made[row.result_object_id].kind for row in rows}
    edition = next_edition(
        editions,
        [each for each in made.values() if each.kind in kinds],
        current=[made[row.result_object_id] for row in current],
        refused=out,
    )
    if edition is None:
        return None
    for row in current:
        event = DeliveryEvent.REPLACE
        if made[row.result_object_id].edition in edition.parts:
            if row.state != DeliveryState.SENDING:
                continue
            event = DeliveryEvent.RELEASE
        values = {"reason": f"{reason}: {edition} in its place"} if event is DeliveryEvent.REPLACE else {}
        connection.execute(
            update(_delivery)
            .where(_delivery.c.id == row.id, _delivery.c.state.in_(delivery_sources(event)))
            .values(state=delivery_target(event), lease_expires_at=None, **values)
        )
    there = {row.result_object_id for row in rows}
    like = ours[first.id]
    for new in made.values():
        if new.kind in kinds and new.edition in edition.parts and new.id not in there:
            _put(connection, new.id, first.destination, like.priority, wanted=like.wanted)
    return edition


def keep_wanted(connection: Connection, destinations: Mapping[int, Collection[str]]) -> None:
    """Let what is not sent yet of these results (by id) go to the destinations given for each, and to no other."""
    rows = connection.execute(
        select(_delivery.c.id, _delivery.c.destination, _delivery.c.wanted, _object.c.result_id)
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        # What was sent and may yet be lost would have to be sent again.
        .where(_object.c.result_id.in_(destinations), _delivery.c.done_at.is_(None))
        .order_by(_delivery.c.id)
    ).all()
    for delivery_id, destination, wanted, result_id in rows:
        if wanted != (destination in destinations[result_id]):
            connection.execute(update(_delivery).where(_delivery.c.id == delivery_id).values(wanted=not wanted))


def claim(
    connection: Connection,
    *,
    destination: str,
    lease_seconds: float,
    limit: int = 20,
    kinds: Collection[str] | None = None,
    longest_seconds: float = math.inf,
) -> list[Delivery]:
    """Lease what waits for one destination: the most urgent first, then in the order in which it was made.

    All that waits of a result is leased at once, however much that is beyond `limit`: what refers to each other stays
    together, in the order of `ObjectKind`. What a dead sender left behind is taken back first, and what refers to an
    object that is held, or being sent by somebody else, waits for that, as long as it is of the `kinds` that the
    destination takes (None: any).
    `longest_seconds`: see `leases.is_due`.
    """
    _expire(connection, destination)
    is_waiting = _is_waiting(destination, kinds, longest_seconds)
    first = set(
        connection.execute(
            select(_object.c.result_id)
            .join(_delivery, _delivery.c.result_object_id == _object.c.id)
            .where(*is_waiting)
            .order_by(_delivery.c.priority, _delivery.c.id)
            .limit(limit)
        ).scalars()
    )
    if not first:
        return []
    # Whoever claims the same at the same time waits here for the first row, and then finds none of them waiting: no
    # result is torn apart. In the order of `keep_wanted`.
    waiting = (
        connection.execute(
            select(_delivery.c.id)
            .where(
                *is_waiting,
                _delivery.c.result_object_id.in_(select(_object.c.id).where(_object.c.result_id.in_(first))),
            )
            .order_by(_delivery.c.id)
            .with_for_update(key_share=True)
        )
        .scalars()
        .all()
    )
    if not waiting:
        return []
    connection.execute(
        update(_delivery)
        .where(_delivery.c.id.in_(waiting))
        .values(leases.claimed(_delivery, lease_seconds))
        .values(sender=func.coalesce(_delivery.c.sender, _sender_of_study(), ""))
    )
    rows = (
        connection.execute(
            select(_delivery, *_object.c)
            .join(_object, _object.c.id == _delivery.c.result_object_id)
            .where(_delivery.c.id.in_(waiting))
            .order_by(_delivery.c.priority, _delivery.c.id)
        )
        .mappings()
        .all()
    )
    claimed = [
        Delivery(
            id=row[_delivery.c.id],
            result_id=row[_object.c.result_id],
            destination=row[_delivery.c.destination],
            kind=row[_object.c.kind],
            part=row[_object.c.part],
            edition=row[_object.c.edition],
            sop_class_uid=row[_object.c.sop_class_uid],
            sop_instance_uid=row[_object.c.sop_instance_uid],
            transfer_syntax_uid=row[_object.c.transfer_syntax_uid],
            sha256=row[_object.c.sha256],
            attempt=row[_delivery.c.attempt],
            fence=row[_delivery.c.fence],
            sender=row[_delivery.c.sender],
        )
        for row in rows
    ]
    order: dict[tuple[int, int], list[Delivery]] = {}
    for row, delivery in zip(rows, claimed, strict=True):
        order.setdefault((row[_delivery.c.priority], delivery.result_id), []).append(delivery)
    return [each for together in order.values() for each in sorted(together, key=lambda one: (turn(one.kind), one.id))]


def _is_waiting(
    destination: str, kinds: Collection[str] | None, longest_seconds: float
) -> tuple[ColumnElement[bool] | TextClause, ...]:
    return (
        _delivery.c.destination == destination,
        tables.delivery_unsent,
        _delivery.c.state.in_(delivery_sources(DeliveryEvent.CLAIM)),
        leases.is_due(_delivery, longest_seconds),
        _delivery.c.wanted == true(),
        ~held_before(_delivery, kinds, _IN_THE_WAY).exists(),
    )


_IN_THE_WAY = (DeliveryState.HELD, DeliveryState.SENDING)
"""Of what is referred to: what may never come, and what another sender has in hand."""


def held_before(
    row: FromClause, kinds: Collection[str] | None = None, states: Collection[DeliveryState] = (DeliveryState.HELD,)
) -> Select[tuple[str]]:
    """Return the query for what a delivery refers to and is held at the same destination, of some kinds: its kind.

    Whoever has only what refers to it may never get the rest. What is tried again will come, and holds back nothing:
    what is taken meanwhile tells whether an object is at fault itself (`fail`).
    """
    mine, theirs, other = _object.alias(), _object.alias(), _other
    refers = [and_(mine.c.kind == kind, theirs.c.kind.in_(named)) for kind, named in REFERENCES.items()]
    return (
        select(theirs.c.kind)
        .join(other, other.c.result_object_id == theirs.c.id)
        .join(mine, mine.c.result_id == theirs.c.result_id)
        .where(
            mine.c.id == row.c.result_object_id,
            mine.c.edition != "",
            or_(*refers),
            *(() if kinds is None else (theirs.c.kind.in_(kinds),)),
            other.c.destination == row.c.destination,
            other.c.state.in_(states),
            other.c.wanted == true(),
        )
        .correlate(row)
    )


def is_held_back(
    connection: Connection, delivery: Delivery, *, ours: Iterable[Delivery], kinds: Collection[str] | None = None
) -> bool:
    """Return whether what an object refers to is held at its destination by now, or sent by others than who has `ours`.

    See `claim`.
    """
    in_the_way = held_before(_delivery, kinds, _IN_THE_WAY).where(_other.c.id.not_in([each.id for each in ours]))
    mine = select(_delivery.c.id).where(_delivery.c.id == delivery.id, in_the_way.exists())
    return connection.execute(mine).first() is not None


def is_overtaken(
    connection: Connection, delivery: Delivery, *, kinds: Collection[str] | None = None, longest_seconds: float
) -> bool:
    """Return whether something more urgent waits for the destination of what was claimed."""
    mine = select(_delivery.c.priority).where(_delivery.c.id == delivery.id).scalar_subquery()
    waiting = _is_waiting(delivery.destination, kinds, longest_seconds)
    urgent = select(_delivery.c.id).where(*waiting, _delivery.c.priority < mine).limit(1)
    return connection.execute(urgent).first() is not None


def _sender_of_study() -> ScalarSelect[str]:
    """Return the AE title that most instances of the study of a delivery came from."""
    instance, series, result = tables.instance, tables.series, tables.result
    return (
        select(instance.c.calling_ae_title)
        .join(series, series.c.id == instance.c.series_id)
        .join(result, result.c.study_id == series.c.study_id)
        .join(_object, _object.c.result_id == result.c.id)
        .where(_object.c.id == _delivery.c.result_object_id, instance.c.own_result == false())
        .group_by(instance.c.calling_ae_title)
        .order_by(func.count().desc(), instance.c.calling_ae_title)
        .limit(1)
        .scalar_subquery()
    )


def accept(connection: Connection, delivery: Delivery, *, status: int, note: str) -> None:
    """Record that the destination took the object. Raises LeaseLost."""
    leases.give_up(connection, _delivery, DeliveryEvent.ACCEPT, delivery, status=status, reason=note, sent_at=now())


def fail(
    connection: Connection,
    delivery: Delivery,
    *,
    status: int | None,
    reason: str,
    delay_seconds: float,
    own: bool = False,
    maximum_tries: int | None = None,
) -> bool:
    """Record a failure that may pass, and when to try again; return whether it is held for a person instead.

    It is once `maximum_tries` failures were its `own` (the destination had it and did not say why it failed) while
    the destination took others meanwhile. Raises LeaseLost.
    """
    faults = _faults(connection, delivery) if own and maximum_tries else None
    values: dict[str, object] = {} if faults is None else {"faults": faults, "faulted_at": now()}
    if faults is not None and maximum_tries is not None and faults >= maximum_tries:
        reason = f"failed {faults} times while others were taken: {reason}"
        leases.give_up(connection, _delivery, DeliveryEvent.REFUSE, delivery, status=status, reason=reason, **values)
        return True
    values["available_at"] = after(delay_seconds)
    leases.give_up(connection, _delivery, DeliveryEvent.FAIL, delivery, status=status, reason=reason, **values)
    return False


def _faults(connection: Connection, delivery: Delivery) -> int | None:
    """Return how many failures are an object's own with this one; None if this one says nothing of it.

    It does if the destination has taken something else since the last one.
    """
    faults = connection.execute(select(_delivery.c.faults).where(leases.is_held(_delivery, delivery))).scalar()
    if faults is None:
        return None
    since = select(func.coalesce(_delivery.c.faulted_at, _delivery.c.created_at)).where(_delivery.c.id == delivery.id)
    other = _delivery.alias()
    taken = exists().where(
        other.c.destination == delivery.destination,
        other.c.sent_at.is_not(None),
        other.c.sent_at > since.scalar_subquery(),
    )
    return int(faults) + 1 if connection.execute(select(taken)).scalar() else None


def refuse(connection: Connection, delivery: Delivery, *, status: int | None, reason: str) -> None:
    """Record that the destination will not take the object: it is held for a person. Raises LeaseLost."""
    leases.give_up(connection, _delivery, DeliveryEvent.REFUSE, delivery, status=status, reason=reason)


def renew(connection: Connection, waiting: Iterable[Delivery], *, lease_seconds: float) -> set[int]:
    """Extend the leases of what is claimed and has not been sent yet; return what is still to be sent.

    Left out is what another sender took over meanwhile, and what is not wanted any more.
    """
    still = set()
    # In the order in which `keep_wanted` takes them: neither waits for a row while the other waits for its own.
    for delivery in sorted(waiting, key=lambda each: each.id):
        row = connection.execute(
            update(_delivery)
            .where(
                leases.is_held(_delivery, delivery),
                _delivery.c.state == DeliveryState.SENDING,
                _delivery.c.wanted == true(),
            )
            .values(lease_expires_at=after(lease_seconds))
            .returning(_delivery.c.id)
        ).first()
        if row is not None:
            still.add(delivery.id)
    return still


def release(connection: Connection, delivery: Delivery) -> None:
    """Give back what was claimed and not sent. Raises LeaseLost."""
    leases.give_up(connection, _delivery, DeliveryEvent.RELEASE, delivery, attempt=_delivery.c.attempt - 1)


def requeue(connection: Connection, delivery_id: int) -> None:
    """Send a held or waiting delivery again at once, and what was held with it, after it. Raises NotFound."""
    together = _held_with(connection, delivery_id)
    if not leases.requeue(connection, _delivery, delivery_id, _delivery.c.wanted == true(), **_AFRESH):
        raise NotFound(f"no delivery {delivery_id} of a current result that is held or waits for another attempt")
    for each in together:
        leases.requeue(connection, _delivery, each, _delivery.c.wanted == true(), **_AFRESH)


def requeue_held(connection: Connection, destination: str) -> int:
    """Send again at once all of current results that is held at a destination; return how much. Raises NotFound."""
    there = (_delivery.c.destination == destination, _delivery.c.wanted == true())
    count = leases.requeue_held(connection, _delivery, *there, **_AFRESH)
    if not count:
        raise NotFound(f"nothing of a current result is held at {destination!r}")
    return count


def _held_with(connection: Connection, delivery_id: int) -> list[int]:
    """Return what is held and refers to a delivery that is held, in the order in which it was made."""
    return list(
        connection.execute(
            select(_delivery.c.id)
            .where(
                _delivery.c.state == DeliveryState.HELD,
                held_before(_delivery).where(_other.c.id == delivery_id).exists(),
            )
            .order_by(_delivery.c.id)
        ).scalars()
    )


def listing(
    connection: Connection,
    *,
    result_ids: Sequence[int] | None = None,
    state: DeliveryState | None = None,
    destination: str | None = None,
    before: int | None = None,
    limit: int = 1000,
) -> list[DeliveryRow]:
    """Return the latest deliveries, oldest first: of results, in a state, to a destination, before an id, or all."""
    query = (
        select(
            _delivery,
            _object.c.result_id,
            _object.c.kind,
            _object.c.part,
            _object.c.edition,
            _object.c.sop_instance_uid,
            held_before(_delivery).limit(1).scalar_subquery().label("waits_for"),
        )
        .join(_object, _object.c.id == _delivery.c.result_object_id)
        .where(*earlier(_delivery.c.id, before))
        .order_by(_delivery.c.id.desc())
        .limit(limit)
    )
    if result_ids is not None:
        query = query.where(_object.c.result_id.in_(result_ids))
    if state is not None:
        query = query.where(_delivery.c.state == state)
    if destination is not None:
        query = query.where(_delivery.c.destination == destination)
    return [
        DeliveryRow(
            id=row.id,
            result_id=row.result_id,
            object_id=row.result_object_id,
            kind=row.kind,
            part=row.part,
            edition=row.edition,
            sop_instance_uid=row.sop_instance_uid,
            destination=row.destination,
            state=DeliveryState(row.state),
            attempt=row.attempt,
            status=row.status,
            reason=row.reason,
            waits_for=row.waits_for or "",
            wanted=row.wanted,
            posted_at=row.created_at,
            available_at=row.available_at,
            sent_at=row.sent_at,
            committed_at=row.committed_at,
            verified_at=row.verified_at,
            done_at=row.done_at,
            custody_at=row.custody_at,
            custody_asked=row.custody_asked,
            losses=row.losses,
            custody_reason=row.custody_reason,
        )
        for row in reversed(connection.execute(query).all())
    ]


def state_counts(connection: Connection) -> dict[tuple[str, DeliveryState], int]:
    """Return how many deliveries each destination has in each state; those left out that are sent or not wanted."""
    counted = select(_delivery.c.destination, _delivery.c.state, func.count()).where(_delivery.c.wanted == true())
    # Each by its own index: what was sent grows for ever.
    return {
        (destination, DeliveryState(state)): count
        for which in (tables.delivery_unsent, tables.delivery_held)
        for destination, state, count in connection.execute(
            counted.where(which).group_by(_delivery.c.destination, _delivery.c.state)
        )
    }


def _expire(connection: Connection, destination: str) -> None:
    over = (
        connection.execute(
            select(_delivery.c.id)
            .where(
                _delivery.c.destination == destination,
                tables.delivery_sending,
                _delivery.c.lease_expires_at < now(),
            )
            .with_for_update(skip_locked=True, key_share=True)
        )
        .scalars()
        .all()
    )
    if over:
        connection.execute(
            update(_delivery)
            .where(_delivery.c.id.in_(over))
            .values(
                state=delivery_target(DeliveryEvent.EXPIRE),
                available_at=now(),
                reason="the sender stopped before it recorded an answer",
            )
        )
