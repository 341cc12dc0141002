"""The attributes that rules may ask for, read from an encoded data set without its pixels."""

import io
import warnings
from collections.abc import Iterable, Mapping

from pydicom import Dataset, config
from pydicom.datadict import tag_for_keyword
from pydicom.errors import BytesLengthException
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
DESCRIBING = (
    "AccessionNumber",
    "AcquisitionContrast",
    "AcquisitionNumber",
    "BodyPartExamined",
    "BurnedInAnnotation",
    "Columns",
    "ContrastBolusAgent",
    "ConvolutionKernel",
    "EchoTime",
    "FlipAngle",
    "FrameOfReferenceUID",
    "ImageOrientationPatient",
    "ImageType",
    "InstanceNumber",
    "InversionTime",
    "Laterality",
    "MRAcquisitionType",
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturerModelName",
    "Modality",
    "NumberOfFrames",
    "PatientAge",
    "PatientID",
    "PatientPosition",
    "PhotometricInterpretation",
    "PixelSpacing",
    "PresentationIntentType",
    "ProtocolName",
    "RepetitionTime",
    "Rows",
    "ScanOptions",
    "ScanningSequence",
    "SequenceName",
    "SequenceVariant",
    "SeriesDescription",
    "SeriesNumber",
    "SliceThickness",
    "SpacingBetweenSlices",
    "StationName",
    "StudyDate",
    "StudyDescription",
    "ViewPosition",
    "VolumetricProperties",
)

MAXIMUM_VALUE_CHARACTERS = 256
MAXIMUM_COMPONENTS = 32


def read_header(data: bytes, transfer_syntax_uid: str, extra: Iterable[str] = ()) -> Mapping[str, tuple[str, ...]]:
    """Return the describing attributes and those named in `extra`, as strings, keyword -> components.

    Every keyword that was looked for is in the answer; an attribute that is absent, or whose value cannot be read,
    maps to the empty tuple. Values are bounded in length and number. `data` is inflated already.
    """
    keywords = dict.fromkeys((*IDENTITY, *DESCRIBING, *extra))
    tags = [tag for tag in map(tag_for_keyword, keywords) if tag is not None]
    with warnings.catch_warnings():
        # What is odd in a value is said again when it is used; here its text would reach the log.
        warnings.simplefilter("ignore")
        dataset = read_dataset(
            io.BytesIO(data),
            is_implicit_VR=transfer_syntax_uid == ImplicitVRLittleEndian,
            is_little_endian=transfer_syntax_uid != ExplicitVRBigEndian,
            stop_when=lambda tag, vr, length: tag >= 0x7FE00008,
            specific_tags=[*tags, 0x00080005],
        )
        return {keyword: _value(dataset, keyword) for keyword in keywords}


def _value(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    try:
        value = dataset.get(keyword)
    except (ValueError, TypeError, OverflowError, NotImplementedError, BytesLengthException, LookupError):
        return ()
    if value is None or value == "" or isinstance(value, bytes):
        return ()
    if isinstance(value, MultiValue | list | tuple):
        components = tuple(_text(component) for component in value[:MAXIMUM_COMPONENTS])
        return components if any(components) else ()
    return (_text(value),)


def _text(component: object) -> str:
    original = getattr(component, "original_string", component)
    return str(original).strip(" \0")[:MAXIMUM_VALUE_CHARACTERS]


# Hostile values must never raise while they are only being looked at.
config.settings.reading_validation_mode = config.IGNORE
