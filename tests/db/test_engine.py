"""Transactions: durable, whole, isolated, and enough of them at the same time."""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.engine import make_url

from meddaemon.db import instances, tables
from meddaemon.db.clock import after, now
from meddaemon.db.engine import Database, DatabaseUnavailable


def _settings_of(database: Database) -> dict[str, object]:
    with database.write() as connection:
        ask, names = {
            "sqlite": ("PRAGMA", ["journal_mode", "synchronous", "foreign_keys", "busy_timeout"]),
            "postgresql": ("SHOW", ["synchronous_commit"]),
        }[database.dialect]
        return {name: connection.exec_driver_sql(f"{ask} {name}").scalar() for name in names}


def test_a_commit_that_returned_is_on_disk(database: Database) -> None:
    wanted: dict[str, dict[str, object]] = {
        # synchronous 2 is FULL: in WAL mode every commit is synced.
        "sqlite": {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000},
        "postgresql": {"synchronous_commit": "on"},
    }
    assert _settings_of(database) == wanted[database.dialect]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("configured", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
def test_a_server_that_commits_before_it_wrote_is_told_not_to(database_url: str, configured: str, used: str) -> None:
    first = Database(database_url)
    with first.write() as connection:
        name = make_url(database_url).database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = {configured}")
    first.close()
    second = Database(database_url)
    assert _settings_of(second)["synchronous_commit"] == used
    second.close()


def test_a_server_that_does_not_sync_is_named(database: Database) -> None:
    # The server of these tests does not (tests/databases.py).
    assert (
        database.durability_problems() == {"sqlite": [], "postgresql": ["fsync", "full_page_writes"]}[database.dialect]
    )


def _refuse(database: Database, reason: str) -> None:
    with database.write() as connection:
        instances.refuse(connection, status=0xC000, reason=reason)


def _count(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM refusal")).scalar_one())


def test_an_error_undoes_the_whole_transaction(database: Database) -> None:
    def stumble() -> None:
        with database.write() as connection:
            instances.refuse(connection, status=0xC000, reason="undone")
            raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"):
        stumble()
    assert _count(database) == 0


def test_a_reader_sees_one_state_while_others_write(database: Database) -> None:
    with database.read() as connection:
        count = select(text("count(*)")).select_from(tables.refusal)
        before = connection.execute(count).scalar_one()
        _refuse(database, "written meanwhile")
        assert connection.execute(count).scalar_one() == before == 0
    assert _count(database) == 1


def test_more_writers_than_a_pool_usually_holds_all_get_through(database: Database) -> None:
    together = threading.Barrier(24)

    def write(number: int) -> None:
        together.wait(30)
        with database.write() as connection:
            instances.refuse(connection, status=0xC000, reason=str(number))
            if database.dialect == "postgresql":
                # Everyone holds a connection of its own at the same time.
                together.wait(20)

    with ThreadPoolExecutor(24) as threads:
        list(threads.map(write, range(24)))
    assert _count(database) == 24


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_new_file_that_another_process_prepares_is_waited_for(empty_database_url: str) -> None:
    other = sqlite3.connect(str(make_url(empty_database_url).database), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    database = Database(empty_database_url)
    with ThreadPoolExecutor(1) as threads:
        upgrade = threads.submit(database.upgrade)
        try:
            with pytest.raises(TimeoutError):
                upgrade.result(timeout=0.5)
        finally:
            other.execute("COMMIT")
            other.close()
        upgrade.result(timeout=30)
    database.require_schema()
    database.close()


def test_foreign_keys_hold(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable), database.write() as connection:
        connection.execute(
            insert(tables.series).values(study_id=7, series_instance_uid="1", modality="", series_description="")
        )


def test_a_database_that_is_away_is_told_by_one_error(dialect: str) -> None:
    url = {"sqlite": "sqlite:////proc/nowhere.sqlite", "postgresql": "postgresql://nobody@127.0.0.1:1/none"}[dialect]
    database = Database(url)
    with pytest.raises(DatabaseUnavailable), database.read():
        pass
    database.close()


def test_a_sound_database_has_no_problems(database: Database) -> None:
    assert database.integrity_problems() == []


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_damaged_file_is_told(database_url: str) -> None:
    file = Path(str(make_url(database_url).database))
    content = bytearray(file.read_bytes())
    # The root page of one table claims more entries than a page can hold (bytes 3 and 4 of a b-tree page).
    with sqlite3.connect(file) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    start = (page - 1) * size
    content[start + 3 : start + 5] = b"\xff\xff"
    file.write_bytes(content)
    database = Database(database_url)
    assert database.integrity_problems() != []
    database.close()


def test_the_clock_is_the_time_and_goes_on_within_a_transaction(database: Database) -> None:
    with database.write() as connection:
        first, later = connection.execute(select(now(), after(90.5))).one()
        assert abs(first - datetime.now(UTC)) < timedelta(seconds=5)
        assert abs((later - first) - timedelta(seconds=90.5)) < timedelta(milliseconds=100)
        for _ in range(100_000):
            if connection.execute(select(now())).scalar_one() > first:
                return
    pytest.fail("the clock of the database stands still within a transaction")


def test_times_come_back_as_they_were_written(database: Database) -> None:
    written = datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)
    with database.write() as connection:
        connection.execute(
            insert(tables.process).values(
                name="a", role="work", pid=1, host="", address="", started_at=written, seen_at=written
            )
        )
        assert connection.execute(select(tables.process.c.started_at)).scalar_one() == written
        assert connection.execute(select(tables.process.c.name).where(tables.process.c.seen_at == written)).scalar()
