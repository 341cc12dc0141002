"""Draining the outbox: each destination on its own, so that one that is down holds up no other."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path

from meddaemon.db import deliveries
from meddaemon.db.deliveries import Delivery
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.domain.errors import LeaseLost
from meddaemon.failpoints import reach
from meddaemon.results.transport import Answer, Outgoing, Send, Verdict
from meddaemon.telemetry import log

OBJECTS_PER_ASSOCIATION = 20
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long to wait after a failure: `first` seconds, doubling up to `longest`; a try may take `lease` seconds."""

    first_seconds: float
    longest_seconds: float
    lease_seconds: float

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt` (1-based)."""
        return float(min(self.first_seconds * 2 ** min(attempt - 1, 30), self.longest_seconds))


def deliver(database: Database, results: Path, name: str, send: Send, retry: Retry, stop: threading.Event) -> int:
    """Send what waits for one destination now; return how many objects it took.

    Every answer is recorded before the next object is sent, so that a crash repeats one object at most, under the
    same SOP Instance UID. What is not ours to send any more when its turn comes (another sender took it over, it is
    outdated, `stop` is set) is given back unsent.
    """
    with database.write() as connection:
        claimed = deliveries.claim(
            connection, destination=name, lease_seconds=retry.lease_seconds, limit=OBJECTS_PER_ASSOCIATION
        )
    sent = 0
    waiting = {path_of(results, delivery.sha256): delivery for delivery in claimed}

    def still(outgoing: Outgoing) -> bool:
        if stop.is_set():
            return False
        with database.write() as connection:
            kept = deliveries.renew(connection, waiting.values(), lease_seconds=retry.lease_seconds)
        return waiting[outgoing.path].id in kept

    outgoing = []
    for path, delivery in list(waiting.items()):
        going = Outgoing(
            path=path,
            sop_class_uid=delivery.sop_class_uid,
            sop_instance_uid=delivery.sop_instance_uid,
            transfer_syntax_uid=delivery.transfer_syntax_uid,
            sender=delivery.sender,
        )
        if damage := _damage(path, delivery.sha256):
            verdict, reason = damage
            _record(
                database, waiting.pop(path), Answer(outgoing=going, verdict=verdict, status=None, reason=reason), retry
            )
        else:
            outgoing.append(going)
    for answer in send(outgoing, still=still):
        sent += answer.verdict is Verdict.TAKEN
        _record(database, waiting.pop(answer.outgoing.path), answer, retry)
    _give_back(database, list(waiting.values()))
    return sent


def _damage(path: Path, sha256: str) -> tuple[Verdict, str] | None:
    """Return why a file must not leave as it is: under its UID there would be something else for ever."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                return None
    except OSError as failure:
        return Verdict.TRY_AGAIN, f"the stored object cannot be read: {failure.strerror}"
    return Verdict.HOLD, "the stored object is damaged: see `meddaemon store check --hash`"


def _give_back(database: Database, waiting: list[Delivery]) -> None:
    for delivery in waiting:
        try:
            with database.write() as connection:
                deliveries.release(connection, delivery)
        except LeaseLost as lost:
            _log.warning("another sender took this delivery over", reason=str(lost), delivery=delivery.id)


def _record(database: Database, delivery: Delivery, answer: Answer, retry: Retry) -> None:
    reach("answered")
    said = {"destination": delivery.destination, "kind": delivery.kind, "delivery": delivery.id}
    try:
        with database.write() as connection:
            if answer.verdict is Verdict.TAKEN:
                deliveries.accept(connection, delivery, status=answer.status or 0, note=answer.reason)
                _log.info("delivered", **said)
            elif answer.verdict is Verdict.TRY_AGAIN:
                delay = retry.delay(delivery.attempt)
                deliveries.fail(connection, delivery, status=answer.status, reason=answer.reason, delay_seconds=delay)
                _log.warning("not delivered, will try again", reason=answer.reason, seconds=delay, **said)
            else:
                deliveries.refuse(connection, delivery, status=answer.status, reason=answer.reason)
                _log.error("delivery held for a person", reason=answer.reason, **said)
        reach("answer_recorded")
    except LeaseLost as lost:
        _log.warning("another sender took this delivery over", reason=str(lost), **said)
