"""Reports of storage commitment that others owe us: N-EVENT-REPORT, whoever opened the association (PS3.4 J.3.3).

The request stands in the database, so any process may take its report: this one, or the one that asked and is gone.
"""

from typing import cast

from pydicom.dataset import Dataset
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event

from meddaemon.db import custody
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.commitment import STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE, ReferencedInstance
from meddaemon.domain.custody import CustodyReport
from meddaemon.ingest.commitment import (
    INVALID_ARGUMENT_VALUE,
    MAXIMUM_INSTANCES,
    NO_SUCH_SOP_INSTANCE,
    PROCESSING_FAILURE,
    RESOURCE_LIMITATION,
    SUCCESS,
)
from meddaemon.ingest.message import TooLarge, readable
from meddaemon.ingest.receive import is_uid
from meddaemon.telemetry import log

EVENT_TYPES = frozenset({1, 2})
"""Storage Commitment Request Successful, and Complete with Failures Exist (PS3.4 J.3.3.1.1)."""
NO_SUCH_EVENT_TYPE = 0x0113
"""PS3.7 C.5.20."""
_UNKNOWN_REASON = 0x0110
_log = log(__name__)


class CustodyReports:
    """Hears reports, and answers them; what is answered with Success is kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def answer(self, event: Event) -> tuple[int, None]:
        """Answer one N-EVENT-REPORT request of the library."""
        request = cast("N_EVENT_REPORT", event.request)
        # Who reports: on an association that we asked for it is the other end.
        peer = event.assoc.acceptor if event.assoc.is_requestor else event.assoc.requestor
        try:
            with readable(request.EventInformation, str(event.context.transfer_syntax)):
                status = self.hear(
                    str(peer.ae_title).strip(),
                    request.EventTypeID or 0,
                    str(request.AffectedSOPInstanceUID or ""),
                    event.event_information,
                )
        except TooLarge as too_large:
            _log.warning("refused a report of storage commitment", reason=str(too_large))
            return RESOURCE_LIMITATION, None
        except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
            _log.error("cannot read a report of storage commitment", kind=type(unforeseen).__name__)
            return PROCESSING_FAILURE, None
        return status, None

    def hear(self, ae_title: str, event_type: int, sop_instance_uid: str, information: Dataset) -> int:
        """Take a report, and return the status to answer it with."""
        if sop_instance_uid != STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE:
            return NO_SUCH_SOP_INSTANCE
        if event_type not in EVENT_TYPES:
            return NO_SUCH_EVENT_TYPE
        try:
            report = report_of(information)
        except ValueError as wrong:
            _log.warning("refused a report of storage commitment", reason=str(wrong))
            return INVALID_ARGUMENT_VALUE
        try:
            with self._database.write() as connection:
                heard = custody.hear(connection, report, ae_title)
        except DatabaseUnavailable as failure:
            _log.error("cannot keep a report of storage commitment", reason=type(failure).__name__)
            return RESOURCE_LIMITATION
        if heard is None:
            _log.warning(
                "a report of storage commitment on nothing that this AE was asked for",
                ae_title=ae_title,
                transaction=report.transaction_uid,
            )
            return NO_SUCH_SOP_INSTANCE
        said = {"committed": heard.committed, "failed": heard.failed, "unsaid": heard.unsaid}
        tell = _log.warning if heard.failed or heard.unsaid else _log.info
        tell("storage commitment reported to us", destination=heard.destination, repeated=heard.repeated, **said)
        return SUCCESS


def report_of(information: Dataset) -> CustodyReport:
    """Return what the Event Information of an N-EVENT-REPORT says (PS3.4 Table J.3-2). Raises ValueError."""
    transaction_uid = str(information.get("TransactionUID") or "").strip(" \0")
    if not is_uid(transaction_uid):
        raise ValueError("TransactionUID is missing or no UID")
    committed = information.get("ReferencedSOPSequence") or []
    failed = information.get("FailedSOPSequence") or []
    if len(committed) + len(failed) > MAXIMUM_INSTANCES:
        raise ValueError(f"more than {MAXIMUM_INSTANCES} instances")
    return CustodyReport(
        transaction_uid=transaction_uid,
        committed=frozenset(_referenced(item) for item in committed),
        failed={_referenced(item): _reason(item) for item in failed},
    )


def _referenced(item: Dataset) -> ReferencedInstance:
    """Return what an item names; what it does not name, or not by UIDs, is nothing that we asked for."""
    return ReferencedInstance(
        sop_class_uid=str(item.get("ReferencedSOPClassUID") or "").strip(" \0"),
        sop_instance_uid=str(item.get("ReferencedSOPInstanceUID") or "").strip(" \0"),
    )


def _reason(item: Dataset) -> int:
    reason = item.get("FailureReason")
    return reason if isinstance(reason, int) else _UNKNOWN_REASON
