"""Telling a peer what we have committed to: N-EVENT-REPORT, on an association of our own (PS3.4 J.3.3)."""

from pydicom.dataset import Dataset
from pynetdicom import build_role
from pynetdicom.presentation import build_context

from meddaemon.domain.commitment import (
    STORAGE_COMMITMENT_PUSH_MODEL,
    STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
    CommitmentReport,
    ReferencedInstance,
)
from meddaemon.results.dimse import Problem, RemoteEntity, associate, release
from meddaemon.results.transport import Verdict

SUCCESSFUL, FAILURES_EXIST = 1, 2
"""Event Type IDs (PS3.4 J.3.3.1.1)."""


def report(remote: RemoteEntity, outcome: CommitmentReport) -> Problem | None:
    """Tell the peer the outcome; return what went wrong, None when it has heard."""
    # We ask for the association, and yet are the provider of the service: roles are negotiated (PS3.7 D.3.3.4).
    role = build_role(STORAGE_COMMITMENT_PUSH_MODEL, scp_role=True)
    association, problem = associate(remote, [build_context(STORAGE_COMMITMENT_PUSH_MODEL)], [role])
    if association is None:
        return problem
    try:
        if not any(context.as_scp for context in association.accepted_contexts):
            return Problem(verdict=Verdict.HOLD, reason="the peer does not take reports of storage commitment")
        status, _ = association.send_n_event_report(
            event_information(outcome),
            FAILURES_EXIST if outcome.failed else SUCCESSFUL,
            STORAGE_COMMITMENT_PUSH_MODEL,
            STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
        )
    except (OSError, ValueError, RuntimeError) as failure:
        return Problem(verdict=Verdict.TRY_AGAIN, reason=f"could not report: {type(failure).__name__}")
    finally:
        release(association)
    answered = status.get("Status")
    if answered == 0x0000:
        return None
    if answered is None:
        return Problem(verdict=Verdict.TRY_AGAIN, reason="no answer: the association was aborted or timed out")
    return Problem(verdict=Verdict.TRY_AGAIN, reason=f"the peer answered {answered:04X}H")


def event_information(outcome: CommitmentReport) -> Dataset:
    """Return the Event Information of a report: each instance that was asked for, once (PS3.4 Table J.3-2)."""
    information = Dataset()
    information.TransactionUID = outcome.transaction_uid
    if outcome.committed:
        information.ReferencedSOPSequence = [_item(each) for each in outcome.committed]
    if outcome.failed:
        information.FailedSOPSequence = [_item(each) for each in outcome.failed]
        for item, reason in zip(information.FailedSOPSequence, outcome.failed.values(), strict=True):
            item.FailureReason = int(reason)
    return information


def _item(referenced: ReferencedInstance) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = referenced.sop_class_uid
    item.ReferencedSOPInstanceUID = referenced.sop_instance_uid
    return item
