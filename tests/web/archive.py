"""An archive to search and retrieve from: real series and real results, served by the real server in this process."""

import hashlib
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydicom import Dataset, dcmread
from queue_samples import analysis, claim, enqueue
from result_samples import request_for

from meddaemon.db import jobs, results, studies
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.db.results import StoredObject
from meddaemon.domain.result import EncodedObject
from meddaemon.ingest.part10 import header_of
from meddaemon.results.encoding import encode
from meddaemon.web.app import create_app
from meddaemon.web.qido import SearchTransaction
from meddaemon.web.reads import Archive, Reads
from meddaemon.web.server import WebServer
from meddaemon.web.settings import ReadSettings, WebServerSettings
from meddaemon.web.wado import RetrieveTransaction
from tests.running import Home

TOKEN = "a-token-that-may-read"
READERS = {"VIEWER": hashlib.sha256(TOKEN.encode()).hexdigest()}
SENDER_TOKEN = "a-token-that-may-store"
SENDERS = {"GATE": hashlib.sha256(SENDER_TOKEN.encode()).hexdigest()}
ORIGIN = "https://viewer.example.org"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> list[dict[str, Any]]:
        return list(json.loads(self.body)) if self.body else []

    @property
    def parts(self) -> list[tuple[str, bytes]]:
        """The parts of a multipart answer: media type and bytes."""
        boundary = self.headers["Content-Type"].rpartition("boundary=")[2].encode()
        cut = self.body.split(b"--" + boundary)
        assert cut[0] == b""
        assert cut[-1] == b"--\r\n"
        parts = []
        for each in cut[1:-1]:
            head, _, content = each.partition(b"\r\n\r\n")
            assert head.startswith(b"\r\nContent-Type: ")
            assert content.endswith(b"\r\n")
            parts.append((head.decode().removeprefix("\r\nContent-Type: "), content[:-2]))
        return parts

    def values(self, tag: str) -> list[Any]:
        """The first value of an attribute in each data set."""
        return [(each.get(tag, {}).get("Value") or [None])[0] for each in self.json]


@dataclass(frozen=True, repr=False)
class Site:
    """A served archive: the files that came, and the results that were made."""

    port: int
    home: Home
    files: Sequence[Path]
    made: Sequence[EncodedObject]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    @property
    def received(self) -> list[Dataset]:
        return [dcmread(path) for path in self.files]

    def ask(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", **query: str) -> Answer:
        """Ask below /dicom-web, as a reader where nothing else is said."""
        written = "&".join(f"{quote(name)}={quote(value)}" for name, value in query.items())
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        usual = {"Authorization": f"Bearer {TOKEN}"}
        try:
            target = f"/dicom-web/{path}" + (f"?{written}" if written else "")
            connection.request(method, target, headers={**usual, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def at(self, data_set: Dataset) -> str:
        """Return the path of an instance."""
        return (
            f"studies/{data_set.StudyInstanceUID}/series/{data_set.SeriesInstanceUID}"
            f"/instances/{data_set.SOPInstanceUID}"
        )


def record_objects(
    database: Database, folder: Path, study: str, objects: Sequence[EncodedObject], *, rule: str
) -> None:
    """Store objects as the result that a rule asks for, instead of what it asked for before."""
    with database.read() as connection:
        study_id = studies.find_study(connection, study)
    enqueue(database, study_id, rule=rule, destinations=())
    job = claim(database)
    stored = [StoredObject.of(each, header_of(each.content)) for each in objects]
    for each in stored:
        path_of(folder, each.sha256).parent.mkdir(parents=True, exist_ok=True)
        path_of(folder, each.sha256).write_bytes(each.encoded.content)
    with database.write() as connection:
        results.record(
            connection,
            jobs.complete(connection, job),
            analysis(),
            stored,
            model_version="1",
            series_instance_uid=objects[0].series_instance_uid,
            provenance={},
            seconds={},
            outlets={},
        )


def encoded_from(paths: Sequence[Path], **changes: Any) -> tuple[EncodedObject, ...]:
    """Return the SEG and the SR of a series."""
    return encode(request_for(paths, **changes))


@contextmanager
def serving(
    home: Home,
    database: Database,
    *,
    maximum_matches: int = 100,
    maximum_reads: int = 8,
    readers: Mapping[str, str] = READERS,
) -> Iterator[int]:
    """Serve what a home holds; give the port."""
    asked = ReadSettings(maximum_matches=maximum_matches, maximum_reads=maximum_reads)
    archive = Archive(database, home.settings.store.instances, home.settings.store.results)
    reads = Reads(asked.maximum_reads)
    routes = [*SearchTransaction(archive, reads, asked).routes, *RetrieveTransaction(archive, reads, asked).routes]
    app = create_app(routes, tokens=SENDERS, readers=readers, origins=[ORIGIN])
    settings = WebServerSettings(host="127.0.0.1", port=0, maximum_connections=20, request_seconds=20, drain_seconds=2)
    with WebServer(app, settings) as server:
        yield server.address[1]
    reads.close()
