"""Group G of the catalogue of faults: the disk is full, slow, gone or lying, and nothing acknowledged suffers."""

import errno
import hashlib
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from encoded import written
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from queue_samples import enqueue, get, received, register
from running import Home, Role, data_set_of, wait_until
from scanner import Scanner, scanner
from test_receive import OUT_OF_RESOURCES, SUCCESS, ct, new_uid
from test_store_volume import ELSEWHERE
from volumes import in_memory, mounted, resize, run, unmount
from wire import ASSOCIATE_AC, ASSOCIATE_RJ, Peer, associate_request

from meddaemon import pipeline
from meddaemon.db import tables
from meddaemon.db.engine import Database
from meddaemon.domain.errors import RefusedInstance
from meddaemon.domain.states import JobState
from meddaemon.durable import Staging
from meddaemon.inference.warm import WarmModels
from meddaemon.ingest.receive import Incoming, Receiver
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.ingest.store import InstanceStore
from meddaemon.jobs.worker import Worker, WorkerSettings
from tests.system.site import make_site


def image(uid: str, size: int = 200_000) -> bytes:
    return written(ct(uid, size=size), ExplicitVRLittleEndian)


def send_until_refused(sender: Scanner, size: int = 200_000, most: int = 200) -> dict[str, bytes]:
    """Send one object after the other until one is refused; return what was taken."""
    taken: dict[str, bytes] = {}
    for _ in range(most):
        uid = new_uid()
        data = image(uid, size)
        status = sender.store(data, uid)
        if status == OUT_OF_RESOURCES:
            return taken
        assert status == SUCCESS
        taken[uid] = data
    raise AssertionError("nothing was refused")


def assert_kept(home: Home, taken: dict[str, bytes]) -> None:
    """Assert that every taken object is there bit for bit, nothing is torn, and nothing lies half received."""
    files = home.files()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
    kept = {row.sop_instance_uid: data_set_of(files[str(row.sha256)]) for row in home.instances()}
    assert {uid: kept.get(uid) for uid in taken} == taken
    assert home.half_received() == []


def rejected(port: int) -> tuple[int, int, int] | None:
    """Ask for an association; return result, source and reason (PS3.8 9.3.4) of its rejection, None where accepted."""
    with Peer(port) as peer:
        peer.send(associate_request())
        kind, answer = peer.receive()
        if kind == ASSOCIATE_AC:
            peer.release()
            return None
        assert kind == ASSOCIATE_RJ
        _, result, source, reason = answer
        return result, source, reason


def limit(role: Role, which: int, value: int) -> None:
    """Give the process of a role another limit while it runs; its own maximum stays."""
    _, hard = resource.prlimit(role.process.pid, which)
    resource.prlimit(role.process.pid, which, (value if value >= 0 else hard, hard))


# --- the volume -----------------------------------------------------------------------------------------------------


@pytest.mark.fault(101)
def test_a_disk_that_fills_is_out_of_resources_until_there_is_room(tmp_path: Path) -> None:
    """Within an association every object is answered; another association is not even begun."""
    home = Home.make(tmp_path, ELSEWHERE, journal_bytes=0)
    with in_memory(home.store, "size=6m"), home.running("listen") as role:
        port = role.port()
        with scanner(port) as sender:
            taken = send_until_refused(sender)
            assert len(taken) > 5
            uid = new_uid()
            assert sender.store(image(uid), uid) == OUT_OF_RESOURCES
            assert sender.echo() == SUCCESS
            # Small ones fit above the watermark until it is reached.
            taken |= send_until_refused(sender, size=2000, most=500)
            # The database may give pages back after the last one was refused.
            answers = []
            while not answers or (answers[-1] is None and len(answers) < 20):
                taken |= send_until_refused(sender, size=64, most=500)
                answers.append(rejected(port))
            assert_kept(home, taken)
            assert answers[-1] == (2, 3, 1)
            resize(home.store, "size=40m")
            assert sender.store(image(uid), uid) == SUCCESS
        with scanner(port) as sender:
            assert sender.echo() == SUCCESS
        assert_kept(home, {**taken, uid: image(uid)})


@pytest.mark.fault(101, 106)
def test_a_disk_without_a_byte_left_tears_nothing(tmp_path: Path) -> None:
    home = Home.make(tmp_path, ELSEWHERE, minimum_free_bytes=0, journal_bytes=0)
    with in_memory(home.store, "size=3m"), home.running("listen") as role, scanner(role.port()) as sender:
        first, second = new_uid(), new_uid()
        taken = {first: image(first)}
        assert sender.store(taken[first], first) == SUCCESS
        # As many bytes as are left: there is room for the data set, and none for the rest of its file.
        free = os.statvfs(home.store).f_bavail * os.statvfs(home.store).f_bsize
        exact = image(second, free - len(image(second, 0)))
        assert len(exact) == free
        assert [sender.store(exact, second) for _ in range(2)] == [OUT_OF_RESOURCES] * 2
        assert_kept(home, taken)
        assert "cannot store" in role.log_text()
        resize(home.store, "size=9m")
        assert sender.store(exact, second) == SUCCESS
        assert_kept(home, {**taken, second: exact})


@pytest.mark.fault(102)
def test_a_disk_without_inodes_is_out_of_resources_until_there_are_some(tmp_path: Path) -> None:
    home = Home.make(tmp_path, ELSEWHERE, journal_bytes=0)
    with (
        in_memory(home.store, "size=40m,nr_inodes=60"),
        home.running("listen") as role,
        scanner(role.port()) as sender,
    ):
        taken = send_until_refused(sender, size=2000)
        assert len(taken) > 5
        assert sender.echo() == SUCCESS
        assert_kept(home, taken)
        resize(home.store, "nr_inodes=5000")
        uid = new_uid()
        assert sender.store(image(uid), uid) == SUCCESS
        assert_kept(home, {**taken, uid: image(uid)})


@pytest.mark.fault(103)
def test_a_volume_that_turns_read_only_takes_nothing_until_it_is_mounted_again(tmp_path: Path) -> None:
    """As ext4 does by itself when it finds an error; a check of the file system and a mount bring it back."""
    home = Home.make(tmp_path, ELSEWHERE, journal_bytes=0)
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(32 * 2**20)
    try:
        run("mkfs.ext4", "-q", disk)
    except FileNotFoundError:
        pytest.skip("no mkfs.ext4")
    first, second = new_uid(), new_uid()
    with mounted(home.store, "-o", "loop", disk), home.running("listen") as role:
        with scanner(role.port()) as sender:
            assert sender.store(image(first), first) == SUCCESS
            run("mount", "-o", "remount,abort", home.store)
            assert [sender.store(image(second), second) for _ in range(2)] == [OUT_OF_RESOURCES] * 2
            assert sender.echo() == SUCCESS
            assert "Read-only file system" in role.log_text()
            unmount(home.store)
            assert sender.store(image(second), second) == OUT_OF_RESOURCES
            run("mount", "-o", "loop", disk, home.store)
            assert sender.store(image(second), second) == SUCCESS
        assert_kept(home, {first: image(first), second: image(second)})


@pytest.mark.fault(106)
def test_an_object_that_the_disk_does_not_take_leaves_nothing(tmp_path: Path) -> None:
    """Every write beyond a limit fails, after some that did not; what is smaller goes on being taken."""
    home = Home.make(tmp_path, journal_bytes=0)
    large, small = new_uid(), new_uid()
    with home.running("listen") as role, scanner(role.port()) as sender:
        limit(role, resource.RLIMIT_FSIZE, 1_500_000)
        assert [sender.store(image(large, 3_000_000), large) for _ in range(2)] == [OUT_OF_RESOURCES] * 2
        assert home.half_received() == []
        assert sender.store(image(small), small) == SUCCESS
        limit(role, resource.RLIMIT_FSIZE, -1)
        assert sender.store(image(large, 3_000_000), large) == SUCCESS
        assert_kept(home, {large: image(large, 3_000_000), small: image(small)})


# --- what the disk says of single steps -----------------------------------------------------------------------------


class Site:
    """A receiver on a store and a database, in this process: the system's calls can be made to fail."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder / "store"
        self.database = database
        self.store = InstanceStore(self.folder, minimum_free_bytes=0)
        self.receiver = Receiver(database, self.store, quiet_seconds=3600)

    def take(self, uid: str) -> int:
        """Return the status of an object that is handed in."""
        incoming = Incoming(
            data=image(uid),
            transfer_syntax_uid=ExplicitVRLittleEndian,
            sop_class_uid=CTImageStorage,
            sop_instance_uid=uid,
        )
        try:
            self.receiver.take(incoming)
        except RefusedInstance as refused:
            return refused.status
        return SUCCESS

    def half_received(self) -> list[Path]:
        return [path for path in (self.folder / "incoming").glob("*/*") if path.name != "lock"]

    def file(self) -> Path:
        (path,) = (self.folder / "instances").rglob("*.dcm")
        return path

    def registered(self) -> int:
        with self.database.read() as connection:
            return len(connection.execute(tables.instance.select()).all())


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Iterator[Site]:
    made = Site(tmp_path, database)
    yield made
    made.store.close()


def failing(real: Callable[..., None], when: Callable[[str], bool]) -> Callable[..., None]:
    """Return a system call on a descriptor that fails once, as a disk does: the error is told and forgotten."""
    told: list[str] = []

    def call(descriptor: int, *rest: object) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if not told and when(name):
            told.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor, *rest)

    return call


SYNCED = {
    "the file": lambda name: "/incoming/" in name,
    "its folder": lambda name: name.endswith("/instances") or "/instances/" in name,
}


@pytest.mark.fault(105)
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("what", SYNCED)
def test_what_could_not_be_synced_is_not_acknowledged_and_written_anew(
    site: Site, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second sync of what failed would answer well whether or not it is on disk: it proves nothing."""
    real, uid = os.fsync, new_uid()
    monkeypatch.setattr(os, "fsync", failing(real, SYNCED[what]))
    assert site.take(uid) == OUT_OF_RESOURCES
    assert site.registered() == 0
    assert site.half_received() == []
    lying = {path.stat().st_ino for path in (site.folder / "instances").rglob("*.dcm")}
    synced: list[str] = []

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    assert site.take(uid) == SUCCESS
    assert site.file().stat().st_ino not in lying
    assert "/incoming/" in synced[0]
    assert str(site.file().parent) in synced


@pytest.mark.fault(105)
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_resend_whose_file_cannot_be_synced_again_is_written_anew(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = new_uid()
    assert site.take(uid) == SUCCESS
    before = site.file().stat().st_ino
    monkeypatch.setattr(os, "fsync", failing(os.fsync, lambda name: name.endswith(".dcm")))
    assert site.take(uid) == OUT_OF_RESOURCES
    assert site.take(uid) == SUCCESS
    assert site.file().stat().st_ino != before


@pytest.mark.fault(106)
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_disk_that_fails_while_writing_or_naming_leaves_nothing(
    site: Site, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    uid = new_uid()
    with monkeypatch.context() as patched:
        patched.setattr(os, call, broken)
        assert site.take(uid) == OUT_OF_RESOURCES
    assert site.half_received() == list((site.folder / "instances").rglob("*.dcm")) == []
    assert site.registered() == 0
    assert site.take(uid) == SUCCESS


@pytest.mark.fault(108)
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_slow_disk_slows_its_senders_and_nobody_else(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing gets to the disk, senders wait for their answers, others are answered, nobody is sent away."""
    real, may_sync, waiting = os.fsync, threading.Event(), threading.Semaphore(0)

    def slow(descriptor: int) -> None:
        waiting.release()
        assert may_sync.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    settings = ListenerSettings(
        ae_title="MEDDAEMON",
        host="127.0.0.1",
        port=0,
        maximum_associations=10,
        maximum_pdu_bytes=131_072,
        # Shorter than the disk takes: the time is ours, and not the sender's.
        idle_timeout_seconds=1,
        association_timeout_seconds=5,
        message_timeout_seconds=1,
    )
    with Listener(settings, site.receiver.take) as listener, ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        stack.callback(may_sync.set)
        port = listener.address[1]

        def send(number: int) -> list[int]:
            with scanner(port, calling=f"CT{number}") as sender:
                return [sender.store(image(uid), uid) for uid in (new_uid(), new_uid())]

        sent = [pool.submit(send, number) for number in range(3)]
        for _ in sent:
            assert waiting.acquire(timeout=30)
        # Longer than every time-out: each of these takes a new association.
        began = threading.Event()
        for _ in range(4):
            with scanner(port) as other:
                assert other.echo() == SUCCESS
            began.wait(0.5)
        assert not any(each.done() for each in sent)
        may_sync.set()
        assert [each.result(30) for each in sent] == [[SUCCESS, SUCCESS]] * 3
    assert site.registered() == 6


# --- descriptors ----------------------------------------------------------------------------------------------------


@pytest.mark.fault(107)
def test_connections_do_not_take_the_descriptors_that_storing_needs(tmp_path: Path) -> None:
    """More peers connect than there are descriptors: who is served already is served on; afterwards everybody is."""
    home = Home.make(tmp_path, journal_bytes=0)
    taken: dict[str, bytes] = {}
    with home.running("listen", prefix=["prlimit", "--nofile=160:160"]) as role:
        port = role.port()
        with scanner(port) as sender, ExitStack() as peers:
            for _ in range(200):
                peers.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(10):
                uid = new_uid()
                taken[uid] = image(uid)
                assert sender.store(taken[uid], uid) == SUCCESS
            assert home.cli("explain", uid).returncode == 0
        wait_until(lambda: _is_served(port), what="the next modality to be served")
        assert "reserve of descriptors" in role.log_text()
        assert_kept(home, taken)


def _is_served(port: int) -> bool:
    try:
        with scanner(port) as sender:
            return sender.echo() == SUCCESS
    except AssertionError:
        return False


# --- a single file --------------------------------------------------------------------------------------------------


@pytest.mark.fault(110)
@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
def test_a_job_whose_file_was_deleted_is_refused_with_the_reason_and_one_whose_volume_is_away_is_not(
    tmp_path: Path, database: Database
) -> None:
    """What is gone for good is for a person; what is away with all the rest comes back."""
    settings = make_site(tmp_path / "home", {}).settings
    settings.store.instances.mkdir(parents=True)
    row = received("an object that somebody deletes")
    study = register(database, row).study_id
    asked = {"model": "toy", "model_digest": settings.contracts["toy"].digest, "inputs": {"image": (row.sha256,)}}
    staging = Staging(settings.store.results / "incoming")
    with WarmModels(tmp_path / "scratch") as models:
        worker = Worker(
            database,
            "worker",
            WorkerSettings(lease_seconds=60, heartbeat_seconds=20, backoff_seconds=60, poll_seconds=1, drain_seconds=1),
            pipeline.JobStages(database, settings, models, staging),
        )
        deleted = enqueue(database, study, **asked)
        assert worker.work_one()
        settings.store.instances.rename(tmp_path / "away")
        away = enqueue(database, study, **asked)
        assert worker.work_one()
    staging.close()
    assert get(database, deleted).state is JobState.DISCARDED
    assert get(database, deleted).reason.startswith("missing_instance: the stored file")
    assert get(database, away).state is JobState.RETRYABLE
