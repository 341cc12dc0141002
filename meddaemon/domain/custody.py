"""Custody of what was sent: who answers for it, what a destination says of that, and what follows from it.

The other side of `meddaemon.domain.commitment`: there a peer asks us, here we ask a destination.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, StrEnum

from meddaemon.domain.commitment import ReferencedInstance

LOOKS = 2
"""How often, with a pause between, a destination is asked for an object that it does not find before that is believed:
many archives answer a C-STORE before they have indexed the object."""
EXHAUSTED = 1_000_000
"""Requests that count as made of a destination that will never answer one."""


class Proof(StrEnum):
    """What must be known of an object before it is done at a destination."""

    SENT = "sent"
    """The answer to its sending."""
    COMMITMENT = "commitment"
    """Storage commitment (PS3.4 Annex J): the destination says that it answers for it."""
    QUERY = "query"
    """The destination finds it by its UID."""


@dataclass(frozen=True, kw_only=True)
class CustodyPolicy:
    """What a destination must prove, and how patiently it is asked; times in seconds.

    `fallback`: where storage commitment gives no answer, it is asked by query. Beside the AE that was asked,
    `reported_by` may report. A report may be out for `report_seconds`, the first `association_seconds` of which our
    association stays open for it.
    """

    proof: Proof = Proof.SENT
    fallback: bool = False
    reported_by: tuple[str, ...] = ()
    report_seconds: float = 3600.0
    association_seconds: float = 10.0
    maximum_requests: int = 3
    query_pause_seconds: float = 300.0
    maximum_losses: int = 3
    retry_seconds: float = 60.0


class Step(Enum):
    """What is to be done about an object that nobody answers for yet."""

    ASK = "ask"
    LOOK = "look"
    GIVE_UP = "give up"


def next_step(policy: CustodyPolicy, asked: int) -> Step:
    """Return what follows when storage commitment has been asked for so many times without an answer that counts."""
    if policy.proof is Proof.COMMITMENT and asked < policy.maximum_requests:
        return Step.ASK
    return Step.LOOK if policy.proof is Proof.QUERY or policy.fallback else Step.GIVE_UP


class ReportedFailure(IntEnum):
    """Failure Reasons of a report that say something else than that the object is not there (PS3.3 C.14.1.1)."""

    CLASS_INSTANCE_CONFLICT = 0x0119
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION_UID = 0x0131


@dataclass(frozen=True, kw_only=True)
class CustodyReport:
    """What a destination says of a request: what it answers for, and what it does not, with the Failure Reason."""

    transaction_uid: str
    committed: frozenset[ReferencedInstance]
    failed: Mapping[ReferencedInstance, int]


class Outcome(StrEnum):
    """What a report says of one object."""

    COMMITTED = "committed"
    LOST = "lost"
    """It is not there, or not whole: to be sent again."""
    UNANSWERABLE = "unanswerable"
    """There is no commitment for objects of its class: only a query can tell."""
    CONFLICT = "conflict"
    """Something else is there under its UID: sending it again would not help."""
    UNSAID = "unsaid"
    """Nothing that counts: not mentioned, or under another SOP class. It is asked for again."""


_OUTCOMES: Mapping[int, Outcome] = {
    ReportedFailure.CLASS_INSTANCE_CONFLICT: Outcome.CONFLICT,
    ReportedFailure.SOP_CLASS_NOT_SUPPORTED: Outcome.UNANSWERABLE,
    ReportedFailure.DUPLICATE_TRANSACTION_UID: Outcome.UNSAID,
}


def outcome_of(report: CustodyReport, referenced: ReferencedInstance) -> tuple[Outcome, str]:
    """Return what a report says of an object, and why it is not committed; what is in both lists has failed."""
    reason = report.failed.get(referenced)
    if reason is not None:
        return _OUTCOMES.get(reason, Outcome.LOST), f"storage commitment failed ({reason:04X}H)"
    if referenced in report.committed:
        return Outcome.COMMITTED, ""
    return Outcome.UNSAID, "the report of storage commitment does not mention it"
