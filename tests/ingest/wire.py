"""PDUs as bytes (PS3.8 9.3), made without pynetdicom: what a peer puts on the wire, right or wrong."""

import socket
import struct
from collections.abc import Iterable, Sequence

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
ECHO_CONTEXT, STORE_CONTEXT = 1, 3
ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
RELEASE = bytes([RELEASE_RQ, 0, 0, 0, 0, 4, 0, 0, 0, 0])


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(body)) + body


def item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


ECHO_AND_STORE = (
    (ECHO_CONTEXT, VERIFICATION, IMPLICIT),
    (STORE_CONTEXT, str(CTImageStorage), str(ExplicitVRLittleEndian)),
)


def associate_request(
    proposed: Sequence[tuple[int, str, str]] = ECHO_AND_STORE,
    *,
    maximum: int = 0x20000,
    calling: str = "RAW",
    called: str = "MEDDAEMON",
) -> bytes:
    """Return an A-ASSOCIATE-RQ that proposes these contexts: id, abstract syntax, transfer syntax."""
    contexts = b""
    for number, sop_class, syntax in proposed:
        contexts += item(0x20, bytes([number, 0, 0, 0]) + item(0x30, sop_class.encode()) + item(0x40, syntax.encode()))
    user = item(0x50, item(0x51, struct.pack(">L", maximum)) + item(0x52, b"1.2.3"))
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    return pdu(ASSOCIATE_RQ, b"\0\1\0\0" + titles + bytes(32) + item(0x10, b"1.2.840.10008.3.1.1.1") + contexts + user)


def element(number: int, value: bytes) -> bytes:
    """Return an element of group 0000, Implicit VR Little Endian (PS3.7 6.3.1)."""
    return struct.pack("<HHL", 0, number, len(value)) + value


def uid_value(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)


def command(*elements: bytes) -> bytes:
    body = b"".join(elements)
    return element(0, struct.pack("<L", len(body))) + body


def store_command(sop_instance_uid: str, message_id: int = 1, sop_class_uid: str = CTImageStorage) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    return command(
        element(2, uid_value(sop_class_uid)),
        element(0x100, b"\1\0"),
        element(0x110, struct.pack("<H", message_id)),
        element(0x700, b"\0\0"),
        element(0x800, b"\1\0"),
        element(0x1000, uid_value(sop_instance_uid)),
    )


def echo_command(message_id: int = 1) -> bytes:
    return command(
        element(2, uid_value(VERIFICATION)),
        element(0x100, b"\x30\0"),
        element(0x110, struct.pack("<H", message_id)),
        element(0x800, b"\1\1"),
    )


def pdv(context: int, control: int, data: bytes) -> bytes:
    return struct.pack(">LBB", len(data) + 2, context, control) + data


def fragments(context: int, data: bytes, size: int, *, is_command: bool) -> list[bytes]:
    """Return `data` as PDVs of at most `size` bytes, the last one marked (PS3.8 E.2)."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
    return [
        pdv(context, int(is_command) | (2 if number == len(pieces) - 1 else 0), piece)
        for number, piece in enumerate(pieces)
    ]


def store_message(
    sop_instance_uid: str,
    data: bytes,
    message_id: int = 1,
    *,
    maximum: int = 0x20000,
    context: int = STORE_CONTEXT,
    request: bytes | None = None,
) -> bytes:
    """Return a C-STORE-RQ as P-DATA-TF PDUs of one PDV each; `request` is its command set, where not the right one."""
    parts: Iterable[bytes] = (
        *fragments(context, request or store_command(sop_instance_uid, message_id), maximum - 6, is_command=True),
        *fragments(context, data, maximum - 6, is_command=False),
    )
    return b"".join(pdu(P_DATA_TF, part) for part in parts)


def echo_message(message_id: int = 1) -> bytes:
    return pdu(P_DATA_TF, pdv(ECHO_CONTEXT, 3, echo_command(message_id)))


class Peer:
    """One TCP connection to a listener, nothing said yet."""

    def __init__(self, port: int, seconds: float = 30.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *data: bytes) -> None:
        for each in data:
            self.socket.sendall(each)

    def exactly(self, size: int) -> bytes:
        """Return so many bytes, fewer where the connection ends before."""
        received = b""
        while len(received) < size:
            more = self.socket.recv(size - len(received))
            if not more:
                break
            received += more
        return received

    def receive(self) -> tuple[int, bytes]:
        """Return type and body of the next PDU; type 0 is the end of the connection."""
        try:
            head = self.exactly(6)
            if len(head) < 6:
                return 0, b""
            return head[0], self.exactly(int.from_bytes(head[2:6], "big"))
        except ConnectionResetError:
            return 0, b""

    def associate(self, request: bytes | None = None) -> int:
        """Ask for an association and return the type of the answer."""
        self.send(request or associate_request())
        return self.receive()[0]

    def status(self) -> int:
        """Return the status in the next answer."""
        kind, body = self.receive()
        assert kind == P_DATA_TF, f"PDU type {kind}"
        at = 6
        while True:
            # Element by element: what looks like a Status may lie across two others.
            number, length = struct.unpack_from("<xxHL", body, at)
            if number == 0x0900:
                return int.from_bytes(body[at + 8 : at + 10], "little")
            at += 8 + length

    def echo(self) -> int:
        self.send(echo_message())
        return self.status()

    def store(self, sop_instance_uid: str, data: bytes) -> int:
        self.send(store_message(sop_instance_uid, data))
        return self.status()

    def release(self) -> int:
        self.send(RELEASE)
        return self.receive()[0]


def kinds(answers: Sequence[tuple[int, bytes]]) -> list[int]:
    return [kind for kind, _ in answers]
