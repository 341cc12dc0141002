"""A study that contradicts itself is held, whatever happens to it, until an operator releases it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from queue_samples import claim, received, register
from sqlalchemy import update

from meddaemon import pipeline
from meddaemon.cli.explain import explain
from meddaemon.config.settings import Settings, load
from meddaemon.db import history, holds, jobs, studies, tables
from meddaemon.db.engine import Database
from meddaemon.domain.errors import NotFound, StudyHeld
from meddaemon.domain.states import STUDY_TRANSITIONS, JobState, StudyEvent, StudyState, study_moves
from tests.admission import let_in
from tests.db.test_studies import MODEL, RULE


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    model = tmp_path / "models" / "example"
    model.mkdir(parents=True)
    (model / "contract.toml").write_text(MODEL)
    let_in(model / "contract.toml")
    file = tmp_path / "meddaemon.toml"
    heading = f'[store]\ndirectory = "store"\n[database]\nurl = "{database_url}"\n[completeness]\nquiet_seconds = 0.0\n'
    file.write_text(f'{heading}[models]\ndirectories = ["models"]\n{RULE.format(name="rule")}')
    file.chmod(0o600)
    return load(file, {})


def _send(database: Database, content: str, *, patient: str = "4711", **values: str) -> int:
    header = {"Modality": (values.pop("modality", "CT"),), "PatientID": (patient,), "Rows": ("64",), "Columns": ("64",)}
    return register(database, received(content, header=header, **values)).study_id


def _summary(database: Database, study_id: int) -> studies.StudySummary:
    with database.read() as connection:
        (summary,) = studies.summaries(connection, study_id=study_id)
    return summary


def _state(database: Database, study_id: int) -> StudyState:
    return _summary(database, study_id).state


def _release(database: Database, study_id: int) -> None:
    with database.write() as connection:
        holds.release(connection, study_id, quiet_seconds=0.0)


def _asked(database: Database, study_id: int) -> list[int]:
    """Return the generations in which the rule was asked."""
    with database.read() as connection:
        return [each.generation for each in history.decisions(connection, study_id)]


@pytest.mark.parametrize(
    ("kind", "contradict"),
    [
        ("PatientID", lambda database: _send(database, "b", patient="4712")),
        ("Modality", lambda database: _send(database, "b", modality="MR")),
        ("SeriesInstanceUID", lambda database: _send(database, "b", study="9.9")),
    ],
)
def test_a_study_that_contradicts_itself_is_held_and_says_why(
    database: Database, settings: Settings, kind: str, contradict: Callable[[Database], int]
) -> None:
    """Faults 78, 81: no rule is carried out, nor is what an operator forces."""
    study = _send(database, "a")
    contradict(database)
    pipeline.admit(database, settings)
    summary = _summary(database, study)
    assert (summary.state, summary.held_for) == (StudyState.HELD, kind)
    assert _asked(database, study) == []
    with database.read() as connection:
        assert study in holds.held(connection)
        assert jobs.listing(connection) == []
        told = "\n".join(explain(connection, str(study)))
    assert kind in told
    assert f"meddaemon studies release {study}" in told
    assert "471" not in told
    with pytest.raises(StudyHeld, match=f"{kind}.*studies release {study}"):
        pipeline.force(database, settings, wanted=str(study), model="example", series=None, destinations=())


def test_both_studies_that_have_the_same_series_are_held(database: Database, settings: Settings) -> None:
    held = {_send(database, "a"), _send(database, "b", study="9.9")}
    assert len(held) == 2
    pipeline.admit(database, settings)
    with database.read() as connection:
        assert set(holds.held(connection)) == held


def test_nothing_but_a_release_lets_it_go_on(database: Database, settings: Settings) -> None:
    """Faults 79, 81: neither a late instance, nor a re-send, nor a changed model, nor time."""
    study = _send(database, "a")
    pipeline.admit(database, settings)
    claim(database)
    _send(database, "b", patient="4712")
    for happen in (
        lambda: None,
        lambda: _send(database, "late"),
        lambda: _send(database, "b", patient="4712"),
        lambda: _changed(database),
    ):
        happen()
        pipeline.admit(database, settings)
        assert _state(database, study) is StudyState.HELD
        assert _asked(database, study) == [1]
    _release(database, study)
    assert _summary(database, study).held_for == ""
    pipeline.admit(database, settings)
    assert _state(database, study) is StudyState.COMPLETE
    assert _asked(database, study) == [1, 2]
    with database.read() as connection:
        newest, first = jobs.listing(connection)
    assert (newest.state, len(newest.inputs["image"]), first.state) == (JobState.AVAILABLE, 3, JobState.CANCELLED)


def _changed(database: Database) -> None:
    with database.write() as connection:
        studies.reopen_for_changed_models(connection, {"example": "another"})


def test_what_was_released_does_not_hold_again_and_anything_new_does(database: Database, settings: Settings) -> None:
    study = _send(database, "a")
    _send(database, "b", patient="4712")
    pipeline.admit(database, settings)
    _release(database, study)
    pipeline.admit(database, settings)
    assert _state(database, study) is StudyState.COMPLETE
    _send(database, "c", patient="4712")
    pipeline.admit(database, settings)
    assert _state(database, study) is StudyState.COMPLETE
    _send(database, "d", patient="4713")
    pipeline.admit(database, settings)
    assert _state(database, study) is StudyState.HELD
    with database.read() as connection:
        assert [bool(each.released_at) for each in holds.listing(connection, study)] == [True, False]


def test_only_a_held_study_can_be_released(database: Database) -> None:
    study = _send(database, "a")
    with pytest.raises(NotFound, match="is not held"):
        _release(database, study)
    assert _state(database, study) is StudyState.RECEIVING


def test_the_order_of_arrival_does_not_matter_to_what_was_released(database: Database, settings: Settings) -> None:
    """The contradiction is known by its values, not by who came first."""
    study = _send(database, "a")
    _send(database, "b", patient="4712")
    for _ in range(3):
        with database.write() as connection:
            connection.execute(update(tables.study).values(due_at=0.0))
        pipeline.admit(database, settings)
    with database.read() as connection:
        assert len(holds.listing(connection, study)) == 1


NOBODY = {"Modality": ("CT",), "Rows": ("64",), "Columns": ("64",), "PatientID": (" ",)}


@pytest.mark.fault(62)
def test_a_study_of_nobody_is_held_until_it_is_released(database: Database, settings: Settings) -> None:
    study = register(database, received("a", header=NOBODY)).study_id
    assert pipeline.admit(database, settings) == 1
    assert (_state(database, study), _summary(database, study).held_for) == (StudyState.HELD, "unidentified")
    assert _asked(database, study) == []
    with database.read() as connection:
        told = "\n".join(explain(connection, str(study)))
    assert "no Patient ID and no Patient's Name in any of its 1 instances" in told
    _release(database, study)
    assert pipeline.admit(database, settings) == 1
    assert _state(database, study) is StudyState.COMPLETE
    assert claim(database).study_id == study
    # Released is released: another image of nobody does not hold it again.
    register(database, received("b", header=NOBODY))
    assert pipeline.admit(database, settings) == 1
    assert _state(database, study) is StudyState.COMPLETE


@pytest.mark.fault(62)
@pytest.mark.parametrize("named", [{"PatientID": ("4711",)}, {"PatientName": ("Anonymous",)}])
def test_one_name_is_enough(database: Database, settings: Settings, named: dict[str, tuple[str, ...]]) -> None:
    study = register(database, received("a", header=NOBODY)).study_id
    register(database, received("b", header={**NOBODY, **named}))
    assert pipeline.admit(database, settings) == 1
    assert _state(database, study) is StudyState.COMPLETE


@pytest.mark.fault(62)
def test_research_may_let_studies_of_nobody_through(database: Database, settings: Settings) -> None:
    lenient = replace(settings, completeness=settings.completeness.model_copy(update={"hold_unidentified": False}))
    study = register(database, received("a", header=NOBODY)).study_id
    assert pipeline.admit(database, lenient) == 1
    assert _state(database, study) is StudyState.COMPLETE


def test_the_table_of_states_is_closed_and_only_a_release_leads_out_of_held() -> None:
    assert set(STUDY_TRANSITIONS) == set(StudyState)
    assert study_moves(StudyEvent.RECEIVE) == {
        StudyState.RECEIVING: StudyState.RECEIVING,
        StudyState.COMPLETE: StudyState.RECEIVING,
        StudyState.HELD: StudyState.HELD,
    }
    out = {event for event in StudyEvent if study_moves(event).get(StudyState.HELD, StudyState.HELD) != StudyState.HELD}
    assert out == {StudyEvent.RELEASE}
