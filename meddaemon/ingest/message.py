"""Data sets that travel in messages other than C-STORE: proved whole and bounded before anything decodes them.

Decoded they take hundreds of times the memory that they take encoded, and a peer chooses what it sends.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

from meddaemon.ingest import scan

MAXIMUM_BYTES = 2**24
MAXIMUM_ITEMS = 200_000
"""More than 50 000 instances need, in whatever encoding."""
_ITEM = b"\xfe\xff\x00\xe0"
_one_at_a_time = threading.Lock()


class TooLarge(Exception):
    """What a peer says is more than anybody has to say."""


@contextmanager
def readable(encoded: BytesIO | None, transfer_syntax_uid: str) -> Iterator[None]:
    """Let the data set of a message be decoded and used within this block, one at a time.

    Little endian and not deflated: no other is accepted for these messages. Raises TooLarge, scan.Malformed.
    """
    data = b"" if encoded is None else encoded.getvalue()
    if len(data) > MAXIMUM_BYTES or data.count(_ITEM) > MAXIMUM_ITEMS:
        raise TooLarge(f"{len(data)} bytes")
    scan.check(data, transfer_syntax_uid)
    with _one_at_a_time:
        yield
