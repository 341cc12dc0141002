"""Places where a process can be made to die or to fail, for tests of what is promised then. Off unless asked for.

`MEDDAEMON_FAILPOINT=registering:kill` ends the process at once (SIGKILL) when it gets there, `:raise` and `:eio` raise,
`:sleep=5` waits for seconds. `registering:kill@3` does so the third time. Each place is named once, where it is.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import NoReturn

VARIABLE = "MEDDAEMON_FAILPOINT"


class FailpointReached(RuntimeError):
    """A place was reached that was asked to fail."""


@dataclass
class _Armed:
    """What is to happen where, and how many times it is passed before."""

    name: str
    action: Callable[[], None]
    passes_left: int
    lock: threading.Lock


def reach(name: str) -> None:
    """Do what was asked to happen at this place: nothing, as a rule."""
    armed = _armed()
    if armed is None or armed.name != name:
        return
    with armed.lock:
        armed.passes_left -= 1
        is_due = armed.passes_left == 0
    if is_due:
        armed.action()


def is_armed(name: str) -> bool:
    """Return whether anything is to happen at this place."""
    armed = _armed()
    return armed is not None and armed.name == name


@cache
def _armed() -> _Armed | None:
    said = os.environ.get(VARIABLE, "")
    if not said:
        return None
    place, _, times = said.partition("@")
    name, _, what = place.partition(":")
    action, _, seconds = what.partition("=")
    actions: Mapping[str, Callable[[], None]] = {
        "kill": _kill,
        "raise": partial(_raise, name),
        "eio": partial(_fail, name),
        "sleep": partial(time.sleep, float(seconds or 0)),
    }
    if action not in actions:
        raise ValueError(f"{VARIABLE}={said}: after the colon stands kill, raise, eio or sleep=SECONDS")
    return _Armed(name=name, action=actions[action], passes_left=int(times or 1), lock=threading.Lock())


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(name: str) -> NoReturn:
    raise FailpointReached(name)


def _fail(name: str) -> NoReturn:
    raise OSError(errno.EIO, os.strerror(errno.EIO), name)
