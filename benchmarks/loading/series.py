"""Series of one volume in every transfer syntax, with the same pixels in each."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

Plane = NDArray[np.int16]


def _rle(plane: Plane) -> bytes:
    return bytes(
        RLELosslessEncoder.encode(
            plane.tobytes(),
            encoding_plugin="gdcm",
            rows=plane.shape[0],
            columns=plane.shape[1],
            samples_per_pixel=1,
            bits_allocated=16,
            bits_stored=16,
            pixel_representation=1,
            photometric_interpretation="MONOCHROME2",
            number_of_frames=1,
        )
    )


def _jpeg(predictor: int) -> Callable[[Plane], bytes]:
    return lambda plane: imagecodecs.jpeg8_encode(
        plane.view(np.uint16), lossless=True, predictor=predictor, bitspersample=16
    )


def _j2k(**how: object) -> Callable[[Plane], bytes]:
    return lambda plane: imagecodecs.jpeg2k_encode(plane, codecformat="J2K", bitspersample=16, **how)


SYNTAXES: dict[str, tuple[str, Callable[[Plane], bytes] | None]] = {
    "uncompressed": (ExplicitVRLittleEndian, None),
    "implicit VR": (ImplicitVRLittleEndian, None),
    "big endian": (ExplicitVRBigEndian, None),
    "deflated": (DeflatedExplicitVRLittleEndian, None),
    "RLE": (RLELossless, _rle),
    "JPEG lossless": (JPEGLosslessSV1, _jpeg(1)),
    "JPEG lossless 14": (JPEGLossless, _jpeg(6)),
    "JPEG-LS": (JPEGLSLossless, lambda plane: imagecodecs.jpegls_encode(plane.view(np.uint16))),
    "JPEG-LS near": (JPEGLSNearLossless, lambda plane: imagecodecs.jpegls_encode(plane.view(np.uint16), level=2)),
    "JPEG 2000": (JPEG2000Lossless, _j2k(level=0, reversible=True)),
    "JPEG 2000 lossy": (JPEG2000, _j2k(level=60, reversible=False)),
    "HTJ2K": (HTJ2KLossless, lambda plane: imagecodecs.htj2k_encode(plane, reversible=True)),
    "HTJ2K lossy": (HTJ2K, lambda plane: imagecodecs.htj2k_encode(plane, level=0.0005, reversible=False)),
}
MAIN = ("uncompressed", "big endian", "deflated", "RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000", "HTJ2K")


def source_plane(path: Path | None) -> tuple[Plane, Dataset]:
    """The plane that all others are made of, and the header that goes with it: a real one, else a made one."""
    if path is not None and path.is_file():
        dataset = dcmread(path)
        plane = dataset.pixel_array.astype(np.int16)
        del dataset.PixelData
        return plane, dataset
    random = np.random.default_rng(1)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(np.hypot(x, y * 1.3) < 0.8, 40 + 60 * np.sin(9 * x) * np.cos(7 * y), -1000)
    plane = (body + random.normal(0, 12, body.shape) + 1024).astype(np.int16)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality, dataset.PatientID = CTImageStorage, "CT", "BENCH"
    dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept = [0.7, 0.7], "1", "-1024"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return plane, dataset


def write(folder: Path, name: str, source: Path | None, *, planes: int, distinct: int) -> list[Path]:
    """Write the series in one syntax; file names do not follow positions, pixels repeat after `distinct` planes."""
    uid, encode = SYNTAXES[name]
    folder.mkdir(parents=True, exist_ok=True)
    plane, template = source_plane(source)
    # A new data set, which has no byte order yet; what is unknown to pydicom cannot change its own.
    dataset = Dataset()
    dataset.update({each.tag: each for each in template if uid != ExplicitVRBigEndian or not each.tag.is_private})
    values = [np.roll(plane, (11 * index, 7 * index), (0, 1)) for index in range(min(distinct, planes))]
    pixels = [_encoded(each, uid, encode) for each in values]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    paths = []
    for index in range(planes):
        dataset.SOPInstanceUID = f"1.2.5.{index + 1}"
        dataset.ImagePositionPatient, dataset.InstanceNumber = [-170.5, -170.5, 1.25 * index], planes - index
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        meta.TransferSyntaxUID = uid
        # A new element each time: a converted one would be written in the byte order of the file before.
        dataset.add_new("PixelData", "OB" if encode else "OW", pixels[index % len(pixels)])
        if encode:
            dataset["PixelData"].is_undefined_length = True
        path = folder / f"{index * 7919 % planes:04d}.dcm"
        dataset.file_meta = meta
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _encoded(plane: Plane, uid: str, encode: Callable[[Plane], bytes] | None) -> bytes:
    if encode is not None:
        return encapsulate([encode(plane)])
    return plane.astype(">i2" if uid == ExplicitVRBigEndian else "<i2").tobytes()
