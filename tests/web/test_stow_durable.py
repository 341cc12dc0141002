"""What a STOW-RS answer calls stored is there, whatever happens; and what cannot be stored now is said to be so."""

import http.client
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.engine import URL

from tests.databases import _execute
from tests.running import Home, Role, data_set_of, wait_until
from tests.web.posting import (
    BOUNDARY,
    CLASS,
    FAILED,
    STUDIES,
    WEB,
    Answer,
    image,
    new_uid,
    part,
    part10,
    post,
    send,
    web_port,
)

OUT_OF_RESOURCES = 0xA700


def assert_sound(home: Home, stored: dict[str, bytes]) -> None:
    """Assert that all of these are kept bit for bit, that index and store agree by hash, and that nothing else lies."""
    assert home.cli("store", "check", "--hash").returncode == 0
    files = home.files()
    kept = {row.sop_instance_uid: data_set_of(files[str(row.sha256)]) for row in home.instances()}
    assert stored.items() <= kept.items()
    assert not any(row.conflict for row in home.instances())
    assert home.half_received() == []
    assert list((home.store / "quarantine").iterdir()) == []


# --- kill -9 ------------------------------------------------------------------------------------------------------


def _send_until_gone(port: int, stored: dict[str, bytes]) -> None:
    """Send without pause until the role is gone; remember what was answered to be stored."""
    while True:
        objects = {new_uid(): b"" for _ in range(random.randint(1, 6))}
        objects = {uid: image(uid, size=random.choice([2_000, 40_000, 2_000_000])) for uid in objects}
        try:
            answer = send(port, objects, timeout=30)
        except (OSError, http.client.HTTPException):
            return
        assert answer.status == 200
        stored.update({uid: objects[uid] for uid in answer.stored})


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    home = Home.make(tmp_path, WEB)
    stored: dict[str, bytes] = {}
    for _ in range(5):
        with home.running("web") as role:
            port = web_port(role)
            known = len(stored)
            senders = [threading.Thread(target=_send_until_gone, args=(port, stored)) for _ in range(2)]
            for sender in senders:
                sender.start()
            wait_until(lambda known=known: len(stored) > known, what="the first answer", every=0.001)
            # The moment is what the test varies: anywhere within a body, a sync or a commit.
            threading.Event().wait(random.uniform(0, 0.3))
            os.kill(role.process.pid, signal.SIGKILL)
            for sender in senders:
                sender.join(60)
                assert not sender.is_alive()
            role.process.wait(15)
            role.process.returncode = 0  # asked for
    with home.running("web") as role:
        web_port(role)
        assert_sound(home, stored)
    assert len(stored) >= 5


def test_a_body_that_is_cut_leaves_nothing_torn(tmp_path: Path) -> None:
    home = Home.make(tmp_path, WEB)
    first, second = new_uid(), new_uid()
    data = image(first)
    with home.running("web") as role:
        port = web_port(role)
        large = part(part10(image(second, size=5_000_000), second))
        body = part(part10(data, first)) + large[: len(large) // 2]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest("POST", STUDIES)
        connection.putheader("Content-Type", f'multipart/related; type="application/dicom"; boundary={BOUNDARY}')
        connection.putheader("Content-Length", str(len(body) + 100))
        connection.endheaders(body)
        wait_until(home.instances, what="the first object to be stored")
        connection.close()
        wait_until(lambda: "stored=1" in role.log_text() or '"stored": 1' in role.log_text(), what="the end of it")
        (path,) = home.files().values()
        assert data_set_of(path) == data
        assert [row.sop_instance_uid for row in home.instances()] == [first]
        assert home.half_received() == []


# --- many at once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_many_senders_of_the_same_objects(tmp_path: Path, database_url: str) -> None:
    home = Home.make(tmp_path, f'{WEB}maximum_uploads = 100\n[database]\nurl = "{database_url}"\n')
    objects = {uid: image(uid) for uid in (new_uid() for _ in range(10))}
    with home.running("web") as role, ThreadPoolExecutor(12) as senders:
        port = web_port(role)
        answers = list(senders.map(lambda _: send(port, objects), range(24)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.stored == list(objects) for answer in answers)
    assert_sound(home, objects)
    assert len(home.instances()) == len(objects)


# --- nowhere to put it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_database_that_is_away_and_comes_back(tmp_path: Path, database_url: str, postgresql_server: URL) -> None:
    home = Home.make(tmp_path, f'{WEB}[database]\nurl = "{database_url}"\n')
    name = make_url(database_url).database
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    first, second = new_uid(), new_uid()
    objects = {uid: image(uid) for uid in (first, second)}
    with home.running("web") as role:
        port = web_port(role)
        assert send(port, {first: objects[first]}).status == 200
        _execute(postgresql_server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        _execute(postgresql_server, cut)
        answer = send(port, objects)
        _execute(postgresql_server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
        assert answer.failed == dict.fromkeys(objects, OUT_OF_RESOURCES)
        assert all(item[CLASS]["Value"] for item in answer.items(FAILED))
        assert send(port, objects).stored == [first, second]
    assert_sound(home, objects)


def test_a_volume_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    """Small objects go through memory, large ones through a file: neither is written to the mount point."""
    home = Home.make(tmp_path / "home", f'{WEB}[database]\nurl = "sqlite:///{tmp_path}/database.sqlite"\n')
    objects = {uid: image(uid, size=size) for uid, size in ((new_uid(), 1000), (new_uid(), 3_000_000))}
    with home.running("web") as role:
        port = web_port(role)
        volume = home.store.rename(tmp_path / "unmounted")
        home.store.mkdir()
        answer = send(port, objects)
        assert list(home.store.iterdir()) == []
        home.store.rmdir()
        volume.rename(home.store)
        assert answer.status == 503
        # The large one was given up before anybody knew its name.
        assert [*answer.failed.values(), *answer.others] == [OUT_OF_RESOURCES] * 2
        assert send(port, objects).status == 200
    assert_sound(home, objects)


def test_a_full_disk(tmp_path: Path) -> None:
    home = Home.make(tmp_path, WEB, minimum_free_bytes=shutil.disk_usage(tmp_path).total)
    objects = {uid: image(uid, size=size) for uid, size in ((new_uid(), 1000), (new_uid(), 3_000_000))}
    with home.running("web") as role:
        answer = send(web_port(role), objects)
    assert (answer.status, list(answer.failed.values()), answer.others) == (503, [OUT_OF_RESOURCES], [OUT_OF_RESOURCES])
    assert home.files() == {}


# --- memory -------------------------------------------------------------------------------------------------------


def _peak(role: Role) -> int:
    """Return the largest resident memory that the role ever had, in bytes."""
    status = Path(f"/proc/{role.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def _pieces(contents: Iterator[bytes]) -> Iterator[bytes]:
    yield from contents
    yield f"--{BOUNDARY}--\r\n".encode()


def _one_large(uid: str, size: int) -> Iterator[bytes]:
    """Yield a part that holds one image of so many bytes, a megabyte at a time."""
    content = part(part10(image(uid, size=size, fill=b"\x12\x34"), uid))
    for start in range(0, len(content), 2**20):
        yield content[start : start + 2**20]


@pytest.mark.parametrize("kind", ["one object", "many objects"])
def test_three_hundred_megabytes_cost_no_memory(tmp_path: Path, kind: str) -> None:
    home = Home.make(tmp_path, WEB)
    uids = [new_uid() for _ in range(1 if kind == "one object" else 75)]
    size = 300_000_000 // len(uids)
    with home.running("web") as role:
        port = web_port(role)
        before = _peak(role)
        contents = (piece for uid in uids for piece in _one_large(uid, size))
        answer: Answer = post(port, _pieces(contents), timeout=250)
        assert (answer.status, answer.stored) == (200, uids)
        cost = _peak(role) - before
    assert cost < 60_000_000, f"{cost / 1e6:.0f} MB"
    assert sum(path.stat().st_size for path in home.files().values()) > 300_000_000
    shutil.rmtree(home.store)
