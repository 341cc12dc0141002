"""The bytes of one object while they arrive: in page-aligned memory, and beyond a limit in a staged file.

What is collected is the Part 10 file as it will be stored, so that nothing is copied on its way from the socket to
the disk: file meta group first, then the data set as its fragments come.
"""

import hashlib
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.scan import mapped
from meddaemon.ingest.statuses import OUT_OF_RESOURCES
from meddaemon.ingest.turn import TURN

PAGE = 4096
"""Direct writes want their memory, place and length in multiples of this (open(2), O_DIRECT)."""
MEMORY_BYTES = 2**22
"""What an object may take of memory; longer ones go through a staged file."""
FIRST_BYTES = 2**20
"""What an object is given of memory at first, and most never exceed."""
_SLOTS = 16


class Buffers:
    """Page-aligned memory that is used again: fresh memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        arena = mmap.mmap(-1, _SLOTS * FIRST_BYTES)
        with suppress(OSError):  # a kernel without huge pages
            arena.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(arena)
        slots = [view[start : start + FIRST_BYTES] for start in range(0, len(view), FIRST_BYTES)]
        self._lock = Lock()
        self._ours = {id(slot) for slot in slots}
        # The one that was given back last is taken first: it is warm, and those that are not needed are never touched.
        self._idle = slots

    def lend(self, size: int) -> memoryview:
        """Return memory of at least so many bytes, in which anything may stand."""
        if size <= FIRST_BYTES:
            with self._lock:
                if self._idle:
                    return self._idle.pop()
        return memoryview(mmap.mmap(-1, max(size, FIRST_BYTES)))

    def take_back(self, memory: memoryview) -> None:
        """Take back what was lent; nobody may use it any more."""
        if id(memory) in self._ours:
            with self._lock:
                self._idle.append(memory)


class Content:
    """The file that an object will be: its first page is left free, the file begins at the second.

    Bytes are read straight into `room`; `advance` says how many. What cannot be kept is swallowed, and `finish` says
    why.
    """

    def __init__(self, meta: bytes, *, buffers: Buffers, folder: Path, maximum_bytes: int) -> None:
        """Begin with the file meta group `meta`; longer objects are staged in `folder`, and end at a maximum."""
        self._buffers = buffers
        self._folder = folder
        self._maximum_bytes = maximum_bytes
        self._meta_bytes = len(meta)
        self._view = buffers.lend(FIRST_BYTES)
        self._is_closed = False
        self._end = PAGE + len(meta)
        self._view[PAGE : self._end] = meta
        self._hash = hashlib.sha256()
        self._hashed = PAGE
        self._written = 0
        self._file: int | None = None
        self._staged: Path | None = None
        self._problem: RefusedInstance | None = None

    @property
    def size(self) -> int:
        """Length of the file so far."""
        return self._written + self._end - PAGE

    @property
    def sha256(self) -> str:
        """Digest of the file, of which nothing more may come."""
        self._hash_rest()
        return self._hash.hexdigest()

    @property
    def staged(self) -> Path | None:
        """The file that holds all of it, synced, once `finish` was called; None where it is in memory."""
        return self._staged

    @property
    def part10(self) -> memoryview:
        """The file, where it is in memory."""
        return self._view[PAGE : self._end]

    def with_first_page(self, header: bytes, length: int) -> memoryview:
        """Return the first `length` bytes of the memory, of which the page before the file begins with `header`."""
        self._view[: len(header)] = header
        return self._view[:length]

    def room(self, wanted: int) -> memoryview:
        """Return where the next bytes go, at most `wanted` and at least one."""
        if self._end == len(self._view):
            self._grow()
        return self._view[self._end : self._end + wanted]

    def advance(self, count: int) -> None:
        """Take so many bytes that were written to `room`."""
        self._end += count

    def write(self, data: bytes | memoryview) -> None:
        """Take these bytes."""
        rest = memoryview(data)
        while rest:
            room = self.room(len(rest))
            room[:] = rest[: len(room)]
            self.advance(len(room))
            rest = rest[len(room) :]

    def finish(self) -> None:
        """Make the staged file whole and synced, where there is one. Raises RefusedInstance when all was not kept."""
        if self._file is not None and self._problem is None:
            self._spill()
            try:
                os.fsync(self._file)
            except OSError as failure:
                self._fail(f"cannot store now: {failure.strerror}")
        if self._problem is not None:
            raise self._problem

    @contextmanager
    def data_set(self) -> Iterator[memoryview]:
        """Give the encoded data set, without copying it to memory where it is long."""
        if self._staged is None:
            yield self._view[PAGE + self._meta_bytes : self._end]
            return
        with self._staged.open("rb") as file:
            yield mapped(file.fileno())[self._meta_bytes :]

    def close(self) -> None:
        """Give memory and file back; what was stored stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._staged is not None:
            self._staged.unlink(missing_ok=True)
            self._staged = None
        if not self._is_closed:
            self._is_closed = True
            self._buffers.take_back(self._view)

    def _grow(self) -> None:
        if len(self._view) >= MEMORY_BYTES:
            self._spill()
            return
        larger = self._buffers.lend(2 * len(self._view))
        larger[: self._end] = self._view[: self._end]
        self._buffers.take_back(self._view)
        self._view = larger

    def _spill(self) -> None:
        """Move what is in memory to the staged file, or nowhere when that is not possible."""
        self._hash_rest()
        rest = self._view[PAGE : self._end]
        if self._problem is None and self._written + len(rest) > self._maximum_bytes:
            self._fail(f"the object is longer than the {self._maximum_bytes} bytes that one may have here")
        if self._problem is None:
            try:
                if self._file is None:
                    self._staged = self._folder / secrets.token_hex(16)
                    self._file = os.open(self._staged, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                with TURN.given_up():
                    while rest:
                        rest = rest[os.write(self._file, rest) :]
            except OSError as failure:
                self._fail(f"cannot store now: {failure.strerror}")
        self._written += self._end - PAGE
        self._end = self._hashed = PAGE

    def _hash_rest(self) -> None:
        """Bring the digest up to what has come; in large pieces, because each costs a change of threads."""
        if self._hashed < self._end:
            self._hash.update(self._view[self._hashed : self._end])
            self._hashed = self._end

    def _fail(self, reason: str) -> None:
        """Keep nothing from now on; the sender gets his answer when he has sent it all."""
        self._problem = RefusedInstance(OUT_OF_RESOURCES, reason)
