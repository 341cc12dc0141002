"""Small valid CT and MR series written as DICOM files, for every test that needs real input of a known shape."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as ItemSequence
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from meddaemon.domain.uids import derived_uid

ORIENTATIONS: Mapping[str, tuple[float, ...]] = {
    "axial": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.8, 0.6, 0.0, -0.36, 0.48, 0.8),
}
"""ImageOrientationPatient by name; `oblique` is a rotation by 36.87 and 53.13 degrees (exact in decimals)."""


def position(
    plane: int,
    *,
    orientation: str | Sequence[float] = "axial",
    spacing: tuple[float, float, float] = (2.0, 1.5, 1.25),
    origin: tuple[float, float, float] = (-40.0, -30.0, 15.0),
) -> NDArray[np.float64]:
    """Return ImagePositionPatient of a plane: `origin` moved along the normal (row direction x column direction)."""
    directions = np.array(ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation)
    normal = np.cross(directions[:3], directions[3:])
    return np.asarray(origin) + plane * spacing[0] * normal


def affine_lps(
    *,
    orientation: str | Sequence[float] = "axial",
    spacing: tuple[float, float, float] = (2.0, 1.5, 1.25),
    origin: tuple[float, float, float] = (-40.0, -30.0, 15.0),
) -> NDArray[np.float64]:
    """Return the affine (plane, row, column, 1) -> LPS mm of the series that `make_series` writes."""
    directions = np.array(ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation)
    along_row, along_column = directions[:3], directions[3:]
    affine = np.eye(4)
    affine[:3, 0] = np.cross(along_row, along_column) * spacing[0]
    affine[:3, 1] = along_column * spacing[1]
    affine[:3, 2] = along_row * spacing[2]
    affine[:3, 3] = origin
    return affine


def make_series(
    folder: Path,
    *,
    planes: int = 5,
    rows: int = 12,
    columns: int = 10,
    orientation: str | Sequence[float] = "axial",
    spacing: tuple[float, float, float] = (2.0, 1.5, 1.25),
    origin: tuple[float, float, float] = (-40.0, -30.0, 15.0),
    modality: str = "MR",
    patient_name: str = "Doe^Jane",
    patient_id: str = "P-1",
    charset: str | Sequence[str] | None = "ISO_IR 100",
    transfer_syntax: str = ExplicitVRLittleEndian,
    voxels: NDArray[np.int16] | None = None,
    rescale: tuple[float, float] | None = None,
    seed: str = "1",
    study: str = "study",
    series_number: int = 3,
    attributes: Mapping[str, Any] | None = None,
    edit: Callable[[int, Dataset], object] | None = None,
) -> list[Path]:
    """Write one classic single-frame series and return its files in plane order (ascending along the normal).

    `spacing` is (planes, rows, columns) in mm; `voxels` is [plane, row, column] of stored values, by default a
    gradient with noise; `rescale` is (slope, intercept), by default (1, -1024) for CT and absent for MR. `seed`
    makes the series and its UIDs differ from another, `study` the study. `attributes` are set last (`None` deletes
    the attribute), then `edit(plane, dataset)` may do anything. Compressed transfer syntaxes go through
    `Dataset.compress`. InstanceNumber runs against the plane order and file names do too, so that nobody who sorts
    by either gets it right by accident.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directions = tuple(ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation)
    pixels = _gradient((planes, rows, columns), seed) if voxels is None else np.asarray(voxels, np.int16)
    planes, rows, columns = pixels.shape
    paths = []
    for plane in range(planes):
        dataset = _header(modality, patient_name, patient_id, charset, seed, study, series_number)
        dataset.SOPInstanceUID = derived_uid("factory", study, seed, str(plane))
        dataset.InstanceNumber = planes - plane
        dataset.ImageOrientationPatient = [float(f"{value:.10g}") for value in directions]
        at = position(plane, orientation=orientation, spacing=spacing, origin=origin)
        dataset.ImagePositionPatient = [float(f"{value:.10g}") for value in at]
        dataset.PixelSpacing = [spacing[1], spacing[2]]
        dataset.SliceThickness = spacing[0]
        _describe_pixels(dataset, rows, columns)
        slope, intercept = rescale or (1.0, -1024.0)
        if modality == "CT" or rescale is not None:
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
            dataset.RescaleType = "HU" if modality == "CT" else "US"
        dataset.PixelData = np.ascontiguousarray(pixels[plane]).astype("<i2").tobytes()
        for keyword, value in (attributes or {}).items():
            if value is None:
                dataset.pop(keyword, None)
            else:
                setattr(dataset, keyword, value)
        if edit is not None:
            edit(plane, dataset)
        path = folder / f"{planes - plane:04d}.dcm"
        _save(dataset, path, UID(transfer_syntax))
        paths.append(path)
    return paths


def make_enhanced(
    folder: Path,
    *,
    planes: int = 5,
    rows: int = 12,
    columns: int = 10,
    orientation: str | Sequence[float] = "axial",
    spacing: tuple[float, float, float] = (2.0, 1.5, 1.25),
    origin: tuple[float, float, float] = (-40.0, -30.0, 15.0),
    patient_name: str = "Doe^Jane",
    patient_id: str = "P-1",
    charset: str | Sequence[str] | None = "ISO_IR 100",
    voxels: NDArray[np.int16] | None = None,
    seed: str = "1",
    study: str = "study",
) -> Path:
    """Write one Enhanced MR instance whose frames are the planes in order (Enhanced MR: its geometry only)."""
    folder.mkdir(parents=True, exist_ok=True)
    directions = tuple(ORIENTATIONS[orientation] if isinstance(orientation, str) else orientation)
    pixels = _gradient((planes, rows, columns), seed) if voxels is None else np.asarray(voxels, np.int16)
    planes, rows, columns = pixels.shape
    dataset = _header("MR", patient_name, patient_id, charset, seed, study, 3)
    dataset.SOPClassUID = EnhancedMRImageStorage
    dataset.SOPInstanceUID = derived_uid("factory", study, seed, "enhanced")
    dataset.InstanceNumber = 1
    dataset.NumberOfFrames = planes
    dataset.AcquisitionDateTime = "20240102030405"
    dimension = derived_uid("factory", study, seed, "dimension")
    dataset.DimensionOrganizationSequence = ItemSequence([_item(DimensionOrganizationUID=dimension)])
    dataset.DimensionIndexSequence = ItemSequence(
        [
            _item(
                DimensionOrganizationUID=dimension,
                DimensionIndexPointer=0x00209057,  # InStackPositionNumber
                FunctionalGroupPointer=0x00209111,  # FrameContentSequence
            )
        ]
    )
    dataset.SharedFunctionalGroupsSequence = ItemSequence(
        [
            _item(
                PlaneOrientationSequence=[_item(ImageOrientationPatient=list(directions))],
                PixelMeasuresSequence=[_item(PixelSpacing=[spacing[1], spacing[2]], SliceThickness=spacing[0])],
            )
        ]
    )
    frames = []
    for plane in range(planes):
        at = position(plane, orientation=orientation, spacing=spacing, origin=origin)
        content = _item(StackID="1", InStackPositionNumber=plane + 1, DimensionIndexValues=[plane + 1])
        frames.append(
            _item(
                FrameContentSequence=[content],
                PlanePositionSequence=[_item(ImagePositionPatient=[float(f"{value:.10g}") for value in at])],
            )
        )
    dataset.PerFrameFunctionalGroupsSequence = ItemSequence(frames)
    _describe_pixels(dataset, rows, columns)
    dataset.PixelData = np.ascontiguousarray(pixels).astype("<i2").tobytes()
    path = folder / "enhanced.dcm"
    _save(dataset, path, ExplicitVRLittleEndian)
    return path


def _gradient(shape: tuple[int, int, int], seed: str) -> NDArray[np.int16]:
    noise = np.random.default_rng(sum(seed.encode())).integers(0, 40, shape)
    return (
        np.add.outer(np.arange(shape[0]) * 50, np.add.outer(np.arange(shape[1]) * 7, np.arange(shape[2]))) + noise
    ).astype(np.int16)


def _header(
    modality: str,
    patient_name: str,
    patient_id: str,
    charset: str | Sequence[str] | None,
    seed: str,
    study: str,
    series_number: int,
) -> Dataset:
    dataset = Dataset()
    if charset is not None:
        dataset.SpecificCharacterSet = charset if isinstance(charset, str) else list(charset)
    dataset.SOPClassUID = {"CT": CTImageStorage, "MR": MRImageStorage}[modality]
    dataset.Modality = modality
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if modality == "CT" else ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.PatientName = patient_name
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = "19700131"
    dataset.PatientSex = "F"
    dataset.PatientAge = "053Y"
    dataset.PatientPosition = "HFS"
    dataset.StudyInstanceUID = derived_uid("factory", study)
    dataset.SeriesInstanceUID = derived_uid("factory", study, seed)
    dataset.FrameOfReferenceUID = derived_uid("factory", study, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID = "S1"
    dataset.StudyDate, dataset.StudyTime = "20240102", "030405"
    dataset.SeriesDate, dataset.SeriesTime = "20240102", "030500"
    dataset.AcquisitionDate, dataset.AcquisitionTime = "20240102", "030510"
    dataset.ContentDate, dataset.ContentTime = "20240102", "030511"
    dataset.AccessionNumber = "A-17"
    dataset.ReferringPhysicianName = "Roe^Richard"
    dataset.StudyDescription = "Head"
    dataset.SeriesDescription = "T1 sagittal" if modality == "MR" else "Head 2.0"
    dataset.SeriesNumber = series_number
    dataset.AcquisitionNumber = 1
    dataset.Manufacturer = "Factory"
    dataset.ManufacturerModelName = "Builder"
    dataset.DeviceSerialNumber = "42"
    dataset.SoftwareVersions = "1.0"
    dataset.BodyPartExamined = "HEAD"
    if modality == "CT":
        dataset.KVP = 120.0
    else:
        dataset.ScanningSequence = "GR"
        dataset.SequenceVariant = "SP"
        dataset.ScanOptions = ""
        dataset.MRAcquisitionType = "3D"
        dataset.RepetitionTime, dataset.EchoTime = 2000.0, 3.0
        dataset.EchoTrainLength = 1
        dataset.MagneticFieldStrength = 3.0
    return dataset


def _describe_pixels(dataset: Dataset, rows: int, columns: int) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1


def _item(**attributes: Any) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def _save(dataset: Dataset, path: Path, transfer_syntax: UID) -> None:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    native = UID(transfer_syntax) in (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax) if native else ExplicitVRLittleEndian
    if not native:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
