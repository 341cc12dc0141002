"""What is made and told of a job that failed: for every kind of model a document, and never a number."""

from pathlib import Path
from typing import Any

import pytest
from dicom_factory import make_series
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from reported_samples import CLASSES, DETECTION, DRAWN
from result_samples import contract
from sources import EVERYTHING
from test_fhir import Keeper
from test_fhir import say as say_fhir
from test_hl7 import Ris, observations, post
from test_hl7 import say as say_hl7

from meddaemon.db.engine import Database
from meddaemon.domain.outlet import EDITIONS
from meddaemon.domain.result import Analysis, ResultStatus
from meddaemon.inference.analysis import failed
from meddaemon.results.encoding import EncodingRequest, encode

REASON = "gap: 8 mm between planes 3 and 4"
FAILED = Analysis(status=ResultStatus.FAILED, reason=REASON, segments=(), findings=())


@pytest.fixture
def dialect() -> str:
    return "sqlite"


@pytest.mark.parametrize("model", [DRAWN, CLASSES, DETECTION])
def test_a_failure_of_every_kind_of_model_passes_the_gate(tmp_path: Path, model: dict[str, Any]) -> None:
    deployed = contract(**({"segments": ()} | model))
    request = EncodingRequest(
        analysis=failed(deployed, REASON, entropy="run"),
        contract=deployed,
        sources=make_series(tmp_path),
        editions=EDITIONS,
        kinds=EVERYTHING,
    )
    made = encode(request)
    assert {each.kind for each in made} == {"SR", "SC", "PDF", "KO"}
    for each in made:
        assert dcmread(DicomBytesIO(each.content)).SeriesDescription.startswith("AI FAILED")


def test_a_failure_is_told_by_hl7_with_its_reason_and_without_a_number(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path, said=FAILED)
    ris = Ris()
    with ris.listening() as to:
        assert say_hl7(database, tmp_path, to)
    (heard,) = ris.heard
    told = heard.to_er7()
    assert "|failed^Failed^99MEDDAEMON" in told
    assert f"Failed: {REASON}" in told
    assert "|NM|" not in told
    assert len(observations(heard)) == 3


def test_a_failure_is_told_by_fhir_as_a_report_without_observations(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path, said=FAILED)
    keeper = Keeper()
    with keeper.listening() as to:
        assert say_fhir(database, tmp_path, to)
    kept = {each["resourceType"]: each for each in keeper.kept.values()}
    assert set(kept) == {"ImagingStudy", "DiagnosticReport"}
    assert kept["DiagnosticReport"]["conclusion"].startswith(f"Failed: {REASON}")
