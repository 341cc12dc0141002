"""The ingest journal: objects are durable once they stand in it, and become files and rows a moment later.

A new file needs the file system's own journal to be written before it survives a power loss, and a row needs the
database's. A record here needs neither: it is written over blocks that are there already, with one direct write that
returns when the disk has it. Afterwards, off the sender's time, the record becomes a Part 10 file and a row (see
`filing`), and its place is used again.

    store/journal/0/        one folder for each listener process, locked as long as the process lives
      lock
      000.segment …         first page: key and what has been filed; then records, each of whole pages

A record is one page of header and then the file that the object will be. The header carries a checksum of the file
and a MAC under the segment's key: what a peer sends cannot be taken for a record, and a record whose write was cut
by a power loss is no record. The checksum is XXH3, seeded with what no peer knows: it has to notice what a disk did
not write, and takes a thirtieth of the time of the SHA-256 that names the file later.
"""

import errno
import hashlib
import hmac
import mmap
import os
import secrets
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedWriter
from itertools import count
from pathlib import Path
from threading import Condition, Thread

import xxhash

from meddaemon.domain.errors import StoreUnavailable
from meddaemon.durable import try_lock
from meddaemon.ingest.content import PAGE, Content
from meddaemon.telemetry import log

SEGMENT_BYTES = 2**25
WAIT_SECONDS = 20.0
"""How long an object waits for room in a full journal; its sender waits with it."""
_MAGIC = b"MEDJRNL2"
_FIRST = struct.Struct("<8s32sQQ")
_RECORD = struct.Struct("<8sQQQ16s64s64s64s")
_MAC_BYTES = 16
_TRY_AGAIN_SECONDS = 30.0
_log = log(__name__)


class Damaged(Exception):
    """A record is not what was written: the write was cut by a power loss, or the disk has lost it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One object that is to be written: its content, its SOP Instance UID, and between which AEs it travelled."""

    content: Content
    sop_instance_uid: str
    calling_ae_title: str
    called_ae_title: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """One object that stands in the journal: `size` bytes of a file, from `offset` in a segment."""

    segment: "_Segment" = field(repr=False)
    generation: int
    offset: int
    size: int
    checksum: bytes
    sop_instance_uid: str
    calling_ae_title: str
    called_ae_title: str

    @property
    def length(self) -> int:
        """Bytes of the record, its first page included."""
        return _pages(PAGE + self.size)

    def read_into(self, memory: memoryview) -> memoryview:
        """Read the record again into page-aligned memory, and return where the file lies in it.

        Raises OSError, Damaged.
        """
        self.segment.read_into(memory[: self.length], self.offset)
        file = memory[PAGE : PAGE + self.size]
        if self.segment.checksum(file) != self.checksum:
            raise Damaged("a record of the ingest journal is not what was written")
        return file

    def read(self) -> bytes:
        """Return the file. Raises OSError, Damaged."""
        return bytes(self.read_into(memoryview(mmap.mmap(-1, self.length))))

    @property
    def is_whole(self) -> bool:
        """Whether all of it is there. Raises OSError."""
        try:
            self.read()
        except Damaged:
            return False
        return True


class _Segment:
    """One file of the journal, written from its second page on; filled, filed, and then filled again."""

    def __init__(self, path: Path) -> None:
        """Open a segment. Raises OSError, or ValueError when it is none."""
        self.path = path
        self._file = _open_direct(path)
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            first = file.read(_FIRST.size)
        if len(first) < _FIRST.size or not first.startswith(_MAGIC):
            self.close()
            raise ValueError(f"{path} is no segment of a journal")
        _, self._key, self.generation, _ = _FIRST.unpack(first)
        self._seed = int.from_bytes(hashlib.blake2s(b"seed", key=self._key, digest_size=8).digest())
        self._noting = path.open("r+b", buffering=0)
        self.used = PAGE
        self.unfiled: set[int] = set()
        """Where the records of this generation begin that have been promised and not filed."""

    @classmethod
    def made(cls, path: Path, size: int) -> "_Segment":
        """Make a segment, all its blocks written once. Raises OSError."""
        temporary = path.with_suffix(".new")
        with temporary.open("wb", buffering=0) as file:
            piece = bytes(2**20)
            for _ in range(size // len(piece)):
                file.write(piece)
            os.pwrite(file.fileno(), _FIRST.pack(_MAGIC, secrets.token_bytes(32), 0, PAGE), 0)
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return cls(path)

    def checksum(self, file: memoryview) -> bytes:
        """Return what a record of this segment says of the file that it holds."""
        return xxhash.xxh3_128_digest(file, seed=self._seed)

    def header(self, entry: Entry, offset: int, checksum: bytes) -> bytes:
        """Return the header of a record that begins at `offset`."""
        plain = _RECORD.pack(
            _MAGIC,
            self.generation,
            offset,
            entry.content.size,
            checksum,
            entry.sop_instance_uid.encode(errors="replace")[:64],
            entry.calling_ae_title.encode(errors="replace")[:64],
            entry.called_ae_title.encode(errors="replace")[:64],
        )
        return plain + self._mac(plain)

    def write(self, pieces: Sequence[memoryview], offset: int) -> None:
        """Write whole pages, and return when the disk has them. Raises OSError."""
        wanted = sum(map(len, pieces))
        if os.pwritev(self._file, pieces, offset) != wanted:
            raise OSError("a write to the ingest journal was cut short")

    def read_into(self, view: memoryview, offset: int) -> None:
        """Read whole pages. Raises OSError."""
        if os.preadv(self._file, [view], offset) != len(view):
            raise OSError("the ingest journal is cut")

    def begin(self, generation: int) -> None:
        """Be written anew, from the beginning. Raises OSError."""
        self.generation, self.used = generation, PAGE
        # Synced, because a segment that is noted as filed is not looked through.
        self._note(PAGE)
        os.fdatasync(self._noting.fileno())

    @property
    def was_written(self) -> bool:
        """Whether anything was written since it was opened."""
        return self.used > PAGE

    def note_filed(self) -> None:
        """Note how far all has been filed. Not synced: filing something again would change nothing."""
        self._note(min(self.unfiled, default=self.used))

    def note_all_filed(self) -> None:
        """Note that whatever stands here has been filed."""
        self._note(self.size)

    def _note(self, filed_to: int) -> None:
        self._noting.seek(0)
        self._noting.write(_FIRST.pack(_MAGIC, self._key, self.generation, filed_to))

    def headers(self) -> list[Record]:
        """Return the records that were written and not noted as filed, in order, whole or not."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            _, _, noted, filed_to = _FIRST.unpack_from(mapped)
            if filed_to >= self.size:
                return []
            found = list(self._headers(mapped))
        latest = max((each.generation for each in found), default=0)
        first = filed_to if latest == noted else PAGE
        return [each for each in found if each.generation == latest >= noted and each.offset >= first]

    def records(self) -> list[Record]:
        """Return the records that were written and not noted as filed, in order; what is not whole is passed over."""
        left = self.headers()
        self.generation = max([self.generation, *(each.generation for each in left)])
        return [each for each in left if each.is_whole]

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
        self._noting.close()

    def _headers(self, mapped: mmap.mmap) -> Iterator[Record]:
        # Page by page, not record by record: behind one that was cut, others may be whole.
        for offset in range(PAGE, len(mapped) - PAGE + 1, PAGE):
            if mapped[offset : offset + len(_MAGIC)] != _MAGIC:
                continue
            plain = mapped[offset : offset + _RECORD.size]
            mac = mapped[offset + _RECORD.size : offset + _RECORD.size + _MAC_BYTES]
            _, generation, place, size, checksum, uid, calling, called = _RECORD.unpack(plain)
            if hmac.compare_digest(mac, self._mac(plain)) and place == offset and offset + PAGE + size <= len(mapped):
                yield Record(
                    generation=generation,
                    segment=self,
                    offset=offset,
                    size=size,
                    checksum=checksum,
                    sop_instance_uid=uid.rstrip(b"\0").decode(errors="replace"),
                    calling_ae_title=calling.rstrip(b"\0").decode(errors="replace"),
                    called_ae_title=called.rstrip(b"\0").decode(errors="replace"),
                )

    def _mac(self, plain: bytes) -> bytes:
        return hashlib.blake2s(plain, key=self._key, digest_size=_MAC_BYTES).digest()


class Journal:
    """The journal of one process; threads may append at the same time."""

    def __init__(self, folder: Path, lock: BufferedWriter, *, size: int, require_room: Callable[[int], object]) -> None:
        """Open what lies in a folder that `lock` keeps from others; see `own` and `abandoned`. Raises OSError."""
        self._folder = folder
        self._lock = lock
        self._wanted = size // SEGMENT_BYTES
        self._require_room = require_room
        self._segments = [_Segment(path) for path in sorted(folder.glob("*.segment"))]
        self._changed = Condition()
        self._free = deque(self._segments)
        self._current: _Segment | None = None
        self._generation = 0
        self._closing = False
        self._maker: Thread | None = None
        self._make_after = 0.0

    @classmethod
    def own(cls, parent: Path, *, size: int, require_room: Callable[[int], object]) -> "Journal":
        """Return the first journal under `parent` that no process has and all of which has been filed, maybe a new one.

        It grows to `size` bytes in a thread of its own, as long as `require_room` does not raise. Raises OSError.
        """
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in count():
            folder = parent / str(number)
            folder.mkdir(exist_ok=True, mode=0o700)
            lock = try_lock(folder / "lock")
            if lock is None:
                continue
            journal = cls(folder, lock, size=size, require_room=require_room)
            if not journal.left_behind():
                journal.grow()
                return journal
            journal.close()  # what stands there waits for the next start, see `filing.file_abandoned`
        raise AssertionError("unreachable")

    @classmethod
    def abandoned(cls, parent: Path) -> "Iterator[Journal]":
        """Yield the journals under `parent` that no process has, each to be closed by the caller."""
        for folder in sorted(parent.glob("*/")) if parent.is_dir() else ():
            lock = try_lock(folder / "lock")
            if lock is not None:
                yield cls(folder, lock, size=0, require_room=lambda size: None)

    def left_behind(self) -> list[Record]:
        """Return what stands here and was never noted as filed; asked before anything is written."""
        records = [record for segment in self._segments for record in segment.records()]
        self._generation = max((segment.generation for segment in self._segments), default=0)
        return records

    def note_filed(self) -> None:
        """Note that all that was left behind has been filed."""
        for segment in self._segments:
            segment.note_all_filed()

    @property
    def is_ready(self) -> bool:
        """Whether there is a segment to write to; at first, making one takes a moment."""
        return bool(self._segments)

    @property
    def is_nearly_full(self) -> bool:
        """Whether it is time to file."""
        return 4 * len(self._free) <= len(self._segments)

    def grow(self) -> None:
        """Begin to make what segments there should be and are not."""
        with self._changed:
            self._make_more()

    def append(self, entries: Sequence[Entry]) -> list[Record]:
        """Write objects that are in memory; on return they survive a power loss, and wait to be `filed`.

        Raises StoreUnavailable when there is no room for too long, OSError when the disk fails.
        """
        lengths = [_pages(PAGE + entry.content.size) for entry in entries]
        segment, offset = self._reserve(lengths)
        pieces: list[memoryview] = []
        records: list[Record] = []
        for entry, length in zip(entries, lengths, strict=True):
            checksum = segment.checksum(entry.content.part10)
            pieces.append(entry.content.with_first_page(segment.header(entry, offset, checksum), length))
            records.append(
                Record(
                    segment=segment,
                    generation=segment.generation,
                    offset=offset,
                    size=entry.content.size,
                    checksum=checksum,
                    sop_instance_uid=entry.sop_instance_uid,
                    calling_ae_title=entry.calling_ae_title,
                    called_ae_title=entry.called_ae_title,
                )
            )
            offset += length
        try:
            segment.write(pieces, records[0].offset)
        except OSError:
            # Nobody was told that it is here. Should the disk have it after all, it is filed after a restart.
            self.filed(records)
            raise
        return records

    def filed(self, records: Sequence[Record]) -> None:
        """Give back the places of records that have become files and rows, or that nobody was told of."""
        with self._changed:
            for record in records:
                record.segment.unfiled.remove(record.offset)
            for segment in {record.segment for record in records}:
                if segment.unfiled or segment is self._current:
                    segment.note_filed()
                else:
                    self._give_back(segment)

    def close(self) -> None:
        """Let another process have the journal."""
        with self._changed:
            self._closing = True
            maker = self._maker
        if maker is not None:
            maker.join()
        for segment in self._segments:
            if segment.was_written and not segment.unfiled:
                segment.note_all_filed()
            segment.close()
        self._lock.close()

    def _reserve(self, lengths: Sequence[int]) -> tuple[_Segment, int]:
        """Return where records of these lengths may be written, one behind the other; they are to be filed."""
        length = sum(lengths)
        deadline = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while self._current is None or self._current.used + length > self._current.size:
                full, self._current = self._current, None
                if full is not None and not full.unfiled:
                    self._give_back(full)
                if not self._free:
                    self._make_more()
                    if not self._changed.wait(deadline - time.monotonic()):
                        raise StoreUnavailable("the ingest journal is full: is the store or the database too slow?")
                if self._current is None and self._free:
                    self._generation += 1
                    self._free[0].begin(self._generation)
                    self._current = self._free.popleft()
            segment, offset = self._current, self._current.used
            for each in lengths:
                segment.unfiled.add(segment.used)
                segment.used += each
            return segment, offset

    def _give_back(self, segment: _Segment) -> None:
        segment.note_all_filed()
        self._free.append(segment)
        self._changed.notify_all()

    def _make_more(self) -> None:
        """Have more segments made, unless there are all, somebody is at it, or it failed a moment ago."""
        if (
            len(self._segments) < self._wanted
            and self._maker is None
            and not self._closing
            and time.monotonic() >= self._make_after
        ):
            self._maker = Thread(target=self._make, name="journal", daemon=True)
            self._maker.start()

    def _make(self) -> None:
        number = len(self._segments)
        try:
            self._require_room(SEGMENT_BYTES)
            made = _Segment.made(self._folder / f"{number:03}.segment", SEGMENT_BYTES)
        except (OSError, StoreUnavailable) as failure:
            _log.error("cannot make room in the ingest journal", reason=str(failure))
            made = None
        with self._changed:
            self._maker = None
            if made is None:
                self._make_after = time.monotonic() + _TRY_AGAIN_SECONDS
                return
            self._segments.append(made)
            self._free.append(made)
            self._changed.notify_all()
            self._make_more()


FOLDER = "journal"
"""Where the journals lie in the store."""


def waiting(parent: Path) -> list[str]:
    """Return the SOP Instance UIDs of what stands in the journals under `parent` and has not been filed.

    Journals that are being written to and filed are looked at, too: what was filed a moment ago may be named.
    """
    return [uid for folder in sorted(parent.glob("*/")) for uid in waiting_in(folder)]


def waiting_in(folder: Path) -> list[str]:
    """Return the SOP Instance UIDs of what stands in one journal and has not been filed."""
    found: list[str] = []
    for path in sorted(folder.glob("*.segment")):
        segment = _Segment(path)
        found += [record.sop_instance_uid for record in segment.headers()]
        segment.close()
    return found


def _open_direct(path: Path) -> int:
    """Open for writes that go past the page cache and return when the disk has them."""
    try:
        return os.open(path, os.O_RDWR | os.O_DSYNC | os.O_DIRECT)
    except OSError as failure:
        if failure.errno != errno.EINVAL:
            raise
        # A file system without direct writes, such as tmpfs.
        return os.open(path, os.O_RDWR | os.O_DSYNC)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
