"""What became of a result at each of its destinations: which objects, sent and confirmed when, and told to whom."""

from collections.abc import Collection, Iterator, Mapping
from itertools import groupby

from meddaemon.cli.output import shown
from meddaemon.db import custody, deliveries, gates, notices, requests, results
from meddaemon.db.custody import CustodyRow
from meddaemon.db.deliveries import DeliveryRow
from meddaemon.db.engine import Connection
from meddaemon.db.notices import NoticeRow
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import ResultStatus
from meddaemon.domain.states import DeliveryState

_WAITING = frozenset({DeliveryState.PENDING, DeliveryState.RETRYABLE})


def name_of(item: results.ObjectRow | DeliveryRow) -> str:
    """Return what an object is called among those of its result."""
    return " ".join(filter(None, (item.kind, item.part, item.edition)))


def delivered(connection: Connection, head: results.ResultHead, outlets: Mapping[str, Outlet]) -> Iterator[str]:
    """Yield how a result stands with each destination, and what does not go there; `outlets` are those there are."""

    def destination(row: DeliveryRow) -> str:
        return row.destination

    standings = {each.destination: each for each in custody.standings(connection, result_ids=[head.id])}
    told = notices.listing(connection, result_id=head.id)
    posted = sorted(deliveries.listing(connection, result_ids=[head.id]), key=destination)
    if not posted and head.status is not ResultStatus.PLAUSIBLE and not head.is_bare:
        yield f"    goes nowhere: no destination has {head.status.value!r} among its statuses"
    for name, rows in groupby(posted, destination):
        standing = standings.get(name)
        if standing is not None and standing.done_at is not None:
            yield f"    done at {name}: {shown(standing.done_at)}"
        elif standing is not None:
            yield f"    done at {name}: not yet, {standing.done} of {standing.objects} objects are"
        else:
            yield f"    done at {name}: nothing is to be sent there"
        sent = list(rows)
        shut = why_not_now(connection, name, outlets)
        for row in sent:
            yield f"      {name_of(row)}: {_state(row, shut)}"
        yield from _requests(connection, sent)
        for notice in told:
            if notice.destination == name:
                yield f"      {_notice(notice)}"
    if head.current and outlets:
        named = requests.destinations_of(connection, head.job_id)
        for name, why in deliveries.unsent(connection, head.id, destinations=named, outlets=outlets):
            yield f"    not to {name}: {shown(why)}"


def why_not_now(connection: Connection, destination: str, outlets: Mapping[str, Outlet]) -> str:
    """Return why nothing is sent to a destination now, "" where nothing is in the way; without `outlets` likewise."""
    if destination not in outlets:
        return "there is no such destination any more" if outlets else ""
    window = outlets[destination].window
    closed = f"window {window!r} is closed: `meddaemon jobs windows`"
    return closed if window and not gates.is_open(connection, window) else ""


def waits(row: DeliveryRow) -> bool:
    """Return whether an object is to be sent, and not on its way."""
    return row.wanted and row.state in _WAITING


def withheld(row: DeliveryRow) -> str:
    """Return why an object is not sent before another one, "" where it is."""
    return f"goes after the {row.waits_for} that it refers to, which is held" if row.waits_for else ""


def _state(row: DeliveryRow, shut: str) -> str:
    """Return where an object stands, in words: since when, why, and what a person may do."""
    steps = [f"{what} {shown(at)}" for what, at in _steps(row) if at is not None]
    status = f"status {row.status:04X}H" if row.status else ""
    why = ", ".join(filter(None, (status, shown(row.reason))))
    match row.state:
        case _ if not row.wanted and not steps:
            steps.append("not to be sent any more")
        case DeliveryState.PENDING | DeliveryState.RETRYABLE if shut:
            steps.append(f"waits since {shown(row.posted_at)}: {shut}")
        case DeliveryState.PENDING | DeliveryState.RETRYABLE if row.waits_for:
            steps.append(f"waits since {shown(row.posted_at)}: {withheld(row)}")
        case DeliveryState.PENDING:
            steps.append(f"waits since {shown(row.posted_at)}")
        case DeliveryState.RETRYABLE:
            steps.append(f"failed after {_attempts(row.attempt)}, again after {shown(row.available_at)}")
        case DeliveryState.SENDING:
            steps.append("is being sent")
        case DeliveryState.HELD:
            steps.append(f"held after {_attempts(row.attempt)}; `meddaemon deliveries requeue {row.id}` sends it again")
        case DeliveryState.REPLACED:
            steps.append("replaced")
        case DeliveryState.SENT if row.done_at is None and (row.custody_reason or row.custody_asked):
            doubt = ": ".join(filter(None, ("not confirmed", shown(row.custody_reason))))
            steps.append(f"{doubt}; asked again after {shown(row.custody_at)}")
        case _ if not row.attempt > 1:
            pass
        case _:
            steps.append(_attempts(row.attempt))
    if row.losses:
        steps.append(f"lost there {row.losses} times")
    return ", ".join(steps) + (f": {why}" if why else "")


def _steps(row: DeliveryRow) -> tuple[tuple[str, object], ...]:
    """Return what happened to an object, and when; what is to be sent again has not got there."""
    if waits(row):
        return ()
    return (("sent", row.sent_at), ("committed", row.committed_at), ("verified", row.verified_at))


def _attempts(count: int) -> str:
    return f"{count} attempt{'' if count == 1 else 's'}"


def _requests(connection: Connection, sent: Collection[DeliveryRow]) -> Iterator[str]:
    """Yield what was asked of a destination, and what it said, once for all objects that were asked for together."""
    asked: dict[int, CustodyRow] = {
        request.id: request for row in sent for request in custody.requests_of(connection, row.id)
    }
    for _, request in sorted(asked.items()):
        answer = "no report" if request.taken_at else shown(request.reason) or "not sent"
        if request.reported_at:
            answer = f"reported {shown(request.reported_at)}, {request.committed} of {request.objects} committed"
        yield f"      storage commitment asked for {shown(request.asked_at)}, {request.transaction_uid}: {answer}"


def _notice(notice: NoticeRow) -> str:
    """Return whom somebody was told of it, or why not yet."""
    who, why = f"{shown(notice.target)} ({notice.form.value})", f": {shown(notice.reason)}" if notice.reason else ""
    match notice.state:
        case DeliveryState.SENT:
            return f"told {who} {shown(notice.sent_at)}{why}"
        case DeliveryState.HELD:
            again = f"`meddaemon notices requeue {notice.id}` tells it again"
            return f"not told {who}, held after {_attempts(notice.attempt)}; {again}{why}"
        case DeliveryState.RETRYABLE:
            return (
                f"not told {who} yet after {_attempts(notice.attempt)}, again after {shown(notice.available_at)}{why}"
            )
        case _:
            return f"not told {who} yet"
