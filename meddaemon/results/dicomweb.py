"""The Store Transaction as a user agent (STOW-RS, PS3.18 section 10.5): objects go to a web server as they are stored.

Each object goes in a request of its own, streamed from its file, so that each has an answer of its own and none takes
memory. What the server says of the object decides: there are servers that answer 200 and have stored nothing. No
redirection is followed: it could lead anywhere.
"""

import base64
import errno
import json
import re
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom.uid import UID

from meddaemon.domain.outlet import TransferForm
from meddaemon.results.transcoding import NotTranscoded, as_syntax, syntaxes_for
from meddaemon.results.transport import (
    DUPLICATE_SOP_INSTANCE,
    PROCESSING_FAILURE,
    Answer,
    Outgoing,
    Pace,
    Still,
    Verdict,
    printable,
    verdict_of,
)
from meddaemon.tls import Identity, TlsUnusable, client_context

ANSWER_BYTES = 4 * 2**20
"""More of an answer is not read."""
_PIECE = 2**20
_JSON = "application/dicom+json"
_FAILED, _STORED = "00081198", "00081199"
_SOP_INSTANCE_UID = "00080018"
_UID, _FAILURE_REASON, _WARNING_REASON = "00081155", "00081197", "00081196"
PASSING = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
        HTTPStatus.INSUFFICIENT_STORAGE,
    }
)


@dataclass(frozen=True, kw_only=True)
class Service:
    """A DICOMweb service: `url` is that below which `/studies` lies.

    Of `token` (Bearer), and `user` with `password` (Basic), one may be there: the secret, or the file that holds it,
    read each time, so that one that was exchanged counts. `trusted` says who vouches for the server (default: the
    system's authorities), `identity` who we are by TLS. `transfer_forms` are the transfer syntaxes that it may be
    given, the preferred one first; none: as stored.
    """

    url: str
    token: str | Path = ""
    user: str = ""
    password: str | Path = ""
    trusted: Path | None = None
    identity: Identity | None = None
    transfer_forms: tuple[TransferForm, ...] = ()
    pace: Pace = field(default_factory=Pace)
    connection_timeout_seconds: float = 10.0
    response_timeout_seconds: float = 60.0

    def store(self, objects: Sequence[Outgoing], *, still: Still) -> Iterator[Answer]:
        """Send objects, each in a request over one connection; yield what became of each."""
        for outgoing in objects:
            if still(outgoing):
                yield self._store(outgoing)

    def post(self, content: bytes, media_type: str) -> "Said":
        """Post content to the URL of the service itself. Raises OSError, HTTPException, TlsUnusable."""
        headers = {**self._headers, "Accept": media_type, "Content-Type": media_type}
        with closing(self._connected()) as connection, self._limited(connection.sock, len(content)):
            # A server that refuses without reading to the end has answered all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", urlsplit(self.url).path or "/", content, headers)
            return _said_by(connection.getresponse())

    def get(self, path: str, media_type: str) -> "Said":
        """Get what is below the URL of the service. Raises OSError, HTTPException, TlsUnusable."""
        headers = {**self._headers, "Accept": media_type}
        with closing(self._connected()) as connection, self._limited(connection.sock, 0):
            connection.request("GET", f"{urlsplit(self.url).path.rstrip('/')}{path}", headers=headers)
            return _said_by(connection.getresponse())

    def has(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> bool | str:
        """Return whether the service finds an instance by its UIDs (QIDO-RS), or why it did not say."""
        within = f"/studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        try:
            said = self.get(f"{within}?SOPInstanceUID={sop_instance_uid}", _JSON)
        except (OSError, HTTPException, TlsUnusable) as failure:
            return failed(failure)
        # Nothing matches, or nobody knows the study or the series (PS3.18 10.6.3).
        if said.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND}:
            return False
        body = said.body.strip()
        whole = body.startswith(b"[") and body.endswith(b"]")
        if said.status != HTTPStatus.OK or said.content_type not in {_JSON, "application/json"} or not whole:
            return f"answered HTTP {said.status}" + ("" if whole else " and no list of what it has")
        return any(sop_instance_uid in _values(item, _SOP_INSTANCE_UID) for item in _items(body))

    def _store(self, outgoing: Outgoing) -> Answer:
        def answer(
            verdict: Verdict, reason: str, status: int | None = None, wait: float = 0.0, *, own: bool = False
        ) -> Answer:
            return Answer(outgoing=outgoing, verdict=verdict, status=status, reason=reason, own=own, wait_seconds=wait)

        stored = outgoing.transfer_syntax_uid
        syntaxes = syntaxes_for(stored, self.transfer_forms)
        if not syntaxes:
            verdict = Verdict.ANOTHER_FORM if outgoing.together else Verdict.HOLD
            return answer(verdict, f"no transfer syntax that this destination may be given holds {UID(stored).name}")
        reached = False
        try:
            with as_syntax(outgoing.path, stored, syntaxes[0]) as path, closing(self._connected()) as connection:
                reached = True
                said = self._asked(connection, path)
        except (OSError, HTTPException, TlsUnusable) as failure:
            return answer(Verdict.TRY_AGAIN, failed(failure), own=reached and not isinstance(failure, TooSlow))
        except NotTranscoded as failure:
            return answer(Verdict.HOLD, f"the stored object {failure}")
        verdict, reason, code = judged(said.status, said.content_type, said.body, outgoing.sop_instance_uid)
        wait = pause_of(said.retry_after) if verdict is Verdict.TRY_AGAIN else 0.0
        own = code == PROCESSING_FAILURE or (code is None and said.status == HTTPStatus.INTERNAL_SERVER_ERROR)
        return answer(verdict, reason, code, wait, own=own)

    def _asked(self, connection: HTTPConnection, path: Path) -> "Said":
        boundary = secrets.token_hex(16)
        # The transfer syntax might be told here, too: Orthanc's plugin then takes the part for something else, stores
        # nothing, and answers 200.
        begin = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n"
        end = f"\r\n--{boundary}--\r\n"
        size = path.stat().st_size

        def body() -> Iterator[bytes]:
            yield begin.encode()
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
            yield end.encode()

        headers = {
            **self._headers,
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Content-Length": str(len(begin) + size + len(end)),
        }
        with self._limited(connection.sock, size):
            # A server that refuses without reading to the end has answered all the same.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", self._studies, body(), headers)
            return _said_by(connection.getresponse())

    @contextmanager
    def _limited(self, connection: socket.socket, size: int) -> Iterator[None]:
        """End a connection that takes too long altogether: a time-out of its own counts from each byte on.

        Raises TooSlow then.
        """
        over = threading.Event()
        seconds = 2 * self.response_timeout_seconds + self.pace.seconds(size)

        def end() -> None:
            over.set()
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if over.is_set():
                raise TooSlow(f"no end after {seconds:g} s")

    @property
    def _studies(self) -> str:
        return f"{urlsplit(self.url).path.rstrip('/')}/studies"

    @property
    def _headers(self) -> dict[str, str]:
        """What every request says. Raises OSError where a secret cannot be read."""
        headers = {"Accept": _JSON, "Connection": "close"}
        if self.token:
            headers["Authorization"] = f"Bearer {_secret(self.token, 'ascii')}"
        elif self.user:
            pair = base64.b64encode(f"{self.user}:{_secret(self.password, 'utf-8')}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        return headers

    def _connected(self) -> HTTPConnection:
        """Return a connection that is open. Raises OSError, TlsUnusable."""
        parts = urlsplit(self.url)
        host, seconds = parts.hostname or "", self.connection_timeout_seconds
        connection: HTTPConnection
        if parts.scheme == "https":
            connection = HTTPSConnection(host, parts.port, timeout=seconds, context=self._context())
        else:
            connection = HTTPConnection(host, parts.port, timeout=seconds)
        connection.connect()
        connection.sock.settimeout(self.response_timeout_seconds)
        return connection

    def _context(self) -> ssl.SSLContext:
        return client_context(self.identity, self.trusted, check_name=True)


def _secret(secret: str | Path, encoding: str) -> str:
    """Return a secret that is there, or that a file holds. Raises OSError."""
    if isinstance(secret, str):
        return secret
    text = secret.read_text(encoding, errors="replace").strip()
    if not text or not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        raise OSError(errno.EINVAL, f"holds no secret, which is one line in {encoding}", str(secret))
    return text


class TooSlow(TimeoutError):
    """A connection that was ended from here."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer, as far as it is of interest."""

    status: int
    content_type: str
    retry_after: str
    body: bytes


def _said_by(response: HTTPResponse) -> Said:
    """Return what a server answers. Raises OSError, HTTPException, also where it breaks off in the midst of it."""
    body = response.read(ANSWER_BYTES)
    if response.length and len(body) < ANSWER_BYTES:
        raise IncompleteRead(body, response.length)
    return Said(
        status=response.status,
        content_type=response.headers.get_content_type(),
        retry_after=response.headers.get("Retry-After", ""),
        body=body,
    )


def pause_of(retry_after: str) -> float:
    """Return the seconds that a server asks to be left alone (RFC 9110 10.2.3), 0 where it does not."""
    if retry_after.strip().isdecimal():
        return float(retry_after.strip()[:9])
    try:
        until = parsedate_to_datetime(retry_after).astimezone(UTC)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def judged(status: int, content_type: str, body: bytes, sop_instance_uid: str) -> tuple[Verdict, str, int | None]:
    """Return what an answer means for the object: verdict, reason, and Failure or Warning Reason where one is told.

    PS3.18 Tables 10.5.3-1 and I.2-1.
    """
    told = _told(content_type, body)
    if (reason := _reason(told, _FAILED, sop_instance_uid, _FAILURE_REASON)) is not None:
        verdict, said = verdict_of(reason)
        if verdict is Verdict.TAKEN and reason != DUPLICATE_SOP_INSTANCE:
            # That is no failure: a server that says so of what failed contradicts itself.
            verdict, said = (
                Verdict.TRY_AGAIN,
                f"failed {f'with reason {reason:04X}H' if reason else 'without a reason'}",
            )
        return verdict, said, reason
    if (warning := _reason(told, _STORED, sop_instance_uid, _WARNING_REASON)) is not None:
        return Verdict.TAKEN, f"taken with warning {warning:04X}H" if warning else "", warning
    said = f"answered HTTP {status}"
    if status == HTTPStatus.OK:
        return Verdict.HOLD, f"{said} and does not say that the object is stored: look whether it is there", None
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        said += ": check the credentials of this destination"
    # 202 is that something was not stored as it is (PS3.18 10.5.3): the object, if nothing is said of it.
    passing = status in PASSING or status == HTTPStatus.ACCEPTED
    return Verdict.TRY_AGAIN if passing else Verdict.HOLD, said, None


def _told(content_type: str, body: bytes) -> Mapping[str, Any]:
    """Return the data set of an answer in the DICOM JSON Model; nothing where it is something else."""
    if content_type not in {_JSON, "application/json"}:
        return {}
    return next(iter(_items(body)), {})


def _items(body: bytes) -> list[Mapping[str, Any]]:
    """Return the data sets of an answer in the DICOM JSON Model, whatever else is in it left out."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return [each for each in (found if isinstance(found, list) else [found]) if isinstance(each, dict)]


def _reason(told: Mapping[str, Any], sequence: str, uid: str, attribute: str) -> int | None:
    """Return the reason given for an object in a sequence, 0 for none; None where it is not in it."""
    items = _values(told, sequence)
    for item in items:
        if isinstance(item, dict) and uid in _values(item, _UID):
            reasons = [each for each in _values(item, attribute) if isinstance(each, int)]
            return reasons[0] & 0xFFFF if reasons else 0
    return None


def _values(item: Mapping[str, Any], tag: str) -> list[Any]:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def failed(failure: Exception) -> str:
    """Return what went wrong; what a server sent in place of an answer is not repeated."""
    if isinstance(failure, TlsUnusable):
        return str(failure)
    if isinstance(failure, IncompleteRead):
        return "broke off in the midst of its answer"
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {printable(failure.verify_message)}"
    if isinstance(failure, OSError) and failure.filename is not None:
        return f"{failure.filename}: {failure.strerror}"
    return re.sub(r"^\[Errno -?\d+\] ", "", printable(str(failure))) if isinstance(failure, OSError) else "no HTTP"
