"""The instance store: the only module that touches its files.

Layout, readable by an administrator with `ls`:

    store/
      incoming/       being received; swept at start
      instances/ab/cd/abcd….dcm   one Part 10 file for each content, named by the SHA-256 of the file
      quarantine/     files found at recovery that are no DICOM objects of ours

Names come from content, never from the wire. The data set is kept bit for bit as it was sent, behind a file meta
group of our own (PS3.10 7.1); the preamble is zero.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from meddaemon.durable import Staging, write_new

PREAMBLE = bytes(128) + b"DICM"


class StoreUnavailable(MeddaemonError):
    """The store cannot take an object now: full, gone or not the volume it was at start."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object that lies in the store, synced under its final name."""

    sha256: str
    size: int


class InstanceStore:
    """Durable, content-addressed files under one directory."""

    def __init__(self, directory: Path, *, minimum_free_bytes: int) -> None:
        """Open the store, creating it when it is not there. Raises OSError."""
        self.instances = directory / "instances"
        self.quarantine = directory / "quarantine"
        self._minimum_free_bytes = minimum_free_bytes
        for folder in (self.instances, self.quarantine):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._device = self.instances.stat().st_dev
        self._staging = Staging(directory / "incoming")

    def put(self, data: bytes, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Stored:
        """Store a data set as a Part 10 file and return once it would survive a power loss.

        The same data set always makes the same file. Raises StoreUnavailable, or OSError when the disk fails.
        """
        self._require_room(len(data))
        content = as_part10(
            data,
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
        )
        sha256 = hashlib.sha256(content).hexdigest()
        write_new(self.path(sha256), content, self._staging)
        return Stored(sha256=sha256, size=len(content))

    def path(self, sha256: str) -> Path:
        """Return where the object with this digest lies."""
        return self.instances / sha256[:2] / sha256[2:4] / f"{sha256}.dcm"

    def prefixes(self) -> Iterator[str]:
        """Yield the two-character prefixes under which objects lie."""
        yield from sorted(entry.name for entry in self.instances.iterdir() if entry.is_dir())

    def digests(self, prefix: str) -> set[str]:
        """Return the digests of the files that lie under a prefix."""
        return {path.stem for path in (self.instances / prefix).glob("??/*.dcm")}

    def set_aside(self, sha256: str) -> None:
        """Move a file that is not an object of ours out of the way, keeping it for the operator."""
        self.path(sha256).replace(self.quarantine / f"{sha256}.dcm")

    def sweep_staging(self) -> int:
        """Remove what processes that are no longer alive left half received; return how many files."""
        return self._staging.sweep()

    def close(self) -> None:
        """Remove the staging folder of this process."""
        self._staging.close()

    def _require_room(self, size: int) -> None:
        status = self.instances.stat()
        if status.st_dev != self._device:
            raise StoreUnavailable("the store's volume is not the one that was there at start: is it mounted?")
        filesystem = os.statvfs(self.instances)
        free = filesystem.f_bavail * filesystem.f_frsize
        if free < self._minimum_free_bytes + size:
            raise StoreUnavailable(f"{free} bytes free in the store, {self._minimum_free_bytes} must stay free")


def as_part10(data: bytes, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return the file that holds this data set: zero preamble, file meta of our own, the data set bit for bit."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return PREAMBLE + bytes(buffer.getvalue()) + data
