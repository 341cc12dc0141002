"""Records of the ingest journal become Part 10 files and rows, many at a time and off every sender's time.

What stands in the journal has been acknowledged. It is filed however long that takes: while store or database cannot
take it, it stays in the journal, nothing further is acknowledged, and a restart begins with it.

As long as objects keep coming, receiving them has the machine: they are filed in the next lull, after a moment at the
latest, and earlier when somebody asks about them or the journal is three quarters full.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Condition, Thread

from meddaemon.db.engine import DatabaseAway
from meddaemon.db.instances import Received, Registration
from meddaemon.db.registration import Namesake
from meddaemon.domain.errors import IdentityTaken, RefusedInstance, StoreUnavailable
from meddaemon.durable import NewFile
from meddaemon.ingest.content import PAGE
from meddaemon.ingest.journal import Damaged, Journal, Record
from meddaemon.ingest.part10 import parse_ours
from meddaemon.ingest.receive import Receiver, identity_refused, received, tell_of_conflict
from meddaemon.ingest.statuses import OUT_OF_RESOURCES
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log

LULL_SECONDS = 0.2
"""For how long nothing must have come for objects to be filed without haste."""
LONGEST_SECONDS = 2.0
"""How long an object waits for a lull; never longer than a quarter of the shortest quiet time of any rule, or a study
would be taken for complete while a part of it waits here."""
GROUP = 64
"""Files and rows cost less by the dozen."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 5.0
_ONCE_MORE_SECONDS = 4.0
"""How long who brings an object waits for what came before to be filed, where that failed."""
_log = log(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Waiting:
    """A record that is to be filed, as what its SOP Instance UID was announced, and when it came."""

    record: Record
    expected: Namesake
    came: float


class Filing:
    """Files what is handed in, in its order, until it is closed."""

    def __init__(self, store: InstanceStore, journal: Journal, receiver: Receiver) -> None:
        self._filer = Filer(store, receiver)
        self._quiet_seconds = receiver.quiet_seconds
        self._journal = journal
        self._changed = Condition()
        self._waiting: deque[Waiting] = deque()
        self._waiting_bytes = 0
        self._handed_in = self._done = self._asked_for = 0
        self._last_came = 0.0
        self._expected: dict[str, list[Namesake]] = {}
        self._problem = ""
        self._is_asked_again = self._closing = False
        self._thread = Thread(target=self._run, name="filing", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """How much has been acknowledged and will still be written to the store."""
        return self._waiting_bytes

    @property
    def is_well(self) -> bool:
        """Whether nothing stood in the way of filing when it was last tried."""
        return not self._problem

    def require_well(self) -> None:
        """Raise StoreUnavailable while what was acknowledged cannot be filed; first it is tried once more."""
        with self._changed:
            self._is_asked_again = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self.is_well, _ONCE_MORE_SECONDS):
                raise StoreUnavailable(f"what came before cannot be filed: {self._problem}")

    def expect(self, sop_instance_uid: str, one: Namesake) -> list[Namesake]:
        """Announce an object, and return those that carry its SOP Instance UID and are not registered yet."""
        with self._changed:
            others = self._expected.setdefault(sop_instance_uid, [])
            before = list(others)
            others.append(one)
            return before

    def forget(self, sop_instance_uid: str, one: Namesake) -> None:
        """Take back what was announced: it is registered, or it never came."""
        with self._changed:
            others = [other for other in self._expected.pop(sop_instance_uid) if other is not one]
            if others:
                self._expected[sop_instance_uid] = others

    def file(self, records: Sequence[Waiting]) -> None:
        """File these, which were announced, after all that was handed in before."""
        with self._changed:
            was_idle = not self._waiting
            self._handed_in += len(records)
            self._waiting.extend(records)
            self._waiting_bytes += sum(each.record.size for each in records)
            self._last_came = time.monotonic()
            # Whoever waits for a lull is not to be woken by everything that comes.
            if was_idle or self._is_urgent:
                self._changed.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until all that has been handed in by now is filed, for so long at most; return whether it is."""
        with self._changed:
            self._asked_for = handed_in = self._handed_in
            self._changed.notify_all()
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
            # Whoever asks from here on wants a try that begins after he asked.
            self._is_asked_again = False
            try:
                left = self._file_together(group)
            except Exception as unforeseen:  # noqa: BLE001  acknowledged objects depend on this thread
                _log.error("cannot file", kind=type(unforeseen).__name__, exc_info=unforeseen)
                self._problem, left = type(unforeseen).__name__, group
            with self._changed:
                self._waiting.extendleft(reversed(left))
                if not left:
                    pause, self._problem = 0.0, ""
                    self._changed.notify_all()
                    continue
                pause = min(max(_FIRST_PAUSE_SECONDS, 2 * pause), _LONGEST_PAUSE_SECONDS)
                _log.error("cannot file what was received: it stays in the journal", reason=self._problem)
                if self._closing:
                    return
                self._changed.wait_for(lambda: self._closing or self._is_asked_again, pause)

    def _next_group(self) -> list[Waiting]:
        """Wait until there is something to be filed, and time for it; return nothing when it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or bool(self._waiting))
            while self._waiting and not self._is_urgent and (seconds := self._seconds_to_wait) > 0:
                self._changed.wait(seconds)
            return [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]

    @property
    def _is_urgent(self) -> bool:
        return self._closing or self._done < self._asked_for or self._journal.is_nearly_full

    @property
    def _seconds_to_wait(self) -> float:
        longest = min(LONGEST_SECONDS, self._quiet_seconds / 4)
        return min(self._last_came + LULL_SECONDS, self._waiting[0].came + longest) - time.monotonic()

    def _file_together(self, group: Sequence[Waiting]) -> list[Waiting]:
        """File a group; return what must be tried again, `_problem` saying why."""
        problems = self._filer.file([each.record for each in group])
        self._problem = next(iter(problems.values()), "")
        done = [each for each in group if each.record not in problems]
        self._journal.filed([each.record for each in done])
        with self._changed:
            for each in done:
                self._waiting_bytes -= each.record.size
                self.forget(each.record.sop_instance_uid, each.expected)
            self._done += len(done)
            self._changed.notify_all()
        return [each for each in group if each.record in problems]


class Filer:
    """Makes files and rows of records; filing something again changes nothing."""

    def __init__(self, store: InstanceStore, receiver: Receiver) -> None:
        self._store = store
        self._receiver = receiver

    def file(self, records: Sequence[Record]) -> dict[Record, str]:
        """File records together; return those that must be tried again, and why.

        What can never be registered is recorded as refused, and its file kept for recovery or set aside.
        """
        read: list[_Read] = []
        failures = self._store.put_all(self._files(records, read))
        problems: dict[Record, str] = {}
        stored: list[tuple[Record, Received]] = []
        for each in read:
            problem = each.problem or failures.get(each.sha256)
            if problem is not None:
                problems[each.record] = str(problem)
            elif isinstance(each.outcome, Received):
                stored.append((each.record, each.outcome))
            elif each.outcome is not None:
                self._record(each.record, each.outcome)
        for (record, what), outcome in zip(stored, self._receiver.register([what for _, what in stored]), strict=True):
            if isinstance(outcome, DatabaseAway):
                problems[record] = type(outcome).__name__
            else:
                self._settle(record, what, outcome)
        return problems

    def _files(self, records: Sequence[Record], read: "list[_Read]") -> Iterator[NewFile]:
        """Yield the files to be, each in memory until the next is asked for; say in `read` what is known of each."""
        for record in records:
            memory = self._store.buffers.lend(record.length)
            try:
                read.append(self._read(record, memory))
                if read[-1].sha256:
                    yield NewFile(
                        target=self._store.path(read[-1].sha256),
                        pieces=[memory[PAGE : PAGE + record.size]],
                        padded=memory[PAGE : record.length],
                    )
            finally:
                self._store.buffers.take_back(memory)

    def _read(self, record: Record, memory: memoryview) -> "_Read":
        aets = {"calling_ae_title": record.calling_ae_title, "called_ae_title": record.called_ae_title}
        try:
            file = record.read_into(memory)
        except Damaged as damaged:
            reason = f"acknowledged, and damaged on the disk before it was filed: {damaged}; it is to be sent again"
            return _Read(record=record, outcome=RefusedInstance(OUT_OF_RESOURCES, reason))
        except OSError as failure:
            return _Read(record=record, problem=failure)
        sha256 = hashlib.sha256(file).hexdigest()
        try:
            incoming = parse_ours(file, **aets)
            header = self._receiver.examine(incoming)
        except RefusedInstance as refused:
            if refused.status == OUT_OF_RESOURCES:
                return _Read(record=record, problem=refused)
            # It was examined before, so this is a defect of ours: the file is kept, and recovery will ask again.
            return _Read(record=record, sha256=sha256, outcome=refused)
        what = received(incoming, header, sha256=sha256, size=record.size)
        return _Read(record=record, sha256=sha256, outcome=what)

    def _settle(self, record: Record, what: Received, outcome: Registration | Exception) -> None:
        if isinstance(outcome, Registration):
            tell_of_conflict(outcome)
        elif isinstance(outcome, IdentityTaken):
            # Two processes took the same UID at the same moment: only now it is seen, and said.
            refused = identity_refused(outcome, what.sop_instance_uid, what.sha256)
            self._store.set_aside(self._store.path(what.sha256))
            self._record(record, refused, what.study_instance_uid)
        else:
            # Nothing that waiting would change. The file is there, and recovery will try again to register it.
            kind = type(outcome).__name__
            _log.error("an object that was stored cannot be registered", kind=kind, exc_info=outcome)
            reason = f"acknowledged, stored as {what.sha256[:12]}…, and cannot be registered: {kind}"
            self._record(record, RefusedInstance(OUT_OF_RESOURCES, reason), what.study_instance_uid)

    def _record(self, record: Record, refused: RefusedInstance, study_instance_uid: str = "") -> None:
        self._receiver.record_refusal(
            refused,
            sop_instance_uid=record.sop_instance_uid,
            study_instance_uid=study_instance_uid,
            calling_ae_title=record.calling_ae_title,
            called_ae_title=record.called_ae_title,
        )


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What is known of a record: its digest, and what is to be registered or why not; or the problem with reading."""

    record: Record
    sha256: str = ""
    outcome: Received | RefusedInstance | None = None
    problem: Exception | None = None


def file_abandoned(store: InstanceStore, receiver: Receiver) -> tuple[int, int]:
    """File what processes that are no longer alive left in their journals; return how much, and how much is left there.

    All of it was acknowledged, or was about to be. What cannot be filed now stays where it is for the next start, and
    nobody writes to its journal until then.
    """
    filer = Filer(store, receiver)
    done = left = 0
    for journal in Journal.abandoned(store.journals):
        records = journal.left_behind()
        problems: dict[Record, str] = {}
        for begin in range(0, len(records), GROUP):
            problems |= filer.file(records[begin : begin + GROUP])
        if not problems:
            journal.note_filed()
        journal.close()
        done, left = done + len(records) - len(problems), left + len(problems)
        if problems:
            reason = next(iter(problems.values()))
            _log.error("what was acknowledged before cannot be filed: it stays in its journal", reason=reason)
    return done, left
