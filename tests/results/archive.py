"""An archive for tests: a real SCP that keeps, loses, answers and reports as a test wants it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from pydicom import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import (
    BasicTextSRStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from meddaemon.results.dimse import RemoteEntity, make_pausable, release

Named = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


def report_of(transaction: str, committed: Sequence[Named], failed: Sequence[tuple[Named, int]] = ()) -> Dataset:
    """Return the Event Information of a report."""
    information = Dataset()
    information.TransactionUID = transaction
    information.ReferencedSOPSequence = [_item(each) for each in committed]
    if failed:
        information.FailedSOPSequence = [_item(each) for each, _ in failed]
        for item, (_, reason) in zip(information.FailedSOPSequence, failed, strict=True):
            item.FailureReason = reason
    return information


def _item(named: Named) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = named
    return item


@dataclass
class Archive:
    """What it holds is `there`; `loses` lists the objects that it will acknowledge and forget, once for each mention.

    `report` says what becomes of a request for storage commitment: its report on the `same` association, even `before`
    the request is answered, or nothing.
    `status` answers the request; `find_lists`: whether lists of UIDs are matched, refused (a status), or not found.
    """

    report: str = "same"
    status: int = 0x0000
    loses: list[str] = field(default_factory=list)
    find_lists: str | int = "match"
    offers: Sequence[str] = (StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind)
    say: Callable[["Archive", str, list[Named]], Dataset] | None = None
    there: dict[str, str] = field(default_factory=dict)
    arrived: list[str] = field(default_factory=list)
    requests: list[tuple[str, list[Named]]] = field(default_factory=list)
    """Transaction UID, and what was asked for."""
    questions: list[list[str]] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)
    """How its reports were answered."""

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[RemoteEntity]:
        """Listen; yield how to call it."""
        entity = AE(ae_title="PACS")
        entity.add_supported_context(BasicTextSRStorage)
        for each in self.offers:
            entity.add_supported_context(each)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_ESTABLISHED, _established),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._act),
        ]
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        assert server is not None
        try:
            yield RemoteEntity(
                ae_title="PACS",
                host="127.0.0.1",
                port=int(server.server_address[1]),
                calling_ae_title="SENDER",
                connection_timeout_seconds=2,
            )
        finally:
            entity.shutdown()

    def tell(self, port: int, report: Dataset, *, called: str = "SENDER", calling: str = "PACS") -> int | None:
        """Report on an association of its own; return the status that this was answered with, None for no answer."""
        entity = AE(ae_title=calling)
        entity.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        association = entity.associate("127.0.0.1", port, ae_title=called, ext_neg=[role])
        if not association.is_established:
            return None
        make_pausable(association)
        try:
            assert association.accepted_contexts[0].as_scp
            return _send(association, report)
        finally:
            release(association)

    def truth(self, transaction: str, asked: Sequence[Named]) -> Dataset:
        """Return the report that says what is so."""
        here = [each for each in asked if self.there.get(each[1]) == each[0]]
        return report_of(transaction, here, [(each, 0x0112) for each in asked if each not in here])

    def _store(self, event: evt.Event) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.arrived.append(uid)
        if uid in self.loses:
            self.loses.remove(uid)
            self.there.pop(uid, None)
        else:
            self.there[uid] = str(event.request.AffectedSOPClassUID)
        return 0x0000

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier.SOPInstanceUID
        wanted = [asked] if isinstance(asked, str) else [str(each) for each in asked]
        self.questions.append([*wanted])
        if len(wanted) > 1 and self.find_lists != "match":
            if isinstance(self.find_lists, int):
                yield self.find_lists, None
            return
        for uid in wanted:
            if uid in self.there:
                found = Dataset()
                found.QueryRetrieveLevel = "IMAGE"
                found.SOPInstanceUID = uid
                yield 0xFF00, found

    def _act(self, event: evt.Event) -> tuple[int, None]:
        information = event.action_information
        transaction = str(information.TransactionUID)
        asked = [
            (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
            for item in information.ReferencedSOPSequence
        ]
        self.requests.append((transaction, asked))
        if self.report == "before":
            request = N_EVENT_REPORT()
            request.MessageID, request.EventTypeID = 1, 1
            request.AffectedSOPClassUID = StorageCommitmentPushModel
            request.AffectedSOPInstanceUID = StorageCommitmentPushModelInstance
            syntax = event.context.transfer_syntax
            told = encode(self.truth(transaction, asked), syntax.is_implicit_VR, syntax.is_little_endian)
            request.EventInformation = BytesIO(told or b"")
            event.assoc.dimse.send_msg(request, event.context.context_id)
        if self.report == "same" and self.status == 0x0000:
            report = self.say(self, transaction, asked) if self.say else self.truth(transaction, asked)
            answered = threading.Event()
            event.assoc.bind(evt.EVT_DIMSE_SENT, lambda _: answered.set())
            threading.Thread(target=self._report_when, args=(event.assoc, answered, report), daemon=True).start()
        return self.status, None

    def _report_when(self, association: Association, answered: threading.Event, report: Dataset) -> None:
        if answered.wait(30):
            self.answers.append(_send(association, report))


def _established(event: evt.Event) -> None:
    make_pausable(event.assoc)


def _send(association: Association, report: Dataset) -> int | None:
    status, _ = association.send_n_event_report(
        report,
        2 if "FailedSOPSequence" in report else 1,
        StorageCommitmentPushModel,
        StorageCommitmentPushModelInstance,
    )
    answered = status.get("Status")
    return None if answered is None else int(answered)
