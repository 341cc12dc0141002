"""Whole results as an evaluation reads them, on both databases."""

from queue_samples import BRAIN, claim, enqueue, finish, received, register

from meddaemon.db import outcomes
from meddaemon.db.engine import Database
from meddaemon.domain.result import ResultStatus


def finished(database: Database, study: int, **values: object) -> int:
    enqueue(database, study, **values)
    job = claim(database)
    with database.write() as connection:
        return finish(connection, job)


def test_results_that_stand_come_with_everything_they_say(database: Database) -> None:
    study = register(database, received("an instance")).study_id
    former = finished(database, study, rule="again")
    latest = finished(database, study, rule="again")
    finished(database, study, model="other")
    with database.read() as connection:
        (outcome,) = outcomes.outcomes(connection, "model")
        assert outcomes.count_superseded(connection, "model") == 1
        assert outcomes.models(connection) == ["model", "other"]
        assert outcomes.outcomes(connection, "model", version="2") == []
    assert former != outcome.result_id == latest
    assert (outcome.study_instance_uid, outcome.series_instance_uid) == ("1.2.3", "1.2.3.1")
    assert (outcome.status, outcome.model_version) == (ResultStatus.PLAUSIBLE, "1")
    (found,) = outcome.findings
    assert (found.code_value, found.segment, found.volume_ml, found.certainty) == (BRAIN.value, "Brain", 1400.0, None)
    assert (found.sop_instance_uid, found.low, found.centre_lps, found.present) == ("", None, None, True)
    assert len(outcome.objects) == 2


def test_studies_without_a_result_say_why(database: Database) -> None:
    asked = register(database, received("one", study="1.2.31", series="1.2.31.1")).study_id
    register(database, received("two", study="1.2.32", series="1.2.32.1"))
    job = enqueue(database, asked)
    with database.read() as connection:
        said = outcomes.unanswered(connection, "model", ["1.2.31", "1.2.32", "1.2.33"])
    assert said == {"1.2.31": f"job {job} is available", "1.2.32": "the model was not asked for it"}


def test_studies_of_one_patient_are_known_without_naming_whose_they_are(database: Database) -> None:
    for study, patient in (("1.2.31", "A"), ("1.2.32", "B"), ("1.2.33", "A"), ("1.2.34", "")):
        header = {"Modality": ("CT",), "PatientID": (patient,)}
        register(database, received(study, study=study, series=f"{study}.1", header=header))
    with database.read() as connection:
        everything = outcomes.patients(connection, ["1.2.31", "1.2.32", "1.2.33", "1.2.34"])
        same = outcomes.patients(connection, ["1.2.31", "1.2.33"])
    assert everything == {"1.2.31": "1.2.31", "1.2.33": "1.2.31", "1.2.32": "1.2.32"}
    assert same == {}


def test_any_number_of_studies_may_be_asked_for(database: Database) -> None:
    register(database, received("one", study="1.2.31", series="1.2.31.1"))
    with database.read() as connection:
        said = outcomes.unanswered(connection, "model", [f"1.9.{n}" for n in range(1200)] + ["1.2.31"])
    assert list(said) == ["1.2.31"]
