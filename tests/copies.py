"""Processes of meddaemon that begin as copies of one that has imported everything.

To start Python and to import what a role needs takes more than a second of a core, what a model needs five, and tests
start hundreds. A copy is a process like any other: own session, own files, killed and waited for by its id. Run as a
program, this is one of the two that are copied, roles and fork servers of models; they end when the test run does.
"""

import ctypes
import fcntl
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

_ROLES = ("listen", "deliver", "work", "web")
_FORKSERVER = "meddaemon.inference.forkserver"
_THREADS = os.environ.get("OMP_NUM_THREADS")
"""What the libraries of the copies were loaded with: whoever wants another number loads them itself."""
_PR_SET_CHILD_SUBREAPER = 36
_WORD = 16
_SECONDS = 120.0
"""How long it may take to load what is copied."""


REAL = subprocess.Popen
"""How processes are started that are no copies."""


class _Process(ABC):
    """A process that was copied, as `subprocess.Popen` shows one; `ended` can be read from as soon as it has ended."""

    def __init__(self, pid: int, arguments: Sequence[str], ended: int) -> None:
        self.pid = pid
        self.args = list(arguments)
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        """Return how it ended, None as long as it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = self._code()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        code = self.poll()
        assert code is not None
        return code

    @abstractmethod
    def _code(self) -> int:
        """Return how it ended, which it has."""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Copy(_Process):
    """A copy whose end is told by the process that was copied."""

    def __init__(self, said: socket.socket, arguments: Sequence[str]) -> None:
        said.settimeout(_SECONDS)
        told = said.recv(_WORD)
        if not told:
            raise RuntimeError("what was to be copied has ended")
        super().__init__(int(told), arguments, said.fileno())
        self._said = said

    def _code(self) -> int:
        with self._said:
            return int(self._said.recv(_WORD))


class _Child(_Process):
    """A copy that is a child of this process."""

    def __init__(self, pid: int, arguments: Sequence[str]) -> None:
        super().__init__(pid, arguments, os.pidfd_open(pid))

    def _code(self) -> int:
        os.close(self._ended)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What a copy is to be: its arguments, folder and environment; and under which numbers it has its descriptors."""

    arguments: Sequence[str]
    folder: str
    environment: Mapping[str, str]
    numbers: Sequence[int]

    def copied(self, address: str, descriptors: Sequence[int]) -> Copy:
        """Have it made by the process that listens there."""
        said = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        said.connect(address)
        socket.send_fds(said, [json.dumps(asdict(self)).encode()], descriptors)
        return Copy(said, self.arguments)


def start(
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    output: BinaryIO,
    errors: BinaryIO | None = None,
) -> Copy:
    """Run `meddaemon` with these arguments in a session of its own; what it says goes to `output` and `errors`."""
    arguments = ["meddaemon", *arguments]
    order = _Order(arguments=arguments, folder=str(folder), environment=dict(environment), numbers=[1, 2])
    return order.copied(_originals() + "roles", [output.fileno(), (errors or output).fileno()])


@cache
def _originals() -> str:
    """Start the processes that are copied, and return how their addresses begin; they end when this process does."""
    prefix = f"\0meddaemon-copies-{os.getpid()}-"
    ended, _alive = os.pipe()  # closed by our end
    listener = _listening(prefix + "roles")
    subprocess.Popen(
        [sys.executable, __file__, "roles", prefix[1:], str(ended), str(listener.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[ended, listener.fileno()],
    )
    os.close(ended)
    listener.close()
    return prefix


def copy_model_servers(prefix: str = "") -> None:
    """Have the fork servers of model processes that this process starts be copies, too."""

    class Popen(REAL):  # type: ignore[misc,valid-type]
        def __new__(cls, arguments: Sequence[str], **said: Any) -> Any:
            if (
                _FORKSERVER not in arguments
                or "torch" not in arguments
                or os.environ.get("OMP_NUM_THREADS") != _THREADS
            ):
                return super().__new__(cls)
            (control,) = said["pass_fds"]
            first = list(arguments).index(_FORKSERVER)
            order = _Order(
                arguments=list(arguments)[first:],
                folder=said["cwd"],
                environment=said["env"],
                numbers=[1, 2, control],
            )
            try:
                return order.copied((prefix or _originals()) + "models", [said["stdout"], said["stderr"], control])
            except (ConnectionError, RuntimeError):
                # What is copied has ended, however that came: it takes longer, and tests the same.
                return super().__new__(cls)

    subprocess.Popen = Popen  # type: ignore[misc]


def _copy_roles() -> None:
    """Have the roles that a supervisor starts be copies: children of its own, as otherwise. Returns in each of them.

    They are grandchildren of a process that does nothing but make them, which has opened nothing yet, and left to the
    supervisor by a parent who ends at once (prctl(2), PR_SET_CHILD_SUBREAPER).
    """
    supervisor = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        _be_born(theirs, supervisor)
        return
    theirs.close()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __new__(cls, arguments: Sequence[str], **said: Any) -> Any:
            if list(arguments[1:3]) != ["-m", "meddaemon"] or set(said) != {"env"}:
                return super().__new__(cls, arguments, **said)
            ours.send(json.dumps([arguments[2:], dict(said["env"])]).encode())
            return _Child(int(ours.recv(_WORD)), arguments)

    subprocess.Popen = Popen  # type: ignore[misc]


def _be_born(orders: socket.socket, supervisor: int) -> None:
    """Have roles born until the supervisor ends; return in each of them."""
    while message := orders.recv(1 << 20):
        if middle := os.fork():
            os.waitpid(middle, 0)
            continue
        if os.fork():
            os._exit(0)
        deadline = time.monotonic() + _SECONDS
        while os.getppid() != supervisor:
            if time.monotonic() > deadline:
                os._exit(1)
            time.sleep(0.001)
        arguments, environment = json.loads(message)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:] = arguments
        orders.send(str(os.getpid()).encode())
        orders.close()
        return
    os._exit(0)


def _listening(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    return listener


def _copied(alive: int, listener: socket.socket, others: dict[socket.socket, Callable[[], None]]) -> list[str]:
    """Obey orders until the tests end; return in each copy, with its arguments.

    What comes first to one of the `others` has that done, once.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([alive, listener, *others, *running], [], [])[0]:
            if ready == alive:
                sys.exit()
            elif ready in others:
                others.pop(ready)()
                ready.close()
            elif ready is listener:
                said = listener.accept()[0]
                message, descriptors, _, _ = socket.recv_fds(said, 1 << 20, 3)
                if not message:
                    said.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for each in (alive, *running):
                        os.close(each)
                    for unix in (listener, *others):
                        unix.close()
                    return _begin(_Order(**json.loads(message)), said, descriptors)
                for each in descriptors:
                    os.close(each)
                running[os.pidfd_open(pid)] = pid, said
            else:
                pid, said = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(ready)
                with said, suppress(BrokenPipeError, ConnectionResetError):
                    said.send(str(code).encode())


def _begin(order: _Order, said: socket.socket, descriptors: Sequence[int]) -> list[str]:
    """Become a process of its own."""
    os.setsid()
    os.chdir(order.folder)
    # Out of the way of the numbers that they are to have.
    high = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in descriptors]
    answer = socket.socket(fileno=fcntl.fcntl(said, fcntl.F_DUPFD, 100))
    said.close()
    for each in descriptors:
        os.close(each)
    for each, number in zip(high, order.numbers, strict=True):
        os.dup2(each, number)
        os.close(each)
    os.environ.clear()
    os.environ.update(order.environment)
    with answer:
        answer.send(str(os.getpid()).encode())
    return list(order.arguments)


def _be_roles(prefix: str, alive: int, listener: socket.socket) -> None:
    """Have what every role needs loaded, and be `meddaemon` in each copy."""
    for role in _ROLES:
        import_module(f"meddaemon.roles.{role}")
    cli = import_module("meddaemon.cli")

    def models() -> None:
        subprocess.Popen(
            [sys.executable, __file__, "models", prefix[1:], str(alive), str(waiting.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[alive, waiting.fileno()],
            env=import_module("meddaemon.inference.processes")._environment(),
        )

    waiting = _listening(prefix + "models")
    # As the fork server does: what a copy never looks at is never its own.
    gc.collect()
    gc.freeze()
    sys.argv[:] = _copied(alive, listener, {waiting: models})
    copy_model_servers(prefix)
    if "serve" in sys.argv:
        _copy_roles()
    cli.main()


def _be_models(alive: int, listener: socket.socket) -> int:
    """Have what every model process needs loaded, and be a fork server in each copy."""
    forkserver = import_module(_FORKSERVER)
    sys.modules["pyarrow"] = None  # type: ignore[assignment]  # as the fork server does, and why
    runtime = import_module("meddaemon.inference.runtime")
    for each in runtime.model_server()._arguments:
        import_module(each)
    assert sum(1 for _ in Path("/proc/self/task").iterdir()) == 1, "a copy would deadlock"
    gc.collect()
    gc.freeze()
    sys.argv[:] = _copied(alive, listener, {})
    return int(forkserver.main())


if __name__ == "__main__":
    # As `python -m meddaemon` finds its modules: not among the tests.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    _kind, _prefix, _alive, _fd = sys.argv[1:]
    _listener = socket.socket(fileno=int(_fd))
    if _kind == "roles":
        _be_roles("\0" + _prefix, int(_alive), _listener)
    else:
        sys.exit(_be_models(int(_alive), _listener))
