"""A FHIR server gets the numbers of the report, each resource once, and what it answers decides."""

import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from fhirclient.models.bundle import Bundle
from fhirclient.models.diagnosticreport import DiagnosticReport
from fhirclient.models.imagingstudy import ImagingStudy
from fhirclient.models.observation import Observation
from sqlalchemy import update
from test_hl7 import BOXED, HEADER, NOTICE, RETRY, VOLUME_OF_NOTHING, finding, only, post, source

from meddaemon.db import notices, results, tables
from meddaemon.db.engine import Database
from meddaemon.db.reported import ReportedResult
from meddaemon.domain.codes import ATTENUATION, HOUNSFIELD_UNIT, MILLILITRE, STANDARD_DEVIATION, VOLUME
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.result import Measurement, ResultStatus
from meddaemon.domain.states import DeliveryState
from meddaemon.results.dicomweb import Service
from meddaemon.results.notices import fhir
from meddaemon.results.notices.header import Issuer
from meddaemon.results.notices.outbox import announce

TARGET = Target(form=NoticeForm.FHIR, target="fhir")
_MODELS = {"DiagnosticReport": DiagnosticReport, "Observation": Observation, "ImagingStudy": ImagingStudy}


@pytest.fixture
def dialect() -> str:
    """The outbox of notices has its own tests, on both; here one database will do."""
    return "sqlite"


@dataclass
class Keeper:
    """A FHIR server that keeps what it reads strictly, unless an identifier is there, or says what it is told to."""

    says: tuple[int, dict[str, str], bytes] | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    bundles: list[dict[str, Any]] = field(default_factory=list)
    asked_with: list[str] = field(default_factory=list)
    context: ssl.SSLContext | None = None

    @contextmanager
    def listening(self) -> Iterator[Service]:
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                keeper.asked_with.append(f"{self.path} {self.headers['Content-Type']} {self.headers['Authorization']}")
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, headers, answer = keeper.says or (200, {}, keeper.take(json.loads(body)))
                self.send_response(status)
                for name, value in {"Content-Type": "application/fhir+json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            if self.context:
                server.socket = self.context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                scheme = "https" if self.context else "http"
                yield Service(url=f"{scheme}://127.0.0.1:{server.server_port}/r4", token="secret")
            finally:
                server.shutdown()
                thread.join()

    def take(self, written: dict[str, Any]) -> bytes:
        bundle = Bundle(written)
        assert bundle.as_json() == written
        assert bundle.type == "transaction"
        self.bundles.append(written)
        answers = []
        for entry in written["entry"]:
            resource, asked = entry["resource"], entry["request"]
            assert (asked["method"], asked["url"]) == ("POST", resource["resourceType"])
            assert _MODELS[resource["resourceType"]](resource).as_json() == resource
            (identifier,) = resource["identifier"]
            assert asked["ifNoneExist"] == f"identifier={identifier['system']}|{identifier['value']}"
            there = asked["url"] + asked["ifNoneExist"] in self.kept
            self.kept.setdefault(asked["url"] + asked["ifNoneExist"], resource)
            answers.append({"response": {"status": "200 OK" if there else "201 Created"}})
        return json.dumps({"resourceType": "Bundle", "type": "transaction-response", "entry": answers}).encode()


def say(database: Database, folder: Path, to: Service) -> bool:
    tell = partial(fhir.tell, {"fhir": to}, database, folder, frozenset())
    return announce(database, "pacs", NoticeForm.FHIR, [TARGET], tell, RETRY)


def test_each_resource_is_there_once_and_has_the_numbers(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path)
    keeper = Keeper()
    with keeper.listening() as to:
        # The first that told it was killed before it could note that.
        with database.write() as connection:
            notices.post(connection, "pacs", [TARGET])
            notice = notices.claim(connection, "pacs", NoticeForm.FHIR, lease_seconds=-1)
        assert notice is not None
        fhir.tell({"fhir": to}, database, tmp_path, frozenset(), notice)
        assert say(database, tmp_path, to)
        assert not say(database, tmp_path, to)
    assert only(database).state is DeliveryState.SENT
    assert keeper.asked_with == ["/r4 application/fhir+json Bearer secret"] * 2
    assert keeper.bundles[0] == keeper.bundles[1]
    study, volume, presence, report = keeper.kept.values()
    assert study["identifier"] == [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}]
    with database.read() as connection:
        (row,) = results.query(connection)
    assert volume["valueQuantity"] == {
        "value": row.value,
        "unit": "Milliliter",
        "system": "http://unitsofmeasure.org",
        "code": "mL",
    }
    assert volume["code"]["coding"] == [{"system": "http://snomed.info/sct", "code": "118565006", "display": "Volume"}]
    assert presence["valueCodeableConcept"]["coding"][0]["code"] == "52101004"
    there = [{"reference": each["fullUrl"]} for each in keeper.bundles[0]["entry"]]
    assert (report["imagingStudy"], report["result"]) == ([there[0]], [there[2], there[1]])
    assert presence["hasMember"] == [there[1]]
    assert "NOT FOR DIAGNOSTIC USE" in report["conclusion"]
    for each in (volume, presence, report):
        assert each["status"] == "preliminary"
        assert each["effectiveDateTime"] == "2026-01-01T10:11:12+01:00"
        assert each["basedOn"][0]["identifier"]["value"] == "ACC1"
        patient = {"value": "47|11^&~", "assigner": {"display": "CLINIC"}}
        assert each["subject"] == {"type": "Patient", "identifier": patient}


def outcome(text: str) -> bytes:
    return json.dumps({"resourceType": "OperationOutcome", "issue": [{"diagnostics": text}]}).encode()


@pytest.mark.parametrize(
    ("says", "states", "reason"),
    [
        ((200, {}, b""), "held", "does not say that all is stored"),
        ((200, {}, b'{"type": "transaction-response", "entry": []}'), "held", "does not say that all is stored"),
        ((201, {}, b"[" * 100_000), "held", "answered HTTP 201"),
        ((302, {"Location": "http://127.0.0.1:1/r4"}, b""), "held", "answered HTTP 302"),
        ((401, {}, b""), "held", "check the credentials"),
        ((422, {}, outcome("no\x1b such Müller" + "x" * 99)), "held", "HTTP 422: no such Müller" + "x" * 49),
        ((412, {}, b'{"issue": 5}'), "held", "answered HTTP 412"),
        ((503, {"Retry-After": "200"}, b""), "retryable retryable", "answered HTTP 503"),
        ((500, {}, outcome("Müller")), "retryable held", "answered HTTP 500"),
    ],
)
def test_the_answer_of_a_server_decides(
    database: Database,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    says: tuple[int, dict[str, str], bytes],
    states: str,
    reason: str,
) -> None:
    post(database, tmp_path)
    with Keeper(says).listening() as to:
        for state in states.split():
            assert say(database, tmp_path, to)
            row = only(database)
            assert (row.state.value, reason in row.reason) == (state, True), row.reason
            if "Retry-After" in says[1]:
                with database.read() as connection:
                    created = connection.execute(tables.notice.select()).one().created_at
                assert (row.available_at - created).total_seconds() > 190
            with database.write() as connection:
                connection.execute(update(tables.notice).values(available_at=0.0))
    assert not re.search("Müller|47.11|secret", "".join(capfd.readouterr()))


def test_a_server_nobody_vouches_for_hears_nothing(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path / "results")
    authority, other = Authority.make(tmp_path / "ca"), Authority.make(tmp_path / "other", "other")
    identity = authority.issue("fhir")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    keeper = Keeper(context=context)
    with keeper.listening() as to:
        say(database, tmp_path / "results", replace(to, trusted=other.file))
        assert (only(database).state, keeper.asked_with) == (DeliveryState.RETRYABLE, [])
        with database.write() as connection:
            notices.requeue(connection, only(database).id)
        say(database, tmp_path / "results", replace(to, trusted=authority.file))
    assert only(database).state is DeliveryState.SENT


def test_who_cannot_be_named_gets_no_report(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path, source(PatientID="47\n11"))
    with Keeper().listening() as to:
        say(database, tmp_path, to)
    assert only(database).reason == "cannot be written as FHIR: Patient ID has a control character in it"


def test_what_could_not_be_measured_is_no_number_and_a_doubt_is_noted() -> None:
    spread = Measurement(name=ATTENUATION, value=12.5, unit=HOUNSFIELD_UNIT, derivation=STANDARD_DEVIATION)
    result = ReportedResult(
        model="m",
        model_version="1",
        status=ResultStatus.NOT_EVALUABLE,
        reason="beyond",
        created_at=NOTICE.created_at,
        findings=(finding(VOLUME_OF_NOTHING, spread),),
    )
    header = replace(HEADER, issuer=Issuer(universal_id="1.2.3.4", universal_type="ISO"))
    bundle = fhir.transaction(NOTICE, header, result, detects=False)
    Keeper().take(bundle)
    _, nothing, spread_of, presence, report = (each["resource"] for each in bundle["entry"])
    assert nothing["dataAbsentReason"]["coding"][0]["code"] == "unknown"
    assert "valueQuantity" not in nothing
    assert spread_of["code"]["coding"][0]["code"] == "112031-386136009"
    assert spread_of["method"]["coding"][0]["display"] == "Standard Deviation"
    assert presence["valueCodeableConcept"]["coding"][0]["display"] == "Undetermined"
    assert [each["note"] for each in (nothing, spread_of, presence)] == [[{"text": "Not evaluable: beyond"}]] * 3
    assert report["conclusion"].startswith("Not evaluable: beyond")
    assert report["subject"]["identifier"] == {"system": "urn:oid:1.2.3.4", "value": "4711"}
    assert "effectiveDateTime" not in report


def test_where_a_finding_is_and_on_which_side() -> None:
    volume = Measurement(name=VOLUME, value=150.5, unit=MILLILITRE)
    result = ReportedResult(
        model="m",
        model_version="1",
        status=ResultStatus.PLAUSIBLE,
        reason="",
        created_at=NOTICE.created_at,
        findings=(replace(BOXED, measurements=(volume,)),),
    )
    bundle = fhir.transaction(NOTICE, HEADER, result, detects=True)
    Keeper().take(bundle)
    study, measured, presence, _ = (each["resource"] for each in bundle["entry"])
    there = {"reference": bundle["entry"][0]["fullUrl"]}
    assert study["resourceType"] == "ImagingStudy"
    for each in (measured, presence):
        assert each["derivedFrom"] == [there]
        assert each["bodySite"]["coding"][0]["code"] == "64033007"
        assert each["component"][0]["code"]["coding"][0]["code"] == "272741003"
        assert each["component"][0]["valueCodeableConcept"]["coding"][0]["display"] == "Left"
    assert len(measured["component"]) == 1
    seen = {each["code"]["coding"][0]["code"]: each for each in presence["component"][1:]}
    pixels = {"unit": "pixels", "system": "http://unitsofmeasure.org", "code": "{pixels}"}
    assert seen["121112"]["valueString"] == "urn:oid:1.2.3.4"
    assert seen["FRAME"]["valueInteger"] == 2
    assert seen["COLUMNS"]["valueRange"] == {"low": {"value": 0.0, **pixels}, "high": {"value": 9.0, **pixels}}
    assert seen["ROWS"]["valueRange"] == {"low": {"value": 2.0, **pixels}, "high": {"value": 7.0, **pixels}}
    centre = [seen[f"CENTRE_{axis}"]["valueQuantity"] for axis in "LPS"]
    assert [(each["value"], each["code"]) for each in centre] == [(-12.5, "mm"), (3.25, "mm"), (100.125, "mm")]
