"""After a restart: nothing half received stays, and index and store say the same."""

from dataclasses import dataclass

from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import OUT_OF_RESOURCES, Receiver
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log

_PREFIXES = [f"{number:02x}" for number in range(256)]
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What recovery found and did."""

    swept: int = 0
    adopted: int = 0
    set_aside: int = 0
    missing: int = 0


def recover(database: Database, store: InstanceStore, receiver: Receiver) -> Recovered:
    """Sweep half-received files, adopt objects that were stored but never registered, note what is gone.

    An object that was synced but not registered was not acknowledged. The sender may or may not send it again, and
    taking it is right in both cases, because an identical re-send changes nothing.

    Raises RefusedInstance when the store or database cannot take an object now.
    """
    swept = store.sweep_staging()
    adopted = set_aside = missing = 0
    for prefix in _PREFIXES:
        with database.read() as connection:
            indexed = instances.digests(connection, prefix)
        stored = store.digests(prefix)
        for sha256 in sorted(stored - indexed):
            if _adopt(store, receiver, sha256):
                adopted += 1
            else:
                set_aside += 1
        gone = sorted(indexed - stored)
        missing += len(gone)
        if gone:
            with database.write() as connection:
                instances.mark_missing(connection, gone)
    recovered = Recovered(swept=swept, adopted=adopted, set_aside=set_aside, missing=missing)
    if recovered != Recovered():
        _log.warning("recovered", swept=swept, adopted=adopted, set_aside=set_aside, missing=missing)
    return recovered


def _adopt(store: InstanceStore, receiver: Receiver, sha256: str) -> bool:
    try:
        receiver.take(read_part10(store.path(sha256)))
    except RefusedInstance as refused:
        if refused.status == OUT_OF_RESOURCES:
            raise
        _log.error("set aside a file that is no object of ours", reason=refused.reason)
        store.set_aside(sha256)
        return False
    return True
