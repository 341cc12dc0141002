"""What searches and retrievals share: the archive that they read, how many may at a time, and how failures are told."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from meddaemon.db.catalogue import SeenObject
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.db.instances import path_of
from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.deflate import inflated
from meddaemon.ingest.part10 import parse_ours
from meddaemon.ingest.scan import Malformed, mapped
from meddaemon.web.refusals import refusal

RETRY_AFTER_SECONDS = 10
_THREADS = 4
Value = TypeVar("Value")


@dataclass(frozen=True)
class Archive:
    """Database, and the folders of received and of result objects."""

    database: Database
    instances: Path
    results: Path

    def path(self, seen: SeenObject) -> Path:
        """Return where the file of an object lies."""
        return path_of(self.results if seen.is_result else self.instances, seen.sha256)

    def require_there(self) -> None:
        """Refuse while the store is away: what is not there then is not gone."""
        if not self.instances.is_dir():
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the store is away", _later())


@dataclass(frozen=True)
class Opened:
    """The data set of a stored object, inflated where it is deflated, and the syntax that it is stored in."""

    data: memoryview
    transfer_syntax_uid: str


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Give a stored object without reading it to memory. Raises OSError, Malformed."""
    with path.open("rb") as file:
        content = mapped(file.fileno())
    try:
        ours = parse_ours(content, calling_ae_title="", called_ae_title="")
    except RefusedInstance as refused:
        raise Malformed("the file is no DICOM file") from refused
    with inflated(ours.data, ours.transfer_syntax_uid) as whole:
        yield Opened(memoryview(whole), ours.transfer_syntax_uid)


class Reads:
    """Serves reading requests, so many at a time and a few of them at work."""

    def __init__(self, maximum: int) -> None:
        """At most `maximum` requests are in hand at the same time; one more is told to come again."""
        self._maximum = maximum
        self._in_hand = 0
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")

    def close(self) -> None:
        """Wait for what is being read."""
        self._threads.shutdown()

    async def run(self, work: Callable[[], Value]) -> Value:
        """Do what blocks in a thread; turn what fails into the answer that says so."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except DatabaseUnavailable as away:
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the database is out of reach", _later()) from away
        except FileNotFoundError as gone:
            raise refusal(HTTPStatus.NOT_FOUND, "the stored file is gone") from gone
        except Malformed as damaged:
            raise refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the stored file is damaged") from damaged
        except OSError as failure:
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the store cannot be read", _later()) from failure

    def limited(self, serve: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
        """Return an endpoint that counts as in hand until its answer has been sent."""
        return _Limited(self, serve)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place for a request, or refuse it."""
        if self._in_hand >= self._maximum:
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are being served", _later())
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1


class _Limited:
    """An endpoint (ASGI)."""

    def __init__(self, reads: Reads, serve: Callable[[Request], Awaitable[Response]]) -> None:
        self._reads = reads
        self._serve = serve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            # The answer to a HEAD would be read from the disk to be thrown away.
            raise refusal(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is served here", {"Allow": "GET"})
        with self._reads.place():
            response = await self._serve(Request(scope, receive))
            await response(scope, receive, send)


def _later() -> dict[str, str]:
    return {"Retry-After": str(RETRY_AFTER_SECONDS)}
