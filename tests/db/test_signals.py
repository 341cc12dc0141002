"""Signals, requirements and the maximum wait through admission, on real databases: when rules are asked, and why."""

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path

import pytest
from queue_samples import received, register
from sqlalchemy import select, update

from meddaemon import pipeline
from meddaemon.cli.explain import explain
from meddaemon.config.settings import Settings, load
from meddaemon.db import announcements, holds, inquiries, jobs, registration, results, studies, tables
from meddaemon.db.announcements import NewAnnouncement
from meddaemon.db.engine import Connection, Database
from meddaemon.db.history import DecisionRow, decisions
from meddaemon.db.studies import StudySummary
from meddaemon.domain.completeness import AnnouncementSource
from meddaemon.domain.states import AnnouncementState, StudyState
from meddaemon.ingest import completeness
from tests.admission import let_in
from tests.db.test_studies import MODEL, RULE

STUDY = "1.2.3"
IN_PROGRESS, COMPLETED, DISCONTINUED = AnnouncementState
MPPS, IAN = AnnouncementSource.PROCEDURE_STEP, AnnouncementSource.AVAILABILITY
HEADING = """\
[store]
directory = "store"
[database]
url = "{url}"
[models]
directories = ["models"]
[completeness]
quiet_seconds = {quiet}
"""
PEER = '[[peers]]\nae_title = "SCANNER"\nhost = "localhost"\nport = 104\nquery = true\n'


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Callable[..., Settings]:
    """Make settings: a model that takes every CT series, rules, and more."""

    def make(rules: str = RULE.format(name="rule"), *, quiet: float = 3600.0, more: str = "") -> Settings:
        model = tmp_path / "models" / "example"
        model.mkdir(parents=True, exist_ok=True)
        (model / "contract.toml").write_text(MODEL)
        let_in(model / "contract.toml")
        file = tmp_path / "meddaemon.toml"
        file.write_text(HEADING.format(url=database_url, quiet=quiet) + more + rules)
        file.chmod(0o600)
        return load(file, {})

    return make


def _arrive(database: Database, *contents: str, quiet: float = 3600.0, **values: str) -> int:
    """Let instances arrive, named by their content; return the study."""
    ids = [
        register(database, received(each, sop_instance_uid=f"1.2.3.{each}", **values), quiet_seconds=quiet).study_id
        for each in contents
    ]
    return ids[-1]


def _announce(
    database: Database, uid: str, *named: str, state: AnnouncementState = COMPLETED, source: AnnouncementSource = MPPS
) -> None:
    new = NewAnnouncement(
        source=source,
        sop_instance_uid=uid,
        ae_title="CT1",
        state=state,
        study_instance_uids=(STUDY,),
        sop_instance_uids=tuple(f"1.2.3.{each}" for each in named),
    )
    with database.write() as connection:
        assert announcements.keep(connection, new)


def _end(database: Database, uid: str, *named: str, state: AnnouncementState = COMPLETED) -> None:
    with database.write() as connection:
        uids = [f"1.2.3.{each}" for each in named]
        assert announcements.amend(connection, uid, MPPS, state=state, sop_instance_uids=uids)


def _summary(database: Database, study_id: int) -> StudySummary:
    with database.read() as connection:
        (summary,) = studies.summaries(connection, study_id=study_id)
    return summary


def _decisions(database: Database, study_id: int) -> list[DecisionRow]:
    with database.read() as connection:
        return decisions(connection, study_id)


def _asked(database: Database, study_id: int) -> list[tuple[int, str]]:
    return [(each.generation, each.rule) for each in _decisions(database, study_id)]


def _explained(database: Database, wanted: int | str) -> str:
    with database.read() as connection:
        return "\n".join(explain(connection, str(wanted)))


def _pass(database: Database, seconds: float) -> None:
    """Let time pass: everything that happened lies so much further back."""
    with database.write() as connection:
        _pass_in(connection, seconds)


def _pass_in(connection: Connection, seconds: float) -> None:
    columns = {
        tables.study: ("first_received_at", "last_received_at", "due_at", "looked_at"),
        tables.instance: ("received_at",),
        tables.decision: ("at",),
        tables.inquiry: ("wanted_at", "answered_at"),
        tables.announcement: ("changed_at",),
    }
    for table, names in columns.items():
        connection.execute(update(table).values({name: table.c[name] - seconds for name in names}))


# --- announcements -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [MPPS, IAN])
@pytest.mark.parametrize("first", ["announcement", "images"])
def test_a_study_of_which_all_is_here_is_asked_at_once(
    database: Database, settings: Callable[..., Settings], source: AnnouncementSource, first: str
) -> None:
    """Whether they announce before the first image or after the last, nobody waits for the quiet time."""
    if first == "announcement":
        _announce(database, "9.1", "a", "b", source=source)
        pipeline.admit(database, settings())
        study = _arrive(database, "a")
        pipeline.admit(database, settings())
        assert _asked(database, study) == []
        _arrive(database, "b")
    else:
        study = _arrive(database, "a", "b")
        pipeline.admit(database, settings())
        assert _asked(database, study) == []
        _announce(database, "9.1", "a", "b", source=source)
    pipeline.admit(database, settings())
    assert _asked(database, study) == [(1, "rule")]
    assert _summary(database, study).state is StudyState.COMPLETE
    assert f"all 2 instances of {source.value} 9.1 of CT1 are here" in _explained(database, study)


def test_a_study_that_was_only_announced_is_no_study(database: Database, settings: Callable[..., Settings]) -> None:
    _announce(database, "9.1", "a", "b")
    assert pipeline.admit(database, settings(quiet=0.0)) == 0
    with database.read() as connection:
        assert studies.summaries(connection) == []
        assert studies.due_ids(connection) == []
        assert announcements.untold(connection) == []
    told = _explained(database, STUDY)
    assert f"study {STUDY}: no instance has arrived" in told
    assert "2 of 2 instances of MPPS 9.1 of CT1 are not here (1.2.3.a, 1.2.3.b)" in told


def test_what_is_missing_is_waited_for_though_the_study_is_quiet(
    database: Database, settings: Callable[..., Settings]
) -> None:
    study = _arrive(database, "a", "b", quiet=0.0)
    _announce(database, "9.1", "a", "b", "c")
    pipeline.admit(database, settings(quiet=0.0))
    assert _asked(database, study) == []
    assert _summary(database, study).state is StudyState.RECEIVING
    told = _explained(database, study)
    assert "rule 'rule' waits: 1 of 3 instances of MPPS 9.1 of CT1 are not here (1.2.3.c)" in told
    # The instance that completes it ends the waiting, whatever the quiet time.
    _arrive(database, "c")
    pipeline.admit(database, settings())
    assert _asked(database, study) == [(1, "rule")]


def test_a_step_in_progress_is_waited_for_until_the_maximum_wait_is_over(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=30.0)
    _announce(database, "9.1", state=IN_PROGRESS)
    study = _arrive(database, "a", quiet=30.0)
    _pass(database, 60)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    _pass(database, 3500)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    _pass(database, 60)
    pipeline.admit(database, asked)
    (decision,) = _decisions(database, study)
    assert decision.matched
    assert decision.reason == (
        "example: runs; not complete after the maximum wait of 3600 s: MPPS 9.1 of CT1 is in progress"
    )
    assert "MPPS 9.1 of CT1 is in progress" in decision.detail["signals"]


def test_the_maximum_wait_counts_from_the_first_instance_of_a_generation(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=0.0)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, asked)
    _pass(database, 10_000)
    _announce(database, "9.1", state=IN_PROGRESS)
    _arrive(database, "b", quiet=0.0)
    _pass(database, 3000)
    _arrive(database, "c", quiet=0.0)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]
    _pass(database, 601)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule"), (2, "rule")]


def test_while_instances_arrive_nobody_is_asked_even_when_the_maximum_wait_is_over(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=30.0)
    _announce(database, "9.1", state=IN_PROGRESS)
    study = _arrive(database, "a", quiet=30.0)
    _pass(database, 4000)
    _arrive(database, "b", quiet=30.0)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    _pass(database, 31)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]


def test_a_discontinued_step_is_as_complete_as_it_will_be(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=30.0)
    _announce(database, "9.1", state=IN_PROGRESS)
    study = _arrive(database, "a", quiet=30.0)
    _end(database, "9.1", "a", "thrown away", state=DISCONTINUED)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    _pass(database, 31)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]
    assert "was discontinued with 2 instances, 1 of them not here and not waited for" in _explained(database, study)


def test_every_step_counts(database: Database, settings: Callable[..., Settings]) -> None:
    _announce(database, "9.1", "a")
    _announce(database, "9.2", state=IN_PROGRESS)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, settings(quiet=0.0))
    assert _asked(database, study) == []
    _end(database, "9.2", "b")
    pipeline.admit(database, settings(quiet=0.0))
    assert _asked(database, study) == []
    _arrive(database, "b")
    pipeline.admit(database, settings())
    assert _asked(database, study) == [(1, "rule")]


def test_what_is_announced_of_a_decided_study_asks_no_rule_that_is_new(
    database: Database, settings: Callable[..., Settings]
) -> None:
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, settings(quiet=0.0))
    _announce(database, "9.1", "a")
    assert pipeline.admit(database, settings(RULE.format(name="rule") + RULE.format(name="new"), quiet=0.0)) == 0
    assert _asked(database, study) == [(1, "rule")]


def test_what_is_announced_of_a_decided_study_begins_no_generation(
    database: Database, settings: Callable[..., Settings]
) -> None:
    """The instances that were missing do, and then they are waited for together."""
    asked = settings(quiet=0.0)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, asked)
    before = _decisions(database, study)
    _announce(database, "9.1", "a", "b", "c")
    pipeline.admit(database, asked)
    assert _decisions(database, study) == before
    assert (_summary(database, study).state, _summary(database, study).generation) == (StudyState.COMPLETE, 1)
    assert "2 of 3 instances of MPPS 9.1 of CT1 are not here" in _explained(database, study)
    _arrive(database, "b", quiet=0.0)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]
    _arrive(database, "c", quiet=0.0)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule"), (2, "rule")]
    with database.read() as connection:
        assert [len(job.inputs["image"]) for job in jobs.listing(connection)] == [3, 1]


def test_an_instance_that_is_here_in_any_way_is_not_missing(
    database: Database, settings: Callable[..., Settings]
) -> None:
    """One of another study of the same step, one in conflict, one that is our own result."""
    asked = settings()
    study = _arrive(database, "a")
    _arrive(database, "b", study="7.7", series="7.7.1")
    register(database, received("other content", sop_instance_uid="1.2.3.a"))
    with database.write() as connection:
        (job_id,) = connection.execute(
            tables.job.insert()
            .values(
                key="k", study_id=study, generation=1, rule="r", model="m", model_digest="d", inputs={}, caveat="",
                priority=5, gate="", turn_at=0.0, patience=0.0, when_late="run",
                state="completed", attempt=1, maximum_attempts=1, available_at=0.0, fence=1, worker="",
                reason="", created_at=0.0,
            )
            .returning(tables.job.c.id)
        ).one()  # fmt: skip
        (result_id,) = connection.execute(
            tables.result.insert()
            .values(
                job_id=job_id, study_id=study, model="m", model_version="1", model_digest="d",
                series_instance_uid="1", status="plausible", reason="", provenance={}, seconds={}, created_at=0.0,
            )
            .returning(tables.result.c.id)
        ).one()  # fmt: skip
        connection.execute(
            tables.result_object.insert().values(
                result_id=result_id, kind="SR", part="", edition="", sop_class_uid="1", sop_instance_uid="1.2.3.ours",
                series_instance_uid="1", transfer_syntax_uid="1", sha256="0", size=1,
            )
        )  # fmt: skip
        assert results.objects_of(connection, result_id)
    _announce(database, "9.1", "a", "b", "ours", source=IAN)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]


def test_a_study_is_not_looked_at_again_and_again(database: Database, settings: Callable[..., Settings]) -> None:
    """All announced is here and a required series is not: the study waits, and costs nothing while it does."""
    rule = (
        RULE.format(name="rule") + 'requires = "T1"\nrequired_series.T1 = { attribute = "Modality", equals = "MR" }\n'
    )
    asked = settings(rule)
    _announce(database, "9.1", "a")
    study = _arrive(database, "a")
    assert pipeline.admit(database, asked) == 1
    assert [pipeline.admit(database, asked) for _ in range(3)] == [0, 0, 0]
    assert _asked(database, study) == []


def test_what_nobody_needs_any_more_is_forgotten(database: Database) -> None:
    _announce(database, "9.1", "a")
    _pass(database, announcements.KEPT_SECONDS + 1)
    _announce(database, "9.2", "a")
    with database.write() as connection:
        assert announcements.forget(connection) == 1
    with database.read() as connection:
        assert [each.announcement.uid for each in announcements.of_study(connection, STUDY)] == ["9.2"]
        assert len(connection.execute(select(tables.announced_instance)).all()) == 1


@pytest.mark.parametrize("looked_at", ["after each", "at the end"])
def test_in_whatever_order_they_come_the_rule_is_asked_once_with_everything(
    database: Database, settings: Callable[..., Settings], looked_at: str
) -> None:
    asked = settings()
    orders = [each for each in permutations(["begin", "a", "b", "end"]) if each.index("begin") < each.index("end")]
    for number, order in enumerate(orders):
        study_uid, step_uid = f"5.{number}", f"9.{number}"
        uids = tuple(f"{study_uid}.{each}" for each in "ab")
        for event in order:
            with database.write() as connection:
                if event == "begin":
                    new = NewAnnouncement(
                        source=MPPS,
                        sop_instance_uid=step_uid,
                        ae_title="CT1",
                        state=IN_PROGRESS,
                        study_instance_uids=(study_uid,),
                        sop_instance_uids=(),
                    )
                    assert announcements.keep(connection, new)
                elif event == "end":
                    assert announcements.amend(connection, step_uid, MPPS, state=COMPLETED, sop_instance_uids=uids)
                else:
                    uid = f"{study_uid}.{event}"
                    instance = received(uid, study=study_uid, series=f"{study_uid}.0", sop_instance_uid=uid)
                    study = registration.register(connection, instance, quiet_seconds=3600).study_id
            if looked_at == "after each" or event == order[-1]:
                pipeline.admit(database, asked)
        assert _asked(database, study) == [(1, "rule")], order
        with database.read() as connection:
            assert [len(job.inputs["image"]) for job in jobs.listing(connection, study_id=study)] == [2], order


# --- required series and the maximum wait ------------------------------------------------------------------------

REQUIRED = """
requires = "plain and (T2 or FLAIR)"
required_series.plain = { attribute = "SeriesDescription", equals = "plain" }
required_series.T2 = { attribute = "SeriesDescription", equals = "T2" }
required_series.FLAIR = { attribute = "SeriesDescription", equals = "FLAIR" }
maximum_wait_seconds = 100
"""


def _series(database: Database, *descriptions: str, quiet: float = 0.0) -> int:
    ids = []
    for each in descriptions:
        header = {"Modality": ("CT",), "PatientID": ("4711",), "Rows": ("64",), "SeriesDescription": (each,)}
        series = f"1.2.3.{int.from_bytes(each.encode())}"
        instance = received(each, series=series, sop_instance_uid=f"1.2.3.{each}", header=header)
        ids.append(register(database, instance, quiet_seconds=quiet).study_id)
    return ids[-1]


def _rule(action: str = "", name: str = "rule", more: str = "") -> str:
    return RULE.format(name=name) + REQUIRED + (f'when_incomplete = "{action}"\n' if action else "") + more


def test_a_rule_waits_for_the_series_that_it_requires(database: Database, settings: Callable[..., Settings]) -> None:
    asked = settings(_rule() + RULE.format(name="other"), quiet=0.0)
    study = _series(database, "plain")
    pipeline.admit(database, asked)
    # The other rule has nothing to wait for.
    assert _asked(database, study) == [(1, "other")]
    assert "rule 'rule' waits: required series: none of: T2; FLAIR" in _explained(database, study)
    _series(database, "FLAIR")
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "other"), (2, "rule"), (2, "other")]
    assert "requires plain and (T2 or FLAIR):" in _explained(database, study)


@pytest.mark.parametrize("action", ["", "run"])
def test_when_the_time_is_over_it_runs_with_a_remark(
    database: Database, settings: Callable[..., Settings], action: str
) -> None:
    asked = settings(_rule(action), quiet=0.0)
    study = _series(database, "plain")
    pipeline.admit(database, asked)
    _pass(database, 101)
    pipeline.admit(database, asked)
    (decision,) = _decisions(database, study)
    assert decision.matched
    assert decision.reason.endswith("not complete after the maximum wait of 100 s: required series: none of: T2; FLAIR")


def test_it_is_held_for_a_person_and_runs_when_it_is_released(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(_rule("hold"), quiet=0.0)
    study = _series(database, "plain")
    _pass(database, 101)
    for _ in range(2):
        pipeline.admit(database, asked)
        assert _asked(database, study) == []
        summary = _summary(database, study)
        assert (summary.state, summary.held_for, summary.due_at) == (StudyState.HELD, holds.INCOMPLETE, None)
    told = _explained(database, study)
    assert "holds the study: rule 'rule': not complete after the maximum wait of 100 s" in told
    assert f"meddaemon studies release {study}" in told
    with database.write() as connection:
        holds.release(connection, study, quiet_seconds=0.0)
    pipeline.admit(database, asked)
    (decision,) = _decisions(database, study)
    assert decision.matched
    assert decision.reason.endswith("none of: T2; FLAIR; an operator let it go on")
    assert (_summary(database, study).state, _summary(database, study).held_for) == (StudyState.COMPLETE, "")


def test_what_is_held_goes_on_when_the_missing_part_arrives(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(_rule("hold"), quiet=0.0)
    study = _series(database, "plain")
    _pass(database, 101)
    pipeline.admit(database, asked)
    _series(database, "some other series")
    pipeline.admit(database, asked)
    assert _summary(database, study).state is StudyState.HELD
    _series(database, "T2")
    pipeline.admit(database, asked)
    assert _summary(database, study).state is StudyState.COMPLETE
    assert [each.reason for each in _decisions(database, study)] == ["example: runs"]
    with database.read() as connection:
        assert holds.listing(connection, study) == []


def test_what_is_held_goes_on_when_more_is_said_of_it(database: Database, settings: Callable[..., Settings]) -> None:
    rule = RULE.format(name="rule") + 'maximum_wait_seconds = 100\nwhen_incomplete = "hold"\n'
    asked = settings(rule, quiet=0.0)
    _announce(database, "9.1", state=IN_PROGRESS)
    study = _arrive(database, "a", quiet=0.0)
    _pass(database, 101)
    pipeline.admit(database, asked)
    assert _summary(database, study).state is StudyState.HELD
    _announce(database, "9.2", state=IN_PROGRESS)
    pipeline.admit(database, asked)
    assert _summary(database, study).state is StudyState.HELD
    for uid in ("9.1", "9.2"):
        _end(database, uid, "a")
    pipeline.admit(database, asked)
    assert _summary(database, study).state is StudyState.COMPLETE
    assert _asked(database, study) == [(1, "rule")]


def test_a_contradiction_is_not_released_by_what_arrives(database: Database, settings: Callable[..., Settings]) -> None:
    asked = settings(_rule("hold"), quiet=0.0)
    study = _series(database, "plain")
    _pass(database, 101)
    pipeline.admit(database, asked)
    header = {"Modality": ("CT",), "PatientID": ("other",), "Rows": ("64",), "SeriesDescription": ("T2",)}
    register(database, received("T2", header=header), quiet_seconds=0.0)
    _announce(database, "9.1", state=IN_PROGRESS)
    for _ in range(3):
        pipeline.admit(database, asked)
        assert _summary(database, study).state is StudyState.HELD
    assert "PatientID" in _summary(database, study).held_for


def test_it_is_discarded_and_asked_again_when_more_arrives_or_is_said(
    database: Database, settings: Callable[..., Settings]
) -> None:
    fallback = RULE.format(name="fallback") + "fallback = true\n"
    asked = settings(_rule("discard") + fallback, quiet=0.0)
    study = _series(database, "plain")
    pipeline.admit(database, asked)
    assert "rule 'fallback' waits: other rules are asked first: rule" in _explained(database, study)
    _pass(database, 101)
    pipeline.admit(database, asked)
    discarded, second = _decisions(database, study)
    assert (discarded.rule, discarded.matched, second.rule, second.matched) == ("rule", False, "fallback", True)
    assert discarded.reason == (
        "discarded, not complete after the maximum wait of 100 s: required series: none of: T2; FLAIR"
    )
    assert _summary(database, study).state is StudyState.COMPLETE
    _series(database, "T2")
    pipeline.admit(database, asked)
    assert _asked(database, study)[2:] == [(2, "rule"), (2, "fallback")]
    assert [each.matched for each in _decisions(database, study)[2:]] == [True, False]


def test_a_discarded_study_is_asked_again_when_a_signal_says_that_it_is_complete(
    database: Database, settings: Callable[..., Settings]
) -> None:
    rule = RULE.format(name="rule") + 'maximum_wait_seconds = 0\nwhen_incomplete = "discard"\n'
    asked = settings(rule, quiet=0.0)
    _announce(database, "9.1", state=IN_PROGRESS)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, asked)
    assert [each.matched for each in _decisions(database, study)] == [False]
    _end(database, "9.1", "a")
    pipeline.admit(database, asked)
    assert [(each.generation, each.matched) for each in _decisions(database, study)] == [(1, True)]


def test_what_a_discarded_generation_was_before_stands(database: Database, settings: Callable[..., Settings]) -> None:
    rule = RULE.format(name="rule") + 'maximum_wait_seconds = 0\nwhen_incomplete = "discard"\n'
    asked = settings(rule, quiet=0.0)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, asked)
    _announce(database, "9.1", state=IN_PROGRESS)
    _arrive(database, "b", quiet=0.0)
    pipeline.admit(database, asked)
    assert [each.matched for each in _decisions(database, study)] == [True, False]
    with database.read() as connection:
        assert [job.state for job in jobs.listing(connection)] == ["available"]


def test_a_rule_that_is_not_for_a_study_neither_waits_for_its_series_nor_holds_it(
    database: Database, settings: Callable[..., Settings]
) -> None:
    rule = _rule("hold", more='study = { attribute = "Modality", equals = "MR" }\n')
    asked = settings(rule, quiet=0.0)
    study = _series(database, "plain")
    pipeline.admit(database, asked)
    assert [each.reason for each in _decisions(database, study)] == ["the study condition does not hold"]
    assert _summary(database, study).state is StudyState.COMPLETE


def test_a_rule_that_waits_longer_is_not_kept_waiting_by_one_that_holds(
    database: Database, settings: Callable[..., Settings]
) -> None:
    patient = _rule("run", name="patient").replace("maximum_wait_seconds = 100", "maximum_wait_seconds = 200")
    asked = settings(_rule("hold") + patient, quiet=0.0)
    study = _series(database, "plain")
    _pass(database, 101)
    pipeline.admit(database, asked)
    assert _summary(database, study).state is StudyState.RECEIVING
    assert "rule 'rule' waits: a person decides" in _explained(database, study)
    _pass(database, 100)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "patient")]
    assert _summary(database, study).state is StudyState.HELD


# --- the sender is asked -----------------------------------------------------------------------------------------


def _answer(database: Database, instances: int | None, problem: str = "") -> None:
    with database.write() as connection:
        question = inquiries.next_for(connection, "SCANNER")
        assert question is not None
        assert question.study_instance_uid == STUDY
        inquiries.answer(connection, question, instances=instances, problem=problem)
        assert inquiries.next_for(connection, "SCANNER") is None


def _questions(database: Database) -> Sequence[object]:
    with database.read() as connection:
        question = inquiries.next_for(connection, "SCANNER")
    return [] if question is None else [question]


def test_a_quiet_study_is_asked_for_and_not_before(database: Database, settings: Callable[..., Settings]) -> None:
    asked = settings(quiet=30.0, more=PEER)
    study = _arrive(database, "a", "b", quiet=30.0)
    pipeline.admit(database, asked)
    assert not _questions(database)
    _pass(database, 31)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    _answer(database, 2)
    pipeline.admit(database, asked)
    (decision,) = _decisions(database, study)
    assert decision.detail["signals"] == ["all 2 instances of C-FIND of SCANNER are here"]
    assert "SCANNER was asked what it has of this study and answered" in _explained(database, study)


def test_while_its_sender_has_more_it_waits_and_asks_again(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=30.0, more=PEER)
    study = _arrive(database, "a", quiet=30.0)
    _pass(database, 31)
    pipeline.admit(database, asked)
    _answer(database, 3)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    assert "2 of 3 instances of C-FIND of SCANNER are not here" in _explained(database, study)
    assert not _questions(database)
    _pass(database, completeness.ASK_AGAIN_SECONDS + 1)
    pipeline.admit(database, asked)
    _answer(database, 3)
    # An instance makes the answer an old one: it is asked anew once the study is quiet again.
    _arrive(database, "b", quiet=30.0)
    pipeline.admit(database, asked)
    assert not _questions(database)
    _pass(database, 31)
    pipeline.admit(database, asked)
    _answer(database, 2)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]


def test_a_sender_that_never_comes_to_an_end_is_waited_for_until_the_maximum_wait(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=30.0, more=PEER)
    study = _arrive(database, "a", quiet=30.0)
    _pass(database, 31)
    pipeline.admit(database, asked)
    _answer(database, 3)
    _pass(database, 3600)
    pipeline.admit(database, asked)
    (decision,) = _decisions(database, study)
    assert "not complete after the maximum wait" in decision.reason


@pytest.mark.parametrize("answers", [True, False])
def test_a_sender_that_says_nothing_leaves_it_to_the_quiet_time(
    database: Database, settings: Callable[..., Settings], *, answers: bool
) -> None:
    rule = RULE.format(name="rule") + 'maximum_wait_seconds = 0\nwhen_incomplete = "hold"\n'
    asked = settings(rule, quiet=30.0, more=PEER)
    study = _arrive(database, "a", quiet=30.0)
    _pass(database, 31)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    if answers:
        _answer(database, None, "SCANNER at localhost:104 does not answer")
    else:
        _pass(database, completeness.ANSWER_SECONDS)
    pipeline.admit(database, asked)
    (decision,) = _decisions(database, study)
    reason = "SCANNER at localhost:104 does not answer" if answers else "no answer within 60 s"
    assert decision.detail["signals"] == [f"C-FIND of SCANNER: {reason}; the quiet time decides"]
    assert decision.matched


def test_an_answer_to_an_earlier_question_is_not_taken_for_one_to_the_later(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=0.0, more=PEER)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, asked)
    with database.read() as connection:
        earlier = inquiries.next_for(connection, "SCANNER")
    assert earlier is not None
    _pass(database, 1)
    _arrive(database, "b", quiet=0.0)
    pipeline.admit(database, asked)
    with database.write() as connection:
        inquiries.answer(connection, earlier, instances=1)
    pipeline.admit(database, asked)
    assert _asked(database, study) == []
    _answer(database, 2)
    pipeline.admit(database, asked)
    assert _asked(database, study) == [(1, "rule")]


def test_an_answer_is_no_older_because_it_takes_long_to_look_at_the_study(
    database: Database, settings: Callable[..., Settings]
) -> None:
    asked = settings(quiet=0.0, more=PEER)
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, asked)
    _answer(database, 1)
    with database.write() as connection:
        due = studies.lock_due(connection, study)
        assert due is not None
        _pass_in(connection, 10)
        signals = completeness.hear(connection, asked, due, asked.rules)
    assert signals.remarks == ("all 1 instances of C-FIND of SCANNER are here",)
    assert not _questions(database)


@pytest.mark.parametrize("peer", [PEER.replace("SCANNER", "OTHER"), PEER.replace("true", "false")])
def test_who_did_not_send_it_or_is_not_to_be_asked_is_not(
    database: Database, settings: Callable[..., Settings], peer: str
) -> None:
    study = _arrive(database, "a", quiet=0.0)
    pipeline.admit(database, settings(quiet=0.0, more=peer))
    assert _asked(database, study) == [(1, "rule")]
    assert not _questions(database)
