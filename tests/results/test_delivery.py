"""What becomes of a delivery: by the answer of a real SCP, without one, and when the sender is told to stop."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian
from queue_samples import OVER, analysis, claim, enqueue, received, register
from running import Home
from scripted_scp import Reply, ScriptedScp
from sqlalchemy import update

from meddaemon.db import deliveries, jobs, requests, results, tables
from meddaemon.db.deliveries import DeliveryRow
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.db.results import StoredObject
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.states import DeliveryState
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.store import as_part10
from meddaemon.results.delivery import Retry, deliver
from meddaemon.results.dimse import RemoteEntity, store
from tests.ingest.encoded import written
from tests.system.site import Pacs

RETRY = Retry(first_seconds=100, longest_seconds=250, lease_seconds=60)
KINDS = ("SEG", "SR", "KO")
OBJECTS = len(KINDS)


class Answering(Pacs):
    """A PACS that answers with these statuses, one after the other, the last for ever; `before` the first it acts."""

    def __init__(self, *statuses: int, before: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._statuses = list(statuses)
        self._before = before

    def take(self, incoming: Incoming) -> None:
        self.status = (self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]) or None
        act, self._before = self._before, lambda: None
        act()
        super().take(incoming)

    @contextmanager
    def answering(self) -> Iterator[RemoteEntity]:
        with self.listening() as port:
            yield remote(port=port)


def remote(host: str = "127.0.0.1", port: int = 11112) -> RemoteEntity:
    return RemoteEntity(
        ae_title="PACS", host=host, port=port, calling_ae_title="MEDDAEMON", connection_timeout_seconds=2
    )


def report(kind: str, uid: str) -> EncodedObject:
    data_set = Dataset()
    data_set.SOPClassUID = BasicTextSRStorage
    data_set.SOPInstanceUID = uid
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3", "1.2.9"
    data_set.Modality = "SR"
    named = {
        "sop_class_uid": str(BasicTextSRStorage),
        "sop_instance_uid": uid,
        "transfer_syntax_uid": str(ExplicitVRLittleEndian),
    }
    content = as_part10(written(data_set, ExplicitVRLittleEndian), **named)
    return EncodedObject(kind=kind, series_instance_uid="1.2.9", content=content, **named)


@pytest.fixture
def dialect() -> str:
    """The outbox has its own tests, on both; here one database will do."""
    return "sqlite"


@pytest.fixture
def folder(database: Database, tmp_path: Path) -> Path:
    """The store of a result with some reports that wait for one destination."""
    post_reports(database, tmp_path / "results")
    return tmp_path / "results"


def post_reports(database: Database, folder: Path) -> None:
    """Store a result with some reports, to be sent to `pacs`."""
    study = register(database, received("an instance")).study_id
    enqueue(database, study)
    job = claim(database)
    stored = [StoredObject.of(report(kind, f"1.2.9.{number}")) for number, kind in enumerate(KINDS, 1)]
    for each in stored:
        path_of(folder, each.sha256).parent.mkdir(parents=True)
        path_of(folder, each.sha256).write_bytes(each.encoded.content)
    with database.write() as connection:
        results.record(
            connection,
            jobs.complete(connection, job),
            analysis(),
            stored,
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets={"pacs": Outlet(kinds=KINDS)},
        )


def database_rows(database: Database) -> list[DeliveryRow]:
    with database.read() as connection:
        return deliveries.listing(connection)


def drain(database: Database, folder: Path, to: RemoteEntity, stop: threading.Event | None = None) -> int:
    return deliver(database, folder, "pacs", partial(store, to), RETRY, stop or threading.Event())


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (0x0000, DeliveryState.SENT, ""),
        (0x0111, DeliveryState.SENT, "was there already"),
        (0xB000, DeliveryState.SENT, "taken with warning B000H"),
        (0xB007, DeliveryState.SENT, "taken with warning B007H"),
        (0x0110, DeliveryState.RETRYABLE, "processing failure"),
        (0xA700, DeliveryState.RETRYABLE, "out of resources"),
        (0xA7FF, DeliveryState.RETRYABLE, "out of resources"),
        (0xA900, DeliveryState.HELD, "refused with status A900H"),
        (0xC000, DeliveryState.HELD, "refused with status C000H"),
        (0x0122, DeliveryState.HELD, "refused with status 0122H"),
        (0x0124, DeliveryState.HELD, "refused with status 0124H"),
    ],
)
def test_the_answer_decides(database: Database, folder: Path, status: int, state: DeliveryState, reason: str) -> None:
    pacs = Answering(status, 0)
    with pacs.answering() as to:
        taken = drain(database, folder, to)
    first, *others = database_rows(database)
    assert (first.state, first.status, first.attempt) == (state, status, 1)
    assert reason in first.reason
    assert [each.state for each in others] == [DeliveryState.SENT] * (OBJECTS - 1)
    assert taken == OBJECTS - 1 + (state is DeliveryState.SENT)


def test_what_a_pacs_says_of_a_refusal_is_kept_and_not_logged(
    database: Database, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It may name a patient: some archives say whose object they have found under another one's number."""
    pacs = ScriptedScp(steps=[Reply(0xC000, "not of Doe^Jane"), Reply(0xA700, "no room for Doe^Jane"), Reply()])
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
    held, waiting, _ = database_rows(database)
    assert held.reason == "refused with status C000H: not of Doe^Jane"
    assert waiting.reason.endswith("no room for Doe^Jane")
    logged = capfd.readouterr().err
    assert "C000H" in logged
    assert "Doe" not in logged


@pytest.mark.parametrize("host", ["no-such-host.invalid", "not a host name", "127.0.0.1"])
def test_without_an_answer_it_is_tried_again(database: Database, folder: Path, host: str) -> None:
    with Answering(0).answering() as gone:
        pass
    assert drain(database, folder, remote(host, gone.port)) == 0
    assert [row.state for row in database_rows(database)] == [DeliveryState.RETRYABLE] * OBJECTS
    assert all(f"PACS at {host}" in row.reason for row in database_rows(database))


def test_one_file_that_cannot_be_read_holds_up_no_other(database: Database, folder: Path) -> None:
    with database.read() as connection:
        (gone, *_) = results.objects_of(connection, 1)
    path_of(folder, gone.sha256).unlink()
    pacs = Answering(0)
    with pacs.answering() as to:
        assert drain(database, folder, to) == OBJECTS - 1
    first, *others = database_rows(database)
    assert (first.state, first.reason) == (
        DeliveryState.RETRYABLE,
        "the stored object cannot be read: No such file or directory",
    )
    assert [each.state for each in others] == [DeliveryState.SENT] * (OBJECTS - 1)


def test_a_sender_that_is_told_to_stop_gives_back_the_rest(database: Database, folder: Path) -> None:
    stop = threading.Event()
    pacs = Answering(0, before=stop.set)
    with pacs.answering() as to:
        assert drain(database, folder, to, stop) == 1
        # Given back at no cost: no lease to wait for, no attempt counted.
        assert [(row.state, row.attempt) for row in database_rows(database)] == [
            (DeliveryState.SENT, 1),
            (DeliveryState.PENDING, 0),
            (DeliveryState.PENDING, 0),
        ]
        assert drain(database, folder, to) == OBJECTS - 1
    assert len({each.SOPInstanceUID for each in pacs.received}) == len(pacs.received) == OBJECTS


def test_leases_are_renewed_while_others_are_sent(database: Database, folder: Path) -> None:
    with database.write() as connection:
        claimed = deliveries.claim(connection, destination="pacs", lease_seconds=OVER)
        assert deliveries.renew(connection, claimed[1:], lease_seconds=60) == {each.id for each in claimed[1:]}
        again = deliveries.claim(connection, destination="pacs", lease_seconds=60)
        assert [each.id for each in again] == [claimed[0].id]
        assert deliveries.renew(connection, claimed, lease_seconds=60) == {each.id for each in claimed[1:]}


def test_a_sender_whose_claim_was_taken_over_sends_nothing_twice(database: Database, folder: Path) -> None:
    """The first object takes longer than the lease, and another sender has taken up the rest meanwhile."""
    others = Answering(0)

    def take_over() -> None:
        with database.write() as connection:
            connection.execute(update(tables.delivery).values(lease_expires_at=0.0))
        with others.answering() as to:
            drain(database, folder, to)

    slow = Answering(0, before=take_over)
    with slow.answering() as to:
        drain(database, folder, to)
    sent = [str(each.SOPInstanceUID) for each in (*slow.received, *others.received)]
    # The object that was under way is the one that nobody could know of.
    assert sorted(sent) == sorted([*{*sent}, str(slow.received[0].SOPInstanceUID)])
    assert len(slow.received) == 1
    assert [row.state for row in database_rows(database)] == [DeliveryState.SENT] * OBJECTS


def test_what_is_outdated_meanwhile_is_not_sent(database: Database, folder: Path) -> None:
    def outdate() -> None:
        with database.write() as connection:
            requests.let_go(connection, study_id=1, rule=jobs.get(connection, 1).rule)
            requests.settle(connection, 1, 2, {})

    pacs = Answering(0, before=outdate)
    with pacs.answering() as to:
        assert drain(database, folder, to) == 1
        assert drain(database, folder, to) == 0
    assert [(row.state, row.wanted) for row in database_rows(database)] == [
        (DeliveryState.SENT, False),
        (DeliveryState.PENDING, False),
        (DeliveryState.PENDING, False),
    ]


def test_delays_double_up_to_the_longest() -> None:
    assert [RETRY.delay(attempt) for attempt in (1, 2, 3, 4, 10_000)] == [100, 200, 250, 250, 250]


SITE = """
[delivery]
poll_seconds = 0.1

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
"""


@pytest.mark.parametrize("database_is_locked", [False, True])
def test_a_pacs_that_does_not_answer_does_not_hold_up_the_end(tmp_path: Path, *, database_is_locked: bool) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        may_answer.wait(60)

    with ExitStack() as stack:
        to = stack.enter_context(Answering(0, before=hang).answering())
        stack.callback(may_answer.set)
        home = Home.make(tmp_path / "home", SITE.format(port=to.port))
        with home.database() as database:
            post_reports(database, home.settings.store.results)
            delivering = stack.enter_context(home.running("deliver"))
            assert asked.wait(60)
            if database_is_locked:
                stack.enter_context(database.write())
            delivering.stop()  # within 15 s and with exit code 0
    assert "left a delivery in progress" in delivering.log_text()
