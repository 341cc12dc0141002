"""Hostile bytes, seeded: no input crashes or hangs the listener, and nothing is acknowledged that is not kept.

`MEDDAEMON_FUZZ_INPUTS` says how many inputs (5 000 by default), `MEDDAEMON_FUZZ_SEED` which ones. A million:
`MEDDAEMON_FUZZ_INPUTS=1000000 pytest tests/ingest/test_fuzz.py -o timeout=0`.
"""

import hashlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wire
from encoded import written
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from running import Home, Role, data_set_of, wait_until

INPUTS = int(os.environ.get("MEDDAEMON_FUZZ_INPUTS", "5000"))
SEED = int(os.environ.get("MEDDAEMON_FUZZ_SEED", "20261121"))
DEADLINE_SECONDS = 30.0
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
ECHO = 2 * len(SYNTAXES) + 1
CONTEXTS = [
    *((2 * number + 1, str(CTImageStorage), str(syntax)) for number, syntax in enumerate(SYNTAXES)),
    (ECHO, wire.VERIFICATION, wire.IMPLICIT),
]
LENGTHS = (0, 1, 2, 3, 7, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def sample(uid: str, syntax: str) -> bytes:
    """Return a sound data set: texts, nested sequences, private elements and pixels."""
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = CTImageStorage, uid
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "2.25.1", "2.25.2"
    data_set.Modality, data_set.PatientName, data_set.SpecificCharacterSet = "CT", "Fuzz^Fuzz", "ISO_IR 100"
    data_set.ImageType = ["ORIGINAL", "PRIMARY"]
    inner = Dataset()
    inner.CodeValue, inner.CodeMeaning = "1", "one"
    outer = Dataset()
    outer.PurposeOfReferenceCodeSequence = [inner]
    data_set.ReferencedImageSequence = [outer, outer]
    data_set.add_new(0x00091010, "UN", b"private")
    data_set.Rows = data_set.Columns = 4
    if syntax == JPEGBaseline8Bit:
        data_set.add_new(0x7FE00010, "OB", encapsulate([bytes(32), bytes(20)]))
        data_set[0x7FE00010].is_undefined_length = True
    else:
        data_set.add_new(0x7FE00010, "OW", bytes(32))
    return written(data_set, syntax)


def mutated(chance: random.Random, content: bytes) -> bytes:
    """Return the bytes with up to four things wrong."""
    changed = bytearray(content)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3, 4])):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(9):
            case 0 | 7 | 8 if at < len(changed):
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = chance.randbytes(chance.randint(1, 40))
            case 3:
                del changed[at : at + chance.randint(1, 40)]
            case 4:
                form = chance.choice(["<I", ">I", "<H", ">H"])
                value = chance.choice(LENGTHS) & (0xFFFF if "H" in form else 0xFFFFFFFF)
                changed[at : at + struct.calcsize(form)] = struct.pack(form, value)
            case 5:
                changed[at:at] = changed[at : at + chance.randint(1, 60)] * chance.randint(1, 3)
            case _:
                start = chance.randrange(len(changed) + 1)
                changed[at:at] = changed[start : start + 30]
    return bytes(changed)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.make(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def listener(home: Home) -> Iterator[Role]:
    with home.running("listen") as role:
        role.port()
        yield role


def connected(port: int) -> wire.Peer:
    return wire.Peer(port, DEADLINE_SECONDS)


def associated(port: int) -> wire.Peer:
    """Return an association with every context accepted."""
    peer = connected(port)
    assert peer.associate(wire.associate_request(CONTEXTS)) == wire.ASSOCIATE_AC
    return peer


def assert_ends(peer: wire.Peer) -> None:
    """Say nothing more and wait for the end of the connection. Raises OSError where it is reset: an end too."""
    peer.socket.shutdown(socket.SHUT_WR)
    while peer.socket.recv(65536):
        pass


def assert_alive(listener: Role, port: int) -> None:
    """Assert that the listener serves, and that nothing surprised it."""
    with associated(port) as peer:
        peer.send(wire.pdu(wire.P_DATA_TF, wire.pdv(ECHO, 3, wire.echo_command())))
        assert peer.status() == 0
        assert peer.release() == wire.RELEASE_RP
    log = listener.log_text()
    assert "Traceback" not in log
    assert "cannot take an object" not in log
    # Every association has ended: no thread and no descriptor of them is left.
    tasks = Path(f"/proc/{listener.process.pid}/task")
    wait_until(lambda: len(list(tasks.iterdir())) < 12, what="the threads of ended associations to end", every=0.1)


def assert_kept(home: Home, acknowledged: dict[str, bytes]) -> None:
    """Assert that what was acknowledged lies in the store bit for bit, and is registered."""
    files = home.files()
    registered = {row.sha256 for row in home.instances()}
    kept = Counter(hashlib.sha256(data_set_of(files[name])).digest() for name in registered)
    for uid, data in acknowledged.items():
        assert hashlib.sha256(data).digest() in kept, f"{uid} was acknowledged and is not kept as it was sent"


@pytest.mark.fault(66)
def test_hostile_data_sets(home: Home, listener: Role) -> None:
    chance = random.Random(SEED)
    port = listener.port()
    acknowledged: dict[str, bytes] = {}
    statuses: Counter[int] = Counter()
    peer = associated(port)
    for number in range(INPUTS * 8 // 10):
        uid = f"2.25.{SEED}.{number}"
        context = chance.randrange(len(SYNTAXES))
        data = mutated(chance, sample(uid, SYNTAXES[context]))
        piece = chance.choice([50, 500, 100_000])
        peer.send(wire.store_message(uid, data, number % 65535 + 1, maximum=piece, context=2 * context + 1))
        status = peer.status()
        statuses[status] += 1
        if status == 0:
            acknowledged[uid] = data
    peer.socket.close()
    assert_alive(listener, port)
    assert_kept(home, acknowledged)
    # Both happen, or the mutations test nothing; and no input is a fault of ours.
    assert statuses[0x0000] > 0
    assert statuses[0xC000] > 0
    assert set(statuses) <= {0x0000, 0xA900, 0xC000, 0x0117}, statuses


def _any_pdus(chance: random.Random) -> bytes:
    """Return a conversation from its first byte, with things wrong."""
    uid = f"2.25.{chance.randrange(2**60)}"
    store = wire.store_message(uid, sample(uid, ExplicitVRLittleEndian), maximum=100, context=1)
    kinds: list[Callable[[], bytes]] = [
        lambda: mutated(chance, wire.associate_request(CONTEXTS)),
        lambda: wire.associate_request(CONTEXTS) + mutated(chance, store),
        lambda: wire.associate_request(CONTEXTS) * 2,
        lambda: wire.pdu(chance.randrange(256), chance.randbytes(chance.randint(0, 200))),
        lambda: chance.randbytes(chance.randint(1, 300)),
        lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(100),
    ]
    return chance.choice(kinds)()


@pytest.mark.fault(25)
def test_hostile_conversations(home: Home, listener: Role) -> None:
    chance = random.Random(SEED + 1)
    port = listener.port()
    for number in range(INPUTS // 10):
        with connected(port) as peer:
            try:
                peer.send(_any_pdus(chance))
                assert_ends(peer)
            except TimeoutError:
                pytest.fail(f"input {number} of seed {SEED + 1} hangs")
            except OSError:
                continue
    assert_alive(listener, port)


@pytest.mark.fault(47)
def test_hostile_messages(home: Home, listener: Role) -> None:
    """P-DATA in an association that stands: fragments, command sets and headers with things wrong."""
    chance = random.Random(SEED + 2)
    port = listener.port()
    for number in range(INPUTS - INPUTS * 8 // 10 - INPUTS // 10):
        uid = f"2.25.{SEED}.{number}.9"
        data = sample(uid, ExplicitVRLittleEndian)
        message = wire.store_message(uid, data, maximum=chance.choice([30, 200]), context=1)
        wrong = wire.store_message(uid, data, context=1, request=mutated(chance, wire.store_command(uid)))
        with associated(port) as peer:
            try:
                peer.send(chance.choice([wrong, mutated(chance, message)]))
                assert_ends(peer)
            except TimeoutError:
                pytest.fail(f"input {number} of seed {SEED + 2} hangs")
            except OSError:
                continue
    assert_alive(listener, port)
    # What such a message says is anybody's guess: whatever was kept is whole and registered.
    files = home.files()
    assert {row.sha256 for row in home.instances()} == set(files)
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == name for name, path in files.items())
