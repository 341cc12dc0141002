"""Reading DICOM files from disk (PS3.10 section 7) without touching their data set."""

import struct
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.series import Instance
from meddaemon.ingest import scan
from meddaemon.ingest.header import read_header
from meddaemon.ingest.receive import CANNOT_UNDERSTAND, Incoming

_PREFIX_AT = 128
_META_AT = 132
_META_GROUP = b"\x02\x00"
_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x0002, 0x0003, 0x0010
_NAMES = {
    _SOP_CLASS_UID: "MediaStorageSOPClassUID",
    _SOP_INSTANCE_UID: "MediaStorageSOPInstanceUID",
    _TRANSFER_SYNTAX_UID: "TransferSyntaxUID",
}


def read_part10(path: Path, *, calling_ae_title: str = "") -> Incoming:
    """Return the object that a DICOM file holds, its data set bit for bit; the preamble is not kept.

    A bare data set without preamble and file meta, as old software writes it, is taken when it is well-formed in
    one of the two little endian syntaxes. Raises RefusedInstance when the file is nothing of this kind, OSError
    when it cannot be read.
    """
    content = path.read_bytes()
    if content[_PREFIX_AT:_META_AT] != b"DICM":
        return _bare(content, calling_ae_title)
    try:
        meta, end = _file_meta(content)
    except struct.error as cut:
        raise RefusedInstance(CANNOT_UNDERSTAND, "the file meta group is cut") from cut
    if lacking := [name for element, name in _NAMES.items() if not meta.get(element)]:
        raise RefusedInstance(CANNOT_UNDERSTAND, f"the file meta group lacks {', '.join(lacking)}")
    return Incoming(
        data=content[end:],
        transfer_syntax_uid=meta[_TRANSFER_SYNTAX_UID],
        sop_class_uid=meta[_SOP_CLASS_UID],
        sop_instance_uid=meta[_SOP_INSTANCE_UID],
        calling_ae_title=calling_ae_title,
    )


def _file_meta(content: bytes) -> tuple[dict[int, str], int]:
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
        if element in _NAMES:
            uids[element] = content[start : start + min(length, 256)].decode("iso8859").strip(" \0")
    return uids, position


def _bare(content: bytes, calling_ae_title: str) -> Incoming:
    explicit = content[4:6].isalpha() and content[4:6].isupper()
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
        deflated = scan.is_deflated(incoming.transfer_syntax_uid)
        data = scan.inflate(incoming.data) if deflated else incoming.data
        read = read_header(data, incoming.transfer_syntax_uid, unknown)
    except (FileNotFoundError, RefusedInstance, scan.Malformed):
        return instance
    return replace(instance, header={**instance.header, **{keyword: read[keyword] for keyword in unknown}})
