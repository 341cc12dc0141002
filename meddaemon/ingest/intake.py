"""What the network sends: proved whole, and durable in the ingest journal before it is acknowledged.

Objects that are too long for the journal, and all as long as it is not ready, go straight to the store and the
database (see `receive`): the promise is the same, and keeping it takes longer.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Condition

from meddaemon.db import registration
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.db.registration import Namesake
from meddaemon.domain.errors import IdentityTaken, RefusedInstance, StoreUnavailable
from meddaemon.failpoints import reach
from meddaemon.ingest.content import Content
from meddaemon.ingest.filing import Filing, Waiting, file_abandoned
from meddaemon.ingest.journal import Entry, Journal
from meddaemon.ingest.receive import Header, Incoming, Receiver, cannot_store, identity_refused, namesake, normal
from meddaemon.ingest.store import InstanceStore
from meddaemon.ingest.turn import TURN
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
        reach("object_begun")
        return self._store.new_content(meta, maximum_bytes=self._maximum_bytes)

    def settle(self) -> None:
        """Return when all that was acknowledged is registered, or when that takes too long."""
        journaling = self._journaling
        if journaling is not None and not journaling.filing.settle(SECONDS_TO_FILE):
            _log.warning("what was acknowledged is not registered yet")

    def take_all(self, group: Sequence[Incoming]) -> list[Outcome]:
        """Take the objects that one association sent; their content is closed then."""
        reach("object_received")
        with self._used() as journaling, ExitStack() as contents:
            for incoming in group:
                if incoming.content is not None:
                    contents.callback(incoming.content.close)
            outcomes: dict[int, Outcome] = {}
            arrivals: dict[int, _Arrival] = {}
            for index, incoming in enumerate(group):
                if journaling is None or incoming.content is None or incoming.content.staged is not None:
                    outcomes[index] = self._keep(incoming)
                else:
                    arrivals[index] = _Arrival(incoming, incoming.content)
            if journaling is not None and arrivals:
                self._journal(journaling, list(arrivals.values()))
                outcomes |= {index: arrival.refused for index, arrival in arrivals.items()}
        return [outcomes[index] for index in range(len(group))]

    def _keep(self, incoming: Incoming) -> Outcome:
        """Take an object without the journal."""
        try:
            self._receiver.take(incoming)
        except RefusedInstance as refused:
            return refused
        return None

    def _journal(self, journaling: _Journaling, group: Sequence["_Arrival"]) -> None:
        """Write those objects to the journal that nothing speaks against; the others are refused."""
        journal, filing = journaling.journal, journaling.filing
        with TURN:
            for arrival in group:
                self._identify(arrival)
            self._announce(filing, [arrival for arrival in group if arrival.refused is None])
        for arrival in group:
            if arrival.refused is None:
                arrival.refused = self._taken(arrival)
        reach("validated")
        accepted = [arrival for arrival in group if arrival.refused is None]
        try:
            records = journal.append([arrival.entry for arrival in accepted]) if accepted else []
        except (StoreUnavailable, OSError) as failure:
            records, refused = [], cannot_store(failure)
            for arrival in accepted:
                arrival.refused = refused
        reach("journaled")
        came = time.monotonic()
        filing.file(
            [
                Waiting(record=record, expected=arrival.announced, came=came)
                for record, arrival in zip(records, accepted, strict=False)
                if arrival.announced is not None
            ]
        )
        for arrival in group:
            if arrival.refused is not None:
                if arrival.announced is not None:
                    filing.forget(arrival.uid, arrival.announced)
                self._receiver.record(arrival.incoming, arrival.header, arrival.refused)

    def _identify(self, arrival: "_Arrival") -> None:
        try:
            arrival.header = self._receiver.identify(arrival.incoming)
        except RefusedInstance as refused:
            arrival.refused = refused

    def _announce(self, filing: Filing, group: Sequence["_Arrival"]) -> None:
        """Announce objects to whoever brings others of their UIDs, and learn who has, all or none."""
        if not group:
            return
        # A question to a database on another machine is a wait like any other.
        is_here = self._database.dialect == "sqlite"
        try:
            if not filing.is_well:
                with TURN.given_up():
                    filing.require_well()
            self._store.require_free(sum(arrival.content.size for arrival in group) + filing.waiting_bytes)
            for arrival in group:
                self._receiver.require_share(arrival.incoming)
                arrival.announced = namesake(arrival.header)
                arrival.namesakes = filing.expect(arrival.uid, arrival.announced)
            with nullcontext() if is_here else TURN.given_up(), self._database.look() as connection:
                for arrival in group:
                    arrival.namesakes += registration.namesakes(connection, arrival.uid)
        except (StoreUnavailable, OSError, DatabaseUnavailable) as failure:
            refused = cannot_store(failure)
            for arrival in group:
                arrival.refused = refused

    def _taken(self, arrival: "_Arrival") -> Outcome:
        """Return the refusal of an object whose UID names one of another study or patient; it is set aside."""
        assert arrival.announced is not None  # noqa: S101  for the type checker
        differs = registration.taken_by(arrival.announced, arrival.namesakes)
        if differs is None:
            return None
        taken = IdentityTaken(differs, arrival.namesakes[0].study_id)
        try:
            self._store.put_content(arrival.content)
        except (StoreUnavailable, OSError) as failure:
            return cannot_store(failure)
        self._store.set_aside(self._store.path(arrival.content.sha256))
        return identity_refused(taken, arrival.uid, arrival.content.sha256)


@dataclass(slots=True)
class _Arrival:
    """An object on its way to the journal: what is known of it so far, and why it is refused if it is."""

    incoming: Incoming
    content: Content
    header: Header = field(default_factory=dict)
    announced: Namesake | None = None
    namesakes: list[Namesake] = field(default_factory=list)
    refused: Outcome = None

    @property
    def uid(self) -> str:
        """The SOP Instance UID, as it is compared and stored."""
        return normal(self.incoming.sop_instance_uid)

    @property
    def entry(self) -> Entry:
        """What the journal is given of it."""
        incoming = self.incoming
        return Entry(
            content=self.content,
            sop_instance_uid=self.uid,
            calling_ae_title=incoming.calling_ae_title,
            called_ae_title=incoming.called_ae_title,
        )
