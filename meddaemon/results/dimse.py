"""C-STORE and C-ECHO as a Service Class User (PS3.4 Annexes A and B): how objects leave, and what was answered."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from ssl import SSLContext

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from meddaemon.failpoints import is_armed, reach
from meddaemon.results.transport import Answer, Outgoing, Still, Verdict, printable, verdict_of
from meddaemon.tls import Identity, TlsUnusable, client_context

VERIFICATION = "1.2.840.10008.1.1"
"""Verification SOP Class (PS3.4 Annex A)."""
MAXIMUM_CONTEXTS = 128
"""Presentation context ids are the odd numbers from 1 to 255 (PS3.8 9.3.2.2)."""

# Files go out byte for byte, in pieces, instead of being decoded and encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """Who we are and who vouches for the remote AE; `check_name`: it must prove its host name (PEM files)."""

    identity: Identity | None
    trusted: Path
    check_name: bool = True


@dataclass(frozen=True, kw_only=True)
class RemoteEntity:
    """A remote AE and how we call it; times in seconds."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    connection_timeout_seconds: float = 10.0
    association_timeout_seconds: float = 30.0
    response_timeout_seconds: float = 60.0
    tls: ClientTls | None = None


def store(remote: RemoteEntity, objects: Sequence[Outgoing], *, still: Still = lambda _: True) -> Iterator[Answer]:
    """Send objects over as few associations as their presentation contexts allow; yield each answer as it comes.

    Each object is answered for, in order, unless `still` says, when its turn comes, that it is not to be sent.
    """
    for batch in _batches(objects):
        yield from _store_batch(remote, batch, still)


def echo(remote: RemoteEntity) -> str:
    """Return the empty string when the remote AE answers C-ECHO with Success, else what went wrong."""
    association, problem = associate(remote, [build_context(VERIFICATION)])
    if association is None:
        return problem.reason
    try:
        status = association.send_c_echo()
    except AssociationEnded:
        return "no answer"
    finally:
        release(association)
    answered = status.get("Status")
    if answered == 0x0000:
        return ""
    return "no answer" if answered is None else f"answered {answered:04X}H"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why something could not be said to a peer, and what that means."""

    verdict: Verdict
    reason: str


def _batches(objects: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    batch: list[Outgoing] = []
    contexts: set[tuple[str, str]] = set()
    for outgoing in objects:
        wanted = {(outgoing.sop_class_uid, syntax) for syntax in _syntaxes(outgoing)}
        if len(contexts | wanted) > MAXIMUM_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.append(outgoing)
        contexts |= wanted
    if batch:
        yield batch


def _syntaxes(outgoing: Outgoing) -> tuple[str, ...]:
    """Return the object's own syntax, and implicit VR where that can be written without touching pixels."""
    if outgoing.transfer_syntax_uid == ExplicitVRLittleEndian:
        return (outgoing.transfer_syntax_uid, str(ImplicitVRLittleEndian))
    return (outgoing.transfer_syntax_uid,)


@dataclass(frozen=True)
class BackToSender:
    """The AEs that studies come from, as destinations, by AE title."""

    known: Mapping[str, RemoteEntity]

    def store(self, objects: Sequence[Outgoing], *, still: Still) -> Iterator[Answer]:
        """Send each object to the AE that most of its study came from; what came from nobody we can call is held."""
        for sender, group in groupby(objects, key=lambda each: each.sender):
            remote = self.known.get(sender)
            if remote is not None:
                yield from store(remote, list(group), still=still)
                continue
            reason = f"the study came from {printable(sender) or 'no AE'}, which [[peers]] has no host and port for"
            yield from (
                Answer(outgoing=each, verdict=Verdict.HOLD, status=None, reason=reason) for each in group if still(each)
            )


def _store_batch(remote: RemoteEntity, batch: list[Outgoing], still: Still) -> Iterator[Answer]:
    wanted = {(each.sop_class_uid, syntax): None for each in batch for syntax in _syntaxes(each)}
    association, problem = associate(remote, [build_context(sop_class, [syntax]) for sop_class, syntax in wanted])
    if association is None:
        for outgoing in batch:
            yield Answer(outgoing=outgoing, verdict=problem.verdict, status=None, reason=problem.reason)
        return
    accepted = {
        (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
    }
    try:
        for message_id, outgoing in enumerate(batch):
            if still(outgoing):
                yield _store_one(association, outgoing, accepted, message_id % 65535 + 1)
    finally:
        release(association)


def _store_one(association: Association, outgoing: Outgoing, accepted: set[tuple[str, str]], message_id: int) -> Answer:
    def answer(verdict: Verdict, reason: str, status: int | None = None) -> Answer:
        return Answer(outgoing=outgoing, verdict=verdict, status=status, reason=reason)

    if not association.is_established:
        return answer(Verdict.TRY_AGAIN, "the association ended before this object's turn")
    usable = [syntax for syntax in _syntaxes(outgoing) if (outgoing.sop_class_uid, syntax) in accepted]
    if not usable:
        name = UID(outgoing.sop_class_uid).name
        return answer(Verdict.HOLD, f"the remote AE accepts no presentation context for {name} in this encoding")
    try:
        if usable[0] == outgoing.transfer_syntax_uid:
            status = association.send_c_store(outgoing.path, msg_id=message_id)
        else:
            status = association.send_c_store(dcmread(outgoing.path), msg_id=message_id)
    except (OSError, ValueError, AttributeError, RuntimeError, InvalidDicomError) as failure:
        return answer(Verdict.TRY_AGAIN, f"could not send: {type(failure).__name__}")
    answered = status.get("Status")
    if answered is None:
        return answer(Verdict.TRY_AGAIN, "no answer: the association was aborted or timed out")
    verdict, reason = verdict_of(answered)
    comment = printable(str(status.get("ErrorComment", "")))
    return answer(verdict, f"{reason}: {comment}" if reason and comment else reason, answered)


class AssociationEnded(RuntimeError):
    """The association ended before something could be asked over it."""


class Pause(threading.Event):
    """Keeps the library's thread of an association away from answers, for as long as it is not set.

    The library's own event lets whoever asks twice in a row take that thread for paused when it is about to go on: it
    then takes the answer away, and the asker hears of none before its time-out. Here `clear` returns when the thread
    has stopped.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self._stopped = threading.Event()
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Stop where it is not set; called by the library's thread."""
        if not self.is_set():
            self._stopped.set()
        return super().wait(timeout)

    def clear(self) -> None:
        """Have the library's thread stop, and return when it has; called before something is asked.

        Raises AssociationEnded when there is nobody left to ask: whoever asks all the same waits for nothing.
        """
        self._stopped.clear()
        super().clear()
        while not self._stopped.wait(0.05):
            if not self._association.is_alive():
                raise AssociationEnded("the association has ended")


def release(association: Association) -> None:
    """Release an association (PS3.8 7.2), unless it has ended already."""
    with suppress(AssociationEnded):
        if association.is_established:
            association.release()


def associate(
    remote: RemoteEntity, contexts: list[PresentationContext], roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = ()
) -> tuple[Association | None, Problem]:
    """Open an association with these presentation contexts and roles, or say why there is none."""
    entity = AE(ae_title=remote.calling_ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = remote.connection_timeout_seconds
    entity.acse_timeout = remote.association_timeout_seconds
    entity.dimse_timeout = remote.response_timeout_seconds
    entity.network_timeout = remote.response_timeout_seconds
    where = f"{remote.ae_title} at {remote.host}:{remote.port}"
    try:
        association = entity.associate(
            remote.host,
            remote.port,
            contexts=contexts,
            ae_title=remote.ae_title,
            max_pdu=0x20000,
            ext_neg=list(roles),
            tls_args=_tls_args(remote),
            evt_handlers=[(evt.EVT_PDU_SENT, _half_sent)] if is_armed("half_sent") else [],
        )
    except (OSError, ValueError, TlsUnusable) as failure:
        # A host name that cannot be resolved, or cannot be a host name; certificates that cannot be used.
        reason = str(failure) if isinstance(failure, TlsUnusable) else type(failure).__name__
        return None, Problem(verdict=Verdict.TRY_AGAIN, reason=f"{where}: {reason}")
    if association.is_established:
        reach("associated")
        association._reactor_checkpoint = Pause(association)
        return association, Problem(verdict=Verdict.TRY_AGAIN, reason="")
    if association.is_rejected:
        refusal = association.acceptor.primitive
        permanent = refusal is not None and refusal.result == 0x01
        return None, Problem(
            verdict=Verdict.HOLD if permanent else Verdict.TRY_AGAIN,
            reason=f"{where} rejected the association"
            + (f" ({refusal.reason_str})" if refusal is not None else "")
            + (" permanently: check both AE titles" if permanent else ""),
        )
    if association.rejected_contexts:
        # The peer took the association and nothing that was to be said over it; pynetdicom then aborts.
        return None, Problem(verdict=Verdict.HOLD, reason=f"{where} accepts no presentation context for this")
    if association.is_aborted:
        return None, Problem(verdict=Verdict.TRY_AGAIN, reason=f"{where} aborted, or nobody listens there")
    return None, Problem(verdict=Verdict.TRY_AGAIN, reason=f"{where} does not answer")


def _half_sent(event: evt.Event) -> None:
    """Notice that a part of an object is on its way."""
    if isinstance(event.pdu, P_DATA_TF):
        reach("half_sent")


def _tls_args(remote: RemoteEntity) -> tuple[SSLContext, str] | None:
    """Return what pynetdicom wants for TLS; files are read each time, so that those that were exchanged count."""
    tls = remote.tls
    return tls if tls is None else (client_context(tls.identity, tls.trusted, check_name=tls.check_name), remote.host)
