"""Studies to run on, made on the fly: a CT of a body with organs and noise, as DICOM files and as NIfTI."""

from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

ORIGIN_LPS = (-160.0, -150.0, -40.0)


def voxels(shape: tuple[int, int, int]) -> NDArray[np.int16]:
    """Return Hounsfield units [plane, row, column]."""
    random = np.random.default_rng(1)
    z, y, x = np.mgrid[tuple(slice(-1, 1, size * 1j) for size in shape)]
    made = np.where(np.hypot(x, y * 1.25) < 0.9, 45.0, -1000.0)
    for _ in range(24):
        at, size, value = random.uniform(-0.6, 0.6, 3), random.uniform(0.08, 0.35, 3), random.uniform(-60, 160)
        inside = ((z - at[0]) / size[0]) ** 2 + ((y - at[1]) / size[1]) ** 2 + ((x - at[2]) / size[2]) ** 2 < 1
        made = np.where(inside, value, made)
    made += random.normal(0, 14, shape)
    return made.round().astype(np.int16)


def write(folder: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[Path, Path]:
    """Write a study of this shape and spacing [plane, row, column]; return the folders of its DICOM and its NIfTI."""
    pixels = voxels(shape)
    dicom, nifti = folder / "dicom", folder / "nifti"
    dicom.mkdir(parents=True)
    nifti.mkdir()
    for plane, each in enumerate(pixels):
        header = Dataset()
        header.file_meta = meta = FileMetaDataset()
        header.SOPClassUID = meta.MediaStorageSOPClassUID = CTImageStorage
        header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.1.{plane + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.7", "1.2.8", "1.2.9"
        header.ImageType, header.Modality, header.PatientID = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT", "BENCH"
        header.PatientName = header.StudyDate = header.StudyTime = ""
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [*ORIGIN_LPS[:2], ORIGIN_LPS[2] + plane * spacing[0]]
        header.PixelSpacing, header.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        header.InstanceNumber, header.RescaleSlope, header.RescaleIntercept = plane + 1, "1", "0"
        header.Rows, header.Columns = each.shape
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        header.PixelData = each.tobytes()
        header.save_as(dicom / f"{plane * 7919 % shape[0]:04d}.dcm", enforce_file_format=True)
    affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
    affine[:3, 3] = [-ORIGIN_LPS[0], -ORIGIN_LPS[1], ORIGIN_LPS[2]]
    nibabel.save(nibabel.Nifti1Image(pixels.transpose(), affine), nifti / "study.nii.gz")
    return dicom, nifti
