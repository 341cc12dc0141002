"""What waits at a destination for what: reports for what they refer to, all for the urgent, nothing for a clock."""

import threading
from functools import partial
from pathlib import Path

import pytest
from edition_samples import editions, encoded, post, rows
from queue_samples import OVER
from scripted_scp import Reply, ScriptedScp
from sqlalchemy import update
from test_delivery import RETRY

from meddaemon.cli.explain import explain
from meddaemon.db import custody, deliveries, tables
from meddaemon.db.engine import Database
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.states import DeliveryState
from meddaemon.results.delivery import deliver
from meddaemon.results.dimse import RemoteEntity, store

OUTLET = Outlet(kinds=("SEG", "SR", "KO"), editions=editions("binary/3d"))
HELD, PENDING, SENT = DeliveryState.HELD, DeliveryState.PENDING, DeliveryState.SENT


@pytest.fixture
def dialect() -> str:
    """One database will do, unless a test asks for both."""
    return "sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def whole(result: int = 1) -> list[EncodedObject]:
    """Return a segmentation, a report on it, the key images, and the manifest that names all of these."""
    seg = encoded("SEG", "binary", result=result)
    names = [("SR", "binary/3d"), ("KO", ""), ("KO", "binary/3d")]
    return [seg, *(encoded(kind, edition, result=result) for kind, edition in names)]


def drain(database: Database, folder: Path, to: RemoteEntity, *kinds: str) -> int:
    stop, wanted = threading.Event(), kinds or OUTLET.kinds
    return deliver(database, folder, "pacs", partial(store, to), RETRY, stop, editions=OUTLET.editions, kinds=wanted)


def states(database: Database) -> dict[tuple[str, str], DeliveryState]:
    return {(each.kind, each.edition): each.state for each in rows(database)}


SEG, SR, KEY, ROOT = ("SEG", "binary"), ("SR", "binary/3d"), ("KO", ""), ("KO", "binary/3d")


def refusing(*kinds: tuple[str, str], status: int = 0xC000) -> ScriptedScp:
    """Return a PACS that answers some objects with a status."""
    uids = {encoded(*kind).sop_instance_uid for kind in kinds}
    return ScriptedScp(script=lambda _, uid: Reply(status) if uid in uids else None)


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"], indirect=True)
def test_what_refers_to_what_is_held_waits_and_goes_after_it_once(database: Database, folder: Path) -> None:
    post(database, folder, whole(), OUTLET)
    pacs = refusing(SEG)
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
        # Key images are of the source.
        assert states(database) == {SEG: HELD, SR: PENDING, KEY: SENT, ROOT: PENDING}
        assert drain(database, folder, pacs.remote(port)) == 0
    assert [(row.waits_for, row.attempt) for row in rows(database)] == [("", 1), ("SEG", 0), ("", 1), ("SEG", 0)]
    with database.read() as connection:
        said = "\n".join(explain(connection, "1", {"pacs": OUTLET}))
    assert said.count("goes after the SEG that it refers to, which is held") == 2
    mended = ScriptedScp()
    with database.write() as connection:
        deliveries.requeue(connection, rows(database)[0].id)
    with mended.listening() as port:
        while drain(database, folder, mended.remote(port)):
            pass
    assert mended.kinds == ["SEG", "SR", "KO"]
    assert set(states(database).values()) == {SENT}


def test_a_manifest_waits_for_everything_a_report_for_its_segmentation_only(database: Database, folder: Path) -> None:
    post(database, folder, whole(), OUTLET)
    pacs = refusing(SR)
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
    assert states(database) == {SEG: SENT, SR: HELD, KEY: SENT, ROOT: PENDING}


def test_what_was_held_with_it_goes_with_it(database: Database, folder: Path) -> None:
    post(database, folder, whole(), OUTLET)
    pacs = ScriptedScp(refuses=[encoded(*SEG).sop_class_uid])
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
    assert states(database) == {SEG: HELD, SR: HELD, KEY: SENT, ROOT: HELD}
    seg, report, *_ = rows(database)
    mended = ScriptedScp()
    with mended.listening() as port:
        with database.write() as connection:
            deliveries.requeue(connection, report.id)
        assert drain(database, folder, mended.remote(port)) == 0
        with database.write() as connection:
            deliveries.requeue(connection, seg.id)
        while drain(database, folder, mended.remote(port)):
            pass
    assert mended.kinds == ["SEG", "SR", "KO"]
    assert set(states(database).values()) == {SENT}


def test_what_another_sender_has_in_hand_goes_first(database: Database, folder: Path) -> None:
    """A destination may have several connections, and what failed together may be due one after the other."""
    post(database, folder, whole(), OUTLET)
    with database.write() as connection:
        seg, *others = deliveries.claim(connection, destination="pacs", lease_seconds=60)
        for each in others:
            deliveries.release(connection, each)
        (key,) = deliveries.claim(connection, destination="pacs", lease_seconds=60)
        assert (key.kind, key.edition) == KEY
        deliveries.accept(connection, seg, status=0, note="")
        deliveries.accept(connection, key, status=0, note="")
        again = deliveries.claim(connection, destination="pacs", lease_seconds=60)
    assert [each.kind for each in again] == ["SR", "KO"]


def test_what_is_tried_again_holds_back_nothing(database: Database, folder: Path) -> None:
    """It will come; and what is taken meanwhile shows whether it is at fault itself."""
    post(database, folder, whole(), OUTLET)
    pacs = refusing(SEG, status=0xA700)
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
    assert states(database) == {SEG: DeliveryState.RETRYABLE, SR: SENT, KEY: SENT, ROOT: SENT}


def test_what_a_destination_does_not_take_any_more_holds_back_nothing(database: Database, folder: Path) -> None:
    post(database, folder, whole(), OUTLET)
    pacs = refusing(SEG)
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
        while drain(database, folder, pacs.remote(port), "SR", "KO"):
            pass
    assert states(database) == {SEG: HELD, SR: SENT, KEY: SENT, ROOT: SENT}


def test_what_waits_for_a_person_does_not_keep_the_rest_from_being_confirmed(database: Database, folder: Path) -> None:
    post(database, folder, whole(), OUTLET)
    pacs = refusing(SEG)
    with pacs.listening() as port:
        drain(database, folder, pacs.remote(port))
    with database.write() as connection:
        due = custody.claim(connection, "pacs", lease_seconds=60, limit=10)
    assert [each.sop_instance_uid for each in due] == [encoded(*KEY).sop_instance_uid]


def test_who_is_in_a_hurry_goes_before_the_next_result(database: Database, folder: Path) -> None:
    for number in (1, 2, 3):
        post(database, folder, whole(number), OUTLET, priority=5)
    urgent = [whole(9)]

    def hurry(_: str) -> None:
        if urgent:
            post(database, folder, urgent.pop(), OUTLET, priority=0)

    pacs = ScriptedScp(act=hurry)
    with pacs.listening() as port:
        while drain(database, folder, pacs.remote(port)):
            pass
    assert [int(uid.split(".")[3]) for uid in pacs.uids] == [result for result in (1, 9, 2, 3) for _ in range(4)]
    assert {(row.state, row.attempt) for row in rows(database)} == {(SENT, 1)}


def test_a_clock_that_is_set_back_delays_nothing_that_has_not_failed(database: Database, folder: Path) -> None:
    post(database, folder, whole(), OUTLET)
    hour, row = 3600.0, tables.delivery.c
    with database.write() as connection:
        connection.execute(update(tables.delivery).values(available_at=row.available_at + hour))
        claimed = deliveries.claim(connection, destination="pacs", lease_seconds=OVER, longest_seconds=250)
        assert len(claimed) == 4
        for each, delay in zip(claimed, (200.0, 200.0, hour, hour), strict=True):
            deliveries.fail(connection, each, status=None, reason="out of reach", delay_seconds=delay)
        # No failure makes anything wait for so long.
        again = deliveries.claim(connection, destination="pacs", lease_seconds=60, longest_seconds=250)
        assert [each.id for each in again] == [each.id for each in claimed[2:]]
