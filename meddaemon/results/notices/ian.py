"""Instance Availability Notification as a Service Class User: N-CREATE (PS3.4 Annex R)."""

from collections.abc import Collection, Mapping
from itertools import groupby

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.presentation import build_context

from meddaemon.db.notices import Available, Notice
from meddaemon.domain.uids import derived_uid
from meddaemon.results.dimse import RemoteEntity, associate, release
from meddaemon.results.notices.outbox import NOT_CONFIGURED, Reply
from meddaemon.results.transport import Verdict, verdict_of

INSTANCE_AVAILABILITY_NOTIFICATION = "1.2.840.10008.5.1.4.33"
ONLINE = "ONLINE"
"""Instance Availability (PS3.3 C.4.23.1.1): what is done at a destination can be retrieved from there."""
_PASSING = frozenset({0x0110, 0x0213})


def tell(remotes: Mapping[str, RemoteEntity], retrieve_ae_title: str, notice: Notice) -> Reply:
    """Tell one of `remotes`, by AE title, who retrieves from `retrieve_ae_title`; return what its answer means."""
    remote = remotes.get(notice.target)
    if remote is None:
        return NOT_CONFIGURED
    context = build_context(INSTANCE_AVAILABILITY_NOTIFICATION, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association, problem = associate(remote, [context])
    if association is None:
        return Reply(verdict=problem.verdict, reason=problem.reason)
    # Told again, it is the same notification.
    uid = derived_uid("IAN", retrieve_ae_title, remote.ae_title, *(each.sop_instance_uid for each in notice.objects))
    try:
        status, _ = association.send_n_create(
            notification(notice.study_instance_uid, notice.objects, retrieve_ae_title),
            INSTANCE_AVAILABILITY_NOTIFICATION,
            uid,
        )
    except (OSError, ValueError, RuntimeError) as failure:
        return Reply(verdict=Verdict.TRY_AGAIN, reason=f"could not tell: {type(failure).__name__}")
    finally:
        release(association)
    answered = status.get("Status")
    if answered is None:
        return Reply(verdict=Verdict.TRY_AGAIN, reason="no answer: the association was aborted or timed out")
    verdict, reason = verdict_of(answered)
    return Reply(verdict=Verdict.TRY_AGAIN if answered in _PASSING else verdict, reason=reason)


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
