"""What the network sends: proved whole, and durable in the ingest journal before it is acknowledged.

Objects that are too long for the journal, and all as long as it is not ready, go straight to the store and the
database (see `receive`): the promise is the same, and keeping it takes longer.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from meddaemon.db import registration
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.db.instances import Received
from meddaemon.domain.errors import IdentityTaken, RefusedInstance, StoreUnavailable
from meddaemon.ingest.content import Content
from meddaemon.ingest.filing import Filed, Filing
from meddaemon.ingest.journal import Entry, Journal
from meddaemon.ingest.receive import Header, Incoming, Receiver, cannot_store, identity_refused, received
from meddaemon.ingest.store import InstanceStore

SECONDS_TO_FILE = 5.0
"""How long the end waits for what stands in the journal to be filed; the rest is filed at the next start."""
Outcome = RefusedInstance | None
"""What became of one object: None says that it would survive a power loss."""


class Intake:
    """Takes objects from several associations at the same time."""

    def __init__(
        self,
        database: Database,
        store: InstanceStore,
        receiver: Receiver,
        journal: Journal | None = None,
        filing: Filing | None = None,
        *,
        maximum_bytes: int,
    ) -> None:
        """Take objects of `maximum_bytes` at most; without a journal all go straight to store and database."""
        self._database = database
        self._store = store
        self._receiver = receiver
        self._journal = journal
        self._filing = filing
        self._maximum_bytes = maximum_bytes

    def new_content(self, meta: bytes) -> Content:
        """Return what an object with this file meta group is collected in."""
        return self._store.new_content(meta, maximum_bytes=self._maximum_bytes)

    def take_all(self, group: Sequence[Incoming]) -> list[Outcome]:
        """Take the objects that one association sent; their content is closed, or handed on."""
        with ExitStack() as contents:
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
                    header = self._receiver.examine(incoming)
                    if self._goes_to_journal(incoming):
                        journaled.append((index, incoming, header))
                    else:
                        self._receiver.keep(incoming, header)
                except RefusedInstance as refused:
                    self._receiver.record(incoming, header, refused)
                    outcomes[index] = refused
            if journaled:
                written = self._write([(incoming, header) for _, incoming, header in journaled])
                for (index, incoming, header), outcome in zip(journaled, written, strict=True):
                    if outcome is not None:
                        self._receiver.record(incoming, header, outcome)
                        outcomes[index] = outcome
        return [outcomes.get(index) for index in range(len(group))]

    def _goes_to_journal(self, incoming: Incoming) -> bool:
        content = incoming.content
        return content is not None and content.staged is None and self._journal is not None and self._journal.is_ready

    def _write(self, group: Sequence[tuple[Incoming, Header]]) -> list[Outcome]:
        """Write objects to the journal, all or none but those whose UID is taken."""
        assert self._journal is not None  # noqa: S101  that is why we are here
        assert self._filing is not None  # noqa: S101
        announced: list[tuple[Entry, Received]] = []
        outcomes: list[Outcome] = []
        try:
            self._filing.require_well()
            self._store.require_room(sum(each.size for each, _ in group) + self._filing.waiting_bytes)
            for incoming, _ in group:
                self._receiver.require_share(incoming)
            with self._database.look() as connection:
                for incoming, header in group:
                    content = _content(incoming)
                    what = received(incoming, header, sha256=content.sha256, size=content.size)
                    others = self._filing.expect(what)
                    entry = Entry(
                        content=content,
                        calling_ae_title=incoming.calling_ae_title,
                        called_ae_title=incoming.called_ae_title,
                    )
                    announced.append((entry, what))
                    others += registration.namesakes(connection, what.sop_instance_uid)
                    outcomes.append(self._taken(what, others, content))
            good = [pair for pair, outcome in zip(announced, outcomes, strict=True) if outcome is None]
            records = self._journal.append([entry for entry, _ in good]) if good else []
        except (StoreUnavailable, OSError, DatabaseUnavailable) as failure:
            for _, what in announced:
                self._filing.forget(what)
            return [cannot_store(failure)] * len(group)
        for (_, what), outcome in zip(announced, outcomes, strict=True):
            if outcome is not None:
                self._filing.forget(what)
        self._filing.file(
            [
                Filed(record=record, received=what, memory=entry.content.hand_over())
                for record, (entry, what) in zip(records, good, strict=True)
            ]
        )
        return outcomes

    def _taken(self, what: Received, others: Sequence[registration.Namesake], content: Content) -> Outcome:
        """Return the refusal of an object whose UID names one of another study or patient; it is set aside."""
        differs = registration.taken_by(what, others)
        if differs is None:
            return None
        taken = IdentityTaken(differs, others[0].study_id)
        self._store.put_content(content)
        self._store.set_aside(self._store.path(content.sha256))
        return identity_refused(taken, what.sop_instance_uid, content.sha256)


def _content(incoming: Incoming) -> Content:
    assert incoming.content is not None  # noqa: S101  only collected content goes to the journal
    return incoming.content


@contextmanager
def intake_of(
    database: Database, store: InstanceStore, receiver: Receiver, *, journal_bytes: int, maximum_bytes: int
) -> Iterator[Intake]:
    """Give an intake with a journal that may grow to `journal_bytes`; with 0 there is none. Raises OSError.

    Journals that were left behind have been filed before (see `filing.file_abandoned`).
    """
    if not journal_bytes:
        yield Intake(database, store, receiver, maximum_bytes=maximum_bytes)
        return
    journal = Journal.own(store.journals, size=journal_bytes, require_room=store.require_room)
    filing = Filing(store, journal, receiver)
    try:
        yield Intake(database, store, receiver, journal, filing, maximum_bytes=maximum_bytes)
    finally:
        filing.close(SECONDS_TO_FILE)
        journal.close()
