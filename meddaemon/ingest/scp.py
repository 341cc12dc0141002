"""The DICOM listener: C-ECHO, C-STORE and what goes with them as a Service Class Provider (PS3.4).

Verification and storage (Annexes A and B), storage commitment (J), procedure steps (F.7), availability (R).
"""

import sys
import threading
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
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
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, build_context, evt
from pynetdicom.dimse_primitives import C_STORE, N_ACTION, N_CREATE, N_SET
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext

from meddaemon.domain.commitment import STORAGE_COMMITMENT_PUSH_MODEL
from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from meddaemon.failpoints import reach
from meddaemon.ingest.announcements import (
    INSTANCE_AVAILABILITY_NOTIFICATION,
    MODALITY_PERFORMED_PROCEDURE_STEP,
    AnnouncementProvider,
    Answer,
)
from meddaemon.ingest.callers import Caller, Callers
from meddaemon.ingest.commitment import PROCESSING_FAILURE, RESOURCE_LIMITATION, CommitmentProvider
from meddaemon.ingest.custody import CustodyReports
from meddaemon.ingest.message import TooLarge, readable
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.reception import Entrance, Reception
from meddaemon.ingest.statuses import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, SUCCESS
from meddaemon.ingest.storage import StorageProvider
from meddaemon.ingest.upper_layer import Limits
from meddaemon.telemetry import log
from meddaemon.tls import Identity, ServerTls, TlsUnusable, certificates

NO_SUCH_SOP_CLASS = 0x0118
"""PS3.7 C.5.17: No Such SOP Class."""
APPLICATION_CONTEXT_NAME = "1.2.840.10008.3.1.1.1"
"""DICOM Application Context Name (PS3.7 A.2.1)."""
APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
"""A-ASSOCIATE-RJ: permanent, by the service user, application context name not supported (PS3.8 9.3.4)."""
NO_REASON = (1, 1, 1)
"""A-ASSOCIATE-RJ: permanent, by the service user, no reason given."""
SHORTEST_PDU = 8
"""The least that holds a fragment of two bytes with its header (PS3.8 9.3.5.1)."""
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
_PLAIN_SYNTAXES = [str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)]
"""Of messages that carry no image: nothing that must be inflated before anybody can tell what it is."""
_SYNTAXES = list(dict.fromkeys(map(str, (*_PREFERRED, *ALL_TRANSFER_SYNTAXES))))
_log = log(__name__)


def _storage_context(abstract_syntax: str) -> PresentationContext:
    # Copies of one share its transfer syntaxes, which nobody changes: each of them is a UID that is looked at.
    context = copy(_STORAGE)
    context.abstract_syntax = UID(abstract_syntax)
    return context


_STORAGE = build_context(VERIFICATION, list(_SYNTAXES))
_ALWAYS = (
    build_context(VERIFICATION),
    *(_storage_context(str(each.abstract_syntax)) for each in AllStoragePresentationContexts),
)
"""What every listener serves."""

# A UID that is none is for us to refuse, with a status; pynetdicom would abort the association and with it the study.
_config.VALIDATORS["UI"] = lambda uid: (True, "")
# Nobody reads what it says of each PDU and message, and saying it takes longer than the message.
_config.LOG_HANDLER_LEVEL = "none"


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """How TLS is spoken: on which port, who we are, and who vouches for those who call, as PEM files.

    `own` names the files for those AE titles that have one of their own, which then alone counts for them.
    """

    port: int
    identity: Identity
    trusted: Path | None = None
    own: Mapping[str, Path] = field(default_factory=dict)
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class ListenerSettings:
    """How the listener presents itself, and who may call; times in seconds.

    `plain` is whether there is a port for connections without TLS. With `everyone`, also callers that are not listed
    are served, under whatever name they call; `called_ae_titles` are the names that we have besides `ae_title`. Where
    the ports are `shared`, other processes of ours listen on them as well.
    """

    ae_title: str
    host: str
    port: int
    maximum_associations: int
    maximum_pdu_bytes: int
    idle_timeout_seconds: float
    association_timeout_seconds: float
    message_timeout_seconds: float
    everyone: bool = True
    callers: tuple[Caller, ...] = ()
    called_ae_titles: tuple[str, ...] = ()
    plain: bool = True
    tls: TlsSettings | None = None
    shared: bool = False


class Listener:
    """Serves associations until it is closed; each one in a thread of its own."""

    def __init__(
        self,
        settings: ListenerSettings,
        take: Callable[[Incoming], object],
        commitment: CommitmentProvider | None = None,
        announcements: AnnouncementProvider | None = None,
        storage: StorageProvider | None = None,
        has_room: Callable[[], bool] = lambda: True,
        custody: CustodyReports | None = None,
    ) -> None:
        """Bind and listen; every object goes to `storage`.

        Where there is none, and where a request is not quite as it should be, it goes to `take`, which may raise
        RefusedInstance. Storage commitment, and MPPS and IAN, are offered where somebody provides them; `custody`
        hears the reports on what we asked others for. Where `has_room` says no, associations are rejected for the time
        being, before anybody sends what cannot be taken.
        Raises OSError when the address is taken or not ours, TlsUnusable.
        """
        self._settings = settings
        self._take = take
        self._commitment = commitment
        self._announcements = announcements
        self._custody = custody
        self._storage = storage
        entity = AE(ae_title=settings.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.maximum_associations = sys.maxsize  # counted at the reception
        entity.maximum_pdu_size = settings.maximum_pdu_bytes
        entity.network_timeout = settings.idle_timeout_seconds
        entity.acse_timeout = settings.association_timeout_seconds
        entity.dimse_timeout = settings.message_timeout_seconds
        contexts = [*_ALWAYS]
        if commitment is not None or custody is not None:
            asked = build_context(STORAGE_COMMITMENT_PUSH_MODEL, _PLAIN_SYNTAXES)
            if custody is not None:
                # Who calls asks us for it, or reports on what we asked him for: then he proposes to be the provider.
                asked.scu_role = asked.scp_role = True
            contexts.append(asked)
        if announcements is not None:
            contexts.append(build_context(MODALITY_PERFORMED_PROCEDURE_STEP, _PLAIN_SYNTAXES))
            contexts.append(build_context(INSTANCE_AVAILABILITY_NOTIFICATION, _PLAIN_SYNTAXES))
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_REQUESTED, _requested),
            (evt.EVT_N_ACTION, self._act),
            (evt.EVT_N_EVENT_REPORT, self._hear),
            (evt.EVT_N_CREATE, self._create),
            (evt.EVT_N_SET, self._set),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, self._aborted),
        ]
        self._entity = entity
        server = entity.make_server(
            (settings.host, settings.tls.port if settings.tls and not settings.plain else settings.port),
            contexts=contexts,
            evt_handlers=handlers,
            server_class=Reception,
            limits=Limits(pdu_bytes=settings.maximum_pdu_bytes, pdu_seconds=settings.message_timeout_seconds),
            maximum_associations=settings.maximum_associations,
            association_seconds=settings.association_timeout_seconds,
            storage=storage,
            entrance=_entrance(settings),
            plain=settings.plain,
            tls_port=settings.tls.port if settings.tls else None,
            can_serve=has_room,
            shared=settings.shared,
        )
        self._server = cast("Reception", server)
        cast("list[Reception]", entity._servers).append(self._server)
        threading.Thread(target=self._server.serve_forever, name="reception", daemon=True).start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that were bound; the port is the system's choice where 0 was asked for.

        Where there are two, the one without TLS.
        """
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """Host and port that were bound for TLS, if any."""
        return self._server.tls_address

    @property
    def tls_expires_at(self) -> datetime | None:
        """When the certificate ends that we show, if any."""
        tls = self._server.entrance.tls
        return tls.expires_at if tls else None

    @property
    def associations(self) -> int:
        """Number of associations that are open now."""
        return len(self._server.associations)

    def reload(self) -> None:
        """Read certificates and keys anew, for connections from now on; files that are no good leave all as it is.

        Raises TlsUnusable, also where ours has expired and the one in use has not.
        """
        entrance, before = _entrance(self._settings), self.tls_expires_at
        reach("reloading")
        if entrance.tls and before and entrance.tls.expires_at <= datetime.now(UTC) < before:
            raise TlsUnusable("the certificate has expired already")
        self._server.entrance = entrance

    def stop_accepting(self) -> None:
        """Take no further association; open ones go on."""
        self._server.shutdown()

    def close(self) -> None:
        """Stop serving and abort what is still open."""
        self.stop_accepting()
        for association in self._server.associations:
            # A thread that waits for the rest of a PDU hears of nothing else than the end of what it reads.
            association.dul.interrupt()
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
        if request.DataSet is None or requested is None:
            return CANNOT_UNDERSTAND
        try:
            self._take(
                Incoming(
                    data=request.DataSet.getvalue(),
                    transfer_syntax_uid=str(event.context.transfer_syntax),
                    sop_class_uid=str(request.AffectedSOPClassUID or ""),
                    sop_instance_uid=str(request.AffectedSOPInstanceUID or ""),
                    abstract_syntax_uid=str(event.context.abstract_syntax),
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
        self._settle()
        try:
            with readable(request.ActionInformation, str(event.context.transfer_syntax)):
                status = self._commitment.act(
                    str(event.assoc.requestor.ae_title).strip(),
                    request.ActionTypeID or 0,
                    str(request.RequestedSOPInstanceUID),
                    event.action_information,
                )
        except TooLarge as too_large:
            _log.warning("refused a request for storage commitment", reason=str(too_large))
            return RESOURCE_LIMITATION, None
        except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
            _log.error("cannot read a request for storage commitment", kind=type(unforeseen).__name__)
            return PROCESSING_FAILURE, None
        return status, None

    def _hear(self, event: Event) -> tuple[int, None]:
        """Answer one N-EVENT-REPORT request: what a destination says of what we sent there (PS3.4 J.3.3)."""
        return (NO_SUCH_SOP_CLASS, None) if self._custody is None else self._custody.answer(event)

    def _settle(self) -> None:
        """Have registered what was acknowledged before somebody asks about it."""
        if self._storage is not None:
            self._storage.settle()

    def _create(self, event: Event) -> tuple[Dataset, Dataset | None]:
        """Answer one N-CREATE request: somebody announces a study (PS3.4 F.7.2.1, R.3.2)."""
        request = cast("N_CREATE", event.request)
        return self._announced(
            event,
            request.AttributeList,
            lambda provider: provider.create(
                str(request.AffectedSOPClassUID),
                str(request.AffectedSOPInstanceUID or ""),
                str(event.assoc.requestor.ae_title).strip(),
                event.attribute_list,
            ),
        )

    def _set(self, event: Event) -> tuple[Dataset, Dataset | None]:
        """Answer one N-SET request: somebody says more of what he announced (PS3.4 F.7.2.2)."""
        request = cast("N_SET", event.request)
        return self._announced(
            event,
            request.ModificationList,
            lambda provider: provider.set(
                str(request.RequestedSOPClassUID), str(request.RequestedSOPInstanceUID), event.modification_list
            ),
        )

    def _announced(
        self, event: Event, encoded: BytesIO | None, act: Callable[[AnnouncementProvider], Answer]
    ) -> tuple[Dataset, Dataset | None]:
        if self._announcements is None:
            return Answer(status=NO_SUCH_SOP_CLASS).as_dataset(), None
        self._settle()
        try:
            with readable(encoded, str(event.context.transfer_syntax)):
                answer = act(self._announcements)
        except TooLarge as too_large:
            _log.warning("refused an announcement", reason=str(too_large))
            answer = Answer(status=RESOURCE_LIMITATION)
        except Exception as unforeseen:  # noqa: BLE001  one of the few places where errors become outcomes
            _log.error("cannot read an announcement", kind=type(unforeseen).__name__)
            answer = Answer(status=PROCESSING_FAILURE)
        return answer.as_dataset(), answer.attributes()

    def _rejected(self, event: Event) -> None:
        self._server.sparing.warning("rejected an association", str(event.assoc.requestor.address))

    def _aborted(self, event: Event) -> None:
        self._server.sparing.warning("association aborted", str(event.assoc.requestor.address))


def _requested(event: Event) -> None:
    """Reject another application context and PDUs that hold nothing, abort contexts without their syntaxes.

    The library looks at none of them.
    """
    association = event.assoc
    requested = association.requestor.primitive
    if requested is None:
        return
    proposed = requested.presentation_context_definition_list
    if requested.application_context_name != APPLICATION_CONTEXT_NAME:
        association.acse.send_reject(*APPLICATION_CONTEXT_NOT_SUPPORTED)
        evt.trigger(association, evt.EVT_REJECTED, {})
    elif 0 < (association.requestor.maximum_length or 0) < SHORTEST_PDU:
        association.acse.send_reject(*NO_REASON)
        evt.trigger(association, evt.EVT_REJECTED, {})
    elif not all(context.abstract_syntax and context.transfer_syntax for context in proposed):
        _log.warning("a presentation context without its syntaxes", peer=association.requestor.address)
        association.abort()
    else:
        return
    association.kill()  # returns once the answer is out


def _entrance(settings: ListenerSettings) -> Entrance:
    """Return who is let in, certificates read. Raises TlsUnusable."""
    tls = settings.tls
    callers = {caller.ae_title: caller for caller in settings.callers}
    if tls is not None:
        for ae_title, file in tls.own.items():
            known = callers.get(ae_title, Caller(ae_title=ae_title))
            callers[ae_title] = replace(known, certificates=certificates(file))
    trusted = tls.trusted if tls else None
    return Entrance(
        callers=Callers(
            everyone=settings.everyone,
            ae_titles=frozenset({settings.ae_title, *settings.called_ae_titles}),
            known=callers,
            certificates=certificates(trusted) if trusted else frozenset(),
        ),
        tls=ServerTls(tls.identity, [*([trusted] if trusted else ()), *tls.own.values()], required=tls.required)
        if tls
        else None,
    )
