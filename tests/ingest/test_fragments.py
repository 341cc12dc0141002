"""However a message is cut into fragments and PDUs, our reader and pynetdicom's own take the same from it."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import wire
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import storage_of
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.events import Event
from wire import ABORT, ASSOCIATE_AC, ECHO_CONTEXT, P_DATA_TF, RELEASE_RP, STORE_CONTEXT, Peer

from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.scp import Listener, ListenerSettings

PDU_BYTES = 20_000
Object = tuple[str, str, bytes]


@dataclass
class Receiver:
    """A listener and what it took: UID, transfer syntax, data set."""

    taken: list[Object] = field(default_factory=list)
    port: int = 0

    def take(self, incoming: Incoming) -> None:
        self.taken.append((incoming.sop_instance_uid, incoming.transfer_syntax_uid, incoming.data))

    def take_event(self, event: Event) -> int:
        data = event.request.DataSet.getvalue()
        self.taken.append((str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax), data))
        return 0


@contextmanager
def ours() -> Iterator[Receiver]:
    receiver = Receiver()
    listener_settings = ListenerSettings(
        ae_title="MEDDAEMON",
        host="127.0.0.1",
        port=0,
        maximum_associations=5,
        maximum_pdu_bytes=PDU_BYTES,
        idle_timeout_seconds=30,
        association_timeout_seconds=30,
        message_timeout_seconds=30,
    )
    with Listener(listener_settings, receiver.take, storage=storage_of(receiver.take)) as listener:
        receiver.port = listener.address[1]
        yield receiver


@contextmanager
def stock() -> Iterator[Receiver]:
    """pynetdicom as it is."""
    receiver = Receiver()
    entity = AE(ae_title="MEDDAEMON")
    entity.maximum_pdu_size = PDU_BYTES
    entity.add_supported_context(wire.VERIFICATION)
    entity.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, receiver.take_event)])
    assert server is not None
    receiver.port = int(server.server_address[1])
    yield receiver
    server.shutdown()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Receiver, Receiver]]:
    with ours() as our, stock() as theirs:
        yield our, theirs


def conversation(receiver: Receiver, messages: list[list[bytes]]) -> tuple[list[tuple[int, bytes]], list[Object]]:
    """Send messages, each as some PDUs and its answer awaited; return the answers and what was taken."""
    receiver.taken.clear()
    with Peer(receiver.port) as peer:
        assert peer.associate() == ASSOCIATE_AC
        answers = []
        for pdus in messages:
            peer.send(*pdus)
            answers.append(peer.receive())
        assert peer.release() == RELEASE_RP
    return answers, list(receiver.taken)


@st.composite
def cut(draw: st.DrawFn, context: int, data: bytes, *, is_command: bool) -> list[bytes]:
    """Cut bytes into PDVs anywhere, empty ones included; the control header's upper bits mean nothing (E.2)."""
    marks = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    bounds = [0, *marks, len(data)]
    pieces = [data[start:end] for start, end in pairwise(bounds)]
    # What does not fit into a PDU is cut once more.
    pieces = [piece[at : at + 9000] for piece in pieces for at in range(0, max(len(piece), 1), 9000)]
    noise = draw(st.sampled_from([0, 0, 0, 0x80, 0xFC]))
    last = len(pieces) - 1
    return [
        wire.pdv(context, noise | int(is_command) | (2 if number == last else 0), piece)
        for number, piece in enumerate(pieces)
    ]


@st.composite
def message(draw: st.DrawFn, number: int) -> list[bytes]:
    """Make a C-ECHO or C-STORE request as PDUs that hold one PDV or more each."""
    if draw(st.integers(0, 4)) == 0:
        values = draw(cut(ECHO_CONTEXT, wire.echo_command(number), is_command=True))
    else:
        size = draw(st.sampled_from([0, 1, 2, 100, 8999, 9000, 9001, 40_000]))
        data = draw(st.binary(min_size=4, max_size=4)) * (size // 4 + 1)
        command = wire.store_command(f"2.25.{number}", number)
        values = draw(cut(STORE_CONTEXT, command, is_command=True))
        values += draw(cut(STORE_CONTEXT, data[:size], is_command=False))
    pdus: list[bytes] = []
    body = b""
    for value in values:
        if body and (len(body) + len(value) > PDU_BYTES or draw(st.booleans())):
            pdus.append(wire.pdu(P_DATA_TF, body))
            body = b""
        body += value
    return [*pdus, wire.pdu(P_DATA_TF, body)]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3).flatmap(lambda each: st.tuples(*map(message, each))))
def test_both_take_the_same(both: tuple[Receiver, Receiver], messages: tuple[list[bytes], ...]) -> None:
    our, theirs = both
    assert conversation(our, list(messages)) == conversation(theirs, list(messages))


def test_what_is_taken_is_what_was_sent(both: tuple[Receiver, Receiver]) -> None:
    data = bytes(range(256)) * 1000
    for receiver in both:
        _, taken = conversation(receiver, [[wire.store_message("2.25.5", data, maximum=PDU_BYTES)]])
        assert taken == [("2.25.5", ExplicitVRLittleEndian, data)]


STORE = wire.pdv(STORE_CONTEXT, 3, wire.store_command("2.25.5"))
WHOLE = STORE + wire.pdv(STORE_CONTEXT, 2, b"data")
MALFORMED = {
    "a PDV of length 0": STORE + struct.pack(">L", 0),
    "a PDV of length 1": STORE + struct.pack(">LB", 1, STORE_CONTEXT),
    "a PDV past its PDU": STORE + struct.pack(">LBB", 3000, STORE_CONTEXT, 2) + b"data",
    "a PDV of 4 GiB": STORE + struct.pack(">LBB", 2**32 - 1, STORE_CONTEXT, 2) + b"data",
    "three bytes too many": WHOLE + b"\0\0\0",
    "five bytes too many": WHOLE + bytes(5),
    "a data set without a command": wire.pdv(STORE_CONTEXT, 2, b"data"),
    "an empty command": wire.pdv(STORE_CONTEXT, 3, b""),
    "a command that is none": wire.pdv(STORE_CONTEXT, 3, b"\xff" * 50),
    "a command of no known kind": wire.pdv(STORE_CONTEXT, 3, wire.command(wire.element(0x100, b"\x77\x77"))),
    "a command without its kind": wire.pdv(STORE_CONTEXT, 3, wire.command(wire.element(0x800, b"\1\1"))),
}


@pytest.mark.fault(32, 34, 35, 37)
@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_fragments_end_the_association_and_nothing_is_taken(
    both: tuple[Receiver, Receiver], name: str
) -> None:
    our, _ = both
    our.taken.clear()
    with Peer(our.port, 10) as peer:
        assert peer.associate() == ASSOCIATE_AC
        peer.send(wire.pdu(P_DATA_TF, MALFORMED[name]))
        assert [peer.receive()[0], peer.receive()[0]] == [ABORT, 0]
    assert our.taken == []


@pytest.mark.fault(33)
def test_an_unknown_context_is_aborted(both: tuple[Receiver, Receiver]) -> None:
    our, _ = both
    our.taken.clear()
    with Peer(our.port, 10) as peer:
        assert peer.associate() == ASSOCIATE_AC
        peer.send(wire.store_message("2.25.5", b"data", context=99))
        assert [peer.receive()[0], peer.receive()[0]] == [ABORT, 0]
    assert our.taken == []


@pytest.mark.fault(40)
def test_an_abort_in_the_middle_of_a_data_set_leaves_nothing(both: tuple[Receiver, Receiver]) -> None:
    our, _ = both
    our.taken.clear()
    with Peer(our.port, 10) as peer:
        assert peer.associate() == ASSOCIATE_AC
        peer.send(wire.pdu(P_DATA_TF, STORE + wire.pdv(STORE_CONTEXT, 0, b"data")), wire.pdu(ABORT, bytes(4)))
        assert peer.receive()[0] == 0
    assert our.taken == []
