"""What the network sends: proved whole, and durable in the ingest journal before it is acknowledged.

Objects that are too long for the journal, and all as long as it is not ready, go straight to the store and the
database (see `receive`): the promise is the same, and keeping it takes longer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Condition

from meddaemon.db import registration
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.db.registration import Namesake
from meddaemon.domain.errors import IdentityTaken, RefusedInstance, StoreUnavailable
from meddaemon.ingest.content import Content
from meddaemon.ingest.filing import Filed, Filing, file_abandoned
from meddaemon.ingest.journal import Entry, Journal
from meddaemon.ingest.receive import Header, Incoming, Receiver, cannot_store, identity_refused, namesake, normal
from meddaemon.ingest.store import InstanceStore
from meddaemon.telemetry import log

SECONDS_TO_FILE = 5.0
"""How long the end, or a question about objects, waits for what stands in the journal to be filed."""
_log = log(__name__)
Outcome = RefusedInstance | None
"""What became of one object: None says that it would survive a power loss."""


@dataclass(frozen=True)
class _Journaling:
    """A journal, what files it, and how often the store's volume had come back when it was opened."""

    journal: Journal
    filing: Filing
    returned: int


class Intake:
    """Takes objects from several associations at the same time."""

    def __init__(
        self, database: Database, store: InstanceStore, receiver: Receiver, *, journal_bytes: int, maximum_bytes: int
    ) -> None:
        """Take objects of `maximum_bytes` at most, through a journal of `journal_bytes` (0: none). Raises OSError."""
        self._database = database
        self._store = store
        self._receiver = receiver
        self._journal_bytes = journal_bytes
        self._maximum_bytes = maximum_bytes
        self._changing = Condition()
        self._users = 0
        self._journaling = self._opened()

    def close(self) -> None:
        """File what stands in the journal, for a moment; the rest stays there for the next start."""
        with self._changing:
            self._retire()

    def _opened(self) -> _Journaling | None:
        if not self._journal_bytes:
            return None
        journal = Journal.own(self._store.journals, size=self._journal_bytes, require_room=self._store.require_room)
        return _Journaling(journal, Filing(self._store, journal, self._receiver), self._store.returned)

    def _retire(self) -> None:
        """Give the journal up, once nobody writes to it any more."""
        journaling = self._journaling
        self._changing.wait_for(lambda: not self._users or self._journaling is not journaling)
        if journaling is None or self._journaling is not journaling:
            return  # somebody else was here first
        self._journaling = None
        # While its files are still in use they are not closed: their numbers would be those of other files then.
        if journaling.filing.close(SECONDS_TO_FILE):
            journaling.journal.close()

    @contextmanager
    def _used(self) -> Iterator[_Journaling | None]:
        """Give the journal for as long as it is written to, if there is one that can be.

        One that was opened on a volume that has gone since is given up, and another is opened when it is back.
        """
        with self._changing:
            journaling = self._current()
            self._users += 1
        try:
            yield journaling if journaling is not None and journaling.journal.is_ready else None
        finally:
            with self._changing:
                self._users -= 1
                self._changing.notify_all()

    @property
    def _is_stale(self) -> bool:
        return self._journaling is not None and self._journaling.returned != self._store.returned

    def _current(self) -> _Journaling | None:
        try:
            self._store.require_volume()
            if self._is_stale:
                self._retire()
            if self._journaling is None and self._journal_bytes:
                file_abandoned(self._store, self._receiver)
                self._journaling = self._opened()
        except (StoreUnavailable, OSError) as failure:
            if self._journaling is not None:
                _log.error("gave up the ingest journal", reason=str(failure))
                self._retire()
        return self._journaling

    def new_content(self, meta: bytes) -> Content:
        """Return what an object with this file meta group is collected in."""
        return self._store.new_content(meta, maximum_bytes=self._maximum_bytes)

    def settle(self) -> None:
        """Return when all that was acknowledged is registered, or when that takes too long."""
        journaling = self._journaling
        if journaling is not None and not journaling.filing.settle(SECONDS_TO_FILE):
            _log.warning("what was acknowledged is not registered yet")

    def take_all(self, group: Sequence[Incoming]) -> list[Outcome]:
        """Take the objects that one association sent; their content is closed, or handed on."""
        with self._used() as journaling, ExitStack() as contents:
            for incoming in group:
                if incoming.content is not None:
                    contents.callback(incoming.content.close)
            outcomes: dict[int, RefusedInstance] = {}
            journaled: list[tuple[int, Incoming, Header]] = []
            for index, incoming in enumerate(group):
                header: Header = {}
                try:
                    if incoming.content is not None:
                        incoming.content.finish()
                    if journaling is not None and incoming.content is not None and incoming.content.staged is None:
                        header = self._receiver.identify(incoming)
                        journaled.append((index, incoming, header))
                    else:
                        header = self._receiver.examine(incoming)
                        self._receiver.keep(incoming, header)
                except RefusedInstance as refused:
                    self._receiver.record(incoming, header, refused)
                    outcomes[index] = refused
            if journaled and journaling is not None:
                written = self._write(journaling, [(incoming, header) for _, incoming, header in journaled])
                for (index, incoming, header), outcome in zip(journaled, written, strict=True):
                    if outcome is not None:
                        self._receiver.record(incoming, header, outcome)
                        outcomes[index] = outcome
        return [outcomes.get(index) for index in range(len(group))]

    def _write(self, journaling: _Journaling, group: Sequence[tuple[Incoming, Header]]) -> list[Outcome]:
        """Write objects to the journal, all or none but those whose UID is taken."""
        filing = journaling.filing
        announced: list[tuple[Entry, str, Namesake]] = []
        outcomes: list[Outcome] = []
        try:
            filing.require_well()
            self._store.require_room(sum(each.size for each, _ in group) + filing.waiting_bytes)
            for incoming, _ in group:
                self._receiver.require_share(incoming)
            with self._database.look() as connection:
                for incoming, header in group:
                    uid, one = normal(incoming.sop_instance_uid), namesake(header)
                    others = filing.expect(uid, one)
                    entry = Entry(
                        content=_content(incoming),
                        calling_ae_title=incoming.calling_ae_title,
                        called_ae_title=incoming.called_ae_title,
                    )
                    announced.append((entry, uid, one))
                    others += registration.namesakes(connection, uid)
                    outcomes.append(self._taken(uid, one, others, entry.content))
            good = [each for each, outcome in zip(announced, outcomes, strict=True) if outcome is None]
            records = journaling.journal.append([entry for entry, _, _ in good]) if good else []
        except (StoreUnavailable, OSError, DatabaseUnavailable) as failure:
            for _, uid, one in announced:
                filing.forget(uid, one)
            return [cannot_store(failure)] * len(group)
        for (_, uid, one), outcome in zip(announced, outcomes, strict=True):
            if outcome is not None:
                filing.forget(uid, one)
        came = time.monotonic()
        filing.file(
            [
                Filed(record=record, sop_instance_uid=uid, expected=one, came=came)
                for record, (_, uid, one) in zip(records, good, strict=True)
            ]
        )
        return outcomes

    def _taken(self, uid: str, one: Namesake, others: Sequence[Namesake], content: Content) -> Outcome:
        """Return the refusal of an object whose UID names one of another study or patient; it is set aside."""
        differs = registration.taken_by(one, others)
        if differs is None:
            return None
        taken = IdentityTaken(differs, others[0].study_id)
        self._store.put_content(content)
        self._store.set_aside(self._store.path(content.sha256))
        return identity_refused(taken, uid, content.sha256)


def _content(incoming: Incoming) -> Content:
    assert incoming.content is not None  # noqa: S101  only collected content goes to the journal
    return incoming.content
