"""Completeness and admission: quiet times, generations, re-sends, conflicts, and one decision whoever asks."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from queue_samples import claim, enqueue, finish, received, register, somebody_waits, stored_objects, wait_until
from running import run_together
from sqlalchemy import Connection

from meddaemon import pipeline
from meddaemon.config.settings import Settings, load
from meddaemon.db import deliveries, history, instances, jobs, requests, results, studies
from meddaemon.db.engine import Database
from meddaemon.db.history import DecisionRow
from meddaemon.db.instances import Received, Registration
from meddaemon.db.studies import DueStudy, StudySummary
from meddaemon.domain.errors import NotFound
from meddaemon.domain.states import DeliveryState, JobEvent, JobState, StudyState
from meddaemon.ingest.store import as_part10
from tests.admission import let_in
from tests.ingest.encoded import written

ADMITTING = Path(__file__).with_name("admitting.py")

MODEL = """\
name = "example"
title = "Example"
version = "1"
manufacturer = "Nobody"
[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "CT" }
[[segments]]
label = 1
name = "Brain"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "12738006", scheme = "SCT", meaning = "Brain" }
colour = [1, 2, 3]
"""

RULE = """
[[rules]]
name = "{name}"
models = ["example"]
"""


def _settings(folder: Path, url: str, rules: str) -> Settings:
    model = folder / "models" / "example"
    model.mkdir(parents=True, exist_ok=True)
    (model / "contract.toml").write_text(MODEL)
    let_in(model / "contract.toml")
    file = folder / "meddaemon.toml"
    heading = f'[store]\ndirectory = "store"\n[database]\nurl = "{url}"\n[completeness]\nquiet_seconds = 0.0\n'
    file.write_text(f'{heading}[models]\ndirectories = ["models"]\n{rules}')
    file.chmod(0o600)
    return load(file, {})


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Callable[[str], Settings]:
    """Make settings with these rules, and a model that takes every CT series."""
    return lambda rules: _settings(tmp_path, database_url, rules)


def _due(database: Database) -> DueStudy | None:
    with database.write() as connection:
        return _lock_due(connection)


def _lock_due(connection: Connection) -> DueStudy | None:
    """Take the study that has been due for longest, as the scheduler does."""
    locked = (studies.lock_due(connection, study_id) for study_id in studies.due_ids(connection))
    return next((due for due in locked if due is not None), None)


def _summary(database: Database, study_id: int) -> StudySummary:
    with database.read() as connection:
        (summary,) = studies.summaries(connection, study_id=study_id)
    return summary


def _decisions(database: Database, study_id: int) -> list[DecisionRow]:
    with database.read() as connection:
        return history.decisions(connection, study_id)


def _generations(database: Database, study_id: int) -> list[tuple[int, str]]:
    return [(each.generation, each.rule) for each in _decisions(database, study_id)]


def _states(database: Database) -> list[tuple[int, JobState]]:
    """Return generation and state of each job, oldest first."""
    with database.read() as connection:
        return [(job.generation, job.state) for job in jobs.listing(connection)[::-1]]


def _decide(database: Database, study_id: int, generation: int, rule: str = "rule", *, done: bool = True) -> None:
    with database.write() as connection:
        studies.record_decision(
            connection, study_id=study_id, generation=generation, rule=rule, matched=True, reason="", detail={}
        )
        studies.wait_for(connection, study_id, None if done else 3600.0)


# --- registering -------------------------------------------------------------------------------------------------


def test_a_study_begins_with_its_first_instance(database: Database) -> None:
    registration = register(database, received("a"), quiet_seconds=30)
    summary = _summary(database, registration.study_id)
    assert registration == Registration(study_id=summary.id, new=True, conflict=False)
    assert (summary.state, summary.generation, summary.series, summary.instances, summary.patient_id) == (
        StudyState.RECEIVING,
        1,
        1,
        1,
        "4711",
    )


def test_an_identical_resend_changes_nothing(database: Database) -> None:
    first = register(database, received("a"))
    _decide(database, first.study_id, 1)
    before = _summary(database, first.study_id)
    again = register(database, received("a"), quiet_seconds=0)
    assert again == Registration(study_id=first.study_id, new=False, conflict=False)
    assert _summary(database, first.study_id) == before
    assert before.state is StudyState.COMPLETE
    assert _due(database) is None


def test_a_late_instance_opens_the_next_generation(database: Database) -> None:
    study = register(database, received("a")).study_id
    register(database, received("b"))
    assert _summary(database, study).generation == 1
    _decide(database, study, 1)
    register(database, received("c"))
    register(database, received("d"))
    summary = _summary(database, study)
    assert (summary.state, summary.generation, summary.instances) == (StudyState.RECEIVING, 2, 4)


def test_an_instance_after_the_first_decision_belongs_to_the_next_generation(database: Database) -> None:
    """Rules may have different quiet times: one has decided while another still waits."""
    study = register(database, received("a")).study_id
    _decide(database, study, 1, done=False)
    assert _summary(database, study).state is StudyState.RECEIVING
    register(database, received("b"))
    assert _summary(database, study).generation == 2


@pytest.mark.parametrize("done", [True, False])
def test_an_instance_that_arrives_while_rules_are_decided_belongs_to_the_next_generation(
    database: Database, *, done: bool
) -> None:
    study = register(database, received("a")).study_id
    begun = threading.Event()

    def arrive() -> Registration:
        assert begun.wait(30)
        return register(database, received("b"))

    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(arrive)
        with database.write() as connection:
            due = _lock_due(connection)
            assert due is not None
            begun.set()
            if database.dialect == "postgresql":
                wait_until(lambda: somebody_waits(database) or late.done())
            loaded = studies.load_instances(connection, study, Path("store"))
            studies.record_decision(
                connection, study_id=study, generation=due.generation, rule="r", matched=True, reason="", detail={}
            )
            studies.wait_for(connection, study, None if done else 3600.0)
        assert late.result(30).new
    assert [len(each) for each in loaded.values()] == [1]
    assert _summary(database, study).generation == 2


def test_other_content_under_the_same_uid_is_kept_and_not_used(database: Database) -> None:
    uid = "1.2.3.1.1"
    first = register(database, received("a", sop_instance_uid=uid))
    second = register(database, received("b", sop_instance_uid=uid))
    assert (first.conflict, second.conflict, second.new) == (False, True, True)
    with database.read() as connection:
        loaded = studies.load_instances(connection, first.study_id, Path("store"))
        assert instances.counts(connection) == {"stored": 2, "conflicts": 1, "missing": 0}
        (series,) = history.series(connection, first.study_id)
    assert [each.sha256 for each in loaded["1.2.3.1"]] == [received("a").sha256]
    assert (series.instances, series.conflicts) == (2, 1)
    again = register(database, received("b", sop_instance_uid=uid))
    assert (again.new, again.conflict) == (False, False)


def test_our_own_result_that_comes_back_reopens_nothing(database: Database) -> None:
    study = register(database, received("a")).study_id
    enqueue(database, study)
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
    _decide(database, study, 1)
    before = _summary(database, study)
    (seg, _) = stored_objects(job)
    came_back = received("as the PACS sent it", series="1.2.9", sop_instance_uid=seg.encoded.sop_instance_uid)
    assert register(database, came_back) == Registration(study_id=study, new=True, conflict=False)
    after = _summary(database, study)
    assert (after.state, after.generation, after.last_received_at) == (
        before.state,
        before.generation,
        before.last_received_at,
    )
    assert _due(database) is None
    with database.read() as connection:
        assert "1.2.9" not in studies.load_instances(connection, study, Path("store"))


def test_many_senders_of_one_study_lose_nothing(database: Database) -> None:
    together = threading.Barrier(8)

    def send(sender: int) -> list[Registration]:
        together.wait(30)
        # Every instance is sent by two of the eight, at about the same time.
        return [register(database, received(f"{(sender % 4) * 5 + each}", series=f"1.2.{each}")) for each in range(5)]

    with ThreadPoolExecutor(8) as threads:
        registrations = [each for sent in threads.map(send, range(8)) for each in sent]
    assert sum(each.new for each in registrations) == 20
    assert len({each.study_id for each in registrations}) == 1
    summary = _summary(database, registrations[0].study_id)
    assert (summary.series, summary.instances, summary.generation) == (5, 20, 1)


def test_text_that_a_hostile_header_carries_is_kept(database: Database) -> None:
    header = {"PatientID": ("a\0b\ud800" + "x" * 300,), "StudyDate": ("not a date at all",), "Modality": ("\0" * 40,)}
    study = register(database, received("a", header=header, calling_ae_title="\0AE")).study_id
    assert _summary(database, study).patient_id.startswith("a\ufffdb?xxx")
    with database.read() as connection:
        (loaded,) = studies.load_instances(connection, study, Path("store"))["1.2.3.1"]
    assert loaded.header == header
    assert loaded.calling_ae_title == "\ufffdAE"


# --- due ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault(82)
def test_a_study_is_due_once_it_has_been_quiet(database: Database) -> None:
    waiting = register(database, received("a"), quiet_seconds=3600).study_id
    assert _due(database) is None
    quiet = register(database, received("b", study="9", series="9.1"), quiet_seconds=0).study_id
    due = _due(database)
    assert due is not None
    assert (due.id, due.study_instance_uid, due.generation) == (quiet, "9", 1)
    assert 0 <= due.quiet_for < 60
    register(database, received("c", study="9", series="9.1"), quiet_seconds=3600)
    assert _due(database) is None
    with database.write() as connection:
        studies.wait_for(connection, waiting, 0.0)
    due = _due(database)
    assert due is not None
    assert due.id == waiting


def test_the_study_that_is_due_for_longest_comes_first(database: Database) -> None:
    second = register(database, received("a"), quiet_seconds=-10).study_id
    first = register(database, received("b", study="9", series="9.1"), quiet_seconds=-20).study_id
    due = _due(database)
    assert due is not None
    assert due.id == first
    _decide(database, first, 1)
    due = _due(database)
    assert due is not None
    assert due.id == second


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_a_study_in_hand_is_not_due_for_others(database: Database) -> None:
    register(database, received("a"))
    other = register(database, received("b", study="9", series="9.1")).study_id
    with database.write() as one, database.write() as another:
        first, second = _lock_due(one), _lock_due(another)
        assert first is not None
        assert second is not None
        assert {first.id, second.id} == {first.id, other}
        assert _due(database) is None


# --- admitting ---------------------------------------------------------------------------------------------------


def test_processes_that_admit_at_the_same_time_decide_once(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    configured = settings(RULE.format(name="first") + RULE.format(name="second"))
    ids = [
        register(database, received(f"instance {study}", study=f"1.{study}", series=f"1.{study}.1")).study_id
        for study in range(12)
    ]
    said = run_together(*[[str(ADMITTING), str(configured.file)]] * 2)
    assert sum(int(out.splitlines()[-1]) for out in said) == 12
    for study in ids:
        assert _generations(database, study) == [(1, "first"), (1, "second")]
        assert _summary(database, study).state is StudyState.COMPLETE
        assert _summary(database, study).jobs == 1
    assert _states(database) == [(1, JobState.AVAILABLE)] * 12


def test_what_was_decided_and_its_job_are_there_together_or_not(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    configured = settings(RULE.format(name="first"))
    study = register(database, received("a")).study_id
    assert pipeline.admit(database, configured) == 1
    (decision,) = _decisions(database, study)
    assert decision.matched
    assert decision.detail["jobs"] == [claim(database).id]
    assert pipeline.admit(database, configured) == 0


@pytest.mark.fault(79)
def test_a_late_instance_replaces_the_work_on_what_was_there(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    configured = settings(RULE.format(name="first"))
    study = register(database, received("a")).study_id
    pipeline.admit(database, configured)
    held = claim(database)
    register(database, received("b"))
    pipeline.admit(database, configured)
    assert _generations(database, study) == [(1, "first"), (2, "first")]
    assert _states(database) == [(1, JobState.CANCELLED), (2, JobState.AVAILABLE)]
    fresh = claim(database)
    assert [len(each) for each in fresh.inputs.values()] == [2]
    with database.write() as connection:
        finish(connection, fresh)
    with database.read() as connection:
        (head,) = results.heads(connection, study_id=study)
    assert head.job_id == fresh.id != held.id


def test_a_late_instance_that_no_model_wants_repeats_no_work(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    configured = settings(RULE.format(name="first"))
    study = register(database, received("a")).study_id
    pipeline.admit(database, configured)
    register(database, received("a report", series="1.2.3.2", header={"Modality": ("SR",)}))
    pipeline.admit(database, configured)
    assert _generations(database, study) == [(1, "first"), (2, "first")]
    # The one job is that of the second generation now.
    assert _states(database) == [(2, JobState.AVAILABLE)]


ONLY = 'series = {{ attribute = "SeriesDescription", equals = "{uid}" }}\n'


def _asked_for(series: str) -> str:
    return RULE.format(name="first") + ONLY.format(uid=series)


def _described(series: str) -> Received:
    header = {"Modality": ("CT",), "PatientID": ("4711",), "Rows": ("64",), "Columns": ("64",)}
    header["SeriesDescription"] = (series,)
    return received(series, series=series, header=header)


def _finish_next(database: Database) -> int:
    job = claim(database)
    with database.write() as connection:
        return finish(connection, job)


def _again(database: Database, configured: Settings, content: str) -> None:
    """Let an object arrive that no model wants, so that the rules are asked again."""
    header = {"Modality": ("SR",)}
    register(database, received(content, series="1.2.3.9", header=header))
    assert pipeline.admit(database, configured) == 1


def _current(database: Database) -> list[int]:
    with database.read() as connection:
        return [row.result_id for row in results.query(connection)]


def test_work_that_is_asked_for_again_counts_again_and_is_not_repeated(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    """The rule's series changes from one to another and back, with nothing of it sent in between."""
    for series in ("1.2.3.1", "1.2.3.2"):
        study = register(database, _described(series)).study_id
    pacs = '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
    to_pacs = 'destinations = ["pacs"]\n'
    pipeline.admit(database, settings(_asked_for("1.2.3.1") + to_pacs + pacs))
    first = _finish_next(database)
    _again(database, settings(_asked_for("1.2.3.2") + to_pacs + pacs), "a report")
    second = _finish_next(database)
    assert _current(database) == [second]
    _again(database, settings(_asked_for("1.2.3.1") + to_pacs + pacs), "another report")
    assert _current(database) == [first]
    assert _states(database) == [(3, JobState.COMPLETED), (2, JobState.COMPLETED)]
    with database.read() as connection:
        posted = {(row.result_id, row.state, row.wanted) for row in deliveries.listing(connection)}
        (*_, decision) = history.decisions(connection, study)
    assert posted == {
        (first, DeliveryState.PENDING, True),
        (second, DeliveryState.PENDING, False),
    }
    assert "is this work already: completed" in decision.reason


def test_superseded_work_that_is_asked_for_again_runs(database: Database, settings: Callable[[str], Settings]) -> None:
    for series in ("1.2.3.1", "1.2.3.2"):
        register(database, _described(series))
    pipeline.admit(database, settings(_asked_for("1.2.3.1")))
    _again(database, settings(_asked_for("1.2.3.2")), "a report")
    _again(database, settings(_asked_for("1.2.3.1")), "another report")
    assert _states(database) == [(3, JobState.AVAILABLE), (2, JobState.CANCELLED)]
    with database.read() as connection:
        (*_, event) = jobs.history(connection, jobs.listing(connection)[-1].id)
    assert (event.event, event.detail) == (JobEvent.REQUEUE, "asked for again by generation 3")


def test_work_that_an_operator_cancelled_stays_cancelled(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    configured = settings(RULE.format(name="first"))
    study = register(database, received("a")).study_id
    pipeline.admit(database, configured)
    with database.write() as connection:
        jobs.cancel(connection, 1)
    _again(database, configured, "a report")
    assert _states(database) == [(2, JobState.CANCELLED)]
    (*_, decision) = _decisions(database, study)
    assert "job 1 is this work already: cancelled" in decision.reason


@pytest.mark.parametrize("later", ["", RULE.format(name="first") + 'study = { attribute = "PatientID", equals = "x" }'])
def test_what_no_rule_asks_for_any_more_is_withdrawn(
    database: Database, settings: Callable[[str], Settings], later: str
) -> None:
    """The rule was removed, or does not match any more; what it had asked for is not current and not sent."""
    register(database, received("a"))
    other = register(database, received("b", study="9", series="9.1")).study_id
    configured = settings(RULE.format(name="first"))
    pipeline.admit(database, configured)
    result = _finish_next(database)
    _again(database, settings(later), "a report")
    assert _current(database) == []
    with database.read() as connection:
        (head,) = results.heads(connection, study_id=1)
        assert [row.superseded for row in results.query(connection, superseded=True)] == [True]
    assert (head.id, head.current, head.successor) == (result, False, None)
    register(database, received("another report", study="9", series="9.9", header={"Modality": ("SR",)}))
    pipeline.admit(database, settings(later))
    with database.read() as connection:
        (job,) = jobs.listing(connection, study_id=other)
    assert (job.state, job.reason) == (JobState.CANCELLED, "not asked for any more since generation 2")
    # The rule is back: so is what it had asked for.
    _again(database, configured, "a third report")
    assert _current(database) == [result]


def test_work_goes_over_to_the_rule_that_still_asks_for_it(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    register(database, received("a"))
    pipeline.admit(database, settings(RULE.format(name="first") + RULE.format(name="second")))
    result = _finish_next(database)
    _again(database, settings(RULE.format(name="second")), "a report")
    assert _current(database) == [result]
    with database.read() as connection:
        (job,) = jobs.listing(connection)
        assert requests.rules_of(connection, 1) == {"second"}
    assert (job.generation, job.state) == (2, JobState.COMPLETED)


def test_what_is_forced_on_one_series_leaves_the_rest_alone(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    for series in ("1.2.3.1", "1.2.3.2"):
        register(database, _described(series))
    configured = settings(_asked_for("1.2.3.1"))
    pipeline.admit(database, configured)
    by_rule = _finish_next(database)
    forced = []
    for generation, series in ((1, "1.2.3.2"), (2, "1.2.3.1")):
        if generation > 1:
            _again(database, configured, "a report")
        pipeline.force(database, configured, wanted="1", model="example", series=series, destinations=())
        with database.read() as connection:
            waiting = any(job.state is JobState.AVAILABLE for job in jobs.listing(connection))
        if waiting:
            forced.append(_finish_next(database))
    # The second is what the rule had asked for: it is there already.
    assert sorted(_current(database)) == sorted([by_rule, *forced])
    assert len(forced) == 1


@pytest.mark.parametrize("end", [jobs.cancel, None])
def test_an_operator_may_force_what_was_cancelled_or_discarded(
    database: Database, settings: Callable[[str], Settings], end: Callable[[Connection, int], None] | None
) -> None:
    register(database, received("a"))
    configured = settings(RULE.format(name="first"))
    pipeline.admit(database, configured)
    if end is None:
        job = claim(database)
        with database.write() as connection:
            jobs.refuse(connection, job, "no volume")
    else:
        with database.write() as connection:
            end(connection, 1)
    assert pipeline.force(database, configured, wanted="1", model="example", series=None, destinations=()) == 1
    assert _states(database) == [(1, JobState.AVAILABLE)]


def test_a_study_that_cannot_be_looked_at_does_not_hold_up_the_others(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    configured = settings(RULE.format(name="first"))
    bad = register(database, received("a"), quiet_seconds=-10).study_id
    good = register(database, received("b", study="9", series="9.1")).study_id
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE instance SET header = '[1]' WHERE id = 1")
    assert pipeline.admit(database, configured) == 1
    assert [decision.matched for decision in _decisions(database, good)] == [True]
    (decision,) = _decisions(database, bad)
    assert not decision.matched
    assert "while the rules were asked: asked again in 60 s" in decision.reason
    assert pipeline.admit(database, configured) == 0
    # Once it can be looked at, it is.
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE instance SET header = (SELECT header FROM instance WHERE id = 2)")
        studies.wait_for(connection, bad, 0.0)
    assert pipeline.admit(database, configured) == 1
    assert _summary(database, bad).state is StudyState.COMPLETE


def test_headers_are_completed_for_every_study_that_is_decided(
    database: Database, settings: Callable[[str], Settings], tmp_path: Path
) -> None:
    """A new rule asks for an attribute that was not read at arrival; the backlog is longer than one look takes."""
    configured = settings(RULE.format(name="first") + 'study = { attribute = "StationName", equals = "S" }\n')
    count = 45
    for number in range(count):
        data_set = Dataset()
        data_set.SOPClassUID, data_set.SOPInstanceUID = CTImageStorage, f"1.{number}.1.1"
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID = f"1.{number}", f"1.{number}.1"
        data_set.Modality, data_set.StationName = "CT", "S"
        content = as_part10(
            written(data_set, ExplicitVRLittleEndian),
            sop_class_uid=CTImageStorage,
            sop_instance_uid=data_set.SOPInstanceUID,
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
        arrived = received(
            content.decode("latin-1"),
            study=f"1.{number}",
            series=f"1.{number}.1",
            sop_instance_uid=f"1.{number}.1.1",
            sha256=hashlib.sha256(content).hexdigest(),
        )
        path = instances.path_of(configured.store.instances, arrived.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        register(database, arrived)
    assert pipeline.admit(database, configured) == count
    with database.read() as connection:
        assert len(jobs.listing(connection, limit=100)) == count


def test_jobs_of_a_model_that_changed_are_asked_for_again(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    study = register(database, received("a")).study_id
    configured = settings(RULE.format(name="first"))
    pipeline.admit(database, configured)
    digests = {name: contract.digest for name, contract in configured.contracts.items()}
    with database.write() as connection:
        assert studies.reopen_for_changed_models(connection, digests) == []
        assert studies.reopen_for_changed_models(connection, {"example": "another"}) == [study]
    assert _summary(database, study).generation == 2
    changed = replace(configured.contracts["example"], digest="another")
    assert pipeline.admit(database, replace(configured, contracts={"example": changed})) == 1
    assert _states(database) == [(1, JobState.CANCELLED), (2, JobState.AVAILABLE)]
    assert claim(database).model_digest == "another"


def test_the_sender_of_an_adopted_object_is_learnt_when_it_is_sent_again(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    """Recovery adopts without knowing who sent; a rule that asks for that is asked again."""
    configured = settings(
        RULE.format(name="first") + 'study = { attribute = "calling_ae_title", equals = "SCANNER" }\n'
    )
    study = register(database, received("a", calling_ae_title="", called_ae_title="")).study_id
    pipeline.admit(database, configured)
    assert _states(database) == []
    for _ in range(2):
        assert not register(database, received("a")).new
        pipeline.admit(database, configured)
    assert _states(database) == [(2, JobState.AVAILABLE)]
    assert _summary(database, study).generation == 2


def test_rules_with_different_quiet_times_are_asked_at_different_times(
    database: Database, settings: Callable[[str], Settings]
) -> None:
    patient = RULE.format(name="patient") + "quiet_seconds = 3600\n"
    configured = settings(RULE.format(name="hasty") + patient)
    study = register(database, received("a")).study_id
    assert pipeline.admit(database, configured) == 1
    assert _generations(database, study) == [(1, "hasty")]
    assert _summary(database, study).state is StudyState.RECEIVING
    assert pipeline.admit(database, configured) == 0
    register(database, received("b"))
    assert pipeline.admit(database, configured) == 1
    assert _generations(database, study) == [(1, "hasty"), (2, "hasty")]
    later = _settings(configured.file.parent if configured.file else Path(), configured.database.url, "")
    with database.write() as connection:
        studies.wait_for(connection, study, 0.0)
    assert pipeline.admit(database, replace(later, rules=())) == 1
    assert _summary(database, study).state is StudyState.COMPLETE


def test_a_decision_that_is_made_again_replaces_the_first(database: Database) -> None:
    study = register(database, received("a")).study_id
    for reason in ("first", "second"):
        with database.write() as connection:
            studies.record_decision(
                connection, study_id=study, generation=1, rule="r", matched=reason == "second", reason=reason, detail={}
            )
    (decision,) = _decisions(database, study)
    assert (decision.reason, decision.matched) == ("second", True)
    with database.read() as connection:
        assert studies.decided_rules(connection, study, 1) == {"r": True}
        assert studies.decided_rules(connection, study, 2) == {}


# --- finding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["1.2.3", "1.2.3.1", "1.2.3.1.77", "A-1", "1"])
def test_a_study_is_found_by_whatever_names_it(database: Database, wanted: str) -> None:
    header = {"AccessionNumber": ("A-1",)}
    study = register(database, received("a", sop_instance_uid="1.2.3.1.77", header=header)).study_id
    register(database, received("b", study="9.9", series="9.9.1", header={"AccessionNumber": ("A-2",)}))
    with database.read() as connection:
        assert studies.find_study(connection, wanted) == study


def test_a_name_of_nothing_or_of_two_is_told(database: Database) -> None:
    for study in ("1", "2"):
        register(database, received(study, study=study + ".1", series=study, header={"AccessionNumber": ("same",)}))
    with database.read() as connection:
        with pytest.raises(NotFound, match=r"more than one study: name it by its UID, 1\.1 or 2\.1$"):
            studies.find_study(connection, "same")
        for absent in ("3", "99999999999999999999", "' OR 1=1", ""):
            with pytest.raises(NotFound):
                studies.find_study(connection, absent)


def test_an_id_that_is_the_accession_number_of_another_study_names_none_of_both(database: Database) -> None:
    for study, accession in (("1.1", "A-1"), ("2.1", "1")):
        register(database, received(study, study=study, series=f"{study}.1", header={"AccessionNumber": (accession,)}))
    with database.read() as connection:
        with pytest.raises(NotFound, match=r"name it by its UID, 1\.1 or 2\.1$"):
            studies.find_study(connection, "1")
        assert [studies.find_study(connection, uid) for uid in ("1.1", "2.1")] == [1, 2]


def test_studies_are_listed_newest_first_with_their_counts(database: Database) -> None:
    first = register(database, received("a")).study_id
    register(database, received("b"))
    register(database, received("c", series="1.2.3.2"))
    second = register(database, received("d", study="9.9", series="9.9.1")).study_id
    enqueue(database, first)
    with database.read() as connection:
        listed = studies.summaries(connection)
        assert [each.id for each in studies.summaries(connection, limit=1)] == [second]
    assert [(each.id, each.series, each.instances, each.jobs) for each in listed] == [
        (second, 1, 1, 0),
        (first, 2, 3, 1),
    ]
