"""A modality or archive that announces studies: MPPS and IAN as a Service Class User, right or wrong."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    InstanceAvailabilityNotification,
    ModalityPerformedProcedureStep,
)

import tests.scanner  # noqa: F401  an answer repeats our UID, right or wrong
from meddaemon.results.dimse import make_pausable, release


@contextmanager
def modality(port: int, *, calling: str = "CT1") -> Iterator["Modality"]:
    """Open an association for MPPS and IAN."""
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    entity.add_requested_context(ModalityPerformedProcedureStep)
    entity.add_requested_context(InstanceAvailabilityNotification)
    association = entity.associate("127.0.0.1", port, ae_title="MEDDAEMON")
    assert association.is_established
    make_pausable(association)
    try:
        yield Modality(association)
    finally:
        if association.is_established:
            release(association)


class Modality:
    """One association; every method returns the elements of the answer."""

    def __init__(self, association: Association) -> None:
        self._association = association

    def begin(self, uid: str | None, attributes: Dataset) -> Dataset:
        """Begin a procedure step."""
        answer, _ = self._association.send_n_create(attributes, ModalityPerformedProcedureStep, uid)
        return answer

    def update(self, uid: str, attributes: Dataset) -> Dataset:
        """Say more of a procedure step."""
        answer, _ = self._association.send_n_set(attributes, ModalityPerformedProcedureStep, uid)
        return answer

    def notify(self, uid: str | None, attributes: Dataset) -> Dataset:
        """Say that instances are available."""
        answer, _ = self._association.send_n_create(attributes, InstanceAvailabilityNotification, uid)
        return answer


def data_set(**values: Any) -> Dataset:
    """Return a data set; a list of data sets becomes a sequence."""
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, DicomSequence(value) if isinstance(value, list) else value)
    return made


def step(*studies: str, status: str = "IN PROGRESS", **more: Any) -> Dataset:
    """Return what a modality says when it begins (PS3.4 Table F.7.2-1), names and all."""
    return data_set(
        ScheduledStepAttributesSequence=[
            data_set(StudyInstanceUID=uid, AccessionNumber="A1", RequestedProcedureID="R1") for uid in studies
        ],
        PatientName="Secret^Anna",
        PatientID="SECRET-7",
        PerformedProcedureStepID="P1",
        PerformedStationAETitle="CT1",
        PerformedProcedureStepStartDate="20260101",
        PerformedProcedureStepStartTime="1200",
        PerformedProcedureStepStatus=status,
        Modality="CT",
        **{"PerformedSeriesSequence": [], **more},
    )


def performed(
    series: Mapping[str, Sequence[str]], status: str | None = "COMPLETED", others: Sequence[str] = ()
) -> Dataset:
    """Return what a modality says when it ends: the instances of each series; `others` are no images."""
    said = data_set(
        PerformedSeriesSequence=[
            data_set(
                SeriesInstanceUID=uid,
                ProtocolName="HEAD",
                ReferencedImageSequence=[_reference(each) for each in named],
                ReferencedNonImageCompositeSOPInstanceSequence=[_reference(each) for each in others],
            )
            for uid, named in series.items()
        ]
    )
    if status is not None:
        said.PerformedProcedureStepStatus = status
    return said


def available(study: str, series: Mapping[str, Mapping[str, str]]) -> Dataset:
    """Return what an archive says: for each series, instance -> availability (PS3.4 Table R.3.2-1)."""
    return data_set(
        StudyInstanceUID=study,
        ReferencedPerformedProcedureStepSequence=[],
        ReferencedSeriesSequence=[
            data_set(
                SeriesInstanceUID=uid,
                ReferencedSOPSequence=[
                    data_set(
                        ReferencedSOPClassUID=CTImageStorage,
                        ReferencedSOPInstanceUID=instance,
                        InstanceAvailability=availability,
                        RetrieveAETitle="PACS",
                    )
                    for instance, availability in named.items()
                ],
            )
            for uid, named in series.items()
        ],
    )


def _reference(uid: str) -> Dataset:
    return data_set(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid)
