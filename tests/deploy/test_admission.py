"""A model gets work when its check is green for what it is now, or somebody let it in for a reason that is shown."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from queue_samples import claim, received, register
from typer.testing import CliRunner

from meddaemon import pipeline
from meddaemon.cli.app import app
from meddaemon.cli.doctor import examine
from meddaemon.cli.explain import explain
from meddaemon.config.admission import CaseResult, Check, admitted, file_digests
from meddaemon.config.contracts import BUILTIN_DIRECTORY, load_contract
from meddaemon.config.settings import Settings, load
from meddaemon.db import jobs, studies
from meddaemon.db.engine import Database
from meddaemon.deploy import check
from meddaemon.deploy.registry import write_record
from meddaemon.domain.contract import Admission
from meddaemon.domain.errors import BundleRefused, NotAdmitted
from tests.admission import loaded
from tests.db.test_studies import MODEL

RULE = '[[rules]]\nname = "rule"\nmodels = ["example"]\n'


@pytest.fixture
def contract_file(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "example"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs/inference.json").write_text("{}")
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "contract.toml").write_text(MODEL)
    return folder / "contract.toml"


@pytest.fixture
def settings(tmp_path: Path, contract_file: Path, database_url: str) -> Callable[[], Settings]:
    """Read the settings anew, as a process does that starts."""
    assert contract_file.is_file()
    file = tmp_path / "meddaemon.toml"
    heading = f'[store]\ndirectory = "store"\n[database]\nurl = "{database_url}"\n[completeness]\nquiet_seconds = 0.0\n'
    file.write_text(f'{heading}[models]\ndirectories = ["models"]\n{RULE}')
    file.chmod(0o600)
    return lambda: load(file, {})


def record(contract_file: Path, *cases: CaseResult, **other: object) -> None:
    contract = loaded(contract_file)
    values = {
        "model": contract.name,
        "digest": contract.digest,
        "files": file_digests(contract),
        "at": "now",
        "by": "x",
    }
    file = kept(contract_file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_record(file, Check(**{**values, "cases": cases, **other}))  # type: ignore[arg-type]


def kept(contract_file: Path) -> Path:
    """Where this installation keeps what the check found."""
    return contract_file.parents[2] / "store/admissions/example.json"


GREEN = CaseResult(case="c", variant="as given", measure="dice", value=0.995, limit=0.99)


def refusal(contract_file: Path) -> str:
    return admitted(loaded(contract_file)).admission.refusal


# --- what a check says ----------------------------------------------------------------------------------------------


BAD: list[CaseResult] = [
    CaseResult(case="d", variant="turned", measure="dice", value=0.98, limit=0.99),
    CaseResult(case="d", variant="turned", measure="difference", value=0.01, limit=0.001),
    CaseResult(case="d", variant="turned", measure="dice", limit=0.99),
    CaseResult(case="d", variant="turned", measure="dice", value=1.0, limit=0.99, failure="it crashed"),
]


@pytest.mark.parametrize("bad", BAD)
def test_one_result_that_is_not_as_it_must_be_is_enough(contract_file: Path, bad: CaseResult) -> None:
    record(contract_file, GREEN, bad, GREEN)
    assert "its check failed (case d, turned: " in refusal(contract_file)


def test_results_that_are_just_as_they_must_be_let_a_model_in(contract_file: Path) -> None:
    scores = CaseResult(case="d", variant="turned", measure="difference", value=0.001, limit=0.001)
    record(contract_file, CaseResult(case="c", variant="turned", measure="dice", value=0.99, limit=0.99), scores)
    assert refusal(contract_file) == ""


def test_without_a_check_or_without_cases_there_is_no_work(contract_file: Path) -> None:
    assert refusal(contract_file) == "it was never checked: run `meddaemon models check example`"
    record(contract_file)
    assert "it has no golden case" in refusal(contract_file)
    record(contract_file, GREEN, model="another")
    assert "its name is different" in refusal(contract_file)
    for broken in ("{", "{}", "[]", '{"format": 2}', "null", "\x00"):
        kept(contract_file).write_text(broken)
        assert "is not a check that this version made" in refusal(contract_file)
    kept(contract_file).write_bytes(b" " * (2**24 + 1))
    assert "too large" in refusal(contract_file)


@pytest.mark.fault(172)
def test_a_check_that_came_with_a_folder_proves_nothing(contract_file: Path, settings: Callable[[], Settings]) -> None:
    """Whoever can write a contract can write a green check of it beside it."""
    record(contract_file, GREEN)
    assert refusal(contract_file) == ""
    kept(contract_file).rename(contract_file.with_name("check.json"))
    said = refusal(contract_file)
    assert said == (
        "it was never checked here, and check.json beside its contract proves nothing: "
        "run `meddaemon models check example`"
    )
    assert settings().contracts["example"].admission.refusal == said
    assert settings().admitted == {}


def test_a_check_is_made_where_models_may_only_be_read_and_nobody_else_may_write(contract_file: Path) -> None:
    before = sorted(contract_file.parent.rglob("*"))
    contract_file.parent.chmod(0o555)
    try:
        check.force(loaded(contract_file), "seen by N")
    finally:
        contract_file.parent.chmod(0o755)
    assert sorted(contract_file.parent.rglob("*")) == before
    assert not kept(contract_file).parent.stat().st_mode & 0o022


def test_a_contract_that_nobody_said_the_place_of_records_for_is_not_admitted(contract_file: Path) -> None:
    record(contract_file, GREEN)
    assert "never checked" in admitted(load_contract(contract_file)).admission.refusal


@pytest.mark.fault(172)
def test_the_package_vouches_for_its_own_models_as_long_as_they_are_what_it_brought(tmp_path: Path) -> None:
    """And for no copy of them."""
    brought = load_contract(BUILTIN_DIRECTORY / "brain_volume/contract.toml", tmp_path / "records")
    assert admitted(brought).admission == Admission()
    changed = replace(brought, digest="0" * 64)
    assert "it changed since it was checked" in admitted(changed).admission.refusal
    shutil.copytree(BUILTIN_DIRECTORY / "brain_volume", tmp_path / "brain_volume")
    copy = load_contract(tmp_path / "brain_volume/contract.toml", tmp_path / "records")
    assert copy.digest == brought.digest
    assert "check.json beside its contract proves nothing" in admitted(copy).admission.refusal


@pytest.mark.fault(172)
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("model.pt", b"other weights", "bundle/model.pt is different"),
        ("configs/inference.json", b'{"x": 1}', "bundle/configs/inference.json is different"),
        ("configs/more.json", b"{}", "bundle/configs/more.json is new"),
        ("scripts/__init__.py", b"", "bundle/scripts/__init__.py is new"),
        ("model.pt", None, "bundle/model.pt is gone"),
        ("contract.toml", MODEL.replace("label = 1", "label = 2").encode(), "contract is different"),
    ],
)
def test_whatever_changes_after_the_check_takes_the_work_away_and_is_named(
    contract_file: Path, name: str, content: bytes | None, what: str
) -> None:
    record(contract_file, GREEN)
    assert refusal(contract_file) == ""
    changed = contract_file.parent / name
    changed.parent.mkdir(exist_ok=True)
    if content is None:
        changed.unlink()
    else:
        changed.write_bytes(content)
    said = refusal(contract_file)
    assert said.startswith("it changed since it was checked (")
    assert what in said


def test_a_reason_is_needed_to_force(contract_file: Path) -> None:
    with pytest.raises(BundleRefused, match="name it"):
        check.force(loaded(contract_file), "  ")
    assert not kept(contract_file).exists()
    assert check.force(loaded(contract_file), "seen by N").admission.forced == "seen by N"


# --- what becomes of it ---------------------------------------------------------------------------------------------


@pytest.mark.fault(172)
def test_a_model_that_is_not_admitted_gets_no_job_and_it_is_said_everywhere_and_made_up_for(
    database: Database, settings: Callable[[], Settings], contract_file: Path
) -> None:
    study = register(database, received("a")).study_id
    refused = settings()
    assert refused.admitted == {}
    assert any("rules[0].models[0]: model 'example' gets no work: it was never" in each for each in refused.warnings)
    pipeline.admit(database, refused)
    with database.read() as connection:
        assert jobs.listing(connection) == []
        explained = "\n".join(explain(connection, str(study)))
    assert "rule 'rule' did not match" in explained
    assert "example: is not admitted" in explained
    assert "model example gets no work: it was never checked: run `meddaemon models check example`" in explained
    told = {each.what: each for each in examine(refused, with_network=False)}
    assert (told["model example"].well, "never checked" in told["model example"].said) == (False, True)
    with pytest.raises(NotAdmitted, match="never checked"):
        pipeline.force(database, refused, wanted=str(study), model="example", series=None, destinations=())
    with database.write() as connection:
        assert studies.reopen_for_admitted_models(connection, set(refused.admitted)) == []
    # It is let in; the process that starts then asks the rules again.
    check.force(loaded(contract_file), "seen by N")
    let_in = settings()
    assert let_in.warnings == ()
    with database.write() as connection:
        assert studies.reopen_for_admitted_models(connection, set(let_in.admitted)) == [study]
    pipeline.admit(database, let_in)
    job = claim(database)
    assert (job.model, job.model_digest) == ("example", let_in.contracts["example"].digest)
    with database.read() as connection:
        told_of = "\n".join(explain(connection, str(study)))
    assert "model example was admitted by force: seen by N" in told_of
    assert "    its model was admitted by force: seen by N" in told_of
    config = ["--config", str(settings().file)]
    (row,) = json.loads(CliRunner().invoke(app, ["jobs", "list", "--format", "json", *config]).output)
    assert row["admitted_by_force"] == "seen by N"
    shown = CliRunner().invoke(app, ["jobs", "show", str(job.id), *config]).output
    assert "\n  its model was admitted by force: seen by N\n" in shown
    assert {each.what: each for each in examine(let_in, with_network=False)}["model example"].well is None
    with database.write() as connection:
        assert studies.reopen_for_admitted_models(connection, set(let_in.admitted)) == [], "once is enough"


def test_jobs_of_a_model_that_lost_its_admission_wait_and_it_is_said(
    database: Database, settings: Callable[[], Settings], contract_file: Path
) -> None:
    register(database, received("a"))
    record(contract_file, GREEN)
    pipeline.admit(database, settings())
    kept(contract_file).unlink()
    after = settings()
    with database.write() as connection:
        digests = [each.digest for each in after.admitted.values()]
        assert jobs.claim(connection, worker="w", lease_seconds=60, model_digests=digests) is None
    told = {each.what: each.said for each in examine(after, with_network=False)}
    assert told["jobs of model example"] == "1 wait until the model is admitted"


def test_a_forced_model_is_told_by_every_command_that_shows_models(tmp_path: Path, contract_file: Path) -> None:
    check.force(loaded(contract_file), "seen by N")
    file = tmp_path / "meddaemon.toml"
    file.write_text('[store]\ndirectory = "store"\n[models]\ndirectories = ["models"]\n')
    listed = CliRunner().invoke(app, ["models", "list", "--format", "json", "--config", str(file)])
    (row,) = [each for each in json.loads(listed.output) if each["name"] == "example"]
    assert (row["state"], row["why"]) == ("forced", "seen by N")
