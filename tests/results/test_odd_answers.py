"""Answers that do not fit what was sent, or break off: by DIMSE, on the web, and from a folder's file system."""

import http.server
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from edition_samples import editions, encoded, post, rows
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from scripted_scp import Reply, ScriptedScp
from sqlalchemy import update
from test_delivery import OBJECTS, RETRY, database_rows, post_reports
from test_editions import pass_time
from test_ways_out import FAILED, FAILURE, JSON, STORED, WebServer, told

from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.states import DeliveryState
from meddaemon.results.delivery import Retry, deliver
from meddaemon.results.dicomweb import Service, pause_of
from meddaemon.results.dimse import store
from meddaemon.results.folder import STAGING, Folder
from meddaemon.results.transport import Pace, Send


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


# --- by DIMSE -----------------------------------------------------------------------------------------------------


@contextmanager
def answers(change: Any) -> Iterator[None]:
    """Have every SCP here answer a C-STORE with what `change` makes of its answer, one message or several."""
    send = DIMSEServiceProvider.send_msg

    def changed(self: DIMSEServiceProvider, primitive: Any, context_id: int) -> None:
        is_answer = isinstance(primitive, C_STORE) and primitive.MessageIDBeingRespondedTo is not None
        for each in change(primitive) if is_answer else [primitive]:
            send(self, each, context_id)

    DIMSEServiceProvider.send_msg = changed  # type: ignore[method-assign]
    try:
        yield
    finally:
        DIMSEServiceProvider.send_msg = send  # type: ignore[method-assign]


def test_an_answer_to_another_message_says_nothing(database: Database, folder: Path) -> None:
    """Of whoever answers one object twice, the next would be taken, whatever becomes of it."""

    def another(answer: Any) -> list[Any]:
        answer.MessageIDBeingRespondedTo += 1
        return [answer]

    pacs = ScriptedScp()
    with answers(another), pacs.listening() as port:
        assert drain(database, folder, partial(store, pacs.remote(port))) == 0
    assert {(row.state, row.reason) for row in database_rows(database)} == {
        (DeliveryState.RETRYABLE, "no answer: the remote AE answered another message")
    }


def test_of_what_is_answered_twice_only_what_is_there_counts_as_sent(database: Database, folder: Path) -> None:
    pacs = ScriptedScp(script=lambda _, uid: Reply(0xA700 if uid.endswith(".2") else 0))
    with answers(lambda answer: [answer, answer]), pacs.listening() as port:
        drain(database, folder, partial(store, pacs.remote(port)))
    sent = {row.sop_instance_uid for row in database_rows(database) if row.state is DeliveryState.SENT}
    assert sent
    assert sent <= set(pacs.store)


def test_an_object_that_is_taken_under_another_uid_is_a_persons(database: Database, folder: Path) -> None:
    def rename(answer: Any) -> list[Any]:
        answer.AffectedSOPInstanceUID = "1.2.3.4.5"
        return [answer]

    pacs = ScriptedScp(script=lambda _, uid: Reply(0xA700 if uid.endswith(".3") else 0))
    with answers(rename), pacs.listening() as port:
        drain(database, folder, partial(store, pacs.remote(port)))
    *taken, refused = database_rows(database)
    assert {(row.state, row.reason.partition(":")[0]) for row in taken} == {
        (DeliveryState.HELD, "taken as 1.2.3.4.5, which is another object")
    }
    assert (refused.state, len(pacs.uids)) == (DeliveryState.RETRYABLE, OBJECTS)


def test_what_finds_no_room_to_be_decoded_says_so(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_map = encoded("SEG", "labelmap")
    post(database, tmp_path, [label_map], Outlet(kinds=("SEG",), editions=editions("labelmap/3d")))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    pacs = ScriptedScp(refuses=[(label_map.sop_class_uid, label_map.transfer_syntax_uid)])
    with pacs.listening() as port:
        assert drain(database, tmp_path, partial(store, pacs.remote(port))) == 0
    (row,) = rows(database)
    assert (row.state, row.reason) == (DeliveryState.RETRYABLE, "could not send: No such file or directory")


# --- on the web ---------------------------------------------------------------------------------------------------


@contextmanager
def web(*answers: bytes, drips: bool = False) -> Iterator[str]:
    """Answer each request with these bytes and hang up, or (`drips`) go on for ever; yields the URL."""
    left, over = list(answers), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(left.pop(0) if len(left) > 1 else left[0])
            self.wfile.flush()
            with suppress(OSError):
                while drips and not over.wait(0.05):
                    self.wfile.write(b" ")
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            over.set()
            server.shutdown()
            thread.join()


STORED_HALF = told(STORED)[:40]
HEAD = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\n".encode()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 4000\r\n\r\n" + STORED_HALF,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nfff\r\n" + STORED_HALF,
    ],
)
def test_an_answer_that_breaks_off_says_nothing(database: Database, folder: Path, answer: bytes) -> None:
    """The object may be there, and goes again under the same UID: no person need look."""
    with web(answer) as url:
        assert drain(database, folder, Service(url=url).store) == 0
    assert {(row.state, row.reason) for row in database_rows(database)} == {
        (DeliveryState.RETRYABLE, "broke off in the midst of its answer")
    }


def test_an_answer_that_never_ends_is_ended(database: Database, folder: Path) -> None:
    """It has no length: where it ends, it could be whole."""
    with web(HEAD + b"\r\n" + STORED_HALF, drips=True) as url:
        service = Service(url=url, response_timeout_seconds=0.2, pace=Pace(bytes_per_second=10**9))
        assert drain(database, folder, service.store) == 0
    assert {(row.state, row.reason) for row in database_rows(database)} == {
        (DeliveryState.RETRYABLE, "no end after 0.4 s")
    }


@pytest.mark.parametrize("reason", [0xB000, 0xB007, 0x0107])
def test_what_failed_with_a_warning_is_not_there(database: Database, folder: Path, reason: int) -> None:
    server = WebServer([(409, JSON, told(FAILED, FAILURE, reason))])
    with server.serving() as port:
        assert drain(database, folder, Service(url=f"http://127.0.0.1:{port}").store) == 0
    first, *_ = database_rows(database)
    assert (first.state, first.reason) == (DeliveryState.RETRYABLE, f"failed with reason {reason:04X}H")


@pytest.mark.parametrize("after", ["Fri, 31 Dec 9999 23:59:59 -1200", f"Fri, 31 Dec 2026 23:59:59 +{'9' * 20}"])
def test_a_date_that_no_calendar_has_is_none(after: str) -> None:
    assert pause_of(after) == 0.0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", b""])
def test_an_object_that_a_web_server_fails_at_while_others_pass_is_held(
    database: Database, tmp_path: Path, answer: bytes
) -> None:
    """As by DIMSE: it has it, and fails or breaks off, each time."""
    bad, folder = encoded("SEG", "binary", result=1), tmp_path / "results"
    outlet = Outlet(kinds=("SEG",), editions=editions("binary/3d"))
    post(database, folder, [bad], outlet)
    retry = Retry(first_seconds=100, longest_seconds=250, lease_seconds=60, maximum_tries=3)
    for day in range(2, 7):
        fine = encoded("SEG", "binary", result=day)
        post(database, folder, [fine], outlet)
        stored = told(STORED, uid=fine.sop_instance_uid)
        taken = HEAD + f"Content-Length: {len(stored)}\r\n\r\n".encode() + stored
        order = [answer, taken] if rows(database)[0].state is not DeliveryState.HELD else [taken]
        with web(*order) as url:
            deliver(database, folder, "pacs", Service(url=url).store, retry, threading.Event())
        pass_time(database)
    first, *others = rows(database)
    assert first.state is DeliveryState.HELD
    assert "failed 3 times while others were taken" in first.reason
    assert {row.state for row in others} == {DeliveryState.SENT}


# --- a folder -----------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_asked_for_is_a_reason(database: Database, folder: Path, tmp_path: Path) -> None:
    """As of a mount whose server is gone: to look is an error."""
    way = Folder(directory=tmp_path / ("x" * 300))
    assert drain(database, folder, way.store) == 0
    assert {(row.state, row.reason.endswith("File name too long")) for row in database_rows(database)} == {
        (DeliveryState.RETRYABLE, True)
    }


def test_whoever_may_read_the_folder_may_read_what_is_in_it(database: Database, folder: Path, tmp_path: Path) -> None:
    way = Folder(directory=tmp_path / "out")
    way.directory.mkdir()
    way.directory.chmod(0o750)
    assert drain(database, folder, way.store) == OBJECTS
    (study,) = way.directory.glob("1.2.3")
    assert {stat.S_IMODE(each.stat().st_mode) for each in (study, *study.iterdir())} == {0o750}
    assert {stat.S_IMODE(each.stat().st_mode) for each in study.rglob("*.dcm")} == {0o640}
    # Who wrote it may have died before all may read it.
    for each in study.rglob("*.dcm"):
        each.chmod(0o600)
    with database.write() as connection:
        connection.execute(update(tables.delivery).values(state=DeliveryState.PENDING))
    (way.directory / STAGING / "killed").mkdir()
    assert drain(database, folder, way.store) == OBJECTS
    assert {each.name for each in (way.directory / STAGING).iterdir()} == {"lock"}
    assert {row.reason for row in database_rows(database)} == {"was there already"}
    assert {stat.S_IMODE(each.stat().st_mode) for each in study.rglob("*.dcm")} == {0o640}
