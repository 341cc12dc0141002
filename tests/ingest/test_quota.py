"""How much each caller may have stored in a day."""

from pathlib import Path

import pytest
from databases import Database
from queue_samples import received
from running import Home
from scanner import scanner
from sqlalchemy import update
from test_receive import OUT_OF_RESOURCES, SUCCESS, new_uid
from test_storage_faults import image

from meddaemon.db import instances, registration, tables
from meddaemon.db.clock import after
from meddaemon.domain.errors import StoreUnavailable
from meddaemon.ingest.quota import DAY_SECONDS, Quota


@pytest.mark.fault(111)
def test_one_caller_that_has_had_its_share_is_refused_and_no_other(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    home.config.write_text(home.config.read_text().replace("port = 0", "port = 0\ncaller_bytes_per_day = 500_000"))
    with home.running("listen") as role:
        port = role.port()
        with scanner(port, calling="WILD") as wild, scanner(port, calling="TAME") as tame:
            sent = [(new_uid(), sender) for sender in (wild, wild, wild, tame, tame)]
            statuses = [sender.store(image(uid), uid) for uid, sender in sent]
            assert statuses == [SUCCESS, SUCCESS, OUT_OF_RESOURCES, SUCCESS, SUCCESS]
            assert wild.echo() == SUCCESS
    (refusal,) = home.refusals()
    assert (refusal.calling_ae_title, refusal.status) == ("WILD", OUT_OF_RESOURCES)
    assert "caller_bytes_per_day" in str(refusal.reason)


def fill(database: Database, ages_in_hours: list[float]) -> None:
    """Register instances of 1000 bytes, the oldest first, from two callers by turns."""
    for number, hours in enumerate(ages_in_hours):
        caller = f"CT{number % 2}"
        with database.write() as connection:
            one = received(f"instance {number}", size=1000, calling_ae_title=caller)
            registration.register(connection, one, quiet_seconds=60)
            mine = tables.instance.c.sha256 == one.sha256
            connection.execute(update(tables.instance).where(mine).values(received_at=after(-3600 * hours)))


@pytest.mark.parametrize("ages", [[], [30], [1], [50, 40, 30, 25], [50, 40, 30, 23, 12, 1, 0], [23, 22, 21, 0]])
def test_what_counts_is_what_came_within_a_day(database: Database, ages: list[float]) -> None:
    fill(database, ages)
    expected: dict[str, int] = {}
    for number, hours in enumerate(ages):
        if hours < 24:
            expected[f"CT{number % 2}"] = expected.get(f"CT{number % 2}", 0) + 1000
    with database.read() as connection:
        assert instances.bytes_by_caller(connection, within_seconds=DAY_SECONDS) == expected


def test_what_others_have_stored_counts_too(database: Database) -> None:
    fill(database, [30, 30, 2, 2, 1])
    quota = Quota(database, 3000)
    quota.require("CT1", 2000)
    with pytest.raises(StoreUnavailable):
        quota.require("CT1", 1)
    quota.require("CT0", 1000)
    with pytest.raises(StoreUnavailable):
        quota.require("CT0", 1)
