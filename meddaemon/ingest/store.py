"""The instance store: the only module that touches its files.

Layout, readable by an administrator with `ls`:

    store/
      volume-id       says which volume this is (see `volume`); without it the store takes nothing
      incoming/       being received; swept at start
      journal/        received, durable, and about to become files; see `journal`
      instances/ab/abcd….dcm   one Part 10 file for each content, named by the SHA-256 of the file
      quarantine/     files found under instances/ at recovery that are no objects of ours, or damaged

Names come from content, never from the wire. The data set is kept bit for bit as it was sent, behind a file meta
group of our own (PS3.10 7.1); the preamble is zero.
"""

import hashlib
import os
import re
import secrets
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

from meddaemon.domain.errors import StoreUnavailable
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID
from meddaemon.durable import NewFile, Staging, move, pieces_of, place, store_all, sync_names
from meddaemon.ingest.content import Buffers, Content
from meddaemon.ingest.journal import FOLDER as JOURNALS
from meddaemon.ingest.scan import Encoded
from meddaemon.ingest.spool import Spool
from meddaemon.ingest.volume import Volume, VolumeGone

PREAMBLE = bytes(128) + b"DICM"
VERSION_NAME = "MEDDAEMON"
"""Implementation Version Name in the files: not our version, or a re-send after an upgrade would be another content."""

_PIECE = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object that lies in the store under its final name, synced; its name is, once it was settled."""

    sha256: str
    size: int


class InstanceStore:
    """Durable, content-addressed files under one directory."""

    def __init__(self, directory: Path, *, minimum_free_bytes: int, volume: Volume | None = None) -> None:
        """Open the store on its volume, creating its folders when they are not there.

        A store without a `volume` takes whatever is there for it. Raises StoreUnavailable, OSError.
        """
        self._volume = volume
        self.returned = 0 if volume is None else volume.returned
        _require(volume)
        self.instances = directory / "instances"
        self.quarantine = directory / "quarantine"
        self._minimum_free_bytes = minimum_free_bytes
        for folder in (self.instances, self.quarantine):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.journals = directory / JOURNALS
        self._staging = Staging(directory / "incoming")
        self.buffers = Buffers()

    def put(self, data: Encoded, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> Stored:
        """Store a data set as a Part 10 file, synced; it would survive a power loss once it is settled.

        The same data set always makes the same file. Raises StoreUnavailable, or OSError when the disk fails.
        """
        self.require_room(len(data))
        meta = meta_of(
            sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid, transfer_syntax_uid=transfer_syntax_uid
        )
        digest = hashlib.sha256(meta)
        for piece in pieces_of(data):
            digest.update(piece)
        place(self.path(digest.hexdigest()), [meta, data], self._staging)
        return Stored(sha256=digest.hexdigest(), size=len(meta) + len(data))

    def put_content(self, content: Content) -> Stored:
        """Store what was received, as `put` does. Raises StoreUnavailable, or OSError when the disk fails."""
        self.require_room(content.size)
        if content.staged is None:
            place(self.path(content.sha256), [content.part10], self._staging)
        else:
            move(content.staged, self.path(content.sha256), self._staging)
        return Stored(sha256=content.sha256, size=content.size)

    def put_all(self, files: Iterable[NewFile]) -> dict[str, OSError]:
        """Store Part 10 files that stand in the journal until then, see `store_all`; return what failed, by digest."""
        return {path.stem: failure for path, failure in store_all(files, self._staging).items()}

    def spool(self, *, memory_bytes: int) -> Spool:
        """Return what takes a file piece by piece: up to so many bytes in memory, beyond that in a file of ours.

        That has no name, so it is gone with the process.
        """
        return Spool(self._temporary, self.require_room, memory_bytes=memory_bytes)

    def _temporary(self) -> BufferedRandom:
        return tempfile.TemporaryFile(dir=self._staging.folder)

    def new_content(self, meta: bytes, *, maximum_bytes: int) -> Content:
        """Return what an object with this file meta group (see `meta_of`) is collected in."""
        return Content(meta, buffers=self.buffers, folder=self._staging.folder, maximum_bytes=maximum_bytes)

    @property
    def scratch(self) -> Path:
        """A folder on the store's volume for what this process needs for a moment."""
        return self._staging.folder

    def settle(self, sha256s: Iterable[str]) -> dict[str, OSError]:
        """Make the names of these objects durable; return what went wrong, by digest."""
        failures = sync_names(map(self.path, sha256s), self._staging)
        return {path.stem: failure for path, failure in failures.items()}

    def path(self, sha256: str) -> Path:
        """Return where the object with this digest lies."""
        return self.instances / sha256[:2] / f"{sha256}.dcm"

    def digests(self, prefix: str) -> set[str]:
        """Return the digests that the files under a two-character prefix are named by."""
        try:
            names = [path.name for path in (self.instances / prefix).iterdir()]
        except FileNotFoundError:
            return set()
        stems = (name.removesuffix(".dcm") for name in names if name.endswith(".dcm"))
        return {stem for stem in stems if stem.startswith(prefix) and _DIGEST.fullmatch(stem)}

    def strays(self) -> Iterator[Path]:
        """Yield the files that lie where no object of ours can lie."""
        for folder, _, names in os.walk(self.instances):
            for path in (Path(folder, name) for name in names):
                if not _DIGEST.fullmatch(path.stem) or path != self.path(path.stem):
                    yield path

    def is_intact(self, sha256: str) -> bool:
        """Return whether the file under this name is there and holds what the name says; see `is_intact`."""
        return is_intact(self.path(sha256), sha256)

    def set_aside(self, path: Path) -> bool:
        """Move a file that is no object of ours out of the way, keeping it for the operator.

        Returns False when it has gone already.
        """
        try:
            path.replace(self.quarantine / f"{secrets.token_hex(4)}-{path.name}")
        except FileNotFoundError:
            return False
        return True

    def set_aside_damaged(self, sha256: str) -> bool:
        """Move a damaged file out of the way; False when it is gone or whole.

        A re-send may put a whole file in its place at any moment and be acknowledged: while nobody can, it is read
        once more.
        """
        if self.is_intact(sha256):
            return False
        with self._staging.alone():
            return not self.is_intact(sha256) and self.set_aside(self.path(sha256))

    def sweep_staging(self) -> int:
        """Remove what processes that are no longer alive left half received; return how many files."""
        return self._staging.sweep()

    def close(self) -> None:
        """Remove the staging folder of this process."""
        self._staging.close()

    def require_volume(self) -> None:
        """Raise StoreUnavailable unless the store lies on its volume."""
        if self._volume is None:
            return
        try:
            _require(self._volume)
        except StoreUnavailable:
            # Else what was unmounted stays in use, and cannot be checked or mounted again.
            self._staging.release()
            raise
        if self.returned != self._volume.returned:
            self.returned = self._volume.returned
            self._staging.reopen()

    @property
    def has_room(self) -> bool:
        """Whether the store could take an object now, as far as can be told without one."""
        try:
            self.require_room(0)
        except (StoreUnavailable, OSError):
            return False
        return True

    def require_room(self, size: int) -> None:
        """Raise StoreUnavailable unless the volume is there and has room for so many bytes more."""
        self.require_volume()
        self.require_free(size)

    def require_free(self, size: int) -> None:
        """Raise StoreUnavailable unless there is room for so many bytes more on what is there."""
        filesystem = os.statvfs(self.instances)
        free = filesystem.f_bavail * filesystem.f_frsize
        if free < self._minimum_free_bytes + size:
            raise StoreUnavailable(f"{free} bytes free in the store, {self._minimum_free_bytes} must stay free")


def _require(volume: Volume | None) -> None:
    try:
        if volume is not None:
            volume.require()
    except VolumeGone as gone:
        raise StoreUnavailable(str(gone)) from gone


def is_intact(path: Path, sha256: str, pace: Callable[[int], object] = lambda size: None) -> bool:
    """Return whether a file is there and has this digest, as the disk has it and not the page cache.

    `pace` is told the size of each piece that was read, and may take its time. Raises OSError when the file cannot
    be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := file.read(_PIECE):
                digest.update(piece)
                pace(len(piece))
    except FileNotFoundError:
        return False
    return digest.hexdigest() == sha256


def as_part10(data: Encoded, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return the file that holds this data set: what `meta_of` returns, and the data set bit for bit."""
    meta = meta_of(
        sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid, transfer_syntax_uid=transfer_syntax_uid
    )
    return b"".join((meta, data))


def meta_of(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Return how a file begins: zero preamble, and a file meta group of our own (PS3.10 7.1).

    The UIDs must be UIDs; nobody checks them here.
    """
    elements = b"".join(
        (
            # OB has two reserved bytes and a length of four (PS3.5 7.1.2).
            struct.pack("<HH2sxxL", 0x0002, 0x0001, b"OB", 2) + b"\x00\x01",
            _element(0x0002, b"UI", sop_class_uid, b"\0"),
            _element(0x0003, b"UI", sop_instance_uid, b"\0"),
            _element(0x0010, b"UI", transfer_syntax_uid, b"\0"),
            _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID, b"\0"),
            _element(0x0013, b"SH", VERSION_NAME, b" "),
        )
    )
    group_length = struct.pack("<HH2sHL", 0x0002, 0x0000, b"UL", 4, len(elements))
    return b"".join((PREAMBLE, group_length, elements))


def _element(number: int, vr: bytes, value: str, padding: bytes) -> bytes:
    """Return an element of group 0002, Explicit VR Little Endian (PS3.10 7.1)."""
    encoded = value.encode("ascii")
    encoded += padding * (len(encoded) % 2)
    return struct.pack("<HH2sH", 0x0002, number, vr, len(encoded)) + encoded
