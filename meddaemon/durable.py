"""Writing files so that they survive a power loss: synced under their final name before anyone is told."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Staging:
    """A folder of this process's own for files that are not whole yet, locked for as long as the process lives."""

    def __init__(self, parent: Path) -> None:
        """Make the folder under `parent`, which must lie on the file system of the final names. Raises OSError."""
        self._parent = parent
        self.durable_directories: set[Path] = set()
        self.folder = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.alone():
            self.folder.mkdir(mode=0o700)
            self._lock = (self.folder / "lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    @property
    def root(self) -> Path:
        """The directory from which on downwards this process syncs what it makes: the parent of all staging."""
        return self._parent.parent

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every process from giving a file its final name (see `write_new`), making and sweeping folders."""
        with _locked(self._parent, fcntl.LOCK_EX):
            yield

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Give a file its final name: together with others who do, never while somebody is `alone`."""
        with _locked(self._parent, fcntl.LOCK_SH):
            yield

    def sweep(self) -> int:
        """Remove what processes that are no longer alive left behind; return how many files."""
        with self.alone():
            folders = [entry for entry in self._parent.iterdir() if entry.is_dir() and entry != self.folder]
            return sum(map(_sweep, folders))

    def close(self) -> None:
        """Remove the folder, where it is still there."""
        with suppress(FileNotFoundError), self.alone():
            shutil.rmtree(self.folder)
        self._lock.close()


@contextmanager
def _locked(parent: Path, how: int) -> Iterator[None]:
    with (parent / "lock").open("ab") as lock:
        fcntl.flock(lock, how)
        yield


def _sweep(folder: Path) -> int:
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        removed = sum(1 for entry in folder.iterdir() if entry.name != "lock")
        shutil.rmtree(folder)
        return removed


def write_new(target: Path, content: bytes, staging: Staging) -> None:
    """Make `target` hold `content`, durably, before returning: `place` it and sync its name.

    Raises OSError; then `target` is as it was or whole, and nothing lies in `staging`.
    """
    place(target, content, staging)
    for failure in sync_names([target], staging).values():
        raise failure


def place(target: Path, content: bytes, staging: Staging) -> None:
    """Make `target` hold `content`, synced; its name is durable once `sync_names` was called too.

    Written and synced in `staging` (same file system) and renamed to its final name. A file that holds this content
    already is only synced again: the one who wrote it may have died before doing so. A file that holds anything else,
    damaged as it must be because names are made from content, is replaced.

    Raises OSError; then `target` is as it was or whole, and nothing lies in `staging`.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _holds(target, content):
        _sync(target)
        return
    temporary = staging.folder / secrets.token_hex(16)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with staging.naming():
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_names(targets: Iterable[Path], staging: Staging) -> dict[Path, OSError]:
    """Sync the directories that name these files, each once; return what went wrong, by file.

    A directory whose sync failed is not tried again: the system tells of an error once, and the next sync may answer
    well although what was lost is lost (as PostgreSQL learned in 2018).
    """
    outcomes: dict[Path, OSError | None] = {}
    failures: dict[Path, OSError] = {}
    for target in targets:
        for directory in _unsynced(target, staging):
            if directory not in outcomes:
                outcomes[directory] = _sync_directory(directory)
            failure = outcomes[directory]
            if failure is not None:
                failures[target] = failure
                break
        else:
            staging.durable_directories.update(_below(target, staging))
    return failures


def _holds(target: Path, content: bytes) -> bool:
    try:
        return target.stat().st_size == len(content) and target.read_bytes() == content
    except FileNotFoundError:
        return False


def _unsynced(target: Path, staging: Staging) -> Iterator[Path]:
    """Yield the directory that names the file, and those that name it in turn, unless this process synced them.

    Whether they were there before says nothing: somebody may have made them a moment ago, and died or not synced yet.
    """
    yield target.parent
    for directory in _below(target, staging):
        if directory in staging.durable_directories:
            return
        yield directory.parent


def _below(target: Path, staging: Staging) -> Iterator[Path]:
    """Yield the directories from the file's own up to, and without, the root."""
    directory = target.parent
    while directory != staging.root:
        yield directory
        directory = directory.parent


def _sync_directory(directory: Path) -> OSError | None:
    try:
        _sync(directory)
    except OSError as failure:
        return failure
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
