"""Storage Commitment as values (PS3.4 Annex J, Push Model)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

STORAGE_COMMITMENT_PUSH_MODEL = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known SOP Instance that every request names (PS3.4 J.3.5)."""


class FailureReason(IntEnum):
    """Why an instance is not committed (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferencedInstance:
    """One SOP Instance that a request or a report names."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, kw_only=True)
class CommitmentRequest:
    """A peer asks us to take over responsibility for these instances (N-ACTION, Action Type 1)."""

    transaction_uid: str
    calling_ae_title: str
    instances: tuple[ReferencedInstance, ...]


@dataclass(frozen=True, kw_only=True)
class CommitmentReport:
    """What we tell it: each instance of the request is committed, or is in `failed` with the reason."""

    transaction_uid: str
    committed: tuple[ReferencedInstance, ...]
    failed: Mapping[ReferencedInstance, FailureReason]
