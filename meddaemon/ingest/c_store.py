"""C-STORE without detours: the command set of its request read, that of its response written (PS3.7 9.1.1, 9.3.1).

Nearly all messages that a listener sees are these two, and pynetdicom takes longer over them than all the rest of
the work takes together. A request that is not exactly as the Standard has it is left to pynetdicom.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

STORE_RQ, STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_GROUP_LENGTH, _SOP_CLASS, _COMMAND_FIELD, _MESSAGE_ID, _RESPONDED_TO = 0x0000, 0x0002, 0x0100, 0x0110, 0x0120
_DATA_SET_TYPE, _STATUS, _ERROR_COMMENT, _SOP_INSTANCE = 0x0800, 0x0900, 0x0902, 0x1000
_ELEMENT = struct.Struct("<HHL")
_SHORT = struct.Struct("<H")
_PDU = struct.Struct(">BxL")
_PDV = struct.Struct(">LBB")
_P_DATA_TF = 0x04
_COMMAND, _LAST = 0x01, 0x02


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """What holds for every object of a presentation context."""

    abstract_syntax_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    called_ae_title: str


@dataclass(frozen=True, kw_only=True)
class StoreRequest:
    """A C-STORE-RQ with a data set behind it; the UIDs as they came, padding and all."""

    context_id: int
    message_id: int
    sop_class: bytes
    sop_instance: bytes

    @property
    def sop_class_uid(self) -> str:
        """The Affected SOP Class UID, which may be anything."""
        return _text(self.sop_class)

    @property
    def sop_instance_uid(self) -> str:
        """The Affected SOP Instance UID, which may be anything."""
        return _text(self.sop_instance)


def read_request(context_id: int, command: bytes | bytearray) -> StoreRequest | None:
    """Return the C-STORE request that this command set is; None where it is another, or not quite as it should be."""
    elements: dict[int, bytes] = {}
    position, previous = 0, -1
    while position < len(command):
        if position + _ELEMENT.size > len(command):
            return None
        group, element, length = _ELEMENT.unpack_from(command, position)
        position += _ELEMENT.size
        if group or element <= previous or position + length > len(command):
            return None
        elements[element] = bytes(command[position : position + length])
        position, previous = position + length, element
    shorts = [elements.get(number, b"") for number in (_COMMAND_FIELD, _MESSAGE_ID, _DATA_SET_TYPE)]
    if any(len(value) != _SHORT.size for value in shorts):
        return None
    field, message_id, data_set_type = (_SHORT.unpack(value)[0] for value in shorts)
    if field != STORE_RQ or data_set_type == _NO_DATA_SET:
        return None
    if not elements.get(_SOP_CLASS) or not elements.get(_SOP_INSTANCE) or _RESPONDED_TO in elements:
        return None
    return StoreRequest(
        context_id=context_id,
        message_id=message_id,
        sop_class=elements[_SOP_CLASS],
        sop_instance=elements[_SOP_INSTANCE],
    )


def response(request: StoreRequest, status: int, comment: str, maximum_pdu: int) -> bytes:
    """Return the PDUs of the C-STORE-RSP; the peer takes PDUs of `maximum_pdu` bytes, of any length where that is 0.

    `comment` is the Error Comment (0000,0902), cut to what it may have; it is left out when it is empty.
    """
    body = b"".join(
        (
            _element(_SOP_CLASS, request.sop_class),
            _element(_COMMAND_FIELD, _SHORT.pack(STORE_RSP)),
            _element(_RESPONDED_TO, _SHORT.pack(request.message_id)),
            _element(_DATA_SET_TYPE, _SHORT.pack(_NO_DATA_SET)),
            _element(_STATUS, _SHORT.pack(status)),
            _element(_ERROR_COMMENT, _long_string(comment)) if comment else b"",
            _element(_SOP_INSTANCE, request.sop_instance),
        )
    )
    command = _element(_GROUP_LENGTH, struct.pack("<L", len(body))) + body
    return b"".join(_pdus(request.context_id, command, maximum_pdu))


def _pdus(context_id: int, command: bytes, maximum_pdu: int) -> Iterator[bytes]:
    """Yield P-DATA-TF PDUs of one fragment each (PS3.8 9.3.5, D.1.1: the maximum counts what follows the length)."""
    most = len(command) if maximum_pdu == 0 else max(1, maximum_pdu - _PDV.size)
    for start in range(0, len(command), most):
        fragment = command[start : start + most]
        control = _COMMAND | (_LAST if start + most >= len(command) else 0)
        header = _PDU.pack(_P_DATA_TF, _PDV.size + len(fragment))
        yield header + _PDV.pack(2 + len(fragment), context_id, control) + fragment


def _element(number: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0x0000, number, len(value)) + value


def _long_string(text: str) -> bytes:
    """Return a value of VR LO in the default character repertoire (PS3.5 6.2)."""
    value = text.encode("ascii", "replace").replace(b"\\", b"/")[:64]
    return value + b" " * (len(value) % 2)


def _text(value: bytes) -> str:
    return value.decode("latin-1").rstrip(" \0")
