"""A study on its way from the scanner to the PACS while the daemon is killed at every point: one result, once.

`MEDDAEMON_KILL_POINT_RUNS=50 pytest -m soak tests/system/test_kill_points.py` does it so often.
"""

import ast
import os
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority
from encoded import written
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from scanner import scanner
from sqlalchemy import Table

from meddaemon.db import tables
from meddaemon.domain.states import DeliveryState, JobState
from tests.running import REPOSITORY, Home, Role, run_cli, wait_until
from tests.system.site import Pacs, head, make_site

TLS = """
transports = ["plain", "tls"]
tls_port = 0
[tls]
certificate = "server.pem"
key = "server.key"
ca = "ca.pem"
"""


@dataclass(frozen=True)
class Point:
    """A point on the way: its number in the catalogue, which role passes it, the failpoint there, and which time."""

    number: int
    role: str
    name: str
    time: int = 1

    def failpoint(self, action: str) -> str:
        return f"{self.name}:{action}@{self.time}"


RECEIVING = (
    Point(1, "listen", "association_requested"),
    Point(2, "listen", "object_begun", 2),
    Point(3, "listen", "object_received", 2),
)
JOURNALED = (
    Point(4, "listen", "validated", 2),
    Point(8, "listen", "journaled", 2),
    # What follows is done with what stands in the journal, when the sender has its answer already.
    Point(4, "listen", "written"),
    Point(5, "listen", "synced"),
    Point(6, "listen", "renamed"),
    Point(7, "listen", "registering"),
    Point(8, "listen", "registered"),
)
STORED = (
    Point(4, "listen", "written"),
    Point(5, "listen", "synced", 2),
    Point(6, "listen", "renamed", 3),
    Point(7, "listen", "registering", 4),
    Point(8, "listen", "registered", 5),
)
DECIDING = (Point(9, "deliver", "admitting"), Point(10, "deliver", "admitted"))
WORKING = (
    Point(11, "work", "claimed"),
    Point(12, "work", "decoding"),
    Point(13, "work", "inferring"),
    Point(14, "work", "inferred"),
    Point(15, "work", "synced", 2),
    Point(16, "work", "renamed"),
    Point(17, "work", "recording"),
    Point(18, "work", "recorded"),
)
SENDING = (
    Point(19, "deliver", "associated"),
    Point(20, "deliver", "half_sent", 2),
    Point(21, "deliver", "answered"),
    Point(22, "deliver", "answer_recorded"),
)
ELSEWHERE = {23: "commitment_requested", 25: "upgrading", 27: "reloading"}
"""Points that lie on no study's way."""
BESIDE = {"telling", "told"}
"""Points that the catalogue does not know, where a failed job is told of: tests/system/test_failed_jobs.py."""
NO_SUCH_STEP = {
    24: "nothing is deleted for its age",
    26: "backups are made with the tools of the database and the file system",
    28: "logs go to standard error: nothing is appended to that could be torn",
}
"""Points of the catalogue at which nothing is done."""


def test_every_point_of_the_catalogue_is_in_the_code_and_the_reverse() -> None:
    points = (*RECEIVING, *JOURNALED, *STORED, *DECIDING, *WORKING, *SENDING)
    assert {each.number for each in points} | {*ELSEWHERE} | {*NO_SUCH_STEP} == set(range(1, 29))
    reached = Counter(
        node.args[0].value
        for path in (REPOSITORY / "meddaemon").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "reach"
        and isinstance(node.args[0], ast.Constant)
    )
    assert set(reached) == {each.name for each in points} | {*ELSEWHERE.values()} | BESIDE
    assert set(reached.values()) == {1}


def test_nothing_that_is_shipped_asks_for_a_failure() -> None:
    shipped = [path for folder in ("config", "deploy", "scripts") for path in (REPOSITORY / folder).rglob("*")]
    assert not [path for path in shipped if path.is_file() and b"MEDDAEMON_FAILPOINT" in path.read_bytes()]


# --- the stages of the way ------------------------------------------------------------------------------------------


def until_killed(role: Role, point: Point) -> None:
    code = wait_until(role.process.poll, what=f"{point.name} to be reached")
    assert code == -signal.SIGKILL, role.log_text()
    role.process.returncode = 0  # asked for


def port_or_end(role: Role) -> int:
    """Return the port of a listener, 0 when it was killed before it listened."""

    def there() -> int:
        if role.process.poll() is not None:
            return -1
        announced = role.announced("listen")
        return int(announced.address.rpartition(":")[2]) if announced else 0

    return max(wait_until(there, what="the listener", every=0.1), 0)


def send(objects: dict[str, bytes], port: int) -> dict[str, int]:
    """Send objects over one association as far as there is one, and return the answers."""
    answers: dict[str, int] = {}
    over = suppress(RuntimeError, ValueError, OSError, AssertionError)
    with over, scanner(port, [(MRImageStorage, ExplicitVRLittleEndian)]) as sender:
        for uid, data in objects.items():
            if not sender.association.is_established:
                break
            answers[uid] = sender.store(data, uid, sop_class_uid=MRImageStorage)
    return answers


def receive(home: Home, objects: dict[str, bytes], points: Sequence[Point]) -> None:
    """Send a study again and again, the listener being killed at another point each time, until all is taken."""
    taken: set[str] = set()
    for point in points:
        with home.running("listen", failpoint=point.failpoint("kill")) as role:
            if port := port_or_end(role):
                taken |= {uid for uid, status in send(objects, port).items() if status == 0}
            until_killed(role, point)
    with home.running("listen") as role:
        role.port()
        assert taken <= {row.sop_instance_uid for row in home.instances()}
        assert send(objects, role.port()) == dict.fromkeys(objects, 0)
        assert sorted(row.sop_instance_uid for row in home.instances()) == sorted(objects)
    assert home.cli("store", "check", "--hash").returncode == 0
    assert home.half_received() == []


def die(home: Home, point: Point) -> None:
    with home.running(point.role, failpoint=point.failpoint("kill")) as role:
        until_killed(role, point)


def states(home: Home, table: Table) -> list[str]:
    return [str(row.state) for row in home.rows(table)]


def decide(home: Home, points: Sequence[Point]) -> None:
    for point in points:
        die(home, point)
    with home.running("deliver") as role:
        wait_until(lambda: role.announced("deliver"), what="the role")
        wait_until(lambda: states(home, tables.job), what="the job")


def work(home: Home, points: Sequence[Point]) -> None:
    with home.running("deliver"):
        for point in points:
            die(home, point)
        with home.running("work") as role:
            wait_until(lambda: role.announced("work"), what="the role")
            wait_until(lambda: states(home, tables.job) == [JobState.COMPLETED], what="the result")


def deliver(home: Home, points: Sequence[Point]) -> None:
    for point in points:
        die(home, point)
    with home.running("deliver") as role:
        wait_until(lambda: role.announced("deliver"), what="the role")
        wait_until(lambda: set(states(home, tables.delivery)) == {DeliveryState.SENT}, what="the delivery")


@dataclass(frozen=True)
class Outcome:
    """What must not depend on what happened on the way: UIDs and digests of the result's objects, and its numbers."""

    objects: dict[str, str]
    numbers: list[float]


def journey(folder: Path, *, killed: bool) -> Outcome:
    """Take a study all the way, and return what came of it; PACS and index must have it once."""
    pacs = Pacs()
    with pacs.listening() as port:
        pass  # it is down until everything is ready to be sent
    home = make_site(folder / "home", {"pacs": port}, lease=3.0, attempts=20)
    files = [dcmread(path) for path in head(folder / "scanner")]
    objects = {str(each.SOPInstanceUID): written(each, ExplicitVRLittleEndian) for each in files}
    receive(home, objects, (*RECEIVING, *JOURNALED) if killed else ())
    decide(home, DECIDING if killed else ())
    work(home, WORKING if killed else ())
    with pacs.listening(port):
        deliver(home, SENDING if killed else ())
    made = {str(row.sop_instance_uid): str(row.sha256) for row in home.rows(tables.result_object)}
    arrived = {str(each.SOPInstanceUID): each for each in pacs.received}
    # The older form of the report is made for those who take no other, and not sent to one that takes the newer.
    spare = {str(row.sop_instance_uid) for row in home.rows(tables.result_object) if row.edition.endswith("2d")}
    assert set(arrived) == set(made) - spare
    assert all(each == arrived[str(each.SOPInstanceUID)] for each in pacs.received)
    assert len(home.rows(tables.study)) == len(home.rows(tables.job)) == len(home.rows(tables.result)) == 1
    assert home.cli("store", "check", "--hash").returncode == 0
    return Outcome(objects=made, numbers=[row.value for row in home.rows(tables.measurement)])


@pytest.mark.timeout(900)
def test_a_study_survives_being_killed_at_every_point_of_its_way(tmp_path: Path) -> None:
    undisturbed = journey(tmp_path / "undisturbed", killed=False)
    assert len(undisturbed.objects) == 3
    assert journey(tmp_path / "killed", killed=True) == undisturbed


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_study_survives_it_as_often_as_asked_for(tmp_path: Path) -> None:
    undisturbed = journey(tmp_path / "undisturbed", killed=False)
    for run in range(int(os.environ.get("MEDDAEMON_KILL_POINT_RUNS", "50"))):
        assert journey(tmp_path / str(run), killed=True) == undisturbed


# --- points that are on nobody's way --------------------------------------------------------------------------------


def test_without_a_journal_it_is_the_same(tmp_path: Path) -> None:
    home = Home.make(tmp_path / "home", journal_bytes=0)
    files = [dcmread(path) for path in head(tmp_path / "scanner")]
    receive(home, {str(each.SOPInstanceUID): written(each, ExplicitVRLittleEndian) for each in files}, STORED)


def test_an_upgrade_that_is_killed_has_not_begun(tmp_path: Path) -> None:
    config = tmp_path / "meddaemon.toml"
    config.write_text('[store]\ndirectory = "store"\n')
    killed = run_cli("db", "upgrade", "--config", config, environ={"MEDDAEMON_FAILPOINT": "upgrading:kill"})
    assert killed.returncode == -signal.SIGKILL
    assert run_cli("db", "check", "--config", config).returncode != 0
    assert run_cli("db", "upgrade", "--config", config).returncode == 0
    assert run_cli("db", "check", "--config", config).returncode == 0


def test_a_listener_that_is_killed_while_it_reads_its_certificates_anew_starts_again(tmp_path: Path) -> None:
    Authority.make(tmp_path).issue("server")
    home = Home.make(tmp_path)
    home.config.write_text(home.config.read_text().replace("port = 0", f"port = 0{TLS}"))
    with home.running("listen", failpoint="reloading:kill") as role:
        wait_until(lambda: role.announced("listen"), what="the listener")
        role.process.send_signal(signal.SIGHUP)
        until_killed(role, Point(27, "listen", "reloading"))
    with home.running("listen") as role:
        wait_until(lambda: role.announced("listen"), what="the listener")
