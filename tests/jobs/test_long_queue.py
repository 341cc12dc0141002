"""A queue of ten thousand: what a claim reads does not grow with it, and nobody is passed over."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from queue_samples import received, register
from sqlalchemy import Connection, event, insert

from meddaemon.db import gates, jobs, tables
from meddaemon.db.engine import Database
from meddaemon.domain.schedule import patience

LONG = 10_000
MODELS = [digit * 64 for digit in "abcd"]


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def _fill(database: Database, study: int, window: str, count: int) -> None:
    """Queue so many jobs, a second apart, of every priority and four models."""
    with database.write() as connection:
        at = gates.clock(connection).timestamp() - 10_000
        connection.execute(
            insert(tables.job),
            [
                {
                    "key": f"{window} {number}",
                    "study_id": study,
                    "generation": 1,
                    "rule": "r",
                    "model": "m",
                    "model_digest": MODELS[number // 3 % 4],
                    "inputs": {},
                    "caveat": "",
                    "priority": number % 10,
                    "gate": window,
                    "patience": patience(number % 10, 600),
                    "turn_at": at + number + patience(number % 10, 600),
                    "when_late": "run",
                    "state": "available",
                    "attempt": 0,
                    "maximum_attempts": 3,
                    "available_at": at + number,
                    "fence": 0,
                    "worker": "",
                    "reason": "",
                    "created_at": at + number,
                }
                for number in range(count)
            ],
        )
    if database.dialect == "postgresql":
        with database._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")


def _claim(connection: Connection, like: str = "") -> jobs.Job:
    job = jobs.claim(connection, worker="w", lease_seconds=60, model_digests=MODELS, ageing_seconds=600, like=like)
    assert job is not None
    return job


@pytest.mark.fault(138)
def test_a_claim_reads_a_few_rows_however_long_the_queue_is(database: Database, study: int) -> None:
    """Also behind as many jobs whose window is closed, and whose turn would be earlier."""
    _fill(database, study, "nights", LONG)
    _fill(database, study, "", LONG)
    with database.write() as connection:
        for like in ("", MODELS[2]):
            read = _rows_read(connection, like)
            assert sum(read.values()) < 300, read


def _rows_read(connection: Connection, like: str) -> dict[str, int]:
    if connection.dialect.name == "sqlite":
        # The steps of its virtual machine, by the hundred: a row costs a handful.
        steps = [0]
        raw: Any = connection.connection.driver_connection

        def count() -> int:
            steps[0] += 1
            return 0

        raw.set_progress_handler(count, 100)
        _claim(connection, like)
        raw.set_progress_handler(None, 0)
        return {"hundred steps": steps[0]}
    with _statements(connection) as statements:
        _claim(connection, like)
    read = {}
    for statement, values in statements:
        if statement.startswith("SELECT"):
            (tree,) = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values).scalar_one()
            read[statement] = _rows(tree["Plan"])
    return read


def _rows(plan: dict[str, Any]) -> int:
    own = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    return int(own * plan["Actual Loops"]) + sum(_rows(part) for part in plan.get("Plans", ()))


@contextmanager
def _statements(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def note(_: Connection, __: object, statement: str, values: Any, ___: object, ____: bool) -> None:
        statements.append((statement, values))

    event.listen(connection, "before_cursor_execute", note)
    yield statements
    event.remove(connection, "before_cursor_execute", note)


@pytest.mark.fault(138)
def test_of_equal_priority_the_first_comes_first_and_the_least_urgent_comes_too(database: Database, study: int) -> None:
    """Fair: urgent ones at once, each priority in its order, and turns as they age."""
    count = 300
    _fill(database, study, "", count)
    with database.write() as connection:
        claimed = [_claim(connection) for _ in range(count)]
    assert [job.priority for job in claimed[: count // 10]] == [0] * (count // 10)
    for priority in range(10):
        numbers = [job.id for job in claimed if job.priority == priority]
        assert numbers == sorted(numbers)
    turns = [job.turn_at for job in claimed]
    assert turns == sorted(turns)
