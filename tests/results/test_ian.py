"""Whoever wants to know hears that a result is done at a destination: once, of all of it, and not of the past."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import InstanceAvailabilityNotification
from sqlalchemy import update
from test_custody import UIDS, both, told
from test_delivery import OBJECTS, RETRY, post_reports

from meddaemon.db import announcements, custody, notices, tables
from meddaemon.db.engine import Database
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.states import DeliveryState
from meddaemon.ingest.announcements import AnnouncementProvider
from meddaemon.results.dimse import RemoteEntity
from meddaemon.results.notices import ian
from meddaemon.results.notices.outbox import announce


@pytest.fixture
def dialect() -> str:
    """One database will do, unless a test asks for both."""
    return "sqlite"


@pytest.fixture
def result(database: Database, tmp_path: Path) -> Database:
    """A database with a result that was sent, and is not known to be done."""
    post_reports(database, tmp_path / "results")
    with database.write() as connection:
        connection.execute(
            update(tables.delivery).values(state=DeliveryState.SENT, sent_at=tables.delivery.c.created_at)
        )
    return database


@dataclass
class Worklist:
    """An AE that is told what is available; it answers with `status`."""

    status: int = 0x0000
    heard: list[tuple[str, Dataset]] = field(default_factory=list)

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[dict[str, RemoteEntity]]:
        entity = AE(ae_title="RIS")
        entity.add_supported_context(InstanceAvailabilityNotification)
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_N_CREATE, self._hear)])
        assert server is not None
        try:
            yield {
                "RIS": RemoteEntity(
                    ae_title="RIS",
                    host="127.0.0.1",
                    port=int(server.server_address[1]),
                    calling_ae_title="MEDDAEMON",
                    connection_timeout_seconds=2,
                )
            }
        finally:
            entity.shutdown()

    def _hear(self, event: evt.Event) -> tuple[int, Dataset | None]:
        self.heard.append((str(event.request.AffectedSOPInstanceUID), event.attribute_list))
        return self.status, None


def settle(database: Database) -> None:
    with database.write() as connection:
        custody.settle(connection, "pacs")


def say(database: Database, to: dict[str, RemoteEntity], *ae_titles: str) -> bool:
    targets = [Target(form=NoticeForm.IAN, target=each) for each in ae_titles]
    return announce(database, "pacs", NoticeForm.IAN, targets, partial(ian.tell, to, "PACS"), RETRY)


def rows(database: Database) -> list[notices.NoticeRow]:
    with database.read() as connection:
        return notices.listing(connection)


@both
def test_it_is_told_once_when_all_of_it_is_done(result: Database) -> None:
    worklist = Worklist()
    with worklist.listening() as to:
        settle(result)
        with result.write() as connection:
            connection.execute(
                update(tables.delivery).where(tables.delivery.c.id == 1).values(done_at=None, state=DeliveryState.HELD)
            )
        assert not say(result, to, "RIS")
        with result.write() as connection:
            connection.execute(update(tables.delivery).values(done_at=tables.delivery.c.sent_at))
        assert say(result, to, "RIS")
        assert not say(result, to, "RIS")
    ((uid, notification),) = worklist.heard
    assert uid.startswith("2.25.")
    assert notification.StudyInstanceUID == "1.2.3"
    assert list(notification.ReferencedPerformedProcedureStepSequence) == []
    (series,) = notification.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "1.2.9"
    assert [
        (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, item.InstanceAvailability, item.RetrieveAETitle)
        for item in series.ReferencedSOPSequence
    ] == [(BasicTextSRStorage, each, "ONLINE", "PACS") for each in UIDS]
    assert [row.state for row in rows(result)] == [DeliveryState.SENT]
    assert "told RIS (ian) 20" in told(result)


def test_what_is_reported_lost_before_it_is_told_waits_and_holds_up_no_other(result: Database) -> None:
    worklist = Worklist(status=0x0110)
    with worklist.listening() as to:
        settle(result)
        assert say(result, to, "RIS")
        worklist.status = 0x0000
        with result.write() as connection:
            connection.execute(update(tables.notice).values(available_at=0.0))
            connection.execute(update(tables.delivery).values(done_at=None, state=DeliveryState.RETRYABLE))
        assert not say(result, to, "RIS")
        assert [row.state for row in rows(result)] == [DeliveryState.RETRYABLE]
        with result.write() as connection:
            sent = {"done_at": tables.delivery.c.sent_at, "state": DeliveryState.SENT}
            connection.execute(update(tables.delivery).values(sent))
        assert say(result, to, "RIS")
    assert [row.state for row in rows(result)] == [DeliveryState.SENT]


def test_our_own_provider_takes_it(result: Database) -> None:
    worklist = Worklist()
    with worklist.listening() as to:
        settle(result)
        say(result, to, "RIS")
    ((uid, notification),) = worklist.heard
    answer = AnnouncementProvider(result).create(InstanceAvailabilityNotification, uid, "AI", notification)
    assert answer.status == 0x0000
    with result.read() as connection:
        (announced,) = announcements.of_study(connection, "1.2.3")
    assert (announced.announcement.named, announced.announcement.missing) == (OBJECTS, 0)


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (0x0111, DeliveryState.SENT, "was there already"),
        (0x0116, DeliveryState.SENT, "0116H"),
        (0x0110, DeliveryState.RETRYABLE, "processing failure"),
        (0x0213, DeliveryState.RETRYABLE, "0213H"),
        (0x0124, DeliveryState.HELD, "0124H"),
    ],
)
def test_the_answer_to_a_notice_decides(result: Database, status: int, state: DeliveryState, reason: str) -> None:
    worklist = Worklist(status)
    with worklist.listening() as to:
        settle(result)
        say(result, to, "RIS")
        (row,) = rows(result)
        assert (row.state, reason in row.reason) == (state, True), row.reason
        if state is DeliveryState.HELD:
            worklist.status = 0x0000
            with result.write() as connection:
                notices.requeue(connection, row.id)
            assert say(result, to, "RIS")
            assert [each.state for each in rows(result)] == [DeliveryState.SENT]
            # The same notification, not another one.
            assert len({uid for uid, _ in worklist.heard}) == 1


def test_who_is_away_hears_later_and_who_is_gone_is_a_persons(result: Database) -> None:
    worklist = Worklist()
    with worklist.listening() as to:
        pass
    settle(result)
    assert say(result, to, "RIS", "GONE")
    assert say(result, to, "RIS", "GONE")
    assert {row.target: row.state for row in rows(result)} == {
        "RIS": DeliveryState.RETRYABLE,
        "GONE": DeliveryState.HELD,
    }
    with result.write() as connection:
        connection.execute(update(tables.notice).values(available_at=0.0))
    with worklist.listening(to["RIS"].port):
        say(result, to, "RIS", "GONE")
    assert len(worklist.heard) == 1


def test_whoever_asks_to_be_told_is_not_told_of_the_past(result: Database) -> None:
    worklist = Worklist()
    with worklist.listening() as to:
        settle(result)
        assert not say(result, to)
        assert not say(result, to, "RIS")
    assert worklist.heard == []
