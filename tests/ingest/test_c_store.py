"""The two messages that take no detour are what pynetdicom takes and gives, and the window that a peer is granted."""

import struct
from io import BytesIO
from pathlib import Path

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st
from listening import Taken, listening, port_of
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode
from running import Home
from wire import ABORT, ASSOCIATE_AC, P_DATA_TF, STORE_CONTEXT, Peer

from meddaemon.ingest.c_store import StoreRequest, read_request, response

UIDS = st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,5}){0,5}", fullmatch=True)
COMMAND_FIELDS = st.sampled_from([0x0001, 0x8001, 0x0030, 0x0130, 0x0140, 0x0020])


def by_pynetdicom(request: C_STORE) -> bytes:
    """Return the command set as pynetdicom writes it."""
    message = C_STORE_RSP() if request.MessageIDBeingRespondedTo is not None else C_STORE_RQ()
    message.primitive_to_message(request)
    (first, *_) = message.encode_msg(1, 0)
    return bytes(first.presentation_data_value_list[0][1][1:])


@given(UIDS, UIDS, st.integers(0, 65535), st.integers(0, 2))
def test_what_pynetdicom_asks_is_read(sop_class: str, sop_instance: str, message_id: int, priority: int) -> None:
    asked = C_STORE()
    asked.MessageID, asked.Priority = message_id, priority
    asked.AffectedSOPClassUID, asked.AffectedSOPInstanceUID = sop_class, sop_instance
    asked.DataSet = BytesIO(b"data")
    read = read_request(3, by_pynetdicom(asked))
    assert read is not None
    assert (read.context_id, read.message_id) == (3, message_id)
    assert (read.sop_class_uid, read.sop_instance_uid) == (sop_class, sop_instance)


@given(UIDS, UIDS, st.integers(0, 65535), st.sampled_from([0, 0xA700, 0xA900, 0xC000, 0x0117, 0x0122]))
def test_what_is_answered_is_what_pynetdicom_answers(
    sop_class: str, sop_instance: str, message_id: int, status: int
) -> None:
    answered = C_STORE()
    answered.MessageIDBeingRespondedTo, answered.Status = message_id, status
    answered.AffectedSOPClassUID, answered.AffectedSOPInstanceUID = sop_class, sop_instance
    request = StoreRequest(
        context_id=1,
        message_id=message_id,
        sop_class=wire.uid_value(sop_class),
        sop_instance=wire.uid_value(sop_instance),
    )
    command = by_pynetdicom(answered)
    assert response(request, status, "", 0) == wire.pdu(P_DATA_TF, wire.pdv(1, 3, command))


@given(st.text(max_size=200), st.integers(0, 300))
def test_an_answer_fits_into_whatever_a_peer_takes(comment: str, maximum: int) -> None:
    request = StoreRequest(context_id=5, message_id=1, sop_class=b"1.2\0", sop_instance=b"1.3\0")
    sent, command = response(request, 0xA700, comment, maximum), b""
    while sent:
        kind, length = struct.unpack_from(">BxL", sent)
        size, context, control = struct.unpack_from(">LBB", sent, 6)
        assert (kind, context, size) == (P_DATA_TF, 5, length - 4)
        assert maximum < 8 or length <= maximum or maximum == 0
        command, sent = command + sent[12 : 6 + length], sent[6 + length :]
        assert bool(control & 2) == (not sent)
    said = decode(BytesIO(command), True, True)
    assert said.Status == 0xA700
    assert len(said.get("ErrorComment", "")) <= 64


@given(st.binary(max_size=300))
def test_whatever_is_no_such_request_is_left_to_pynetdicom(command: bytes) -> None:
    read = read_request(1, command)
    assert read is None or command.count(struct.pack("<HHLH", 0, 0x0100, 2, 1)) == 1


@given(COMMAND_FIELDS, st.sampled_from([b"\1\0", b"\1\1"]), st.booleans(), st.booleans())
def test_only_a_whole_c_store_request_is_read(field: int, kind: bytes, named: bool, responds: bool) -> None:
    command = wire.command(
        wire.element(2, b"1.2\0"),
        wire.element(0x100, struct.pack("<H", field)),
        wire.element(0x110, b"\7\0"),
        *([wire.element(0x120, b"\7\0")] if responds else []),
        wire.element(0x800, kind),
        *([wire.element(0x1000, b"1.3\0")] if named else []),
    )
    assert (read_request(1, command) is not None) == (field == 1 and kind == b"\1\0" and named and not responds)


# --- asynchronous operations window (PS3.7 D.3.3.3) -----------------------------------------------------------------


def windowed(invoked: int) -> bytes:
    """Return an A-ASSOCIATE-RQ that asks for so many outstanding requests."""
    request = wire.associate_request()
    window = wire.item(0x53, struct.pack(">HH", invoked, 1))
    at = request.index(b"\x50\0", 74 + 25)
    (length,) = struct.unpack_from(">H", request, at + 2)
    user = request[at + 4 : at + 4 + length] + window
    return wire.pdu(wire.ASSOCIATE_RQ, request[6:at] + wire.item(0x50, user))


def granted(peer: Peer, invoked: int) -> int:
    """Associate, and return how many requests may be outstanding."""
    peer.send(windowed(invoked))
    kind, body = peer.receive()
    assert kind == ASSOCIATE_AC
    at = body.index(b"\x53\0\0\4")
    return int(struct.unpack_from(">H", body, at + 4)[0])


@pytest.mark.parametrize(("asked", "given_"), [(16, 16), (2, 2), (0, 64), (500, 64)])
def test_the_window_that_is_asked_for_is_granted(asked: int, given_: int) -> None:
    with listening() as listener, Peer(port_of(listener)) as peer:
        assert granted(peer, asked) == given_


def test_objects_that_are_sent_without_waiting_are_all_answered_in_order() -> None:
    taken = Taken()
    with listening(taken) as listener, Peer(port_of(listener)) as peer:
        assert granted(peer, 16) == 16
        uids = [f"2.25.{number}" for number in range(100, 140)]
        uids[7] = "2.25.666"  # which is refused
        peer.send(b"".join(wire.store_message(uid, bytes(3000), number) for number, uid in enumerate(uids)))
        assert [peer.status() for _ in uids] == [0xA700 if uid == "2.25.666" else 0 for uid in uids]
        assert [each.sop_instance_uid for each in taken.objects] == [uid for uid in uids if uid != "2.25.666"]
        assert peer.echo() == 0


def test_what_is_not_answered_yet_is_not_taken_when_the_peer_is_wrong() -> None:
    """A wrong PDU behind whole objects: whatever has been answered was taken, and nothing else is told to be."""
    taken = Taken()
    with listening(taken) as listener, Peer(port_of(listener)) as peer:
        granted(peer, 16)
        peer.send(*(wire.store_message(f"2.25.{number}", bytes(3000), number) for number in range(5)))
        peer.send(wire.pdu(P_DATA_TF, wire.pdv(STORE_CONTEXT, 2, b"a data set without a command")))
        answered = 0
        while (kind := peer.receive()[0]) == P_DATA_TF:
            answered += 1
        assert kind == ABORT
    assert len(taken.objects) == answered


def test_one_write_makes_a_window_of_objects_durable(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    with home.running("listen") as listener, Peer(listener.port()) as peer:
        granted(peer, 16)
        uids = [f"2.25.{number}" for number in range(100, 132)]
        heads = {uid: _image(uid) for uid in uids}
        peer.send(b"".join(wire.store_message(uid, data, number) for number, (uid, data) in enumerate(heads.items())))
        assert {peer.status() for _ in uids} == {0}
        assert {row.sop_instance_uid for row in home.instances()} == set(uids)


def _image(uid: str) -> bytes:
    def value(tag: tuple[int, int], text: str) -> bytes:
        encoded = text.encode() + b"\0" * (len(text) % 2)
        return struct.pack("<HH2sH", *tag, b"UI", len(encoded)) + encoded

    return b"".join(
        (
            value((8, 0x16), "1.2.840.10008.5.1.4.1.1.2"),
            value((8, 0x18), uid),
            value((0x20, 0xD), "2.25.1"),
            value((0x20, 0xE), "2.25.2"),
        )
    )
