"""Destinations that are no AE: a web server, a folder, whoever the study came from; and what must not leave at all."""

import base64
import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from pydicom import dcmread
from queue_samples import OUTLETS, claim, enqueue, finish, received, register
from test_delivery import OBJECTS, RETRY, Answering, database_rows, post_reports

from meddaemon.db import deliveries, gates, results
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.domain.filters import parse_filter
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.states import DeliveryState
from meddaemon.results.delivery import deliver
from meddaemon.results.dicomweb import Service
from meddaemon.results.dimse import BackToSender, store
from meddaemon.results.folder import Folder
from meddaemon.results.transport import Outgoing, Send, Verdict
from tests.running import Home
from tests.system.test_peers import orthanc
from tests.web.posting import WEB, web_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
UID = "1.2.9.1"


@pytest.fixture
def dialect() -> str:
    """The outbox has its own tests, on both; here one database will do."""
    return "sqlite"


@pytest.fixture
def folder(database: Database, tmp_path: Path) -> Path:
    post_reports(database, tmp_path / "results")
    return tmp_path / "results"


def drain(database: Database, folder: Path, send: Send) -> int:
    return deliver(database, folder, "pacs", send, RETRY, threading.Event())


def stored(database: Database, folder: Path) -> dict[str, bytes]:
    with database.read() as connection:
        return {
            each.sop_instance_uid: path_of(folder, each.sha256).read_bytes()
            for each in results.objects_of(connection, 1)
        }


# --- a web server -------------------------------------------------------------------------------------------------


@dataclass
class WebServer:
    """Answers each request with the next of what it was told to, the last for ever; keeps what it was sent."""

    answers: list[tuple[int, str, bytes]]
    retry_after: str = ""
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    @contextmanager
    def serving(self, context: ssl.SSLContext | None = None) -> Iterator[int]:
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                scripted.asked.append((self.path, dict(self.headers), body))
                status, content_type, answer = scripted.answers[0]
                if len(scripted.answers) > 1:
                    scripted.answers.pop(0)
                if status == 0:
                    return  # hangs up
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                if scripted.retry_after:
                    self.send_header("Retry-After", scripted.retry_after)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            if context is not None:
                server.socket = context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()


def told(sequence: str, reason: str = "", value: int | None = None, uid: str = UID) -> bytes:
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if value is not None:
        item[reason] = {"vr": "US", "Value": [value]}
    return json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode()


STORED, FAILED, FAILURE, WARNING = "00081199", "00081198", "00081197", "00081196"
JSON = "application/dicom+json"
ALL = json.dumps(
    {STORED: {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [f"1.2.9.{number}"]}} for number in (1, 2, 3)]}}
).encode()
"""Says of each object that it is stored."""


@pytest.mark.parametrize(
    ("status", "content_type", "body", "state", "reason"),
    [
        (200, JSON, told(STORED), DeliveryState.SENT, ""),
        # A parameter does not make it another media type; some clients lose the failure then.
        (200, f"{JSON}; charset=utf-8", told(FAILED, FAILURE, 0xA700), DeliveryState.RETRYABLE, "out of resources"),
        (202, JSON, told(STORED, WARNING, 0xB000), DeliveryState.SENT, "taken with warning B000H"),
        (202, JSON, told(FAILED, FAILURE, 0x0110), DeliveryState.RETRYABLE, "processing failure"),
        (409, JSON, told(FAILED, FAILURE, 0x0122), DeliveryState.HELD, "refused with status 0122H"),
        (409, JSON, told(FAILED, FAILURE, 0xC000), DeliveryState.HELD, "refused with status C000H"),
        (409, JSON, told(FAILED, FAILURE, 0x0111), DeliveryState.SENT, "was there already"),
        (200, JSON, told(FAILED), DeliveryState.RETRYABLE, "failed without a reason"),
        (200, JSON, told(STORED, uid="1.2.3"), DeliveryState.HELD, "does not say that the object is stored"),
        (200, "text/html", b"<p>fine</p>", DeliveryState.HELD, "does not say that the object is stored"),
        (200, JSON, b"[" * 100_000, DeliveryState.HELD, "does not say that the object is stored"),
        (202, JSON, b"", DeliveryState.RETRYABLE, "answered HTTP 202"),
        (301, "text/html", b"", DeliveryState.HELD, "answered HTTP 301"),
        (401, "text/html", b"", DeliveryState.HELD, "check the credentials"),
        (403, "text/html", b"", DeliveryState.HELD, "check the credentials"),
        (404, "text/html", b"", DeliveryState.HELD, "answered HTTP 404"),
        (413, "text/html", b"", DeliveryState.HELD, "answered HTTP 413"),
        (429, "text/html", b"", DeliveryState.RETRYABLE, "answered HTTP 429"),
        (500, "text/html", b"", DeliveryState.RETRYABLE, "answered HTTP 500"),
        (503, "text/html", b"", DeliveryState.RETRYABLE, "answered HTTP 503"),
        (507, "text/html", b"", DeliveryState.RETRYABLE, "answered HTTP 507"),
        (0, "", b"", DeliveryState.RETRYABLE, "Remote end closed connection without response"),
    ],
)
def test_what_the_server_says_of_the_object_decides(
    database: Database, folder: Path, status: int, content_type: str, body: bytes, state: DeliveryState, reason: str
) -> None:
    server = WebServer([(status, content_type, body), (200, JSON, ALL)])
    with server.serving() as port:
        taken = drain(database, folder, Service(url=f"http://127.0.0.1:{port}/dicom-web/").store)
    first, *others = database_rows(database)
    assert (first.state, reason in first.reason) == (state, True), first.reason
    # Each has an answer of its own.
    assert [each.state for each in others] == [DeliveryState.SENT] * (OBJECTS - 1)
    assert taken == OBJECTS - 1 + (state is DeliveryState.SENT)
    assert [path for path, _, _ in server.asked] == ["/dicom-web/studies"] * OBJECTS


@pytest.mark.parametrize(
    ("status", "asked", "seconds"),
    [
        (503, "200", 200),
        (429, "86400", 250),
        (503, "soon", 100),
        (503, "5", 100),
        (200, "200", None),
        (409, "200", None),
        # A date, which is past, and one that no clock will see.
        (503, "Wed, 21 Oct 2015 07:28:00 GMT", 100),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT", 250),
        (503, "9" * 400, 250),
    ],
)
def test_a_server_that_asks_to_be_left_alone_is(
    database: Database, folder: Path, status: int, asked: str, seconds: float | None
) -> None:
    server = WebServer([(status, JSON, ALL if status == 200 else b"")], retry_after=asked)
    with server.serving() as port:
        drain(database, folder, Service(url=f"http://127.0.0.1:{port}").store)
    with database.read() as connection:
        waits = [each.available_at - gates.clock(connection) for each in deliveries.listing(connection)]
    if seconds is not None:
        assert all(seconds - 60 < each.total_seconds() <= seconds for each in waits)
        assert {each.state for each in database_rows(database)} == {DeliveryState.RETRYABLE}
    else:
        assert all(each.total_seconds() <= 0 for each in waits)


def test_objects_go_as_they_are_stored_and_with_a_secret_by_tls_only(
    database: Database, folder: Path, tmp_path: Path
) -> None:
    ca = Authority.make(tmp_path)
    identity = ca.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    server = WebServer([(200, JSON, ALL)])
    with server.serving(context) as port:
        url = f"https://127.0.0.1:{port}"
        stranger = Authority.make(tmp_path, "stranger")
        assert drain(database, folder, Service(url=url, trusted=stranger.file).store) == 0
        assert {each.reason.partition(":")[0] for each in database_rows(database)} == {"its certificate is refused"}
        for row in database_rows(database):
            with database.write() as connection:
                deliveries.requeue(connection, row.id)
        assert server.asked == []
        service = Service(url=url, trusted=ca.file, user="meddaemon", password="s3cret")
        assert drain(database, folder, service.store) == OBJECTS
    basic = base64.b64encode(b"meddaemon:s3cret").decode()
    assert {headers["Authorization"] for _, headers, _ in server.asked} == {f"Basic {basic}"}
    for (_, headers, body), content in zip(server.asked, stored(database, folder).values(), strict=True):
        boundary = headers["Content-Type"].rpartition("boundary=")[2]
        head, _, rest = body.partition(b"\r\n\r\n")
        assert head == f"--{boundary}\r\nContent-Type: application/dicom".encode()
        assert rest == content + f"\r\n--{boundary}--\r\n".encode()


def test_a_server_that_is_not_there_is_tried_again(database: Database, folder: Path) -> None:
    with WebServer([(200, JSON, b"")]).serving() as port:
        pass
    service = Service(url=f"http://127.0.0.1:{port}")
    assert drain(database, folder, service.store) == 0
    assert {(each.state, each.reason) for each in database_rows(database)} == {
        (DeliveryState.RETRYABLE, "Connection refused")
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "{}: No such file or directory"),
        (b" \n", "{}: holds no secret, which is one line in ascii"),
        (b"one\ntwo", "{}: holds no secret, which is one line in ascii"),
        (b"caf\xe9", "{}: holds no secret, which is one line in ascii"),
    ],
)
def test_a_secret_that_cannot_be_read_is_named_and_read_anew(
    database: Database, folder: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    server = WebServer([(200, JSON, b"")])
    with server.serving() as port:
        assert drain(database, folder, Service(url=f"http://127.0.0.1:{port}", token=token).store) == 0
    assert server.asked == []
    assert {(each.state, each.reason) for each in database_rows(database)} == {
        (DeliveryState.RETRYABLE, reason.format(token))
    }


def test_our_own_web_server_takes_what_we_send(database: Database, folder: Path, tmp_path: Path) -> None:
    token = "0123456789abcdef"
    digest = hashlib.sha256(token.encode()).hexdigest()
    home = Home.make(tmp_path / "home", f'{WEB}tokens = {{ RESULTS = "{digest}" }}\n')
    with home.running("web") as role:
        url = f"http://127.0.0.1:{web_port(role)}/dicom-web"
        assert drain(database, folder, Service(url=url, token="wrong").store) == 0
        assert all("check the credentials" in each.reason for each in database_rows(database))
        for row in database_rows(database):
            with database.write() as connection:
                deliveries.requeue(connection, row.id)
        assert drain(database, folder, Service(url=url, token=token).store) == OBJECTS
    assert {row.sop_instance_uid for row in home.instances()} == set(stored(database, folder))
    assert {row.reason for row in database_rows(database)} == {""}


@pytest.mark.peer
def test_orthanc_takes_what_we_send(database: Database, folder: Path, tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    with orthanc(tmp_path / "orthanc", Plugins=[str(PLUGIN)], DicomWeb={"Enable": True}) as archive:
        service = Service(url=f"http://127.0.0.1:{archive.http}/dicom-web/")
        assert service.get("/studies?limit=1", "application/dicom+json").status == 200
        assert drain(database, folder, service.store) == OBJECTS
        there = {
            archive.ask(f"/instances/{each}/simplified-tags")["SOPInstanceUID"] for each in archive.ask("/instances")
        }
    assert there == set(stored(database, folder))
    assert {row.reason for row in database_rows(database)} == {""}


# --- a folder -----------------------------------------------------------------------------------------------------


def test_objects_become_files_named_by_their_uids(database: Database, folder: Path, tmp_path: Path) -> None:
    way = Folder(directory=tmp_path / "out")
    assert drain(database, folder, way.store) == 0
    assert all(row.state is DeliveryState.RETRYABLE for row in database_rows(database))
    assert "is not there" in way.problem()
    way.directory.mkdir()
    for row in database_rows(database):
        with database.write() as connection:
            deliveries.requeue(connection, row.id)
    assert drain(database, folder, way.store) == OBJECTS
    written = {path.relative_to(way.directory): path.read_bytes() for path in way.directory.rglob("*.dcm")}
    assert written == {
        Path("1.2.3", "1.2.9", f"{uid}.dcm"): content for uid, content in stored(database, folder).items()
    }
    assert dcmread(way.directory / "1.2.3" / "1.2.9" / f"{UID}.dcm").SOPInstanceUID == UID


def test_what_lies_there_is_never_replaced(tmp_path: Path) -> None:
    source = tmp_path / "report"
    way = Folder(directory=tmp_path / "out")
    way.directory.mkdir()
    with ExitStack() as stack:
        database = stack.enter_context(Home.make(tmp_path / "home", "").database())
        post_reports(database, tmp_path / "results")
        source.write_bytes(stored(database, tmp_path / "results")[UID])
    going = Outgoing(path=source, sop_class_uid="", sop_instance_uid=UID, transfer_syntax_uid="")
    assert [each.verdict for each in way.store([going], still=lambda _: True)] == [Verdict.TAKEN]
    (again,) = way.store([going], still=lambda _: True)
    assert (again.verdict, again.reason) == (Verdict.TAKEN, "was there already")
    (there,) = way.directory.rglob("*.dcm")
    there.chmod(0o640)
    there.write_bytes(b"something else")
    (other,) = way.store([going], still=lambda _: True)
    assert (other.verdict, "holds something else" in other.reason) == (Verdict.HOLD, True)
    assert there.read_bytes() == b"something else"
    assert list(way.store([going], still=lambda _: False)) == []
    source.write_bytes(b"no DICOM")
    (wrong,) = way.store([going], still=lambda _: True)
    assert wrong.verdict is Verdict.TRY_AGAIN


# --- back to the sender, damage, conditions -----------------------------------------------------------------------


def test_results_go_back_to_whom_the_study_came_from(database: Database, folder: Path) -> None:
    scanner = Answering(0)
    with scanner.answering() as to:
        assert drain(database, folder, BackToSender({"ELSEWHERE": to}).store) == 0
        assert {(each.state, each.reason) for each in database_rows(database)} == {
            (DeliveryState.HELD, "the study came from SCANNER, which [[peers]] has no host and port for")
        }
        for row in database_rows(database):
            with database.write() as connection:
                deliveries.requeue(connection, row.id)
        assert drain(database, folder, BackToSender({"SCANNER": to, "ELSEWHERE": to}).store) == OBJECTS
    assert {str(each.SOPInstanceUID) for each in scanner.received} == set(stored(database, folder))


def test_what_is_damaged_does_not_leave(database: Database, folder: Path) -> None:
    """Under its UID there would be another object at the archive, for ever."""
    with database.read() as connection:
        (spoiled, *_) = results.objects_of(connection, 1)
    path = path_of(folder, spoiled.sha256)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    pacs = Answering(0)
    with pacs.answering() as to:
        assert drain(database, folder, partial(store, to)) == OBJECTS - 1
    first, *_ = database_rows(database)
    assert (first.state, first.reason.partition(":")[0]) == (DeliveryState.HELD, "the stored object is damaged")
    assert spoiled.sop_instance_uid not in {str(each.SOPInstanceUID) for each in pacs.received}


@pytest.mark.parametrize(("condition", "goes"), [("volume > 1000 mL", True), ("volume > 2 L", False), ("", True)])
def test_a_destination_takes_the_results_that_it_wants(
    database: Database, condition: str, goes: Callable[[], bool]
) -> None:
    study = register(database, received("an instance")).study_id
    enqueue(database, study)
    job = claim(database)
    wanted = Outlet(kinds=("SR",), when=parse_filter(condition) if condition else None)
    with database.write() as connection:
        finish(connection, job, outlets={**OUTLETS, "pacs": wanted}, value=1400.0)
    assert [row.kind for row in database_rows(database)] == (["SR"] if goes else [])
