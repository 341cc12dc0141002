"""Which request goes to which service, and what is answered where it belongs to none (PS3.7 chapters 9 and 10).

The library goes by the SOP class that a request names. Here the presentation context decides, which is what was agreed
on: a request that names another class, or that the context's service does not have, gets a status and not silence.
"""

from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_CANCEL, C_ECHO, C_STORE, N_ACTION, N_EVENT_REPORT
from pynetdicom.presentation import PresentationContext
from pynetdicom.service_class import (
    ServiceClass,
    StorageServiceClass,
    VerificationServiceClass,
)
from pynetdicom.service_class_n import StorageCommitmentServiceClass
from pynetdicom.sop_class import uid_to_service_class

from meddaemon.ingest.statuses import SOP_CLASS_NOT_SUPPORTED
from meddaemon.telemetry import about, log

UNRECOGNIZED_OPERATION = 0x0211
"""PS3.7 C.5.24: Unrecognized Operation."""

_OPERATIONS: dict[type[ServiceClass], type | tuple[type, ...]] = {
    VerificationServiceClass: C_ECHO,
    StorageServiceClass: C_STORE,
    StorageCommitmentServiceClass: (N_ACTION, N_EVENT_REPORT),
}
"""The requests that each of these services has; the library's classes of the other services ask for themselves."""
_log = log(__name__)


def serve(association: Association, message: Any, context_id: int) -> None:
    """Serve one DIMSE message of the peer, answer that it cannot be served, or abort where there is no answer to it."""
    context = association._accepted_cx.get(context_id)
    if isinstance(message, C_CANCEL) and context is not None:
        return  # nothing of ours takes long enough to be cancelled
    # We ask for nothing on these associations, so there is nothing to respond to; and no answer without a Message ID.
    if context is None or message.MessageIDBeingRespondedTo is not None or message.MessageID is None:
        _log.warning("a message that has no answer", peer=association.requestor.address, kind=type(message).__name__)
        association.abort()
        return
    with about(peer=association.requestor.address, calling_ae_title=str(association.requestor.ae_title).strip()):
        _serve(association, message, context_id, context)


def _serve(association: Association, message: Any, context_id: int, context: PresentationContext) -> None:
    service = uid_to_service_class(str(context.abstract_syntax))
    status = _refusal(message, context, service)
    if status is not None:
        _log.warning("a request that is not served", kind=type(message).__name__, status=f"{status:04X}")
        _answer(association, message, context_id, status)
        return
    try:
        service(association).SCP(message, context)
    except Exception as unforeseen:  # noqa: BLE001  as in the library: whatever it is, the peer is told
        _log.error("a request could not be served", kind=type(unforeseen).__name__, exc_info=unforeseen)
        association.abort()


def _refusal(message: Any, context: PresentationContext, service: type[ServiceClass]) -> int | None:
    """Return the status of a request that its context's service does not have, or that names another SOP class."""
    if not isinstance(message, _OPERATIONS.get(service, type(message))):
        return UNRECOGNIZED_OPERATION
    if isinstance(message, C_STORE):
        return None  # an object that is refused is recorded: that is for the receiver to do
    named = getattr(message, "AffectedSOPClassUID", None) or getattr(message, "RequestedSOPClassUID", None)
    return None if named == context.abstract_syntax else SOP_CLASS_NOT_SUPPORTED


def _answer(association: Association, message: Any, context_id: int, status: int) -> None:
    answer = type(message)()
    answer.MessageIDBeingRespondedTo = message.MessageID
    answer.Status = status
    association.dimse.send_msg(answer, context_id)
