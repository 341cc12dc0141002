"""The least of the DICOM Upper Layer (PS3.8) and of C-STORE (PS3.7) that a sender and a null receiver need.

Written from the Standard with nothing of pynetdicom or of ours, so that no receiver is measured with its own kind.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID

from .data_sets import Image

VERIFICATION = "1.2.840.10008.1.1"
"""SOP class of C-ECHO (PS3.4 Annex A): the association that finds out whether a receiver is up proposes it."""
CONTEXT_ID = 1
SUCCESS = 0x0000
LARGEST_PDU = 131_072
"""Announced by our null receiver, and the most that the sender puts into one P-DATA-TF whatever the peer allows."""
_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_ASSOCIATE_RQ, _ASSOCIATE_AC, _DATA, _RELEASE_RQ, _RELEASE_RP = 1, 2, 4, 5, 6
_COMMAND, _LAST = 0x01, 0x02
"""Bits of the message control header (PS3.8 E.2)."""
_RESPONSE = 0x8001
_AFFECTED_SOP_INSTANCE_UID, _STATUS, _MESSAGE_ID, _RESPONDED_TO = 0x1000, 0x0900, 0x0110, 0x0120


class Violation(Exception):
    """The peer said something that the protocol does not allow here, or refused the association."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One C-STORE response (PS3.7 9.3.1.2)."""

    message_id: int
    status: int


def prepare(peer: socket.socket) -> None:
    """Have every small message sent at once."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def associate(peer: socket.socket, abstract_syntax: str, transfer_syntax: str) -> int:
    """Request an association with one presentation context; return the longest P-DATA-TF that the peer takes.

    0 is no limit (PS3.8 D.1). Raises Violation when it is not accepted, OSError.
    """
    peer.sendall(_associate(_ASSOCIATE_RQ, abstract_syntax, transfer_syntax))
    kind, body = _read_pdu(peer)
    if kind != _ASSOCIATE_AC:
        raise Violation(f"PDU type {kind} in answer to A-ASSOCIATE-RQ")
    maximum = None
    for item, value in _items(body[68:]):
        if item == 0x21 and value[2] != 0:
            raise Violation(f"presentation context rejected: {value[2]}")
        if item == 0x50:
            maximum = next((int.from_bytes(each) for kind, each in _items(value) if kind == 0x51), None)
    if maximum is None:
        raise Violation("A-ASSOCIATE-AC without Maximum Length")
    return maximum


def accept(peer: socket.socket) -> None:
    """Accept an association with the first proposed presentation context, which must have the context ID we use."""
    kind, body = _read_pdu(peer)
    if kind != _ASSOCIATE_RQ:
        raise Violation(f"PDU type {kind} instead of A-ASSOCIATE-RQ")
    context = next(value for item, value in _items(body[68:]) if item == 0x20)
    syntax = next(value for item, value in _items(context[4:]) if item == 0x40)
    peer.sendall(_associate(_ASSOCIATE_AC, "", syntax.decode()))


def release(peer: socket.socket) -> None:
    """End the association in good order (PS3.8 7.2)."""
    peer.sendall(struct.pack(">BxI4x", _RELEASE_RQ, 4))
    kind, _ = _read_pdu(peer)
    if kind != _RELEASE_RP:
        raise Violation(f"PDU type {kind} in answer to A-RELEASE-RQ")


def framed(image: Image, sop_class_uid: str, message_id: int, maximum: int) -> bytes:
    """Return a C-STORE request as it goes over the wire: all its P-DATA-TF PDUs, one fragment in each."""
    room = min(maximum or LARGEST_PDU, LARGEST_PDU) - 6
    command = _command(
        (0x0002, _uid(sop_class_uid)),
        (0x0100, struct.pack("<H", 0x0001)),
        (_MESSAGE_ID, struct.pack("<H", message_id)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 0x0001)),
        (_AFFECTED_SOP_INSTANCE_UID, _uid(image.sop_instance_uid)),
    )
    parts: list[bytes | memoryview] = [_fragment(len(command), _COMMAND | _LAST), command]
    data = memoryview(image.head + image.pixels)
    for begin in range(0, len(data), room):
        piece = data[begin : begin + room]
        parts += (_fragment(len(piece), _LAST if begin + room >= len(data) else 0), piece)
    return b"".join(parts)


def read_answer(peer: socket.socket) -> Answer:
    """Read one C-STORE response. Raises Violation, OSError."""
    command = bytearray()
    last = False
    while not last:
        kind, body = _read_pdu(peer)
        if kind != _DATA:
            raise Violation(f"PDU type {kind} instead of a C-STORE response")
        while body:
            length, _, control = struct.unpack_from(">IBB", body)
            command += body[6 : 4 + length]
            last = bool(control & _LAST)
            body = body[4 + length :]
    elements = dict(_elements(bytes(command)))
    if _number(elements, 0x0100) != _RESPONSE:
        raise Violation("a message that is no C-STORE response")
    return Answer(message_id=_number(elements, _RESPONDED_TO), status=_number(elements, _STATUS))


def swallow(peer: socket.socket) -> None:
    """Serve an association until it is released: read every C-STORE, keep nothing, answer Success."""
    accept(peer)
    buffer = bytearray(LARGEST_PDU)
    command = b""
    while True:
        kind, length = struct.unpack(">BxI", _exactly(peer, 6))
        if length > len(buffer):
            raise Violation(f"a PDU of {length} bytes")
        body = memoryview(buffer)[:length]
        fill(peer, body)
        if kind == _RELEASE_RQ:
            peer.sendall(struct.pack(">BxI4x", _RELEASE_RP, 4))
            return
        while body:
            size, _, control = struct.unpack_from(">IBB", body)
            if control & _COMMAND:
                command = bytes(body[6 : 4 + size])
            elif control & _LAST:
                peer.sendall(_success(dict(_elements(command))))
            body = body[4 + size :]


def _associate(kind: int, abstract_syntax: str, transfer_syntax: str) -> bytes:
    """Return A-ASSOCIATE-RQ or -AC (PS3.8 9.3.2, 9.3.3)."""
    request = kind == _ASSOCIATE_RQ
    syntaxes = _item(0x30, abstract_syntax.encode()) if request else b""
    context = _item(
        0x20 if request else 0x21, bytes((CONTEXT_ID, 0, 0, 0)) + syntaxes + _item(0x40, transfer_syntax.encode())
    )
    user = _item(0x51, struct.pack(">I", LARGEST_PDU)) + _item(0x52, IMPLEMENTATION_CLASS_UID.encode())
    body = struct.pack(">H2x16s16s32x", 1, b"ANY-SCP".ljust(16), b"BENCH".ljust(16))
    body += _item(0x10, _APPLICATION_CONTEXT.encode()) + context + _item(0x50, user)
    return struct.pack(">BxI", kind, len(body)) + body


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _items(body: bytes) -> Iterator[tuple[int, bytes]]:
    while body:
        kind, length = struct.unpack_from(">BxH", body)
        yield kind, body[4 : 4 + length]
        body = body[4 + length :]


def _fragment(size: int, control: int) -> bytes:
    return struct.pack(">BxIIBB", _DATA, size + 6, size + 2, CONTEXT_ID, control)


def _command(*elements: tuple[int, bytes]) -> bytes:
    """Return a command set: group 0000 in implicit VR little endian, its length first (PS3.7 6.3.1)."""
    encoded = b"".join(struct.pack("<HHI", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHII", 0, 0, 4, len(encoded)) + encoded


def _success(request: dict[int, bytes]) -> bytes:
    command = _command(
        (0x0002, request[0x0002]),
        (0x0100, struct.pack("<H", _RESPONSE)),
        (_RESPONDED_TO, request[_MESSAGE_ID]),
        (0x0800, struct.pack("<H", 0x0101)),
        (_STATUS, struct.pack("<H", SUCCESS)),
        (_AFFECTED_SOP_INSTANCE_UID, request[_AFFECTED_SOP_INSTANCE_UID]),
    )
    return _fragment(len(command), _COMMAND | _LAST) + command


def _elements(command: bytes) -> Iterator[tuple[int, bytes]]:
    while command:
        _, element, length = struct.unpack_from("<HHI", command)
        yield element, command[8 : 8 + length]
        command = command[8 + length :]


def _number(elements: dict[int, bytes], element: int) -> int:
    if element not in elements:
        raise Violation(f"a response without (0000,{element:04X})")
    return int.from_bytes(elements[element], "little")


def _uid(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def _read_pdu(peer: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxI", _exactly(peer, 6))
    return kind, _exactly(peer, length)


def _exactly(peer: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    fill(peer, memoryview(buffer))
    return bytes(buffer)


def fill(peer: socket.socket, view: memoryview) -> None:
    """Receive until the view is full. Raises Violation when the peer ends before, OSError."""
    while view:
        received = peer.recv_into(view)
        if not received:
            raise Violation("the peer closed the connection")
        # Without it the kernel may hold its ACK back for 40 ms, and a peer with Nagle's algorithm waits for it.
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        view = view[received:]
