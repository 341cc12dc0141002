"""What a destination took is done when it says that it has it, however late, often or badly it says so."""

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from archive import Archive, Named, report_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.sop_class import StorageCommitmentPushModel, StorageCommitmentPushModelInstance
from sqlalchemy import text, update
from test_delivery import OBJECTS, RETRY, database_rows, post_reports
from test_ways_out import JSON, PLUGIN, WebServer

from meddaemon.cli.explain import explain
from meddaemon.db import custody, deliveries, tables
from meddaemon.db.deliveries import DeliveryRow
from meddaemon.db.engine import Database
from meddaemon.domain.commitment import ReferencedInstance
from meddaemon.domain.custody import CustodyPolicy, CustodyReport, Proof
from meddaemon.domain.states import DeliveryState
from meddaemon.ingest.callers import Caller
from meddaemon.ingest.custody import CustodyReports
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.results.custody import DicomCustodian, WebCustodian, confirm
from meddaemon.results.delivery import deliver
from meddaemon.results.dicomweb import Service
from meddaemon.results.dimse import Pause, RemoteEntity, associate, make_pausable, release, store
from tests.running import wait_until
from tests.system.test_peers import Orthanc, know, orthanc

COMMITMENT = CustodyPolicy(proof=Proof.COMMITMENT, maximum_requests=2, maximum_losses=1)
FALLBACK = CustodyPolicy(proof=Proof.COMMITMENT, fallback=True, maximum_requests=1)
QUERY = CustodyPolicy(proof=Proof.QUERY)
UIDS = [f"1.2.9.{number}" for number in range(1, OBJECTS + 1)]
FIRST, *OTHERS = UIDS
A_DAY = 86_400.0
both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)
"""Runs a test on both databases: where it does what the others do not."""


@pytest.fixture
def dialect() -> str:
    """One database will do, unless a test asks for both."""
    return "sqlite"


@pytest.fixture
def folder(database: Database, tmp_path: Path) -> Path:
    post_reports(database, tmp_path / "results")
    return tmp_path / "results"


def send(database: Database, folder: Path, to: RemoteEntity) -> int:
    return deliver(database, folder, "pacs", partial(store, to), RETRY, threading.Event())


def ask(database: Database, to: RemoteEntity, policy: CustodyPolicy, *, seconds: float = 30) -> int:
    hear, stop = CustodyReports(database).answer, threading.Event()
    custodian = DicomCustodian(remote=to, hear=hear, seconds=seconds, stop=stop)
    return confirm(database, "pacs", policy, lambda _: custodian)


def pass_time(database: Database, seconds: float = A_DAY) -> None:
    """Move the clock of the database, as far as deliveries go by it."""
    row = tables.delivery.c
    with database.write() as connection:
        connection.execute(
            update(tables.delivery).values(custody_at=row.custody_at - seconds, available_at=row.available_at - seconds)
        )


def rows(database: Database) -> dict[str, DeliveryRow]:
    """Return the deliveries by the UID of their object."""
    return dict(zip(UIDS, database_rows(database), strict=True))


def states(database: Database) -> list[DeliveryState]:
    return [row.state for row in database_rows(database)]


def of_view(database: Database) -> list[tuple[object, ...]]:
    """Return state, times and reasons as analysts read them, which is what `deliveries list` says, row for row."""
    with database.read() as connection:
        shown = [row._mapping for row in connection.execute(text("SELECT * FROM v_delivery ORDER BY delivery_id"))]
    listed = [vars(row) for row in database_rows(database)]
    called = {"delivery_id": "id", "dimse_status": "status", "delivery_reason": "reason"}
    own = ("object_id", "result_id", "kind", "part", "edition", "sop_instance_uid", "destination", "state", "attempt")
    times = ("posted_at", "sent_at", "committed_at", "verified_at", "done_at")
    for row, said in zip(shown, listed, strict=True):
        for name in (*own, *called, "wanted", "custody_reason", "losses"):
            assert row[name] == said[called.get(name, name)], name
        for name in times:
            seen = row[name]
            seen = datetime.fromisoformat(seen) if isinstance(seen, str) else seen
            assert (seen is None) == (said[name] is None), name
            assert seen is None or abs(seen - said[name]) <= timedelta(milliseconds=1), name
    return [(row["state"], *(row[name] is not None for name in times[1:]), row["custody_reason"]) for row in shown]


def told(database: Database) -> str:
    with database.read() as connection:
        return "\n".join(explain(connection, "1"))


@contextmanager
def our_listener(reports: Database | CustodyReports, **more: object) -> Iterator[int]:
    """Listen for reports as the daemon does, under both of our names."""
    asked = {"ae_title": "MEDDAEMON", "called_ae_titles": ("SENDER",), **more}
    listening = ListenerSettings(
        host="127.0.0.1",
        port=0,
        maximum_associations=8,
        maximum_pdu_bytes=131_072,
        idle_timeout_seconds=30,
        association_timeout_seconds=10,
        message_timeout_seconds=30,
        everyone=False,
        **asked,  # type: ignore[arg-type]
    )
    custody = reports if isinstance(reports, CustodyReports) else CustodyReports(reports)
    with Listener(listening, lambda _: None, custody=custody) as listener:
        yield listener.address[1]


def called_by(*ae_titles: str) -> dict[str, object]:
    return {"callers": tuple(Caller(ae_title=each) for each in ae_titles)}


ALL_COMMITTED = [DeliveryState.COMMITTED] * OBJECTS


# --- what suffices -----------------------------------------------------------------------------------------------


@both
def test_where_sent_suffices_it_is_done_when_it_is_sent(database: Database, folder: Path) -> None:
    archive = Archive()
    with archive.listening() as to:
        send(database, folder, to)
        assert "done at pacs: not yet, 0 of 3 objects are" in told(database)
        ask(database, to, CustodyPolicy())
    assert states(database) == [DeliveryState.SENT] * OBJECTS
    assert all(row.done_at == row.sent_at is not None for row in database_rows(database))
    assert archive.requests == archive.questions == []
    assert "done at pacs: 20" in told(database)


def test_a_report_on_the_same_association_commits(database: Database, folder: Path) -> None:
    archive = Archive()
    with archive.listening() as to:
        send(database, folder, to)
        assert ask(database, to, COMMITMENT) == OBJECTS
        assert ask(database, to, COMMITMENT) == 0
    ((transaction, asked),) = archive.requests
    assert transaction.startswith("2.25.")
    assert asked == [(BasicTextSRStorage, uid) for uid in UIDS]
    wait_until(lambda: archive.answers == [0x0000], what="the archive to have its answer")
    assert states(database) == ALL_COMMITTED
    assert all(row.done_at == row.committed_at is not None for row in database_rows(database))
    said = told(database)
    assert re.search(r"\n      SEG: sent 20[-: 0-9]+, committed 20[-: 0-9]+\n", said)
    assert said.count(f"{transaction}: reported 20") == 1
    assert "3 of 3 committed" in said
    assert "done at pacs: 20" in said


@pytest.mark.parametrize("called", ["SENDER", "MEDDAEMON"])
def test_a_report_on_a_new_association_commits_and_twice_is_once(database: Database, folder: Path, called: str) -> None:
    archive = Archive(report="never")
    with archive.listening() as to, our_listener(database, **called_by("PACS")) as port:
        send(database, folder, to)
        ask(database, to, COMMITMENT, seconds=0)
        assert states(database) == [DeliveryState.SENT] * OBJECTS
        assert re.search(r"SEG: sent 20[-: 0-9]+, not confirmed; asked again after 20[-: 0-9]+\n", told(database))
        assert told(database).count(": no report") == 1
        report = archive.truth(*archive.requests[0])
        assert archive.tell(port, report, called=called) == 0x0000
        assert states(database) == ALL_COMMITTED
        before = database_rows(database)
        assert archive.tell(port, report, called=called) == 0x0000
        assert archive.tell(port, report_of(report.TransactionUID, [], [(archive.requests[0][1][0], 0x0112)])) == 0
    assert database_rows(database) == before


class _Lingering(tuple[int, None]):
    """An answer that gets ready to leave while the association could be released."""

    association: Association

    def __iter__(self) -> Iterator[int | None]:
        still = threading.Event()
        until = time.monotonic() + 0.5
        while self.association.is_established and time.monotonic() < until:
            still.wait(0.01)
        return super().__iter__()


def test_an_association_is_not_released_before_the_answer_to_its_report_has_left(
    database: Database, folder: Path
) -> None:
    """The library answers a report in a thread of its own."""
    archive, reports = Archive(), CustodyReports(database)

    def hear(event: evt.Event) -> tuple[int, None]:
        answer = _Lingering(reports.answer(event))
        answer.association = event.assoc
        return answer

    with archive.listening() as to:
        send(database, folder, to)
        custodian = DicomCustodian(remote=to, hear=hear, seconds=30, stop=threading.Event())
        assert confirm(database, "pacs", COMMITMENT, lambda _: custodian) == OBJECTS
        wait_until(lambda: archive.answers == [0x0000], what="the archive to have its answer")
    assert states(database) == ALL_COMMITTED


def test_a_report_may_come_before_the_answer_to_its_request(database: Database, folder: Path) -> None:
    """Nothing in PS3.7 has them wait for each other: each end may have one operation of its own under way."""
    archive = Archive(report="before")
    with archive.listening() as to:
        send(database, folder, to)
        assert ask(database, to, COMMITMENT) == OBJECTS
    assert states(database) == ALL_COMMITTED
    assert len(archive.requests) == 1


def test_a_report_that_is_answered_meanwhile_holds_up_no_release() -> None:
    """The thread that the library answers it in says in the end that the association goes on."""
    with Archive().listening() as to:
        association, _ = associate(to, [build_context(StorageCommitmentPushModel)])
        assert association is not None

        class Answered(Pause):
            def clear(self) -> None:
                super().clear()
                association._is_paused = False

        association._reactor_checkpoint = Answered(association)
        releasing = threading.Thread(target=release, args=(association,), daemon=True)
        releasing.start()
        releasing.join(20)
        assert not releasing.is_alive()


def test_reports_that_are_not_waited_for_take_no_thread_each(database: Database) -> None:
    hearing, go_on = threading.Semaphore(0), threading.Event()

    class Slow(CustodyReports):
        def answer(self, event: evt.Event) -> tuple[int, None]:
            hearing.release()
            go_on.wait(30)
            return super().answer(event)

    with our_listener(Slow(database), **called_by("PACS")) as port:
        entity = AE(ae_title="PACS")
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate("127.0.0.1", port, ae_title="SENDER", ext_neg=[role])
        make_pausable(association)
        for number in range(3):
            request = N_EVENT_REPORT()
            request.MessageID, request.EventTypeID = number + 1, 1
            request.AffectedSOPClassUID = StorageCommitmentPushModel
            request.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
            association.dimse.send_msg(request, 1)
        assert hearing.acquire(timeout=30)
        assert not hearing.acquire(timeout=1), "two are answered at the same time"
        go_on.set()
        assert hearing.acquire(timeout=30)
        assert hearing.acquire(timeout=30)
        release(association)


# --- what a report may be ----------------------------------------------------------------------------------------


def test_what_failed_is_sent_again_under_its_uid_and_then_held(database: Database, folder: Path) -> None:
    archive = Archive(loses=[FIRST, FIRST])
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, COMMITMENT)
        assert states(database) == [DeliveryState.RETRYABLE, *ALL_COMMITTED[1:]]
        assert "storage commitment failed (0112H)" in rows(database)[FIRST].reason
        assert send(database, folder, to) == 1
        ask(database, to, COMMITMENT)
        assert archive.arrived == [*UIDS, FIRST]
        assert states(database) == [DeliveryState.HELD, *ALL_COMMITTED[1:]]
        assert rows(database)[FIRST].reason.startswith("taken and not there, 2 times")
        assert "lost there 2 times" in told(database)
        # The archive is mended, and a person has it sent again.
        with database.write() as connection:
            deliveries.requeue(connection, rows(database)[FIRST].id)
        send(database, folder, to)
        ask(database, to, COMMITMENT)
    assert states(database) == ALL_COMMITTED
    assert len({transaction for transaction, _ in archive.requests}) == len(archive.requests) == 3


@pytest.mark.parametrize(
    ("reason", "state", "said"),
    [
        (0x0110, DeliveryState.RETRYABLE, "0110H"),
        (0x0213, DeliveryState.RETRYABLE, "0213H"),
        (0x0119, DeliveryState.HELD, "0119H"),
        (0x0122, DeliveryState.SENT, "0122H"),
        (0x0131, DeliveryState.SENT, "0131H"),
    ],
)
def test_the_failure_reason_decides(
    database: Database, folder: Path, reason: int, state: DeliveryState, said: str
) -> None:
    def say(_: Archive, transaction: str, asked: list[Named]) -> Dataset:
        return report_of(transaction, asked[1:], [(asked[0], reason)])

    archive = Archive(say=say)
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, COMMITMENT)
        assert states(database) == [state, *ALL_COMMITTED[1:]]
        assert said in rows(database)[FIRST].custody_reason
        if state is DeliveryState.SENT:
            # There is no commitment for it: a person. It was another transaction's UID: once more.
            archive.say = None
            ask(database, to, COMMITMENT)
            assert states(database)[0] is (DeliveryState.HELD if reason == 0x0122 else DeliveryState.COMMITTED)


def _silent_on_the_first(_: Archive, transaction: str, asked: list[Named]) -> Dataset:
    return report_of(transaction, asked[1:])


def _another_class(_: Archive, transaction: str, asked: list[Named]) -> Dataset:
    return report_of(transaction, [("1.2.840.10008.5.1.4.1.1.7", asked[0][1]), *asked[1:]])


def _in_both_lists(_: Archive, transaction: str, asked: list[Named]) -> Dataset:
    return report_of(transaction, asked, [(asked[0], 0x0112)])


@pytest.mark.parametrize("say", [_silent_on_the_first, _another_class])
def test_what_a_report_does_not_mention_is_not_confirmed(database: Database, folder: Path, say: object) -> None:
    archive = Archive(say=say)  # type: ignore[arg-type]
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, COMMITMENT)
        assert states(database) == [DeliveryState.SENT, *ALL_COMMITTED[1:]]
        assert "does not mention it" in told(database)
        archive.say = None
        ask(database, to, COMMITMENT)
    assert archive.requests[1][1] == [(BasicTextSRStorage, FIRST)]
    assert archive.requests[0][0] != archive.requests[1][0]
    assert states(database) == ALL_COMMITTED


def test_what_a_report_calls_committed_and_failed_has_failed(database: Database, folder: Path) -> None:
    archive = Archive(say=_in_both_lists)
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, COMMITMENT)
    assert states(database) == [DeliveryState.RETRYABLE, *ALL_COMMITTED[1:]]


def test_a_report_on_nothing_that_we_asked_is_refused_and_changes_nothing(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to, our_listener(database, **called_by("PACS", "OTHER")) as port:
        send(database, folder, to)
        ask(database, to, COMMITMENT, seconds=0)
        transaction, asked = archive.requests[0]
        before = database_rows(database)
        assert archive.tell(port, report_of("1.2.3.4", asked)) == 0x0112
        assert archive.tell(port, report_of("not a UID", asked)) == 0x0115
        assert archive.tell(port, report_of(transaction, asked), calling="OTHER") == 0x0112
        assert archive.tell(port, report_of(transaction, asked), calling="STRANGER") is None
        assert archive.tell(port, report_of(transaction, asked), called="NOBODY") is None
        assert database_rows(database) == before
        assert archive.tell(port, report_of(transaction, asked)) == 0x0000


def test_another_ae_may_report_where_the_destination_says_so(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    policy = CustodyPolicy(proof=Proof.COMMITMENT, reported_by=("OTHER",))
    with archive.listening() as to, our_listener(database, **called_by("PACS", "OTHER")) as port:
        send(database, folder, to)
        ask(database, to, policy, seconds=0)
        assert archive.tell(port, archive.truth(*archive.requests[0]), calling="OTHER") == 0x0000
    assert states(database) == ALL_COMMITTED


# --- no report ---------------------------------------------------------------------------------------------------


@both
def test_a_report_that_never_comes_is_asked_for_again_and_then_a_person(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to, our_listener(database, **called_by("PACS")) as port:
        send(database, folder, to)
        for _ in range(2):
            assert ask(database, to, COMMITMENT, seconds=0) == OBJECTS
            assert ask(database, to, COMMITMENT, seconds=0) == 0, "asked before the time of the report was over"
            pass_time(database)
        assert ask(database, to, COMMITMENT, seconds=0) == OBJECTS
        assert states(database) == [DeliveryState.HELD] * OBJECTS
        assert "no storage commitment after 2 requests" in told(database)
        (first, asked), (second, _) = archive.requests
        assert first != second
        # It comes after all, on the first request, with only the failure that nobody believes any more.
        assert archive.tell(port, report_of(first, asked[1:], [(asked[0], 0x0112)])) == 0x0000
        assert states(database) == [DeliveryState.HELD, *ALL_COMMITTED[1:]]
        assert archive.tell(port, report_of(second, asked)) == 0x0000
    assert states(database) == ALL_COMMITTED
    assert set(of_view(database)) == {("committed", True, True, False, True, "")}
    assert {row.reason for row in database_rows(database)} == {""}
    assert archive.arrived == UIDS


def test_a_report_that_never_comes_is_made_up_for_by_a_query(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, FALLBACK, seconds=0)
        pass_time(database)
        ask(database, to, FALLBACK, seconds=0)
    assert archive.questions == [UIDS]
    assert states(database) == [DeliveryState.VERIFIED] * OBJECTS
    assert all(row.done_at == row.verified_at is not None for row in database_rows(database))


@pytest.mark.parametrize(
    ("policy", "state", "said"),
    [(COMMITMENT, DeliveryState.HELD, "accepts no presentation context"), (FALLBACK, DeliveryState.VERIFIED, "")],
)
def test_an_archive_without_storage_commitment(
    database: Database, folder: Path, policy: CustodyPolicy, state: DeliveryState, said: str
) -> None:
    archive = Archive(offers=Archive.offers[1:])
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, policy)
        ask(database, to, policy)
    assert states(database) == [state] * OBJECTS
    assert said in rows(database)[FIRST].reason


@pytest.mark.parametrize(("status", "asked"), [(0x0213, 2), (0x0110, 2), (0x0124, 1), (0x0122, 1)])
def test_a_request_that_is_refused(database: Database, folder: Path, status: int, asked: int) -> None:
    archive = Archive(status=status)
    with archive.listening() as to:
        send(database, folder, to)
        for _ in range(3):
            ask(database, to, COMMITMENT)
            pass_time(database)
    assert len(archive.requests) == asked
    assert states(database) == [DeliveryState.HELD] * OBJECTS
    assert f"{status:04X}H" in rows(database)[FIRST].reason


@both
def test_an_archive_out_of_reach_costs_no_request_and_leaves_no_row(database: Database, folder: Path) -> None:
    archive = Archive()
    with archive.listening() as to:
        send(database, folder, to)
    for _ in range(3):
        assert ask(database, to, COMMITMENT) == OBJECTS
        assert ask(database, to, COMMITMENT) == 0
        pass_time(database)
    assert states(database) == [DeliveryState.SENT] * OBJECTS
    assert "nobody listens" in told(database)
    with archive.listening(to.port):
        ask(database, to, COMMITMENT)
    assert len(archive.requests) == 1
    assert states(database) == ALL_COMMITTED


def test_a_request_whose_sender_died_is_made_again(database: Database, folder: Path) -> None:
    """Between its row and its sending; whoever comes next waits for the lease, and asks under another UID."""
    archive = Archive()
    with archive.listening() as to:
        send(database, folder, to)
        with database.write() as connection:
            claimed = custody.claim(connection, "pacs", lease_seconds=60, limit=10)
            custody.open_request(
                connection, "pacs", claimed, transaction_uid="2.25.1", reported_by=["PACS"], policy=COMMITMENT
            )
        assert ask(database, to, COMMITMENT) == 0
        pass_time(database)
        assert ask(database, to, COMMITMENT) == OBJECTS
    assert states(database) == ALL_COMMITTED
    assert archive.requests[0][0] != "2.25.1"


def test_a_report_says_nothing_of_what_was_sent_again_since(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to, our_listener(database, **called_by("PACS")) as port:
        send(database, folder, to)
        ask(database, to, COMMITMENT, seconds=0)
        (first, asked) = archive.requests[0]
        assert archive.tell(port, report_of(first, [], [(each, 0x0112) for each in asked])) == 0x0000
        send(database, folder, to)
        ask(database, to, COMMITMENT, seconds=0)
        assert archive.tell(port, report_of(first, asked)) == 0x0000
        assert states(database) == [DeliveryState.SENT] * OBJECTS
        assert archive.tell(port, report_of(archive.requests[1][0], asked)) == 0x0000
    assert states(database) == ALL_COMMITTED


def test_each_sender_answers_for_what_it_got_back(database: Database, folder: Path) -> None:
    archive, hear = Archive(), CustodyReports(database).answer
    with archive.listening() as to:
        send(database, folder, to)
        custodian = DicomCustodian(remote=to, hear=hear, seconds=30, stop=threading.Event())
        assert confirm(database, "pacs", COMMITMENT, {"SCANNER": custodian}.get) == OBJECTS
        assert states(database) == ALL_COMMITTED
        with database.write() as connection:
            connection.execute(update(tables.delivery).values(state=DeliveryState.SENT, done_at=None, custody_at=0.0))
        confirm(database, "pacs", COMMITMENT, {"OTHER": custodian}.get)
    assert states(database) == [DeliveryState.HELD] * OBJECTS
    assert "there is nobody to ask" in rows(database)[FIRST].reason


def test_images_that_come_later_do_not_change_who_got_a_result_back(database: Database, folder: Path) -> None:
    archive, hear = Archive(), CustodyReports(database).answer
    with archive.listening() as to:
        send(database, folder, to)
        with database.write() as connection:
            connection.execute(update(tables.instance).values(calling_ae_title="OTHER"))
        custodian = DicomCustodian(remote=to, hear=hear, seconds=30, stop=threading.Event())
        assert confirm(database, "pacs", COMMITMENT, {"SCANNER": custodian}.get) == OBJECTS
    assert states(database) == ALL_COMMITTED


def test_what_was_done_because_it_was_sent_and_is_reported_lost_is_not_done(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to, our_listener(database, **called_by("PACS")) as port:
        send(database, folder, to)
        ask(database, to, COMMITMENT, seconds=0)
        (first, asked) = archive.requests[0]
        # Meanwhile somebody decided that sent suffices.
        ask(database, to, CustodyPolicy())
        assert all(row.done_at for row in database_rows(database))
        assert archive.tell(port, report_of(first, [], [(each, 0x0112) for each in asked])) == 0x0000
        assert states(database) == [DeliveryState.RETRYABLE] * OBJECTS
        assert not any(row.done_at for row in database_rows(database))
        assert send(database, folder, to) == OBJECTS
        ask(database, to, CustodyPolicy())
    assert all(row.done_at for row in database_rows(database))


def test_a_result_is_asked_for_when_all_of_it_was_sent(database: Database, folder: Path) -> None:
    archive = Archive()
    with archive.listening() as to:
        send(database, folder, to)
        last = tables.delivery.c.id == OBJECTS
        for state, asked in ((DeliveryState.SENDING, 0), (DeliveryState.PENDING, 0), (DeliveryState.HELD, OBJECTS - 1)):
            with database.write() as connection:
                connection.execute(update(tables.delivery).where(last).values(state=state))
            assert ask(database, to, COMMITMENT) == asked


# --- by query ----------------------------------------------------------------------------------------------------


@both
def test_what_was_lost_after_its_acknowledgement_is_sent_again(database: Database, folder: Path) -> None:
    archive = Archive(loses=[FIRST])
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, QUERY)
        assert states(database) == [DeliveryState.SENT, *[DeliveryState.VERIFIED] * (OBJECTS - 1)]
        assert "does not find it by its UID; asked again after" in told(database)
        missing = "the destination does not find it by its UID"
        found = ("verified", True, False, True, True, "")
        assert of_view(database) == [("sent", True, False, False, False, missing), *[found] * (OBJECTS - 1)]
        assert ask(database, to, QUERY) == 0, "the pause between two looks"
        pass_time(database)
        ask(database, to, QUERY)
        assert states(database)[0] is DeliveryState.RETRYABLE
        assert of_view(database)[0] == ("retryable", True, False, False, False, missing)
        send(database, folder, to)
        ask(database, to, QUERY)
    assert archive.arrived == [*UIDS, FIRST]
    assert states(database) == [DeliveryState.VERIFIED] * OBJECTS
    assert rows(database)[FIRST].losses == 1


def test_an_archive_that_indexes_late_is_looked_at_twice(database: Database, folder: Path) -> None:
    archive = Archive()
    with archive.listening() as to:
        send(database, folder, to)
        indexed, archive.there = archive.there, {}
        ask(database, to, QUERY)
        archive.there = indexed
        pass_time(database)
        ask(database, to, QUERY)
    assert archive.arrived == UIDS
    assert states(database) == [DeliveryState.VERIFIED] * OBJECTS


@pytest.mark.parametrize("lists", [0xA900, 0xC001, "ignored"])
def test_an_archive_that_takes_no_lists_is_asked_one_by_one(database: Database, folder: Path, lists: str | int) -> None:
    archive = Archive(find_lists=lists)
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, QUERY)
    assert archive.questions == [UIDS, *([uid] for uid in UIDS)]
    assert states(database) == [DeliveryState.VERIFIED] * OBJECTS


def test_an_archive_that_answers_no_query_is_a_persons(database: Database, folder: Path) -> None:
    archive = Archive(offers=Archive.offers[:1])
    with archive.listening() as to:
        send(database, folder, to)
        ask(database, to, QUERY)
    assert states(database) == [DeliveryState.HELD] * OBJECTS


# --- on the web --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "content_type", "body", "said"),
    [
        (200, JSON, json.dumps([{"00080018": {"vr": "UI", "Value": [FIRST]}}]).encode(), True),
        (200, JSON, json.dumps([{"00080018": {"vr": "UI", "Value": ["1.2.9.99"]}}]).encode(), False),
        (200, JSON, b"[]", False),
        (204, JSON, b"", False),
        (404, "text/plain", b"no such study", False),
        (200, JSON, b'[{"0008', "answered HTTP 200 and no list of what it has"),
        (200, "text/html", b"[]", "answered HTTP 200"),
        (401, JSON, b"[]", "answered HTTP 401"),
        (503, JSON, b"[]", "answered HTTP 503"),
        (0, JSON, b"", "Remote end closed connection without response"),
    ],
)
def test_what_a_web_service_says_of_an_object(status: int, content_type: str, body: bytes, said: bool | str) -> None:
    server = WebServer([(status, content_type, body)])
    with server.serving() as port:
        assert Service(url=f"http://127.0.0.1:{port}/dicom-web").has("1.2.3", "1.2.9", FIRST) == said
    assert [path for path, _, _ in server.asked if status] == [
        f"/dicom-web/studies/1.2.3/series/1.2.9/instances?SOPInstanceUID={FIRST}" for _ in range(bool(status))
    ]


@pytest.mark.peer
@pytest.mark.skipif(not PLUGIN.exists(), reason="Orthanc's DICOMweb plugin is not installed")
def test_orthanc_is_asked_on_the_web(database: Database, folder: Path, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc", Plugins=[str(PLUGIN)], DicomWeb={"Enable": True}) as archive:
        service = Service(url=f"http://127.0.0.1:{archive.http}/dicom-web")
        deliver(database, folder, "pacs", service.store, RETRY, threading.Event())
        forget(archive, FIRST)
        for _ in range(2):
            confirm(database, "pacs", QUERY, lambda _: WebCustodian(service=service))
            pass_time(database)
    assert states(database) == [DeliveryState.RETRYABLE, *[DeliveryState.VERIFIED] * (OBJECTS - 1)]


# --- Orthanc -----------------------------------------------------------------------------------------------------


def forget(archive: Orthanc, uid: str) -> None:
    """Have Orthanc lose an object."""
    query = {"Level": "Instance", "Query": {"SOPInstanceUID": uid}}
    (found,) = archive.ask("/tools/find", json.dumps(query).encode())
    url = f"http://127.0.0.1:{archive.http}/instances/{found}"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE"), timeout=30).close()


@pytest.mark.peer
def test_orthanc_commits_to_what_it_has_and_finds_it(database: Database, folder: Path, tmp_path: Path) -> None:
    with (
        orthanc(tmp_path / "orthanc") as archive,
        our_listener(database, **called_by("ORTHANC")) as port,
    ):
        know(archive, port, ae_title="SENDER")
        to = RemoteEntity(ae_title="ORTHANC", host="127.0.0.1", port=archive.dicom, calling_ae_title="SENDER")
        send(database, folder, to)
        forget(archive, FIRST)
        ask(database, to, COMMITMENT, seconds=0)
        wait_until(lambda: DeliveryState.SENT not in states(database), what="the report of Orthanc")
        assert states(database) == [DeliveryState.RETRYABLE, *ALL_COMMITTED[1:]]
        assert "(0112H)" in rows(database)[FIRST].reason
        send(database, folder, to)
        ask(database, to, QUERY)
        assert states(database) == [DeliveryState.VERIFIED, *ALL_COMMITTED[1:]]
        assert "done at pacs: 20" in told(database)


# --- a day -------------------------------------------------------------------------------------------------------


def test_a_pacs_that_is_down_for_a_day_gets_everything_once(database: Database, folder: Path) -> None:
    archive = Archive(report="never")
    with archive.listening() as to:
        pass
    with database.write() as connection:
        row = tables.delivery.c
        # The last is the most urgent.
        connection.execute(update(tables.delivery).values(priority=10 - row.id))
    for _ in range(6):
        assert send(database, folder, to) == 0
        assert ask(database, to, COMMITMENT) == 0
        pass_time(database, A_DAY / 6)
    assert states(database) == [DeliveryState.RETRYABLE] * OBJECTS
    with archive.listening(to.port), our_listener(database, **called_by("PACS")) as port:
        assert send(database, folder, to) == OBJECTS
        ask(database, to, COMMITMENT, seconds=0)
        # And then it takes another day to report.
        pass_time(database)
        assert archive.tell(port, archive.truth(*archive.requests[0])) == 0x0000
    assert archive.arrived == [*reversed(UIDS)]
    assert archive.requests[0][1] == [(BasicTextSRStorage, uid) for uid in reversed(UIDS)]
    assert states(database) == ALL_COMMITTED
    with database.read() as connection:
        assert len(connection.execute(tables.job.select()).all()) == 1


# --- whatever is said --------------------------------------------------------------------------------------------

SAID = ("committed", "0112", "0119", "0122", "nothing")
Report = tuple[int, Sequence[str]]
"""On which request, and what of each object."""


@both
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.lists(st.sampled_from(SAID), min_size=OBJECTS, max_size=OBJECTS)), max_size=4
    )
)
def test_reports_in_any_order(database: Database, folder: Path, reports: list[Report]) -> None:
    """Of two requests: hearing one twice is hearing it once, and what is committed was said to be, and stays."""
    named = [ReferencedInstance(sop_class_uid=str(BasicTextSRStorage), sop_instance_uid=uid) for uid in UIDS]
    with database.write() as connection:
        connection.execute(tables.custody_item.delete())
        connection.execute(tables.custody.delete())
        connection.execute(
            update(tables.delivery).values(
                state=DeliveryState.SENT, done_at=None, committed_at=None, losses=0, **deliveries.UNASKED
            )
        )
        for number in range(2):
            connection.execute(update(tables.delivery).values(custody_at=0.0))
            claimed = custody.claim(connection, "pacs", lease_seconds=60, limit=10)
            assert len(claimed) == OBJECTS
            custody.open_request(
                connection, "pacs", claimed, transaction_uid=f"2.25.{number}", reported_by=["PACS"], policy=COMMITMENT
            )
    committed: set[int] = set()
    for number, said in reports:
        failed = {each: int(what, 16) for each, what in zip(named, said, strict=True) if what[0] == "0"}
        there = frozenset(each for each, what in zip(named, said, strict=True) if what == "committed")
        report = CustodyReport(transaction_uid=f"2.25.{number}", committed=there, failed=failed)
        seen = []
        for _ in range(2):
            with database.write() as connection:
                assert custody.hear(connection, report, "PACS") is not None
                assert custody.hear(connection, report, "NOBODY") is None
            seen.append([(row.state, row.losses, row.done_at) for row in database_rows(database)])
        assert seen[0] == seen[1]
        now = {index for index, row in enumerate(database_rows(database)) if row.state is DeliveryState.COMMITTED}
        assert committed <= now
        assert now - committed <= {index for index, each in enumerate(named) if each in there}
        committed = now
        for index, row in enumerate(database_rows(database)):
            assert (row.done_at is not None) is (index in committed)
            assert row.losses <= 1
