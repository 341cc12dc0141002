import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from encoded import written
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from running import Home, data_set_of
from scanner import scanner

from meddaemon.durable import Staging, write_new
from meddaemon.ingest.store import InstanceStore


def image(uid: str, size: int = 40_000) -> bytes:
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = uid
    data_set.StudyInstanceUID = "2.25.1"
    data_set.SeriesInstanceUID = "2.25.2"
    data_set.Modality = "CT"
    data_set.add_new(0x7FE00010, "OW", secrets.token_bytes(size // 2 * 2))
    return written(data_set, ExplicitVRLittleEndian)


def assert_sound(home: Home, acknowledged: dict[str, bytes]) -> None:
    """Assert what must hold after a recovery: nothing acknowledged is lost, nothing is torn, index and store agree."""
    files = home.files()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name, f"{path} is torn"
    rows = home.instances()
    assert {row.sha256 for row in rows} == set(files)
    assert not any(row.missing or row.conflict for row in rows)
    kept = {row.sop_instance_uid: row.sha256 for row in rows}
    for uid, data in acknowledged.items():
        assert uid in kept, f"{uid} was acknowledged and is gone"
        assert data_set_of(files[kept[uid]]) == data
    assert home.half_received() == []
    assert list((home.store / "quarantine").iterdir()) == []


# --- recovery -----------------------------------------------------------------------------------------------------


def restarted(home: Home) -> str:
    """Start the listener on what lies there, end it, and return its log."""
    with home.running("listen") as listener:
        listener.port()
    return listener.log_text()


def put(home: Home, uid: str) -> tuple[str, bytes]:
    """Store an object without registering it, as a listener does that dies in between."""
    store = InstanceStore(home.store, minimum_free_bytes=0)
    data = image(uid)
    stored = store.put(
        data, sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian
    )
    store.close()
    return stored.sha256, data


@pytest.mark.fault(115)
def test_an_object_that_was_stored_but_not_registered_is_adopted(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    sha256, data = put(home, "2.25.17")
    assert home.instances() == []
    assert '"adopted": 1' in restarted(home)
    (row,) = home.instances()
    assert (row.sha256, row.sop_instance_uid) == (sha256, "2.25.17")
    assert_sound(home, {"2.25.17": data})
    assert "recovered" not in restarted(home)


def test_a_listener_that_cannot_take_anything_starts_all_the_same(tmp_path: Path) -> None:
    """It says so to whoever sends, which is of more use than a listener that is not there."""
    home = Home.make(tmp_path, minimum_free_bytes=2**60)
    _, data = put(home, "2.25.17")
    assert '"postponed": 1' in restarted(home)
    assert home.instances() == []
    assert len(home.files()) == 1
    assert '"adopted": 1' in restarted(Home.make(tmp_path))
    assert_sound(home, {"2.25.17": data})


JUNK = {
    "a name that is no digest": "ab/readme.dcm",
    "another ending": f"ab/{'abcd' + '0' * 60}.txt",
    "a folder that is not the one of the digest": f"ab/ce/{'abcd' + '0' * 60}.dcm",
    "beside the folders": "notes",
    "a digest that its content does not have": f"ab/{'abcd' + '0' * 60}.dcm",
}


@pytest.mark.parametrize("name", JUNK)
def test_junk_in_the_store_is_set_aside(tmp_path: Path, name: str) -> None:
    home = Home.make(tmp_path)
    junk = home.store / "instances" / JUNK[name]
    junk.parent.mkdir(parents=True)
    junk.write_bytes(b"junk")
    assert '"set_aside": 1' in restarted(home)
    assert home.files() == {}
    assert home.instances() == []
    (aside,) = (home.store / "quarantine").iterdir()
    assert aside.read_bytes() == b"junk"
    assert aside.name.endswith(junk.name)


def test_a_file_with_its_own_digest_that_is_no_object_is_set_aside_and_explained(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    content = b"not DICOM at all"
    name = hashlib.sha256(content).hexdigest()
    path = home.store / "instances" / name[:2] / f"{name}.dcm"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    log = restarted(home)
    assert '"set_aside": 1' in log
    assert "neither the DICM prefix nor a bare data set" in log
    assert home.files() == {}


def test_a_torn_object_is_set_aside(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    sha256, _ = put(home, "2.25.17")
    path = home.files()[sha256]
    os.truncate(path, path.stat().st_size - 100)
    log = restarted(home)
    assert "damaged" in log
    assert home.files() == {}
    assert home.instances() == []


@pytest.mark.fault(110)
def test_a_registered_object_whose_file_is_gone_is_told_and_a_resend_brings_it_back(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    sha256, data = put(home, "2.25.17")
    restarted(home)
    home.files()[sha256].unlink()
    with home.running("listen") as listener:
        port = listener.port()
        assert [row.missing for row in home.instances()] == [True]
        told = home.cli("explain", "2.25.17")
        assert "1 missing from the store" in told.stdout
        with scanner(port) as sender:
            assert sender.store(data, "2.25.17") == 0
    assert data_set_of(home.files()[sha256]) == data


def test_a_resend_heals_a_file_that_was_damaged(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    sha256, data = put(home, "2.25.17")
    with home.running("listen") as listener:
        port = listener.port()
        path = home.files()[sha256]
        damaged = bytearray(path.read_bytes())
        damaged[-5] ^= 1
        path.write_bytes(damaged)
        with scanner(port) as sender:
            assert sender.store(data, "2.25.17") == 0
    assert_sound(home, {"2.25.17": data})


def test_what_a_dead_process_left_half_received_is_swept(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    left = home.store / "incoming" / "999999-abcd"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "0123").write_bytes(b"half")
    assert '"swept": 1' in restarted(home)
    assert not left.exists()


def test_what_a_living_process_is_receiving_is_left_alone(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    store = InstanceStore(home.store, minimum_free_bytes=0)
    (folder,) = (path for path in (home.store / "incoming").iterdir() if path.is_dir())
    (folder / "0123").write_bytes(b"half")
    restarted(home)
    assert (folder / "0123").read_bytes() == b"half"
    store.close()
    assert not folder.exists()


def test_many_processes_may_sweep_and_begin_at_the_same_time(tmp_path: Path) -> None:
    parent = tmp_path / "incoming"
    for number in range(50):
        (parent / f"{number}-dead").mkdir(parents=True)
    failed: list[BaseException] = []

    def begin() -> None:
        try:
            for number in range(10):
                staging = Staging(parent)
                staging.sweep()
                write_new(tmp_path / "instances" / f"{threading.get_ident()}-{number}", b"content", staging)
                staging.close()
        except OSError as failure:
            failed.append(failure)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [path.name for path in parent.iterdir()] == ["lock"]
    assert len(list((tmp_path / "instances").iterdir())) == 60


@pytest.mark.fault(120)
def test_a_second_serve_on_the_same_store_refuses(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    with home.running("serve") as first:
        first.port()
        second = home.cli("serve", timeout=60)
        assert second.returncode == 1
        assert "another `meddaemon serve` works on" in second.stderr
        assert "Traceback" not in second.stderr
        first.port()


# --- the order of things ------------------------------------------------------------------------------------------


@pytest.mark.fault(127)
@pytest.mark.peer
def test_peers_that_stop_in_the_middle_of_a_pdu_do_not_hold_up_the_end(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    with home.running("listen") as listener, ExitStack() as peers:
        port = listener.port()
        # The head of an A-ASSOCIATE-RQ (PS3.8 9.3.2) that announces 200 bytes, and some of them.
        half = peers.enter_context(socket.create_connection(("127.0.0.1", port)))
        half.sendall(b"\x01\x00\x00\x00\x00\xc8" + bytes(20))
        with scanner(port) as sender:
            assert sender.echo() == 0
            # The same of a P-DATA-TF within an association.
            sender.association.dul.socket.socket.sendall(b"\x04\x00\x00\x00\x00\xc8" + bytes(20))
            listener.stop()  # within 15 s and with exit code 0


def _traced(home: Home, trace: Path) -> tuple[list[str], list[str]]:
    """Store one object under strace; return the calls before it was sent, and from then until it was acknowledged."""
    calls = "trace=openat,fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write,pwritev,pwritev2"
    prefix = ["strace", "-f", "-yy", "-o", str(trace), "-e", calls]
    with home.running("listen", prefix=prefix) as listener:
        with scanner(listener.port()) as sender:
            # The mark is what follows the association's own answers.
            assert sender.echo() == 0
            begin = len(trace.read_text().splitlines())
            assert sender.store(image("2.25.17"), "2.25.17") == 0
            end = len(trace.read_text().splitlines())
        # strace passes no signal on: its child is asked to end.
        (child,) = Path(f"/proc/{listener.process.pid}/task/{listener.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGTERM)
        listener.process.wait(15)
        listener.process.returncode = 0
    lines = trace.read_text().splitlines()
    return lines[:begin], lines[begin:end]


def _seen(lines: list[str], steps: dict[str, str]) -> list[str]:
    return [step for line in lines for pattern, step in steps.items() if re.search(pattern, line)]


@pytest.mark.fault(112)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_answer_goes_out_after_the_journal_has_it(tmp_path: Path) -> None:
    """Success only after a write to the journal that returns when the disk has it; files and rows follow."""
    home = Home.make(tmp_path)
    restarted(home)
    before, lines = _traced(home, tmp_path / "trace")
    assert any(re.search(r'openat\(.*journal/0/000.segment".*O_DSYNC', line) for line in before)
    steps = {
        r"pwritev2?\(\d+<.*/journal/0/000.segment>": "write and sync",
        r"(sendto|sendmsg|write)\(\d+<TCP": "answer",
    }
    assert _seen(lines, steps) == list(steps.values()), "\n".join(lines)
    assert [row.sop_instance_uid for row in home.instances()] == ["2.25.17"]


@pytest.mark.fault(112)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_without_a_journal_the_answer_goes_out_after_every_sync(tmp_path: Path) -> None:
    """Success only after: file synced, renamed, directories synced, database's log synced (in this order)."""
    home = Home.make(tmp_path, journal_bytes=0)
    restarted(home)
    _, lines = _traced(home, tmp_path / "trace")
    (name,) = home.files()
    steps = {
        r"fsync\(\d+<.*/incoming/[^>]*>": "sync file",
        rf"rename.*/incoming/.*{name}\.dcm": "rename",
        rf"fsync\(\d+<.*/instances/{name[:2]}>": "sync folder",
        r"fsync\(\d+<.*/instances>": "sync parent",
        r"f(data)?sync\(\d+<.*sqlite-wal>": "sync database",
        r"(sendto|sendmsg|write)\(\d+<TCP": "answer",
    }
    seen = _seen(lines, steps)
    assert list(dict.fromkeys(seen)) == list(steps.values()), "\n".join(lines)
    assert seen[-1] == "answer"
