"""Where peers arrive: a connection becomes an association once its A-ASSOCIATE-RQ is whole (PS3.8 9.3.2).

Until then it costs a descriptor and the bytes it has sent: no thread, and no place among the associations. One thread
accepts and listens to all of them, TLS handshakes included, so nobody waits behind a peer that says nothing. Who may
not call is told so here.
"""

import os
import resource
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast

from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationServer, RequestHandler

from meddaemon.failpoints import reach
from meddaemon.ingest.callers import Call, Callers
from meddaemon.ingest.storage import StorageProvider
from meddaemon.ingest.upper_layer import (
    ABORT,
    ABORTED,
    ASSOCIATE_RQ,
    REQUEST_BYTES,
    AcceptorAssociation,
    Connection,
    Limits,
    shut_down,
)
from meddaemon.telemetry import Sparing, log
from meddaemon.tls import ServerTls, reason_of

LOCAL_LIMIT_EXCEEDED = bytes((0x03, 0, 0, 0, 0, 4, 0, 2, 3, 2))
"""A-ASSOCIATE-RJ: transient, by the presentation service, local limit exceeded (PS3.8 9.3.4)."""
TEMPORARY_CONGESTION = bytes((0x03, 0, 0, 0, 0, 4, 0, 2, 3, 1))
"""The same, for a reason that lies with us and passes."""
_RESERVED_DESCRIPTORS = 64
HALF_OPEN = 1100
"""Connections that may be without a request at a time; then the one that was so for longest makes room."""
_LEAVING = 100
_LINGER_SECONDS = 1.0
_HEADER_BYTES = 6
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """Who is let in, and what becomes of connections to the port for TLS; replaced as a whole."""

    callers: Callers
    tls: ServerTls | None = None


class _Peer:
    """A connection that has not asked for an association yet, or that was turned away and has not closed yet."""

    def __init__(self, connected: socket.socket, address: tuple[Any, ...], deadline: float) -> None:
        self.connected = connected
        self.descriptor = connected.fileno()
        self.address = address
        self.deadline = deadline
        self.received = bytearray()
        self.chain: frozenset[bytes] | None = None

    @property
    def length(self) -> int:
        """Bytes of the whole PDU, of its header as long as it does not say."""
        if len(self.received) < _HEADER_BYTES:
            return _HEADER_BYTES
        return _HEADER_BYTES + int.from_bytes(self.received[2:6], "big")

    @property
    def is_closed(self) -> bool:
        """Whether it made room for another, maybe in the moment in which it said something."""
        return self.connected.fileno() < 0

    @property
    def call(self) -> Call:
        """Who calls whom, by the request that is here."""
        return Call.of(bytes(self.received), str(self.address[0]), self.chain)

    @property
    def is_acceptable(self) -> bool:
        """Whether this can still become a request of bearable length."""
        return self.received[:1] == bytes([ASSOCIATE_RQ]) and self.length <= REQUEST_BYTES


class Reception(AssociationServer):
    """Accepts connections and makes associations of them, as many as may be open at a time."""

    request_queue_size = 512

    def __init__(
        self,
        entity: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        ssl_context: None = None,
        evt_handlers: list[evt.EventHandlerType] | None = None,
        *,
        limits: Limits,
        maximum_associations: int,
        association_seconds: float,
        entrance: Entrance,
        plain: bool,
        tls_port: int | None,
        storage: StorageProvider | None = None,
        shared: bool = False,
        can_serve: Callable[[], bool] = lambda: True,
    ) -> None:
        """Bind and listen; `association_seconds` is how long a connection may be without a request. Raises OSError.

        With `shared`, other processes may listen on the same ports (socket(7), SO_REUSEPORT), and each has its part.
        TLS is spoken on the port `tls_port`, without it on that of `address`, if `plain`: else they are the same.
        """
        self.limits = limits
        self.storage = storage
        self._shared = shared
        self.entrance = entrance
        """May be replaced at any time, from any thread."""
        self.sparing = Sparing(__name__)
        self._maximum_associations = maximum_associations
        self._association_seconds = association_seconds
        self._can_serve = can_serve
        # Whoever is served already needs some to store what it sends; the system gives the lowest that is free.
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._highest_descriptor = max(limit - _RESERVED_DESCRIPTORS, limit // 2)
        self._lock = threading.Lock()
        self._associations: set[AcceptorAssociation] = set()
        # Both in the order of their deadlines.
        self._half_open: dict[int, _Peer] = {}
        self._leaving: dict[int, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop = False
        self._stopped = threading.Event()
        super().__init__(entity, address, ae_title, contexts, ssl_context, evt_handlers, _Handler)
        first = cast("socket.socket", self.socket)
        self._plain = first if plain else None
        self._tls = None if tls_port is None else self._beside(first, tls_port) if plain else first
        self.tls_address: tuple[str, int] | None = self._tls.getsockname()[:2] if self._tls else None
        """Host and port that were bound for TLS."""
        for listening in self._listening:
            listening.setblocking(False)

    @property
    def associations(self) -> list[AcceptorAssociation]:
        """The associations that are open now, those included whose threads are about to end."""
        with self._lock:
            return list(self._associations)

    @property
    def active_associations(self) -> list[Association]:
        """The same, under the library's name."""
        return [*self.associations]

    def server_bind(self) -> None:
        """Bind. Raises OSError."""
        if self._shared:
            cast("socket.socket", self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            super().server_bind()
        except OSError as failure:
            failure.filename = _shown(self.server_address)
            raise

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Accept and listen until `shutdown`; sleeps when nothing happens."""
        for listening in self._listening:
            self._selector.register(listening, selectors.EVENT_READ, partial(self._accept, listening))
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: None)
        try:
            while not self._stop:
                try:
                    for key, _ in self._selector.select(self._seconds_left()):
                        cast("Callable[[], None]", key.data)()
                    self._expire()
                except Exception as unforeseen:  # noqa: BLE001  a listener that hears nobody is worse than a lost peer
                    _log.error("the reception begins anew", kind=type(unforeseen).__name__, exc_info=unforeseen)
                    self._close_all()
        finally:
            self._close_all()
            self._selector.close()
            self._stopped.set()

    def shutdown(self) -> None:
        """Stop accepting and close every connection that is no association."""
        if self._stop:
            return
        self._stop = True
        os.eventfd_write(self._woken, 1)
        self._stopped.wait()
        self.server_close()
        for listening in self._listening:
            listening.close()
        os.close(self._woken)
        cast("list[AssociationServer]", self.ae._servers).remove(self)

    def opened(self, association: AcceptorAssociation) -> None:
        """Count an association that is about to start."""
        with self._lock:
            self._associations.add(association)

    def ended(self, association: AcceptorAssociation) -> None:
        """Make room for the next association."""
        with self._lock:
            self._associations.discard(association)

    @property
    def _listening(self) -> list[socket.socket]:
        return [each for each in (self._plain, self._tls) if each is not None]

    def _beside(self, first: socket.socket, port: int) -> socket.socket:
        """Listen as the first does, on another port."""
        second = socket.socket(first.family, socket.SOCK_STREAM)
        try:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            host, _, *scope = first.getsockname()
            if self._shared:
                second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            second.bind((host, port, *scope))
            second.listen(self.request_queue_size)
        except OSError as failure:
            first.close()
            second.close()
            failure.filename = _shown((host, port))
            raise
        return second

    def _accept(self, listening: socket.socket) -> None:
        try:
            connected, address = listening.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as failure:
            # Out of descriptors, most likely: the listening socket stays readable, so something must give.
            _log.error("cannot accept a connection", reason=str(failure))
            if not self._close_oldest():
                self._stopped.wait(0.1)
            return
        if connected.fileno() > self._highest_descriptor:
            _log.error("cannot accept a connection", reason="only the reserve of descriptors is left")
            connected.close()
            self._close_oldest()
            return
        connected.setblocking(False)
        tls = self.entrance.tls if listening is self._tls else None
        if tls is not None:
            try:
                connected = tls.wrap(connected)
            except OSError:  # gone already
                connected.close()
                return
        while len(self._half_open) >= HALF_OPEN:
            self._close_oldest()
        peer = _Peer(connected, address, time.monotonic() + self._association_seconds)
        self._half_open[peer.descriptor] = peer
        welcome = partial(self._listen, peer) if tls is None else partial(self._shake_hands, peer, tls)
        self._selector.register(connected, selectors.EVENT_READ, welcome)

    def _shake_hands(self, peer: _Peer, tls: ServerTls) -> None:
        """Go on with a TLS handshake as far as the peer lets us."""
        if peer.is_closed:
            return
        connected = cast("ssl.SSLSocket", peer.connected)
        again = partial(self._shake_hands, peer, tls)
        try:
            connected.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(connected, selectors.EVENT_READ, again)
        except ssl.SSLWantWriteError:
            self._selector.modify(connected, selectors.EVENT_WRITE, again)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError):
            self._close(peer)
        except OSError as failure:
            self._warn("TLS handshake failed", peer, reason=reason_of(failure))
            self._turn_away(peer, b"")
        else:
            peer.chain = tls.chain(connected)
            self._selector.modify(connected, selectors.EVENT_READ, partial(self._listen, peer))
            self._listen(peer)

    def _listen(self, peer: _Peer) -> None:
        # Until nothing comes: what TLS has decrypted already wakes nobody.
        while not peer.is_closed:
            try:
                more = peer.connected.recv(peer.length - len(peer.received))
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                more = b""
            peer.received += more
            if not more or peer.received[0] == ABORT:
                # A health probe, or somebody who changed his mind: nothing to say, to him or in the log.
                self._close(peer)
            elif not peer.is_acceptable:
                self._warn("not an association request", peer)
                self._turn_away(peer, ABORTED)
                return
            elif len(peer.received) == peer.length:
                _forget_later_versions(peer.received)
                self._associate(peer)
                return

    def _associate(self, peer: _Peer) -> None:
        reach("association_requested")
        call = peer.call
        if refusal := self.entrance.callers.refusal(call):
            self._warn(
                f"rejected an association: {refusal.value}",
                peer,
                calling_ae_title=call.calling_ae_title,
                called_ae_title=call.called_ae_title,
            )
            self._turn_away(peer, refusal.answer)
            return
        if not self._has_room:
            self._warn("rejected an association: as many as may be are open", peer)
            self._turn_away(peer, LOCAL_LIMIT_EXCEEDED)
            return
        if not self._can_serve():
            self._warn("rejected an association: the store can take nothing now", peer)
            self._turn_away(peer, TEMPORARY_CONGESTION)
            return
        # First: the association may be over, and its connection closed, before we are told that it began.
        self._forget(peer)
        try:
            self.finish_request((bytes(peer.received), peer.connected), cast("Any", peer.address))
        except Exception as failure:  # noqa: BLE001  whatever is wrong with one, all others must still be heard
            _log.error("cannot begin an association", kind=type(failure).__name__, exc_info=failure)
            self._turn_away(peer, LOCAL_LIMIT_EXCEEDED)

    @property
    def _has_room(self) -> bool:
        associations = self.associations
        going_on = sum(1 for association in associations if not association.is_over)
        return going_on < self._maximum_associations and len(associations) < 4 * self._maximum_associations

    def _turn_away(self, peer: _Peer, answer: bytes) -> None:
        """Answer, and leave it to the peer to close, for a moment: else what it still sends undoes our answer."""
        with suppress(OSError):
            if answer:
                peer.connected.send(answer)
        shut_down(peer.connected)
        self._forget(peer)
        if len(self._leaving) >= _LEAVING:
            self._close(next(iter(self._leaving.values())))
        peer.deadline = time.monotonic() + _LINGER_SECONDS
        self._leaving[peer.descriptor] = peer
        self._selector.register(peer.connected, selectors.EVENT_READ, lambda: self._ignore(peer))

    def _ignore(self, peer: _Peer) -> None:
        if peer.is_closed:
            return
        try:
            more = peer.connected.recv(2**16)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._close(peer)

    def _forget(self, peer: _Peer) -> None:
        for peers in (self._half_open, self._leaving):
            if peers.get(peer.descriptor) is peer:
                del peers[peer.descriptor]
                self._selector.unregister(peer.descriptor)

    def _close(self, peer: _Peer) -> None:
        self._forget(peer)
        peer.connected.close()

    def _close_all(self) -> None:
        for peer in (*self._half_open.values(), *self._leaving.values()):
            with suppress(OSError, ValueError, KeyError):
                self._selector.unregister(peer.descriptor)
            peer.connected.close()
        self._half_open.clear()
        self._leaving.clear()

    def _close_oldest(self) -> bool:
        peer = next(iter(self._half_open.values()), None)
        if peer is not None:
            self._close(peer)
        return peer is not None

    def _seconds_left(self) -> float | None:
        first = [next(iter(each.values())).deadline for each in (self._half_open, self._leaving) if each]
        left = [max(min(first) - time.monotonic(), 0)] if first else []
        unsaid = self.sparing.seconds_left
        return min(left if unsaid is None else [*left, unsaid], default=None)

    def _expire(self) -> None:
        now = time.monotonic()
        for peers in (self._half_open, self._leaving):
            while peers and (peer := next(iter(peers.values()))).deadline <= now:
                if peers is self._half_open:
                    self._warn("no association request in time", peer)
                self._close(peer)
        self.sparing.flush()

    def _warn(self, event: str, peer: _Peer, **details: object) -> None:
        self.sparing.warning(event, str(peer.address[0]), **details)


def _shown(address: tuple[Any, ...]) -> str:
    return f"{address[0]}:{address[1]}"


def _forget_later_versions(request: bytearray) -> None:
    """Leave of the versions of the protocol that a request names the first, the only one to be looked at (PS3.8 9.3.2).

    The library compares them all.
    """
    if len(request) >= _HEADER_BYTES + 2:
        request[_HEADER_BYTES], request[_HEADER_BYTES + 1] = 0, request[_HEADER_BYTES + 1] & 1


class _Handler(RequestHandler):
    """Makes an association of a connection and its request."""

    server: Reception
    request: tuple[bytes, socket.socket]

    def _create_association(self) -> Association:
        # The library's method with our classes. Its contexts are only read: it copies them for each association, which
        # takes fifty times as long as all the rest.
        early, connected = self.request
        server, entity = self.server, self.ae
        association = AcceptorAssociation(entity, server.limits, server.ended, server.storage)
        association._server = server
        association.name = f"AcceptorThread@{datetime.now():%Y%m%d%H%M%S}"
        association.set_socket(Connection(association, connected, early, server.limits))
        acceptor = association.acceptor
        acceptor.maximum_length = entity.maximum_pdu_size
        acceptor.ae_title = server.ae_title
        acceptor.address_info = self.local
        acceptor.implementation_class_uid = entity.implementation_class_uid
        acceptor.implementation_version_name = entity.implementation_version_name
        acceptor.supported_contexts = server.contexts
        association.requestor.address_info = AddressInformation.from_tuple(self.client_address)
        for event, handlers in server._handlers.items():
            if event.is_intervention:
                association.bind(event, *cast("tuple[Any, ...]", handlers))
            else:
                for handler in cast("list[tuple[Any, Any]]", handlers):
                    association.bind(event, *handler)
        return association

    def handle(self) -> None:
        """Begin the association."""
        association = cast("AcceptorAssociation", self._create_association())
        evt.trigger(association, evt.EVT_CONN_OPEN, {"address": self.client_address})
        self.server.opened(association)
        try:
            association.start()
        except RuntimeError:  # no thread to be had
            self.server.ended(association)
            association.dul.close_bell()
            raise
