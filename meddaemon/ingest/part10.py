"""Reading DICOM files from disk (PS3.10 section 7) without touching their data set."""

import io
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.series import Instance
from meddaemon.ingest import scan
from meddaemon.ingest.header import read_header
from meddaemon.ingest.receive import CANNOT_UNDERSTAND, Incoming

_PREFIX_AT = 128
_META_AT = 132


def read_part10(path: Path, *, calling_ae_title: str = "") -> Incoming:
    """Return the object that a DICOM file holds, its data set bit for bit; the preamble is not kept.

    A bare data set without preamble and file meta, as old software writes it, is taken when it is well-formed in
    one of the two little endian syntaxes. Raises RefusedInstance when the file is nothing of this kind, OSError
    when it cannot be read.
    """
    content = path.read_bytes()
    if content[_PREFIX_AT:_META_AT] != b"DICM":
        return _bare(content, calling_ae_title)
    file = io.BytesIO(content)
    file.seek(_META_AT)
    try:
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        return Incoming(
            data=content[file.tell() :],
            transfer_syntax_uid=str(meta.TransferSyntaxUID),
            sop_class_uid=str(meta.MediaStorageSOPClassUID),
            sop_instance_uid=str(meta.MediaStorageSOPInstanceUID),
            calling_ae_title=calling_ae_title,
        )
    except AttributeError as absent:
        raise RefusedInstance(CANNOT_UNDERSTAND, f"the file meta group lacks {absent.name}") from absent
    except (InvalidDicomError, EOFError, ValueError, NotImplementedError) as broken:
        raise RefusedInstance(CANNOT_UNDERSTAND, "the file meta group cannot be read") from broken


def _bare(content: bytes, calling_ae_title: str) -> Incoming:
    explicit = content[4:6].isalpha() and content[4:6].isupper()
    syntax = str(ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian)
    if content[:2] != b"\x08\x00":
        raise RefusedInstance(CANNOT_UNDERSTAND, "not a DICOM file: neither the DICM prefix nor a bare data set")
    try:
        scan.check(content, syntax)
    except scan.Malformed as malformed:
        raise RefusedInstance(CANNOT_UNDERSTAND, f"no DICM prefix, and no whole data set: {malformed}") from malformed
    header = read_header(content, syntax)
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
    gone the attribute stays absent; a job that wants the instance is refused for that by name.
    """
    unknown = [keyword for keyword in keywords if keyword not in instance.header]
    if not unknown:
        return instance
    try:
        incoming = read_part10(instance.path)
    except FileNotFoundError:
        return instance
    deflated = scan.is_deflated(incoming.transfer_syntax_uid)
    data = scan.inflate(incoming.data) if deflated else incoming.data
    read = read_header(data, incoming.transfer_syntax_uid, unknown)
    return replace(instance, header={**instance.header, **{keyword: read[keyword] for keyword in unknown}})
