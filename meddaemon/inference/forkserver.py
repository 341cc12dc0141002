"""The fork server: `python -m meddaemon.inference.forkserver FD MODULE LIBRARY...`, started by `processes.ForkServer`.

It loads libraries once, which takes seconds for torch, and then forks children that have them in a hundredth of one,
each running `MODULE.main(connection)`. It does nothing else: a process that forks may have one thread only, and no
tensor may ever have been touched, since the threads and the CUDA context of a library do not survive a fork. When the
worker hangs up, it ends and takes its children with it; they also end when it is killed (PR_SET_PDEATHSIG).
"""

import ctypes
import gc
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

from meddaemon.inference import messages

PR_SET_PDEATHSIG = 1
STATUS = struct.Struct("=i")
"""How a child ended, as `subprocess` says it, written to the pipe that came with the wish for it."""

Main = Callable[[socket.socket], int]


class _Child(NamedTuple):
    pid: int
    status: int
    """Descriptor that takes its exit status."""


def main() -> int:
    """Load what the arguments name, then fork whenever the connection asks for it."""
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        # pandas, which MONAI loads, takes it where it is there, and it begins a thread as soon as it is loaded.
        sys.modules["pyarrow"] = None  # type: ignore[assignment]
        run: Main = import_module(sys.argv[2]).main
        for library in sys.argv[3:]:
            # What is absent is missed by the child that needs it, and named by it.
            if find_spec(library.partition(".")[0]) is not None:
                import_module(library)
        threads = sum(1 for _ in Path("/proc/self/task").iterdir())
        if threads != 1:
            raise RuntimeError(f"{threads} threads after the libraries were loaded: a fork would deadlock")
    except Exception as error:  # noqa: BLE001 - the worker is told whatever it is
        messages.send(control, {"failed": f"{type(error).__name__}: {error}"})
        return 1
    gc.collect()
    # So that the collector of a child does not touch, and so copy, what it shares with us.
    gc.freeze()
    with suppress(messages.Ended, BrokenPipeError, ConnectionResetError):
        _serve(control, run)
    return 0


def _serve(control: socket.socket, run: Main) -> None:
    """Fork, and reap what was forked; raises `messages.Ended` when the worker hangs up."""
    children: dict[int, _Child] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    try:
        while True:
            for descriptor, _ in poll.poll():
                if descriptor != control.fileno():
                    poll.unregister(descriptor)
                    _reap(descriptor, children.pop(descriptor))
                    continue
                connection, output, status = messages.receive(control).files
                pid = _fork(run, connection, output)
                pidfd = os.pidfd_open(pid)
                children[pidfd] = _Child(pid, status)
                poll.register(pidfd, select.POLLIN)
                os.close(connection)
                os.close(output)
                messages.send(control, {"pid": pid}, files=(pidfd,))
    finally:
        for pidfd in children:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _reap(pidfd: int, child: _Child) -> None:
    """Tell how a child ended, and end what it may have started: all that is in its process group."""
    # Before it is reaped: as long as it is not, nobody else has its number.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    _, status = os.waitpid(child.pid, 0)
    with suppress(BrokenPipeError):
        os.write(child.status, STATUS.pack(os.waitstatus_to_exitcode(status)))
    os.close(child.status)
    os.close(pidfd)


def _fork(run: Main, connection: int, output: int) -> int:
    """Return the process id of a new child; the child itself never comes back."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(run, parent, connection, output)
    return pid


def _become(run: Main, parent: int, connection: int, output: int) -> NoReturn:
    """Be a child from here on: alone with its connection, and with what it prints going to the worker."""
    code = 1
    try:
        # Its own process group, so that what it starts can be ended with it.
        os.setsid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for descriptor in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
            if descriptor > 2 and descriptor != connection:
                with suppress(OSError):  # the one that listed them
                    os.close(descriptor)
        # When memory runs out, the kernel takes this process rather than a listener.
        Path("/proc/self/oom_score_adj").write_text("1000")
        os.umask(0o077)
        code = run(socket.socket(fileno=connection))
    except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as a fork server
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
