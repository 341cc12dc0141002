"""Small images and recordings that are no slices of a volume, written as DICOM files."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    TwelveLeadECGWaveformStorage,
)


def image(
    folder: Path, pixels: np.ndarray, *, name: str = "1", content: bytes | None = None, **attributes: Any
) -> Path:
    """Write an image of pixels [row, column], [frame, row, column] or [row, column, 3]; None removes an attribute."""
    syntax = attributes.pop("syntax", ExplicitVRLittleEndian)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{name}"
    path = folder / f"{name}.dcm"
    dataset = FileDataset(path, {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=True)
    colour = pixels.shape[-1] == 3 and pixels.ndim > 2
    bits = 8 * pixels.dtype.itemsize
    said: dict[str, Any] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": f"1.2.3.{name}",
        "StudyInstanceUID": "1.2.4",
        "SeriesInstanceUID": "1.2.5",
        "PatientID": "NOBODY",
        "InstanceNumber": name,
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"PlanarConfiguration": 0} if colour else {}),
    }
    frames = pixels if pixels.ndim > 2 and not colour else pixels[np.newaxis]
    said |= {"Rows": frames.shape[1], "Columns": frames.shape[2], "NumberOfFrames": len(frames)}
    for keyword, value in {**said, **attributes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if content is None:
        dataset.add_new("PixelData", "OW", pixels.tobytes() + b"\0" * (pixels.nbytes % 2))
    else:
        dataset.add_new("PixelData", "OB", encapsulate([content]))
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)
    return path


NUMBERS = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64, **{f"V{n}": n + 2 for n in range(1, 7)}}


def channel(lead: str, *, unit: str = "uV", scheme: str = "SCPECG", **attributes: object) -> Dataset:
    definition, source, units = Dataset(), Dataset(), Dataset()
    source.CodeValue = f"5.6.3-9-{NUMBERS[lead]}" if scheme == "SCPECG" else f"2:{NUMBERS[lead]}"
    source.CodingSchemeDesignator, source.CodeMeaning = scheme, f"Lead {lead}"
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", unit
    definition.ChannelSourceSequence = [source]
    definition.ChannelSensitivityUnitsSequence = [units]
    for keyword, value in {"ChannelSensitivity": 1, **attributes}.items():
        setattr(definition, keyword, value)
    return definition


def group(samples: np.ndarray, channels: list[Dataset], **attributes: object) -> Dataset:
    """A multiplex group of samples [channel, sample]."""
    item = Dataset()
    item.WaveformOriginality = "ORIGINAL"
    item.NumberOfWaveformChannels, item.NumberOfWaveformSamples = samples.shape
    item.SamplingFrequency = 500
    item.WaveformBitsAllocated = 8 * samples.dtype.itemsize
    item.WaveformSampleInterpretation = {"i1": "SB", "u1": "UB", "i2": "SS", "u2": "US", "i4": "SL", "u4": "UL"}[
        samples.dtype.str[1:]
    ]
    item.ChannelDefinitionSequence = channels
    item.add_new("WaveformData", "OB" if samples.dtype.itemsize == 1 else "OW", samples.T.tobytes())
    for keyword, value in attributes.items():
        if value is None:
            delattr(item, keyword)
        else:
            setattr(item, keyword, value)
    return item


def recording(folder: Path, *groups: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = TwelveLeadECGWaveformStorage, "1.2.3"
    little = syntax != ExplicitVRBigEndian
    dataset = FileDataset(folder / "ecg.dcm", {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=little)
    dataset.SOPClassUID, dataset.SOPInstanceUID = TwelveLeadECGWaveformStorage, "1.2.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = "1.2.6", "1.2.7", "NOBODY"
    dataset.Modality = "ECG"
    if groups:
        dataset.WaveformSequence = list(groups)
    dataset.save_as(folder / "ecg.dcm", enforce_file_format=True)
    return folder / "ecg.dcm"
