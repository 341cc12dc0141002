"""Of which side a finding is: rows, filters and messages tell it, also where nothing is drawn of it as such."""

from dataclasses import replace

from queue_samples import OUTLETS, analysis, claim, enqueue, received, register
from sqlalchemy import text

from meddaemon.db import jobs, results
from meddaemon.db.engine import Database
from meddaemon.db.reported import reported_result
from meddaemon.domain.codes import LESION_COUNT, UNITY, Code
from meddaemon.domain.filters import parse_filter
from meddaemon.domain.result import Finding, Measurement

NODULE = Code(value="27925004", scheme="SCT", meaning="Nodule")
SIDES = {
    "Left lung nodule": Code(value="7771000", scheme="SCT", meaning="Left"),
    "Right lung nodule": Code(value="24028007", scheme="SCT", meaning="Right"),
}


def test_lesions_of_either_side_are_told_apart(database: Database) -> None:
    study = register(database, received("an instance")).study_id
    enqueue(database, study, rule="rule")
    job = claim(database)
    counted = tuple(
        Finding(
            code=NODULE,
            segment_number=None,
            measurements=(Measurement(name=LESION_COUNT, value=float(count), unit=UNITY, key="count"),),
            label=name,
            laterality=side,
            tracking_uid=f"1.2.{count}",
        )
        for count, (name, side) in enumerate(SIDES.items(), 1)
    )
    drawn = analysis(1400.0)
    with database.write() as connection:
        result = results.record(
            connection,
            jobs.complete(connection, job),
            replace(drawn, findings=(*drawn.findings, *counted)),
            [],
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets=OUTLETS,
        )
    with database.read() as connection:
        rows = connection.execute(text("SELECT segment, value FROM v_measurement ORDER BY measurement_id")).all()
        reported = reported_result(connection, result).findings
        wanted = parse_filter('segment = "Right lung nodule"')
        found = results.query(connection, satisfying=wanted)
    assert [tuple(row) for row in rows] == [("Brain", 1400.0), ("Left lung nodule", 1.0), ("Right lung nodule", 2.0)]
    assert [(each.label, each.laterality) for each in reported] == [("Brain", None), *SIDES.items()]
    assert [(each.segment, each.value) for each in found] == [("Right lung nodule", 2.0)]
