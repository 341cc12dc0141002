"""Data sets that travel deflated as a whole (PS3.5 A.5): inflated to a file, whatever they claim to be."""

import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import BinaryIO

from pydicom.uid import DeflatedExplicitVRLittleEndian, JPIPHTJ2KReferencedDeflate

from meddaemon.ingest.scan import Encoded, Malformed, mapped

MAXIMUM_INFLATED_BYTES = 2**29
"""Deflate shrinks up to 1032 times: a megabyte that a peer sends could otherwise cost a gigabyte."""

_PIECE = 2**16
_JPIP_REFERENCED_DEFLATE = "1.2.840.10008.1.2.4.95"
_DEFLATED = frozenset({DeflatedExplicitVRLittleEndian, _JPIP_REFERENCED_DEFLATE, JPIPHTJ2KReferencedDeflate})
"""Syntaxes that deflate the data set as a whole (PS3.5 A.5, A.7, A.13)."""
_one_at_a_time = Lock()


@contextmanager
def inflated(
    data: Encoded, transfer_syntax_uid: str, *, folder: Path | None = None, limit: int = MAXIMUM_INFLATED_BYTES
) -> Iterator[Encoded]:
    """Give the data set as it is where its syntax does not deflate it, else inflated in a file without a name.

    Raises Malformed when the stream is corrupt, cut or inflates to more than `limit` bytes; OSError when `folder` has
    no room for it.
    """
    if transfer_syntax_uid not in _DEFLATED:
        yield data
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        # One at a time: what many peers send deflated at once must not fill the disk.
        with _one_at_a_time:
            size = _inflate(data, file, limit)
        if not size:
            raise Malformed("the data set is empty")
        yield mapped(file.fileno())


def _inflate(data: Encoded, into: BinaryIO, limit: int) -> int:
    machine = zlib.decompressobj(-zlib.MAX_WBITS)
    size = position = checksum = 0
    try:
        while not machine.eof:
            given: Encoded = machine.unconsumed_tail
            if not given:
                given = data[position : position + _PIECE]
                position += len(given)
            piece = machine.decompress(given, _PIECE)
            size += len(piece)
            if size > limit:
                raise Malformed(f"the deflated data set is larger than {limit} bytes")
            if not given and not piece and not machine.eof:
                raise Malformed("the deflate stream is cut")
            checksum = zlib.crc32(piece, checksum)
            into.write(piece)
    except zlib.error as error:
        raise Malformed(f"the deflate stream is corrupt: {error}") from error
    into.flush()
    after = machine.unused_data + bytes(data[position : position + 9])
    # Padding, or what gzip writes at its end: some software takes its stream with it.
    if after not in {b"", b"\0"} and after[:8] != struct.pack("<II", checksum, size & 0xFFFFFFFF):
        raise Malformed("other bytes follow after the end of the deflate stream")
    return size
