"""Draining the outbox: each destination on its own, so that one that is down holds up no other."""

import hashlib
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meddaemon.db import deliveries
from meddaemon.db.deliveries import Delivery
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.domain.errors import LeaseLost
from meddaemon.domain.outlet import Edition
from meddaemon.failpoints import reach
from meddaemon.results.transport import SOP_CLASS_NOT_SUPPORTED, Answer, Outgoing, Pace, Send, Verdict
from meddaemon.telemetry import log

OBJECTS_PER_ASSOCIATION = 20
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long to wait after a failure: `first` seconds, doubling up to `longest`; a try may take `lease` seconds.

    What goes at the least `pace` may take longer. An object that fails by itself, while others are taken, is tried
    `maximum_tries` times (None: for ever) and then held.
    """

    first_seconds: float
    longest_seconds: float
    lease_seconds: float
    maximum_tries: int | None = None
    pace: Pace = field(default_factory=Pace)

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number `attempt` (1-based)."""
        return float(min(self.first_seconds * 2 ** min(attempt - 1, 30), self.longest_seconds))


def deliver(
    database: Database,
    results: Path,
    name: str,
    send: Send,
    retry: Retry,
    stop: threading.Event,
    *,
    editions: Sequence[Edition] = (),
    kinds: Collection[str] | None = None,
) -> int:
    """Send what waits for one destination now; return how many objects got on: taken, or replaced by another form.

    Every answer is recorded before the next object is sent, so that a crash repeats one object at most, under the
    same SOP Instance UID. What is not ours to send any more when its turn comes (another sender took it over, it is
    outdated, what it refers to is held, something more urgent waits, `stop` is set) is given back unsent. Of a result
    whose edition is refused before anything of it was taken, the next of `editions` goes in its place. `kinds` are
    those that the destination takes (None: any): of others, what is held there holds up nothing.
    """
    with database.write() as connection:
        claimed = deliveries.claim(
            connection,
            destination=name,
            lease_seconds=retry.lease_seconds,
            limit=OBJECTS_PER_ASSOCIATION,
            kinds=kinds,
            longest_seconds=retry.longest_seconds,
        )
    got_on = 0
    waiting = {path_of(results, delivery.sha256): delivery for delivery in claimed}
    refusals = _Refusals()
    begun: set[int] = set()
    overtaken = False

    def still(outgoing: Outgoing) -> bool:
        nonlocal overtaken
        if stop.is_set() or overtaken or outgoing.together in refusals.results:
            return False
        delivery = waiting[outgoing.path]
        seconds = retry.lease_seconds + retry.pace.seconds(outgoing.path.stat().st_size)
        with database.write() as connection:
            if delivery.id not in deliveries.renew(connection, waiting.values(), lease_seconds=seconds):
                return False
            if deliveries.is_held_back(connection, delivery, ours=waiting.values(), kinds=kinds):
                return False
            # A result goes as a whole: only before the next one begins it is asked who is in a hurry.
            if begun and delivery.result_id not in begun:
                overtaken = deliveries.is_overtaken(
                    connection, delivery, kinds=kinds, longest_seconds=retry.longest_seconds
                )
        begun.add(delivery.result_id)
        return not overtaken

    outgoing = []
    for path, delivery in list(waiting.items()):
        going = Outgoing(
            path=path,
            sop_class_uid=delivery.sop_class_uid,
            sop_instance_uid=delivery.sop_instance_uid,
            transfer_syntax_uid=delivery.transfer_syntax_uid,
            sender=delivery.sender,
            together=delivery.result_id if delivery.edition else 0,
        )
        if damage := _damage(path, delivery.sha256):
            verdict, reason = damage
            _record(
                database, waiting.pop(path), Answer(outgoing=going, verdict=verdict, status=None, reason=reason), retry
            )
        else:
            outgoing.append(going)
    for answer in send(outgoing, still=still):
        if refusals.note(answer, waiting[answer.outgoing.path]):
            continue
        got_on += answer.verdict is Verdict.TAKEN
        _record(database, waiting.pop(answer.outgoing.path), answer, retry)
    for result_id, (refused, reason) in refusals.results.items():
        together = [each for each in waiting.values() if each.result_id == result_id and each.edition]
        got_on += _fall_back(database, together, refused, editions, reason, retry)
        waiting = {path: each for path, each in waiting.items() if each not in together}
    _give_back(database, list(waiting.values()))
    return got_on


class _Refusals:
    """Which results a destination takes in another form only, as far as it has said."""

    def __init__(self) -> None:
        self.results: dict[int, tuple[list[Delivery], str]] = {}
        """What it refused of each, and why."""
        self._begun: set[int] = set()

    def note(self, answer: Answer, delivery: Delivery) -> bool:
        """Return whether another form decides what becomes of an object, and not this answer alone."""
        together = answer.outgoing.together
        # A server that is asked for no contexts, and an SCP that accepts any, say it of the first object.
        first = together not in self._begun and answer.status == SOP_CLASS_NOT_SUPPORTED
        if answer.verdict is Verdict.ANOTHER_FORM or (together and first):
            self.results.setdefault(together, ([], answer.reason))[0].append(delivery)
            return True
        if answer.verdict is Verdict.WITHHELD:
            return True
        self._begun.add(together)
        return False


def _fall_back(
    database: Database,
    together: list[Delivery],
    refused: list[Delivery],
    editions: Sequence[Edition],
    reason: str,
    retry: Retry,
) -> int:
    """Have another edition sent in place of one that is refused, or hold that; return how many objects are replaced."""
    said = {"destination": refused[0].destination, "result": refused[0].result_id}
    try:
        with database.write() as connection:
            edition = deliveries.substitute(connection, refused, editions=editions, reason=reason)
    except LeaseLost as lost:
        _log.warning("another sender took this delivery over", reason=str(lost), **said)
        _give_back(database, together)
        return 0
    if edition is not None:
        _log.warning("another edition goes in place of a refused one", edition=str(edition), reason=reason, **said)
        return len(refused)
    why = f"{reason}; no other edition can go in its place"
    for delivery in together:
        outgoing = Outgoing(
            path=Path(), sop_class_uid="", sop_instance_uid=delivery.sop_instance_uid, transfer_syntax_uid=""
        )
        _record(database, delivery, Answer(outgoing=outgoing, verdict=Verdict.HOLD, status=None, reason=why), retry)
    return 0


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
    held = True
    try:
        with database.write() as connection:
            if answer.verdict is Verdict.TAKEN:
                deliveries.accept(connection, delivery, status=answer.status or 0, note=answer.said)
                _log.info("delivered", **said)
                held = False
            elif answer.verdict is Verdict.TRY_AGAIN:
                delay = max(retry.delay(delivery.attempt), min(answer.wait_seconds, retry.longest_seconds))
                held = deliveries.fail(
                    connection,
                    delivery,
                    status=answer.status,
                    reason=answer.said,
                    delay_seconds=delay,
                    own=answer.own,
                    maximum_tries=retry.maximum_tries,
                )
                if not held:
                    _log.warning("not delivered, will try again", reason=answer.reason, seconds=delay, **said)
            else:
                deliveries.refuse(connection, delivery, status=answer.status, reason=answer.said)
        if held:
            _log.error("delivery held for a person", reason=answer.reason, **said)
        reach("answer_recorded")
    except LeaseLost as lost:
        _log.warning("another sender took this delivery over", reason=str(lost), **said)
