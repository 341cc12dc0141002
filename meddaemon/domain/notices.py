"""Who is told that a result is done at a destination, and how."""

from dataclasses import dataclass
from enum import StrEnum


class NoticeForm(StrEnum):
    """How somebody is told."""

    IAN = "ian"
    """Instance Availability Notification (PS3.4 Annex R)."""
    HL7 = "hl7"
    """HL7 v2.5.1 ORU^R01 by MLLP."""
    FHIR = "fhir"
    """FHIR R4, a transaction of one report with its observations."""


@dataclass(frozen=True, kw_only=True, order=True)
class Target:
    """One who is told: an AE title (IAN), a host with its port (HL7), or a URL (FHIR)."""

    form: NoticeForm
    target: str
