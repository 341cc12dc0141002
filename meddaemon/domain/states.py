"""Life cycles as tables: which event takes a thing from which state to which, and nothing else can."""

from collections.abc import Mapping
from enum import StrEnum


class StudyState(StrEnum):
    """`receiving` until the quiet time has passed since the last instance, then `complete`.

    `held` when it contradicts itself, or is not complete and a rule wants a person to decide: no rule is carried out
    until an operator releases it.
    """

    RECEIVING = "receiving"
    COMPLETE = "complete"
    HELD = "held"


class StudyEvent(StrEnum):
    """What can happen to a study."""

    RECEIVE = "receive"
    """An instance arrived that was not there."""
    COMPLETE = "complete"
    """Every rule was asked."""
    REOPEN = "reopen"
    """The rules are to be asked again: a model changed, or what others announce of it."""
    HOLD = "hold"
    """Its instances contradict each other, or some are missing."""
    RELEASE = "release"
    """An operator looked at it and lets it go on, or what was missing may be here now."""


STUDY_TRANSITIONS: Mapping[StudyState, Mapping[StudyEvent, StudyState]] = {
    StudyState.RECEIVING: {
        StudyEvent.RECEIVE: StudyState.RECEIVING,
        StudyEvent.COMPLETE: StudyState.COMPLETE,
        StudyEvent.REOPEN: StudyState.RECEIVING,
        StudyEvent.HOLD: StudyState.HELD,
    },
    StudyState.COMPLETE: {
        StudyEvent.RECEIVE: StudyState.RECEIVING,
        StudyEvent.COMPLETE: StudyState.COMPLETE,
        StudyEvent.REOPEN: StudyState.RECEIVING,
    },
    # Once released its rules are asked anyway.
    StudyState.HELD: {
        StudyEvent.RECEIVE: StudyState.HELD,
        StudyEvent.HOLD: StudyState.HELD,
        StudyEvent.RELEASE: StudyState.RECEIVING,
    },
}


class AnnouncementState(StrEnum):
    """Where the work that somebody announces stands: Performed Procedure Step Status (PS3.3 C.4.14)."""

    IN_PROGRESS = "IN PROGRESS"
    COMPLETED = "COMPLETED"
    DISCONTINUED = "DISCONTINUED"


ANNOUNCEMENT_TRANSITIONS: Mapping[AnnouncementState, frozenset[AnnouncementState]] = {
    # PS3.4 F.7.2.2: once completed or discontinued it may no longer be updated.
    AnnouncementState.IN_PROGRESS: frozenset(AnnouncementState),
    AnnouncementState.COMPLETED: frozenset(),
    AnnouncementState.DISCONTINUED: frozenset(),
}
"""Which state may follow which."""


class JobState(StrEnum):
    """Where a job stands in the queue."""

    AVAILABLE = "available"
    EXECUTING = "executing"
    PREPARED = "prepared"
    """A worker has it in hand, its input read, until the one before is done."""
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"


class JobEvent(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    PREPARE = "prepare"
    """Its input is ready while the worker is busy with another job: now it rests."""
    START = "start"
    """Its turn has come, and nothing more urgent waits."""
    COMPLETE = "complete"
    FAIL = "fail"
    """The attempt failed and attempts are left."""
    EXHAUST = "exhaust"
    """The attempt failed and was the last: dead letter."""
    REFUSE = "refuse"
    """The input cannot give a right answer; another attempt would not help."""
    EXPIRE = "expire"
    """The lease ran out: the worker died or hung; attempts are left."""
    RELEASE = "release"
    """The worker gives the job back unworked (drain), or ended while it rested; the attempt does not count."""
    MISS = "miss"
    """Its deadline passed before it began, and late it is of no use."""
    HURRY = "hurry"
    """An operator lets a waiting job go first: before others, outside its window and however late."""
    CANCEL = "cancel"
    REQUEUE = "requeue"


JOB_TRANSITIONS: Mapping[JobState, Mapping[JobEvent, JobState]] = {
    JobState.AVAILABLE: {
        JobEvent.CLAIM: JobState.EXECUTING,
        JobEvent.MISS: JobState.DISCARDED,
        JobEvent.HURRY: JobState.AVAILABLE,
        JobEvent.CANCEL: JobState.CANCELLED,
    },
    JobState.RETRYABLE: {
        JobEvent.CLAIM: JobState.EXECUTING,
        JobEvent.MISS: JobState.DISCARDED,
        JobEvent.HURRY: JobState.AVAILABLE,
        JobEvent.CANCEL: JobState.CANCELLED,
        JobEvent.REQUEUE: JobState.AVAILABLE,
    },
    # Its lease runs out like any other, but then nothing that happened to its worker was its doing.
    JobState.PREPARED: {
        JobEvent.START: JobState.EXECUTING,
        JobEvent.RELEASE: JobState.AVAILABLE,
        JobEvent.CANCEL: JobState.CANCELLED,
    },
    JobState.EXECUTING: {
        JobEvent.PREPARE: JobState.PREPARED,
        JobEvent.COMPLETE: JobState.COMPLETED,
        JobEvent.FAIL: JobState.RETRYABLE,
        JobEvent.EXHAUST: JobState.DISCARDED,
        JobEvent.REFUSE: JobState.DISCARDED,
        JobEvent.EXPIRE: JobState.RETRYABLE,
        JobEvent.RELEASE: JobState.AVAILABLE,
        JobEvent.CANCEL: JobState.CANCELLED,
    },
    JobState.DISCARDED: {JobEvent.REQUEUE: JobState.AVAILABLE},
    JobState.CANCELLED: {JobEvent.REQUEUE: JobState.AVAILABLE},
    JobState.COMPLETED: {},
}


class DeliveryState(StrEnum):
    """Where one object stands on its way to one destination."""

    PENDING = "pending"
    SENDING = "sending"
    RETRYABLE = "retryable"
    SENT = "sent"
    """The destination answered that it took the object; nobody has said since that it is there."""
    COMMITTED = "committed"
    """The destination has taken over responsibility for it (storage commitment)."""
    VERIFIED = "verified"
    """The destination found it when it was asked for it by its UID."""
    HELD = "held"
    REPLACED = "replaced"
    """The destination gets the same in another form: another edition of the result, of which this is no part."""


class DeliveryEvent(StrEnum):
    """What can happen to a delivery."""

    CLAIM = "claim"
    ACCEPT = "accept"
    """The destination answered Success or a Warning (0000, Bxxx)."""
    FAIL = "fail"
    """Out of reach or out of resources (A7xx): try again."""
    REFUSE = "refuse"
    """The destination will not take it (A9xx, Cxxx, 0122): a person must look."""
    RELEASE = "release"
    """The sender gives back what it did not send (drain); the attempt does not count."""
    EXPIRE = "expire"
    """The sender died: nobody knows whether it arrived, and a re-send carries the same UID."""
    REPLACE = "replace"
    """The destination refuses its presentation context, or that of what goes together with it."""
    COMMIT = "commit"
    """The destination reported that it answers for the object."""
    VERIFY = "verify"
    """The destination was asked for the object and has it."""
    LOSE = "lose"
    """The destination does not have what it took: it is sent again, under the same UID."""
    DOUBT = "doubt"
    """The destination does not confirm it, however often it was sent or asked: a person must look."""
    REQUEUE = "requeue"


DELIVERY_TRANSITIONS: Mapping[DeliveryState, Mapping[DeliveryEvent, DeliveryState]] = {
    DeliveryState.PENDING: {
        DeliveryEvent.CLAIM: DeliveryState.SENDING,
        DeliveryEvent.REPLACE: DeliveryState.REPLACED,
    },
    DeliveryState.RETRYABLE: {
        DeliveryEvent.CLAIM: DeliveryState.SENDING,
        DeliveryEvent.REQUEUE: DeliveryState.PENDING,
        DeliveryEvent.REPLACE: DeliveryState.REPLACED,
    },
    DeliveryState.SENDING: {
        DeliveryEvent.ACCEPT: DeliveryState.SENT,
        DeliveryEvent.FAIL: DeliveryState.RETRYABLE,
        DeliveryEvent.REFUSE: DeliveryState.HELD,
        DeliveryEvent.RELEASE: DeliveryState.PENDING,
        DeliveryEvent.EXPIRE: DeliveryState.RETRYABLE,
        DeliveryEvent.REPLACE: DeliveryState.REPLACED,
    },
    # A report that comes after all patience was over still counts.
    DeliveryState.HELD: {
        DeliveryEvent.REQUEUE: DeliveryState.PENDING,
        DeliveryEvent.COMMIT: DeliveryState.COMMITTED,
        DeliveryEvent.REPLACE: DeliveryState.REPLACED,
    },
    # The end where the destination's policy says that sent suffices.
    DeliveryState.SENT: {
        DeliveryEvent.COMMIT: DeliveryState.COMMITTED,
        DeliveryEvent.VERIFY: DeliveryState.VERIFIED,
        DeliveryEvent.LOSE: DeliveryState.RETRYABLE,
        DeliveryEvent.DOUBT: DeliveryState.HELD,
    },
    DeliveryState.COMMITTED: {},
    DeliveryState.VERIFIED: {},
    DeliveryState.REPLACED: {},
}
DELIVERY_TAKEN = (DeliveryState.SENT, DeliveryState.COMMITTED, DeliveryState.VERIFIED)
"""The states of what the destination took, as far as we know."""


def study_moves(event: StudyEvent) -> dict[StudyState, StudyState]:
    """Return which study state leads to which when `event` happens."""
    return {state: row[event] for state, row in STUDY_TRANSITIONS.items() if event in row}


def sources(event: JobEvent) -> tuple[JobState, ...]:
    """Return the job states that `event` may leave from."""
    return tuple(state for state, row in JOB_TRANSITIONS.items() if event in row)


def target(event: JobEvent) -> JobState:
    """Return the one job state that `event` leads to, whatever state it leaves from."""
    (only,) = {row[event] for row in JOB_TRANSITIONS.values() if event in row}
    return only


def delivery_sources(event: DeliveryEvent) -> tuple[DeliveryState, ...]:
    """Return the delivery states that `event` may leave from."""
    return tuple(state for state, row in DELIVERY_TRANSITIONS.items() if event in row)


def delivery_target(event: DeliveryEvent) -> DeliveryState:
    """Return the one delivery state that `event` leads to."""
    (only,) = {row[event] for row in DELIVERY_TRANSITIONS.values() if event in row}
    return only
