"""Child processes as the worker sees them: forked by a fork server, disposable, each with a connection of its own.

    worker ── ForkServer ──> fork server, libraries loaded ──fork──> child
       └────────────────────── connection ─────────────────────────────┘

A child ends with its worker, however that ends: the fork server sees its connection close, and the child is killed
when the fork server goes.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import meddaemon
from meddaemon.domain.errors import LAST_OUTPUT, ModelFailed
from meddaemon.inference import messages
from meddaemon.inference.forkserver import STATUS

TAIL_BYTES = 4096
"""So much of what a child printed last is kept for the error."""
_END_SECONDS = _TELL_SECONDS = 10.0
_FORKSERVER = "meddaemon.inference.forkserver"

# Only this of our environment reaches a child: no credentials, no proxies, no settings of the daemon.
_PASSED_ON = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


class Interrupted(ModelFailed):
    """The run was made to end by the worker itself."""


class ForkServer:
    """Forks children that run `module.main`, with `libraries` loaded; started at the first fork, replaced when it dies.

    May be used from several threads.
    """

    def __init__(self, module: str, libraries: Sequence[str] = ()) -> None:
        self._arguments = [module, *libraries]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._output: _Output | None = None
        self._owed = 0

    @property
    def pid(self) -> int | None:
        """Process id of the fork server, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Have the libraries loaded from now on, so that the first fork need not wait for all of it."""
        with self._lock:
            self._running()

    def fork(self, *, deadline: float) -> "Child":
        """Return a new child. Raises `ModelFailed` and, at `deadline`, `TimeoutError`."""
        ours, theirs = socket.socketpair()
        output_end, output = os.pipe()
        status_end, status = os.pipe()
        try:
            with theirs:
                pid, pidfd = self._asked((theirs.fileno(), output, status), deadline)
        except BaseException:
            ours.close()
            os.close(output_end)
            os.close(status_end)
            raise
        finally:
            os.close(output)
            os.close(status)
        return Child(pid, pidfd, ours, _Output(output_end), status_end)

    def close(self) -> None:
        """End the fork server, and so all its children."""
        with self._lock:
            self._end()

    def _asked(self, files: Sequence[int], deadline: float) -> tuple[int, int]:
        with self._lock:
            for attempt in (1, 2):
                control = self._running()
                try:
                    messages.send(control, {}, files=files, deadline=time.monotonic() + _TELL_SECONDS)
                    self._owed += 1
                    answer = self._answer(control, deadline)
                except (messages.Ended, OSError) as error:
                    if isinstance(error, TimeoutError) and self._owed:
                        # It may still be loading its libraries, and is not begun anew for a run that cannot wait.
                        raise
                    told = self._end()
                    if attempt == 2:
                        raise ModelFailed(f"the fork server ended{told}") from error
                    continue
                if "failed" in answer.said or len(answer.files) != 1:
                    told = self._end()
                    raise ModelFailed(f"no model process can be made: {answer.said.get('failed')}{told}")
                return int(answer.said["pid"]), answer.files[0]
        raise AssertionError("unreachable")  # pragma: no cover

    def _answer(self, control: socket.socket, deadline: float) -> messages.Received:
        """Return the answer to what was asked last; nobody waits any more for those before, whose children end."""
        while True:
            if not is_readable(control.fileno(), deadline - time.monotonic()):
                raise TimeoutError
            answer = messages.receive(control, deadline=time.monotonic() + _TELL_SECONDS)
            self._owed -= 1
            if not self._owed:
                return answer
            for descriptor in answer.files:
                os.close(descriptor)

    def _running(self) -> socket.socket:
        """Return the connection to the fork server, started anew where there is none."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._control is None:
            self._control, theirs = socket.socketpair()
            output_end, output = os.pipe()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _FORKSERVER, str(theirs.fileno()), *self._arguments],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=_environment(),
                    # What a terminal sends to the worker is the worker's to pass on.
                    start_new_session=True,
                )
            os.close(output)
            self._output = _Output(output_end)
        return self._control

    def _end(self) -> str:
        """End the process; returns what it printed last, for an error."""
        process, control, output = self._process, self._control, self._output
        self._process = self._control = self._output = None
        self._owed = 0
        if control is not None:
            control.close()
        if process is not None:
            try:
                # It ends by itself, once it has killed its children.
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return output.told() if output is not None else ""


class Child:
    """One forked process. One thread talks to it and ends it; any may `kill` it."""

    def __init__(self, pid: int, pidfd: int, connection: socket.socket, output: "_Output", status: int) -> None:
        """Take over a process that was forked, with its descriptors."""
        self.pid = pid
        self.connection = connection
        self.was_killed = False
        """Whether it was us who killed it."""
        self._pidfd = pidfd
        self._output = output
        self._status = status
        self._returncode: int | None = None
        self._ending = threading.Lock()

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        return self._wait(0)

    def kill(self) -> None:
        """Kill it, from any thread; what its bundle started goes with it."""
        with self._ending:
            if self._returncode is None and self._pidfd >= 0:
                self.was_killed = True
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self) -> int:
        """Kill it, wait for it, close its connection; returns how it ended. Idempotent."""
        if self._wait(0.2 if self._hung_up() else 0) is None:
            # One that hung up by itself was given the moment it needs to end with its own status.
            self.kill()
            self._wait(_END_SECONDS)
        self.connection.close()
        self._output.join()
        with self._ending:
            if self._pidfd >= 0:
                os.close(self._pidfd)
                os.close(self._status)
                self._pidfd = -1
        return -signal.SIGKILL if self._returncode is None else self._returncode

    def told(self) -> str:
        """Return the end of what it printed, as the end of an error."""
        return self._output.told()

    def _wait(self, seconds: float) -> int | None:
        with self._ending:
            if self._returncode is None and self._pidfd >= 0 and is_readable(self._status, seconds):
                status = os.read(self._status, STATUS.size)
                # Nothing: the fork server is gone, which the child does not survive.
                self._returncode = STATUS.unpack(status)[0] if len(status) == STATUS.size else -signal.SIGKILL
            return self._returncode

    def _hung_up(self) -> bool:
        if self.connection.fileno() < 0:
            return True
        self.connection.settimeout(0)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


def is_readable(descriptor: int, seconds: float) -> bool:
    """Return whether a descriptor has something to read, or its end, within so many seconds."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


class _Output:
    """The end of what a process prints. Somebody must read, or a talkative bundle would block on a full pipe."""

    def __init__(self, descriptor: int) -> None:
        self._tail = bytearray()
        self._reader = threading.Thread(target=self._keep, args=(descriptor,), name="child-output", daemon=True)
        self._reader.start()

    def join(self) -> None:
        self._reader.join(timeout=5)

    def told(self) -> str:
        self.join()
        text = bytes(self._tail).decode(errors="replace").strip()
        return f"{LAST_OUTPUT}{text}" if text else ""

    def _keep(self, descriptor: int) -> None:
        try:
            while chunk := os.read(descriptor, 2**16):
                self._tail += chunk
                del self._tail[:-TAIL_BYTES]
        finally:
            os.close(descriptor)


def cause(returncode: int) -> str:
    """Return how a process ended, in words."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _environment() -> dict[str, str]:
    """Return the environment of a fork server: what its children need and nothing that is ours to keep."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        # OpenMP would take every core of the machine, also those that this process may not use.
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        **passed_on,
        # The one library that would start threads by being loaded, and so forbid every fork.
        "OPENBLAS_NUM_THREADS": "1",
        "HOME": "/",
        # Libraries come from where ours come from.
        "PYTHONPATH": os.pathsep.join(
            dict.fromkeys(
                [str(Path(meddaemon.__file__).resolve().parents[1])]
                + [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
            )
        ),
        # A bundle's folder stays as it was digested, and hashing is the same in every run.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }
