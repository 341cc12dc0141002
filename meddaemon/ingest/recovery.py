"""After a restart: nothing half received stays, and index and store say the same."""

from collections import Counter
from dataclasses import asdict, dataclass
from enum import Enum

from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import OUT_OF_RESOURCES, Receiver
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log

_PREFIXES = [f"{number:02x}" for number in range(256)]
_log = log(__name__)


class _Found(Enum):
    """What became of a file that no row names."""

    ADOPTED = "adopted"
    SET_ASIDE = "set aside"
    POSTPONED = "postponed"


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What recovery found and did."""

    swept: int = 0
    adopted: int = 0
    set_aside: int = 0
    postponed: int = 0
    missing: int = 0


def recover(database: Database, store: InstanceStore, receiver: Receiver) -> Recovered:
    """Sweep half-received files, adopt objects that were stored but never registered, note what is gone.

    An object that was synced but not registered was not acknowledged. The sender may or may not send it again, and
    taking it is right in both cases, because an identical re-send changes nothing. What lies in the store and is no
    whole object under its own name is set aside. What cannot be registered now is left where it is for the next
    start: a listener that answers "out of resources" is of more use than none.
    """
    swept = store.sweep_staging()
    found: Counter[_Found] = Counter()
    missing = 0
    for path in list(store.strays()):
        _log.error("set aside a file that does not belong in the store")
        store.set_aside(path)
        found[_Found.SET_ASIDE] += 1
    for prefix in _PREFIXES:
        with database.read() as connection:
            indexed = instances.digests(connection, prefix)
        stored = store.digests(prefix)
        for sha256 in sorted(stored - indexed):
            found[_adopt(database, store, receiver, sha256)] += 1
        gone = sorted(indexed - stored)
        missing += len(gone)
        if gone:
            with database.write() as connection:
                instances.mark_missing(connection, gone)
    recovered = Recovered(
        swept=swept,
        adopted=found[_Found.ADOPTED],
        set_aside=found[_Found.SET_ASIDE],
        postponed=found[_Found.POSTPONED],
        missing=missing,
    )
    if recovered != Recovered():
        _log.warning("recovered", **asdict(recovered))
    return recovered


def _adopt(database: Database, store: InstanceStore, receiver: Receiver, sha256: str) -> _Found:
    path = store.path(sha256)
    if not store.is_intact(sha256):
        _log.error("set aside a damaged file: it does not hold what its name says", sha256=sha256)
        store.set_aside(path)
        return _Found.SET_ASIDE
    try:
        receiver.take(read_part10(path))
    except RefusedInstance as refused:
        if refused.status == OUT_OF_RESOURCES:
            _log.error("cannot register an object that lies in the store; it stays there", sha256=sha256)
            return _Found.POSTPONED
        _log.error("set aside a file that is no object of ours", sha256=sha256, reason=refused.reason)
        store.set_aside(path)
        return _Found.SET_ASIDE
    with database.read() as connection:
        if not instances.is_registered(connection, sha256):
            # Somebody else wrote it, with another file meta group: it lies in the store a second time, as ours.
            store.set_aside(path)
    return _Found.ADOPTED
