"""Deterministic UIDs: the same entropy gives the same UID on every machine (PS3.5 B.2, UUID-derived UIDs)."""

import hashlib
import uuid

IMPLEMENTATION_CLASS_UID = "2.25.179062174346087163318474302284119226467"
"""Identifies this implementation in file meta and association negotiation (PS3.7 D.3.3.2)."""

IMPLEMENTATION_VERSION_NAME = "MEDDAEMON_0_1"


def digest_of(*parts: str) -> str:
    """Return the SHA-256 hex digest of the parts, joined so that ("1.2", "3") and ("1", "2.3") stay apart."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def derived_uid(*entropy: str) -> str:
    """Return the UID `2.25.<UUID as integer>` that belongs to this entropy, at most 44 characters long."""
    # Version 5 marks the UUID as name-based, which is what a hash is (RFC 9562 section 5.5).
    return f"2.25.{uuid.UUID(hex=digest_of(*entropy)[:32], version=5).int}"
