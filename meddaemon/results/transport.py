"""What every way out has in common: objects that go, what became of each, and what that means for the sender."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Outgoing:
    """One Part 10 file to send, and what its file meta group says of it.

    `sender` is the AE title that most of the study came from. Objects of the same number `together` (not 0) go to the
    destination as they are, all of them or none: they refer to each other.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sender: str = ""
    together: int = 0


class Verdict(Enum):
    """What an answer means for the sender."""

    TAKEN = "taken"
    TRY_AGAIN = "try again"
    HOLD = "hold"
    ANOTHER_FORM = "another form"
    """The destination takes no such object; nothing of what goes together with it was sent."""
    WITHHELD = "withheld"
    """Not sent, since something that goes together with it is not taken."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one object; `status` is the DIMSE status, None where none was received.

    `detail` is what the destination said in its own words, which may name a patient: it is kept, and never logged.
    `own`: it may be the object's own fault: the destination had it, and failed or broke off. `wait_seconds` is how long
    the destination asks to be left alone.
    """

    outgoing: Outgoing
    verdict: Verdict
    status: int | None
    reason: str
    detail: str = ""
    own: bool = False
    wait_seconds: float = 0.0

    @property
    def said(self) -> str:
        """The reason with what the destination said of it."""
        return ": ".join(filter(None, (self.reason, self.detail)))


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What is too slow: an object that gets on with fewer bytes a second, all that is sent at once taking longer."""

    bytes_per_second: float = 10_000.0
    batch_seconds: float = 3600.0

    def seconds(self, size: int) -> float:
        """Return how long so many bytes may take."""
        return min(size / self.bytes_per_second, self.batch_seconds)


Still = Callable[[Outgoing], bool]
"""Says, when the turn of an object comes, whether it is still to be sent."""


class Send(Protocol):
    """Sends objects in their order, and yields what became of each; of those that are not to be sent, nothing."""

    def __call__(self, objects: Sequence[Outgoing], *, still: Still) -> Iterator[Answer]:
        """Send `objects`."""


PROCESSING_FAILURE = 0x0110
_PASSING = {PROCESSING_FAILURE: "processing failure", 0x0213: "resource limitation"}
SOP_CLASS_NOT_SUPPORTED = 0x0122
DUPLICATE_SOP_INSTANCE = 0x0111


def verdict_of(status: int) -> tuple[Verdict, str]:
    """Return what a C-STORE status or a Failure Reason means (PS3.4 B.2.3, PS3.7 Annex C, PS3.18 Annex I)."""
    if status == 0x0000:
        return Verdict.TAKEN, ""
    if status == DUPLICATE_SOP_INSTANCE:
        # PS3.7 C.5.7: what we send under one UID is always the same object.
        return Verdict.TAKEN, "was there already (0111H)"
    if 0xB000 <= status <= 0xBFFF or status in {0x0001, 0x0107, 0x0116}:
        return Verdict.TAKEN, f"taken with warning {status:04X}H"
    if 0xA700 <= status <= 0xA7FF:
        return Verdict.TRY_AGAIN, f"refused: out of resources ({status:04X}H)"
    if status in _PASSING:
        return Verdict.TRY_AGAIN, f"{_PASSING[status]} ({status:04X}H)"
    return Verdict.HOLD, f"refused with status {status:04X}H"


def printable(text: str) -> str:
    """Return what can be printed of what a peer says, on one line and bounded."""
    return "".join(character for character in text if character.isprintable())[:64]
