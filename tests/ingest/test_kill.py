"""kill -9 of the listener while modalities send: nothing acknowledged is lost or torn, and store and index agree."""

import hashlib
import os
import random
import secrets
import shutil
import signal
import threading
from pathlib import Path

import pytest
from running import Home, data_set_of, wait_until
from scanner import scanner
from test_crash import assert_sound, image

CYCLES = 200
_ON_ONE_STORE = 40


class Senders:
    """Two modalities that send without pause until the listener is gone, and remember what was acknowledged."""

    def __init__(self, port: int) -> None:
        self.acknowledged: dict[str, str] = {}
        self._port = port
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def _send(self, number: int) -> None:
        with scanner(self._port, calling=f"CT{number}") as sender:
            while sender.association.is_established:
                uid = f"2.25.{secrets.randbits(100)}"
                data = image(uid, random.choice([2_000, 40_000, 400_000]))
                try:
                    status = sender.store(data, uid)
                except (RuntimeError, ValueError, OSError):
                    return
                if status == 0:
                    self.acknowledged[uid] = hashlib.sha256(data).hexdigest()
                elif not sender.association.is_established or status == -1:
                    return

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def _kill_cycles(folder: Path, cycles: int, **settings: int) -> int:
    """Kill so often, on a new store now and then; return how many objects were acknowledged, all of which are there."""
    acknowledged = 0
    for begin in range(0, cycles, _ON_ONE_STORE):
        home = Home.make(folder / str(begin), **settings)
        acknowledged += _kill_on(home, min(_ON_ONE_STORE, cycles - begin))
        shutil.rmtree(home.folder)
    return acknowledged


def _kill_on(home: Home, cycles: int) -> int:
    acknowledged: dict[str, str] = {}
    for _ in range(cycles):
        with home.running("listen") as listener:
            senders = Senders(listener.port())
            wait_until(lambda senders=senders: senders.acknowledged, what="the first acknowledgement", every=0.001)
            # The moment is what the test varies: anywhere within a message, a sync or a commit.
            threading.Event().wait(random.uniform(0, 0.25))
            os.kill(listener.process.pid, signal.SIGKILL)
            senders.wait()
            listener.process.wait(15)
            acknowledged |= senders.acknowledged
            listener.process.returncode = 0  # asked for
    with home.running("listen") as listener:
        listener.port()
        assert_sound(home, {})
        files = home.files()
        kept = {row.sop_instance_uid: data_set_of(files[row.sha256]) for row in home.instances()}
        assert {uid: hashlib.sha256(kept[uid]).hexdigest() for uid in acknowledged} == acknowledged
    return len(acknowledged)


@pytest.mark.fault(125)
@pytest.mark.timeout(1500)  # the two cores of a busy machine make it three times as long
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert _kill_cycles(tmp_path, CYCLES) >= CYCLES


@pytest.mark.fault(125)
def test_kill_9_loses_nothing_without_a_journal(tmp_path: Path) -> None:
    assert _kill_cycles(tmp_path, 10, journal_bytes=0) >= 10


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_kill_9_as_often_as_asked_for(tmp_path: Path) -> None:
    """`MEDDAEMON_KILL_CYCLES=500 pytest -m soak tests/ingest/test_kill.py`; without the number, 10 000 times."""
    _kill_cycles(tmp_path, int(os.environ.get("MEDDAEMON_KILL_CYCLES", "10000")))
