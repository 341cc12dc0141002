"""Several listener processes on one port: each has its part of the associations and a journal, all one index."""

import secrets
import socket
from pathlib import Path

from running import Home, wait_until
from scanner import scanner
from test_crash import assert_sound, image

from meddaemon.db import processes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_listeners_share_a_port_and_an_index(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    home.config.write_text(home.config.read_text().replace("port = 0", f"port = {free_port()}\nprocesses = 2"))
    sent: dict[str, bytes] = {}
    with home.running("listen") as first, home.running("listen") as second:
        port = first.port()
        assert second.port() == port
        folders = home.store / "journal"
        wait_until(lambda: len(list(folders.glob("*/000.segment"))) == 2, what="a journal for each")
        served: set[str] = set()
        # The system deals connections out by their port numbers.
        while len(served) < 2 or len(sent) < 40:
            with scanner(port) as sender:
                for _ in range(2):
                    uid = f"2.25.{secrets.randbits(100)}"
                    sent[uid] = image(uid, 20_000)
                    assert sender.store(sent[uid], uid) == 0
            home.await_filed()
            served = {
                path.parent.name
                for path in folders.glob("*/000.segment")
                if path.read_bytes()[4096 : 4096 + 4] == b"MEDJ"
            }
            assert len(sent) < 400
        with home.database() as database, database.read() as connection:
            assert [each.role for each in processes.listing(connection)] == ["listen"] * 2
    assert_sound(home, sent)
