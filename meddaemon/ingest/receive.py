"""Taking one object: proved whole, made durable, registered; or refused with a status and a reason.

The same path serves the network and `meddaemon import`. When `take` returns, the object survives a power loss:
bytes synced under their final name, directories synced, row committed (in this order). Objects that arrive together
share the last two.
"""

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meddaemon.db import instances, registration
from meddaemon.db.engine import Database, DatabaseAway, DatabaseUnavailable
from meddaemon.domain.errors import IdentityTaken, RefusedInstance
from meddaemon.ingest import scan
from meddaemon.ingest.group_commit import GroupCommit
from meddaemon.ingest.header import read_header
from meddaemon.ingest.store import InstanceStore, StoreUnavailable
from meddaemon.telemetry import log

OUT_OF_RESOURCES = 0xA700
"""PS3.4 B.2.3: Refused: Out of Resources."""
DOES_NOT_MATCH_SOP_CLASS = 0xA900
"""PS3.4 B.2.3: Error: Data Set does not match SOP Class."""
CANNOT_UNDERSTAND = 0xC000
"""PS3.4 B.2.3: Error: Cannot Understand."""
INVALID_SOP_INSTANCE = 0x0117
"""PS3.7 C.5.9: Invalid SOP Instance."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Incoming:
    """One object as it came: the encoded data set and what the sender said about it.

    `sop_class_uid` and `sop_instance_uid` are those of the C-STORE command, or of the file meta group.
    """

    data: bytes
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    calling_ae_title: str = ""
    called_ae_title: str = ""


class Receiver:
    """Takes objects into the store and the database."""

    def __init__(
        self, database: Database, store: InstanceStore, *, quiet_seconds: float, keywords: Iterable[str] = ()
    ) -> None:
        """`quiet_seconds` is the shortest quiet time of any rule; `keywords` the attributes that rules ask for."""
        self._database = database
        self._store = store
        self._quiet_seconds = quiet_seconds
        self._keywords = tuple(keywords)
        self._inflating = threading.Lock()
        self._commit = GroupCommit(self._settle)

    def take(self, incoming: Incoming) -> instances.Registration:
        """Take one object. Raises RefusedInstance, which has been recorded where the database could be reached."""
        header: Mapping[str, tuple[str, ...]] = {}
        try:
            header = self._examine(incoming)
            return self._keep(incoming, header)
        except RefusedInstance as refused:
            self._record(incoming, header, refused)
            raise

    def _examine(self, incoming: Incoming) -> Mapping[str, tuple[str, ...]]:
        _require_uid("SOP Instance UID", incoming.sop_instance_uid)
        _require_uid("SOP Class UID", incoming.sop_class_uid)
        if not is_uid(incoming.transfer_syntax_uid):
            raise RefusedInstance(CANNOT_UNDERSTAND, "the transfer syntax is not a UID")
        try:
            header = self._read(incoming)
        except scan.Malformed as malformed:
            raise RefusedInstance(CANNOT_UNDERSTAND, f"malformed data set: {malformed}") from malformed
        for keyword, commanded in (
            ("SOPInstanceUID", incoming.sop_instance_uid),
            ("SOPClassUID", incoming.sop_class_uid),
        ):
            # Anonymisers empty them; then the sender's word is all there is. Contradiction is another matter.
            if header[keyword] and _normal(_only(header, keyword)) != _normal(commanded):
                raise RefusedInstance(
                    DOES_NOT_MATCH_SOP_CLASS, f"{keyword} of the data set is not the one that the sender named"
                )
        _require_uid("Study Instance UID", _only(header, "StudyInstanceUID"))
        _require_uid("Series Instance UID", _only(header, "SeriesInstanceUID"))
        return header

    def _read(self, incoming: Incoming) -> Mapping[str, tuple[str, ...]]:
        if not scan.is_deflated(incoming.transfer_syntax_uid):
            return read_header(incoming.data, incoming.transfer_syntax_uid, self._keywords)
        # One at a time: what many peers send deflated at once must not fill the memory.
        with self._inflating:
            return read_header(scan.inflate(incoming.data), incoming.transfer_syntax_uid, self._keywords)

    def _keep(self, incoming: Incoming, header: Mapping[str, tuple[str, ...]]) -> instances.Registration:
        try:
            stored = self._store.put(
                incoming.data,
                sop_class_uid=_normal(incoming.sop_class_uid),
                sop_instance_uid=_normal(incoming.sop_instance_uid),
                transfer_syntax_uid=incoming.transfer_syntax_uid,
            )
            registration = self._commit.do(received(incoming, header, sha256=stored.sha256, size=stored.size))
        except IdentityTaken as taken:
            # Alarm: one of the two is not who it says it is. Neither is shown to a model as the other.
            _log.error(
                "alarm: a SOP Instance UID was sent for a second study or patient; the object is set aside",
                sop_instance_uid=_normal(incoming.sop_instance_uid),
                sha256=stored.sha256,
                reason=str(taken),
            )
            self._store.set_aside(self._store.path(stored.sha256))
            raise RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, str(taken)) from taken
        except (StoreUnavailable, OSError, DatabaseUnavailable) as failure:
            # The cause may quote parameters (DatabaseUnavailable does): its kind is enough to look further.
            reason = str(failure) if isinstance(failure, StoreUnavailable | OSError) else type(failure).__name__
            _log.error("cannot store", reason=reason)
            raise RefusedInstance(OUT_OF_RESOURCES, f"cannot store now: {reason}") from failure
        if registration.conflict:
            _log.warning(
                "conflict: another object with the same SOP Instance UID was here first; both are kept",
                study=registration.study_id,
            )
        return registration

    def _settle(self, group: Sequence[instances.Received]) -> list[instances.Registration | Exception]:
        """Make names durable, then register: the second only what the first was good for."""
        failures = self._store.settle(each.sha256 for each in group)
        outcomes: list[instances.Registration | Exception | None] = [failures.get(each.sha256) for each in group]
        named = [index for index, outcome in enumerate(outcomes) if outcome is None]
        # In one order everywhere: processes that register for the same studies then wait, and do not block each other.
        named.sort(key=lambda index: (group[index].study_instance_uid, group[index].series_instance_uid))
        if named:
            for index, outcome in zip(named, self._register([group[index] for index in named]), strict=True):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _register(self, group: Sequence[instances.Received]) -> list[instances.Registration | Exception]:
        """Register all in one transaction; where that fails, each in its own, so that only the one at fault fails."""
        try:
            with self._database.write() as connection:
                return [*registration.register_all(connection, group, quiet_seconds=self._quiet_seconds)]
        except Exception as failure:  # noqa: BLE001  the outcome of this one is no business of the others
            if len(group) == 1:
                return [failure]
        outcomes: list[instances.Registration | Exception] = []
        for each in group:
            if outcomes and isinstance(outcomes[-1], DatabaseAway):
                # It was waited for already, and everybody behind us waits too.
                outcomes.append(outcomes[-1])
            else:
                outcomes += self._register([each])
        return outcomes

    def _record(self, incoming: Incoming, header: Mapping[str, tuple[str, ...]], refused: RefusedInstance) -> None:
        _log.warning("refused an object", status=f"{refused.status:04X}", reason=refused.reason)
        try:
            with self._database.write() as connection:
                instances.refuse(
                    connection,
                    status=refused.status,
                    reason=refused.reason,
                    sop_instance_uid=_printable(incoming.sop_instance_uid),
                    study_instance_uid=_printable(_only(header, "StudyInstanceUID")),
                    calling_ae_title=incoming.calling_ae_title,
                    called_ae_title=incoming.called_ae_title,
                )
        except DatabaseUnavailable as failure:
            # The refusal itself stands: the sender gets its status either way.
            _log.error("cannot record a refusal", reason=type(failure).__name__)


def received(
    incoming: Incoming, header: Mapping[str, tuple[str, ...]], *, sha256: str, size: int
) -> instances.Received:
    """Return what the database is to know of an object; UIDs are normalised for matching."""
    return instances.Received(
        study_instance_uid=_normal(_only(header, "StudyInstanceUID")),
        series_instance_uid=_normal(_only(header, "SeriesInstanceUID")),
        sop_instance_uid=_normal(incoming.sop_instance_uid),
        sop_class_uid=_normal(incoming.sop_class_uid),
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        sha256=sha256,
        size=size,
        header=header,
        calling_ae_title=incoming.calling_ae_title,
        called_ae_title=incoming.called_ae_title,
    )


def _require_uid(name: str, uid: str) -> None:
    """UIDs are digits and dots, at most 64 (PS3.5 9.1); leading zeros occur in real data and harm nobody."""
    if not uid:
        raise RefusedInstance(DOES_NOT_MATCH_SOP_CLASS, f"the data set has no {name}")
    if not is_uid(_normal(uid)):
        raise RefusedInstance(INVALID_SOP_INSTANCE, f"the {name} is not a UID")


def is_uid(text: str) -> bool:
    """Return whether this is a UID: digits and dots, at most 64 (PS3.5 9.1)."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _only(header: Mapping[str, tuple[str, ...]], keyword: str) -> str:
    return "\\".join(header.get(keyword, ()))


def _normal(uid: str) -> str:
    return uid.strip(" \0")


def _printable(uid: str) -> str:
    return "".join(character for character in uid if character in "0123456789.")
