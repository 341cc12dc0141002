"""Reading DICOM files from disk (PS3.10 section 7) without touching their data set."""

import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.series import Instance
from meddaemon.ingest import scan
from meddaemon.ingest.deflate import inflated
from meddaemon.ingest.header import read_header
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.statuses import CANNOT_UNDERSTAND
from meddaemon.telemetry import log

_PREFIX_AT = 128
_META_AT = 132
_META_GROUP = b"\x02\x00"
_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x0002, 0x0003, 0x0010
_LONGEST_META = 2**16
_PROGRAMS = {b"MZ": "PE program", b"\x7fELF": "ELF program", b"#!": "script", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
_log = log(__name__)


def read_part10(path: Path, *, calling_ae_title: str = "") -> Incoming:
    """Return the object that a DICOM file holds, see `parse_part10`. Raises OSError when it cannot be read."""
    return parse_part10(path.read_bytes(), calling_ae_title=calling_ae_title)


def parse_part10(content: scan.Encoded, *, calling_ae_title: str = "", called_ae_title: str = "") -> Incoming:
    """Return the object that the bytes of a file hold, its data set bit for bit; the preamble is not kept.

    It is named by its data set: the file meta group, which editing tools forget to change, names it only where the
    data set cannot be read. A bare data set without preamble and file meta, as old software writes it, is taken when
    it is well-formed in one of the two little endian syntaxes.

    Raises RefusedInstance when they are nothing of this kind.
    """
    if content[_PREFIX_AT:_META_AT] != b"DICM":
        return _bare(content, calling_ae_title)
    meta, data = _parts(content)
    if not meta.get(_TRANSFER_SYNTAX_UID):
        raise RefusedInstance(CANNOT_UNDERSTAND, "the file meta group has no Transfer Syntax UID")
    header = _header(data, meta[_TRANSFER_SYNTAX_UID])
    sop_class_uid = "\\".join(header.get("SOPClassUID", ())) or meta.get(_SOP_CLASS_UID)
    sop_instance_uid = "\\".join(header.get("SOPInstanceUID", ())) or meta.get(_SOP_INSTANCE_UID)
    if not sop_class_uid or not sop_instance_uid:
        raise RefusedInstance(CANNOT_UNDERSTAND, "neither file meta group nor data set name the object")
    if kind := _kind_of_preamble(bytes(content[:_PREFIX_AT])):
        _log.warning("a preamble is not kept", holds=kind, sop_instance_uid=sop_instance_uid)
    return Incoming(
        data=data,
        transfer_syntax_uid=meta[_TRANSFER_SYNTAX_UID],
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        calling_ae_title=calling_ae_title,
        called_ae_title=called_ae_title,
    )


def parse_ours(content: scan.Encoded, *, calling_ae_title: str, called_ae_title: str) -> Incoming:
    """Return the object that a file holds whose file meta group is ours (see `store`), which is what names it here.

    Raises RefusedInstance when it is no such file.
    """
    meta, data = _parts(content)
    return Incoming(
        data=data,
        transfer_syntax_uid=meta.get(_TRANSFER_SYNTAX_UID, ""),
        sop_class_uid=meta.get(_SOP_CLASS_UID, ""),
        sop_instance_uid=meta.get(_SOP_INSTANCE_UID, ""),
        calling_ae_title=calling_ae_title,
        called_ae_title=called_ae_title,
    )


def header_of(content: scan.Encoded) -> Mapping[str, tuple[str, ...]]:
    """Return the describing attributes of one of our own files, see `read_header`.

    Raises RefusedInstance when it is none, scan.Malformed when it is not whole.
    """
    ours = parse_ours(memoryview(content), calling_ae_title="", called_ae_title="")
    with inflated(ours.data, ours.transfer_syntax_uid) as whole:
        return read_header(whole, ours.transfer_syntax_uid)


def _kind_of_preamble(preamble: bytes) -> str:
    """Return what a preamble is the beginning of: a program can hide there (CVE-2019-11687). Empty where it is zero."""
    if not any(preamble):
        return ""
    return next((kind for start, kind in _PROGRAMS.items() if preamble.startswith(start)), "something else")


def is_plain(path: Path, incoming: Incoming) -> bool:
    """Return whether the file is in Part 10 format and its file meta group names the object as its data set does."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_META)
    try:
        meta, _ = _parts(start)
    except RefusedInstance:
        return False
    return start[_PREFIX_AT:_META_AT] == b"DICM" and meta == {
        _SOP_CLASS_UID: incoming.sop_class_uid,
        _SOP_INSTANCE_UID: incoming.sop_instance_uid,
        _TRANSFER_SYNTAX_UID: incoming.transfer_syntax_uid,
    }


def _header(data: scan.Encoded, transfer_syntax_uid: str) -> Mapping[str, tuple[str, ...]]:
    try:
        with inflated(data, transfer_syntax_uid) as whole:
            return read_header(whole, transfer_syntax_uid)
    except scan.Malformed:
        return {}  # the receiver refuses it, and says why


def _parts(content: scan.Encoded) -> tuple[dict[int, str], scan.Encoded]:
    try:
        meta, end = _file_meta(content)
    except struct.error as cut:
        raise RefusedInstance(CANNOT_UNDERSTAND, "the file meta group is cut") from cut
    return meta, content[end:]


def _file_meta(content: scan.Encoded) -> tuple[dict[int, str], int]:
    """Return the UIDs of the file meta group by element number, and where the data set begins.

    The group is in explicit VR little endian always (PS3.10 7.1). It ends where another group begins: its group
    length is wrong in too many files to be believed.
    """
    uids: dict[int, str] = {}
    position = _META_AT
    while content[position : position + 2] == _META_GROUP:
        element, vr = struct.unpack_from("<H2s", content, position + 2)
        form, start = ("<H", position + 8) if vr in scan.SHORT_LENGTH else ("<I", position + 12)
        (length,) = struct.unpack_from(form, content, start - struct.calcsize(form))
        position = start + length
        if position > len(content):
            raise RefusedInstance(CANNOT_UNDERSTAND, "the file meta group is cut")
        if element in {_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID}:
            uids[element] = bytes(content[start : start + min(length, 256)]).decode("iso8859").strip(" \0")
    return uids, position


def _bare(content: scan.Encoded, calling_ae_title: str) -> Incoming:
    vr = bytes(content[4:6])
    explicit = vr.isalpha() and vr.isupper()
    syntax = str(ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian)
    if content[:2] != b"\x08\x00":
        raise RefusedInstance(CANNOT_UNDERSTAND, "not a DICOM file: neither the DICM prefix nor a bare data set")
    try:
        header = read_header(content, syntax)
    except scan.Malformed as malformed:
        raise RefusedInstance(CANNOT_UNDERSTAND, f"no DICM prefix, and no whole data set: {malformed}") from malformed
    if not header["SOPClassUID"] or not header["SOPInstanceUID"]:
        raise RefusedInstance(CANNOT_UNDERSTAND, "a bare data set without SOP Class or SOP Instance UID")
    return Incoming(
        data=content,
        transfer_syntax_uid=syntax,
        sop_class_uid=header["SOPClassUID"][0],
        sop_instance_uid=header["SOPInstanceUID"][0],
        calling_ae_title=calling_ae_title,
    )


def with_keywords(instance: Instance, keywords: Collection[str]) -> Instance:
    """Return the instance with these attributes known, reading its file again where one was never looked for.

    That happens when a rule asks for an attribute that no rule asked for when the instance arrived. Where the file is
    gone or damaged the attribute stays absent; a job that wants the instance is refused for that by name.
    """
    unknown = [keyword for keyword in keywords if keyword not in instance.header]
    if not unknown:
        return instance
    try:
        incoming = read_part10(instance.path)
        with inflated(incoming.data, incoming.transfer_syntax_uid) as whole:
            read = read_header(whole, incoming.transfer_syntax_uid, unknown)
    except (OSError, RefusedInstance, scan.Malformed):
        return instance
    return replace(instance, header={**instance.header, **{keyword: read[keyword] for keyword in unknown}})
