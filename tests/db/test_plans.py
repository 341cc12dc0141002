"""What is asked every second must not read the whole history: its plans go by the indexes made for it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, event

from benchmarks.index import RARE_CODE, WHOLE_STUDY, Index
from meddaemon.db import (
    announcements,
    commitments,
    custody,
    deliveries,
    failures,
    history,
    holds,
    inquiries,
    jobs,
    notices,
    results,
    studies,
    tables,
)
from meddaemon.db.engine import Database
from meddaemon.domain.notices import NoticeForm

# Of each index, the column that the look must start from ("" where the order of the index is what counts).
ASKED_ALL_THE_TIME: dict[str, tuple[Callable[[Connection], object], dict[str, str]]] = {
    "claim a job": (
        lambda connection: jobs.claim(connection, worker="w", lease_seconds=60),
        {"ix_job_executing": "lease_expires_at", "ix_gate_open_until": "open_until>", "ix_job_waiting": "gate"},
    ),
    "look for jobs that are late": (jobs.miss, {"ix_job_missable": "deadline_at"}),
    "look for failures that nobody has told of": (
        lambda connection: failures.claim(connection, model_digests=["d"], lease_seconds=60),
        {"ix_job_undocumented": ""},
    ),
    "claim deliveries": (
        lambda connection: deliveries.claim(connection, destination="pacs", lease_seconds=60),
        {"ix_delivery_unsent": "destination"},
    ),
    "look for what nobody answers for": (
        lambda connection: custody.claim(connection, "pacs", lease_seconds=60, limit=100),
        {"ix_delivery_unconfirmed": "destination"},
    ),
    "look whether anything is to be settled": (
        lambda connection: custody.is_waiting(connection, "pacs", due=False),
        {"ix_delivery_unconfirmed": "destination"},
    ),
    "look for what nobody was told of": (
        lambda connection: notices.is_anything_new(connection, "pacs"),
        {"ix_delivery_unnoticed": "destination"},
    ),
    "look for notices": (
        lambda connection: notices.claim(connection, "pacs", NoticeForm.IAN, lease_seconds=60),
        {"ix_notice_open": "destination"},
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


# Walked in the order of their keys, backwards from where the page begins and only until it is full.
PAGED = {
    "studies": "study",
    "explain --refused": "refusal",
    "jobs list": "job",
    "deliveries list": "delivery",
    "commitments list": "commitment",
    "results": "measurement",
    RARE_CODE: "measurement",
    "results --min": "measurement",
}
# Counted no further than COUNTED_TO.
COUNTED = {"doctor: instances": "ix_instance_series_id"}
# What is sorted belongs to one study, one UID or one page; the results of a model are sorted as a whole.
SORTED = {
    "studies",
    "studies, from the middle",
    "explain: series of a large study",
    "explain: refusals of a UID",
    "explain: measurements",
    "explain: deliveries",
    "results --model",
    WHOLE_STUDY,
    "admit: its shared series",
    "deliver: claim",
}


@pytest.mark.fault(124)
def test_no_question_reads_all_of_what_grows(database: Database) -> None:
    """Whatever a command or a role asks goes by an index; a partial one is read whole, because it is what is open."""
    index = Index(database, 3000)
    index.build()
    said = []
    for name, ask in index.questions().items():
        with database.write() as connection:
            statements = _statements(connection, ask)
            assert statements, name
            for statement, values in statements:
                said += [f"{name}: {line}" for line in _plan(connection, statement, values) if _is_whole(name, line)]
    assert said == []


def _is_whole(name: str, line: str) -> bool:
    if line.startswith("USE TEMP B-TREE FOR ORDER BY"):
        return name not in SORTED
    words = line.split()
    # Of gates there are as many as windows are configured.
    if words[0] != "SCAN" or words[1] in {"CONSTANT", "(subquery-1)", "anon_1", "gate"}:
        return line.startswith("Seq Scan")
    if "INDEX" not in words:
        return PAGED.get(name) != words[1]
    used = words[words.index("INDEX") + 1]
    return used not in {*PARTIAL, COUNTED.get(name)}


PARTIAL = {
    str(each.name)
    for table in tables.metadata.tables.values()
    for each in table.indexes
    if each.dialect_options["sqlite"]["where"] is not None
}


def test_every_page_goes_on_where_the_one_before_ended(database: Database) -> None:
    """Page by page, everything is told once and in order, also when more arrives meanwhile."""
    index = Index(database, 20_000)
    index.build()
    listings: list[tuple[Callable[..., Any], bool]] = [
        (studies.summaries, True),
        (jobs.listing, True),
        (deliveries.listing, False),
        (commitments.listing, False),
        (history.refusals, False),
        (results.query, True),
    ]
    for listing, newest_first in listings:
        with database.read() as connection:
            whole = [row.id for row in listing(connection, limit=100_000)]
            told: list[int] = []
            while page := listing(connection, before=min(told, default=None), limit=7):
                ids = [row.id for row in page]
                told += ids if newest_first else ids[::-1]
        assert len(whole) > 5
        assert told == (whole if newest_first else whole[::-1])


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
