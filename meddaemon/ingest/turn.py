"""Whose turn it is to compute: one association at a time, from the moment that bytes are there until it has to wait.

The interpreter lets one thread compute at a time anyway, and changes threads at each system call that one makes. With
four associations that send, that comes to eighty changes for each object, and they cost half as much as all the work.
With turns there are three: for the peer's bytes, for the disk, and for the answer.

A turn is the innermost of all locks: who has it waits for nothing and nobody, or gives it up meanwhile.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from types import TracebackType


class Turn:
    """A turn, taken with `with`; not twice by the same thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._holder = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder = get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder = 0
        self._lock.release()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Let others have their turns for as long as this thread waits for something; nothing where it has none."""
        if self._holder != get_ident():
            yield
            return
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()


TURN = Turn()
"""The turn of this process: there is one, as there is one interpreter."""
