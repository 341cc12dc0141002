"""Taking one object: proved whole, made durable, registered; or refused with a status and a reason.

The same path serves the network and `meddaemon import`. When `take` returns, the object survives a power loss:
bytes synced under their final name, directories synced, row committed (in this order). Objects that arrive together
share the last two.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from meddaemon.db import instances, registration
from meddaemon.db.engine import Database, DatabaseAway, DatabaseUnavailable
from meddaemon.domain.errors import IdentityTaken, RefusedInstance, StoreUnavailable
from meddaemon.failpoints import reach
from meddaemon.ingest import scan
from meddaemon.ingest.content import Content
from meddaemon.ingest.deflate import inflated
from meddaemon.ingest.group_commit import GroupCommit
from meddaemon.ingest.header import read_header, read_identity
from meddaemon.ingest.quota import Quota
from meddaemon.ingest.statuses import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH_SOP_CLASS,
    INVALID_SOP_INSTANCE,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
)
from meddaemon.ingest.store import InstanceStore, Stored
from meddaemon.telemetry import log

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_log = log(__name__)

Header = Mapping[str, tuple[str, ...]]
"""Attributes by keyword, as strings."""


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """One object as it came: the encoded data set, as bytes or collected, and what the sender said about it.

    `sop_class_uid` and `sop_instance_uid` are those of the C-STORE command, or of the file meta group;
    `abstract_syntax_uid` is the SOP class that was agreed on, empty where nothing was. `study_instance_uid` is that of
    the study it was sent for, where the sender named one (PS3.18 10.5.1).
    """

    data: scan.Encoded = b""
    content: Content | None = None
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax_uid: str = ""
    study_instance_uid: str = ""
    calling_ae_title: str = ""
    called_ae_title: str = ""

    @property
    def size(self) -> int:
        """Length of the data set, or of the file that is collected."""
        return len(self.data) if self.content is None else self.content.size

    @contextmanager
    def data_set(self) -> Iterator[scan.Encoded]:
        """Give the encoded data set."""
        if self.content is None:
            yield self.data
        else:
            with self.content.data_set() as data_set:
                yield data_set


class Receiver:
    """Takes objects into the store and the database."""

    def __init__(
        self,
        database: Database,
        store: InstanceStore,
        *,
        quiet_seconds: float,
        keywords: Iterable[str] = (),
        quota: Quota | None = None,
    ) -> None:
        """`quiet_seconds` is the shortest quiet time of any rule; `keywords` the attributes that rules ask for."""
        self._quota = quota
        self._database = database
        self._store = store
        self.quiet_seconds = quiet_seconds
        self._keywords = tuple(keywords)
        self._commit = GroupCommit(self._settle)

    def take(self, incoming: Incoming, *, promised: bool = False) -> instances.Registration:
        """Take one object; one that was `promised` to be kept whatever its sender has had of the day.

        Raises RefusedInstance, which has been recorded where the database could be reached.
        """
        header: Header = {}
        try:
            header = self.examine(incoming)
            return self.keep(incoming, header, promised=promised)
        except RefusedInstance as refused:
            self.record(incoming, header, refused)
            raise

    def examine(self, incoming: Incoming) -> Header:
        """Return the header of an object that is whole and is what its sender says. Raises RefusedInstance."""
        return self._examined(incoming, partial(read_header, extra=self._keywords))

    def identify(self, incoming: Incoming) -> Header:
        """Do what `examine` does, but read only what says which object it is, and whose."""
        return self._examined(incoming, read_identity)

    def _examined(self, incoming: Incoming, read: Callable[[scan.Encoded, str], Header]) -> Header:
        if incoming.content is not None:
            incoming.content.finish()
        _require_uid("SOP Instance UID", incoming.sop_instance_uid, absent=INVALID_SOP_INSTANCE)
        _require_uid("SOP Class UID", incoming.sop_class_uid)
        if incoming.abstract_syntax_uid not in {"", normal(incoming.sop_class_uid)}:
            raise RefusedInstance(SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the presentation context's")
        if not is_uid(incoming.transfer_syntax_uid):
            raise RefusedInstance(CANNOT_UNDERSTAND, "the transfer syntax is not a UID")
        try:
            header = self._read(incoming, read)
        except scan.Malformed as malformed:
            raise RefusedInstance(CANNOT_UNDERSTAND, f"malformed data set: {malformed}") from malformed
        for keyword, commanded in (
            ("SOPInstanceUID", incoming.sop_instance_uid),
            ("SOPClassUID", incoming.sop_class_uid),
        ):
            # Anonymisers empty them; then the sender's word is all there is. Contradiction is another matter.
            if header[keyword] and normal(_only(header, keyword)) != normal(commanded):
                raise RefusedInstance(
                    DOES_NOT_MATCH_SOP_CLASS, f"{keyword} of the data set is not the one that the sender named"
                )
        _require_uid("Study Instance UID", _only(header, "StudyInstanceUID"))
        _require_uid("Series Instance UID", _only(header, "SeriesInstanceUID"))
        if incoming.study_instance_uid and study_of(header) != incoming.study_instance_uid:
            raise RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, "the object is not of the study that it was sent for")
        return header

    def keep(self, incoming: Incoming, header: Header, *, promised: bool = False) -> instances.Registration:
        """Store and register an object that was examined. Raises RefusedInstance."""
        try:
            if not promised:
                self.require_share(incoming)
            stored = self._put(incoming)
            registration = self._commit.do(received(incoming, header, sha256=stored.sha256, size=stored.size))
        except IdentityTaken as taken:
            self._store.set_aside(self._store.path(stored.sha256))
            raise identity_refused(taken, incoming.sop_instance_uid, stored.sha256) from taken
        except (StoreUnavailable, OSError, DatabaseUnavailable) as failure:
            raise cannot_store(failure) from failure
        tell_of_conflict(registration)
        return registration

    def require_share(self, incoming: Incoming) -> None:
        """Raise StoreUnavailable when the sender has had its share of the day; count the object otherwise."""
        if self._quota is not None and incoming.calling_ae_title:
            self._quota.require(incoming.calling_ae_title, incoming.size)

    def record(self, incoming: Incoming, header: Header, refused: RefusedInstance) -> None:
        """Keep a record of an object that is not taken, where the database can be reached."""
        self.record_refusal(
            refused,
            sop_instance_uid=incoming.sop_instance_uid,
            study_instance_uid=_only(header, "StudyInstanceUID"),
            calling_ae_title=incoming.calling_ae_title,
            called_ae_title=incoming.called_ae_title,
        )

    def record_refusal(
        self,
        refused: RefusedInstance,
        *,
        sop_instance_uid: str,
        study_instance_uid: str,
        calling_ae_title: str,
        called_ae_title: str,
    ) -> None:
        """Keep a record of an object that is not taken, by what is known of it, as `record` does."""
        uids = {"sop_instance_uid": _printable(sop_instance_uid), "study_instance_uid": _printable(study_instance_uid)}
        said = {"status": f"{refused.status:04X}", "reason": refused.reason, "calling_ae_title": calling_ae_title}
        _log.warning("refused an object", **said, **uids)
        if isinstance(refused.__cause__, DatabaseAway):
            return  # it was waited for already, and the sender waits too
        try:
            with self._database.write() as connection:
                instances.refuse(
                    connection,
                    status=refused.status,
                    reason=refused.reason,
                    **uids,
                    calling_ae_title=calling_ae_title,
                    called_ae_title=called_ae_title,
                )
        except DatabaseUnavailable as failure:
            # The refusal itself stands: the sender gets its status either way.
            _log.error("cannot record a refusal", reason=type(failure).__name__)

    def _read(self, incoming: Incoming, read: Callable[[scan.Encoded, str], Header]) -> Header:
        syntax = incoming.transfer_syntax_uid
        try:
            with incoming.data_set() as data, inflated(data, syntax, folder=self._store.scratch) as whole:
                return read(whole, syntax)
        except OSError as failure:
            raise cannot_store(failure) from failure

    def _put(self, incoming: Incoming) -> Stored:
        if incoming.content is not None:
            return self._store.put_content(incoming.content)
        return self._store.put(
            incoming.data,
            sop_class_uid=normal(incoming.sop_class_uid),
            sop_instance_uid=normal(incoming.sop_instance_uid),
            transfer_syntax_uid=incoming.transfer_syntax_uid,
        )

    def _settle(self, group: Sequence[instances.Received]) -> list[instances.Registration | Exception]:
        """Make names durable, then register: the second only what the first was good for."""
        failures = self._store.settle(each.sha256 for each in group)
        outcomes: list[instances.Registration | Exception | None] = [failures.get(each.sha256) for each in group]
        named = [index for index, outcome in enumerate(outcomes) if outcome is None]
        # In one order everywhere: processes that register for the same studies then wait, and do not block each other.
        named.sort(key=lambda index: (group[index].study_instance_uid, group[index].series_instance_uid))
        if named:
            for index, outcome in zip(named, self.register([group[index] for index in named]), strict=True):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def register(self, group: Sequence[instances.Received]) -> list[instances.Registration | Exception]:
        """Register all in one transaction; where that fails, each in its own, so that only the one at fault fails."""
        try:
            with self._database.write() as connection:
                registered: list[instances.Registration | Exception] = [
                    *registration.register_all(connection, group, quiet_seconds=self.quiet_seconds)
                ]
                reach("registering")
            reach("registered")
            return registered
        except Exception as failure:  # noqa: BLE001  the outcome of this one is no business of the others
            if len(group) == 1:
                return [failure]
        outcomes: list[instances.Registration | Exception] = []
        for each in group:
            if outcomes and isinstance(outcomes[-1], DatabaseAway):
                # It was waited for already, and everybody behind us waits too.
                outcomes.append(outcomes[-1])
            else:
                outcomes += self.register([each])
        return outcomes


def received(incoming: Incoming, header: Header, *, sha256: str, size: int) -> instances.Received:
    """Return what the database is to know of an object; UIDs are normalised for matching."""
    return instances.Received(
        study_instance_uid=study_of(header),
        series_instance_uid=normal(_only(header, "SeriesInstanceUID")),
        sop_instance_uid=normal(incoming.sop_instance_uid),
        sop_class_uid=normal(incoming.sop_class_uid),
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        sha256=sha256,
        size=size,
        header=header,
        calling_ae_title=incoming.calling_ae_title,
        called_ae_title=incoming.called_ae_title,
    )


def study_of(header: Header) -> str:
    """Return the Study Instance UID, as it is compared and stored."""
    return normal(_only(header, "StudyInstanceUID"))


def namesake(header: Header) -> registration.Namesake:
    """Return what others are compared with that carry the same SOP Instance UID."""
    return registration.Namesake(study_instance_uid=study_of(header), header=header)


def identity_refused(taken: IdentityTaken, sop_instance_uid: str, sha256: str) -> RefusedInstance:
    """Raise the alarm, and return the refusal: one of two objects is not who it says it is.

    Neither is shown to a model as the other; the second is set aside.
    """
    _log.error(
        "alarm: a SOP Instance UID was sent for a second study or patient; the object is set aside",
        sop_instance_uid=normal(sop_instance_uid),
        sha256=sha256,
        reason=str(taken),
    )
    return RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, str(taken))


def cannot_store(failure: Exception) -> RefusedInstance:
    """Return the refusal that store or database are the reason of."""
    # The cause may quote parameters (DatabaseUnavailable does): its kind is enough to look further.
    reason = str(failure) if isinstance(failure, StoreUnavailable | OSError) else type(failure).__name__
    _log.error("cannot store", reason=reason)
    refused = RefusedInstance(OUT_OF_RESOURCES, f"cannot store now: {reason}")
    refused.__cause__ = failure
    return refused


def tell_of_conflict(registration: instances.Registration) -> None:
    """Tell the operator of an object that is another version of one that was here first."""
    if registration.conflict:
        _log.warning(
            "conflict: another object with the same SOP Instance UID was here first; both are kept",
            study=registration.study_id,
        )


def _require_uid(name: str, uid: str, *, absent: int = DOES_NOT_MATCH_SOP_CLASS) -> None:
    """UIDs are digits and dots, at most 64 (PS3.5 9.1); leading zeros occur in real data and harm nobody."""
    if not uid:
        raise RefusedInstance(absent, f"there is no {name}")
    if not is_uid(normal(uid)):
        raise RefusedInstance(INVALID_SOP_INSTANCE, f"the {name} is not a UID")


def is_uid(text: str) -> bool:
    """Return whether this is a UID: digits and dots, at most 64 (PS3.5 9.1)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _only(header: Header, keyword: str) -> str:
    return "\\".join(header.get(keyword, ()))


def normal(uid: str) -> str:
    """Return a UID as it is compared and stored: without the padding that some write on either side."""
    return uid.strip(" \0")


def _printable(uid: str) -> str:
    return "".join(character for character in uid if character in "0123456789.")
