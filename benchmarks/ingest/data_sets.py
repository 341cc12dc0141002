"""What is sent: synthetic CT, MR and mammography images that sender and proof make alike, each from four numbers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite, write_file_meta_info
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID

TRANSFER_SYNTAX_UID = str(ExplicitVRLittleEndian)
_ROOT = "1.2.826.0.1.3680043.8.498"
_RUN, _SHARE, _INDEX = 1_000_000, 10, 1_000_000
"""Added to the numbers, so that they have the same width in every UID."""
_ANY_RUN, _ANY_SHARE, _ANY_INDEX = 8_888_888, 88, 9_999_999
"""Stand in the template for the numbers that are filled in."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of image: 16 bits a pixel, and how many of them one run sends."""

    name: str
    sop_class_uid: str
    rows: int
    columns: int
    count: int

    @property
    def pixel_bytes(self) -> int:
        """Length of the Pixel Data."""
        return 2 * self.rows * self.columns

    def scaled(self, counts: float, sizes: float, least: int) -> "Kind":
        """Return the kind with this part of the instances, but at least `least` of them, and of the pixels."""
        edge = sizes**0.5
        return replace(
            self,
            count=max(least, round(self.count * counts)),
            rows=max(16, round(self.rows * edge)),
            columns=max(16, round(self.columns * edge)),
        )


KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="CT", sop_class_uid=str(CTImageStorage), rows=512, columns=512, count=300),
        Kind(name="MR", sop_class_uid=str(MRImageStorage), rows=256, columns=256, count=400),
        Kind(
            name="MG",
            sop_class_uid=str(DigitalMammographyXRayImageStorageForPresentation),
            rows=4608,
            columns=3328,
            count=20,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image: the data set in explicit VR little endian is `head` and then `pixels`."""

    sop_instance_uid: str
    head: bytes
    pixels: memoryview

    @property
    def size(self) -> int:
        """Length of the data set."""
        return len(self.head) + len(self.pixels)


def images(kind: Kind, run: int, share: int, shares: int) -> Iterator[Image]:
    """Yield what one association of a run sends: its share of the instances, a study of its own."""
    for index in range(share, kind.count, shares):
        yield image(kind, run, share, index)


def image(kind: Kind, run: int, share: int, index: int) -> Image:
    """Return one image: the same numbers give the same bytes in every process, others other UIDs and pixels."""
    offset = 2 * (index % 4096)
    return Image(
        sop_instance_uid=_sop_instance_uid(run, share, index),
        head=_filled_in(_head(kind), run, share, index),
        pixels=memoryview(_noise(kind.pixel_bytes))[offset : offset + kind.pixel_bytes],
    )


def write_files(kind: Kind, run: int, folder: Path) -> None:
    """Write a run that has one association as DICOM files (PS3.10), for senders that read files."""
    folder.mkdir(parents=True)
    for each in images(kind, run, 0, 1):
        buffer = DicomBytesIO()
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = UID(kind.sop_class_uid)
        meta.MediaStorageSOPInstanceUID = UID(each.sop_instance_uid)
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
        write_file_meta_info(buffer, meta, enforce_standard=True)
        with (folder / f"{each.sop_instance_uid}.dcm").open("wb") as file:
            file.writelines((bytes(128) + b"DICM", buffer.getvalue(), each.head, each.pixels))


def _prefix(run: int, share: int) -> str:
    return f"{_ROOT}.{run}.{share}"


def _sop_instance_uid(run: int, share: int, index: int) -> str:
    return f"{_prefix(_RUN + run, _SHARE + share)}.3.{_INDEX + index}"


def _filled_in(template: bytes, run: int, share: int, index: int) -> bytes:
    """Return the template with its numbers; nothing changes its length."""
    return template.replace(
        _prefix(_ANY_RUN, _ANY_SHARE).encode(), _prefix(_RUN + run, _SHARE + share).encode()
    ).replace(str(_ANY_INDEX).encode(), str(_INDEX + index).encode())


@cache
def _noise(size: int) -> bytes:
    """Return 12-bit noise, with so much more than `size` that every image begins elsewhere in it."""
    return np.random.default_rng(1).integers(0, 4096, size // 2 + 4096, dtype=np.uint16).tobytes()


@cache
def _head(kind: Kind) -> bytes:
    """Return the data set up to the value of Pixel Data."""
    prefix = _prefix(_ANY_RUN, _ANY_SHARE)
    dataset = _common(kind, prefix)
    {"CT": _describe_ct, "MR": _describe_mr, "MG": _describe_mg}[kind.name](dataset)
    dataset.SOPInstanceUID = f"{prefix}.3.{_ANY_INDEX}"
    dataset.InstanceNumber = str(_ANY_INDEX)
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    # (7FE0,0010) Pixel Data OW in explicit VR (PS3.5 7.1.2).
    return buffer.getvalue() + b"\xe0\x7f\x10\x00OW\x00\x00" + kind.pixel_bytes.to_bytes(4, "little")


def _common(kind: Kind, prefix: str) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.Modality = kind.sop_class_uid, kind.name
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{prefix}.1", f"{prefix}.2"
    dataset.FrameOfReferenceUID = f"{prefix}.4"
    dataset.PositionReferenceIndicator = ""
    dataset.PatientName, dataset.PatientID = "Bench^Ingest", "BENCH"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19700131", "F", "053Y"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20260102"
    dataset.StudyTime, dataset.SeriesTime = "030405", "030500"
    dataset.AcquisitionTime, dataset.ContentTime = "030510", "030511"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "S1", "A-17", "Roe^Richard"
    dataset.StudyDescription, dataset.SeriesDescription = "Benchmark", f"{kind.name} of noise"
    dataset.SeriesNumber, dataset.AcquisitionNumber = 1, 1
    dataset.Manufacturer, dataset.ManufacturerModelName = "meddaemon", "benchmark"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "1", "1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = kind.rows, kind.columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    return dataset


def _describe_slice(dataset: Dataset) -> None:
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness, dataset.PatientPosition = [0.5, 0.5], 1, "HFS"


def _describe_ct(dataset: Dataset) -> None:
    _describe_slice(dataset)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.BodyPartExamined, dataset.KVP = "CHEST", 120
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"


def _describe_mr(dataset: Dataset) -> None:
    _describe_slice(dataset)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    dataset.BodyPartExamined = "HEAD"
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
    dataset.MRAcquisitionType, dataset.RepetitionTime, dataset.EchoTime = "3D", 2000, 3
    dataset.EchoTrainLength, dataset.MagneticFieldStrength = 1, 3


def _describe_mg(dataset: Dataset) -> None:
    del dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.BodyPartExamined, dataset.PresentationIntentType = "BREAST", "FOR PRESENTATION"
    dataset.ImageLaterality, dataset.PatientOrientation = "L", ["A", "FR"]
    dataset.ImagerPixelSpacing, dataset.PositionerType = [0.07, 0.07], "MAMMOGRAPHIC"
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
    dataset.PresentationLUTShape, dataset.LossyImageCompression = "IDENTITY", "00"
    dataset.BurnedInAnnotation, dataset.BreastImplantPresent = "NO", "NO"
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.DetectorType, dataset.KVP, dataset.OrganExposed = "DIRECT", 28, "BREAST"
    dataset.AcquisitionContextSequence = []
    dataset.AnatomicRegionSequence = [_code("76752008", "SCT", "Breast")]
    view = _code("399162004", "SCT", "cranio-caudal")
    view.ViewModifierCodeSequence = []
    dataset.ViewCodeSequence = [view]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
