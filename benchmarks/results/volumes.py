"""A volume with many organs, and the series that it was drawn on."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from meddaemon.domain.codes import Code
from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Analysis, ResultStatus, Segment
from meddaemon.domain.uids import derived_uid
from meddaemon.domain.volume import Geometry
from meddaemon.results.encoding import EncodingRequest

_ANATOMY = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
_ORGAN = Code(value="12738006", scheme="SCT", meaning="Brain")


def organs(planes: int, size: int, segments: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return labels [plane, row, column] of ellipsoids, each on a sixth of the planes, some over others."""
    random = np.random.default_rng(1)
    labels = np.zeros((planes, size, size), np.uint8 if segments < 256 else np.uint16)
    across = np.arange(size)
    for number in range(1, segments + 1):
        centre, half = random.uniform(0, planes), max(2, planes / 12)
        row, column = random.uniform(0.12, 0.88, 2) * size
        radius = random.uniform(0.03, 0.1) * size
        for plane in range(max(0, int(centre - half)), min(planes, int(centre + half) + 1)):
            here = radius**2 * (1 - ((plane - centre) / half) ** 2)
            labels[plane][np.add.outer((across - row) ** 2, (across - column) ** 2) < here] = number
    return labels


def series(folder: Path, planes: int, size: int) -> list[Path]:
    """Write the headers of an axial CT; nobody looks at its pixels."""
    paths = []
    for plane in range(planes):
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, derived_uid("benchmark", str(plane))
        image.StudyInstanceUID, image.SeriesInstanceUID = (
            derived_uid("benchmark study"),
            derived_uid("benchmark series"),
        )
        image.FrameOfReferenceUID, image.PositionReferenceIndicator = derived_uid("benchmark frame"), ""
        image.Modality, image.PatientID, image.SeriesNumber = "CT", "benchmark", 1
        image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = size, size, [0.8, 0.8], 1.5
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 1.5 * plane]
        image.StudyDate, image.StudyTime = "20260101", "000000"
        image.file_meta = FileMetaDataset()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        paths.append(folder / f"{plane}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def request_for(paths: list[Path], labels: NDArray[np.uint8] | NDArray[np.uint16], segments: int) -> EncodingRequest:
    """Return what is asked of the encoders: labels that lie on the series."""
    affine = np.diag([1.5, 0.8, 0.8, 1.0])[[2, 1, 0, 3]]
    geometry = Geometry(
        shape=labels.shape,
        affine_lps=affine,
        frame_of_reference_uid=derived_uid("benchmark frame"),
        sop_instance_uids=tuple(derived_uid("benchmark", str(plane)) for plane in range(len(labels))),
        frame_numbers=(1,) * len(labels),
    )
    counts = np.zeros(segments + 1, np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=segments + 1)
    described = tuple(
        Segment(
            number=number,
            label=f"Organ {number}",
            category=_ANATOMY,
            type=_ORGAN,
            colour=(number * 37 % 256, number * 91 % 256, number * 151 % 256),
            laterality=None,
            voxel_count=int(counts[number]),
            tracking_id=f"organ {number}",
            tracking_uid=derived_uid("benchmark organ", str(number)),
        )
        for number in range(1, segments + 1)
    )
    analysis = Analysis(
        status=ResultStatus.PLAUSIBLE, reason="", segments=described, findings=(), labels=labels, geometry=geometry
    )
    contract = ModelContract(
        name="organs",
        title="Organs",
        version="1",
        manufacturer="benchmark",
        bundle=Path("/nowhere"),
        contract_file=Path("/nowhere/contract.toml"),
        digest="5c3e" * 16,
        weights_digest="77aa" * 16,
        inputs=(),
        output="pred",
        segments=(),
    )
    return EncodingRequest(analysis=analysis, contract=contract, sources=paths)
