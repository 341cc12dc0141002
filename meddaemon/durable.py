"""Writing files so that they survive a power loss: synced under their final name before anyone is told."""

import ctypes
import fcntl
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import cast

from meddaemon.failpoints import reach

_PIECE_BYTES = 2**20
_BLOCK_BYTES = 4096


class Staging:
    """A folder of this process's own for files that are not whole yet, locked for as long as the process lives."""

    def __init__(self, parent: Path) -> None:
        """Make the folder under `parent`, which must lie on the file system of the final names. Raises OSError."""
        self._parent = parent
        self.durable_directories: set[Path] = set()
        self.distrusted: set[Path] = set()
        """Files that could not be synced, or not their names: what is read of them may be in memory only."""
        self.folder = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.alone():
            self.folder.mkdir(mode=0o700)
            self._lock = (self.folder / "lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def release(self) -> None:
        """Hold nothing open on a volume that is away; see `reopen`."""
        self._lock.close()

    def reopen(self) -> None:
        """Have the folder again after its volume was away: the lock that we held may be on none any more."""
        with self.alone():
            self.folder.mkdir(mode=0o700, exist_ok=True)
            lock = try_lock(self.folder / "lock")
            if lock is not None:  # else ours holds: the folder was only out of sight
                self._lock.close()
                self._lock = lock
        self.durable_directories.clear()

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

    def sync_file_system(self) -> None:
        """Return when the disk has all that was written to this file system (syncfs(2)). Raises OSError."""
        if ctypes.CDLL(None, use_errno=True).syncfs(self._lock.fileno()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

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


def try_lock(path: Path) -> BufferedWriter | None:
    """Return the open file, locked until it is closed; None when somebody who is alive has it. Raises OSError."""
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _sweep(folder: Path) -> int:
    lock = try_lock(folder / "lock")
    if lock is None:
        return 0
    with lock:
        removed = sum(1 for entry in folder.iterdir() if entry.name != "lock")
        shutil.rmtree(folder)
        return removed


def write_new(target: Path, content: bytes, staging: Staging) -> None:
    """Make `target` hold `content`, durably, before returning: `place` it and sync its name.

    Raises OSError; then `target` is as it was or whole, and nothing lies in `staging`.
    """
    place(target, [content], staging)
    for failure in sync_names([target], staging).values():
        raise failure


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """A file to be placed: where, and what it is to hold, piece by piece.

    `padded` is the same content in page-aligned memory, up to the end of its last page, where there is such memory.
    """

    target: Path
    pieces: Sequence[bytes | memoryview]
    padded: memoryview | None = None

    @property
    def size(self) -> int:
        """Length of the file."""
        return sum(map(len, self.pieces))


def place(target: Path, pieces: Sequence[bytes | memoryview], staging: Staging) -> None:
    """Make `target` hold these pieces, synced; its name is durable once `sync_names` was called too.

    Written and synced in `staging` (same file system) and renamed to the final name. A file that holds this content
    already is only synced again: the one who wrote it may have died before doing so. A file that holds anything else,
    damaged as it must be because names are made from content, is replaced.

    Raises OSError; then `target` is as it was or whole, and nothing lies in `staging`.
    """
    failures, written = _write_all([NewFile(target=target, pieces=pieces)], staging, synced=True)
    _name(written, failures, staging)
    for failure in failures.values():
        raise failure


def store_all(files: Iterable[NewFile], staging: Staging) -> dict[Path, OSError]:
    """Make each target hold its content, durably, names and all; return what went wrong, by target.

    The content of a file is needed until the next one is asked for. Cheaper by the dozen than one by one: the file
    system is synced once for all. After a power loss before the return, a name may be there without all of its
    content: only for what can be stored again, then.
    """
    targets: list[Path] = []
    failures, written = _write_all(_noting(files, targets), staging, synced=False)
    _name(written, failures, staging)
    there = [target for target in targets if target not in failures]
    try:
        staging.sync_file_system()
    except OSError as failure:
        # The system does not say which file it could not write; all are to be written anew.
        staging.distrusted.update(there)
        return failures | dict.fromkeys(there, failure)
    return failures


def _noting(files: Iterable[NewFile], targets: list[Path]) -> Iterator[NewFile]:
    for file in files:
        targets.append(file.target)
        yield file


def _write_all(
    files: Iterable[NewFile], staging: Staging, *, synced: bool
) -> tuple[dict[Path, OSError], list[tuple[Path, str]]]:
    """Write files to `staging`; return what went wrong, and where each lies whose target does not hold it already."""
    failures: dict[Path, OSError] = {}
    written: list[tuple[Path, str, int]] = []
    try:
        for file in files:
            try:
                if _is_there(file, staging):
                    continue
                temporary = f"{staging.folder}/{secrets.token_hex(16)}"
                written.append((file.target, temporary, _write(temporary, file)))
            except OSError as failure:
                failures[file.target] = failure
        reach("written")
        for target, _, descriptor in written if synced else ():
            try:
                os.fsync(descriptor)
            except OSError as failure:
                failures[target] = failure
    finally:
        for _, _, descriptor in written:
            os.close(descriptor)
    reach("synced")
    return failures, [(target, temporary) for target, temporary, _ in written]


def move(staged: Path, target: Path, staging: Staging) -> None:
    """Give a staged file, synced already, its final name, as `place` does. Raises OSError."""
    with staging.naming():
        _rename(staged, target, staging)


def _rename(staged: Path | str, target: Path, staging: Staging) -> None:
    try:
        os.replace(staged, target)  # noqa: PTH105  called for each object that comes
    except FileNotFoundError:
        # The folder is not there, unless the volume has gone: then none is made in its place.
        if not Path(staged).exists():
            raise
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        Path(staged).replace(target)
    staging.distrusted.discard(target)


def _is_there(file: NewFile, staging: Staging) -> bool:
    """Return whether the target holds its content already, synced anew then.

    One that could not be synced before is not taken for synced: the system tells of an error once, and the next sync
    may answer well although what was lost is lost.
    """
    target = file.target
    if target in staging.distrusted or not os.path.exists(target) or not _holds(file):  # noqa: PTH110  called often
        return False
    try:
        sync(target)
    except OSError:
        staging.distrusted.add(target)
        raise
    return True


def _write(temporary: str, file: NewFile) -> int:
    """Write a file and return its open descriptor; where that fails, nothing is left of it. Raises OSError."""
    descriptor = -1
    try:
        if file.padded is not None:
            with suppress(OSError):  # a file system without direct writes, such as tmpfs
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        if descriptor >= 0:
            # Nobody reads it soon, so it need not go through the page cache, where it would be copied. Only whole
            # blocks can be written so; cutting the last one off would mean reading it again.
            padded = cast("memoryview", file.padded)
            whole = file.size // _BLOCK_BYTES * _BLOCK_BYTES
            _write_whole(descriptor, padded[:whole])
            fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
            _write_whole(descriptor, padded[whole : file.size])
        else:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for each in file.pieces:
                for piece in pieces_of(each):
                    _write_whole(descriptor, piece)
    except BaseException:
        if descriptor >= 0:
            os.close(descriptor)
        _remove(temporary)
        raise
    return descriptor


def _remove(temporary: str) -> None:
    with suppress(OSError):
        os.unlink(temporary)  # noqa: PTH108  called for each object that comes


def pieces_of(content: bytes | memoryview) -> Iterator[memoryview]:
    """Yield content piece by piece; of a file that is mapped, no more than a piece is in memory."""
    view = memoryview(content)
    for start in range(0, len(view), _PIECE_BYTES):
        yield view[start : start + _PIECE_BYTES]
        if isinstance(view.obj, mmap.mmap):
            view.obj.madvise(mmap.MADV_DONTNEED)


def _write_whole(descriptor: int, rest: memoryview) -> None:
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _name(files: Sequence[tuple[Path, str]], failures: dict[Path, OSError], staging: Staging) -> None:
    """Give staged files their final names, but those that failed, of which nothing is left."""
    if not files:
        return
    try:
        with staging.naming():
            for target, temporary in files:
                if target not in failures:
                    try:
                        _rename(temporary, target, staging)
                    except OSError as failure:
                        failures[target] = failure
    except OSError as failure:
        failures.update((target, failure) for target, _ in files if target not in failures)
    reach("renamed")
    for target, temporary in files:
        if target in failures:
            _remove(temporary)


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
                staging.distrusted.add(target)
                break
        else:
            staging.durable_directories.update(_below(target, staging))
    return failures


def _holds(file: NewFile) -> bool:
    try:
        with file.target.open("rb", buffering=0) as there:
            if os.fstat(there.fileno()).st_size != file.size:
                return False
            return all(_continues(there, piece) for each in file.pieces for piece in pieces_of(each))
    except FileNotFoundError:
        return False


def _continues(there: FileIO, rest: memoryview) -> bool:
    """Return whether the file goes on with these bytes."""
    while rest:
        part = there.read(len(rest))
        if not part or rest[: len(part)] != part:
            return False
        rest = rest[len(part) :]
    return True


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
        sync(directory)
    except OSError as failure:
        return failure
    return None


def sync(path: Path) -> None:
    """Return when the disk has this file or directory. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
