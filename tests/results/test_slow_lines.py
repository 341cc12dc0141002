"""Objects over lines that are slow or end in a black hole; destinations that wait for each other, or do not."""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from edition_samples import encoded, post, rows, whole
from pydicom import Dataset, dcmread
from pynetdicom import evt
from scripted_scp import Drip, Fate, ScriptedScp, Silent, Stall, Through, Wire
from sqlalchemy import update
from test_delivery import report

from meddaemon.db import notices, tables
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.states import DeliveryState
from meddaemon.results.dimse import store
from meddaemon.results.query import STUDY_ROOT_FIND
from meddaemon.results.transport import Answer, Outgoing, Pace, Verdict
from tests.running import Home, wait_until

LARGE = 12 * 2**20
"""More than the buffers of both ends hold."""


@pytest.fixture
def large(tmp_path: Path) -> Outgoing:
    """An object that does not fit on the way."""
    made = report("SR", "1.2.9.1")
    path = tmp_path / "large.dcm"
    path.write_bytes(made.content)
    dataset = dcmread(path)
    dataset.add_new(0x00420011, "OB", bytes(LARGE))
    dataset.save_as(path)
    return Outgoing(
        path=path,
        sop_class_uid=made.sop_class_uid,
        sop_instance_uid=made.sop_instance_uid,
        transfer_syntax_uid=made.transfer_syntax_uid,
    )


def sent(large: Outgoing, fate: Fate, pace: Pace, seconds: float) -> tuple[Answer, ScriptedScp]:
    pacs = ScriptedScp()
    with pacs.listening() as target, Wire(target=target, fates=[fate, Through()]).listening() as port:
        (answer,) = store(pacs.remote(port, response_timeout_seconds=seconds, pace=pace), [large])
    return answer, pacs


def test_a_large_object_may_take_longer_than_an_answer(large: Outgoing) -> None:
    """The time for the answer counts from when the object has left."""
    answer, pacs = sent(large, Drip(bytes_per_second=4 * 2**20), Pace(bytes_per_second=1000), seconds=2)
    assert (answer.verdict, answer.reason) == (Verdict.TAKEN, "")
    assert pacs.uids == ["1.2.9.1"]


@pytest.mark.parametrize(
    ("fate", "pace", "said", "own"),
    [
        (Silent(after=1000), Pace(), "timed out", True),
        (Drip(bytes_per_second=400_000), Pace(bytes_per_second=10**8), "fewer than 1e+08 bytes a second", False),
        (Drip(bytes_per_second=400_000), Pace(batch_seconds=1), "all that was to be sent took too long", False),
    ],
)
def test_a_line_that_gets_nowhere_is_given_up(large: Outgoing, fate: Fate, pace: Pace, said: str, *, own: bool) -> None:
    answer, pacs = sent(large, fate, pace, seconds=1.5)
    assert (answer.verdict, answer.own) == (Verdict.TRY_AGAIN, own)
    assert answer.reason == f"no answer: {said}"
    assert pacs.arrivals == []


SITE = """
[delivery]
poll_seconds = 0.1

[[windows]]
name = "never"
times = ["{closed}"]
time_zone = "UTC"
"""
DESTINATION = """
[[destinations]]
name = "{name}"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
connections = {connections}
window = "{window}"
"""


def test_a_black_hole_starves_nobody_and_a_window_is_kept(tmp_path: Path) -> None:
    """One destination swallows all, one is stalled on each of its two connections, one is closed now, one is well."""
    hole, slow, well, closed = Wire(fates=[Silent()]), ScriptedScp(steps=[Stall()]), ScriptedScp(), ScriptedScp()
    with ExitStack() as stack:
        ports = {
            "hole": stack.enter_context(hole.listening()),
            "slow": stack.enter_context(slow.listening()),
            "well": stack.enter_context(well.listening()),
            "closed": stack.enter_context(closed.listening()),
        }
        several = {"slow": 2}
        text = SITE.format(closed=_later()) + "".join(
            DESTINATION.format(
                name=name,
                port=port,
                connections=several.get(name, 1),
                window="never" if name == "closed" else "",
            )
            for name, port in ports.items()
        )
        home = Home.make(tmp_path / "home", text)
        outlet = Outlet(kinds=("SEG", "SR"))
        with home.database() as database:
            for number in range(1, 13):
                made = whole("labelmap", result=number)
                post(database, home.settings.store.results, made, *[outlet] * len(ports), names=[*ports])
            with database.write() as connection:
                # There are no rules that would want the results, when they are asked.
                connection.execute(update(tables.study).values(due_at=None))
            stack.enter_context(home.running("deliver"))
            wait_until(lambda: len(well.arrivals) == 24, what="what is well to get all")
            wait_until(lambda: len(slow.arrivals) == 2, what="two connections")
            wait_until(hole.met.is_set, what="the hole to be met")
            assert slow.most_at_once == 2
            assert {each.state for each in rows(database) if each.destination == "closed"} == {DeliveryState.PENDING}
            assert closed.arrivals == []
            slow.let_go()
            wait_until(lambda: len(slow.store) == 24, what="what was slow to get all")
            assert sorted(slow.uids) == sorted(well.uids)
    assert well.kinds == ["SEG", "SR"] * 12


TOLD = """
[[peers]]
ae_title = "RIS"
host = "127.0.0.1"
port = {ris}

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
custody = "query"
announce_to = ["RIS"]
hl7 = "127.0.0.1:{hl7}"
"""


def test_who_does_not_listen_keeps_nobody_from_being_asked(tmp_path: Path) -> None:
    """Both who want to know of the first result are black holes; the second is found at the archive all the same."""
    holes = [Wire(fates=[Silent()]), Wire(fates=[Silent()])]

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier.SOPInstanceUID
        for uid in {asked} if isinstance(asked, str) else asked:
            if uid in pacs.store:
                yield 0xFF00, event.identifier
        yield 0x0000, None

    pacs = ScriptedScp(also=[STUDY_ROOT_FIND], handlers=[(evt.EVT_C_FIND, find)])
    with ExitStack() as stack, ExitStack() as listening:
        port, ris, hl7 = (listening.enter_context(each.listening()) for each in (pacs, *holes))
        home = Home.make(tmp_path / "home", SITE.format(closed=_later()) + TOLD.format(port=port, ris=ris, hl7=hl7))
        with home.database() as database:

            def make(number: int) -> None:
                seg = encoded("SEG", "binary", result=number)
                post(database, home.settings.store.results, [seg], Outlet(kinds=("SEG",)))
                with database.write() as connection:
                    connection.execute(update(tables.study).values(due_at=None))

            def told() -> list[DeliveryState]:
                with database.read() as connection:
                    return [each.state for each in notices.listing(connection)]

            def done() -> int:
                return sum(row.done_at is not None for row in rows(database))

            make(1)
            stack.enter_context(home.running("deliver"))
            wait_until(lambda: told() == [DeliveryState.SENDING] * 2, what="both to be told")
            make(2)
            wait_until(lambda: done() == 2, seconds=20, what="the second to be found")


def _later() -> str:
    """Return times of the week that are far from now, whenever this is."""
    day = (datetime.now(UTC) + timedelta(days=3)).strftime("%a")
    return f"{day} 11:00-12:00"
