"""C-STORE and C-ECHO as a Service Class User (PS3.4 Annexes A and B): how objects leave, and what was answered."""

import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from ssl import SSLContext
from typing import cast

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE, DimseServiceType
from pynetdicom.pdu import P_DATA_TF
from pynetdicom.pdu_primitives import SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext, build_context

from meddaemon.domain.outlet import TransferForm
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from meddaemon.failpoints import is_armed, reach
from meddaemon.results.transcoding import NotTranscoded, as_syntax, syntaxes_for
from meddaemon.results.transport import (
    PROCESSING_FAILURE,
    Answer,
    Outgoing,
    Pace,
    Still,
    Verdict,
    printable,
    verdict_of,
)
from meddaemon.tls import Identity, TlsUnusable, client_context, unreached, why_not

VERIFICATION = "1.2.840.10008.1.1"
"""Verification SOP Class (PS3.4 Annex A)."""
MAXIMUM_CONTEXTS = 128
"""Presentation context ids are the odd numbers from 1 to 255 (PS3.8 9.3.2.2)."""
_LOOK_SECONDS = 2.0
"""How long it may take to find out why there is no association."""
BREAKS = 4
"""How often a peer may break off before the rest of what is sent at once waits for another time."""

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
    """A remote AE and how we call it; times in seconds.

    `transfer_forms` are the transfer syntaxes that it may be given, the preferred one first; none: any, as stored.
    """

    ae_title: str
    host: str
    port: int
    calling_ae_title: str
    connection_timeout_seconds: float = 10.0
    association_timeout_seconds: float = 30.0
    response_timeout_seconds: float = 60.0
    tls: ClientTls | None = None
    transfer_forms: tuple[TransferForm, ...] = ()
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why something could not be said to a peer, and what that means."""

    verdict: Verdict
    reason: str
    refuses_contexts: bool = False
    """The peer took the association, and nothing that was to be said over it."""


def store(remote: RemoteEntity, objects: Sequence[Outgoing], *, still: Still = lambda _: True) -> Iterator[Answer]:
    """Send objects over as few associations as their presentation contexts allow; yield each answer as it comes.

    Each object is answered for, in order, unless `still` says, when its turn comes, that it is not to be sent.
    """
    for batch in _batches(objects, remote.transfer_forms):
        yield from _store_batch(remote, batch, still)


def offers(remote: RemoteEntity, sop_classes: Iterable[str] = ()) -> frozenset[str] | Problem:
    """Return which of these SOP classes a remote AE takes from us, or why it cannot be said.

    Nothing is asked over the association but C-ECHO, where it is taken: then it must be answered with Success.
    """
    association, problem = associate(
        remote, [build_context(each) for each in dict.fromkeys((VERIFICATION, *sop_classes))]
    )
    if association is None:
        return problem
    taken = frozenset(str(context.abstract_syntax) for context in association.accepted_contexts)
    try:
        answered = association.send_c_echo().get("Status") if VERIFICATION in taken else 0x0000
    except AssociationEnded:
        answered = None
    finally:
        release(association)
    if answered == 0x0000:
        return taken
    said = "C-ECHO is not answered" if answered is None else f"C-ECHO is answered {answered:04X}H"
    return Problem(verdict=Verdict.TRY_AGAIN, reason=f"{remote.ae_title} at {remote.host}:{remote.port}: {said}")


def _batches(objects: Iterable[Outgoing], forms: Sequence[TransferForm]) -> Iterator[list[Outgoing]]:
    """Yield objects by associations; what goes together is not torn apart."""
    batch: list[Outgoing] = []
    contexts: set[tuple[str, str]] = set()
    for _, group in groupby(objects, key=lambda each: each.together or each):
        together = list(group)
        wanted = {(each.sop_class_uid, syntax) for each in together for syntax in _syntaxes(each, forms)}
        if batch and len(contexts | wanted) > MAXIMUM_CONTEXTS:
            yield batch
            batch, contexts = [], set()
        batch.extend(together)
        contexts |= wanted
    if batch:
        yield batch


def _syntaxes(outgoing: Outgoing, forms: Sequence[TransferForm]) -> tuple[str, ...]:
    return syntaxes_for(outgoing.transfer_syntax_uid, forms)


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
    forms, until = remote.transfer_forms, time.monotonic() + remote.pace.batch_seconds
    wanted = {(each.sop_class_uid, syntax): None for each in batch for syntax in _syntaxes(each, forms)}
    left, ended = deque(enumerate(batch, 1)), 0
    if not wanted:
        reason = "no transfer syntax that this destination may be given holds it"
        yield from _unsaid(Problem(verdict=Verdict.HOLD, reason=reason, refuses_contexts=True), batch)
        return
    while left and time.monotonic() < until:
        association, problem = associate(remote, [build_context(sop_class, [syntax]) for sop_class, syntax in wanted])
        if association is None:
            yield from _unsaid(problem, [each for _, each in left])
            return
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])) for context in association.accepted_contexts
        }
        usable = {each: _usable(each, accepted, forms) for _, each in left}
        refused = {each.together for each, syntax in usable.items() if not syntax} - {0}
        try:
            while left and association.is_established and time.monotonic() < until:
                message_id, outgoing = left.popleft()
                if still(outgoing):
                    if outgoing.together in refused or not usable[outgoing]:
                        yield _refused(outgoing, itself=not usable[outgoing])
                    else:
                        watch = _Watch(association, remote, until)
                        answer = _store_one(watch, outgoing, usable[outgoing], message_id % 65535 + 1)
                        if answer is None:
                            left.appendleft((message_id, outgoing))
                            break
                        yield answer
                        if watch.ended:
                            break
        finally:
            release(association)
        if left and time.monotonic() < until:
            # An object that makes the peer break off is not to take others with it.
            ended += 1
            if ended == BREAKS:
                problem = Problem(verdict=Verdict.TRY_AGAIN, reason="the association ended before this object's turn")
                yield from _unsaid(problem, [each for _, each in left])
                return


def _unsaid(problem: Problem, left: Iterable[Outgoing]) -> Iterator[Answer]:
    """Yield what the lack of an association means for each object."""
    for each in left:
        verdict = Verdict.ANOTHER_FORM if problem.refuses_contexts and each.together else problem.verdict
        yield Answer(outgoing=each, verdict=verdict, status=None, reason=problem.reason)


def _usable(outgoing: Outgoing, accepted: set[tuple[str, str]], forms: Sequence[TransferForm]) -> str:
    """Return the transfer syntax to send an object in, "" where the peer takes it in none."""
    return next((each for each in _syntaxes(outgoing, forms) if (outgoing.sop_class_uid, each) in accepted), "")


def _refused(outgoing: Outgoing, *, itself: bool) -> Answer:
    name = UID(outgoing.sop_class_uid).name
    reason = f"the remote AE accepts no presentation context for {name} in this encoding"
    verdict = Verdict.ANOTHER_FORM if outgoing.together else Verdict.HOLD
    if not itself:
        verdict, reason = Verdict.WITHHELD, "the remote AE refuses what goes together with this"
    return Answer(outgoing=outgoing, verdict=verdict, status=None, reason=reason)


def _store_one(watch: "_Watch", outgoing: Outgoing, syntax: str, message_id: int) -> Answer | None:
    """Send an object; None where the association had ended before its turn."""

    def answer(
        verdict: Verdict, reason: str, status: int | None = None, *, detail: str = "", own: bool = False
    ) -> Answer:
        return Answer(outgoing=outgoing, verdict=verdict, status=status, reason=reason, detail=detail, own=own)

    try:
        with as_syntax(outgoing.path, outgoing.transfer_syntax_uid, syntax) as path, watch:
            status = watch.association.send_c_store(path, msg_id=message_id)
    except AssociationEnded:
        return None
    except NotTranscoded as failure:
        return answer(Verdict.HOLD, f"the stored object {failure}")
    except (OSError, ValueError, AttributeError, RuntimeError, InvalidDicomError) as failure:
        why = failure.strerror if isinstance(failure, OSError) else ""
        return answer(Verdict.TRY_AGAIN, f"could not send: {why or type(failure).__name__}")
    answered = status.get("Status")
    if answered is None:
        watch.ended = True
        why = watch.reason or "the association was aborted or timed out"
        return answer(Verdict.TRY_AGAIN, f"no answer: {why}", own=watch.blames)
    said = cast("_Paused", watch.association).answered
    if not isinstance(said, C_STORE) or said.MessageIDBeingRespondedTo != message_id:
        # The library takes whatever comes next for the answer: from a peer that answers one object twice, the next one
        # would be taken, whatever it says of that.
        watch.ended = True
        watch.association.abort()
        return answer(Verdict.TRY_AGAIN, "no answer: the remote AE answered another message", own=True)
    verdict, reason = verdict_of(answered)
    if verdict is Verdict.TAKEN and (named := _named(said)) not in {"", outgoing.sop_instance_uid}:
        # Sent again, it might be there once more.
        verdict, reason = Verdict.HOLD, f"taken as {named}, which is another object: look what is there"
    comment = printable(str(status.get("ErrorComment", "")))
    return answer(verdict, reason, answered, detail=comment if reason else "", own=answered == PROCESSING_FAILURE)


def _named(said: C_STORE) -> str:
    """Return the object that an answer names, "" where it names none, which it need not (PS3.7 9.3.1.2)."""
    return printable(str(said.AffectedSOPInstanceUID or "").strip(" \0"))


class _Watch:
    """Ends an association over which an object does not get on: while it is entered, in a thread of its own.

    The library waits for an answer from when it has taken an object, not from when that has left; and for a peer that
    reads nothing, it waits for ever.
    """

    def __init__(self, association: Association, remote: RemoteEntity, until: float) -> None:
        self.association = association
        self.reason = ""
        """Why it was ended from here, "" where it was not."""
        self.ended = False
        self._patience, self._pace, self._until = remote.response_timeout_seconds, remote.pace, until
        self._acknowledged = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._begun = self._moved = time.monotonic()

    def __enter__(self) -> None:
        # It is we who decide how long that is.
        self.association.dimse_timeout = None
        self._acknowledged = self._so_far()
        self._begun = self._moved = time.monotonic()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def blames(self) -> bool:
        """Whether what ended it may be the object's fault: not that the network is slow."""
        return self.reason in {"", _STALLED}

    def _look(self) -> None:
        gone = 0
        while not self._over.wait(min(self._patience / 10, 1.0)):
            now = time.monotonic()
            before, gone = gone, self._so_far() - self._acknowledged
            if gone > before:
                self._moved = now
            if now - self._moved > self._patience:
                self.reason = _STALLED
            elif now - self._begun > self._patience + gone / self._pace.bytes_per_second:
                self.reason = f"fewer than {self._pace.bytes_per_second:g} bytes a second"
            elif now > self._until:
                self.reason = "all that was to be sent took too long"
            if self.reason:
                if (connection := self._connection) is not None:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                return

    @property
    def _connection(self) -> socket.socket | None:
        transport = self.association.dul.socket
        return None if transport is None else transport.socket

    def _so_far(self) -> int:
        """Return how many bytes the other machine has acknowledged: what was written may be in our own still."""
        if (connection := self._connection) is None:
            return 0
        try:
            information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        except OSError:
            return 0
        return int.from_bytes(information[_BYTES_ACKED], sys.byteorder)


_BYTES_ACKED = slice(120, 128)
"""Where `tcpi_bytes_acked` lies in `struct tcp_info` (Linux, include/uapi/linux/tcp.h)."""
_STALLED = "timed out"


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


class _Paused(Association):
    """An association whose `Pause` alone says whether the library's thread stands; `answered` is what came last.

    The library notes it in a flag as well, which the thread that answers an N-EVENT-REPORT takes back when it is done:
    whoever asks or releases just then would wait for ever.
    """

    answered: object = None

    def _check_received_status(self, rsp: DimseServiceType) -> Dataset:
        self.answered = rsp
        return super()._check_received_status(rsp)

    @property
    def _is_paused(self) -> bool:
        return True

    @_is_paused.setter
    def _is_paused(self, _: bool) -> None:
        """Leave it to `Pause`."""


def make_pausable(association: Association) -> None:
    """Let an association that is established be asked safely: see `Pause`."""
    association.__class__ = _Paused
    association._reactor_checkpoint = Pause(association)


def release(association: Association) -> None:
    """Release an association (PS3.8 7.2), unless it has ended already."""
    with suppress(AssociationEnded):
        if association.is_established:
            association.release()


def associate(
    remote: RemoteEntity,
    contexts: list[PresentationContext],
    roles: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
    handlers: Sequence[evt.EventHandlerType] = (),
) -> tuple[Association | None, Problem]:
    """Open an association with these presentation contexts and roles, or say why there is none.

    `handlers` answer what the peer asks us over it.
    """
    entity = AE(ae_title=remote.calling_ae_title)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.connection_timeout = remote.connection_timeout_seconds
    entity.acse_timeout = remote.association_timeout_seconds
    entity.dimse_timeout = remote.response_timeout_seconds
    entity.network_timeout = remote.response_timeout_seconds
    where = f"{remote.ae_title} at {remote.host}:{remote.port}"
    try:
        context = _context(remote)
        association = entity.associate(
            remote.host,
            remote.port,
            contexts=contexts,
            ae_title=remote.ae_title,
            max_pdu=0x20000,
            ext_neg=list(roles),
            tls_args=None if context is None else (context, remote.host),
            evt_handlers=[*handlers, *([(evt.EVT_PDU_SENT, _half_sent)] if is_armed("half_sent") else [])],
        )
    except (OSError, ValueError, TlsUnusable) as failure:
        # A host name that cannot be resolved, or cannot be a host name; certificates that cannot be used.
        reason = why_not(failure) if isinstance(failure, OSError) else str(failure)
        return None, Problem(verdict=Verdict.TRY_AGAIN, reason=f"{where}: {reason}")
    if association.is_established:
        reach("associated")
        make_pausable(association)
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
        return None, Problem(
            verdict=Verdict.HOLD, reason=f"{where} accepts no presentation context for this", refuses_contexts=True
        )
    if association.is_aborted:
        # The library does not tell.
        why = unreached(remote.host, remote.port, min(remote.connection_timeout_seconds, _LOOK_SECONDS), context)
        return None, Problem(verdict=Verdict.TRY_AGAIN, reason=f"{where}: {why or 'aborts'}")
    return None, Problem(verdict=Verdict.TRY_AGAIN, reason=f"{where} does not answer")


def _half_sent(event: evt.Event) -> None:
    """Notice that a part of an object is on its way."""
    if isinstance(event.pdu, P_DATA_TF):
        reach("half_sent")


def _context(remote: RemoteEntity) -> SSLContext | None:
    """Return how TLS is spoken with it; files are read each time, so that those that were exchanged count."""
    tls = remote.tls
    return None if tls is None else client_context(tls.identity, tls.trusted, check_name=tls.check_name)
