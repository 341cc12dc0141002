"""The answer to a Store Transaction: which instances were stored, and why the others were not (PS3.18 10.5.3).

Written in the DICOM JSON Model (PS3.18 Annex F) or the Native DICOM Model (PS3.19 Annex A).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from xml.sax.saxutils import escape

from pydicom.datadict import dictionary_VR, tag_for_keyword

from meddaemon.ingest.statuses import OUT_OF_RESOURCES

JSON, XML = "application/dicom+json", "application/dicom+xml"
PLAIN_JSON = "application/json"
OFFERED = (JSON, XML, PLAIN_JSON)
"""What the answer can be written in; clients that know JSON only get the same under its own name."""
_NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
DataSet = Mapping[str, Any]
"""Keyword -> text, number or sequence of data sets; empty where there is no value."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one part: stored, or not with a Failure Reason (PS3.18 Table I.2-2: as the status of a C-STORE).

    The UIDs are empty where the object does not name itself properly.
    """

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    failure_reason: int | None = None


def status_of(outcomes: Sequence[Outcome]) -> HTTPStatus:
    """Return the status of the whole (PS3.18 Table 10.5.3-1)."""
    failures = [each.failure_reason for each in outcomes if each.failure_reason is not None]
    if not failures:
        return HTTPStatus.OK
    if len(failures) < len(outcomes):
        return HTTPStatus.ACCEPTED
    # Nothing is wrong with what was sent: later it will be taken.
    return HTTPStatus.SERVICE_UNAVAILABLE if set(failures) == {OUT_OF_RESOURCES} else HTTPStatus.CONFLICT


def written(outcomes: Sequence[Outcome], media_type: str) -> bytes:
    """Return the Store Instances Response Module (PS3.18 Table I.2-1) in one of the media types of `OFFERED`."""
    data_set = _response(outcomes)
    if media_type == XML:
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<NativeDicomModel xmlns="{_NAMESPACE}" xml:space="preserve">{_as_xml(data_set)}</NativeDicomModel>'
        ).encode()
    return json.dumps(_as_json(data_set), separators=(",", ":")).encode()


def _response(outcomes: Sequence[Outcome]) -> DataSet:
    stored, failed, others = [], [], []
    for each in outcomes:
        named = {"ReferencedSOPClassUID": each.sop_class_uid, "ReferencedSOPInstanceUID": each.sop_instance_uid}
        if each.failure_reason is None:
            stored.append({**named, "RetrieveURL": ""})
        elif each.sop_instance_uid:
            failed.append({**named, "FailureReason": each.failure_reason})
        else:
            others.append({"FailureReason": each.failure_reason})
    # Type 2: there, and empty, because nothing can be retrieved from here.
    data_set: dict[str, object] = {"RetrieveURL": ""}
    sequences = {"FailedSOPSequence": failed, "ReferencedSOPSequence": stored, "OtherFailuresSequence": others}
    return data_set | {keyword: items for keyword, items in sequences.items() if items}


def _tag(keyword: str) -> str:
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101  for the type checker: they are all ours
    return f"{tag:08X}"


def _as_json(data_set: DataSet) -> dict[str, object]:
    written: dict[str, object] = {}
    for keyword, value in data_set.items():
        element: dict[str, object] = {"vr": dictionary_VR(keyword)}
        if isinstance(value, list):
            element["Value"] = [_as_json(item) for item in value]
        elif value != "":
            element["Value"] = [value]
        written[_tag(keyword)] = element
    return dict(sorted(written.items()))


def _as_xml(data_set: DataSet) -> str:
    elements = []
    for keyword, value in sorted(data_set.items(), key=lambda each: _tag(each[0])):
        if isinstance(value, list):
            inner = "".join(f'<Item number="{n}">{_as_xml(item)}</Item>' for n, item in enumerate(value, 1))
        else:
            inner = "" if value == "" else f'<Value number="1">{escape(str(value))}</Value>'
        elements.append(
            f'<DicomAttribute tag="{_tag(keyword)}" vr="{dictionary_VR(keyword)}" keyword="{keyword}">'
            f"{inner}</DicomAttribute>"
        )
    return "".join(elements)
