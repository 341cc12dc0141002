"""An association on pynetdicom's state machine (PS3.8 9.2), with our own waiting, limits and deadlines.

The library sleeps a millisecond between two looks at its queues and its socket; here both threads of an association
sleep until there is something to do. It reads as many bytes as a peer announces, for as long as the peer likes; here
a PDU has a size and a deadline. What is done then, state by state, is the library's. The subclasses override methods
that begin with an underscore: pynetdicom is pinned exactly for that.
"""

import os
import queue
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock, current_thread
from typing import Any, cast

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.acse import ACSE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import P_DATA, AsynchronousOperationsWindowNegotiation
from pynetdicom.timer import Timer
from pynetdicom.transport import AssociationSocket

from meddaemon.ingest import dispatch
from meddaemon.ingest.c_store import Agreed, StoreRequest, read_request, response
from meddaemon.ingest.content import Content
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.storage import StorageProvider
from meddaemon.ingest.turn import TURN
from meddaemon.telemetry import log

REQUEST_BYTES = 2**19
"""The longest A-ASSOCIATE-RQ that is read: 128 contexts with every transfer syntax there is take 180 kB."""
ASSOCIATE_RQ, P_DATA_TF, ABORT = 0x01, 0x04, 0x07
ABORTED = bytes((ABORT, 0, 0, 0, 0, 4, 0, 0, 0, 0))
"""A-ABORT, source: service user, no reason given (PS3.8 9.3.8)."""

_HEADER = struct.Struct(">BxL")
_PDV_HEADER = struct.Struct(">LBB")
_COMMAND, _LAST = 0x01, 0x02
_TYPES = range(0x01, 0x08)
_DISCARDED_BYTES = 2**20
_COMMAND_BYTES = 2**16
"""The longest command set that is read: the longest that is right takes less than a thousand bytes."""
_QUESTION_BYTES = 2**25
"""The longest data set of a request that stores nothing: what is longer than 16 MiB is refused, see `message`."""
_LINGER_SECONDS = 1.0
_TLS_RECORD_BYTES = 2**14
"""The most that one record holds (RFC 8446 5.1): who reads so much leaves nothing behind in the library."""
_AHEAD_BYTES = 2**16
"""What is read beyond what was asked for: senders with short PDUs would else cost a system call for each."""
_WORTH_WAITING_FOR_BYTES, _MOST_AT_ONCE_BYTES = 2**14, 2**18
_UNANSWERED_BYTES = 2**22
MAXIMUM_WINDOW = 64
"""Requests that a peer may send without waiting for answers, where it asks for so many."""
_UNSERVED_MESSAGES = 2
"""Messages that wait while one is served; then the peer is not read from until one is done."""
_log = log(__name__)
_Fragment = tuple[int, int, bytes]
"""Presentation context, message control header (PS3.8 E.2), and the bytes."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a peer may take: bytes of a P-DATA-TF PDU as announced, seconds for each PDU and each answer."""

    pdu_bytes: int
    pdu_seconds: float


class _Negotiation(ACSE):
    """The library's negotiation, which grants no window."""

    def _check_async_ops(self) -> AsynchronousOperationsWindowNegotiation:
        """Return how many requests the peer may send before an answer, and we: one (PS3.7 D.3.3.3)."""
        association = cast("AcceptorAssociation", self.assoc)
        if association.stores:
            asked, _ = self.requestor.asynchronous_operations
            association.window = min(asked or MAXIMUM_WINDOW, MAXIMUM_WINDOW)  # 0 is without limit
        item = AsynchronousOperationsWindowNegotiation()
        item.maximum_number_operations_invoked = association.window
        item.maximum_number_operations_performed = 1
        return item


class AcceptorAssociation(Association):
    """An association that somebody asked us for; `ended` is called when it is over, whatever ended it."""

    dul: "Provider"

    def __init__(
        self,
        entity: ApplicationEntity,
        limits: Limits,
        ended: Callable[["AcceptorAssociation"], None],
        storage: StorageProvider | None = None,
    ) -> None:
        """Have `storage` take what is sent to be stored; without it, the handler of EVT_C_STORE does."""
        super().__init__(entity, MODE_ACCEPTOR)
        self.acse = _Negotiation(self)
        self.stores = storage is not None
        self.window = 1
        """How many requests the peer may send without waiting for answers (PS3.7 D.3.3.3)."""
        self.agreed: dict[int, Agreed] = {}
        """What was agreed on in the presentation contexts that objects have come through."""
        self.is_over = False
        """Nothing is left but goodbyes: somebody else may have its place."""
        self._bell = Event()
        self._ended = ended
        self.dul = Provider(self, limits, self._bell, storage)
        self.dimse.msg_queue = RingingQueue(self._bell.set)
        # They were set on the provider that was made first.
        self.acse_timeout, self.network_timeout = entity.acse_timeout, entity.network_timeout

    def run_reactor(self) -> None:
        """Serve from the request on until the association is over."""
        try:
            super().run_reactor()
        except Exception as unforeseen:  # noqa: BLE001  the library does not check all that it is asked for
            _log.error("an association failed", kind=type(unforeseen).__name__, exc_info=unforeseen)
            self.abort()
        finally:
            self._kill = True
            self.dul.kill_dul()
            if self.dul.is_alive():
                self.dul.join()
            self.dul.finish()
            # The library's objects know each other in circles: what they hold would stay until somebody looks for such.
            self.dimse.message = None
            self.dimse.msg_queue.queue.clear()
            self._ended(self)

    def kill(self) -> None:
        """End both threads."""
        self._kill = True
        self._bell.set()
        super().kill()

    def _run_reactor(self) -> None:
        # The library's loop, with a bell instead of a look each millisecond. We never ask the peer for anything on
        # an association of its own, so there is nothing to pause for.
        while not self._kill:
            self._bell.wait(max(self.dul.idle_seconds_left, 0))
            self._bell.clear()
            self._serve_waiting()
            if self.is_established and self.acse.is_release_requested():
                # Before the answer: who has it may ask for the next association at once.
                self.is_over = True
                self.acse.send_release(is_response=True)
                self.is_released, self.is_established = True, False
                evt.trigger(self, evt.EVT_RELEASED, {})
                self.kill()
            elif self.acse.is_aborted():
                self.is_over = True
                self.dul.receive_pdu(wait=False)
                self.is_aborted, self.is_established = True, False
                evt.trigger(self, evt.EVT_ABORTED, {})
                self.kill()
            elif self.dul.has_ended:
                self.kill()
            elif self.dul.idle_timer_expired():
                _log.warning("nothing heard for too long", peer=self.requestor.address)
                self.abort()

    def _serve_request(self, msg: Any, context_id: int) -> None:
        if current_thread() is not self:
            # The library gives each N-EVENT-REPORT a thread of its own, as many as a peer sends without waiting.
            self.dimse.msg_queue.put((context_id, msg))
            return
        dispatch.serve(self, msg, context_id)

    def _serve_waiting(self) -> None:
        while not self._kill:
            context_id, message = self.dimse.get_msg(block=False)
            if message is None or context_id is None:
                return
            self._serve_request(message, context_id)
            # The time that an answer took us is not the peer's.
            self.dul.heard()


class Provider(DULServiceProvider):
    """The reactor of one association: waits for the peer, for our own primitives, and for its timers."""

    _idle_timer: "MonotonicTimer"
    artim_timer: "MonotonicTimer"
    to_provider_queue: "RingingQueue"
    to_user_queue: "RingingQueue"

    def __init__(
        self, association: AcceptorAssociation, limits: Limits, bell: Event, storage: StorageProvider | None
    ) -> None:
        super().__init__(association)
        self._association = association
        self._limits = limits
        self._storage = storage
        self._command = bytearray()
        self._longest_answer: int | None = None
        self._storing: tuple[StoreRequest, Incoming] | None = None
        self._unanswered: list[tuple[StoreRequest, Incoming]] = []
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waking = Lock()
        self.is_closed = False
        self.to_provider_queue = RingingQueue(self._wake)
        self.to_user_queue = RingingQueue(bell.set)
        self._idle_timer = MonotonicTimer(60)
        self.artim_timer = MonotonicTimer(30)
        self.has_ended = False

    @property
    def idle_seconds_left(self) -> float:
        """How long the peer may still be silent."""
        return self._idle_timer.remaining

    def heard(self) -> None:
        """Begin the time anew that the peer may be silent."""
        self._idle_timer.restart()

    def kill_dul(self) -> None:
        """End the reactor."""
        super().kill_dul()
        self._wake()

    def run_reactor(self) -> None:
        """Do what there is to do, event by event, until the state machine is back at its beginning."""
        self.heard()
        self.assoc._dul_ready.set()
        try:
            while not self._kill_thread:
                self._step()
        except Exception as unforeseen:  # noqa: BLE001  as in the library: whatever it is, the peer is told
            if self.state_machine.current_state == "Sta2":
                # The library reads the items of a request only here.
                peer, problem = self.assoc.requestor.address, type(unforeseen).__name__
                _log.warning("a request for an association cannot be read", peer=peer, problem=problem)
            else:
                _log.error("an association failed", kind=type(unforeseen).__name__, exc_info=unforeseen)
            self._connection.send(ABORTED)
            self.assoc.is_aborted, self.assoc.is_established = True, False
            self.assoc._kill = self._kill_thread = True
        finally:
            # Whoever waits for the next primitive is told that none comes.
            self.has_ended = True
            self.to_user_queue.put(None)

    def interrupt(self) -> None:
        """Let whoever waits for the rest of a PDU read the end of the connection; from any thread."""
        if self.socket is not None:
            self._connection.interrupt()

    def finish(self) -> None:
        """Give back what the system lent us; the reactor has ended."""
        for _, incoming in (*self._unanswered, *([self._storing] if self._storing else ())):
            cast("Content", incoming.content).close()
        self._connection.finish()
        self.close_bell()

    def close_bell(self) -> None:
        """Give back what wakes the reactor."""
        with self._waking:
            if not self.is_closed:
                os.close(self._woken)
                self.is_closed = True

    @property
    def _connection(self) -> "Connection":
        return cast("Connection", self.socket)

    def _step(self) -> None:
        if not self.event_queue.empty():
            self.state_machine.do_action(self.event_queue.get(block=False))
        elif self.artim_timer.expired:
            self.event_queue.put("Evt18")
        elif self._process_recv_primitive():
            pass
        elif self._may_read and self._is_transport_event():
            self.heard()
        elif self.event_queue.empty():
            self._answer()
            self._wait()

    @property
    def _may_read(self) -> bool:
        return self._is_ending or self.assoc.dimse.msg_queue.qsize() < _UNSERVED_MESSAGES

    @property
    def _is_ending(self) -> bool:
        return self.state_machine.current_state == "Sta13"

    def _wait(self) -> None:
        seconds = max(self.artim_timer.remaining, 0) if self.artim_timer.is_running else None
        if self._connection.wait(self._woken, seconds, reading=self._may_read):
            os.eventfd_read(self._woken)

    def _wake(self) -> None:
        # A number that was given back may be a file of somebody else by now.
        with self._waking:
            if not self.is_closed:
                os.eventfd_write(self._woken, 1)

    def _process_recv_primitive(self) -> bool:
        if self._is_ending:
            # An answer or an abort of ours that came too late; the state machine knows no event for it.
            while not self.to_provider_queue.empty():
                self.to_provider_queue.get(block=False)
            return False
        return super()._process_recv_primitive()

    def _is_transport_event(self) -> bool:
        connection = self._connection
        if self._is_ending:
            # What the peer still sends is of no interest, and would only be answered by one more A-ABORT.
            connection.discard()
            connection.close()
            return False
        if connection.ready:
            self._read_pdu_data()
            return True
        return False

    def _read_pdu_data(self) -> None:
        # As in the library, but a PDU that is longer than agreed is not read, and one that is not whole in time ends
        # the association however steadily it drips.
        try:
            with TURN:
                others = self._read_pdus()
            self._take(others)
        except TimeoutError:
            self._end("a PDU was not whole in time", "Evt19")
        except OSError:
            self._end("the connection was lost within a PDU", "Evt17")
        except Exception as malformed:  # noqa: BLE001  the library has no type of its own for this
            self._end("a PDU cannot be read", "Evt19", problem=type(malformed).__name__)

    def _read_pdus(self) -> list[_Fragment]:
        """Read one PDU, or all of those that an object comes in; return the fragments that are no part of one."""
        connection = self._connection
        while True:
            self.heard()
            connection.deadline = time.monotonic() + self._limits.pdu_seconds
            header = connection.recv(_HEADER.size)
            if len(header) < _HEADER.size:
                self.event_queue.put("Evt17")
                return []
            kind, length = _HEADER.unpack(header)
            if kind not in _TYPES or length > self._longest(kind):
                self._end("a PDU of another type or length than agreed", "Evt19", type=kind, length=length)
                return []
            if kind != P_DATA_TF or self.state_machine.current_state != "Sta6":
                pdu, event = self._decode_pdu(header + connection.recv_all(length))
                self._recv_pdu.put(pdu)
                self.event_queue.put(event)
                return []
            others = self._read_fragments(length)
            # In the middle of an object there is nothing else to be done than to read on.
            if others or self._storing is None or self._kill_thread or not self.to_provider_queue.empty():
                return others

    def _read_fragments(self, rest: int) -> list[_Fragment]:
        """Read the fragments of a P-DATA-TF PDU of `rest` bytes (PS3.8 9.3.5.1, E.2), each to where it belongs.

        Those of an object are read from the socket to where they will be stored from; the others are returned, for
        of a PDU that is wrong at its end nothing is taken. Raises ValueError where they are not what the PDU's length
        says, OSError.
        """
        connection = self._connection
        others: list[_Fragment] = []
        while rest:
            if rest < _PDV_HEADER.size:
                raise ValueError("a fragment of an impossible length")
            length, context_id, control = _PDV_HEADER.unpack(connection.recv_all(_PDV_HEADER.size))
            rest -= 4 + length
            if length < 2 or rest < 0:
                raise ValueError("a fragment of an impossible length")
            if self._storing is not None:
                self._read_object(context_id, control, length - 2)
                continue
            fragment = bytes(connection.recv_all(length - 2))
            if control & _COMMAND and self.assoc.dimse.message is None and not others:
                whole = self._whole_command(control, fragment)
                if whole is None or self._begins_storing(context_id, whole):
                    continue
                fragment = whole
            others.append((context_id, control, fragment))
        return others

    def _take(self, others: Sequence[_Fragment]) -> None:
        """Do what there is to be done after a PDU: answer for objects that are whole, pass on what stores nothing."""
        if others:
            self._answer()  # answers go out in the order of the requests
            self._pass_on(others)
        elif self._unanswered and self._storing is None and not self._may_wait_for_more:
            self._answer()

    def _read_object(self, context_id: int, control: int, size: int) -> None:
        request, incoming = cast("tuple[StoreRequest, Incoming]", self._storing)
        if control & _COMMAND or context_id != request.context_id:
            raise ValueError("a fragment of another message before the end of this one")
        self._connection.read_content(cast("Content", incoming.content), size)
        if control & _LAST:
            self._unanswered.append((request, incoming))
            self._storing = None

    def _whole_command(self, control: int, fragment: bytes) -> bytes | None:
        """Return the command set that this fragment ends; None where it does not."""
        if len(self._command) + len(fragment) > _COMMAND_BYTES:
            raise ValueError("a command set without end")
        self._command += fragment
        if not control & _LAST:
            return None
        whole = bytes(self._command)
        self._command.clear()
        return whole

    def _pass_on(self, fragments: Sequence[_Fragment]) -> None:
        """Do what DT-2 does (PS3.8 9.2.2) with fragments that are no part of an object."""
        provider = self.assoc.dimse
        for context_id, control, fragment in fragments:
            _refuse_disorder(provider.message, context_id, control, len(fragment))
            primitive = P_DATA()
            primitive.presentation_data_value_list = [[context_id, bytes([control]) + fragment]]  # type: ignore[list-item]
            provider.receive_primitive(primitive)

    def _begins_storing(self, context_id: int, command: bytes) -> bool:
        request = read_request(context_id, command) if self._storage else None
        incoming = self._storage.begin(self._association, request) if request and self._storage else None
        if request and incoming:
            self._storing = request, incoming
        return incoming is not None

    @property
    def _may_wait_for_more(self) -> bool:
        """Whether the next object may come before the answer to this one, and does: they then share their cost."""
        if len(self._unanswered) >= self._association.window:
            return False
        held = sum(cast("Content", incoming.content).size for _, incoming in self._unanswered)
        return held < _UNANSWERED_BYTES and self._connection.ready

    def _answer(self) -> None:
        """Take the objects that have come, and answer for each."""
        if not self._unanswered or self._storage is None:
            return
        group, self._unanswered = self._unanswered, []
        # The time that this takes us is not the peer's.
        self._idle_timer.stop()
        outcomes = self._storage.take([incoming for _, incoming in group])
        if self._longest_answer is None:
            self._longest_answer = self.assoc.requestor.maximum_length or 0
        answers = (
            response(request, status, comment, self._longest_answer)
            for (request, _), (status, comment) in zip(group, outcomes, strict=True)
        )
        self._connection.send(b"".join(answers))
        self.heard()

    def _longest(self, kind: int) -> int:
        # Some count the header in, some do not (PS3.8 D.1.1 means the length field).
        return REQUEST_BYTES if kind == ASSOCIATE_RQ else self._limits.pdu_bytes + _HEADER.size

    def _end(self, reason: str, event: str, **details: object) -> None:
        _log.warning(reason, peer=self.assoc.requestor.address, **details)
        self.event_queue.put(event)


class Connection(AssociationSocket):
    """A connection that never blocks for longer than it was told; `early` is what was read from it before.

    With TLS, what lies decrypted in the library is not seen by poll(2), and what poll(2) sees may hold no data.
    """

    def __init__(self, association: Association, connected: socket.socket, early: bytes, limits: Limits) -> None:
        connected.setblocking(False)
        with suppress(OSError):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(association, client_socket=connected)
        self._connected = connected
        self._early = memoryview(early)
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._limits = limits
        self.deadline = 0.0
        """When what is being read must be there, by the monotonic clock."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read, the end of the connection included."""
        if self.socket is None or not self._is_connected:
            return False
        if self._early:
            return True
        if not isinstance(self.socket, ssl.SSLSocket):
            return bool(_polled({self.socket.fileno(): select.POLLIN}, 0))
        try:
            self._early = memoryview(self.socket.recv(_TLS_RECORD_BYTES))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            pass  # so will reading be
        return True

    def wait(self, woken: int, seconds: float | None, *, reading: bool) -> bool:
        """Sleep until the peer says something (where `reading`), until `woken` is written to, or for so long.

        Return whether `woken` was written to.
        """
        wanted = {woken: select.POLLIN}
        if reading and self.socket is not None and self._is_connected:
            self._acknowledge()
            wanted[self.socket.fileno()] = select.POLLIN
        return any(descriptor == woken for descriptor, _ in _polled(wanted, seconds))

    def recv(self, nr_bytes: int) -> bytearray:
        """Return so many bytes, fewer where the connection ends; raises TimeoutError at the deadline, or OSError."""
        if len(self._early) >= nr_bytes:
            early, self._early = self._early[:nr_bytes], self._early[nr_bytes:]
            return bytearray(early)
        received = bytearray(nr_bytes)
        view = memoryview(received)
        filled = 0
        while filled < nr_bytes:
            size = self.recv_into(view[filled:])
            if not size:
                break
            filled += size
        view.release()
        del received[filled:]
        return received

    def recv_into(self, view: memoryview) -> int:
        """Read at least a byte into `view` and return how many; 0 is the end. Raises as `recv` does."""
        if self._early:
            size = min(len(view), len(self._early))
            view[:size], self._early = self._early[:size], self._early[size:]
            return size
        while True:
            try:
                return self._recv_some(view)
            except BlockingIOError:
                self._acknowledge()
                self._await_most_of(len(view))
            except ssl.SSLWantReadError:
                self._acknowledge()
                self._await(select.POLLIN, self.deadline)
            except ssl.SSLWantWriteError:
                self._await(select.POLLOUT, self.deadline)

    def recv_all(self, nr_bytes: int) -> bytearray:
        """Return so many bytes, or raise as `recv` does; ConnectionError where the connection ends before."""
        received = self.recv(nr_bytes)
        if len(received) < nr_bytes:
            raise ConnectionResetError("the connection was closed within a PDU")
        return received

    def read_content(self, content: Content, size: int) -> None:
        """Read so many bytes of an object. Raises as `recv_all` does."""
        while size:
            count = self.recv_into(content.room(size))
            if not count:
                raise ConnectionResetError("the connection was closed within a PDU")
            content.advance(count)
            size -= count

    def _recv_some(self, view: memoryview) -> int:
        connected = self._open
        if isinstance(connected, ssl.SSLSocket):
            return connected.recv_into(view)
        # What comes behind, often the next header, is had with the same call.
        count = connected.recvmsg_into([view, self._ahead])[0]
        self._early = self._ahead[: max(0, count - len(view))]
        return min(count, len(view))

    def send(self, bytestream: bytes) -> None:
        """Send all of it, or tell the state machine that the connection is gone."""
        deadline = time.monotonic() + self._limits.pdu_seconds
        rest = memoryview(bytestream)
        try:
            while rest:
                try:
                    rest = rest[self._open.send(rest) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self._await(select.POLLOUT, deadline)
                except ssl.SSLWantReadError:
                    self._await(select.POLLIN, deadline)
        except OSError:
            self.event_queue.put("Evt17")

    def discard(self) -> None:
        """Say that nothing more comes from us, and read for a moment what the peer may still be saying.

        A connection that is closed with something unread takes our last words back (RFC 1122 4.2.2.13).
        """
        if self.socket is not None and self._is_connected:
            discard(self.socket)

    def interrupt(self) -> None:
        """Be read to the end, wherever the peer is; from any thread."""
        with suppress(OSError):
            socket.socket.shutdown(self._connected, socket.SHUT_RD)  # below TLS, which its own thread may be using

    def finish(self) -> None:
        """Give descriptor and memory back; nobody uses them any more."""
        self._connected.close()
        self._early = self._ahead = memoryview(b"")

    @property
    def _open(self) -> socket.socket:
        if self.socket is None:
            raise ConnectionAbortedError("closed by ourselves")
        return self.socket

    def _acknowledge(self) -> None:
        # A sender with Nagle's algorithm holds the end of a message back until we acknowledge what came before,
        # which the system puts off for 40 ms. The option does not last: it is set again before each wait.
        with suppress(OSError):
            self._open.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _await(self, events: int, deadline: float) -> None:
        seconds = deadline - time.monotonic()
        with TURN.given_up():
            if seconds > 0 and _polled({self._open.fileno(): events}, seconds):
                return
        raise TimeoutError("the peer took too long")

    def _await_most_of(self, wanted: int) -> None:
        """Sleep until most of these bytes have come, not to be woken by each segment; the last ones come one by one.

        That many will come: the peer announced them. The system acknowledges what comes meanwhile at once.
        """
        if wanted < _WORTH_WAITING_FOR_BYTES:
            self._await(select.POLLIN, self.deadline)
            return
        enough = min(wanted, _MOST_AT_ONCE_BYTES) * 3 // 4
        self._open.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, enough)
        try:
            self._await(select.POLLIN, self.deadline)
        finally:
            with suppress(OSError):
                self._open.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def _shutdown_socket(self) -> None:
        # The library also closes, from any thread, what another one waits for or has been given the number of since;
        # and leaves open what the peer was faster to end. Here `finish` closes, once and for all.
        with suppress(OSError):
            socket.socket.shutdown(self._connected, socket.SHUT_RDWR)


class RingingQueue(queue.Queue[Any]):
    """A queue that tells when something was put into it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        super().__init__()
        self._ring = ring

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        """Put an item and tell."""
        super().put(item, block, timeout)
        self._ring()


class MonotonicTimer(Timer):
    """The library's timer on a clock that nobody sets."""

    @property
    def is_running(self) -> bool:
        """Whether it was started, not stopped, and can expire."""
        return self.timeout is not None and self._start_time is not None and self._end_time is None

    @property
    def remaining(self) -> float:
        """Seconds until it expires; 1 where it never does, as in the library."""
        if self.timeout is None:
            return 1
        if self._start_time is None:
            return self.timeout
        end = time.monotonic() if self._end_time is None else self._end_time
        return self.timeout - (end - self._start_time)

    def start(self) -> None:
        """Reset and start."""
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        """Stop."""
        self._end_time = time.monotonic()


def shut_down(connected: socket.socket) -> None:
    """Say that nothing more comes from us; what is read from here on is of no interest, and not decrypted."""
    if isinstance(connected, ssl.SSLSocket):
        # Sends our closure alert (RFC 8446 6.1), and would wait for the peer's.
        with suppress(OSError, ValueError):
            connected.unwrap()
    with suppress(OSError):
        connected.shutdown(socket.SHUT_WR)


def discard(connected: socket.socket) -> None:
    """Shut our side down and read until the peer does the same, for a moment and not without end."""
    deadline = time.monotonic() + _LINGER_SECONDS
    read = 0
    shut_down(connected)
    with suppress(OSError):
        while read < _DISCARDED_BYTES and _polled({connected.fileno(): select.POLLIN}, deadline - time.monotonic()):
            more = len(connected.recv(2**16))
            if not more:
                return
            read += more


def _refuse_disorder(message: DIMSEMessage | None, context_id: int, control: int, size: int) -> None:
    """Raise ValueError where a fragment is not the next of its message, or makes it longer than there is reason for."""
    if message is None or type(message) is DIMSEMessage:
        if not control & _COMMAND:
            raise ValueError("a data set without its command set")
        if (message.encoded_command_set.tell() if message else 0) + size > _COMMAND_BYTES:
            raise ValueError("a command set without end")
        return
    if control & _COMMAND or context_id != message.context_id:
        raise ValueError("a fragment of another message before the end of this one")
    # Objects may be as long as they like. What else has a data set is decoded at once, in memory.
    held = 0 if isinstance(message, C_STORE_RQ) or message.data_set is None else message.data_set.tell() + size
    if held > _QUESTION_BYTES:
        raise ValueError("a data set of a question without end")


def _polled(wanted: dict[int, int], seconds: float | None) -> list[tuple[int, int]]:
    """Wait for one of these descriptors with poll(2), which has no limit of 1024 as select(2) has."""
    poll = select.poll()
    for descriptor, events in wanted.items():
        poll.register(descriptor, events)
    return poll.poll(None if seconds is None else max(seconds, 0) * 1000)
