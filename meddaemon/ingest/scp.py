"""The DICOM listener: C-ECHO and C-STORE as a Service Class Provider (PS3.4 Annexes A and B)."""

import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.dimse_primitives import C_STORE, N_ACTION
from pynetdicom.events import Event

from meddaemon.domain.commitment import STORAGE_COMMITMENT_PUSH_MODEL
from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from meddaemon.ingest.commitment import PROCESSING_FAILURE, CommitmentProvider
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.reception import Reception
from meddaemon.ingest.statuses import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS
from meddaemon.ingest.upper_layer import Limits
from meddaemon.telemetry import log

NO_SUCH_SOP_CLASS = 0x0118
"""PS3.7 C.5.17: No Such SOP Class."""
VERIFICATION = "1.2.840.10008.1.1"
"""Verification SOP Class (PS3.4 Annex A)."""
_PREFERRED = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    RLELossless,
)
"""Where a sender leaves the choice to us, our order decides: VRs are kept, and nothing is made lossy on our account."""
_SYNTAXES = list(dict.fromkeys(map(str, (*_PREFERRED, *ALL_TRANSFER_SYNTAXES))))
_log = log(__name__)

# A UID that is none is for us to refuse, with a status; pynetdicom would abort the association and with it the study.
_config.VALIDATORS["UI"] = lambda uid: (True, "")
# Nobody reads what it says of each PDU and message, and saying it takes longer than the message.
_config.LOG_HANDLER_LEVEL = "none"


@dataclass(frozen=True, kw_only=True)
class ListenerSettings:
    """How the listener presents itself; empty tuples mean that everybody is accepted. Times in seconds."""

    ae_title: str
    host: str
    port: int
    maximum_associations: int
    maximum_pdu_bytes: int
    idle_timeout_seconds: float
    association_timeout_seconds: float
    message_timeout_seconds: float
    require_called_ae_title: bool = False
    calling_ae_titles: tuple[str, ...] = ()


class Listener:
    """Serves associations until it is closed; each one in a thread of its own."""

    def __init__(
        self,
        settings: ListenerSettings,
        take: Callable[[Incoming], object],
        commitment: CommitmentProvider | None = None,
    ) -> None:
        """Bind and listen; every object goes to `take`, which may raise RefusedInstance.

        Storage commitment is offered where somebody provides it. Raises OSError when the address is taken or not
        ours.
        """
        self._take = take
        self._commitment = commitment
        entity = AE(ae_title=settings.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_associations = sys.maxsize  # counted at the reception
        entity.maximum_pdu_size = settings.maximum_pdu_bytes
        entity.network_timeout = settings.idle_timeout_seconds
        entity.acse_timeout = settings.association_timeout_seconds
        entity.dimse_timeout = settings.message_timeout_seconds
        entity.require_called_aet = settings.require_called_ae_title
        entity.require_calling_aet = list(settings.calling_ae_titles)
        entity.add_supported_context(VERIFICATION)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), _SYNTAXES)
        if commitment is not None:
            entity.add_supported_context(STORAGE_COMMITMENT_PUSH_MODEL)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_N_ACTION, self._act),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REJECTED, _rejected),
            (evt.EVT_ABORTED, _aborted),
        ]
        self._entity = entity
        server = entity.make_server(
            (settings.host, settings.port),
            evt_handlers=handlers,
            server_class=Reception,
            limits=Limits(pdu_bytes=settings.maximum_pdu_bytes, pdu_seconds=settings.message_timeout_seconds),
            maximum_associations=settings.maximum_associations,
            association_seconds=settings.association_timeout_seconds,
        )
        self._server = cast("Reception", server)
        cast("list[Reception]", entity._servers).append(self._server)
        threading.Thread(target=self._server.serve_forever, name="reception", daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that were bound; the port is the system's choice where 0 was asked for."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    @property
    def associations(self) -> int:
        """Number of associations that are open now."""
        return len(self._server.associations)

    def stop_accepting(self) -> None:
        """Take no further association; open ones go on."""
        self._server.shutdown()

    def close(self) -> None:
        """Stop serving and abort what is still open."""
        self.stop_accepting()
        for association in self._server.associations:
            connection = association.dul.socket
            if connection is not None and connection.socket is not None:
                # A thread that waits for the rest of a PDU hears of nothing else than the end of what it reads.
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RD)
        self._entity.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _store(self, event: Event) -> int:
        """Answer one C-STORE request (PS3.4 B.2); Success says that the object would survive a power loss."""
        request = cast("C_STORE", event.request)
        requested = event.assoc.requestor.primitive
        if request.DataSet is None or request.AffectedSOPInstanceUID is None or requested is None:
            return CANNOT_UNDERSTAND
        try:
            self._take(
                Incoming(
                    data=request.DataSet.getvalue(),
                    transfer_syntax_uid=str(event.context.transfer_syntax),
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID),
                    calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
                    called_ae_title=str(requested.called_ae_title).strip(),
                )
            )
        except RefusedInstance as refused:
            return refused.status
        except Exception as unforeseen:  # noqa: BLE001  one of the four places where errors become outcomes
            _log.error("cannot take an object", kind=type(unforeseen).__name__, exc_info=unforeseen)
            return OUT_OF_RESOURCES
        return SUCCESS

    def _act(self, event: Event) -> tuple[int, None]:
        """Answer one N-ACTION request: storage commitment, and nothing else (PS3.4 J.3.2)."""
        request = cast("N_ACTION", event.request)
        if self._commitment is None or request.RequestedSOPClassUID != STORAGE_COMMITMENT_PUSH_MODEL:
            return NO_SUCH_SOP_CLASS, None
        try:
            status = self._commitment.act(
                str(event.assoc.requestor.ae_title).strip(),
                request.ActionTypeID or 0,
                str(request.RequestedSOPInstanceUID),
                event.action_information,
            )
        except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
            _log.error("cannot read a request for storage commitment", kind=type(unforeseen).__name__)
            return PROCESSING_FAILURE, None
        return status, None


def _rejected(event: Event) -> None:
    _log.warning("rejected an association", peer=event.assoc.requestor.address)


def _aborted(event: Event) -> None:
    _log.warning("association aborted", peer=event.assoc.requestor.address)
