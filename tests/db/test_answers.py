"""Results of every kind as rows: what is there and what is not, how sure, where, and what could not be measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from queue_samples import BRAIN, OUTLETS, analysis, claim, enqueue, received, register, stored_objects
from typer.testing import CliRunner

from meddaemon.cli.app import app
from meddaemon.db import jobs, results
from meddaemon.db.engine import Database
from meddaemon.db.results import ResultRow
from meddaemon.domain.codes import CERTAINTY_OF_FINDING, PERCENT, Code
from meddaemon.domain.result import Analysis, Box, Finding, Landmark, Measurement, ResultStatus

NODULE = Code(value="27925004", scheme="SCT", meaning="Nodule")


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def certainty(percent: float | None) -> tuple[Measurement, ...]:
    return (Measurement(name=CERTAINTY_OF_FINDING, value=percent, unit=PERCENT),)


def finding(code: Code = NODULE, percent: float | None = 75.0, **said: object) -> Finding:
    return Finding(code=code, segment_number=None, measurements=certainty(percent), **said)  # type: ignore[arg-type]


def said(*findings: Finding, status: ResultStatus = ResultStatus.PLAUSIBLE, reason: str = "") -> Analysis:
    """What a model says of a volume of one plane."""
    return replace(analysis(), status=status, reason=reason, segments=(), findings=findings, labels=None)


def recorded(database: Database, study: int, analysis: Analysis, *, objects: bool = False) -> list[ResultRow]:
    """Complete a job with an analysis; return its rows, oldest first."""
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        result_id = results.record(
            connection,
            jobs.complete(connection, job),
            analysis,
            stored_objects(job) if objects else [],
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={"left out SEG": "nothing was drawn"},
            seconds={},
            outlets=OUTLETS,
        )
        rows = results.query(connection)
    return [row for row in reversed(rows) if row.result_id == result_id]


def test_a_class_is_there_or_not_and_both_are_told(database: Database, study: int) -> None:
    there, absent = recorded(database, study, said(finding(BRAIN), finding(percent=2.5, present=False)))
    assert (there.finding, there.present, there.measurement, there.value, there.unit) == (
        "Brain",
        True,
        "Certainty of Finding",
        75.0,
        "%",
    )
    assert (absent.finding, absent.present, absent.value) == ("Nodule", False, 2.5)
    assert (there.segment, there.place, there.objects) == (None, "", 0)


def test_a_box_in_a_volume_has_its_corners_its_image_and_its_place_in_the_patient(
    database: Database, study: int
) -> None:
    box = Box(label=1, score=0.75, low=(-0.5, 0.5, 0.5), high=(0.5, 1.5, 2.5))
    (row,) = recorded(database, study, said(finding(box=box)))
    assert (row.low_plane, row.low_row, row.low_column) == box.low
    assert (row.high_plane, row.high_row, row.high_column) == box.high
    assert (row.sop_instance_uid, row.frame_number) == ("1.2.3.1.1", 1)
    assert (row.x, row.y, row.z) == (0.0, 1.0, 1.5)
    assert row.place == "0.0 1.0 1.5 mm LPS"


def test_a_box_on_a_picture_has_no_plane_and_no_place_in_the_patient(database: Database, study: int) -> None:
    box = Box(label=1, score=0.75, low=(9.5, 19.5), high=(19.5, 39.5), source=("1.2.9", 4))
    (row,) = recorded(database, study, replace(said(finding(box=box)), geometry=None))
    assert (row.low_plane, row.high_plane, row.x) == (None, None, None)
    assert (row.sop_instance_uid, row.frame_number, row.place) == ("1.2.9", 4, "row 14.5 column 29.5")


def test_a_landmark_is_a_point(database: Database, study: int) -> None:
    point = Landmark(label=1, score=1.0, position=(0.0, 1.0, 1.5))
    (row,) = recorded(database, study, said(finding(landmark=point)))
    assert (row.low_row, row.low_column) == (row.high_row, row.high_column) == (1.0, 1.5)
    assert (row.x, row.y, row.z) == (0.0, 1.0, 1.5)


def test_what_could_not_be_measured_is_a_row_without_a_number(database: Database, study: int) -> None:
    unmeasured = said(finding(percent=None, present=False), status=ResultStatus.NOT_EVALUABLE, reason="too few planes")
    (row,) = recorded(database, study, unmeasured)
    assert (row.value, row.present, row.status, row.reason) == (
        None,
        False,
        ResultStatus.NOT_EVALUABLE,
        "too few planes",
    )
    with database.read() as connection:
        assert results.query(connection, minimum=-1e9) == []
        (head,) = results.heads(connection, study_id=study)
        assert (head.status, head.reason) == (ResultStatus.NOT_EVALUABLE, "too few planes")


def test_rows_say_how_many_objects_carry_their_result(database: Database, study: int) -> None:
    assert [row.objects for row in recorded(database, study, analysis(), objects=True)] == [2]
    assert [row.objects for row in recorded(database, study, said(finding()))] == [0]


def test_the_command_line_shows_every_kind(database: Database, database_url: str, study: int, tmp_path: Path) -> None:
    box = Box(label=1, score=0.75, low=(-0.5, 0.5, 0.5), high=(0.5, 1.5, 2.5))
    recorded(database, study, said(finding(box=box), finding(BRAIN, 2.5, present=False)))
    reason = "beyond_limits: input image: planes 4; the model takes at least 20"
    recorded(
        database, study, said(finding(percent=None, present=False), status=ResultStatus.NOT_EVALUABLE, reason=reason)
    )
    config = tmp_path / "meddaemon.toml"
    config.write_text(f'[database]\nurl = "{database_url}"\n[store]\ndirectory = "{tmp_path}/store"\n')
    run = CliRunner()
    table = run.invoke(app, ["results", "--config", str(config)], catch_exceptions=False).stdout
    assert "not_evaluable" in table
    assert "0.0 1.0 1.5 mm LPS" in table
    rows = json.loads(run.invoke(app, ["results", "--format", "json", "--config", str(config)]).stdout)
    assert [row["value"] for row in rows] == [None, 2.5, 75.0]
    assert [row["present"] for row in rows] == [False, False, True]
    explained = run.invoke(app, ["explain", str(study), "--config", str(config)], catch_exceptions=False).stdout
    assert f"not_evaluable\n    {reason}\n    Nodule: not measured" in explained
    assert "Nodule: Certainty of Finding 75 %, 0.0 1.0 1.5 mm LPS" in explained
    assert "Brain: Certainty of Finding 2.5 %, not present" in explained
    assert "goes nowhere: no destination has 'not_evaluable' among its statuses" in explained
