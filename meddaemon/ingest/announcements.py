"""MPPS and IAN as a Service Class Provider (PS3.4 F.7 and Annex R): what peers announce of studies.

Of all that they say we keep which studies they mean, which instances belong to these, and whether there will be more.
Names, descriptions and whatever else tells of a patient is neither kept nor logged. What is answered with Success is
committed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from meddaemon.db import announcements
from meddaemon.db.announcements import NewAnnouncement
from meddaemon.db.engine import Database, DatabaseUnavailable
from meddaemon.domain.completeness import AnnouncementSource
from meddaemon.domain.errors import NotFound
from meddaemon.domain.states import AnnouncementState
from meddaemon.ingest.receive import is_uid
from meddaemon.telemetry import log

MODALITY_PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
INSTANCE_AVAILABILITY_NOTIFICATION = "1.2.840.10008.5.1.4.33"

SUCCESS = 0x0000
INVALID_ATTRIBUTE_VALUE = 0x0106
"""PS3.7 C.5.11, and so for those below: C.5.19, C.5.5, C.5.7, C.5.9, C.5.17, C.5.13, C.5.14, C.5.24."""
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
NO_SUCH_SOP_INSTANCE = 0x0112
INVALID_SOP_INSTANCE = 0x0117
NO_SUCH_SOP_CLASS = 0x0118
MISSING_ATTRIBUTE = 0x0120
MISSING_ATTRIBUTE_VALUE = 0x0121
RESOURCE_LIMITATION = 0x0213
NO_LONGER_UPDATED = 0xA710
"""Error ID of a procedure step that is over (PS3.4 F.7.2.2.4)."""

MAXIMUM_STUDIES = 100
MAXIMUM_SERIES = 10_000
MAXIMUM_INSTANCES = 50_000
"""Of one announcement."""
_log = log(__name__)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a peer is answered: the status, where it failed a comment and the Error ID, the UID where it gave none."""

    status: int
    sop_instance_uid: str = ""
    comment: str = ""
    error_id: int | None = None

    def as_dataset(self) -> Dataset:
        """Return it as elements of a DIMSE response (PS3.7 C.4.2)."""
        elements = Dataset()
        elements.Status = self.status
        if self.comment:
            elements.ErrorComment = self.comment[:64]
        if self.error_id is not None:
            elements.ErrorID = self.error_id
        return elements

    def attributes(self) -> Dataset | None:
        """Return the UID in the form in which the library takes it (PS3.7 10.1.5.1.4)."""
        if not self.sop_instance_uid:
            return None
        assigned = Dataset()
        assigned.AffectedSOPInstanceUID = self.sop_instance_uid
        return assigned


class _Refused(Exception):
    """What a peer announces is not taken."""

    def __init__(self, status: int, comment: str, error_id: int | None = None) -> None:
        super().__init__(comment)
        self.answer = Answer(status=status, comment=comment, error_id=error_id)


class AnnouncementProvider:
    """Keeps what is announced before it answers; each method returns what to answer, and raises nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, sop_class_uid: str, sop_instance_uid: str, ae_title: str, attributes: Dataset) -> Answer:
        """Answer one N-CREATE request; an instance without a UID gets one."""
        uid = sop_instance_uid or str(generate_uid(prefix=None))

        def keep() -> None:
            if not is_uid(uid):
                raise _Refused(INVALID_SOP_INSTANCE, "the Affected SOP Instance UID is not a UID")
            new = _new(sop_class_uid, uid, ae_title, attributes)
            with self._database.write() as connection:
                if not announcements.keep(connection, new):
                    raise _Refused(DUPLICATE_SOP_INSTANCE, "there is an instance of this UID")
            _log.info(
                "announced",
                source=new.source.value,
                state=new.state.value,
                studies=len(new.study_instance_uids),
                instances=len(new.sop_instance_uids),
            )

        answer = _answered(keep)
        return answer if sop_instance_uid or answer.status else replace(answer, sop_instance_uid=uid)

    def set(self, sop_class_uid: str, sop_instance_uid: str, attributes: Dataset) -> Answer:
        """Answer one N-SET request: a procedure step goes on or ends (PS3.4 F.7.2.2)."""

        def amend() -> None:
            if sop_class_uid != MODALITY_PERFORMED_PROCEDURE_STEP:
                raise _Refused(NO_SUCH_SOP_CLASS, "nothing of this SOP Class can be changed")
            state = _status(attributes) if "PerformedProcedureStepStatus" in attributes else None
            named = _performed(attributes) if "PerformedSeriesSequence" in attributes else None
            with self._database.write() as connection:
                try:
                    amended = announcements.amend(
                        connection,
                        sop_instance_uid,
                        AnnouncementSource.PROCEDURE_STEP,
                        state=state,
                        sop_instance_uids=named,
                    )
                except NotFound as absent:
                    raise _Refused(NO_SUCH_SOP_INSTANCE, "no such procedure step") from absent
                if not amended:
                    over = "Performed Procedure Step Object may no longer be updated"
                    raise _Refused(PROCESSING_FAILURE, over, NO_LONGER_UPDATED)
                if (
                    state is AnnouncementState.COMPLETED
                    and named is None
                    and not announcements.names_any(connection, sop_instance_uid)
                ):
                    # Refused here, where the transaction is rolled back: the step is in progress as before.
                    raise _Refused(MISSING_ATTRIBUTE, "Performed Series Sequence is missing")
            _log.info(
                "announcement changed",
                state=state.value if state else "",
                instances=None if named is None else len(named),
            )

        return _answered(amend)


def _answered(act: Callable[[], None]) -> Answer:
    try:
        act()
    except _Refused as refused:
        _log.warning("refused an announcement", status=f"{refused.answer.status:04X}", reason=refused.answer.comment)
        return refused.answer
    except DatabaseUnavailable as failure:
        _log.error("cannot keep an announcement", reason=type(failure).__name__)
        return Answer(status=RESOURCE_LIMITATION, comment="cannot be kept now")
    return Answer(status=SUCCESS)


def _new(sop_class_uid: str, sop_instance_uid: str, ae_title: str, attributes: Dataset) -> NewAnnouncement:
    if sop_class_uid == MODALITY_PERFORMED_PROCEDURE_STEP:
        if _status(attributes) is not AnnouncementState.IN_PROGRESS:
            # PS3.4 F.7.2.1.2.
            raise _Refused(INVALID_ATTRIBUTE_VALUE, "a procedure step begins IN PROGRESS")
        scheduled = _items(attributes, "ScheduledStepAttributesSequence", MAXIMUM_STUDIES)
        return NewAnnouncement(
            source=AnnouncementSource.PROCEDURE_STEP,
            sop_instance_uid=sop_instance_uid,
            ae_title=ae_title,
            state=AnnouncementState.IN_PROGRESS,
            study_instance_uids=tuple(_uid(item, "StudyInstanceUID") for item in scheduled),
            sop_instance_uids=_performed(attributes) if attributes.get("PerformedSeriesSequence") else (),
        )
    if sop_class_uid == INSTANCE_AVAILABILITY_NOTIFICATION:
        return NewAnnouncement(
            source=AnnouncementSource.AVAILABILITY,
            sop_instance_uid=sop_instance_uid,
            ae_title=ae_title,
            state=AnnouncementState.COMPLETED,
            study_instance_uids=(_uid(attributes, "StudyInstanceUID"),),
            sop_instance_uids=_bounded(_available(attributes)),
        )
    raise _Refused(NO_SUCH_SOP_CLASS, "no such SOP Class")


def _status(attributes: Dataset) -> AnnouncementState:
    said = _value(attributes, "PerformedProcedureStepStatus")
    try:
        return AnnouncementState(said)
    except ValueError as unknown:
        raise _Refused(INVALID_ATTRIBUTE_VALUE, "Performed Procedure Step Status is none") from unknown


def _performed(attributes: Dataset) -> tuple[str, ...]:
    """Return the instances of all performed series, images and others; a series may have none (PS3.4 F.7.2.1.1).

    A step that was discontinued before there was any series has none, whatever Note 2 of Table F.7.2-1 says.
    """
    empty = attributes.get("PerformedProcedureStepStatus") != AnnouncementState.COMPLETED
    series = _items(attributes, "PerformedSeriesSequence", MAXIMUM_SERIES, may_be_empty=empty)
    return _bounded(
        _uid(item, "ReferencedSOPInstanceUID")
        for each in series
        for keyword in ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")
        for item in each.get(keyword) or ()
    )


def _available(attributes: Dataset) -> Iterator[str]:
    """Yield the instances that can be had: on line or not, but not those that cannot (PS3.3 C.4.23.1.1)."""
    for series in _items(attributes, "ReferencedSeriesSequence", MAXIMUM_SERIES):
        for item in _items(series, "ReferencedSOPSequence", MAXIMUM_INSTANCES):
            uid, availability = _uid(item, "ReferencedSOPInstanceUID"), _value(item, "InstanceAvailability")
            if availability not in {"ONLINE", "NEARLINE", "OFFLINE", "UNAVAILABLE"}:
                raise _Refused(INVALID_ATTRIBUTE_VALUE, "Instance Availability is none")
            if availability != "UNAVAILABLE":
                yield uid


def _bounded(uids: Iterator[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for uid in uids:
        found[uid] = None
        if len(found) > MAXIMUM_INSTANCES:
            raise _Refused(RESOURCE_LIMITATION, f"more than {MAXIMUM_INSTANCES} instances")
    return tuple(found)


def _items(dataset: Dataset, keyword: str, maximum: int, *, may_be_empty: bool = False) -> list[Dataset]:
    if keyword not in dataset:
        raise _Refused(MISSING_ATTRIBUTE, f"{keyword} is missing")
    items = list(dataset.get(keyword) or ())
    if not items and not may_be_empty:
        raise _Refused(MISSING_ATTRIBUTE_VALUE, f"{keyword} is empty")
    if len(items) > maximum:
        raise _Refused(RESOURCE_LIMITATION, f"{keyword} has more than {maximum} items")
    return items


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = _value(dataset, keyword)
    if not is_uid(uid):
        raise _Refused(INVALID_ATTRIBUTE_VALUE, f"{keyword} is no UID")
    return uid


def _value(dataset: Dataset, keyword: str) -> str:
    if keyword not in dataset:
        raise _Refused(MISSING_ATTRIBUTE, f"{keyword} is missing")
    value = str(dataset.get(keyword) or "").strip(" \0")
    if not value:
        raise _Refused(MISSING_ATTRIBUTE_VALUE, f"{keyword} is empty")
    return value
