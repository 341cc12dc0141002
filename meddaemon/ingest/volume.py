"""The volume that the store lies on: whether it is there, and whether it is the one that our objects are on.

A disk that is not mounted leaves an empty folder in its place, and another disk may be mounted there, with a store of
its own. What is written then is lost to everybody who looks for it later. So a file on the volume, `volume-id`, repeats
an identity that the database remembers; it is compared at start and before every object.
"""

import os
import secrets
import threading
from pathlib import Path

from meddaemon.db import volumes
from meddaemon.db.engine import Database
from meddaemon.domain.errors import MeddaemonError
from meddaemon.telemetry import log

SENTINEL = "volume-id"
_IDENTITY_BYTES = 16
_LONGEST = 100
_log = log(__name__)


class VolumeGone(MeddaemonError):
    """The store's directory is not on the volume that the database knows: not mounted, or another one."""


class Volume:
    """Tells at any time, in a few microseconds, whether the store's volume is there; several threads may ask."""

    def __init__(self, directory: Path, identity: str) -> None:
        """`identity` is what the file in `directory` must say. Nothing is looked at before it is asked for."""
        self.directory = directory
        self.returned = 0
        """How often the volume has come back: what was open on it before is not on it any more."""
        self._file = os.fspath(directory / SENTINEL)
        self._identity = identity
        self._seen: tuple[int, int, int] | None = None
        self._gone = False
        self._changing = threading.Lock()

    def require(self) -> None:
        """Raise VolumeGone unless the volume is there; say in the log when it goes and when it comes back."""
        try:
            found = os.stat(self._file)  # noqa: PTH116  a third of the time of Path.stat, for every object
        except OSError:
            found = None
        # A file that was made anew, or lies on another volume, differs in one of them: it is read again then.
        if found is None or (found.st_dev, found.st_ino, found.st_ctime_ns) != self._seen:
            self._look()

    @property
    def is_there(self) -> bool:
        """Whether the volume is there now."""
        try:
            self.require()
        except VolumeGone:
            return False
        return True

    def _look(self) -> None:
        with self._changing:
            try:
                with open(self._file, "rb") as file:  # noqa: PTH123
                    found = os.fstat(file.fileno())
                    said = _identity_in(file.read(_LONGEST))
            except OSError:
                said = None
            if said != self._identity:
                self._seen = None
                problem = _problem(self.directory, said)
                if not self._gone:
                    self._gone = True
                    _log.error("the store's volume is gone: nothing is taken until it is back", reason=problem)
                raise VolumeGone(problem)
            self._seen = (found.st_dev, found.st_ino, found.st_ctime_ns)
            if self._gone:
                self._gone = False
                self.returned += 1
                _log.warning("the store's volume is back", directory=str(self.directory))


def open_volume(database: Database, directory: Path) -> Volume:
    """Return the volume of the store that this database is the index of; the first time, make it.

    The database remembers first, then the file is written, then the database knows that it was: whoever is stopped
    in between goes on at the next start. Raises VolumeGone, OSError.
    """
    # In this order: what lies there was remembered before it was written.
    lying = identity_of(directory)
    with database.read() as connection:
        known = volumes.remembered(connection)
    if known is None:
        if lying is not None:
            raise VolumeGone(
                f"{directory} is the store of another database than this one, which has never had a store: is "
                "[database] the right one? If the database was lost, `meddaemon store adopt` and `meddaemon store "
                "repair` make a new index of the objects"
            )
        with database.write() as connection:
            volumes.remember(connection, secrets.token_hex(_IDENTITY_BYTES))
            known = volumes.remembered(connection)
            assert known is not None  # noqa: S101  for the type checker
    if not known.placed:
        if lying is None:
            _write(directory, known.identity)
        elif lying != known.identity:
            raise VolumeGone(_problem(directory, lying))
        with database.write() as connection:
            volumes.note_placed(connection)
    volume = Volume(directory, known.identity)
    volume.require()
    return volume


def check_volume(database: Database, directory: Path) -> None:
    """Only look: raise VolumeGone when the store's volume is not there; one that was never made is not missed."""
    with database.read() as connection:
        known = volumes.remembered(connection)
    if known is not None and known.placed and (said := identity_of(directory)) != known.identity:
        raise VolumeGone(_problem(directory, said))


def adopt_volume(database: Database, directory: Path) -> Volume:
    """Let the store be the one that lies in `directory` now, because the operator says so. Raises OSError."""
    identity = identity_of(directory) or secrets.token_hex(_IDENTITY_BYTES)
    with database.write() as connection:
        volumes.adopt(connection, identity)
    return open_volume(database, directory)


def identity_of(directory: Path) -> str | None:
    """Return the identity that the file in a store says; None where there is none. Raises OSError."""
    try:
        with (directory / SENTINEL).open("rb") as file:
            return _identity_in(file.read(_LONGEST))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _identity_in(content: bytes) -> str:
    return content.decode("ascii", errors="replace").strip()


def _problem(directory: Path, said: str | None) -> str:
    what = (
        f"{directory} holds no {SENTINEL}: its volume is not mounted"
        if said is None
        else f"{directory} is another volume than the one that the database knows (its {SENTINEL} says so)"
    )
    return f"{what}. Mount the right one, or say `meddaemon store adopt` where the store was moved on purpose"


def _write(directory: Path, identity: str) -> None:
    """Write the file, durably; its folder is made where it is missing."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = directory / f".{SENTINEL}-{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, f"{identity}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(directory / SENTINEL)
    for folder in (directory, directory.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
