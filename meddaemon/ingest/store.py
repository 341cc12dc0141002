"""The instance store: the only module that touches its files.

Layout, readable by an administrator with `ls`:

    store/
      incoming/       being received; swept at start
      instances/ab/cd/abcd….dcm   one Part 10 file for each content, named by the SHA-256 of the file
      quarantine/     files found under instances/ at recovery that are no objects of ours, or damaged

Names come from content, never from the wire. The data set is kept bit for bit as it was sent, behind a file meta
group of our own (PS3.10 7.1); the preamble is zero.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID
from meddaemon.durable import Staging, write_new

PREAMBLE = bytes(128) + b"DICM"
VERSION_NAME = "MEDDAEMON"
"""Implementation Version Name in the files: not our version, or a re-send after an upgrade would be another content."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


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

    def digests(self, prefix: str) -> set[str]:
        """Return the digests that the files under a two-character prefix are named by."""
        return {path.stem for path in (self.instances / prefix).glob("??/*.dcm") if path == self.path(path.stem)}

    def strays(self) -> Iterator[Path]:
        """Yield the files that lie where no object of ours can lie."""
        for folder, _, names in os.walk(self.instances):
            for path in (Path(folder, name) for name in names):
                if not _DIGEST.fullmatch(path.stem) or path != self.path(path.stem):
                    yield path

    def is_intact(self, sha256: str) -> bool:
        """Return whether the file under this name holds what the name says."""
        with self.path(sha256).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256

    def set_aside(self, path: Path) -> None:
        """Move a file that is not an object of ours out of the way, keeping it for the operator."""
        path.replace(self.quarantine / f"{secrets.token_hex(4)}-{path.name}")

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
    meta.ImplementationVersionName = VERSION_NAME
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return PREAMBLE + bytes(buffer.getvalue()) + data
