"""What every result object is asked: encoding, identity, equipment, references."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import RE_VALID_UID

from meddaemon.domain.character_sets import UTF_8, CharacterSets
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID
from meddaemon.results.envelope import device_serial_number, has_content_moment, software_versions
from meddaemon.results.gate.exam import VERBATIM, Check, Exam, distinct
from meddaemon.results.gate.iod import attributes
from meddaemon.results.identity import MANUFACTURER, device_uid, long_string, series_description
from meddaemon.results.source import INHERITED, TYPE_2, SourceSeries
from meddaemon.results.texts import character_sets_of

_LONGEST_UID = 64

_TYPE_1 = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "SeriesNumber",
    "InstanceNumber",
    "Manufacturer",
    "ManufacturerModelName",
    "DeviceSerialNumber",
    "SoftwareVersions",
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SeriesDate",
    "SeriesTime",
)
"""Attributes that every result carries with a value: type 1, or ours to promise (STANDARDS list, item 8)."""
_MOMENTS = (
    "InstanceCreationDate",
    "InstanceCreationTime",
    "SeriesDate",
    "SeriesTime",
    "ContentDate",
    "ContentTime",
)
_INSTANCES = ("ReferencedSOPSequence", "ReferencedInstanceSequence", "ReferencedImageSequence", "ContourImageSequence")
_CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
_AS_SOURCE: Mapping[str, Callable[[SourceSeries], str]] = {
    "Laterality": lambda source: source.laterality,
    "PositionReferenceIndicator": lambda source: str(source.instances[0].get("PositionReferenceIndicator") or ""),
}
"""What an object that says it at all says as its source does."""
_CONTENT_MOMENT = ("ContentDate", "ContentTime")


def _encoding(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    meta = dataset.file_meta
    pairs = {
        "SOPClassUID": (encoded.sop_class_uid, dataset.get("SOPClassUID"), meta.get("MediaStorageSOPClassUID")),
        "SOPInstanceUID": (
            encoded.sop_instance_uid,
            dataset.get("SOPInstanceUID"),
            meta.get("MediaStorageSOPInstanceUID"),
        ),
        "SeriesInstanceUID": (encoded.series_instance_uid, dataset.get("SeriesInstanceUID")),
        "TransferSyntaxUID": (encoded.transfer_syntax_uid, meta.get("TransferSyntaxUID")),
        "ImplementationClassUID": (IMPLEMENTATION_CLASS_UID, meta.get("ImplementationClassUID")),
    }
    for name, values in pairs.items():
        if len({str(value) for value in values}) > 1:
            yield f"{name}: {' and '.join(str(value) for value in values)} differ"
    sets = character_sets_of(dataset)
    if sets not in (exam.request.character_sets, CharacterSets((UTF_8,))):
        yield f"SpecificCharacterSet is {sets}, not {exam.request.character_sets}"
    copied = Dataset({each.tag: each for each in dataset if keyword_for_tag(each.tag) in VERBATIM})
    within = (dataset, *exam.made_items(encoded.name), *distinct(copied))
    if any(tag.is_private for each in within for tag in each.keys()):  # noqa: SIM118
        yield "has private attributes"


def _required(_: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    for keyword in (*_TYPE_1, *(_CONTENT_MOMENT if has_content_moment(encoded.sop_class_uid) else ())):
        if dataset.get(keyword) in (None, ""):
            yield f"{keyword} has no value"
    for keyword in TYPE_2:
        if keyword not in dataset:
            yield f"{keyword} is absent"


def _series(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    for keyword, value in zip(_MOMENTS, exam.request.source.moment * len(_MOMENTS), strict=False):
        if keyword in dataset and str(dataset.get(keyword)) != value:
            yield f"{keyword} is {dataset.get(keyword)}, not {value} as the source has it"
    for element in exam.request.source.body_part:
        keyword = str(keyword_for_tag(element.tag))
        if keyword in dataset and dataset.get(keyword) != element.value:
            yield f"{keyword} differs from the source"
    for keyword, said in _AS_SOURCE.items():
        if keyword in dataset and str(dataset.get(keyword) or "") != said(exam.request.source):
            yield f"{keyword} differs from the source"


def _pixels(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that what has pixels says whether those of the source were compressed with loss (PS3.3 C.7.6.1.1.5)."""
    if "SamplesPerPixel" in dataset:
        lossy = any(each.get("LossyImageCompression") == "01" for each in exam.request.source.instances)
        if dataset.get("LossyImageCompression") != ("01" if lossy else "00"):
            yield f"LossyImageCompression is {dataset.get('LossyImageCompression')}, which is not that of the source"


def _patient_and_study(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    header = exam.request.source.header
    for keyword in INHERITED:
        # Empty reads back as None or "", depending on the VR.
        wanted, found = (str("" if each.get(keyword) is None else each.get(keyword)) for each in (header, dataset))
        if (keyword in header) != (keyword in dataset) or wanted != found:
            yield f"{keyword} differs from the source"


def _identifiers(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    source = exam.request.source
    taken = {uid for series in source.inputs for uid in (*series.sop_instance_uids, series.series_instance_uid)}
    taken.add(source.study_instance_uid)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        uid = str(dataset.get(keyword, ""))
        if len(uid) > _LONGEST_UID or not uid.isascii() or not _is_uid(uid):
            yield f"{keyword} {uid!r} is not a valid UID"
        if uid in taken:
            yield f"{keyword} {uid} is one of the source's"
    for other in exam.objects:
        if other.kind != encoded.kind and str(dataset.get("SeriesInstanceUID")) == other.series_instance_uid:
            yield f"shares its series with {other.name}"
        if other is not encoded and str(dataset.get("SOPInstanceUID")) == other.sop_instance_uid:
            yield f"has the UID of {other.name}"
    number = dataset.get("SeriesNumber")
    if number is None or number < 1 or number == source.series_number:
        yield f"SeriesNumber {number} is not a number of its own"
    if dataset.get("SeriesDescription") != (wanted := series_description(exam.request)):
        yield f"SeriesDescription is not {wanted!r}"


def _equipment(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    request = exam.request
    made_by = {
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": MANUFACTURER,
        "DeviceSerialNumber": device_serial_number(request),
        "SoftwareVersions": software_versions(request),
    }
    yield from _differences("is", dataset, made_by)
    items = dataset.get("ContributingEquipmentSequence", ())
    by_purpose = {str(item.PurposeOfReferenceCodeSequence[0].CodeValue): item for item in items}
    if len(by_purpose) != len(items):
        yield "Contributing Equipment names one purpose twice"
    scanner = request.source.equipment
    if "Manufacturer" in scanner:
        if (named := by_purpose.get("109101")) is None:
            yield "Contributing Equipment does not name the acquisition equipment"
        else:
            wanted = {str(keyword_for_tag(each.tag)): each.value for each in scanner}
            yield from _differences("of the acquisition equipment is", named, wanted)
    model, contract = by_purpose.get("109102"), request.contract
    if model is None or str(model.get("DeviceUID")) != device_uid(contract):
        yield "Contributing Equipment does not name the model by its Device UID"
    else:
        wanted = {
            "Manufacturer": long_string(contract.manufacturer) or MANUFACTURER,
            "ManufacturerModelName": long_string(contract.name),
            "SoftwareVersions": long_string(contract.version),
        }
        yield from _differences("of the model is", model, wanted)


def _differences(what: str, dataset: Dataset, wanted: Mapping[str, Any]) -> Iterator[str]:
    for keyword, value in wanted.items():
        if _text(dataset.get(keyword)) != _text(value):
            yield f"{keyword} {what} {dataset.get(keyword)}, not {value}"


def _text(value: Any) -> str:
    """Return a value as it compares; several as they are written."""
    several = isinstance(value, Iterable) and not isinstance(value, str | Dataset)
    return "\\".join(map(str, value)) if several else str(value)


def _references(exam: Exam, encoded: EncodedObject, _: Dataset) -> Iterator[str]:
    """Check what is referred to: it is there, of that class, in that series, in this study."""
    study = exam.request.source.study_instance_uid
    for item in exam.made_items(encoded.name):
        if "ReferencedSOPInstanceUID" in item:
            uid, sop_class = str(item.ReferencedSOPInstanceUID), str(item.get("ReferencedSOPClassUID"))
            if exam.known_instances.get(uid) != sop_class:
                yield f"refers to {uid} of class {sop_class}, which is neither source nor result"
        if "StudyInstanceUID" in item and str(item.StudyInstanceUID) != study:
            yield f"refers to study {item.StudyInstanceUID}, not {study}"
        if "SeriesInstanceUID" in item:
            series = str(item.SeriesInstanceUID)
            for held in (each for keyword in _INSTANCES for each in item.get(keyword, ())):
                uid = str(held.get("ReferencedSOPInstanceUID"))
                if exam.series_of.get(uid, series) != series:
                    yield f"refers to {uid} in series {series}, not {exam.series_of[uid]}"


def _codes(exam: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    """Check that codes are whole (PS3.3 Table 8.8-1), and that it is told whom to ask what private ones mean."""
    declared = {str(item.CodingSchemeDesignator) for item in dataset.get("CodingSchemeIdentificationSequence", ())}
    told: set[str] = set()
    for item in exam.made_items(encoded.name):
        if "CodeMeaning" not in item and "CodeValue" not in item:
            continue
        scheme = str(item.get("CodingSchemeDesignator") or "")
        if not (item.get("CodeMeaning") and scheme and any(item.get(keyword) for keyword in _CODE_VALUES)):
            yield f"has a code without value, scheme or meaning: {item.get('CodeValue')} {scheme}"
        if scheme.startswith("99") and scheme not in declared | told:
            told.add(scheme)
            yield f"does not say whose the coding scheme {scheme} is"


def _is_uid(uid: str) -> bool:
    return re.match(RE_VALID_UID, uid) is not None


CHECKS: tuple[Check, ...] = (
    _encoding,
    attributes,
    _series,
    _required,
    _pixels,
    _patient_and_study,
    _identifiers,
    _equipment,
    _references,
    _codes,
)
"""What every kind of object is asked."""
