"""The fork server: children with their libraries loaded, in no time, and none that outlives its worker."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import copies
import pytest

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.processes import ForkServer
from meddaemon.inference.runtime import model_server


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One that loads little: how processes begin and end is the same."""
    server = ForkServer("meddaemon.inference.child")
    yield server
    server.close()


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def wait_until_gone(pid: int) -> None:
    """Wait for the end; one that nobody has reaped yet is as good as gone."""
    deadline = soon(20)
    stat = Path(f"/proc/{pid}/stat")
    with suppress(FileNotFoundError, ProcessLookupError):
        while stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < deadline, f"process {pid} still lives"
            os.sched_yield()


def test_a_child_has_torch_at_once_and_the_server_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", copies.REAL)
    server = model_server()
    server.fork(deadline=soon()).end()
    started = time.monotonic()
    child = server.fork(deadline=soon())
    assert time.monotonic() - started < 0.2
    assert "libtorch" in Path(f"/proc/{child.pid}/maps").read_text()
    assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1
    assert child.poll() is None
    assert child.end() == -signal.SIGKILL
    assert child.poll() == child.end() == -signal.SIGKILL, "again and again"
    assert child.was_killed
    server.close()


def test_a_child_that_hangs_up_ends_with_its_own_status(server: ForkServer) -> None:
    child = server.fork(deadline=soon())
    child.connection.shutdown(2)
    assert child.end() == 0
    assert not child.was_killed


def test_a_server_that_dies_takes_its_children_and_is_replaced(server: ForkServer) -> None:
    child, pid = server.fork(deadline=soon()), server.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    other = server.fork(deadline=soon())
    assert server.pid != pid
    assert child.end() == -signal.SIGKILL
    wait_until_gone(child.pid)
    other.connection.shutdown(2)
    assert other.end() == 0


def test_what_cannot_be_loaded_is_said() -> None:
    server = ForkServer("meddaemon.no_such_module")
    with pytest.raises(ModelFailed, match=r"No module named 'meddaemon\.no_such_module'"):
        server.fork(deadline=soon())
    server.close()


def test_a_server_that_is_too_slow_is_no_hindrance_later() -> None:
    server = ForkServer("meddaemon.inference.child")
    for _ in range(2):
        with pytest.raises(TimeoutError):
            server.fork(deadline=soon(0.01))
    pid = server.pid
    child = server.fork(deadline=soon())
    assert server.pid == pid, "it went on loading"
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline = soon(10)
    while children.read_text().split() != [str(child.pid)]:
        assert time.monotonic() < deadline, "those that nobody waited for have ended"
        os.sched_yield()
    assert child.end() == -signal.SIGKILL
    server.close()
    server.close()


def test_an_ended_worker_leaves_nothing(server: ForkServer) -> None:
    child = server.fork(deadline=soon())
    server.close()
    wait_until_gone(child.pid)
    assert child.end() == -signal.SIGKILL
