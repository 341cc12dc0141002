"""Who is told that a result is done at a destination, and how."""

from dataclasses import dataclass
from enum import StrEnum


class NoticeForm(StrEnum):
    """How somebody is told."""

    IAN = "ian"
    """Instance Availability Notification (PS3.4 Annex R)."""
    HL7 = "hl7"
    """HL7 v2.5.1 ORU^R01 by MLLP."""


@dataclass(frozen=True, kw_only=True, order=True)
class Target:
    """One who is told: an AE title (IAN), or a host with its port (HL7)."""

    form: NoticeForm
    target: str
