"""Storage Commitment as a Service Class Provider (PS3.4 Annex J): what a request says, and what we can answer for.

A modality may delete what we commit to, so nothing is committed on the strength of a row: every file is read and
compared with the digest it is named by.
"""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

from pydicom.dataset import Dataset

from meddaemon.db import commitments, instances
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.commitment import (
    STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
    CommitmentReport,
    CommitmentRequest,
    FailureReason,
    ReferencedInstance,
)
from meddaemon.ingest import journal
from meddaemon.ingest.receive import is_uid
from meddaemon.telemetry import log

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
"""PS3.7 C.5.19, and so for those below: C.5.21, C.5.7, C.5.22, C.5.23, C.5.24."""
NO_SUCH_SOP_INSTANCE = 0x0112
INVALID_ARGUMENT_VALUE = 0x0115
NO_SUCH_ACTION_TYPE = 0x0123
NOT_AUTHORIZED = 0x0124
RESOURCE_LIMITATION = 0x0213

REQUEST_STORAGE_COMMITMENT = 1
"""Action Type ID (PS3.4 J.3.2.1.1)."""
MAXIMUM_INSTANCES = 50_000
_log = log(__name__)


class CommitmentProvider:
    """Answers requests for storage commitment; what is answered with Success is kept, and reported later."""

    def __init__(self, database: Database, peers: Collection[str]) -> None:
        """`peers` are the AE titles whose address is known: only they can be told the outcome."""
        self._database = database
        self._peers = frozenset(peers)

    def act(self, calling_ae_title: str, action_type: int, sop_instance_uid: str, information: Dataset) -> int:
        """Return the status of one N-ACTION request."""
        if sop_instance_uid != STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE:
            return NO_SUCH_SOP_INSTANCE
        if action_type != REQUEST_STORAGE_COMMITMENT:
            return NO_SUCH_ACTION_TYPE
        if calling_ae_title not in self._peers:
            _log.warning("storage commitment asked for by an AE that has no host in [[peers]]: it cannot be answered")
            return NOT_AUTHORIZED
        try:
            request = request_of(information, calling_ae_title)
        except ValueError as wrong:
            _log.warning("refused a request for storage commitment", reason=str(wrong))
            return INVALID_ARGUMENT_VALUE
        return self._keep(request)

    def _keep(self, request: CommitmentRequest) -> int:
        try:
            with self._database.write() as connection:
                kept = commitments.ask(connection, request)
        except DatabaseUnavailable as failure:
            _log.error("cannot keep a request for storage commitment", reason=type(failure).__name__)
            return RESOURCE_LIMITATION
        if not kept:
            _log.error("refused a request for storage commitment", reason="its Transaction UID was used before")
            return PROCESSING_FAILURE
        _log.info("storage commitment asked for", instances=len(request.instances))
        return SUCCESS


def request_of(information: Dataset, calling_ae_title: str) -> CommitmentRequest:
    """Return what the Action Information of an N-ACTION asks for. Raises ValueError."""
    transaction_uid = _uid(information, "TransactionUID")
    items = information.get("ReferencedSOPSequence") or []
    if not 0 < len(items) <= MAXIMUM_INSTANCES:
        raise ValueError(f"{len(items)} instances; there must be 1 to {MAXIMUM_INSTANCES}")
    named = (
        ReferencedInstance(
            sop_class_uid=_uid(item, "ReferencedSOPClassUID"), sop_instance_uid=_uid(item, "ReferencedSOPInstanceUID")
        )
        for item in items
    )
    return CommitmentRequest(
        transaction_uid=transaction_uid, calling_ae_title=calling_ae_title, instances=tuple(dict.fromkeys(named))
    )


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = str(dataset.get(keyword) or "").strip(" \0")
    if not is_uid(uid):
        raise ValueError(f"{keyword} is missing or no UID")
    return uid


def examine(database: Database, store: Path, request: CommitmentRequest) -> CommitmentReport | None:
    """Return what we can answer for: every instance is looked up, and its file read and compared.

    None says that some of them have been received, by whichever process, and are about to be filed.
    """
    committed: list[ReferencedInstance] = []
    failed: dict[ReferencedInstance, FailureReason] = {}
    for referenced in request.instances:
        with database.read() as connection:
            versions = instances.versions(connection, referenced.sop_instance_uid)
        reason = _failure(store, referenced, versions)
        if reason is None:
            committed.append(referenced)
        else:
            failed[referenced] = reason
    unknown = {each.sop_instance_uid for each in failed if failed[each] is FailureReason.NO_SUCH_OBJECT_INSTANCE}
    if unknown and not unknown.isdisjoint(journal.waiting(store.parent / journal.FOLDER)):
        return None
    return CommitmentReport(transaction_uid=request.transaction_uid, committed=tuple(committed), failed=failed)


def _failure(
    store: Path, referenced: ReferencedInstance, versions: Iterable[instances.Version]
) -> FailureReason | None:
    known = list(versions)
    if not known:
        return FailureReason.NO_SUCH_OBJECT_INSTANCE
    mine = [version for version in known if version.sop_class_uid == referenced.sop_class_uid]
    if not mine:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    # Which of several versions is the sender's, nobody knows: all must be there.
    for version in mine:
        if not is_intact(instances.path_of(store, version.sha256), version.sha256):
            _log.error("an instance that was asked for is damaged or gone: not committed", sha256=version.sha256)
            return FailureReason.PROCESSING_FAILURE
    return None


def is_intact(path: Path, sha256: str) -> bool:
    """Return whether a file is there and holds what its name says."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
