"""Every kind of hostile peer at once, for minutes, beside good senders: nothing grows, nothing is lost, all are served.

`pytest -m soak tests/faults/test_soak.py` runs for ten minutes, or for MEDDAEMON_SOAK_SECONDS; MEDDAEMON_SOAK_SEED says
in which order things happen. The plain tests run a short form.
"""

import hashlib
import os
import random
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wire
from encoded import explicit
from pydicom.uid import CTImageStorage
from running import Home, data_set_of, wait_until
from watched import Watched
from wire import ABORT, ASSOCIATE_AC, P_DATA_TF, STORE_CONTEXT, Peer, associate_request, pdu, pdv

SECONDS = float(os.environ.get("MEDDAEMON_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("MEDDAEMON_SOAK_SEED", "20261121"))
SETTINGS = "port = 0\nmaximum_associations = 100\nassociation_timeout_seconds = 3.0\nidle_timeout_seconds = 15.0"
FLAT_KB = 32_000
"""By how much the resident memory may differ between two quiet moments: what the allocator keeps, not what we keep."""

CONTROL = """
import sys, time
longest, last = 0.0, time.monotonic()
end = last + float(sys.argv[1])
while last < end:
    time.sleep(0.02)
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
print(longest)
"""
"""Does nothing, and says how late it was with it."""


def ct(uid: str, pixels: bytes) -> bytes:
    return b"".join(
        (
            explicit(0x0008, 0x0016, b"UI", wire.uid_value(CTImageStorage)),
            explicit(0x0008, 0x0018, b"UI", wire.uid_value(uid)),
            explicit(0x0008, 0x0060, b"CS", b"CT"),
            explicit(0x0010, 0x0020, b"LO", b"SOAK"),
            explicit(0x0020, 0x000D, b"UI", b"2.25.1\0\0"),
            explicit(0x0020, 0x000E, b"UI", b"2.25.2\0\0"),
            explicit(0x7FE0, 0x0010, b"OW", pixels),
        )
    )


class Storm:
    """Peers of every kind, each in a thread, until they are told to stop."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.seed = seed
        self.acknowledged: dict[str, str] = {}
        self.echoes: list[float] = []
        self.counts: dict[str, int] = {}
        self.stalled = 0.0
        """For how many seconds the machine itself stood still, at most."""
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._serial = 0

    def blow(self, seconds: float) -> None:
        """Let all of them loose for so long. Raises what a peer that should be served did not expect."""
        failures: list[BaseException] = []
        hostile = (
            self._half_open,
            self._drip,
            self._junk,
            self._flood,
            self._abort_midway,
            self._big_and_aborted,
            self._mutated,
            self._refused,
        )
        self._stop.clear()
        threads = [
            threading.Thread(target=self._again, args=(kind, random.Random(f"{self.seed}{kind.__name__}{n}"), failures))
            for kind in hostile
            for n in range(2)
        ]
        good = (self._good, self._good, self._echo)
        threads += [
            threading.Thread(target=self._again, args=(kind, random.Random(f"{self.seed}good{n}"), failures, True))
            for n, kind in enumerate(good)
        ]
        control = subprocess.Popen([sys.executable, "-c", CONTROL, str(seconds)], stdout=subprocess.PIPE, text=True)
        for thread in threads:
            thread.start()
        self._stop.wait(seconds)
        self._stop.set()
        self.stalled = max(self.stalled, float(control.communicate(timeout=60)[0]))
        for thread in threads:
            thread.join(60)
        assert not [thread for thread in threads if thread.is_alive()], "a peer hangs"
        if failures:
            raise failures[0]

    def _again(
        self,
        kind: Callable[[random.Random], None],
        chance: random.Random,
        failures: list[BaseException],
        good: bool = False,
    ) -> None:
        while not self._stop.is_set():
            try:
                kind(chance)
            except (OSError, AssertionError) as failure:
                # A hostile peer is thrown out: that is what it is there for.
                if good:
                    failures.append(failure)
                    self._stop.set()
            with self._lock:
                self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1

    def _half_open(self, chance: random.Random) -> None:
        peers = [Peer(self.port, 5) for _ in range(chance.randint(1, 20))]
        try:
            for peer in peers:
                peer.send(associate_request()[: chance.randint(0, 200)])
            self._stop.wait(chance.random() * 3)
        finally:
            for peer in peers:
                peer.socket.close()

    def _drip(self, chance: random.Random) -> None:
        with Peer(self.port, 5) as peer:
            if chance.random() < 0.5:
                assert peer.associate() == ASSOCIATE_AC
                peer.send(struct.pack(">BxL", P_DATA_TF, 10_000))
            while not self._stop.wait(0.02):
                peer.send(b"\1")

    def _junk(self, chance: random.Random) -> None:
        with Peer(self.port, 5) as peer:
            peer.send(chance.choice([b"GET / HTTP/1.1\r\n\r\n", b"\x16\3\1\2\0", chance.randbytes(500), bytes(100)]))
            peer.receive()
        self._stop.wait(0.01)

    def _flood(self, chance: random.Random) -> None:
        with Peer(self.port, 2) as peer:
            assert peer.associate() == ASSOCIATE_AC
            for _ in range(chance.randint(1, 50)):
                peer.send(wire.echo_message() * 20)

    def _abort_midway(self, chance: random.Random) -> None:
        message = wire.store_message("2.25.666", ct("2.25.666", bytes(100_000)), maximum=chance.choice([1000, 16_000]))
        with Peer(self.port, 5) as peer:
            assert peer.associate() == ASSOCIATE_AC
            peer.send(message[: chance.randrange(len(message))])
            if chance.random() < 0.5:
                peer.send(pdu(ABORT, bytes(4)))
            else:
                peer.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: RST

    def _big_and_aborted(self, chance: random.Random) -> None:
        piece = pdu(P_DATA_TF, pdv(STORE_CONTEXT, 0, bytes(100_000)))
        with Peer(self.port, 5) as peer:
            assert peer.associate() == ASSOCIATE_AC
            peer.send(pdu(P_DATA_TF, pdv(STORE_CONTEXT, 3, wire.store_command("2.25.667"))))
            for _ in range(chance.randint(1, 200)):
                peer.send(piece)
        self._stop.wait(0.5)

    def _mutated(self, chance: random.Random) -> None:
        said = bytearray(associate_request() + wire.store_message("2.25.668", ct("2.25.668", bytes(2000)), maximum=500))
        for _ in range(chance.randint(1, 6)):
            said[chance.randrange(len(said))] = chance.randrange(256)
        with Peer(self.port, 3) as peer:
            peer.send(bytes(said))
            peer.receive()

    def _refused(self, chance: random.Random) -> None:
        with Peer(self.port, 5) as peer:
            assert peer.associate() == ASSOCIATE_AC
            for _ in range(5):
                uid = f"2.25.{chance.randrange(2**60)}"
                assert peer.store(uid, ct(uid, bytes(1000))[: chance.randint(1, 900)]) in {0xC000, 0xA900}
            peer.release()
        self._stop.wait(0.05)

    def _good(self, chance: random.Random) -> None:
        with Peer(self.port, 60) as peer:
            assert peer.associate() == ASSOCIATE_AC
            for _ in range(10):
                with self._lock:
                    self._serial += 1
                    uid = f"2.25.7{self.seed}{self._serial}"
                data = ct(uid, chance.randbytes(2 * chance.randint(1000, 25_000)))
                assert peer.store(uid, data) == 0
                self.acknowledged[uid] = hashlib.sha256(data).hexdigest()
                if self._stop.wait(0.05):
                    return
            peer.release()

    def _echo(self, _: random.Random) -> None:
        begun = time.monotonic()
        with Peer(self.port, 60) as peer:
            assert peer.associate() == ASSOCIATE_AC
            assert peer.echo() == 0
            self.echoes.append(time.monotonic() - begun)
            peer.release()
        self._stop.wait(0.1)


def _quiet(site: Watched, threads: int, files: int) -> int:
    """Wait for everything to end, and return the resident memory in kB."""
    wait_until(lambda: site.status("Threads") <= threads, what="the threads of all associations to end", every=0.1)
    wait_until(lambda: site.descriptors() <= files, what="the descriptors to be given back", every=0.1)
    site.assert_quiet()
    return site.status("VmRSS")


def _soak(folder: Path, seconds: float) -> None:
    home = Home.make(folder)
    home.config.write_text(home.config.read_text().replace("port = 0", SETTINGS))
    with home.running("listen") as role:
        site = Watched(home, role, role.port())
        Storm(site.port, SEED).blow(0.5)  # what is only made once is there now
        wait_until(lambda: site.status("Threads") < 12, what="the threads of the first peers to end", every=0.1)
        threads, files = site.status("Threads"), site.descriptors() + 2
        storm = Storm(site.port, SEED + 1)
        storm.blow(seconds / 4)
        before = _quiet(site, threads, files)
        storm.blow(seconds * 3 / 4)
        after = _quiet(site, threads, files)
        told = f"{storm.counts}; memory {before} kB, then {after} kB; {len(storm.acknowledged)} acknowledged; "
        told += f"C-ECHO p99 {statistics.quantiles(storm.echoes, n=100)[98]:.3f} s of {len(storm.echoes)}; "
        told += f"the machine stood still for {storm.stalled:.3f} s"
        (folder / "told.txt").write_text(told)
        assert after - before < FLAT_KB, told
        assert statistics.quantiles(storm.echoes, n=100)[98] < 2 + storm.stalled, told
        assert len(storm.acknowledged) > seconds / 4, told
        assert min(storm.counts.values()) > 0, told
    kept = {row.sop_instance_uid: row.sha256 for row in home.instances()}
    stored = home.files()
    assert set(kept.values()) == set(stored)
    lost = [
        uid
        for uid, digest in storm.acknowledged.items()
        if uid not in kept or hashlib.sha256(data_set_of(stored[kept[uid]])).hexdigest() != digest
    ]
    assert lost == []


@pytest.mark.fault(6, 7, 11, 40)
def test_a_short_storm_leaves_nothing_behind_and_loses_nothing(tmp_path: Path) -> None:
    _soak(tmp_path, 20)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_long_storm_leaves_nothing_behind_and_loses_nothing(tmp_path: Path) -> None:
    _soak(tmp_path, SECONDS)
