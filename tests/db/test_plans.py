"""What is asked every second must not read the whole history: its plans go by the indexes made for it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event

from meddaemon.db import announcements, deliveries, holds, inquiries, jobs, studies
from meddaemon.db.engine import Database

# Of each index, the column that the look must start from ("" where the order of the index is what counts).
ASKED_ALL_THE_TIME: dict[str, tuple[Callable[[Connection], object], dict[str, str]]] = {
    "claim a job": (
        lambda connection: jobs.claim(connection, worker="w", lease_seconds=60),
        {"ix_job_executing": "lease_expires_at", "ix_job_waiting": ""},
    ),
    "claim deliveries": (
        lambda connection: deliveries.claim(connection, destination="pacs", lease_seconds=60),
        {"ix_delivery_unsent": "destination"},
    ),
    "look for due studies": (studies.due_ids, {"ix_study_due_at": "due_at<"}),
    "look for announcements": (announcements.untold, {"ix_announcement_untold": ""}),
    "look for studies of which all is here": (announcements.fulfilled, {"ix_study_due_at": "due_at>"}),
    "look for held studies that grew": (holds.supplemented, {"ix_study_held": ""}),
    "look for questions": (
        lambda connection: inquiries.next_for(connection, "PACS"),
        {"ix_inquiry_open": "ae_title"},
    ),
}


@pytest.mark.parametrize("asked", ASKED_ALL_THE_TIME)
def test_an_idle_look_reads_an_index_and_no_table(database: Database, asked: str) -> None:
    ask, indexes = ASKED_ALL_THE_TIME[asked]
    with database.write() as connection:
        statements = _statements(connection, ask)
        plan = [line for statement, values in statements for line in _plan(connection, statement, values)]
    assert statements
    for index, column in indexes.items():
        assert any(index in line.split() and column in line.replace(" ", "").split(index)[1] for line in plan), plan
    whole = [line for line in plan if line.startswith(("SCAN", "Seq Scan")) and "USING INDEX" not in line]
    assert whole == [], plan


def _statements(connection: Connection, ask: Callable[[Connection], object]) -> list[tuple[str, Any]]:
    statements: list[tuple[str, Any]] = []

    def note(_: Connection, __: object, statement: str, values: Any, ___: object, ____: bool) -> None:
        statements.append((statement, values))

    event.listen(connection, "before_cursor_execute", note)
    ask(connection)
    event.remove(connection, "before_cursor_execute", note)
    return statements


def _plan(connection: Connection, statement: str, values: Any) -> list[str]:
    if connection.dialect.name == "sqlite":
        return [str(row[3]) for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    # The tables are empty, where reading them whole is cheapest: ask what the planner does when it may not.
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    (tree,) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", values).scalar_one()
    return list(_nodes(tree["Plan"]))


def _nodes(plan: dict[str, Any]) -> list[str]:
    shown = f"{plan['Node Type']} {plan.get('Index Name', '')} {plan.get('Index Cond', '')}"
    return [shown, *(line for part in plan.get("Plans", ()) for line in _nodes(part))]


def test_a_plan_tells_a_whole_read(database: Database) -> None:
    """The test above can fail: a question without an index reads the table."""
    with database.write() as connection:
        (line,) = _plan(connection, "SELECT worker FROM job WHERE worker = 'x'", ())
    assert line.startswith(("SCAN", "Seq Scan")), json.dumps(line)
