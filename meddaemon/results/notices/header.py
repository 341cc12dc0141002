"""Whom and what a message is about, as the objects of the result have it, which took it over from the source."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from meddaemon.db.instances import path_of
from meddaemon.db.notices import Available
from meddaemon.domain.codes import Code
from meddaemon.results.notices.outbox import Reply
from meddaemon.results.texts import understood
from meddaemon.results.transport import Verdict

_READ = [
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "StudyInstanceUID",
    "StudyDescription",
    "ProcedureCodeSequence",
    "SeriesDate",
    "SeriesTime",
    "TimezoneOffsetFromUTC",
    "ReferencedRequestSequence",
]
_NOWHEN = "19000101"
"""What results have for a date where the source has none."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class NotWritable(ValueError):
    """What identifies the patient cannot be written as it is; the text names the field, never the value."""


def verbatim(field: str, text: str) -> str:
    """Return text that identifies somebody. Raises NotWritable where no message can hold it as it is."""
    if _CONTROL.search(text):
        raise NotWritable(f"{field} has a control character in it")
    return text


def on_one_line(text: str) -> str:
    """Return text that describes something, without control characters."""
    return " ".join(_CONTROL.sub(" ", text).split())


@dataclass(frozen=True, kw_only=True)
class Issuer:
    """Who gave an identifier: a local name, a universal one with its type (PS3.3 Table 10.14-1), both or neither."""

    name: str = ""
    universal_id: str = ""
    universal_type: str = ""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Patient and request, in Unicode, verbatim.

    `names` are the groups of the patient's name (alphabetic, ideographic, phonetic), each of family, given and middle
    name, prefix and suffix. Dates are of VR DA, times of VR TM, `offset` from UTC is `&ZZXX` or "". `procedure` is what
    was asked for, or done; `date` is "" where the source has none; `placer_order` and `filler_order` are "" unless all
    requests agree.
    """

    patient_id: str
    issuer: Issuer
    names: tuple[tuple[str, str, str, str, str], ...]
    birth_date: str
    sex: str
    accession_number: str
    accession_issuer: Issuer
    study_instance_uid: str
    study_description: str
    procedure: Code | None
    date: str
    time: str
    offset: str
    placer_order: str
    filler_order: str


def header_of(results: Path, objects: Sequence[Available]) -> Header | Reply:
    """Return what the objects of a result say of patient and request, or why nobody can be told of it."""
    smallest = min(objects, key=lambda each: (each.size, each.sop_instance_uid))
    try:
        path = path_of(results, smallest.sha256)
        stored = understood(dcmread(path, stop_before_pixels=True, specific_tags=_READ))
    except (OSError, InvalidDicomError) as failure:
        reason = f"{smallest.sop_instance_uid} cannot be read from the store: {type(failure).__name__}"
        return Reply(verdict=Verdict.TRY_AGAIN, reason=reason)
    header = _header(stored)
    if not header.patient_id.strip():
        # Whoever finds no patient in a message may put it with any.
        return Reply(verdict=Verdict.HOLD, reason="the study has no Patient ID: a message could not say whose it is")
    return header


def _header(stored: Dataset) -> Header:
    requests = stored.get("ReferencedRequestSequence") or []
    date = _text(stored, "SeriesDate")
    issuers = stored.get("IssuerOfPatientIDQualifiersSequence") or []
    accession_issuers = stored.get("IssuerOfAccessionNumberSequence") or []
    issuer = _issuer(issuers)
    accession_issuer = _issuer(accession_issuers)
    procedures = [
        *_codes(stored, "ProcedureCodeSequence"),
        *(code for item in requests for code in _codes(item, "RequestedProcedureCodeSequence")),
    ]
    return Header(
        patient_id=_text(stored, "PatientID"),
        issuer=Issuer(
            name=_text(stored, "IssuerOfPatientID") or issuer.name,
            universal_id=issuer.universal_id,
            universal_type=issuer.universal_type,
        ),
        names=_names(stored),
        birth_date=_text(stored, "PatientBirthDate"),
        sex=_text(stored, "PatientSex"),
        accession_number=_text(stored, "AccessionNumber"),
        accession_issuer=accession_issuer,
        study_instance_uid=_text(stored, "StudyInstanceUID"),
        study_description=_text(stored, "StudyDescription"),
        procedure=procedures[0] if procedures else None,
        date=date if date != _NOWHEN else "",
        time=_text(stored, "SeriesTime"),
        offset=_text(stored, "TimezoneOffsetFromUTC"),
        placer_order=_agreed(requests, "PlacerOrderNumberImagingServiceRequest"),
        filler_order=_agreed(requests, "FillerOrderNumberImagingServiceRequest"),
    )


def _text(item: Dataset, keyword: str) -> str:
    value = item.get(keyword)
    return "" if value is None else str(value)


def _names(stored: Dataset) -> tuple[tuple[str, str, str, str, str], ...]:
    groups = []
    for group in _text(stored, "PatientName").split("=")[:3]:
        family, given, middle, prefix, suffix = (*group.split("^"), "", "", "", "", "")[:5]
        groups.append((family, given, middle, prefix, suffix))
    return tuple(groups)


def _issuer(items: Sequence[Dataset]) -> Issuer:
    """Return the issuer that the one item of a sequence names (PS3.3 Table 10.14-1, Table 10.17-1)."""
    if not items:
        return Issuer()
    item = items[0]
    return Issuer(
        name=_text(item, "LocalNamespaceEntityID"),
        universal_id=_text(item, "UniversalEntityID"),
        universal_type=_text(item, "UniversalEntityIDType"),
    )


def _codes(item: Dataset, keyword: str) -> list[Code]:
    return [
        Code(
            value=_text(each, "CodeValue"),
            scheme=_text(each, "CodingSchemeDesignator"),
            meaning=_text(each, "CodeMeaning"),
        )
        for each in item.get(keyword) or []
        if _text(each, "CodeValue") and _text(each, "CodingSchemeDesignator")
    ]


def _agreed(requests: Sequence[Dataset], keyword: str) -> str:
    values = {_text(each, keyword) for each in requests}
    return values.pop() if len(values) == 1 else ""
