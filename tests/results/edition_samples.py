"""Small objects of a result in every edition: segmentations, as masks and as label map, and reports on them."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    RLELossless,
    SegmentationStorage,
)
from queue_samples import analysis, claim, enqueue, received, register
from scripted_scp import LABELMAP

from meddaemon.db import deliveries, jobs, results
from meddaemon.db.deliveries import DeliveryRow
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.db.results import StoredObject
from meddaemon.domain.outlet import Edition, ObjectKind, Outlet, ReportForm, SegmentationForm
from meddaemon.domain.result import EncodedObject

BINARY, MAP = SegmentationForm.BINARY, SegmentationForm.LABELMAP
CLASSES = {
    ("SEG", "binary"): str(SegmentationStorage),
    ("SEG", "labelmap"): LABELMAP,
    ("SR", "3d"): str(Comprehensive3DSRStorage),
    ("SR", "2d"): str(ComprehensiveSRStorage),
    ("KO", ""): str(KeyObjectSelectionDocumentStorage),
    ("KO", "3d"): str(KeyObjectSelectionDocumentStorage),
}


def editions(*names: str) -> tuple[Edition, ...]:
    """Return editions as they are written: `labelmap/3d`."""
    pairs = (name.split("/") for name in names)
    return tuple(Edition(segmentation=SegmentationForm(one), report=ReportForm(other)) for one, other in pairs)


ALL = editions("labelmap/3d", "labelmap/2d", "binary/3d", "binary/2d")


def encoded(kind: str, edition: str, *, result: int = 1, refers_to: str = "") -> EncodedObject:
    """Return an object of a result; its UID tells kind and edition."""
    form = edition.rpartition("/")[2]
    names = ["", "binary", "labelmap", "binary/3d", "binary/2d", "labelmap/3d", "labelmap/2d"]
    uid = f"1.2.9.{result}.{list(ObjectKind).index(ObjectKind(kind))}.{names.index(edition)}"
    data_set = Dataset()
    data_set.SOPClassUID = CLASSES[kind, form]
    data_set.SOPInstanceUID = uid
    data_set.PatientID, data_set.PatientName = "nobody", "Nobody"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3", uid + ".1"
    data_set.Modality = kind
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if kind == "SEG":
        data_set.SamplesPerPixel, data_set.PhotometricInterpretation = 1, "MONOCHROME2"
        data_set.Rows, data_set.Columns, data_set.NumberOfFrames = 16, 8, 3
        data_set.BitsAllocated = data_set.BitsStored = 8
        data_set.HighBit, data_set.PixelRepresentation = 7, 0
        data_set.PixelData = pixels().tobytes()
        if form == "labelmap":
            data_set.compress(RLELossless, generate_instance_uid=False)
    if refers_to:
        item = Dataset()
        item.ReferencedSOPInstanceUID = refers_to
        data_set.ReferencedInstanceSequence = [item]
    content = BytesIO()
    dcmwrite(content, data_set, enforce_file_format=True)
    return EncodedObject(
        kind=kind,
        edition=edition,
        sop_class_uid=CLASSES[kind, form],
        sop_instance_uid=uid,
        series_instance_uid=uid + ".1",
        transfer_syntax_uid=str(data_set.file_meta.TransferSyntaxUID),
        content=content.getvalue(),
    )


def pixels() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return what a segmentation holds: frames of stripes."""
    return np.repeat(np.arange(48, dtype=np.uint8) % 5, 8).reshape(3, 16, 8)


def whole(*without: str, result: int = 1) -> list[EncodedObject]:
    """Return all that can be made of a result in the order of the encoders, but for what is marked with `without`."""
    segmentations = {form: encoded("SEG", form, result=result) for form in ("binary", "labelmap")}
    reports = [
        encoded("SR", f"{form}/{report}", result=result, refers_to=segmentation.sop_instance_uid)
        for form, segmentation in segmentations.items()
        for report in ("3d", "2d")
    ]
    made = [encoded("KO", "", result=result), *reports, *segmentations.values()]
    return [each for each in made if each.edition.partition("/")[0] not in without and each.edition not in without]


def post(
    database: Database,
    folder: Path,
    objects: Sequence[EncodedObject],
    *outlets: Outlet,
    priority: int = 5,
    names: Sequence[str] = ("pacs",),
) -> int:
    """Record a result with these objects for each destination; return its id."""
    study = register(database, received("an instance")).study_id
    enqueue(database, study, destinations=names, priority=priority, key=f"job {objects[0].sop_instance_uid}")
    job = claim(database)
    stored = [StoredObject.of(each) for each in objects]
    for each in stored:
        path_of(folder, each.sha256).parent.mkdir(parents=True, exist_ok=True)
        path_of(folder, each.sha256).write_bytes(each.encoded.content)
    with database.write() as connection:
        return results.record(
            connection,
            jobs.complete(connection, job),
            analysis(),
            stored,
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets=dict(zip(names, outlets, strict=True)),
        )


def rows(database: Database) -> list[DeliveryRow]:
    """Return the outbox, oldest first."""
    with database.read() as connection:
        return deliveries.listing(connection)


def states(database: Database) -> list[tuple[str, str, str]]:
    """Return kind, edition and state of each delivery."""
    return [(each.kind, each.edition, each.state.value) for each in rows(database)]
