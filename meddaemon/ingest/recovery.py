"""After a restart, and whenever the operator asks: nothing half received stays, index and store say the same.

Safe while others receive:

- a file is looked for after the index was read, so what is registered meanwhile is never taken for lost;
- a file that is stored and about to be registered is adopted, which its own registration finds done;
- before an instance is marked, its row is locked and its file looked for once more: a re-send puts the file first
  and asks for the row then, so it either was seen or has the last word;
- a damaged file is read once more before it is set aside, while nobody can put a whole one in its place.
"""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from enum import StrEnum

from meddaemon.db import instances
from meddaemon.db.engine import Database
from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.filing import file_abandoned
from meddaemon.ingest.part10 import read_part10
from meddaemon.ingest.receive import Receiver
from meddaemon.ingest.statuses import OUT_OF_RESOURCES
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log

PREFIXES = tuple(f"{number:02x}" for number in range(256))
"""How the store is gone through: by the first two characters of the digest."""
_log = log(__name__)


class Found(StrEnum):
    """What index and store disagreed about, by what became of it."""

    ADOPTED = "adopted"
    """Stored, not registered: registered now."""
    SET_ASIDE = "set_aside"
    """Damaged, or no object of ours: in quarantine now."""
    POSTPONED = "postponed"
    """Stored, and cannot be registered now."""
    MISSING = "missing"
    """Registered, and its file is gone."""
    RETURNED = "returned"
    """Marked missing, and its file is there again."""


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What recovery found and did."""

    filed: int = 0
    unfiled: int = 0
    swept: int = 0
    adopted: int = 0
    set_aside: int = 0
    postponed: int = 0
    missing: int = 0
    returned: int = 0

    @property
    def well(self) -> bool:
        """Whether index and store say the same now."""
        return not (self.missing or self.postponed or self.unfiled)


Tell = Callable[[Found, str, str], object]
"""Is told what was found, the digest or name of the file, and the SOP Instance UID where it is known."""


def recover(
    database: Database, store: InstanceStore, receiver: Receiver, tell: Tell = lambda found, name, uid: None
) -> Recovered:
    """File what stands in abandoned journals, sweep staging, adopt what is not registered, note what is gone.

    An object that was synced but not registered was not acknowledged. The sender may or may not send it again, and
    taking it is right in both cases, because an identical re-send changes nothing. What lies in the store and is no
    whole object under its own name is set aside. What cannot be registered now is left where it is for the next
    start: a listener that answers "out of resources" is of more use than none.
    """
    counts: Counter[Found] = Counter()

    def note(found: Found, name: str, sop_instance_uid: str = "") -> None:
        counts[found] += 1
        tell(found, name, sop_instance_uid)

    filed, unfiled = file_abandoned(store, receiver)
    swept = store.sweep_staging()
    for path in list(store.strays()):
        _log.error("set aside a file that does not belong in the store")
        if store.set_aside(path):
            note(Found.SET_ASIDE, path.name)
    for prefix in PREFIXES:
        with database.read() as connection:
            indexed = instances.indexed(connection, prefix)
        stored = store.digests(prefix)
        for sha256 in sorted(stored - indexed.keys()):
            note(_adopt(database, store, receiver, sha256), sha256)
        gone = indexed.keys() - stored
        returned = {sha256 for sha256 in indexed.keys() & stored if indexed[sha256].missing}
        for sha256 in sorted(returned):
            if store.set_aside_damaged(sha256):
                _log.error("set aside a damaged file: it does not hold what its name says", sha256=sha256)
                note(Found.SET_ASIDE, sha256, indexed[sha256].sop_instance_uid)
        missing = note_files(database, store, gone | returned)
        for sha256 in sorted(gone | returned):
            what = Found.MISSING if sha256 in missing else Found.RETURNED
            if what is Found.MISSING or sha256 in returned:
                note(what, sha256, indexed[sha256].sop_instance_uid)
    found = {each.value: count for each, count in counts.items()}
    recovered = Recovered(filed=filed, unfiled=unfiled, swept=swept, **found)
    if recovered != Recovered():
        _log.warning("recovered", **asdict(recovered))
    return recovered


def note_files(database: Database, store: InstanceStore, sha256s: Collection[str]) -> set[str]:
    """Have the index say which files of these instances are there, and return those that are not."""
    if not sha256s:
        return set()
    with database.write() as connection:
        instances.lock(connection, sorted(sha256s))
        gone = {sha256 for sha256 in sha256s if not store.path(sha256).is_file()}
        instances.note_missing(connection, gone, missing=True)
        instances.note_missing(connection, set(sha256s) - gone, missing=False)
    return gone


def _adopt(database: Database, store: InstanceStore, receiver: Receiver, sha256: str) -> Found:
    path = store.path(sha256)
    try:
        if store.set_aside_damaged(sha256):
            _log.error("set aside a damaged file: it does not hold what its name says", sha256=sha256)
            return Found.SET_ASIDE
        receiver.take(read_part10(path))
    except FileNotFoundError:
        return Found.SET_ASIDE  # by somebody else who was quicker
    except OSError as failure:
        _log.error("cannot read an object that lies in the store", sha256=sha256, reason=failure.strerror)
        return Found.POSTPONED
    except RefusedInstance as refused:
        if refused.status == OUT_OF_RESOURCES:
            _log.error("cannot register an object that lies in the store; it stays there", sha256=sha256)
            return Found.POSTPONED
        _log.error("set aside a file that is no object of ours", sha256=sha256, reason=refused.reason)
        store.set_aside(path)
        return Found.SET_ASIDE
    with database.read() as connection:
        if not instances.is_registered(connection, sha256):
            # Somebody else wrote it, with another file meta group: it lies in the store a second time, as ours.
            store.set_aside(path)
    return Found.ADOPTED
