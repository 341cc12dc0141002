"""The attributes that rules may ask for, read from an encoded data set without its pixels.

Values are decoded here, from where the scan found them, and not by pydicom: its reader guesses where this one knows,
and raises on hostile values in a dozen ways.
"""

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import ExplicitVRBigEndian

from meddaemon.domain.character_sets import CharacterSets, character_sets
from meddaemon.ingest import scan

IDENTITY = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "IssuerOfPatientID",
)
"""What says which object this is, and whose: known of each before it is acknowledged."""
DESCRIBING = (
    "AccessionNumber",
    "AcquisitionContrast",
    "AcquisitionNumber",
    "BitsAllocated",
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
    "PatientBirthDate",
    "PatientName",
    "PatientPosition",
    "PatientSex",
    "PerformedProcedureStepStartDate",
    "PerformedProcedureStepStartTime",
    "PhotometricInterpretation",
    "PixelSpacing",
    "PresentationIntentType",
    "ProtocolName",
    "ReferringPhysicianName",
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
    "StudyID",
    "StudyTime",
    "TimezoneOffsetFromUTC",
    "ViewPosition",
    "VolumetricProperties",
)

MAXIMUM_VALUE_CHARACTERS = 256
MAXIMUM_COMPONENTS = 32


_SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION = 0x00080005, 0x00280103
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_LITTLE = {vr: struct.Struct(f"<{form}") for vr, form in (*_NUMBERS.items(), ("AT", "HH"))}
_BIG = {vr: struct.Struct(f">{form}") for vr, form in (*_NUMBERS.items(), ("AT", "HH"))}
_BINARY = frozenset(_LITTLE)
"""As pydicom's, by the name under which Python finds it without looking."""
_PLAIN_TEXT = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"})
_ENCODED_TEXT = frozenset({"LO", "PN", "SH", "UC"})
_SINGLE_TEXT = frozenset({"LT", "ST", "UT"})
_WRITTEN: Mapping[bytes | None, str] = {
    **{vr.encode(): vr for vr in (*_BINARY, *_PLAIN_TEXT, *_ENCODED_TEXT, *_SINGLE_TEXT, "UR", "UN")},
    None: "UN",
}
"""VRs as they are written; the values of all others are not read."""
_MAXIMUM_VALUE_BYTES = 8 * MAXIMUM_VALUE_CHARACTERS * MAXIMUM_COMPONENTS


def read_header(
    data: scan.Encoded, transfer_syntax_uid: str, extra: Iterable[str] = ()
) -> Mapping[str, tuple[str, ...]]:
    """Return the describing attributes and those named in `extra`, as strings, keyword -> components.

    Every keyword that was looked for is in the answer; an attribute that is absent, or whose value cannot be read,
    maps to the empty tuple. Values are bounded in length and number. `data` is inflated already.

    Raises scan.Malformed unless `data` is one whole data set in this transfer syntax.
    """
    return _read(data, transfer_syntax_uid, (*IDENTITY, *DESCRIBING, *extra))


def read_identity(data: scan.Encoded, transfer_syntax_uid: str) -> Mapping[str, tuple[str, ...]]:
    """Return only the attributes of `IDENTITY`, as `read_header` does, in a third of the time."""
    return _read(data, transfer_syntax_uid, IDENTITY)


def _read(data: scan.Encoded, transfer_syntax_uid: str, keywords: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    wanted, needed = _tags(keywords)
    elements = scan.check(data, transfer_syntax_uid, needed)
    values = _Values(data, elements, little=transfer_syntax_uid != ExplicitVRBigEndian)
    return {keyword: values.of(tag) if tag in elements else () for keyword, tag in wanted.items()}


@lru_cache(maxsize=64)
def _tags(keywords: tuple[str, ...]) -> tuple[Mapping[str, int], frozenset[int]]:
    """Return the tags of these attributes, and what must be found to decode them."""
    tags = {keyword: tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None}
    return tags, frozenset({*tags.values(), _SPECIFIC_CHARACTER_SET, _PIXEL_REPRESENTATION})


@lru_cache(maxsize=1024)
def _dictionary_vr(tag: int) -> str:
    return dictionary_VR(tag)


class _Values:
    """Decodes the values of one data set."""

    def __init__(self, data: scan.Encoded, elements: Mapping[int, scan.Element], *, little: bool) -> None:
        self._data = data
        self._elements = elements
        self._little = little
        self._sets = CharacterSets()
        self._sets = character_sets(self.of(_SPECIFIC_CHARACTER_SET))

    def of(self, tag: int) -> tuple[str, ...]:
        """Return the components of an element as strings; the empty tuple where there is nothing to be read."""
        element = self._elements.get(tag)
        if element is None or not element.length:
            return ()
        vr = _WRITTEN.get(element.vr)
        if vr is None:
            return ()
        # A value of unknown VR is encoded in little endian (PS3.5 6.2.2).
        little = self._little or vr == "UN"
        if vr == "UN":
            vr = self._usual_vr(tag)
        value = bytes(self._data[element.start : element.start + min(element.length, _MAXIMUM_VALUE_BYTES)])
        components = _numbers(value, vr, little=little) if vr in _BINARY else self._texts(value, vr)
        bounded = tuple([_bounded(component) for component in components[:MAXIMUM_COMPONENTS]])
        return bounded if any(bounded) else ()

    def _usual_vr(self, tag: int) -> str:
        vr = _dictionary_vr(tag)
        if vr == "US or SS":
            return "SS" if self.of(_PIXEL_REPRESENTATION) == ("1",) else "US"
        return vr

    def _texts(self, value: bytes, vr: str) -> list[str]:
        if vr in _PLAIN_TEXT:
            return value.decode("latin-1").split("\\")
        if vr in _ENCODED_TEXT:
            return self._sets.read(value, "\\^=" if vr == "PN" else "\\").split("\\")
        if vr in _SINGLE_TEXT:
            return [self._sets.read(value)]
        return [value.decode("latin-1")] if vr == "UR" else []


def _numbers(value: bytes, vr: str, *, little: bool) -> list[str]:
    form = (_LITTLE if little else _BIG)[vr]
    if len(value) % form.size:
        return []
    if vr == "AT":
        return [f"({group:04X},{element:04X})" for group, element in form.iter_unpack(value)]
    return [str(number) for (number,) in form.iter_unpack(value)]


def _bounded(component: str) -> str:
    # A database may not be able to keep NUL in a text.
    kept = component.strip(" \0")[:MAXIMUM_VALUE_CHARACTERS]
    return kept.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in kept else kept
