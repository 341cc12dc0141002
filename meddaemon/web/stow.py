"""The Store Transaction of DICOMweb (STOW-RS, PS3.18 section 10.5), with the same guarantees as C-STORE.

Each part of the body is one object, and goes through the same `Receiver` as everything else: what the answer calls
stored survives a power loss. Objects are taken as they arrive. Where a body turns out to be cut or malformed, those
that came before stay: nobody was told of them, and sending them again changes nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive

from meddaemon.domain.errors import RefusedInstance, StoreUnavailable
from meddaemon.ingest.part10 import parse_part10
from meddaemon.ingest.receive import Incoming, Receiver, cannot_store, is_uid
from meddaemon.ingest.spool import Spool
from meddaemon.ingest.statuses import CANNOT_UNDERSTAND
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log
from meddaemon.web.authentication import sender_of
from meddaemon.web.media_types import parse_media_type, preferred
from meddaemon.web.multipart import Malformed, MultipartReader, PartBegins, PartData, PartEnds, TooManyParts
from meddaemon.web.refusals import refusal
from meddaemon.web.settings import StowSettings
from meddaemon.web.store_response import OFFERED, Outcome, status_of, written

PROCESSING_FAILURE = 0x0110
"""PS3.18 Table I.2-2, PS3.7 C.5.13: a failure of ours that no other status describes."""
MAXIMUM_PARTS = 10_000
"""Of one request: a study of more instances is sent in several."""
SLOWEST_BYTES_PER_SECOND = 4096
"""What a sender must keep up, but for pauses: less holds a place for hours and is no way to send images."""
RETRY_AFTER_SECONDS = 30
DICOM = "application/dicom"
_THREADS = 8
_TOGETHER = 4
"""Objects of one request that are made durable at the same time, so that they share commits."""
_MEMORY_BYTES = 2**20
"""Of one object that is kept in memory."""
_log = log(__name__)


class StoreTransaction:
    """Serves Store Transactions."""

    def __init__(self, receiver: Receiver, store: InstanceStore, settings: StowSettings) -> None:
        """Objects are gathered on the file system of `store` and given to `receiver`."""
        self._receiver = receiver
        self._store = store
        self._settings = settings
        self._uploads = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="stow")

    @property
    def routes(self) -> list[BaseRoute]:
        """The resources of the transaction (PS3.18 Table 10.5.1-1)."""
        return [
            Route("/dicom-web/studies", self._serve, methods=["POST"]),
            Route("/dicom-web/studies/{study}", self._serve, methods=["POST"]),
        ]

    def close(self) -> None:
        """Wait for what is being stored."""
        self._threads.shutdown()

    async def _serve(self, request: Request) -> Response:
        media_type = preferred(request.query_params.get("accept") or request.headers.get("accept", ""), OFFERED)
        if media_type is None:
            raise refusal(HTTPStatus.NOT_ACCEPTABLE, f"the answer can be {', '.join(OFFERED)}")
        study = request.path_params.get("study", "")
        if study and not is_uid(study):
            raise refusal(HTTPStatus.BAD_REQUEST, "the study in the path is not a UID")
        reader = _reader(request)
        if int(request.headers.get("content-length", 0)) > self._settings.maximum_request_bytes:
            raise _too_large(self._settings.maximum_request_bytes, "request")
        if self._uploads >= self._settings.maximum_uploads:
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many requests are being served",
                {"Retry-After": str(RETRY_AFTER_SECONDS)},
            )
        self._uploads += 1
        try:
            outcomes = await self._store_all(request, reader, study)
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # that nobody reads
        finally:
            self._uploads -= 1
        status = status_of(outcomes)
        headers = {"X-Content-Type-Options": "nosniff"}
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
        return Response(written(outcomes, media_type), status, headers, media_type)

    async def _store_all(self, request: Request, reader: MultipartReader, study: str) -> list[Outcome]:
        named = Incoming(
            data=b"",
            transfer_syntax_uid="",
            sop_class_uid="",
            sop_instance_uid="",
            study_instance_uid=study,
            calling_ae_title=sender_of(request),
            called_ae_title=self._settings.called_ae_title,
        )
        upload = _Upload(self._receiver, self._store, self._threads, self._settings, named)
        outcomes: list[Outcome] = []
        try:
            async for chunk in _chunks(request.receive, self._settings.idle_seconds):
                await upload.take(reader, chunk)
            reader.finish()
        except Malformed as malformed:
            raise refusal(HTTPStatus.BAD_REQUEST, f"malformed multipart body: {malformed}") from malformed
        except TooManyParts as many:
            reason = f"more than {MAXIMUM_PARTS} instances in one request"
            raise refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason) from many
        finally:
            outcomes += await upload.finish()
            failed = sum(each.failure_reason is not None for each in outcomes)
            sender = named.calling_ae_title
            _log.info("received by STOW-RS", sender=sender, stored=len(outcomes) - failed, failed=failed)
        if not outcomes:
            raise refusal(HTTPStatus.BAD_REQUEST, "the body holds no instance")
        return outcomes


@dataclass
class _Part:
    """One part as it comes. `trouble` is why it will not be stored; then the rest is read and forgotten."""

    headers: Mapping[str, str]
    spool: Spool
    trouble: RefusedInstance | None
    size: int = 0


class _Upload:
    """The parts of one request."""

    def __init__(
        self,
        receiver: Receiver,
        store: InstanceStore,
        threads: ThreadPoolExecutor,
        settings: StowSettings,
        named: Incoming,
    ) -> None:
        """`named` is what is known of every object of the request."""
        self._receiver = receiver
        self._store = store
        self._threads = threads
        self._settings = settings
        self._named = named
        self._places = asyncio.Semaphore(_TOGETHER)
        self._tasks: list[asyncio.Future[Outcome]] = []
        self._part: _Part | None = None
        self._size = 0

    async def take(self, reader: MultipartReader, chunk: bytes) -> None:
        """Take the next bytes of the body; objects that they complete are on their way into the store then."""
        self._size += len(chunk)
        if self._size > self._settings.maximum_request_bytes:
            raise _too_large(self._settings.maximum_request_bytes, "request")
        for event in reader.feed(chunk):
            match event:
                case PartBegins(headers):
                    self._part = _Part(headers, self._store.spool(memory_bytes=_MEMORY_BYTES), _trouble(headers))
                case PartData(data) if self._part is not None:
                    await self._add(self._part, data)
                case PartEnds() if self._part is not None:
                    await self._end(self._part)
                    self._part = None

    async def finish(self) -> list[Outcome]:
        """Forget the object that was not whole, wait for the others and return what became of them, in order."""
        if self._part is not None:
            self._part.spool.close()
        return [await task for task in self._tasks]

    async def _add(self, part: _Part, data: bytes) -> None:
        part.size += len(data)
        if part.size > self._settings.maximum_object_bytes:
            raise _too_large(self._settings.maximum_object_bytes, "instance")
        if part.trouble is None and part.spool.add(data):
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, part.spool.flush)
            except (StoreUnavailable, OSError) as failure:
                part.trouble = cannot_store(failure)
                part.spool.close()

    async def _end(self, part: _Part) -> None:
        announced = part.headers.get("content-length", str(part.size))
        if announced != str(part.size) and part.trouble is None:
            part.trouble = RefusedInstance(CANNOT_UNDERSTAND, "the part has another size than its Content-Length")
        await self._places.acquire()
        task = asyncio.get_running_loop().run_in_executor(self._threads, self._keep, part)
        task.add_done_callback(lambda _: self._places.release())
        self._tasks.append(task)

    def _keep(self, part: _Part) -> Outcome:
        """Make one object durable, in a thread of its own, and return what became of it."""
        try:
            return self._received(part)
        except Exception as unforeseen:  # noqa: BLE001  one of the four places where errors become outcomes
            _log.error("cannot take an object", kind=type(unforeseen).__name__, exc_info=unforeseen)
            return Outcome(failure_reason=PROCESSING_FAILURE)
        finally:
            part.spool.close()

    def _received(self, part: _Part) -> Outcome:
        try:
            incoming = self._read(part)
        except RefusedInstance as refused:
            self._receiver.record(self._named, {}, refused)
            return _outcome(self._named, refused.status)
        try:
            self._receiver.take(incoming)
        except RefusedInstance as refused:
            return _outcome(incoming, refused.status)
        return _outcome(incoming)

    def _read(self, part: _Part) -> Incoming:
        if part.trouble is not None:
            raise part.trouble
        try:
            incoming = parse_part10(part.spool.content())
        except (StoreUnavailable, OSError) as failure:
            raise cannot_store(failure) from failure
        return replace(
            incoming,
            study_instance_uid=self._named.study_instance_uid,
            calling_ae_title=self._named.calling_ae_title,
            called_ae_title=self._named.called_ae_title,
        )


def _reader(request: Request) -> MultipartReader:
    """Return what reads the body of a request, which must be made of DICOM files (PS3.18 8.7.3.2, 10.5.2)."""
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a body with a content encoding is not taken")
    media_type = parse_media_type(request.headers.get("content-type", ""))
    root = media_type.parameters.get("type", "").lower() if media_type else ""
    if media_type is None or media_type.name != "multipart/related" or root != DICOM:
        reason = f'the body must be multipart/related; type="{DICOM}": DICOM files'
        if root.startswith(f"{DICOM}+"):
            reason += ", not metadata with the bulk data apart"
        raise refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, reason)
    try:
        return MultipartReader(media_type.parameters.get("boundary", ""), maximum_parts=MAXIMUM_PARTS)
    except Malformed as malformed:
        raise refusal(HTTPStatus.BAD_REQUEST, str(malformed)) from malformed


async def _chunks(receive: Receive, idle_seconds: float) -> AsyncIterator[bytes]:
    """Yield the body as it comes, while it comes: a pause may be so long, and bytes that come earn time.

    Raises ClientDisconnect when the sender goes away.
    """
    patience = idle_seconds
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                message = await receive()
        except TimeoutError as slow:
            reason = "the body came too slowly"
            raise refusal(HTTPStatus.REQUEST_TIMEOUT, reason, {"Connection": "close"}) from slow
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        # What passes while we are busy ourselves is not held against the sender.
        patience += len(chunk) / SLOWEST_BYTES_PER_SECOND - (time.monotonic() - began)
        patience = max(0.001, min(patience, idle_seconds))
        yield chunk
        if not message.get("more_body", False):
            return


def _trouble(headers: Mapping[str, str]) -> RefusedInstance | None:
    """Return why a part with these header fields is none that we read, or None."""
    media_type = parse_media_type(headers.get("content-type", DICOM))
    if media_type is None or media_type.name != DICOM:
        return RefusedInstance(CANNOT_UNDERSTAND, "the part is not of the type application/dicom")
    encoding = headers.get("content-transfer-encoding", "binary").lower()
    if encoding not in {"binary", "8bit", "7bit"} or "content-encoding" in headers:
        return RefusedInstance(CANNOT_UNDERSTAND, "the part is encoded once more")
    return None


def _outcome(incoming: Incoming, failure_reason: int | None = None) -> Outcome:
    """Return what became of an object; one that does not name itself by UIDs is not named in the answer either."""
    named = [uid.strip(" \0") for uid in (incoming.sop_class_uid, incoming.sop_instance_uid)]
    if not all(map(is_uid, named)):
        return Outcome(failure_reason=failure_reason)
    return Outcome(sop_class_uid=named[0], sop_instance_uid=named[1], failure_reason=failure_reason)


def _too_large(limit: int, what: str) -> Exception:
    return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {limit} bytes in one {what}")
