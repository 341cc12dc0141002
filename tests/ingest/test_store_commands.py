"""Index = store: `store check` proves it, `store scrub` finds rot, `store repair` puts it right; beside a listener."""

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from encoded import written
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from queue_samples import received, register
from running import Home, environment, wait_until
from scanner import scanner

from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.ingest import inspection
from meddaemon.ingest.inspection import Problem, Scrub, Trouble
from meddaemon.ingest.receive import Incoming, Receiver
from meddaemon.ingest.recovery import Found, Recovered, recover
from meddaemon.ingest.store import InstanceStore

SECRET = "Secret^Person"


def image(uid: str, size: int = 2000) -> bytes:
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = uid
    data_set.PatientName = SECRET
    data_set.StudyInstanceUID = "2.25.1"
    data_set.SeriesInstanceUID = "2.25.2"
    data_set.Modality = "CT"
    data_set.add_new(0x7FE00010, "OW", secrets.token_bytes(size))
    return written(data_set, ExplicitVRLittleEndian)


def incoming(uid: str, data: bytes) -> Incoming:
    return Incoming(
        data=data, transfer_syntax_uid=ExplicitVRLittleEndian, sop_class_uid=CTImageStorage, sop_instance_uid=uid
    )


class Site:
    """A store and an index with five objects in them."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.database = database
        self.results = folder / "results"
        self.store = InstanceStore(folder / "store", minimum_free_bytes=0)
        self.receiver = Receiver(database, self.store, quiet_seconds=3600)
        self.uids = [f"2.25.{number}" for number in range(10, 15)]
        self.data = {uid: image(uid) for uid in self.uids}
        for uid in self.uids:
            self.receiver.take(incoming(uid, self.data[uid]))

    def sha256(self, uid: str) -> str:
        with self.database.read() as connection:
            rows = [self._indexed(connection, f"{prefix:x}") for prefix in range(16)]
        return next(sha256 for row in rows for sha256, known in row.items() if known.sop_instance_uid == uid)

    @staticmethod
    def _indexed(connection: object, prefix: str) -> dict[str, instances.Indexed]:
        return instances.indexed(connection, prefix)  # type: ignore[arg-type]

    def path(self, uid: str) -> Path:
        return self.store.path(self.sha256(uid))

    def missing(self, uid: str) -> bool:
        with self.database.read() as connection:
            return instances.indexed(connection, self.sha256(uid))[self.sha256(uid)].missing

    def check(self, *, by_digest: bool = True) -> list[Problem]:
        return list(inspection.check(self.database, self.store, self.results, by_digest=by_digest))

    def scrub(self, **options: object) -> tuple[Scrub, list[Problem]]:
        scrub = Scrub(self.database, self.store, **{"bytes_per_second": 1e9, **options})  # type: ignore[arg-type]
        return scrub, list(scrub.run())

    def repair(self) -> tuple[Recovered, list[tuple[Found, str]]]:
        told: list[tuple[Found, str]] = []
        recovered = recover(self.database, self.store, self.receiver, lambda found, name, _: told.append((found, name)))
        return recovered, told


@pytest.fixture
def site(tmp_path: Path, database: Database) -> Site:
    return Site(tmp_path, database)


def rot(path: Path) -> None:
    """Turn one bit, as a disk does: the size stays."""
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def quarantine(site: Site) -> list[str]:
    return [path.name.partition("-")[2] for path in site.store.quarantine.iterdir()]


def problem(site: Site, trouble: Trouble, uid: str) -> Problem:
    return Problem(trouble=trouble, name=site.sha256(uid), sop_instance_uid=uid)


# --- check --------------------------------------------------------------------------------------------------------


def test_a_sound_store_has_no_problem(site: Site) -> None:
    assert site.check(by_digest=False) == site.check() == []
    assert site.scrub()[1] == []
    assert site.repair() == (Recovered(), [])


@pytest.mark.fault(109, 110, 115)
def test_every_kind_of_disagreement_is_found_and_nothing_is_changed(site: Site) -> None:
    """Faults 109, 110, 115: rot, a file that is gone, a file that no row names."""
    gone, cut, rotten, marked, _ = site.uids
    site.path(gone).unlink()
    os.truncate(site.path(cut), 100)
    rot(site.path(rotten))
    with site.database.write() as connection:
        instances.note_missing(connection, [site.sha256(marked)], missing=True)
    (site.store.instances / "notes").write_text("mine")
    stored = site.store.put(
        image("2.25.99"),
        sop_class_uid=CTImageStorage,
        sop_instance_uid="2.25.99",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    before = {path: path.read_bytes() for path in site.store.instances.rglob("*") if path.is_file()}
    by_size = {
        problem(site, Trouble.MISSING, gone),
        problem(site, Trouble.DAMAGED, cut),
        problem(site, Trouble.MARKED, marked),
        Problem(trouble=Trouble.STRAY, name="notes"),
        Problem(trouble=Trouble.UNREGISTERED, name=stored.sha256),
    }
    assert set(site.check(by_digest=False)) == by_size
    assert set(site.check()) == by_size | {problem(site, Trouble.DAMAGED, rotten)}
    assert {path: path.read_bytes() for path in site.store.instances.rglob("*") if path.is_file()} == before


def test_what_is_about_to_be_registered_is_no_problem(site: Site) -> None:
    """A listener stores first and registers then; whoever looks in between must not cry wolf."""
    data = image("2.25.99")
    stored = site.store.put(
        data, sop_class_uid=CTImageStorage, sop_instance_uid="2.25.99", transfer_syntax_uid=ExplicitVRLittleEndian
    )
    found: list[Problem] = []
    look = threading.Thread(target=lambda: found.extend(site.check()))
    look.start()
    register(site.database, received("x", sop_instance_uid="2.25.99", sha256=stored.sha256, size=stored.size))
    look.join()
    assert found == []


# --- scrub --------------------------------------------------------------------------------------------------------


@pytest.mark.fault(109)
def test_scrub_sets_rot_aside_and_marks_it_and_a_resend_heals_it(site: Site) -> None:
    """Fault 109: the hash does not match, the file goes to quarantine, the operator is told."""
    uid = site.uids[2]
    sha256 = site.sha256(uid)
    rot(site.path(uid))
    scrub, found = site.scrub()
    assert [(each.trouble, each.name, each.sop_instance_uid) for each in found] == [(Trouble.DAMAGED, sha256, uid)]
    assert (scrub.files, quarantine(site)) == (5, [f"{sha256}.dcm"])
    assert [each.trouble for each in site.check()] == [Trouble.MISSING]
    site.receiver.take(incoming(uid, site.data[uid]))
    assert site.check() == []


def _all(site: Site) -> list[str]:
    return [path.stem for path in site.store.instances.rglob("*.dcm")]


@pytest.mark.fault(110)
def test_scrub_marks_what_is_gone_and_takes_back_what_returned(site: Site, tmp_path: Path) -> None:
    """Fault 110: a file that an operator deleted, and later restored from a backup."""
    uid = site.uids[0]
    backup = site.path(uid).rename(tmp_path / "backup")
    assert site.scrub()[1] == [problem(site, Trouble.MISSING, uid)]
    assert site.missing(uid)
    backup.rename(site.path(uid))
    assert site.scrub()[1] == []
    assert not site.missing(uid)


def test_a_damaged_file_that_no_row_names_is_set_aside_too(site: Site) -> None:
    stored = site.store.put(
        image("2.25.99"),
        sop_class_uid=CTImageStorage,
        sop_instance_uid="2.25.99",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    rot(site.store.path(stored.sha256))
    assert site.scrub()[1] == [Problem(trouble=Trouble.DAMAGED, name=stored.sha256)]
    assert quarantine(site) == [f"{stored.sha256}.dcm"]


@pytest.mark.fault(110)
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_cannot_be_read_is_told_and_left_alone(site: Site) -> None:
    """Fault 110: chmod."""
    uid = site.uids[0]
    site.path(uid).chmod(0)
    assert site.scrub()[1] == [problem(site, Trouble.UNREADABLE, uid)]
    assert not site.missing(uid)


def test_scrub_keeps_to_its_rate(site: Site) -> None:
    size = sum(path.stat().st_size for path in site.store.instances.rglob("*.dcm"))
    began = time.monotonic()
    scrub, _ = site.scrub(bytes_per_second=size / 0.5)
    assert scrub.bytes == size
    assert time.monotonic() - began >= 0.5


def test_scrub_goes_on_where_it_was_stopped(site: Site) -> None:
    names = sorted(_all(site))
    scrub, _ = site.scrub(start=names[2][:2])
    assert scrub.files == len([name for name in names if name[:2] >= names[2][:2]])
    assert scrub.prefix == "ff"


# --- repair -------------------------------------------------------------------------------------------------------


@pytest.mark.fault(110, 115)
def test_repair_makes_index_and_store_say_the_same(site: Site, tmp_path: Path) -> None:
    """Faults 110, 115."""
    gone, returned, spoilt, _, _ = site.uids
    site.path(gone).unlink()
    with site.database.write() as connection:
        instances.note_missing(connection, [site.sha256(returned), site.sha256(spoilt)], missing=True)
    rot(site.path(spoilt))
    (site.store.instances / "notes").write_text("mine")
    stored = site.store.put(
        image("2.25.99"),
        sop_class_uid=CTImageStorage,
        sop_instance_uid="2.25.99",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    recovered, told = site.repair()
    assert recovered == Recovered(adopted=1, set_aside=2, missing=2, returned=1)
    assert not recovered.well
    assert sorted(told) == sorted(
        [
            (Found.SET_ASIDE, "notes"),
            (Found.SET_ASIDE, site.sha256(spoilt)),
            (Found.ADOPTED, stored.sha256),
            (Found.MISSING, site.sha256(gone)),
            (Found.MISSING, site.sha256(spoilt)),
            (Found.RETURNED, site.sha256(returned)),
        ]
    )
    assert [site.missing(uid) for uid in (gone, returned, spoilt, "2.25.99")] == [True, False, True, False]
    assert {each.trouble for each in site.check()} == {Trouble.MISSING}


def test_a_resend_and_a_scrub_of_the_same_damaged_file_leave_it_whole(site: Site) -> None:
    """The re-send is acknowledged: whatever the order, the file must be there and whole afterwards."""
    uid = "2.25.99"
    data = image(uid, 20_000)
    registration = incoming(uid, data)
    site.receiver.take(registration)
    path = site.path(uid)
    actions: list[Callable[[], object]] = [
        lambda: site.receiver.take(registration),
        lambda: site.scrub(start=path.name[:2]),
        site.repair,
    ]
    for number in range(25):
        if path.is_file():
            rot(path)
        threads = [threading.Thread(target=action) for action in actions[number % 2 :] + actions[:1]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
        assert not site.missing(uid)
    assert site.check() == []


def test_everything_at_once_beside_a_listener(tmp_path: Path) -> None:
    """Repair, scrub and check run again and again while modalities send: nothing is lost, nothing is made up."""
    home = Home.make(tmp_path)
    sent: dict[str, bytes] = {}
    done = threading.Event()

    def send(port: int, number: int) -> None:
        with scanner(port, calling=f"CT{number}") as sender:
            while not done.is_set():
                uid = f"2.25.{secrets.randbits(100)}"
                data = image(uid, 50_000)
                assert sender.store(data, uid) == 0
                sent[uid] = data

    with home.running("listen") as listener:
        port = listener.port()
        senders = [threading.Thread(target=send, args=(port, number)) for number in range(2)]
        for sender in senders:
            sender.start()
        wait_until(lambda: sent, what="the first acknowledgement")
        said = [home.cli("store", command, *options) for command, *options in _COMMANDS]
        done.set()
        for sender in senders:
            sender.join()
    for told in said:
        assert told.returncode == 0, told.stdout + told.stderr
    assert len(sent) > 20
    assert {row.sop_instance_uid for row in home.instances()} == set(sent)
    assert not any(row.missing or row.conflict for row in home.instances())
    final = home.cli("store", "check", "--hash")
    assert (final.returncode, final.stdout) == (0, f"{len(sent)} instances registered, 0 problems\n")


_COMMANDS = [["repair"], ["scrub", "--rate", "500"], ["check", "--hash"], ["repair"]]


# --- the command line ---------------------------------------------------------------------------------------------


def test_the_commands_name_digest_and_instance_and_no_patient(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    (tmp_path / "files").mkdir()
    for number in range(3):
        (tmp_path / "files" / str(number)).write_bytes(image(f"2.25.{number}"))
    assert home.cli("import", tmp_path / "files").returncode == 0
    gone, rotten, _ = home.instances()
    home.files()[gone.sha256].unlink()
    rot(home.files()[rotten.sha256])
    told = home.cli("store", "check")
    assert (told.returncode, told.stdout) == (
        1,
        f"missing         {gone.sha256}  instance {gone.sop_instance_uid}\n3 instances registered, 1 problems\n",
    )
    told = home.cli("store", "check", "--hash")
    assert f"damaged         {rotten.sha256}  instance {rotten.sop_instance_uid}\n" in told.stdout
    told = home.cli("store", "scrub")
    assert told.returncode == 1
    assert f"damaged         {rotten.sha256}  instance {rotten.sop_instance_uid}\n" in told.stdout
    assert "3 files" in told.stdout
    told = home.cli("store", "repair")
    assert told.returncode == 1
    assert told.stdout.count("missing         ") == 2
    assert "0 adopted, 0 set aside, 0 there again, 2 missing" in told.stdout
    assert "Secret" not in told.stdout + told.stderr
    assert home.cli("import", tmp_path / "files").returncode == 0
    assert home.cli("store", "check", "--hash").returncode == 0
    assert home.cli("store", "scrub", "--from", "xx").returncode == 2


def test_a_scrub_that_is_interrupted_says_where_to_go_on(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(image("2.25.7", 200_000))
    assert home.cli("import", file).returncode == 0
    asked = [sys.executable, "-m", "meddaemon", "store", "scrub", "--rate", "0.001", "--config", str(home.config)]
    process = subprocess.Popen(
        asked,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # Where the tests run in the background of a shell, the signal is ignored, and so by all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  we start no thread here
    )
    (name,) = home.files()
    opened = Path(f"/proc/{process.pid}/fd")
    wait_until(lambda: name in _opened(opened), what="the file to be read")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert f"stopped; go on with --from {name[:2]}" in said


def _opened(folder: Path) -> str:
    """Return the names of the files that a process has open; those that it closes meanwhile are left out."""
    names = []
    for each in folder.iterdir():
        with suppress(FileNotFoundError):
            names.append(str(each.readlink()))
    return " ".join(names)
