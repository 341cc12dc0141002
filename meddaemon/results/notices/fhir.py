"""A result as FHIR R4: one transaction of a DiagnosticReport, its Observations and the ImagingStudy it is about.

Every resource has an identifier that follows from the result, and is created only where none has it: what is told
twice is there once. The patient is named by identifier, never created.
"""

import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

from fhirclient.models.bundle import Bundle
from fhirclient.models.fhirabstractbase import FHIRValidationError

from meddaemon.db.engine import Database
from meddaemon.db.notices import Notice
from meddaemon.db.reported import ReportedFinding, ReportedResult
from meddaemon.domain.codes import Code
from meddaemon.domain.result import Measurement, reported
from meddaemon.domain.uids import derived_uid
from meddaemon.results.dicomweb import PASSING, Said, Service, failed, pause_of
from meddaemon.results.notices.content import (
    ANY_PROCEDURE,
    FRAME,
    IMAGE,
    LATERALITY,
    MARK,
    doubt_of,
    extents_of,
    name_of,
    presence_of,
    subject_of,
)
from meddaemon.results.notices.header import Header, Issuer, NotWritable, on_one_line, verbatim
from meddaemon.results.notices.outbox import Reply
from meddaemon.results.transport import Verdict, printable
from meddaemon.tls import TlsUnusable

MEDIA_TYPE = "application/fhir+json"
_URI, _DICOM_UID = "urn:ietf:rfc:3986", "urn:dicom:uid"
_ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
_IDENTIFIER_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203"
_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
    "LN": "http://loinc.org",
    "IBSI": "urn:oid:1.2.840.10008.2.16.13",
    "99MEDDAEMON": f"urn:oid:{derived_uid('coding scheme', '99MEDDAEMON')}",
}
"""Of coding schemes (PS3.16 Table 8-1); codes of others go without."""


def tell(
    services: Mapping[str, Service], database: Database, results: Path, detects: Collection[str], notice: Notice
) -> Reply:
    """Tell one of `services`, by the target of the notice; return what its answer means (`subject_of`)."""
    subject = subject_of(services, database, results, detects, notice)
    if isinstance(subject, Reply):
        return subject
    try:
        bundle = transaction(notice, subject.header, subject.result, detects=subject.detects)
    except NotWritable as failure:
        return Reply(verdict=Verdict.HOLD, reason=f"cannot be written as FHIR: {failure}")
    except FHIRValidationError:
        return Reply(verdict=Verdict.HOLD, reason="cannot be written as FHIR: it is not valid")
    try:
        said = subject.way.post(json.dumps(bundle, sort_keys=True).encode(), MEDIA_TYPE)
    except (OSError, HTTPException, TlsUnusable) as failure:
        return Reply(verdict=Verdict.TRY_AGAIN, reason=failed(failure))
    return judged(said, len(bundle["entry"]))


# --- the transaction --------------------------------------------------------------------------------------------------


def transaction(notice: Notice, header: Header, result: ReportedResult, *, detects: bool) -> dict[str, Any]:
    """Return the Bundle, checked against the model of FHIR R4. Raises NotWritable, FHIRValidationError."""
    told = _Told(notice, header, result)
    study = told.entry("ImagingStudy", "study", {"status": "available"}, (_DICOM_UID, header.study_instance_uid))
    told.observed["derivedFrom"] = [{"reference": study}]
    observations = []
    for ordinal, finding in enumerate(result.findings):
        members = [
            told.entry("Observation", f"{ordinal} {place}", _measured(measurement, finding, told))
            for place, measurement in enumerate(finding.measurements)
        ]
        presence = presence_of(finding, result.status, detects=detects)
        said: dict[str, Any] = {
            "code": _concept(finding.code, finding.label),
            "valueCodeableConcept": _concept(presence),
            **_sited(finding, *_placed(finding)),
        }
        if members:
            said["hasMember"] = [{"reference": each} for each in members]
        observations += [told.entry("Observation", str(ordinal), {**said, **told.observed}), *members]
    procedure = header.procedure or ANY_PROCEDURE
    report: dict[str, Any] = {
        "status": "preliminary",
        "code": _concept(procedure, header.study_description),
        "issued": result.created_at.isoformat(),
        "imagingStudy": [{"reference": study}],
        "conclusion": on_one_line(f"{doubt_of(result)} {MARK}"),
        **told.at,
    }
    if observations:
        report["result"] = [{"reference": each} for each in observations]
    told.entry("DiagnosticReport", "report", report)
    bundle: dict[str, Any] = Bundle({"resourceType": "Bundle", "type": "transaction", "entry": told.entries}).as_json()
    return bundle


class _Told:
    """The entries of a transaction, and what they share."""

    def __init__(self, notice: Notice, header: Header, result: ReportedResult) -> None:
        self.entries: list[dict[str, Any]] = []
        self.at = {"effectiveDateTime": at} if (at := _moment(header)) else {}
        self.observed: dict[str, Any] = {"status": "preliminary", **self.at}
        if doubt := on_one_line(doubt_of(result)):
            self.observed["note"] = [{"text": doubt}]
        self._of = tuple(each.sop_instance_uid for each in notice.objects)
        patient = _identifier("Patient ID", header.patient_id, header.issuer)
        self._shared: dict[str, Any] = {"subject": {"type": "Patient", "identifier": patient}}
        if header.accession_number:
            accession = _identifier("Accession Number", header.accession_number, header.accession_issuer)
            accession["type"] = {"coding": [{"system": _IDENTIFIER_TYPE, "code": "ACSN"}]}
            self._shared["basedOn"] = [{"type": "ServiceRequest", "identifier": accession}]

    def entry(self, kind: str, name: str, resource: Mapping[str, Any], known: tuple[str, str] | None = None) -> str:
        """Add a resource and return what refers to it; `known` is an identifier that it has elsewhere, too."""
        uid = derived_uid("FHIR", kind, name, *self._of)
        system, value = known or (_URI, uid)
        reference = f"urn:uuid:{uuid.UUID(int=int(uid.removeprefix('2.25.')))}"
        self.entries.append(
            {
                "fullUrl": reference,
                "resource": {
                    "resourceType": kind,
                    "identifier": [{"system": system, "value": f"urn:oid:{value}"}],
                    **self._shared,
                    **resource,
                },
                "request": {"method": "POST", "url": kind, "ifNoneExist": f"identifier={system}|urn:oid:{value}"},
            }
        )
        return reference


def _measured(measurement: Measurement, finding: ReportedFinding, told: _Told) -> dict[str, Any]:
    name = name_of(measurement)
    text = f"{name.meaning}: {finding.label or finding.code.meaning}"
    said = {"code": _concept(name, text), **_sited(finding), **told.observed}
    if measurement.derivation is not None:
        said["method"] = _concept(measurement.derivation)
    if measurement.value is None:
        said["dataAbsentReason"] = {"coding": [{"system": _ABSENT, "code": "unknown"}]}
        return said
    said["valueQuantity"] = _quantity(reported(measurement.value), measurement.unit)
    return said


def _sited(finding: ReportedFinding, *components: dict[str, Any]) -> dict[str, Any]:
    """Return the anatomy that a finding is about, its side and more components: R4 has no qualifier for a site."""
    sides = [] if finding.laterality is None else [_component(LATERALITY, CodeableConcept=_concept(finding.laterality))]
    said: dict[str, Any] = {}
    if finding.site is not None:
        said["bodySite"] = _concept(finding.site)
    if sides or components:
        said["component"] = [*sides, *components]
    return said


def _placed(finding: ReportedFinding) -> Iterator[dict[str, Any]]:
    """Yield the components that say on which image a finding is, where on it, and where in the patient."""
    if finding.place is None:
        return
    yield _component(IMAGE, String=f"urn:oid:{finding.place.sop_instance_uid}")
    yield _component(FRAME, Integer=finding.place.frame_number)
    for extent in extents_of(finding):
        low, high = (_quantity(value, extent.unit) for value in (extent.low, extent.high))
        if low == high:
            yield _component(extent.name, Quantity=low)
        else:
            yield _component(extent.name, Range={"low": low, "high": high})


def _component(name: Code, **value: Any) -> dict[str, Any]:
    ((kind, said),) = value.items()
    return {"code": _concept(name), f"value{kind}": said}


def _quantity(value: float, unit: Code) -> dict[str, Any]:
    return {"value": value, "unit": unit.meaning, "system": _SYSTEMS["UCUM"], "code": unit.value}


def _concept(code: Code, text: str = "") -> dict[str, Any]:
    coding = {"code": on_one_line(code.value), "display": on_one_line(code.meaning)}
    if system := _SYSTEMS.get(code.scheme):
        coding["system"] = system
    return {"coding": [coding], **({"text": on_one_line(text)} if on_one_line(text) else {})}


def _identifier(field: str, value: str, issuer: Issuer) -> dict[str, Any]:
    """Return an identifier with who gave it: a URI where that is one, in words otherwise."""
    identifier: dict[str, Any] = {"value": verbatim(field, value)}
    universal = verbatim(f"issuer of the {field}", issuer.universal_id)
    prefix = {"ISO": "urn:oid:", "UUID": "urn:uuid:", "URI": ""}.get(issuer.universal_type)
    if universal and prefix is not None:
        identifier["system"] = f"{prefix}{universal}"
    if issuer.name:
        identifier["assigner"] = {"display": verbatim(f"issuer of the {field}", issuer.name)}
    return identifier


def _moment(header: Header) -> str:
    """Return the date of the source, with its time only where it is known which that is."""
    if not re.fullmatch(r"\d{8}", header.date):
        return ""
    date = f"{header.date[:4]}-{header.date[4:6]}-{header.date[6:]}"
    clock, offset = re.match(r"\d{6}", header.time), re.fullmatch(r"([+-]\d\d)(\d\d)", header.offset)
    if clock is None or offset is None:
        return date
    return f"{date}T{header.time[:2]}:{header.time[2:4]}:{header.time[4:6]}{offset[1]}:{offset[2]}"


# --- the answer -------------------------------------------------------------------------------------------------------


def judged(said: Said, entries: int) -> Reply:
    """Return what an answer to a transaction of so many entries means (FHIR R4, RESTful API, transaction)."""
    try:
        body = json.loads(said.body)
    except (ValueError, RecursionError):
        body = None
    reason = f"answered HTTP {said.status}"
    if said.status == HTTPStatus.OK:
        answers = body.get("entry") if isinstance(body, dict) and body.get("type") == "transaction-response" else None
        if isinstance(answers, list) and len(answers) == entries and all(map(_is_stored, answers)):
            return Reply(verdict=Verdict.TAKEN)
        return Reply(verdict=Verdict.HOLD, reason=f"{reason} and does not say that all is stored: look")
    if said.status in PASSING:
        own = said.status == HTTPStatus.INTERNAL_SERVER_ERROR
        wait = pause_of(said.retry_after)
        return Reply(verdict=Verdict.TRY_AGAIN, reason=reason, detail=_diagnostics(body), own=own, wait_seconds=wait)
    if said.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        reason += ": check the credentials of this destination"
    return Reply(verdict=Verdict.HOLD, reason=reason, detail=_diagnostics(body))


def _is_stored(answer: object) -> bool:
    response = answer.get("response") if isinstance(answer, dict) else None
    return isinstance(response, dict) and str(response.get("status", ""))[:3] in {"200", "201"}


def _diagnostics(body: object) -> str:
    """Return what an OperationOutcome says first."""
    issues = body.get("issue") if isinstance(body, dict) and body.get("resourceType") == "OperationOutcome" else None
    first = issues[0] if isinstance(issues, list) and issues else None
    said = first.get("diagnostics") if isinstance(first, dict) else None
    return printable(said) if isinstance(said, str) else ""
