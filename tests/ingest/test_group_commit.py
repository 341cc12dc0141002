"""Several threads, one transaction: each gets its own outcome, and nobody waits for company."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from encoded import written
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from running import wait_until
from sqlalchemy import event, select

from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.domain.errors import RefusedInstance
from meddaemon.durable import Staging, place, sync_names
from meddaemon.ingest.group_commit import GroupCommit
from meddaemon.ingest.receive import Incoming, Receiver
from meddaemon.ingest.store import InstanceStore

THREADS = 8


class Gate:
    """Work that is held up until the test lets it go; notes which groups were done."""

    def __init__(self, outcome: Callable[[int], int | Exception] = lambda work: work * 10) -> None:
        self.groups: list[list[int]] = []
        self.open = threading.Event()
        self.begun = threading.Event()
        self._outcome = outcome

    def __call__(self, group: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(group))
        self.begun.set()
        assert self.open.wait(30)
        return [self._outcome(each) for each in group]


def waiting(commit: GroupCommit[int, int]) -> int:
    return len(commit._waiting)


def test_who_comes_alone_goes_alone() -> None:
    gate = Gate()
    gate.open.set()
    commit = GroupCommit(gate)
    assert [commit.do(1), commit.do(2)] == [10, 20]
    assert gate.groups == [[1], [2]]


def test_those_who_come_meanwhile_go_together_and_each_gets_its_own() -> None:
    gate = Gate()
    commit = GroupCommit(gate)
    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(commit.do, 0)
        assert gate.begun.wait(30)
        others = [pool.submit(commit.do, number) for number in range(1, THREADS)]
        wait_until(lambda: waiting(commit) == THREADS - 1, what="the others to wait")
        assert not any(each.done() for each in (first, *others))
        gate.open.set()
        assert [each.result(30) for each in (first, *others)] == [number * 10 for number in range(THREADS)]
    assert gate.groups[0] == [0]
    assert sorted(gate.groups[1]) == list(range(1, THREADS))
    assert len(gate.groups) == 2


def test_an_error_is_only_for_the_one_whose_it_is() -> None:
    gate = Gate(lambda work: ValueError("three") if work == 3 else work)
    commit = GroupCommit(gate)
    with ThreadPoolExecutor(THREADS) as pool:
        pending = [pool.submit(commit.do, 0)]
        assert gate.begun.wait(30)
        pending += [pool.submit(commit.do, number) for number in range(1, THREADS)]
        wait_until(lambda: waiting(commit) == THREADS - 1, what="the others to wait")
        gate.open.set()
        for number, each in enumerate(pending):
            if number == 3:
                with pytest.raises(ValueError, match="three"):
                    each.result(30)
            else:
                assert each.result(30) == number


def test_what_fails_for_all_is_told_to_all_and_the_next_goes_on() -> None:
    broken = threading.Event()
    broken.set()

    def together(group: Sequence[int]) -> Sequence[int]:
        if broken.is_set():
            raise OSError("gone")
        return group

    commit = GroupCommit[int, int](together)
    with pytest.raises(OSError, match="gone"):
        commit.do(1)
    broken.clear()
    assert commit.do(2) == 2


def test_nobody_is_forgotten_under_load() -> None:
    commit = GroupCommit[int, int](lambda group: [each + 1 for each in group])
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(commit.do, range(5000))) == list(range(1, 5001))


# --- the receiver, on both databases ------------------------------------------------------------------------------


def incoming(number: int, *, study: str = "2.25.1", name: str = "X") -> Incoming:
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = f"2.25.3{number}"
    data_set.StudyInstanceUID = study
    data_set.SeriesInstanceUID = f"{study}.1"
    data_set.PatientID = name
    data_set.add_new(0x7FE00010, "OW", number.to_bytes(4, "little") * 500)
    return Incoming(
        data=written(data_set, ExplicitVRLittleEndian),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=data_set.SOPInstanceUID,
    )


def commits(database: Database) -> list[None]:
    """Return a list that grows by one with every commit of a transaction that writes."""
    counted: list[None] = []
    event.listen(
        database._engine,
        "commit",
        lambda connection: counted.append(None) if connection.get_execution_options().get("writes") else None,
    )
    return counted


def take_together(database: Database, receiver: Receiver, objects: Sequence[Incoming]) -> list[object]:
    """Let all of them arrive while another writer holds the database, so that they become groups."""

    def take(each: Incoming) -> object:
        try:
            return receiver.take(each)
        except RefusedInstance as refused:
            return refused.status

    with ThreadPoolExecutor(len(objects)) as pool:
        # Another group is under way: theirs gathers.
        with receiver._commit._changed:
            receiver._commit._busy = True
        pending = [pool.submit(take, each) for each in objects]
        wait_until(lambda: len(receiver._commit._waiting) == len(objects), what="all to wait for the commit")
        with receiver._commit._changed:
            receiver._commit._busy = False
            receiver._commit._changed.notify_all()
        return [each.result(60) for each in pending]


@pytest.fixture
def store(tmp_path: Path) -> InstanceStore:
    return InstanceStore(tmp_path / "store", minimum_free_bytes=0)


def registered(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.execute(select(tables.instance.c.sop_instance_uid)).scalars())


def test_objects_that_arrive_together_share_one_transaction(database: Database, store: InstanceStore) -> None:
    receiver = Receiver(database, store, quiet_seconds=1)
    objects = [incoming(number, study=f"2.25.{number % 3}") for number in range(THREADS)]
    counted = commits(database)
    registrations = take_together(database, receiver, objects)
    assert len(counted) == 1
    assert len({each.study_id for each in registrations}) == 3  # type: ignore[attr-defined]
    assert all(each.new and not each.conflict for each in registrations)  # type: ignore[attr-defined]
    assert registered(database) == {each.sop_instance_uid for each in objects}


def test_the_same_object_twice_in_a_group_is_one(database: Database, store: InstanceStore) -> None:
    receiver = Receiver(database, store, quiet_seconds=1)
    first, second = take_together(database, receiver, [incoming(1), incoming(1)])
    assert {first.new, second.new} == {True, False}  # type: ignore[attr-defined]
    assert registered(database) == {"2.25.31"}


def test_one_that_the_database_does_not_take_fails_alone(database: Database, store: InstanceStore) -> None:
    receiver = Receiver(database, store, quiet_seconds=1)
    objects = [incoming(number) for number in range(THREADS)]
    # A trigger stands for whatever a database may find wrong with one row.
    with database.write() as connection:
        if database.dialect == "sqlite":
            connection.exec_driver_sql(
                "CREATE TRIGGER picky BEFORE INSERT ON instance WHEN NEW.sop_instance_uid = '2.25.33'"
                " BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )
        else:
            connection.exec_driver_sql(
                "ALTER TABLE instance ADD CONSTRAINT picky CHECK (sop_instance_uid <> '2.25.33')"
            )
    outcomes = take_together(database, receiver, objects)
    assert outcomes[3] == 0xA700
    assert [number for number, each in enumerate(outcomes) if each == 0xA700] == [3]
    assert registered(database) == {each.sop_instance_uid for each in objects} - {"2.25.33"}


def test_a_refused_object_is_no_part_of_a_group(database: Database, store: InstanceStore) -> None:
    receiver = Receiver(database, store, quiet_seconds=1)
    bad = replace(incoming(1), sop_instance_uid="../x")
    with pytest.raises(RefusedInstance):
        receiver.take(bad)
    assert receiver.take(incoming(2)).new


# --- names ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_synced_fails_only_its_own(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "store" / "incoming")
    good, bad = (tmp_path / "store" / "instances" / folder / "file" for folder in ("good", "bad"))
    for target in (good, bad):
        place(target, [b"content"], staging)
    bad.unlink()
    bad.parent.rmdir()
    failures = sync_names([bad, good], staging)
    assert set(failures) == {bad}
    assert good.parent in staging.durable_directories
    assert bad.parent not in staging.durable_directories
    staging.close()
