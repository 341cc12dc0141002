"""A PACS that behaves as it is told: it answers with any status, refuses, aborts, stalls, drips, and loses objects.

`ScriptedScp` is a real SCP that keeps every arrival, in order: what it has taken, lost or refused. `Wire` lies before
an SCP and spoils the connection itself: it rejects, cuts, keeps silent, lets bytes through one by one.

    pacs = ScriptedScp(Reply(0xA700), Abort(), refuses=[LABELMAP])
    with pacs.listening() as port:
        ...
    assert pacs.uids == [...]
"""

import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import (
    UID,
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    LabelMapSegmentationStorage,
    Verification,
)

from meddaemon.results.dimse import RemoteEntity

LABELMAP = str(LabelMapSegmentationStorage)
COMPREHENSIVE = str(ComprehensiveSRStorage)
SYNTAXES = tuple(
    map(
        str,
        (
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
            RLELossless,
            JPEGLSLossless,
            DeflatedExplicitVRLittleEndian,
        ),
    )
)
"""Transfer syntaxes that it takes unless told otherwise, the preferred one first."""
STATUSES = {
    "success": (0x0000,),
    "warning": (0xB000, 0xB006, 0xB007, 0x0001, 0x0107, 0x0116),
    "out of resources": (0xA700, 0xA701, 0xA7FF),
    "refused": (0xA900, 0xA9FF, 0xC000, 0xCFFF, 0x0117, 0x0122, 0x0124, 0x0210, 0x0211, 0x0212),
    "failure": (0x0110, 0x0213),
    "duplicate": (0x0111,),
}
"""What a C-STORE may be answered with (PS3.4 Table B.2-1, PS3.7 9.1.1.1.9 and Annex C)."""


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One object that came: the number of the association (from 1), and its data set as it was encoded."""

    association: int
    calling_ae_title: str
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    content: bytes
    """Part 10 file."""
    status: int | None
    """What was answered, None where nothing was."""

    @property
    def data_set(self) -> Dataset:
        return dcmread(BytesIO(self.content))


@dataclass(frozen=True)
class Reply:
    """Answers with a status; the object is taken where that is a success or a warning."""

    status: int = 0x0000
    comment: str = ""


@dataclass(frozen=True)
class Lose:
    """Answers Success and forgets the object."""


@dataclass(frozen=True)
class Abort:
    """Aborts when the object is here, before the answer; with `taken` it keeps the object all the same."""

    taken: bool = False


@dataclass(frozen=True)
class Stall:
    """Answers nothing before `ScriptedScp.let_go`, or the end; then with Success."""


Step = Reply | Lose | Abort | Stall
Script = Callable[[str, str], Step | None]
"""Given SOP class and instance of an object, what to do with it; None is what the steps say."""


@dataclass
class ScriptedScp:
    """Does with each object what the next of `steps` says, the last for ever (none: Success); `script` goes first.

    `refuses` names SOP classes, or pairs of SOP class and transfer syntax, whose presentation contexts it refuses.
    `also` is what else is served: handlers for these abstract syntaxes (storage commitment, queries). `act` is called
    with each object before it is answered for.
    """

    steps: list[Step] = field(default_factory=list)
    script: Script = lambda _class, _instance: None
    refuses: Collection[str | tuple[str, str]] = ()
    syntaxes: Sequence[str] = SYNTAXES
    also: Sequence[str] = ()
    handlers: Sequence[Any] = ()
    act: Callable[[str], None] = lambda _uid: None
    ae_title: str = "PACS"
    maximum_associations: int = 16
    arrivals: list[Arrival] = field(default_factory=list)
    """Every object that came whole, in order, whatever was answered."""
    store: dict[str, bytes] = field(default_factory=dict)
    """What it has, by SOP Instance UID; take something out to lose it."""
    associations: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._numbers: dict[int, int] = {}
        self.stalled = threading.Event()
        """Set while an object waits for its answer."""

    @classmethod
    def answering(cls, *statuses: int, **more: Any) -> "ScriptedScp":
        """Return one that answers with these statuses."""
        return cls(steps=[Reply(each) for each in statuses], **more)

    @property
    def uids(self) -> list[str]:
        """SOP Instance UIDs of what arrived, in order."""
        return [each.sop_instance_uid for each in self.arrivals]

    @property
    def kinds(self) -> list[str]:
        """Modality of what arrived, in order."""
        return [str(each.data_set.Modality) for each in self.arrivals]

    def versions(self, sop_instance_uid: str) -> set[bytes]:
        """Return the different contents that came under a UID: more than one is a fault of the sender."""
        return {
            dcmread(BytesIO(each.content)).to_json().encode()
            for each in self.arrivals
            if each.sop_instance_uid == sop_instance_uid
        }

    def let_go(self) -> None:
        """Answer what stalls, now and from now on."""
        self._go.set()

    @contextmanager
    def listening(self, port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[int]:
        """Serve; yields the port."""
        entity = AE(ae_title=self.ae_title)
        entity.maximum_associations = self.maximum_associations
        entity.maximum_pdu_size = 0
        entity.network_timeout = 60
        for storage in AllStoragePresentationContexts:
            uid = str(storage.abstract_syntax)
            taken = [each for each in self.syntaxes if (uid, each) not in self.refuses]
            if uid not in self.refuses and taken:
                entity.add_supported_context(uid, taken)
        for other in (Verification, *self.also):
            entity.add_supported_context(other)
        server = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            ssl_context=context,
            evt_handlers=[
                (evt.EVT_C_STORE, self._take),
                (evt.EVT_ACCEPTED, self._opened),
                *self.handlers,
            ],
        )
        assert server is not None
        try:
            yield server.server_address[1]
        finally:
            self.let_go()
            server.shutdown()

    def remote(self, port: int, **more: Any) -> RemoteEntity:
        """Return it as those see it who send to it."""
        values = {"host": "127.0.0.1", "calling_ae_title": "MEDDAEMON", "connection_timeout_seconds": 2, **more}
        return RemoteEntity(ae_title=self.ae_title, port=port, **values)

    def _opened(self, event: evt.Event) -> None:
        with self._lock:
            self.associations += 1
            self._numbers[id(event.assoc)] = self.associations
            self.most_at_once = max(self.most_at_once, len(event.assoc.ae.active_associations))

    def _take(self, event: evt.Event) -> int | Dataset:
        request: Any = event.request
        sop_class, uid = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        self.act(uid)
        with self._lock:
            step = self.script(sop_class, uid) or self._next()
        content = event.encoded_dataset()
        match step:
            case Reply(status=status, comment=comment):
                self._keep(event, content, status=status, kept=status == 0 or status in _WARNINGS)
                answer = Dataset()
                answer.Status = status
                if comment:
                    answer.ErrorComment = comment
                return answer
            case Lose():
                self._keep(event, content, status=0x0000, kept=False)
            case Stall():
                self._keep(event, content, status=0x0000, kept=True)
                self.stalled.set()
                self._go.wait(120)
            case Abort(taken=taken):
                self._keep(event, content, status=None, kept=taken)
                event.assoc.abort()
        return 0x0000

    def _next(self) -> Step:
        if not self.steps:
            return Reply()
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def _keep(self, event: evt.Event, content: bytes, *, status: int | None, kept: bool) -> None:
        request: Any = event.request
        uid = str(request.AffectedSOPInstanceUID)
        with self._lock:
            self.arrivals.append(
                Arrival(
                    association=self._numbers.get(id(event.assoc), 0),
                    calling_ae_title=str(event.assoc.requestor.ae_title).strip(),
                    sop_class_uid=str(request.AffectedSOPClassUID),
                    sop_instance_uid=uid,
                    transfer_syntax_uid=str(UID(event.context.transfer_syntax)),
                    content=content,
                    status=status,
                )
            )
            if kept:
                self.store[uid] = content


_WARNINGS = frozenset(STATUSES["warning"])


# --- what happens on the wire -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reject:
    """Answers the request for an association with A-ASSOCIATE-RJ (PS3.8 9.3.4): permanently, or for now."""

    permanent: bool = False
    source: int = 1
    reason: int = 1


@dataclass(frozen=True)
class Cut:
    """Ends the connection when so many bytes have come after the request for an association (-1: with that request).

    `how`: "abort" is A-ABORT, "close" the end of the stream, "reset" what a crash or a firewall leaves.
    """

    after: int = -1
    how: str = "abort"


@dataclass(frozen=True)
class Silent:
    """Takes connections and bytes, and says nothing: a black hole. After `after` bytes that follow the request."""

    after: int = -1


@dataclass(frozen=True)
class Drip:
    """Lets so many bytes a second through, after the request for an association."""

    bytes_per_second: int = 100


@dataclass(frozen=True)
class Through:
    """Lets everything through."""


Fate = Reject | Cut | Silent | Drip | Through
_ABORT = bytes.fromhex("0700 00000004 0000 0200")
_PIECE = 4096


@dataclass
class Wire:
    """Lies before the SCP at `target`; each connection meets the next of `fates`, the last for ever."""

    target: int = 0
    fates: list[Fate] = field(default_factory=lambda: [Through()])
    connections: int = 0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._open: list[socket.socket] = []
        self.met = threading.Event()
        """Set when a connection is silent, or was cut."""

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Serve; yields the port."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.05)
            # What the machine takes in for us counts as sent.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            thread = threading.Thread(target=self._serve, args=(server,), daemon=True)
            thread.start()
            try:
                yield server.getsockname()[1]
            finally:
                self._over.set()
                thread.join()
                for each in self._open:
                    each.close()

    def _serve(self, server: socket.socket) -> None:
        while not self._over.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            self._open.append(client)
            self.connections += 1
            fate = self.fates.pop(0) if len(self.fates) > 1 else self.fates[0]
            threading.Thread(target=self._meet, args=(client, fate), daemon=True).start()

    def _meet(self, client: socket.socket, fate: Fate) -> None:
        client.settimeout(0.05)
        with suppress(OSError):
            request = self._request(client)
            match fate:
                case Reject(permanent=permanent, source=source, reason=reason):
                    client.sendall(bytes([3, 0, 0, 0, 0, 4, 0, 1 if permanent else 2, source, reason]))
                case Cut(after=-1, how=how):
                    self._end(client, how)
                case Silent(after=-1):
                    self.met.set()
                    self._swallow(client)
                case _:
                    self._through(client, request, fate)

    def _request(self, client: socket.socket) -> bytes:
        """Return the whole A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
        got = b""
        while len(got) < 6 or len(got) < 6 + int.from_bytes(got[2:6], "big"):
            piece = self._read(client)
            if not piece:
                raise ConnectionError("no request")
            got += piece
        return got

    def _through(self, client: socket.socket, request: bytes, fate: Fate) -> None:
        with socket.create_connection(("127.0.0.1", self.target)) as scp:
            scp.settimeout(0.05)
            scp.sendall(request)
            threading.Thread(target=self._answers, args=(scp, client), daemon=True).start()
            passed = 0
            size = min(fate.bytes_per_second, _PIECE) if isinstance(fate, Drip) else _PIECE
            while piece := self._read(client, size):
                if isinstance(fate, Cut | Silent) and passed + len(piece) >= fate.after:
                    if isinstance(fate, Cut):
                        self._end(client, fate.how)
                        return
                    self.met.set()
                    self._swallow(client)
                    return
                scp.sendall(piece)
                passed += len(piece)
                if isinstance(fate, Drip):
                    self._over.wait(len(piece) / fate.bytes_per_second)

    def _answers(self, scp: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while piece := self._read(scp):
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)

    def _read(self, from_: socket.socket, size: int = _PIECE) -> bytes:
        """Return what comes next, nothing at the end."""
        while not self._over.is_set():
            try:
                return from_.recv(size)
            except TimeoutError:
                continue
        return b""

    def _swallow(self, client: socket.socket) -> None:
        while self._read(client):
            pass

    def _end(self, client: socket.socket, how: str) -> None:
        if how == "abort":
            client.sendall(_ABORT)
        if how == "reset":
            # Nothing is lingered for: the peer reads RST.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        else:
            client.shutdown(socket.SHUT_WR)
        self.met.set()
        if how == "reset":
            client.close()
