"""Reading a multipart body as it arrives (RFC 2046 section 5.1), strictly and with bounded memory.

Strictly, because two readers that disagree about where an object ends would store different objects: whatever leaves
room for doubt is malformed. No input and no output here: bytes are fed, events come out.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

MAXIMUM_HEADER_BYTES = 16_384
"""Of one part."""
_MAXIMUM_PADDING = 256
# At most 70 characters by the rules; Orthanc's have 73.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,199}[0-9A-Za-z'()+_,\-./:=?]")
_HEADER = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([^\x00-\x08\x0a-\x1f\x7f]*)")
_UNDECIDED = re.compile(rb"-|[ \t]*\r?")
"""What may follow a delimiter, as far as it has come: the beginning of `--`, or padding before the line ends."""


class Malformed(ValueError):
    """The body is not multipart as its header says it is; the message names no content."""


class TooManyParts(ValueError):
    """The body has more parts than anybody has reason to send at once."""


@dataclass(frozen=True)
class PartBegins:
    """A part begins; the names of its header fields are in lower case."""

    headers: Mapping[str, str]


@dataclass(frozen=True)
class PartData:
    """The next bytes of the part."""

    data: bytes


@dataclass(frozen=True)
class PartEnds:
    """The part was whole: the delimiter that ends it was seen."""


Event = PartBegins | PartData | PartEnds


class _State(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()
    """Behind a delimiter: is it the last one?"""
    HEADERS = auto()
    DATA = auto()
    EPILOGUE = auto()


class MultipartReader:
    """Finds the parts of a body."""

    def __init__(self, boundary: str, *, maximum_parts: int) -> None:
        """Raise Malformed when the boundary is none (RFC 2046 section 5.1.1)."""
        if not _BOUNDARY.fullmatch(boundary):
            raise Malformed("the boundary is not made of the characters that a boundary may have")
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._maximum_parts = maximum_parts
        self._parts = 0
        self._state = _State.PREAMBLE
        # The first delimiter may stand at the very beginning: as if a line had ended there.
        self._buffer = bytearray(b"\r\n")
        self._skip = 0
        self._skipped = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield what these bytes complete. Raises Malformed, TooManyParts."""
        self._buffer += data
        while True:
            before = self._state, len(self._buffer)
            match self._state:
                case _State.PREAMBLE:
                    self._read_preamble()
                case _State.DELIMITER:
                    self._read_delimiter()
                case _State.HEADERS:
                    yield from self._read_headers()
                case _State.DATA:
                    yield from self._read_data()
                case _State.EPILOGUE:
                    self._read_epilogue()
            if (self._state, len(self._buffer)) == before:
                return

    def finish(self) -> None:
        """Raise Malformed unless the last delimiter was seen."""
        if self._state is not _State.EPILOGUE:
            raise Malformed("the body ends before its last boundary")

    def _read_preamble(self) -> None:
        at = self._buffer.find(self._delimiter)
        keep = len(self._buffer) - len(self._delimiter) + 1 if at < 0 else at
        self._skipped += max(keep, 0)
        if self._skipped > MAXIMUM_HEADER_BYTES:
            raise Malformed("the body does not begin with its boundary")
        if at >= 0:
            self._drop(at + len(self._delimiter))
            self._state = _State.DELIMITER
        else:
            self._drop(max(keep, 0))

    def _read_delimiter(self) -> None:
        if self._buffer.startswith(b"--"):
            self._drop(2)
            self._state = _State.EPILOGUE
            return
        at = self._buffer.find(b"\r\n", 0, _MAXIMUM_PADDING + 2)
        if at < 0 and len(self._buffer) <= _MAXIMUM_PADDING and _UNDECIDED.fullmatch(self._buffer):
            return
        if at < 0 or self._buffer[:at].strip(b" \t"):
            raise Malformed("other bytes follow on the line of a boundary")
        self._parts += 1
        if self._parts > self._maximum_parts:
            raise TooManyParts
        # The end of this line stays: a part may have no header fields at all.
        self._drop(at)
        self._state = _State.HEADERS

    def _read_headers(self) -> Iterator[Event]:
        end = self._buffer.find(b"\r\n\r\n", 0, MAXIMUM_HEADER_BYTES)
        if end < 0:
            if len(self._buffer) >= MAXIMUM_HEADER_BYTES:
                raise Malformed(f"a part has more than {MAXIMUM_HEADER_BYTES} bytes of header fields")
            return
        headers = _parsed(bytes(self._buffer[2 : end + 2]).decode("iso8859"))
        # The empty line's end stays: where the part is empty too, it belongs to the delimiter.
        self._drop(end + 2)
        self._skip = 2
        self._state = _State.DATA
        yield PartBegins(headers)

    def _read_data(self) -> Iterator[Event]:
        at = self._buffer.find(self._delimiter)
        found = at >= 0
        end = at if found else len(self._buffer) - len(self._delimiter) + 1
        if end > self._skip:
            data = bytes(memoryview(self._buffer)[self._skip : end])
            self._skip = 0
            self._drop(end)
            at -= end
            yield PartData(data)
        if found:
            self._drop(at + len(self._delimiter))
            self._state = _State.DELIMITER
            yield PartEnds()

    def _read_epilogue(self) -> None:
        if self._buffer.strip(b" \t\r\n"):
            # Perhaps an object that the sender believes it has sent.
            raise Malformed("other bytes follow behind the last boundary")
        self._buffer.clear()

    def _drop(self, count: int) -> None:
        del self._buffer[:count]


def _parsed(block: str) -> Mapping[str, str]:
    """Return the header fields of a part. A field may go on in a line that begins with white space (RFC 5322 2.2.3)."""
    headers: dict[str, str] = {}
    for line in re.sub(r"\r\n(?=[ \t])", "", block).removesuffix("\r\n").split("\r\n"):
        if not line:
            continue
        found = _HEADER.fullmatch(line)
        if found is None:
            raise Malformed("a line among the header fields of a part is no header field")
        name = found[1].lower()
        if name in headers:
            raise Malformed("a header field of a part is there twice")
        headers[name] = found[2].strip(" \t")
    return headers
