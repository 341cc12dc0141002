"""Custody of what was sent: asking destinations, as their policy says, until they confirm it or a person must look.

Storage commitment as a Service Class User (PS3.4 Annex J, Push Model), and the search by UID where there is none.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from meddaemon.db import custody
from meddaemon.db.custody import Unconfirmed
from meddaemon.db.engine import Database
from meddaemon.domain.commitment import (
    STORAGE_COMMITMENT_PUSH_MODEL,
    STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
    ReferencedInstance,
)
from meddaemon.domain.custody import EXHAUSTED, CustodyPolicy, Proof, Step, next_step
from meddaemon.failpoints import reach
from meddaemon.results.dicomweb import Service
from meddaemon.results.dimse import Problem, RemoteEntity, associate, release
from meddaemon.results.lookup import find, find_on_the_web
from meddaemon.results.transport import Verdict
from meddaemon.telemetry import log

REQUEST_STORAGE_COMMITMENT = 1
"""Action Type ID (PS3.4 J.3.2.1.1)."""
SUCCESS = 0x0000
OBJECTS_PER_REQUEST = 200
LEASE_SECONDS = 600.0
"""Longer than asking for so many objects takes; who dies meanwhile has them asked for after that."""
_PASSING = frozenset({0x0110, 0x0213})
"""Processing failure and resource limitation (PS3.7 C.5.21, C.5.24): another time it may be taken."""
_log = log(__name__)

Hear = Callable[[evt.Event], tuple[int, None]]
"""Answers an N-EVENT-REPORT request, and keeps what it says."""


class Asked(Enum):
    """What became of a request for storage commitment."""

    TAKEN = "taken"
    UNKNOWN = "unknown"
    """It was sent and not answered: it may have been taken."""
    NOT_NOW = "not now"
    """It was refused for a reason that passes."""
    NEVER = "never"
    """The destination has no storage commitment, or not for us."""
    UNREACHED = "unreached"
    """It was never sent."""


class Custodian(Protocol):
    """One destination that took objects and is asked whether it has them."""

    @property
    def ae_titles(self) -> Sequence[str]:
        """By which AE titles it may report."""

    def ask(
        self, transaction_uid: str, instances: Sequence[ReferencedInstance], sent: Callable[[Asked, str], None]
    ) -> None:
        """Ask for storage commitment; `sent` is told what became of the request, before a report is waited for."""

    def look(self, sought: Sequence[Unconfirmed]) -> set[str] | Problem:
        """Return which of these it finds by their UIDs, or why it did not say."""


@dataclass(frozen=True, kw_only=True)
class DicomCustodian:
    """A remote AE. `hear` answers reports that come while our association is open, `seconds` or until `stop`."""

    remote: RemoteEntity
    hear: Hear
    seconds: float
    stop: threading.Event

    @property
    def ae_titles(self) -> Sequence[str]:
        """The AE title that is asked."""
        return (self.remote.ae_title,)

    def ask(
        self, transaction_uid: str, instances: Sequence[ReferencedInstance], sent: Callable[[Asked, str], None]
    ) -> None:
        """Send an N-ACTION request, and keep the association open for the report for a while."""
        heard, answering = threading.Event(), set[threading.Thread]()

        def answer(event: evt.Event) -> tuple[int, None]:
            answering.add(threading.current_thread())
            answered = self.hear(event)
            # Only what was taken is known to be small enough to be decoded.
            if answered[0] == SUCCESS and event.event_information.TransactionUID == transaction_uid:
                heard.set()
            return answered

        contexts = [build_context(STORAGE_COMMITMENT_PUSH_MODEL, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])]
        association, problem = associate(self.remote, contexts, handlers=[(evt.EVT_N_EVENT_REPORT, answer)])
        if association is None:
            more = ", storage commitment: set it up there, or set custody otherwise" if problem.refuses_contexts else ""
            sent(Asked.NEVER if problem.verdict is Verdict.HOLD else Asked.UNREACHED, f"{problem.reason}{more}")
            return
        try:
            asked, reason = _requested(association, transaction_uid, instances)
            sent(asked, reason)
            if asked is Asked.TAKEN:
                self._await(association, heard)
        finally:
            # The library answers each report in a thread of its own: no answer leaves after the release.
            for each in [*answering]:
                each.join(self.remote.response_timeout_seconds)
            release(association)

    def look(self, sought: Sequence[Unconfirmed]) -> set[str] | Problem:
        """Ask by C-FIND."""
        return find(self.remote, sought)

    def _await(self, association: Association, heard: threading.Event) -> None:
        deadline = time.monotonic() + self.seconds
        while association.is_established and not self.stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if heard.wait(min(left, 0.1)):
                return


@dataclass(frozen=True, kw_only=True)
class WebCustodian:
    """A DICOMweb service: it has no storage commitment."""

    service: Service

    @property
    def ae_titles(self) -> Sequence[str]:
        """None."""
        return ()

    def ask(
        self, transaction_uid: str, instances: Sequence[ReferencedInstance], sent: Callable[[Asked, str], None]
    ) -> None:
        """Say that it cannot be asked."""
        sent(Asked.NEVER, "a DICOMweb service has no storage commitment")

    def look(self, sought: Sequence[Unconfirmed]) -> set[str] | Problem:
        """Ask by QIDO-RS."""
        return find_on_the_web(self.service, sought)


def _requested(
    association: Association, transaction_uid: str, instances: Sequence[ReferencedInstance]
) -> tuple[Asked, str]:
    try:
        status, _ = association.send_n_action(
            action_information(transaction_uid, instances),
            REQUEST_STORAGE_COMMITMENT,
            STORAGE_COMMITMENT_PUSH_MODEL,
            STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
        )
    except (OSError, ValueError, RuntimeError) as failure:
        return Asked.UNKNOWN, f"could not ask for storage commitment: {type(failure).__name__}"
    reach("commitment_requested")
    answered = status.get("Status")
    if answered is None:
        return Asked.UNKNOWN, "no answer to the request for storage commitment"
    if answered == SUCCESS or 0xB000 <= answered <= 0xBFFF:
        return Asked.TAKEN, ""
    said = f"the request for storage commitment was answered {answered:04X}H"
    return Asked.NOT_NOW if answered in _PASSING else Asked.NEVER, said


def action_information(transaction_uid: str, instances: Sequence[ReferencedInstance]) -> Dataset:
    """Return the Action Information of a request (PS3.4 Table J.3-1)."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    items = []
    for each in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = each.sop_class_uid
        item.ReferencedSOPInstanceUID = each.sop_instance_uid
        items.append(item)
    information.ReferencedSOPSequence = items
    return information


def confirm(
    database: Database, destination: str, policy: CustodyPolicy, custodian_of: Callable[[str], Custodian | None]
) -> int:
    """Do for one destination what is due now of what it took and nobody answers for; return how many objects that is.

    `custodian_of` says whom to ask of what a study's sender (an AE title) got back; None: nobody.
    """
    with database.read() as connection:
        waiting = custody.is_waiting(connection, destination, due=policy.proof is not Proof.SENT)
    if not waiting:
        return 0
    if policy.proof is Proof.SENT:
        with database.write() as connection:
            return custody.settle(connection, destination)
    with database.write() as connection:
        claimed = custody.claim(connection, destination, lease_seconds=LEASE_SECONDS, limit=OBJECTS_PER_REQUEST)
    if not claimed:
        return 0
    custodian = custodian_of(claimed[0].sender)
    if custodian is None:
        _give_up(database, destination, claimed, "there is nobody to ask whether it arrived: check [[peers]]")
        return len(claimed)
    by_step: dict[Step, list[Unconfirmed]] = {}
    for each in claimed:
        by_step.setdefault(next_step(policy, each.asked), []).append(each)
    if Step.ASK in by_step:
        _ask(database, destination, policy, custodian, by_step[Step.ASK])
    if Step.LOOK in by_step:
        _look(database, destination, policy, custodian, by_step[Step.LOOK])
    for each in by_step.get(Step.GIVE_UP, ()):
        asked = "" if each.asked >= EXHAUSTED else f"no storage commitment after {each.asked} requests"
        _give_up(database, destination, [each], ": ".join(filter(None, (asked, each.reason))))
    return len(claimed)


def _ask(
    database: Database,
    destination: str,
    policy: CustodyPolicy,
    custodian: Custodian,
    asked_for: Sequence[Unconfirmed],
) -> None:
    # Random, unlike the UIDs of what we make: it names this request, and must not have been used before.
    transaction_uid = f"2.25.{uuid.uuid4().int}"
    with database.write() as connection:
        request = custody.open_request(
            connection,
            destination,
            asked_for,
            transaction_uid=transaction_uid,
            reported_by={*custodian.ae_titles, *policy.reported_by},
            policy=policy,
        )

    def sent(asked: Asked, reason: str) -> None:
        with database.write() as connection:
            match asked:
                case Asked.TAKEN | Asked.UNKNOWN:
                    custody.taken(connection, request, report_seconds=policy.report_seconds, reason=reason)
                case Asked.NOT_NOW:
                    custody.refused(connection, request, reason=reason, retry_seconds=policy.retry_seconds)
                case Asked.NEVER:
                    custody.refused(connection, request, reason=reason, retry_seconds=None)
                case Asked.UNREACHED:
                    custody.not_asked(connection, request, reason=reason, retry_seconds=policy.retry_seconds)
        tell = _log.info if asked is Asked.TAKEN else _log.warning
        said = {"destination": destination, "objects": len(asked_for), "request": request.id}
        tell("asked for storage commitment", **said, answer=asked.value, reason=reason)

    custodian.ask(transaction_uid, [each.referenced for each in asked_for], sent)


def _look(
    database: Database,
    destination: str,
    policy: CustodyPolicy,
    custodian: Custodian,
    sought: Sequence[Unconfirmed],
) -> None:
    there = custodian.look(sought)
    if isinstance(there, Problem):
        if there.verdict is Verdict.HOLD:
            _give_up(database, destination, sought, there.reason)
            return
        with database.write() as connection:
            custody.postpone(connection, sought, reason=there.reason, seconds=policy.retry_seconds)
        _log.warning("a destination did not say what it has", destination=destination, reason=there.reason)
        return
    lost = 0
    with database.write() as connection:
        for each in sorted(sought, key=lambda each: each.delivery_id):
            if each.sop_instance_uid in there:
                custody.found(connection, each)
            else:
                lost += custody.missed(connection, each, policy)
    tell = _log.info if len(there) == len(sought) else _log.warning
    said = {"destination": destination, "found": len(there), "missing": len(sought) - len(there), "lost": lost}
    tell("looked for what was sent", **said)


def _give_up(database: Database, destination: str, given_up: Sequence[Unconfirmed], reason: str) -> None:
    with database.write() as connection:
        for each in sorted(given_up, key=lambda each: each.delivery_id):
            custody.doubt(connection, each, reason)
    _log.error(
        "nobody confirms what was sent: held for a person",
        destination=destination,
        objects=len(given_up),
        reason=reason,
    )
