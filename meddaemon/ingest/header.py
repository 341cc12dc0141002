"""The attributes that rules may ask for, read from an encoded data set without its pixels.

Values are decoded here, from where the scan found them, and not by pydicom: its reader guesses where this one knows,
and raises on hostile values in a dozen ways.
"""

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pydicom.charset import convert_encodings, decode_bytes, default_encoding, python_encoding
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian
from pydicom.valuerep import TEXT_VR_DELIMS

from meddaemon.ingest import scan

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
    "IssuerOfPatientID",
    "Laterality",
    "MRAcquisitionType",
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturerModelName",
    "Modality",
    "NumberOfFrames",
    "PatientAge",
    "PatientBirthDate",
    "PatientID",
    "PatientName",
    "PatientPosition",
    "PatientSex",
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


_SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION = 0x00080005, 0x00280103
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_PLAIN_TEXT = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"})
_ENCODED_TEXT = frozenset({"LO", "PN", "SH", "UC"})
_SINGLE_TEXT = frozenset({"LT", "ST", "UT"})
_MAXIMUM_VALUE_BYTES = 8 * MAXIMUM_VALUE_CHARACTERS * MAXIMUM_COMPONENTS


def read_header(data: bytes, transfer_syntax_uid: str, extra: Iterable[str] = ()) -> Mapping[str, tuple[str, ...]]:
    """Return the describing attributes and those named in `extra`, as strings, keyword -> components.

    Every keyword that was looked for is in the answer; an attribute that is absent, or whose value cannot be read,
    maps to the empty tuple. Values are bounded in length and number. `data` is inflated already.

    Raises scan.Malformed unless `data` is one whole data set in this transfer syntax.
    """
    wanted = _tags(tuple(extra))
    elements = scan.check(data, transfer_syntax_uid, {*wanted.values(), _SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION})
    values = _Values(data, elements, little=transfer_syntax_uid != ExplicitVRBigEndian)
    return {keyword: values.of(tag) for keyword, tag in wanted.items()}


@lru_cache(maxsize=64)
def _tags(extra: tuple[str, ...]) -> Mapping[str, int]:
    keywords = dict.fromkeys((*IDENTITY, *DESCRIBING, *extra))
    return {keyword: tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}


class _Values:
    """Decodes the values of one data set."""

    def __init__(self, data: bytes, elements: Mapping[int, scan.Element], *, little: bool) -> None:
        self._data = data
        self._elements = elements
        self._little = little
        self._encodings: tuple[str, ...] = (default_encoding,)
        self._encodings = _encodings(self.of(_SPECIFIC_CHARACTER_SET))

    def of(self, tag: int) -> tuple[str, ...]:
        """Return the components of an element as strings; the empty tuple where there is nothing to be read."""
        element = self._elements.get(tag)
        if element is None:
            return ()
        written = element.vr.decode("ascii") if element.vr else "UN"
        # A value of unknown VR is encoded in little endian (PS3.5 6.2.2).
        little = self._little or written == "UN"
        vr = self._usual_vr(tag) if written == "UN" else written
        value = self._data[element.start : element.start + min(element.length, _MAXIMUM_VALUE_BYTES)]
        components = _numbers(value, vr, little=little) if vr in {*_NUMBERS, "AT"} else self._texts(value, vr)
        bounded = tuple(_bounded(component) for component in components[:MAXIMUM_COMPONENTS])
        return bounded if any(bounded) else ()

    def _usual_vr(self, tag: int) -> str:
        vr = dictionary_VR(tag)
        if vr == "US or SS":
            return "SS" if self.of(_PIXEL_REPRESENTATION) == ("1",) else "US"
        return vr

    def _texts(self, value: bytes, vr: str) -> list[str]:
        if vr in _PLAIN_TEXT:
            return value.decode("iso8859").split("\\")
        if vr in _ENCODED_TEXT:
            return self._decoded(value).split("\\")
        if vr in _SINGLE_TEXT:
            return [self._decoded(value)]
        return [value.decode("iso8859")] if vr == "UR" else []

    def _decoded(self, value: bytes) -> str:
        if b"\x1b" in value:
            return decode_bytes(value, self._encodings, TEXT_VR_DELIMS)
        return value.decode(self._encodings[0], "replace")


def _numbers(value: bytes, vr: str, *, little: bool) -> list[str]:
    order = "<" if little else ">"
    if vr == "AT":
        return [f"({group:04X},{element:04X})" for group, element in struct.iter_unpack(f"{order}HH", _whole(value, 4))]
    form = f"{order}{_NUMBERS[vr]}"
    return [str(number) for (number,) in struct.iter_unpack(form, _whole(value, struct.calcsize(form)))]


def _whole(value: bytes, size: int) -> bytes:
    """Return the value, or nothing when it is not made of whole numbers."""
    return value if len(value) % size == 0 else b""


@lru_cache(maxsize=256)
def _encodings(specific_character_set: tuple[str, ...]) -> tuple[str, ...]:
    """Return Python's names of the character sets (PS3.3 C.12.1.1.2); one that nobody knows is read as the default."""
    try:
        encodings = tuple(convert_encodings(list(specific_character_set)))
    except (LookupError, TypeError, ValueError):
        return (default_encoding,)
    # pydicom also takes names of Python codecs, some of which are no character sets (`unicode_escape`, `idna`).
    return encodings if set(encodings) <= set(python_encoding.values()) else (default_encoding,)


def _bounded(component: str) -> str:
    # A database may not be able to keep NUL in a text.
    return component.strip(" \0")[:MAXIMUM_VALUE_CHARACTERS].replace("\0", "\N{REPLACEMENT CHARACTER}")
