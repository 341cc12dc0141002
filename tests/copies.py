"""Processes of meddaemon that begin as copies of one that has imported everything.

To start Python and to import what a role needs takes more than a second of a core, and tests start hundreds of roles.
A copy is a process like any other: own session, own files, killed and waited for by its id. Run as a program, this is
the one that is copied; it ends when the test run does.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

_PRELOADED = ("listen", "deliver", "work", "web")
_WORD = 16


class Copy:
    """A process that was copied, as `subprocess.Popen` shows one."""

    def __init__(self, said: socket.socket, arguments: Sequence[str]) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self._said = said
        self.pid = int(said.recv(_WORD))

    def poll(self) -> int | None:
        """Return how it ended, None as long as it runs."""
        if self.returncode is None and select.select([self._said], [], [], 0)[0]:
            self.returncode = int(self._said.recv(_WORD))
            self._said.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None and not select.select([self._said], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    output: BinaryIO,
    errors: BinaryIO | None = None,
) -> Copy:
    """Run `meddaemon` with these arguments in a session of its own; what it says goes to `output` and `errors`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request = {"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
    with theirs:
        descriptors = [theirs.fileno(), output.fileno(), (errors or output).fileno()]
        socket.send_fds(_original()[0], [json.dumps(request).encode()], descriptors)
    return Copy(ours, ["meddaemon", *arguments])


@cache
def _original() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """Start the process that is copied, and return how it is spoken to; it ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
        )
    return ours, process


def _copied(orders: socket.socket) -> list[str]:
    """Obey orders until there are no more; return in each copy, with its arguments."""
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([orders, *running], [], [])[0]:
            if ready is not orders:
                pid, said = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(ready)
                with said:
                    said.send(str(code).encode())
                continue
            message, descriptors, _, _ = socket.recv_fds(orders, 1 << 20, 3)
            if not message:
                sys.exit()
            said, outputs = socket.socket(fileno=descriptors[0]), descriptors[1:]
            pid = os.fork()
            if pid == 0:
                return _begin(json.loads(message), orders, said, outputs, list(running))
            for each in outputs:
                os.close(each)
            running[os.pidfd_open(pid)] = pid, said


def _begin(
    request: dict[str, object], orders: socket.socket, said: socket.socket, outputs: list[int], others: list[int]
) -> list[str]:
    """Become a process of its own."""
    os.setsid()
    orders.close()
    for each in others:
        os.close(each)
    os.chdir(str(request["folder"]))
    for number, output in enumerate(outputs, 1):
        os.dup2(output, number)
        os.close(output)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    said.send(str(os.getpid()).encode())
    said.close()
    return list(request["arguments"])  # type: ignore[call-overload]


if __name__ == "__main__":
    from importlib import import_module

    # As `python -m meddaemon` finds its modules: not among the tests.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    for role in _PRELOADED:
        import_module(f"meddaemon.roles.{role}")
    from meddaemon.cli import main

    sys.argv[:] = ["meddaemon", *_copied(socket.socket(fileno=int(sys.argv[1])))]
    main()
