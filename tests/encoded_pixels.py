"""Files of one greyscale image in any transfer syntax, encoded here: twins of each other."""

from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.native import _encode_frame  # pydicom's public encoder takes no 32-bit RLE
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

Raw = NDArray[np.generic]
"""A frame as an encoder takes it: unsigned, the sign in its highest stored bit, none above."""


def _j2k(signed: bool, **how: object) -> Callable[[Raw, Raw, int], bytes]:
    """J2K and HTJ2K have signs of their own."""
    return lambda values, raw, bits: imagecodecs.jpeg2k_encode(
        values if signed else raw, codecformat="J2K", bitspersample=bits, **how
    )


ENCODERS: dict[str, Callable[[Raw, Raw, int], bytes]] = {
    RLELossless: lambda _, raw, __: rle(raw),
    JPEGBaseline8Bit: lambda _, raw, __: imagecodecs.jpeg8_encode(raw, level=95),
    JPEGExtended12Bit: lambda _, raw, bits: imagecodecs.jpeg8_encode(raw, level=97, bitspersample=bits),
    JPEGLossless: lambda _, raw, bits: imagecodecs.jpeg8_encode(raw, lossless=True, predictor=6, bitspersample=bits),
    JPEGLosslessSV1: lambda _, raw, bits: imagecodecs.jpeg8_encode(raw, lossless=True, predictor=1, bitspersample=bits),
    JPEGLSLossless: lambda _, raw, __: imagecodecs.jpegls_encode(raw),
    JPEGLSNearLossless: lambda _, raw, __: imagecodecs.jpegls_encode(raw, level=3),
    JPEG2000Lossless: _j2k(True, level=0, reversible=True),
    JPEG2000: _j2k(True, level=60, reversible=False),
    HTJ2KLossless: lambda values, _, __: imagecodecs.htj2k_encode(values, reversible=True),
    HTJ2KLosslessRPCL: lambda values, _, __: imagecodecs.htj2k_encode(values, reversible=True, tlm=True),
    HTJ2K: lambda values, _, __: imagecodecs.htj2k_encode(values, level=0.0005, reversible=False),
}


def rle(raw: Raw) -> bytes:
    """PS3.5 annex G."""

    class Runner:
        rows, columns = raw.shape
        samples_per_pixel, bits_allocated = 1, 8 * raw.dtype.itemsize

        def get_option(self, *_: object) -> str:
            return "<"

    return bytes(_encode_frame(raw.astype(raw.dtype.newbyteorder("<")).tobytes(), Runner()))  # type: ignore[arg-type]


def image(bits: int, *, signed: bool, frames: int = 1, rows: int = 37, columns: int = 53, seed: int = 1) -> Raw:
    """Smooth and noisy frames [frame, row, column] that use the whole range of their bits, both ends included."""
    random = np.random.default_rng([seed, bits, signed])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    slope = np.add.outer(np.arange(rows), np.arange(columns)) / (rows + columns)
    noise = random.normal(0, (high - low) / 200, (frames, rows, columns))
    values = np.clip(low + (slope + np.linspace(0, 0.2, frames)[:, None, None]) * (high - low) + noise, low, high)
    values[:, 0, 0], values[:, -1, -1] = low, high
    size = 8 if bits <= 8 else 16 if bits <= 16 else 32
    return values.round().astype(f"{'i' if signed else 'u'}{size // 8}")


def raw_of(values: Raw, bits: int) -> Raw:
    unsigned = values.view(f"u{values.dtype.itemsize}")
    return unsigned & unsigned.dtype.type((1 << bits) - 1)


def described(values: Raw, bits: int, transfer_syntax_uid: str) -> Dataset:
    """A data set with everything about the pixels but the pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = transfer_syntax_uid
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.dtype.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    return dataset


def write(path: Path, values: Raw, bits: int, transfer_syntax_uid: str, **how: object) -> Path:
    """Write frames [frame, row, column] as one file; `how` goes to pydicom's `encapsulate`."""
    dataset = described(values, bits, transfer_syntax_uid)
    if transfer_syntax_uid in ENCODERS:
        raw = raw_of(values, bits)
        streams = [ENCODERS[transfer_syntax_uid](values[index], raw[index], bits) for index in range(len(values))]
        dataset.PixelData = encapsulate(streams, **how)  # type: ignore[arg-type]
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
    else:
        order = ">" if transfer_syntax_uid == ExplicitVRBigEndian else "<"
        dataset.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
        if len(dataset.PixelData) % 2:
            dataset.PixelData += b"\0"
    dataset.save_as(path, enforce_file_format=True)
    return path


NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
LOSSLESS = (
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
)
