"""Instance Availability Notification as a Service Class User: N-CREATE (PS3.4 Annex R)."""

from collections.abc import Collection, Mapping
from itertools import groupby

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import build_context

from meddaemon.db import notices
from meddaemon.db.engine import Database
from meddaemon.db.notices import Available, Notice
from meddaemon.domain.errors import LeaseLost
from meddaemon.domain.uids import derived_uid
from meddaemon.results.delivery import Retry
from meddaemon.results.dimse import Problem, RemoteEntity, associate, release
from meddaemon.results.transport import Verdict, verdict_of
from meddaemon.telemetry import log

INSTANCE_AVAILABILITY_NOTIFICATION = "1.2.840.10008.5.1.4.33"
ONLINE = "ONLINE"
"""Instance Availability (PS3.3 C.4.23.1.1): what is done at a destination can be retrieved from there."""
_PASSING = frozenset({0x0110, 0x0213})
_log = log(__name__)


def announce(
    database: Database,
    destination: str,
    retrieve_ae_title: str,
    ae_titles: Collection[str],
    remotes: Mapping[str, RemoteEntity],
    retry: Retry,
) -> bool:
    """Make notices of what has become done at a destination, and tell one of them; False when none waits.

    Who is told retrieves from `retrieve_ae_title`.
    """
    with database.read() as connection:
        new = notices.is_anything_new(connection, destination)
    if new:
        with database.write() as connection:
            notices.post(connection, destination, ae_titles)
    if not ae_titles:
        return False
    with database.write() as connection:
        notice = notices.claim(connection, destination, lease_seconds=retry.lease_seconds)
    if notice is None:
        return False
    remote = remotes.get(notice.ae_title)
    gone = Problem(verdict=Verdict.HOLD, reason="the AE that was to be told is not configured any more")
    answer = gone if remote is None else tell(remote, notice, retrieve_ae_title)
    said = {"notice": notice.id, "destination": destination, "ae_title": notice.ae_title, "reason": answer.reason}
    try:
        with database.write() as connection:
            if answer.verdict is Verdict.TAKEN:
                notices.accept(connection, notice, note=answer.reason)
                _log.info("told that a result is available", **said)
            elif answer.verdict is Verdict.HOLD:
                notices.refuse(connection, notice, reason=answer.reason)
                _log.error("a notice is held for a person", **said)
            else:
                delay = retry.delay(notice.attempt)
                notices.fail(connection, notice, reason=answer.reason, delay_seconds=delay)
                _log.warning("could not tell that a result is available, will try again", seconds=delay, **said)
    except LeaseLost as lost:
        _log.warning("another sender took this notice over", lost=str(lost), **said)
    return True


def tell(remote: RemoteEntity, notice: Notice, retrieve_ae_title: str) -> Problem:
    """Tell a peer; return what it answered, and what that means."""
    context = build_context(INSTANCE_AVAILABILITY_NOTIFICATION, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association, problem = associate(remote, [context])
    if association is None:
        return problem
    # Told again, it is the same notification.
    uid = derived_uid("IAN", retrieve_ae_title, remote.ae_title, *(each.sop_instance_uid for each in notice.objects))
    try:
        status, _ = association.send_n_create(
            notification(notice.study_instance_uid, notice.objects, retrieve_ae_title),
            INSTANCE_AVAILABILITY_NOTIFICATION,
            uid,
        )
    except (OSError, ValueError, RuntimeError) as failure:
        return Problem(verdict=Verdict.TRY_AGAIN, reason=f"could not tell: {type(failure).__name__}")
    finally:
        release(association)
    answered = status.get("Status")
    if answered is None:
        return Problem(verdict=Verdict.TRY_AGAIN, reason="no answer: the association was aborted or timed out")
    verdict, reason = verdict_of(answered)
    return Problem(verdict=Verdict.TRY_AGAIN if answered in _PASSING else verdict, reason=reason)


def notification(study_instance_uid: str, objects: Collection[Available], retrieve_ae_title: str) -> Dataset:
    """Return the attributes of a notification: those of PS3.4 Table R.3.2-1 and no others, which it forbids."""
    told = Dataset()
    told.ReferencedPerformedProcedureStepSequence = []
    told.StudyInstanceUID = study_instance_uid
    told.ReferencedSeriesSequence = []

    def series(each: Available) -> str:
        return each.series_instance_uid

    for uid, members in groupby(sorted(objects, key=series), key=series):
        item = Dataset()
        item.SeriesInstanceUID = uid
        item.ReferencedSOPSequence = [_referenced(each, retrieve_ae_title) for each in members]
        told.ReferencedSeriesSequence.append(item)
    return told


def _referenced(available: Available, retrieve_ae_title: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = available.sop_class_uid
    item.ReferencedSOPInstanceUID = available.sop_instance_uid
    item.InstanceAvailability = ONLINE
    item.RetrieveAETitle = retrieve_ae_title
    return item
