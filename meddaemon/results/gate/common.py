"""What every result object is asked: encoding, identity, equipment, references."""

import re
from collections import Counter
from collections.abc import Iterator

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.uid import RE_VALID_UID

from meddaemon.domain.character_sets import UTF_8, CharacterSets
from meddaemon.domain.result import EncodedObject
from meddaemon.domain.uids import IMPLEMENTATION_CLASS_UID
from meddaemon.results.envelope import has_content_moment
from meddaemon.results.gate.exam import Check, Exam, distinct
from meddaemon.results.identity import RESEARCH_MARK, device_uid
from meddaemon.results.source import INHERITED, TYPE_2
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
    if any(tag.is_private for each in distinct(dataset) for tag in each.keys()):  # noqa: SIM118
        yield "has private attributes"


def _required(_: Exam, encoded: EncodedObject, dataset: Dataset) -> Iterator[str]:
    for keyword in (*_TYPE_1, *(_CONTENT_MOMENT if has_content_moment(encoded.sop_class_uid) else ())):
        if dataset.get(keyword) in (None, ""):
            yield f"{keyword} has no value"
    for keyword in TYPE_2:
        if keyword not in dataset:
            yield f"{keyword} is absent"


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
    if RESEARCH_MARK not in str(dataset.get("SeriesDescription")):
        yield f"SeriesDescription lacks {RESEARCH_MARK!r}"


def _equipment(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    items = dataset.get("ContributingEquipmentSequence", ())
    purposes = Counter(str(item.PurposeOfReferenceCodeSequence[0].CodeValue) for item in items)
    if "Manufacturer" in exam.request.source.equipment and purposes["109101"] != 1:
        yield "Contributing Equipment does not name the acquisition equipment"
    if device_uid(exam.request.contract) not in {str(item.get("DeviceUID")) for item in items}:
        yield "Contributing Equipment does not name the model by its Device UID"


def _references(exam: Exam, _: EncodedObject, dataset: Dataset) -> Iterator[str]:
    seen: set[bytes] = set()
    for element in dataset:
        # What was inherited refers to objects of others.
        if element.VR != "SQ" or keyword_for_tag(element.tag) in (*INHERITED, "ReferencedRequestSequence"):
            continue
        for item in (each for top in element.value for each in distinct(top, seen)):
            if "ReferencedSOPInstanceUID" in item:
                uid, sop_class = str(item.ReferencedSOPInstanceUID), str(item.get("ReferencedSOPClassUID"))
                if exam.known_instances.get(uid) != sop_class:
                    yield f"refers to {uid} of class {sop_class}, which is neither source nor result"


def _is_uid(uid: str) -> bool:
    return re.match(RE_VALID_UID, uid) is not None


CHECKS: tuple[Check, ...] = (
    _encoding,
    _required,
    _patient_and_study,
    _identifiers,
    _equipment,
    _references,
)
"""What every kind of object is asked."""
