"""What is kept beside a result, as rows of both databases: what it shows, where it lies, and which file has it."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from queue_samples import OUTLETS, analysis, claim, enqueue, received, register
from sqlalchemy import delete

from meddaemon.db import instances, jobs, results, tables
from meddaemon.db.engine import Database
from meddaemon.db.results import StoredArtefact
from meddaemon.domain.codes import STANDARD_DEVIATION
from meddaemon.domain.result import Artefact, ArtefactKind, Measurement


def kept(artefact: Artefact) -> StoredArtefact:
    sha256 = hashlib.sha256(artefact.name.encode() + str(artefact.source).encode()).hexdigest()
    return StoredArtefact(artefact=artefact, sha256=sha256, size=1234)


@pytest.fixture
def study(database: Database) -> int:
    return register(database, received("an instance")).study_id


def recorded(database: Database, study: int, *artefacts: Artefact) -> int:
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        return results.record(
            connection,
            jobs.complete(connection, job),
            analysis(),
            [],
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets=OUTLETS,
            artefacts=[kept(each) for each in artefacts],
        )


def test_an_artefact_says_what_it_shows_and_where(database: Database, study: int) -> None:
    geometry = analysis().geometry
    assert geometry is not None
    volume = Artefact(kind=ArtefactKind.PROBABILITY, of="Liver", values=np.zeros(geometry.shape, np.float16))
    picture = Artefact(
        kind=ArtefactKind.SALIENCY, of="Nodule", values=np.zeros((3, 4), np.float16), source=("1.2.9", 2)
    )
    result = recorded(database, study, volume, picture)
    with database.read() as connection:
        one, other = results.artefacts(connection, study_id=study)
        assert results.artefacts(connection, result_id=result) == [one, other]
        assert results.artefacts(connection, result_id=result + 1) == []
        assert results.artefacts(connection, study_id=study + 1) == []
        known = instances.indexed_results(connection, one.sha256[:2])
    assert (one.kind, one.of, one.unit, one.shape) == (ArtefactKind.PROBABILITY, "Liver", "1", geometry.shape)
    assert one.affine_lps is not None
    np.testing.assert_array_equal(one.affine_lps, geometry.affine_lps)
    assert (one.frame_of_reference_uid, one.sop_instance_uid) == (geometry.frame_of_reference_uid, None)
    assert (other.affine_lps, other.frame_of_reference_uid) == (None, "")
    assert (other.sop_instance_uid, other.frame_number, other.voxels) == ("1.2.9", 2, "3 × 4")
    assert known[one.sha256].size == one.size == 1234


def test_artefacts_go_with_their_result(database: Database, study: int) -> None:
    values = np.zeros((1, 2, 2), np.float16)
    result = recorded(database, study, Artefact(kind=ArtefactKind.SPREAD, of="Liver", values=values))
    with database.write() as connection:
        connection.execute(delete(tables.result).where(tables.result.c.id == result))
    with database.read() as connection:
        assert results.artefacts(connection, result_id=result) == []


def test_a_derived_number_is_told_from_the_number_itself(database: Database, study: int) -> None:
    first = analysis()
    (volume,) = first.findings[0].measurements
    spread = Measurement(name=volume.name, value=0.5, unit=volume.unit, derivation=STANDARD_DEVIATION)
    first = replace(first, findings=(replace(first.findings[0], measurements=(volume, spread)),))
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        results.record(
            connection,
            jobs.complete(connection, job),
            first,
            [],
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets=OUTLETS,
        )
        rows = results.query(connection, study_id=study)
    assert {(row.derivation, row.value) for row in rows} == {("", volume.value), ("Standard Deviation", 0.5)}
