"""Writing files so that they survive a power loss: synced under their final name before anyone is told."""

import fcntl
import os
import secrets
import shutil
from pathlib import Path


class Staging:
    """A folder of this process's own for files that are not whole yet, locked for as long as the process lives."""

    def __init__(self, parent: Path) -> None:
        """Make the folder under `parent`, which must lie on the file system of the final names. Raises OSError."""
        self._parent = parent
        self.folder = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
        self.folder.mkdir(parents=True, mode=0o700)
        self._lock = (self.folder / "lock").open("ab")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def sweep(self) -> int:
        """Remove what processes that are no longer alive left behind; return how many files."""
        removed = 0
        for folder in self._parent.iterdir():
            if folder == self.folder or not folder.is_dir():
                continue
            with (folder / "lock").open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                removed += sum(1 for entry in folder.iterdir() if entry.name != "lock")
                shutil.rmtree(folder)
        return removed

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def write_new(target: Path, content: bytes, staging: Staging) -> None:
    """Make `target` hold `content`, durably, before returning.

    Written and synced in `staging` (same file system), linked to its final name, and the directories synced up to
    the first one that was there before. A file that is there already is taken to hold this content, because names
    are made from content, and is synced again: the one who wrote it may have died before doing so.

    Raises OSError; then nothing lies under the final name, and nothing in `staging`.
    """
    new_directories = _make_directories(target.parent)
    if target.exists():
        _sync(target)
    else:
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
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    for directory in new_directories:
        _sync(directory)


def _make_directories(directory: Path) -> list[Path]:
    """Create the directory with its parents; return the directories whose entries must be synced, deepest first."""
    to_sync = [directory]
    missing = directory
    while not missing.exists():
        missing = missing.parent
        to_sync.append(missing)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return to_sync


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
