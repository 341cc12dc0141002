"""The schema: migrations lead to what the code says, once, together, and never back from the future."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping

import pytest
from running import run_together
from sqlalchemy import Inspector, inspect, text

from meddaemon.db import tables
from meddaemon.db.engine import Database, WrongSchema

UPGRADE = """
import sys
from meddaemon.db.engine import Database
database = Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
database.upgrade()
"""


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Database]:
    opened = Database(empty_database_url)
    yield opened
    opened.close()


def _tables(database: Database) -> set[str]:
    with database.read() as connection:
        return set(inspect(connection).get_table_names())


def test_migrations_lead_to_the_schema_of_the_code(empty: Database) -> None:
    empty.upgrade()
    assert empty.schema_problems() == []
    assert _tables(empty) == {*tables.metadata.tables, "alembic_version"}
    empty.require_schema()


def test_constraints_and_indexes_are_those_of_the_code(empty: Database) -> None:
    """Autogenerate does not compare everything (foreign key actions, partial indexes): compare what reflects."""
    empty.upgrade()
    with empty.read() as connection:
        migrated = _constraints(inspect(connection))
    with empty.write() as connection:
        for name in tables.VIEWS:  # of each pair, the one that reads the other comes first
            connection.exec_driver_sql(f"DROP VIEW {name}")
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)
    with empty.read() as connection:
        assert _constraints(inspect(connection)) == migrated


def _constraints(inspector: Inspector) -> dict[str, object]:
    return {
        name: (
            _shown(inspector.get_indexes(name)),
            _shown(inspector.get_foreign_keys(name)),
            _shown(inspector.get_unique_constraints(name)),
            [
                (each["name"], str(each["type"]), each["nullable"], each["default"])
                for each in inspector.get_columns(name)
            ],
        )
        for name in tables.metadata.tables
    }


def _shown(reflected: Iterable[Mapping[str, object]]) -> list[str]:
    """Sort what was reflected; conditions of partial indexes are expressions that compare by identity."""
    return sorted(str({key: _plain(value) for key, value in sorted(each.items())}) for each in reflected)


def _plain(value: object) -> object:
    return {key: str(text) for key, text in value.items()} if isinstance(value, dict) else value


def test_an_upgrade_of_the_newest_schema_changes_nothing(database: Database) -> None:
    with database.write() as connection:
        connection.execute(
            tables.refusal.insert().values(
                at=0.0, sop_instance_uid="1.2", study_instance_uid="", sha256="", status=1, reason="kept",
                calling_ae_title="", called_ae_title="",
            )
        )  # fmt: skip
    database.upgrade()
    database.upgrade()
    assert database.schema_problems() == []
    with database.read() as connection:
        assert connection.execute(text("SELECT reason FROM refusal")).scalars().all() == ["kept"]


def test_processes_that_upgrade_at_the_same_time_all_succeed(empty_database_url: str) -> None:
    run_together(*[["-c", UPGRADE, empty_database_url]] * 4)
    database = Database(empty_database_url)
    assert database.schema_problems() == []
    database.close()


@pytest.mark.fault(121)
def test_a_migration_that_fails_leaves_nothing_behind(empty: Database) -> None:
    """The last table of the first migration is there already: it fails halfway, and all of it is undone."""
    with empty.write() as connection:
        connection.exec_driver_sql("CREATE TABLE measurement (unrelated INTEGER)")
    with pytest.raises(Exception, match="measurement"):
        empty.upgrade()
    assert _tables(empty) == {"measurement"}


@pytest.mark.fault(122)
def test_a_newer_schema_is_refused(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for ask in (database.upgrade, database.require_schema):
        with pytest.raises(WrongSchema, match="9999 is newer"):
            ask()
    assert "9999" in database.schema_problems()[0]


def test_an_empty_database_is_refused(empty: Database) -> None:
    with pytest.raises(WrongSchema, match="meddaemon db upgrade"):
        empty.require_schema()
    assert "meddaemon db upgrade" in empty.schema_problems()[0]
    assert _tables(empty) == set()


def test_a_table_that_was_changed_by_hand_is_named(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("DROP VIEW v_measurement")
        connection.exec_driver_sql("DROP VIEW v_all_measurement")
    assert database.schema_problems() == ["the view v_all_measurement is missing", "the view v_measurement is missing"]
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE measurement")
    assert any("measurement" in problem for problem in database.schema_problems())


def test_the_schema_is_found_from_any_folder(empty_database_url: str, tmp_path: os.PathLike[str]) -> None:
    code = "import sys; from meddaemon.db.engine import Database; Database(sys.argv[1]).upgrade()"
    subprocess.run([sys.executable, "-c", code, empty_database_url], check=True, cwd=tmp_path, timeout=60)
    database = Database(empty_database_url)
    database.require_schema()
    database.close()
