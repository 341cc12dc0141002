"""The views that analysts read: as documented, column for column, and the same on both databases."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from queue_samples import BRAIN, claim, enqueue, finish, received, register
from sqlalchemy import inspect, text

from meddaemon.db import tables
from meddaemon.db.engine import Database

DOCUMENT = Path(__file__).parents[2] / "docs" / "views.md"


def documented() -> dict[str, list[str]]:
    """Return the columns that docs/views.md lists, by view."""
    common, superseded, *sections = re.split(r"\n## |\nOf the views over everything", DOCUMENT.read_text())

    def listed(text: str) -> list[str]:
        return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)

    columns = {}
    for section in sections:
        names = re.findall(r"v_\w+", section.splitlines()[0])
        columns |= {name: [*listed(common), *listed(section)] for name in names}
        columns[names[1]] += listed(superseded)
    return columns


def test_views_have_the_columns_that_are_documented(database: Database) -> None:
    with database.read() as connection:
        inspector = inspect(connection)
        found = {name: [each["name"] for each in inspector.get_columns(name)] for name in inspector.get_view_names()}
    assert found == documented()
    assert set(found) == set(tables.VIEWS)


@pytest.fixture
def read(database: Database) -> dict[str, list[dict[str, Any]]]:
    """What each view shows of a result that is superseded and one that counts."""
    study = register(database, received("an instance")).study_id
    for value in (1300.0, 1400.0):
        enqueue(database, study, rule="rule")
        job = claim(database)
        with database.write() as connection:
            finish(connection, job, value=value)
    with database.read() as connection:
        return {
            name: [dict(row._mapping) for row in connection.execute(text(f"SELECT * FROM {name}"))]
            for name in tables.VIEWS
        }


def test_current_results_are_shown_and_all_with_the_others(read: dict[str, list[dict[str, Any]]]) -> None:
    rows = {"result": 1, "segment": 1, "finding": 1, "measurement": 1, "object": 2, "delivery": 2}
    for name, number in rows.items():
        assert len(read[f"v_{name}"]) == number, name
        assert len(read[f"v_all_{name}"]) == 2 * number, name
        current = [row for row in read[f"v_all_{name}"] if not row.pop("superseded")]
        assert sorted(read[f"v_{name}"], key=str) == sorted(current, key=str)


def test_values_are_those_that_were_recorded(read: dict[str, list[dict[str, Any]]]) -> None:
    (measured,) = read["v_measurement"]
    said = (
        "value",
        "unit",
        "measurement",
        "finding",
        "finding_value",
        "segment",
        "model",
        "status",
        "study_instance_uid",
    )
    assert [measured[key] for key in said] == [
        1400.0, "mL", "Volume", "Brain", BRAIN.value, "Brain", "model", "plausible", "1.2.3",
    ]  # fmt: skip
    assert bool(measured["present"])
    (finding,) = read["v_finding"]
    assert (finding["finding_id"], finding["sop_instance_uid"]) == (measured["finding_id"], None)
    assert {row["kind"] for row in read["v_object"]} == {"SEG", "SR"}
    assert {(row["destination"], row["state"], row["sent_at"]) for row in read["v_delivery"]} == {
        ("pacs", "pending", None)
    }


def test_times_are_in_utc(read: dict[str, list[dict[str, Any]]]) -> None:
    made = read["v_result"][0]["made_at"]
    if isinstance(made, str):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", made)
        made = datetime.fromisoformat(made.replace("Z", "+00:00"))
    assert abs(made - datetime.now(UTC)) < timedelta(minutes=10)


def test_nobody_is_named(read: dict[str, list[dict[str, Any]]]) -> None:
    assert "4711" not in str(read)
    assert not any("patient" in column for columns in documented().values() for column in columns)
