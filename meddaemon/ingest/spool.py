"""An object on its way in as a file: in memory while it is small, beyond that in a file on the store's file system."""

import os
from collections.abc import Callable
from contextlib import suppress
from io import BufferedRandom

from meddaemon.ingest.scan import Encoded, mapped

PIECE_BYTES = 2**20
"""How much is written and read at once."""


class Spool:
    """Takes an object piece by piece; bounded memory whatever its size."""

    def __init__(
        self, open_file: Callable[[], BufferedRandom], require_room: Callable[[int], object], *, memory_bytes: int
    ) -> None:
        """`open_file` gives a file that nobody else sees; `require_room` raises when so many bytes find no place."""
        self._open_file = open_file
        self._require_room = require_room
        self._memory_bytes = memory_bytes
        self._buffer = bytearray()
        self._file: BufferedRandom | None = None
        self.size = 0

    def add(self, data: bytes | memoryview) -> bool:
        """Take bytes into memory; return whether it is time to `flush`. Never blocks."""
        self._buffer += data
        self.size += len(data)
        return len(self._buffer) >= (PIECE_BYTES if self._file else self._memory_bytes)

    def flush(self) -> None:
        """Write to the file what is in memory. Raises what `require_room` raises, and OSError."""
        self._require_room(len(self._buffer))
        if self._file is None:
            self._file = self._open_file()
        with memoryview(self._buffer) as view:
            written = 0
            while written < len(view):
                written += os.write(self._file.fileno(), view[written:])
        self._buffer.clear()

    def content(self) -> Encoded:
        """Return everything that was taken. Raises what `flush` raises."""
        if self._file is None:
            return bytes(self._buffer)
        if self._buffer:
            self.flush()
        return mapped(self._file.fileno())

    def close(self) -> None:
        """Forget everything."""
        self._buffer.clear()
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
