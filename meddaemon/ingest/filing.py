"""Records of the ingest journal become Part 10 files and rows, many at a time and off every sender's time.

What stands in the journal has been acknowledged. It is filed however long that takes: while store or database cannot
take it, it stays in the journal, nothing further is acknowledged, and a restart begins with it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from meddaemon.db.engine import DatabaseAway
from meddaemon.db.instances import Received, Registration
from meddaemon.db.registration import Namesake, namesake_of
from meddaemon.domain.errors import IdentityTaken, RefusedInstance, StoreUnavailable
from meddaemon.durable import NewFile
from meddaemon.ingest.content import PAGE
from meddaemon.ingest.journal import Journal, Record
from meddaemon.ingest.part10 import parse_part10
from meddaemon.ingest.receive import Receiver, identity_refused, tell_of_conflict
from meddaemon.ingest.statuses import OUT_OF_RESOURCES
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log

GATHER_SECONDS = 0.1
"""How long the first of a group waits for others: files and rows cost less by the dozen."""
GROUP = 48
_GROUP_BYTES = 2**23
_MEMORY_BYTES = 12 * 2**20
"""What may wait for filing in memory; what is beyond that is read from the journal again."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_log = log(__name__)


@dataclass(eq=False)
class Filed:
    """A record that is to be filed: what is to be registered, and its memory as long as there is enough of it."""

    record: Record
    received: Received
    memory: memoryview | None


class Filing:
    """Files what is handed in, in its order, until it is closed."""

    def __init__(self, store: InstanceStore, journal: Journal, receiver: Receiver) -> None:
        self._store = store
        self._journal = journal
        self._receiver = receiver
        self._buffers = store.buffers
        self._changed = Condition()
        self._waiting: deque[Filed] = deque()
        self._waiting_bytes = 0
        self._in_memory = 0
        self._handed_in = self._done = 0
        self._expected: dict[str, list[Namesake]] = {}
        self._problem = ""
        self._closing = False
        self._thread = Thread(target=self._run, name="filing", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """How much has been acknowledged and will still be written to the store."""
        return self._waiting_bytes

    def require_well(self) -> None:
        """Raise StoreUnavailable while what was acknowledged cannot be filed."""
        if self._problem:
            raise StoreUnavailable(f"what came before cannot be filed: {self._problem}")

    def expect(self, received: Received) -> list[Namesake]:
        """Announce an object, and return those that carry its SOP Instance UID and are not registered yet."""
        with self._changed:
            others = self._expected.setdefault(received.sop_instance_uid, [])
            before = list(others)
            others.append(namesake_of(received))
            return before

    def forget(self, received: Received) -> None:
        """Take back what was announced: it is registered, or it never came."""
        with self._changed:
            others = self._expected[received.sop_instance_uid]
            others.remove(next(other for other in others if other.sha256 == received.sha256))
            if not others:
                del self._expected[received.sop_instance_uid]

    def file(self, records: Sequence[Filed]) -> None:
        """File these, which were announced, after all that was handed in before."""
        with self._changed:
            self._handed_in += len(records)
            for each in records:
                if each.memory is not None:
                    self._in_memory += len(each.memory)
                    if self._in_memory > _MEMORY_BYTES:
                        self._release(each)
                self._waiting.append(each)
                self._waiting_bytes += each.record.size
            # Whoever waits for company is not to be woken by every guest.
            if len(self._waiting) == len(records) or self._is_a_group:
                self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until all that has been handed in by now is filed, for so long at most; return whether it is."""
        with self._changed:
            handed_in = self._handed_in
            return self._changed.wait_for(lambda: self._done >= handed_in, seconds)

    def close(self, seconds: float) -> bool:
        """File what there is, for so long at most; return whether it is over. What is left stays in the journal."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.0
        while group := self._next_group():
            try:
                left = self._file_together(group)
            except Exception as unforeseen:  # noqa: BLE001  acknowledged objects depend on this thread
                _log.error("cannot file", kind=type(unforeseen).__name__, exc_info=unforeseen)
                self._problem, left = type(unforeseen).__name__, group
            with self._changed:
                self._waiting.extendleft(reversed(left))
                if not left:
                    pause, self._problem = 0.0, ""
                    continue
                pause = min(max(_FIRST_PAUSE_SECONDS, 2 * pause), _LONGEST_PAUSE_SECONDS)
                _log.error("cannot file what was received: it stays in the journal", reason=self._problem)
                if self._closing:
                    return
                self._changed.wait_for(lambda: self._closing, pause)

    def _next_group(self) -> list[Filed]:
        """Wait for records, a moment longer for company, and return them; none when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or bool(self._waiting))
            self._changed.wait_for(lambda: self._closing or self._is_a_group, GATHER_SECONDS)
            group: list[Filed] = []
            size = 0
            while self._waiting and len(group) < GROUP and size < _GROUP_BYTES:
                group.append(self._waiting.popleft())
                size += group[-1].record.size
            return group

    @property
    def _is_a_group(self) -> bool:
        return len(self._waiting) >= GROUP or self._waiting_bytes >= _GROUP_BYTES

    def _file_together(self, group: Sequence[Filed]) -> list[Filed]:
        """File a group; return what must be tried again, `_problem` saying why."""
        failures = self._store.put_all([self._file_of(each) for each in group])
        stored = [each for each in group if each.record.sha256 not in failures]
        left = [each for each in group if each.record.sha256 in failures]
        if left:
            self._problem = str(failures[left[0].record.sha256])
        done: list[Filed] = []
        for each, outcome in zip(stored, self._receiver.register([each.received for each in stored]), strict=True):
            if isinstance(outcome, DatabaseAway):
                self._problem = type(outcome).__name__
                left.append(each)
            else:
                self._settle(each, outcome)
                done.append(each)
        self._journal.filed([each.record for each in done])
        with self._changed:
            for each in done:
                self._waiting_bytes -= each.record.size
                self._release(each)
                self.forget(each.received)
            self._done += len(done)
            self._changed.notify_all()
        return left

    def _settle(self, each: Filed, outcome: Registration | Exception) -> None:
        if isinstance(outcome, Registration):
            tell_of_conflict(outcome)
        elif isinstance(outcome, IdentityTaken):
            # Two processes took the same UID at the same moment: only now it is seen, and said.
            refused = identity_refused(outcome, each.received.sop_instance_uid, each.record.sha256)
            self._store.set_aside(self._store.path(each.record.sha256))
            self._receiver.record_late(each.received, refused)
        else:
            # Nothing that waiting would change. The file is there, and recovery will try again to register it.
            _log.error("an object that was stored cannot be registered", kind=type(outcome).__name__, exc_info=outcome)
            kind = type(outcome).__name__
            reason = f"acknowledged, stored as {each.record.sha256[:12]}…, and cannot be registered: {kind}"
            self._receiver.record_late(each.received, RefusedInstance(OUT_OF_RESOURCES, reason))

    def _file_of(self, each: Filed) -> NewFile:
        record = each.record
        if each.memory is None:
            each.memory = self._buffers.lend(record.length)
            with self._changed:
                self._in_memory += len(each.memory)
            record.read_into(each.memory)
        return NewFile(
            target=self._store.path(record.sha256),
            pieces=[each.memory[PAGE : PAGE + record.size]],
            padded=each.memory[PAGE : record.length],
        )

    def _release(self, each: Filed) -> None:
        if each.memory is not None:
            self._in_memory -= len(each.memory)
            self._buffers.take_back(each.memory)
            each.memory = None


def file_abandoned(store: InstanceStore, receiver: Receiver) -> tuple[int, int]:
    """File what processes that are no longer alive left in their journals; return how much, and how much is left there.

    All of it was acknowledged, or was about to be. What cannot be filed now stays where it is for the next start, and
    nobody writes to its journal until then. Filing something again changes nothing.
    """
    done = left = 0
    for journal in Journal.abandoned(store.journals):
        filed = [_filed_again(record, receiver) for record in journal.left_behind()]
        if all(filed):
            journal.note_filed()
        journal.close()
        done, left = done + filed.count(True), left + filed.count(False)
    if left:
        _log.error("what was acknowledged before cannot be filed now: it stays in its journal", objects=left)
    return done, left


def _filed_again(record: Record, receiver: Receiver) -> bool:
    """File a record; return whether there is nothing left to be done about it."""
    aets = {"calling_ae_title": record.calling_ae_title, "called_ae_title": record.called_ae_title}
    try:
        receiver.take(parse_part10(record.read(), **aets), promised=True)
    except OSError as failure:
        _log.error("cannot read the ingest journal", reason=str(failure))
        return False
    except RefusedInstance as refused:
        # Anything else than a lack of room has been recorded, and will not change.
        return refused.status != OUT_OF_RESOURCES
    return True
