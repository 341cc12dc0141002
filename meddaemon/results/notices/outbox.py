"""Draining the notices of a destination: one form on its own, so that one who does not answer holds up no other."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from meddaemon.db import notices
from meddaemon.db.engine import Database
from meddaemon.db.notices import Notice
from meddaemon.domain.errors import LeaseLost
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.results.delivery import Retry
from meddaemon.results.transport import Verdict
from meddaemon.telemetry import log

_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the answer to a notice means; `reason` says why, and nothing of the patient.

    `detail` is what the peer said in its own words: for the database, never for logs, since it may name the patient.
    `own`: the peer had the notice and failed at it. `wait_seconds` is how long it asks to be left alone.
    """

    verdict: Verdict
    reason: str = ""
    detail: str = ""
    own: bool = False
    wait_seconds: float = 0.0


NOT_CONFIGURED = Reply(verdict=Verdict.HOLD, reason="who was to be told is not configured any more")

Tell = Callable[[Notice], Reply]
"""Tells one who is to be told, and returns what that one's answer means."""


def announce(
    database: Database, destination: str, form: NoticeForm, targets: Collection[Target], tell: Tell, retry: Retry
) -> bool:
    """Make notices of what has become done at a destination, and tell one of a form; False when none of it waits.

    `targets` are all who are to be told of the destination, in whichever form. What the peer fails at by itself
    `retry.maximum_tries` times is held for a person.
    """
    with database.read() as connection:
        new = notices.is_anything_new(connection, destination)
    if new:
        with database.write() as connection:
            notices.post(connection, destination, targets)
    if not any(each.form is form for each in targets):
        return False
    with database.write() as connection:
        notice = notices.claim(
            connection,
            destination,
            form,
            lease_seconds=retry.lease_seconds,
            longest_seconds=retry.longest_seconds,
        )
    if notice is None:
        return False
    reply = tell(notice)
    try:
        _record(database, destination, form, notice, reply, retry)
    except LeaseLost as lost:
        _log.warning("another sender took this notice over", lost=str(lost), notice=notice.id)
    return True


def _record(database: Database, destination: str, form: NoticeForm, notice: Notice, reply: Reply, retry: Retry) -> None:
    said = {
        "notice": notice.id,
        "destination": destination,
        "form": form.value,
        "target": notice.target,
        "reason": reply.reason,
    }
    reason = f"{reply.reason}: {reply.detail}" if reply.detail else reply.reason
    enough = reply.own and retry.maximum_tries is not None and notice.attempt >= retry.maximum_tries
    with database.write() as connection:
        if reply.verdict is Verdict.TAKEN:
            notices.accept(connection, notice, note=reason)
            _log.info("told that a result is available", **said)
        elif reply.verdict is Verdict.TRY_AGAIN and not enough:
            delay = max(retry.delay(notice.attempt), min(reply.wait_seconds, retry.longest_seconds))
            notices.fail(connection, notice, reason=reason, delay_seconds=delay)
            _log.warning("could not tell that a result is available, will try again", seconds=delay, **said)
        else:
            notices.refuse(connection, notice, reason=reason)
            _log.error("a notice is held for a person", **said)
