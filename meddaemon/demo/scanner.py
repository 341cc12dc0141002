"""The demo's scanner: writes a NIfTI volume as a sagittal DICOM MR series, as a T1 MPRAGE would come."""

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from meddaemon.domain.errors import MeddaemonError
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derived_uid, digest_of

PATIENT_NAME = "Demo^Average Head"
PATIENT_ID = "MEDDAEMON-DEMO"


class NotAHead(MeddaemonError):
    """The volume given to the demo cannot be written as an MR series."""


def scan(volume: Path, folder: Path) -> list[Path]:
    """Write the volume as one file for each sagittal plane, from right to left; return the files.

    The voxels and their places in the patient are those of the NIfTI file: its RAS affine becomes positions and
    orientation in LPS, exact to the digits that a Decimal String holds. Raises NotAHead.
    """
    image = nibabel.as_closest_canonical(nibabel.load(volume))
    if len(image.shape) != 3:
        raise NotAHead(f"{volume.name} has {len(image.shape)} dimensions, a volume has 3")
    voxels = _as_stored(np.asanyarray(image.dataobj))
    # From [x, y, z] towards right→left, posterior→anterior, inferior→superior (RAS, LPS counts the other way) to
    # planes [x], rows from superior to inferior, columns from anterior to posterior, as sagittal images are shown.
    planes = np.ascontiguousarray(voxels[:, ::-1, ::-1].transpose(0, 2, 1))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    along_row, down_column = -affine[:3, 1] / spacing[1], -affine[:3, 2] / spacing[2]
    if abs(along_row @ down_column) > 1e-3:
        raise NotAHead(f"the axes of {volume.name} are not at right angles")
    corner = affine @ [0, image.shape[1] - 1, image.shape[2] - 1, 1]
    identity = digest_of(volume.name, planes.tobytes().hex()[:4096], str(planes.shape), str(affine.tolist()))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, plane in enumerate(planes):
        header = _header(identity, index)
        header.ImagePositionPatient = _decimals(corner[:3] + index * affine[:3, 0])
        header.ImageOrientationPatient = _decimals([*along_row, *down_column])
        header.PixelSpacing = _decimals([spacing[2], spacing[1]])
        header.SliceThickness = _decimals([spacing[0]])[0]
        _set_pixels(header, plane)
        files.append(folder / f"IM{index + 1:04d}.dcm")
        header.save_as(files[-1], enforce_file_format=True)
    return files


def _as_stored(voxels: NDArray[np.generic]) -> NDArray[np.uint16]:
    """Return the voxels as 12 bits can hold them: unchanged where they can, else stretched over the range."""
    values = np.nan_to_num(voxels.astype(np.float64))
    if np.issubdtype(voxels.dtype, np.integer) and values.min() >= 0 and values.max() <= 4095:
        return values.astype(np.uint16)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        raise NotAHead("every voxel has the same value")
    return np.round((values - low) / (high - low) * 4095).astype(np.uint16)


def _header(identity: str, index: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = UID(derived_uid(identity, "instance", str(index)))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    header = FileDataset("", Dataset(), file_meta=meta, preamble=bytes(128))
    header.SpecificCharacterSet = "ISO_IR 192"
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    header.PatientName, header.PatientID = PATIENT_NAME, PATIENT_ID
    header.PatientBirthDate, header.PatientSex, header.PatientAge = "", "O", ""
    header.StudyInstanceUID = derived_uid(identity, "study")
    header.StudyDate, header.StudyTime, header.StudyID = "20260101", "080000", "1"
    header.AccessionNumber, header.ReferringPhysicianName = "DEMO1", ""
    header.StudyDescription = "MR head, average of many"
    header.SeriesInstanceUID = derived_uid(identity, "series")
    header.SeriesDate, header.SeriesTime, header.SeriesNumber = "20260101", "080100", 1
    header.ContentDate, header.ContentTime = "20260101", "080100"
    header.AcquisitionDate, header.AcquisitionTime, header.AcquisitionNumber = "20260101", "080100", 1
    header.Modality, header.BodyPartExamined, header.PatientPosition = "MR", "HEAD", "HFS"
    header.SeriesDescription = header.ProtocolName = "T1 MPRAGE sagittal"
    header.Manufacturer, header.ManufacturerModelName = "meddaemon", "demo scanner"
    header.ScanningSequence, header.SequenceVariant = ["GR", "IR"], ["SP", "MP"]
    header.ScanOptions, header.MRAcquisitionType = "", "3D"
    header.RepetitionTime, header.EchoTime, header.InversionTime, header.FlipAngle = "2300", "2.9", "900", "9"
    header.EchoTrainLength, header.MagneticFieldStrength = 1, "3"
    header.FrameOfReferenceUID = derived_uid(identity, "frame of reference")
    header.PositionReferenceIndicator = ""
    header.InstanceNumber = index + 1
    return header


def _set_pixels(header: FileDataset, plane: NDArray[np.uint16]) -> None:
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = plane.shape
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.WindowCenter, header.WindowWidth = str(int(plane.max()) // 2), str(int(plane.max()) + 1)
    header.PixelData = plane.tobytes()


def _decimals(values: object) -> list[str]:
    """Return numbers as Decimal Strings of at most 16 characters (PS3.5 6.2)."""
    return [f"{value:.9f}"[:16] for value in np.asarray(values, dtype=np.float64).tolist()]
