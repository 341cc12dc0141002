"""A listener in this process, whose work the test does, and what peers may expect of it."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from wire import ASSOCIATE_AC, RELEASE_RP, Peer

from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.content import Buffers, Content
from meddaemon.ingest.intake import Intake
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.ingest.storage import StorageProvider

PDU_BYTES = 16_384
SERVED_SECONDS = 3.0
"""Within what a healthy peer is served beside all others: generous, this machine may be busy."""


class Taken:
    """What the listener took; the test may hold it up."""

    def __init__(self) -> None:
        self.objects: list[Incoming] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, incoming: Incoming) -> None:
        assert self.go.wait(60)
        if incoming.sop_instance_uid == "2.25.666":
            raise RefusedInstance(0xA700, "not this one")
        self.objects.append(incoming)


class Handed:
    """Stands where the intake does: collects objects as it would, and hands them to the test."""

    def __init__(self, take: Callable[[Incoming], object]) -> None:
        self._take = take
        self._buffers = Buffers()
        self._folder = Path(tempfile.mkdtemp(prefix="meddaemon-handed-"))

    def new_content(self, meta: bytes) -> Content:
        return Content(meta, buffers=self._buffers, folder=self._folder, maximum_bytes=2**30)

    def settle(self) -> None:
        """Nothing is registered here."""

    def take_all(self, group: Sequence[Incoming]) -> list[RefusedInstance | None]:
        return [self._taken(incoming) for incoming in group]

    def _taken(self, incoming: Incoming) -> RefusedInstance | None:
        assert incoming.content is not None
        with closing(incoming.content) as content:
            content.finish()
            with content.data_set() as data:
                whole = bytes(data)
        try:
            self._take(replace(incoming, data=whole, content=None))
        except RefusedInstance as refused:
            return refused
        return None


def storage_of(take: Callable[[Incoming], object]) -> StorageProvider:
    """Return the storage service that hands every object to `take`."""
    return StorageProvider(cast("Intake", Handed(take)))


@contextmanager
def listening(
    take: Callable[[Incoming], object] | None = None,
    *,
    maximum_associations: int = 5,
    association_seconds: float = 30.0,
    idle_seconds: float = 30.0,
) -> Iterator[Listener]:
    settings = ListenerSettings(
        ae_title="MEDDAEMON",
        host="127.0.0.1",
        port=0,
        maximum_associations=maximum_associations,
        maximum_pdu_bytes=PDU_BYTES,
        idle_timeout_seconds=idle_seconds,
        association_timeout_seconds=association_seconds,
        message_timeout_seconds=idle_seconds,
    )
    take = take or Taken()
    with Listener(settings, take, storage=storage_of(take)) as listener:
        yield listener


def port_of(listener: Listener) -> int:
    return listener.address[1]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_served(port: int) -> None:
    """Assert that a C-ECHO is answered as if nobody else were there."""
    begun = time.monotonic()
    with Peer(port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        assert peer.echo() == 0
        assert peer.release() == RELEASE_RP
    assert time.monotonic() - begun < SERVED_SECONDS


def assert_ended(peer: Peer, within: float) -> list[int]:
    """Assert that the listener ends the connection in time; return the types of the PDUs it sent before."""
    peer.socket.settimeout(within)
    begun = time.monotonic()
    said = []
    while kind := peer.receive()[0]:
        said.append(kind)
    assert time.monotonic() - begun < within
    return said


def drip(peer: Peer, data: bytes) -> None:
    for byte in data:
        peer.send(bytes([byte]))
        threading.Event().wait(0.02)


@contextmanager
def associated(listener: Listener) -> Iterator[Peer]:
    with Peer(port_of(listener)) as peer:
        assert peer.associate() == ASSOCIATE_AC
        yield peer
