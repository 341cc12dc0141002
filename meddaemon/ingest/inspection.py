"""Index = store, proved: nothing is registered that is not there, nothing is there that is not registered.

`check` only looks, and may be asked at any time. `Scrub` reads every file, sets aside what is damaged and has the index
say so; it may run beside the listener for the reasons that `recovery` gives.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.db.instances import Indexed
from meddaemon.ingest.recovery import PREFIXES, note_files
from meddaemon.ingest.store import InstanceStore, is_intact

REGISTERING_SECONDS = 3.0
"""How long an object that others are receiving may lie in the store before it counts as not registered."""


class Trouble(StrEnum):
    """What is wrong with one file."""

    MISSING = "missing"
    """Registered, and its file is gone."""
    DAMAGED = "damaged"
    """Its file does not hold what its name, the digest, says."""
    UNREADABLE = "unreadable"
    """Its file is there, and the disk does not give it."""
    UNREGISTERED = "not registered"
    """The file is whole, and the index does not know of it."""
    STRAY = "no object"
    """The file lies where no object can lie."""
    MARKED = "marked missing"
    """Its file is there, and the index says that it is not."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One file about which index and store disagree: its digest, or its path within the store where it has none."""

    trouble: Trouble
    name: str
    sop_instance_uid: str = ""


def check(database: Database, store: InstanceStore, results: Path, *, by_digest: bool) -> Iterator[Problem]:
    """Yield every disagreement of index and store; `by_digest` reads every file, otherwise sizes must do.

    `results` is the folder of our own result objects. One that is not registered is no problem there: a worker that
    was stopped before its commit leaves it, and writes it again.
    """
    unregistered: list[str] = []
    for path in store.strays():
        yield Problem(trouble=Trouble.STRAY, name=str(path.relative_to(store.instances)))
    for prefix in PREFIXES:
        # The index first: what it knows was stored before.
        with database.read() as connection:
            known = instances.indexed(connection, prefix)
            made = instances.indexed_results(connection, prefix)
        yield from _compared(store.instances, known, by_digest=by_digest)
        yield from _compared(results, made, by_digest=by_digest)
        for sha256 in sorted(store.digests(prefix) - known.keys()):
            if by_digest and not store.is_intact(sha256) and store.path(sha256).is_file():
                yield Problem(trouble=Trouble.DAMAGED, name=sha256)
            else:
                unregistered.append(sha256)
    for sha256 in _never_registered(database, store, unregistered):
        yield Problem(trouble=Trouble.UNREGISTERED, name=sha256)


class Scrub:
    """Reads every stored file at a bounded rate; what does not hold what its name says is set aside and marked."""

    def __init__(self, database: Database, store: InstanceStore, *, bytes_per_second: float, start: str = "") -> None:
        """Begin with the digests that begin with `start` (two characters), where an earlier run was stopped."""
        self._database = database
        self._store = store
        self._bytes_per_second = bytes_per_second
        self._began = time.monotonic()
        self._pause = threading.Event()
        self.prefix = start or PREFIXES[0]
        self.files = 0
        self.bytes = 0

    def run(self) -> Iterator[Problem]:
        """Yield what was found, and has been dealt with; `prefix` says how far the run is."""
        for prefix in PREFIXES[PREFIXES.index(self.prefix) :]:
            self.prefix = prefix
            with self._database.read() as connection:
                known = instances.indexed(connection, prefix)
            for sha256 in sorted(self._store.digests(prefix) | known.keys()):
                self._store.require_volume()
                trouble = self._look_at(sha256, known.get(sha256))
                if trouble is not None:
                    uid = known[sha256].sop_instance_uid if sha256 in known else ""
                    yield Problem(trouble=trouble, name=sha256, sop_instance_uid=uid)

    def _look_at(self, sha256: str, known: Indexed | None) -> Trouble | None:
        self.files += 1
        damaged = False
        try:
            if not is_intact(self._store.path(sha256), sha256, self._pace):
                damaged = self._store.set_aside_damaged(sha256)
        except OSError:
            # Whether the disk is failing or only busy is for a person to find out: nothing is moved, nothing marked.
            return Trouble.UNREADABLE
        if known is not None and (damaged or known.missing != (not self._store.path(sha256).is_file())):
            gone = note_files(self._database, self._store, [sha256])
        else:
            gone = {sha256} if known is not None and known.missing else set()
        if damaged:
            return Trouble.DAMAGED
        return Trouble.MISSING if sha256 in gone else None

    def _pace(self, size: int) -> None:
        self.bytes += size
        ahead = self.bytes / self._bytes_per_second - (time.monotonic() - self._began)
        if ahead > 0:
            self._pause.wait(ahead)


def _compared(folder: Path, known: Mapping[str, Indexed], *, by_digest: bool) -> Iterator[Problem]:
    for sha256, said in sorted(known.items()):
        trouble = _trouble(instances.path_of(folder, sha256), sha256, said, by_digest=by_digest)
        if trouble is not None:
            yield Problem(trouble=trouble, name=sha256, sop_instance_uid=said.sop_instance_uid)


def _trouble(path: Path, sha256: str, said: Indexed, *, by_digest: bool) -> Trouble | None:
    try:
        size = path.stat().st_size
        if size != said.size or (by_digest and not is_intact(path, sha256)):
            return Trouble.DAMAGED
    except FileNotFoundError:
        return Trouble.MISSING
    except OSError:
        return Trouble.UNREADABLE
    return Trouble.MARKED if said.missing else None


def _never_registered(database: Database, store: InstanceStore, sha256s: list[str]) -> list[str]:
    """Return the objects that stay unregistered: others may be about to commit what they have just stored."""
    deadline = time.monotonic() + REGISTERING_SECONDS
    pause = threading.Event()
    while True:
        with database.read() as connection:
            sha256s = [
                sha256
                for sha256 in sha256s
                if store.path(sha256).is_file() and not instances.is_registered(connection, sha256)
            ]
        if not sha256s or time.monotonic() > deadline:
            return sha256s
        pause.wait(0.1)
