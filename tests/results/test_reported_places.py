"""Messages say where a finding is with the numbers of the report, and of which side its segment is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from queue_samples import analysis, received, register
from reported_samples import detected_in_volume, each_classified, marked
from test_hl7 import post

from meddaemon.db.engine import Database
from meddaemon.db.reported import ReportedFinding, reported_result
from meddaemon.domain.codes import Code
from meddaemon.domain.result import Analysis
from meddaemon.results.notices.content import extents_of
from meddaemon.results.report.groups import outline
from meddaemon.results.request import EncodingRequest


@pytest.fixture
def dialect() -> str:
    """The schema has its own tests, on both; here one database will do."""
    return "sqlite"


def told(database: Database, folder: Path, said: Analysis) -> tuple[ReportedFinding, ...]:
    """What messages are told of a result on images of 12 rows and 10 columns."""
    for uid in {place.sop_instance_uid for each in said.findings if (place := said.location(each))}:
        register(database, received(uid, sop_instance_uid=uid, header={"Rows": ("12",), "Columns": ("10",)}))
    post(database, folder, said=said)
    with database.read() as connection:
        return reported_result(connection, 1).findings


@pytest.mark.parametrize("sample", [detected_in_volume, marked])
def test_a_message_has_the_region_of_the_report(
    database: Database, tmp_path: Path, sample: Callable[[Path], EncodingRequest]
) -> None:
    said = sample(tmp_path / "source").analysis
    located = 0
    for finding, known in zip(told(database, tmp_path, said), said.findings, strict=True):
        if (place := said.location(known)) is None:
            continue
        located += 1
        region = outline(place, 12, 10)
        # Columns come before rows in a region.
        columns, rows, *centre = extents_of(finding)
        for extent, values in zip((columns, rows), region.T, strict=True):
            assert (extent.low, extent.high) == pytest.approx((values.min(), values.max()), rel=1e-5)
        assert [each.low for each in centre] == pytest.approx(place.centre_lps, rel=1e-5)
        assert finding.place is not None
        assert finding.place.sop_instance_uid == place.sop_instance_uid
    assert located == len([each for each in said.findings if each.box or each.landmark]) > 0


def test_an_answer_about_an_image_names_it_and_no_place_on_it(database: Database, tmp_path: Path) -> None:
    said = each_classified(tmp_path / "source").analysis
    findings = told(database, tmp_path, said)
    assert [each.place.sop_instance_uid for each in findings if each.place] == [
        each.source[0] for each in said.findings if each.source
    ]
    assert [list(extents_of(each)) for each in findings] == [[]] * len(said.findings)


def test_a_finding_is_of_the_side_of_its_segment_and_at_what_is_anatomy(database: Database, tmp_path: Path) -> None:
    said = analysis()
    left = Code(value="7771000", scheme="SCT", meaning="Left")
    anatomy = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
    (segment,) = said.segments
    (of_organ,) = told(
        database, tmp_path, replace(said, segments=(replace(segment, category=anatomy, laterality=left),))
    )
    assert (of_organ.laterality, of_organ.site) == (left, segment.type)
    post(database, tmp_path / "more", said=said)
    with database.read() as connection:
        (of_tissue,) = reported_result(connection, 2).findings
    assert (of_tissue.laterality, of_tissue.site) == (None, None)
