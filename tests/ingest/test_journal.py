"""The ingest journal: what it gives back after a crash, whatever of the last writes the disk has."""

import os
import random
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from encoded import written
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from running import Home, data_set_of, wait_until
from scanner import scanner

from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.domain.commitment import CommitmentRequest, ReferencedInstance
from meddaemon.domain.errors import RefusedInstance, StoreUnavailable
from meddaemon.ingest import filing
from meddaemon.ingest import journal as journals
from meddaemon.ingest.commitment import examine
from meddaemon.ingest.content import PAGE, Buffers, Content
from meddaemon.ingest.filing import file_abandoned
from meddaemon.ingest.intake import Intake
from meddaemon.ingest.journal import Entry, Journal, Record, waiting
from meddaemon.ingest.receive import Incoming, Receiver
from meddaemon.ingest.store import InstanceStore, meta_of
from meddaemon.ingest.volume import open_volume

SMALL = 2**20


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SEGMENT_BYTES", SMALL)


def own(folder: Path, segments: int = 2) -> Journal:
    """Return a journal that has all its segments."""
    journal = Journal.own(folder, size=segments * SMALL, require_room=lambda size: None)
    wait_until(lambda: len(list(folder.glob("*/*.segment"))) == segments, what="the segments")
    return journal


def entry(data: bytes, buffers: Buffers, folder: Path) -> Entry:
    content = Content(b"", buffers=buffers, folder=folder, maximum_bytes=2**30)
    content.write(data)
    return Entry(content=content, sop_instance_uid="2.25.10", calling_ae_title="CT1", called_ae_title="MED\u00c4")


def appended(journal: Journal, datas: list[bytes], folder: Path) -> list[Record]:
    buffers = Buffers()
    return [record for data in datas for record in journal.append([entry(data, buffers, folder)])]


def left_in(folder: Path) -> list[bytes]:
    """Return what a start after a crash finds."""
    found: list[bytes] = []
    for journal in Journal.abandoned(folder):
        found += [record.read() for record in journal.left_behind()]
        journal.close()
    return found


def crash(journal: Journal) -> None:
    """Let go of a journal without another word to the disk."""
    for segment in journal._segments:
        segment.close()
    journal._lock.close()


def test_what_was_appended_is_found_after_a_crash(tmp_path: Path) -> None:
    datas = [secrets.token_bytes(size) for size in (0, 1, PAGE - 1, PAGE, PAGE + 1, 200_000, 300_001)]
    journal = own(tmp_path)
    records = appended(journal, datas, tmp_path)
    assert [record.read() for record in records] == datas
    assert len(waiting(tmp_path)) == len(datas)
    crash(journal)
    assert left_in(tmp_path) == datas


def test_one_write_holds_several_objects(tmp_path: Path) -> None:
    datas = [secrets.token_bytes(size) for size in (5000, 1, 70_000)]
    journal = own(tmp_path)
    buffers = Buffers()
    journal.append([entry(data, buffers, tmp_path) for data in datas])
    crash(journal)
    (again,) = Journal.abandoned(tmp_path)
    assert [(each.calling_ae_title, each.called_ae_title) for each in again.left_behind()] == [("CT1", "MED\u00c4")] * 3
    assert [each.read() for each in again.left_behind()] == datas
    again.close()


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5 * PAGE), min_size=1, max_size=8),
    filed=st.integers(0, 8),
    seed=st.integers(0, 2**32),
)
def test_a_power_loss_takes_nothing_that_was_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], filed: int, seed: int
) -> None:
    """Whatever pages of the write in progress the disk has: what was written before is there, and nothing torn is."""
    folder = tmp_path_factory.mktemp("journal")
    chance = random.Random(seed)
    datas = [chance.randbytes(size) for size in sizes]
    journal = own(folder, segments=1)
    records = appended(journal, datas, folder)
    done = records[: min(filed, len(records) - 1)]
    journal.filed(done)
    last = records[-1]
    with last.segment.path.open("r+b") as file:
        for page in range(last.offset, last.offset + last.length, PAGE):
            if chance.random() < 0.5:
                file.seek(page)
                file.write(chance.choice([bytes(PAGE), chance.randbytes(PAGE)]))
    crash(journal)
    found = left_in(folder)
    assert found[: len(records) - 1 - len(done)] == datas[len(done) : -1]
    assert found[len(records) - 1 - len(done) :] in ([], [datas[-1]])


def test_what_a_peer_sends_is_not_taken_for_a_record(tmp_path: Path) -> None:
    journal = own(tmp_path)
    (record,) = appended(journal, [secrets.token_bytes(3 * PAGE)], tmp_path)
    with record.segment.path.open("rb") as file:
        file.seek(record.offset)
        whole = file.read(record.length)
    # A copy of a true record, and one with its place changed, in what somebody sends: both at the start of a page.
    forged = bytearray(whole)
    forged[16:24] = (record.offset + record.length + 2 * PAGE).to_bytes(8, "little")
    sent = [whole, bytes(forged), bytes(PAGE) + bytes(forged)]
    appended(journal, sent, tmp_path)
    crash(journal)
    assert len(left_in(tmp_path)) == 4


def test_a_segment_that_was_filed_is_used_again_and_what_stood_there_stays_forgotten(tmp_path: Path) -> None:
    journal = own(tmp_path)
    for _ in range(20):
        records = appended(journal, [secrets.token_bytes(150_000) for _ in range(3)], tmp_path)
        journal.filed(records)
    last = appended(journal, [b"last"], tmp_path)
    crash(journal)
    assert left_in(tmp_path) == [b"last"]
    assert last[0].size == 4


def test_a_full_journal_waits_for_room_and_says_so_when_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = own(tmp_path)
    records = [appended(journal, [bytes(500_000)], tmp_path)[0] for _ in range(4)]
    helper = threading.Timer(0.2, journal.filed, [records[:2]])
    helper.start()
    appended(journal, [bytes(500_000)], tmp_path)
    helper.join()
    monkeypatch.setattr(journals, "WAIT_SECONDS", 0.1)
    appended(journal, [bytes(500_000)], tmp_path)
    with pytest.raises(StoreUnavailable, match="journal is full"):
        appended(journal, [bytes(500_000)], tmp_path)
    journal.close()


def test_processes_have_a_journal_each_and_none_is_taken_that_holds_something(tmp_path: Path) -> None:
    first, second = own(tmp_path, 1), Journal.own(tmp_path, size=SMALL, require_room=lambda size: None)
    wait_until(lambda: second.is_ready, what="the second journal")
    appended(first, [b"kept"], tmp_path)
    crash(first)
    third = Journal.own(tmp_path, size=SMALL, require_room=lambda size: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]
    second.close()
    third.close()
    assert left_in(tmp_path) == [b"kept"]


def test_room_that_is_not_there_is_not_taken(tmp_path: Path) -> None:
    def require_room(size: int) -> None:
        raise StoreUnavailable("no room")

    journal = Journal.own(tmp_path, size=SMALL, require_room=require_room)
    journal.close()
    assert not journal.is_ready
    assert list(tmp_path.glob("*/*.segment")) == []


def test_what_a_power_loss_forgets_of_the_notes_costs_nothing(tmp_path: Path) -> None:
    """The first page is synced only when a segment is begun: any note that came later may be lost, or not."""
    journal = own(tmp_path, segments=1)
    path = next(tmp_path.glob("*/*.segment"))
    (filed,) = appended(journal, [b"filed"], tmp_path)
    (record,) = appended(journal, [b"kept"], tmp_path)
    begun = path.read_bytes()[:PAGE]
    journal.filed([filed])
    noted = path.read_bytes()[:PAGE]
    crash(journal)
    for first_page, left in ((begun, [b"filed", b"kept"]), (noted, [b"kept"])):
        with path.open("r+b") as file:
            file.write(first_page)
        assert left_in(tmp_path) == left
    assert record.size == 4


def test_a_segment_that_is_begun_anew_is_looked_through_again(tmp_path: Path) -> None:
    journal = own(tmp_path, segments=1)
    journal.filed(appended(journal, [secrets.token_bytes(600_000)], tmp_path))
    journal.close()
    again = Journal.own(tmp_path, size=SMALL, require_room=lambda size: None)
    appended(again, [b"kept"], tmp_path)
    crash(again)
    assert left_in(tmp_path) == [b"kept"]


def test_closing_forgets_nothing_that_was_not_filed(tmp_path: Path) -> None:
    journal = own(tmp_path)
    records = appended(journal, [b"first", b"second"], tmp_path)
    journal.filed(records[:1])
    journal.close()
    assert left_in(tmp_path) == [b"second"]
    Journal.own(tmp_path, size=SMALL, require_room=lambda size: None).close()
    assert left_in(tmp_path) == [b"second"]


# --- the journal, its filing, the store and the database ------------------------------------------------------------


class Site:
    """An intake with all that is behind it, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(f"sqlite:///{folder / 'index.sqlite'}")
        self.database.upgrade()
        self.store = InstanceStore(folder / "store", minimum_free_bytes=0)
        self.receiver = Receiver(self.database, self.store, quiet_seconds=3600)

    def intake(self, maximum_bytes: int = 2**30) -> "closing[Intake]":
        return closing(
            Intake(self.database, self.store, self.receiver, journal_bytes=2 * SMALL, maximum_bytes=maximum_bytes)
        )

    def take(self, intake: Intake, uid: str, data: bytes) -> RefusedInstance | None:
        meta = meta_of(sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian)
        content = intake.new_content(meta)
        content.write(data)
        (outcome,) = intake.take_all(
            [
                Incoming(
                    content=content,
                    transfer_syntax_uid=ExplicitVRLittleEndian,
                    sop_class_uid=CTImageStorage,
                    sop_instance_uid=uid,
                    calling_ae_title="CT1",
                )
            ]
        )
        return outcome

    def registered(self) -> dict[str, str]:
        with self.database.read() as connection:
            rows = connection.execute(tables.instance.select()).all()
        return {row.sop_instance_uid: row.sha256 for row in rows}

    def kept(self) -> dict[str, bytes]:
        return {uid: data_set_of(self.store.path(sha256)) for uid, sha256 in self.registered().items()}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.close()
    site.database.close()


def image(uid: str, size: int = 20_000, *, study: str = "2.25.1") -> bytes:
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = uid
    data_set.StudyInstanceUID = study
    data_set.SeriesInstanceUID = f"{study}.2"
    data_set.PatientID = "P"
    data_set.add_new(0x7FE00010, "OW", secrets.token_bytes(size // 2 * 2))
    return written(data_set, ExplicitVRLittleEndian)


def ready(site: Site) -> None:
    wait_until(lambda: len(list(site.store.journals.glob("*/*.segment"))) == 2, what="the journal")


def test_what_the_journal_holds_becomes_files_and_rows(site: Site) -> None:
    sent = {f"2.25.{number}": image(f"2.25.{number}", size) for number, size in enumerate((1, 20_000, 300_000), 10)}
    with site.intake() as intake:
        ready(site)
        assert [site.take(intake, uid, data) for uid, data in sent.items()] == [None] * 3
        assert site.take(intake, "2.25.10", sent["2.25.10"]) is None  # an identical re-send
    assert site.kept() == sent
    assert waiting(site.store.journals) == []


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a lull, or for a moment to pass, longer than any test."""
    monkeypatch.setattr(filing, "LULL_SECONDS", 600.0)
    monkeypatch.setattr(filing, "LONGEST_SECONDS", 600.0)


@pytest.mark.usefixtures("patient")
def test_while_objects_keep_coming_they_stay_in_the_journal_until_somebody_asks(site: Site) -> None:
    with site.intake() as intake:
        ready(site)
        for number in range(10, 15):
            assert site.take(intake, f"2.25.{number}", image(f"2.25.{number}")) is None
        assert waiting(site.store.journals) == [f"2.25.{number}" for number in range(10, 15)]
        assert site.registered() == {}
        intake.settle()
        assert len(site.registered()) == 5
        assert site.take(intake, "2.25.15", image("2.25.15")) is None
        assert waiting(site.store.journals) == ["2.25.15"]
    assert len(site.registered()) == 6


@pytest.mark.usefixtures("patient")
def test_a_commitment_waits_for_what_any_process_has_still_to_file(site: Site) -> None:
    def asked(*uids: str) -> CommitmentRequest:
        named = tuple(ReferencedInstance(sop_class_uid=CTImageStorage, sop_instance_uid=uid) for uid in uids)
        return CommitmentRequest(transaction_uid="2.25.1", calling_ae_title="CT1", instances=named)

    with site.intake() as intake:
        ready(site)
        assert site.take(intake, "2.25.10", image("2.25.10")) is None
        store = site.store.instances
        assert examine(site.database, store, asked("2.25.10", "2.25.99")) is None
        unknown = examine(site.database, store, asked("2.25.99"))
        assert unknown is not None
        assert len(unknown.failed) == 1
        intake.settle()
        report = examine(site.database, store, asked("2.25.10"))
        assert report is not None
        assert (len(report.committed), len(report.failed)) == (1, 0)


@pytest.mark.usefixtures("patient")
def test_a_journal_that_is_nearly_full_is_filed_without_waiting(site: Site) -> None:
    with site.intake() as intake:
        ready(site)
        for number in range(10, 16):
            assert site.take(intake, f"2.25.{number}", image(f"2.25.{number}", 250_000)) is None
        wait_until(lambda: len(site.registered()) >= 4, what="rows")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("which", ["LULL_SECONDS", "LONGEST_SECONDS"])
def test_a_lull_and_a_long_wait_end_the_waiting(site: Site, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    monkeypatch.setattr(filing, which, 0.1)
    with site.intake() as intake:
        ready(site)
        assert site.take(intake, "2.25.10", image("2.25.10")) is None
        wait_until(site.registered, what="a row")


@pytest.mark.usefixtures("patient")
def test_a_record_that_the_disk_damaged_is_reported_and_keeps_nobody_waiting(site: Site) -> None:
    with site.intake() as intake:
        ready(site)
        for number in (10, 11):
            assert site.take(intake, f"2.25.{number}", image(f"2.25.{number}")) is None
        path = min(site.store.journals.glob("*/*.segment"))
        with path.open("r+b") as file:
            file.seek(2 * PAGE + 5000)
            file.write(b"rotten")
        intake.settle()
        assert list(site.registered()) == ["2.25.11"]
        assert site.take(intake, "2.25.12", image("2.25.12")) is None
    with site.database.read() as connection:
        (refusal,) = connection.execute(tables.refusal.select()).all()
    assert refusal.sop_instance_uid == "2.25.10"
    assert "damaged on the disk" in refusal.reason
    assert set(site.registered()) == {"2.25.11", "2.25.12"}


def test_a_uid_of_another_study_is_refused_also_while_the_first_is_being_filed(site: Site) -> None:
    with site.intake() as intake:
        ready(site)
        assert site.take(intake, "2.25.10", image("2.25.10")) is None
        refused = site.take(intake, "2.25.10", image("2.25.10", study="2.25.9"))
        assert refused is not None
        assert refused.status == 0xA900
    refused = None
    with site.intake() as intake:
        refused = site.take(intake, "2.25.10", image("2.25.10", study="2.25.9"))
        assert refused is not None
        assert refused.status == 0xA900
    assert list(site.registered()) == ["2.25.10"]
    assert len(list(site.store.quarantine.iterdir())) == 2


def test_objects_longer_than_memory_are_stored_bit_for_bit(site: Site) -> None:
    data = image("2.25.10", 9_000_001)
    with site.intake() as intake:
        ready(site)
        assert site.take(intake, "2.25.10", data) is None
        assert site.kept() == {"2.25.10": data}  # registered when it is acknowledged


def test_an_object_longer_than_it_may_be_is_read_and_refused(site: Site) -> None:
    with site.intake(2**22) as intake:
        refused = site.take(intake, "2.25.10", image("2.25.10", 9_000_000))
        assert refused is not None
        assert refused.status == 0xA700
        assert "longer than the 4194304 bytes" in refused.reason
    assert [path.name for path in site.store.scratch.iterdir()] == ["lock"]


def test_what_cannot_be_filed_stays_in_the_journal_and_the_next_start_begins_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {f"2.25.{number}": image(f"2.25.{number}") for number in range(10, 15)}
    with site.intake() as intake:
        ready(site)
        monkeypatch.setattr(os, "replace", _no_more)
        assert [site.take(intake, uid, data) for uid, data in sent.items()] == [None] * 5
        refused = wait_until(lambda: site.take(intake, "2.25.99", image("2.25.99")), what="a refusal")
        assert refused.status == 0xA700
        assert "cannot be filed" in refused.reason
    assert site.registered() == {}
    monkeypatch.undo()
    assert len(waiting(site.store.journals)) >= 5
    file_abandoned(site.store, site.receiver)
    assert {uid: data for uid, data in site.kept().items() if uid in sent} == sent
    assert waiting(site.store.journals) == []


def _no_more(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_filing_goes_on_when_the_fault_is_over(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with site.intake() as intake:
        ready(site)
        with monkeypatch.context() as broken:
            broken.setattr(os, "replace", _no_more)
            assert site.take(intake, "2.25.10", image("2.25.10")) is None
            wait_until(lambda: site.take(intake, "2.25.99", image("2.25.99")), what="a refusal")
        wait_until(lambda: "2.25.10" in site.registered(), what="the first object to be filed")
        wait_until(lambda: site.take(intake, "2.25.11", image("2.25.11")) is None, what="the next one to be taken")


def test_a_disk_that_fails_in_the_middle_of_an_object_is_an_answer_and_leaves_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.intake() as intake:
        monkeypatch.setattr(os, "write", _no_more)
        refused = site.take(intake, "2.25.10", image("2.25.10", 9_000_000))
        assert refused is not None
        assert refused.status == 0xA700
        monkeypatch.undo()
        assert site.take(intake, "2.25.11", image("2.25.11", 9_000_000)) is None
    assert list(site.registered()) == ["2.25.11"]
    assert [path.name for path in site.store.scratch.iterdir()] == ["lock"]


def test_the_listener_files_what_stands_in_the_journal_before_it_listens(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    with home.database() as database:
        store = InstanceStore(home.store, minimum_free_bytes=0)
        receiver = Receiver(database, store, quiet_seconds=3600)
        site = Site.__new__(Site)
        site.store, site.receiver, site.database = store, receiver, database
        journal = own(store.journals)
        buffers = Buffers()
        data = image("2.25.10")
        meta = meta_of(
            sop_class_uid=CTImageStorage, sop_instance_uid="2.25.10", transfer_syntax_uid=ExplicitVRLittleEndian
        )
        (record,) = journal.append([entry(meta + data, buffers, tmp_path)])
        assert record.read() == meta + data
        crash(journal)
        store.close()
    with home.running("listen") as listener:
        listener.port()
        (row,) = home.rows(tables.instance)
    assert (row.sop_instance_uid, row.calling_ae_title, row.called_ae_title) == ("2.25.10", "CT1", "MED\u00c4")
    assert data_set_of(home.files()[row.sha256]) == data


def test_a_volume_that_went_and_came_back_has_a_journal_again(tmp_path: Path) -> None:
    """The folder is moved away and back, as a volume that is not mounted for a while."""
    home = Home.make(tmp_path / "home", '\n[database]\nurl = "sqlite:///database.sqlite"\n')
    away = tmp_path / "away"
    with home.running("listen") as listener, scanner(listener.port()) as sender:
        assert sender.store(image("2.25.10"), "2.25.10") == 0
        home.await_filed()
        home.store.rename(away)
        assert sender.store(image("2.25.11"), "2.25.11") == 0xA700
        assert not home.store.exists()
        away.rename(home.store)
        for uid in ("2.25.11", "2.25.12"):
            assert sender.store(image(uid), uid) == 0
        assert {row.sop_instance_uid for row in home.instances()} == {"2.25.10", "2.25.11", "2.25.12"}
        assert sender.echo() == 0
    assert len(home.files()) == 3


def more_than(acknowledged: dict[str, bytes], count: int) -> None:
    wait_until(lambda: len(acknowledged) > count, what="objects to be taken")


def test_many_at_once_while_the_volume_goes_and_comes_back(site: Site, tmp_path: Path) -> None:
    """Whatever was acknowledged is there in the end; the store was away in between, more than once."""
    volume = open_volume(site.database, site.store.instances.parent)
    store = InstanceStore(site.store.instances.parent, minimum_free_bytes=0, volume=volume)
    receiver = Receiver(site.database, store, quiet_seconds=3600)
    acknowledged: dict[str, bytes] = {}
    over = threading.Event()
    with (
        closing(Intake(site.database, store, receiver, journal_bytes=2 * SMALL, maximum_bytes=2**30)) as intake,
        ThreadPoolExecutor(4) as pool,
    ):

        def send(number: int) -> None:
            for each in range(1000):
                uid = f"2.25.{number}.{each}"
                data = image(uid, 30_000)
                if site.take(intake, uid, data) is None:
                    acknowledged[uid] = data
                if over.is_set():
                    return

        senders = [pool.submit(send, number) for number in range(1, 5)]
        folder, away = store.instances.parent, tmp_path / "away"
        for round_ in range(3):
            more_than(acknowledged, len(acknowledged) + 10)
            folder.rename(away)
            pause = threading.Event()
            pause.wait(0.2 * (round_ + 1))
            away.rename(folder)
        more_than(acknowledged, len(acknowledged) + 10)
        over.set()
        for sender in senders:
            sender.result(60)
    file_abandoned(store, receiver)
    store.close()
    assert len(acknowledged) > 40
    kept = site.kept()
    assert {uid: kept.get(uid) for uid in acknowledged} == acknowledged
