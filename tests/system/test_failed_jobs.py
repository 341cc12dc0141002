"""Jobs that fail are documents, too: what they say, that each is written once whoever dies, and what follows them."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from queue_samples import OVER, claim, enqueue
from sqlalchemy import text

from meddaemon import failpoints
from meddaemon.config.settings import Settings, load
from meddaemon.db import jobs, requests, tables
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.domain.errors import LAST_OUTPUT
from meddaemon.domain.result import Prediction
from meddaemon.domain.schedule import WhenLate
from meddaemon.domain.states import DeliveryState, JobState
from meddaemon.durable import Staging
from meddaemon.inference.warm import WarmModels
from meddaemon.ingest.part10 import read_part10
from meddaemon.jobs.worker import Worker, WorkerSettings
from meddaemon.pipeline import FAILURE_TRIES, InferredJob, JobStages, PreparedJob, tell_of_failure
from meddaemon.roles.process import receiver_of, store_of
from tests.running import Home, wait_until
from tests.system.site import DESTINATION, Pacs, head, make_site, send

ASKING = DESTINATION.format(name="asking", port=104) + 'statuses = ["plausible", "failed"]\n'
REASON = "gap: 8 mm between planes 3 and 4"


@dataclass
class Site:
    """A home with a series of six slices, and the toy that is to look at it."""

    home: Home
    settings: Settings
    database: Database
    stages: JobStages
    staging: Staging
    study: int
    series: list[Path]

    @property
    def stored(self) -> list[Path]:
        """The files of the series, as the store has them."""
        return [path_of(self.settings.store.instances, str(row.sha256)) for row in self.home.instances()]

    def ask(self, **job: Any) -> int:
        """Ask for the toy, whose results go to who wants failures and to who does not."""
        work = {
            "model": "toy",
            "model_digest": self.settings.contracts["toy"].digest,
            "maximum_attempts": 1,
            "key": "k",
            "inputs": {"image": tuple(path.stem for path in self.stored)},
        }
        return enqueue(self.database, self.study, destinations=("asking", "usual"), **{**work, **job})

    def fail(self, reason: str = REASON) -> None:
        """Have the next job refused."""
        job = claim(self.database)
        with self.database.write() as connection:
            jobs.refuse(connection, job, reason)

    def tell(self) -> bool:
        return tell_of_failure(self.database, self.settings, self.staging)

    def documents(self) -> list[Dataset]:
        """Every report that was written, in the usual edition."""
        rows = [row for row in self.home.rows(tables.result_object) if row.edition == "3d"]
        return [dcmread(path_of(self.settings.store.results, str(row.sha256))) for row in rows]

    def written(self) -> dict[str, str]:
        """UID and digest of all objects."""
        return {str(row.sop_instance_uid): str(row.sha256) for row in self.home.rows(tables.result_object)}

    def result(self) -> Any:
        (row,) = self.home.rows(tables.result)
        return row


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a series, to be copied."""
    folder = tmp_path_factory.mktemp("pattern")
    home = make_site(folder, {"usual": 104})
    home.config.write_text(home.config.read_text() + ASKING)
    with home.database() as database:
        store = store_of(home.settings, database)
        receiver = receiver_of(home.settings, database, store)
        for path in head(folder / "scanner", order=10, patient_name="Müller^Jürgen", orientation="oblique"):
            receiver.take(read_part10(path, calling_ae_title="SCANNER"))
        store.close()
    return folder


@pytest.fixture
def found(pattern: Path, tmp_path: Path) -> Iterator[Callable[[str], Site]]:
    """The function that gives a copy of the site."""
    made: list[Site] = []

    def make(name: str = "home") -> Site:
        shutil.copytree(pattern, tmp_path / name)
        home = Home(tmp_path / name)
        settings = home.settings
        database, staging = Database(settings.database.url), Staging(settings.store.results / "incoming")
        stages = JobStages(database, settings, WarmModels(tmp_path / f"{name}-scratch"), staging)
        (row,) = home.rows(tables.study)
        series = sorted((home.folder / "scanner").glob("*"))
        made.append(Site(home, settings, database, stages, staging, int(str(row.id)), series))
        return made[-1]

    yield make
    for each in made:
        each.staging.close()
        each.database.close()


@pytest.fixture
def site(found: Callable[[str], Site]) -> Site:
    return found("home")


def texts(item: Dataset) -> list[str]:
    """Return every text and every meaning of a code in a tree."""
    said = [str(item.TextValue)] if "TextValue" in item else []
    said += [str(each.CodeMeaning) for each in item.get("ConceptCodeSequence", ())]
    return [*said, *(text for child in item.get("ContentSequence", ()) for text in texts(child))]


def predecessors(document: Dataset) -> list[str]:
    return [
        str(instance.ReferencedSOPInstanceUID)
        for study in document.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    ]


# --- what is said ---------------------------------------------------------------------------------------------------


def test_the_document_of_a_failure_says_why_and_nothing_of_the_model(site: Site) -> None:
    site.ask()
    site.fail(f"{REASON}\nand\x07 so on")
    assert site.tell()
    assert not site.tell()
    (document,) = site.documents()
    assert document.SeriesDescription == "AI FAILED AI toy - NOT FOR DIAGNOSTIC USE"
    assert (document.VerificationFlag, document.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert (document.CompletionFlag, document.PatientName) == ("PARTIAL", "Müller^Jürgen")
    assert document.CompletionFlagDescription == f"Failed: {REASON} and so on"
    said = texts(document)
    assert f"Failed: {REASON} and so on" in said
    assert "No algorithms succeeded; without findings" in said
    assert "Undetermined" in said
    evidence = document.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 6
    result = site.result()
    assert (result.status, result.reason) == ("failed", f"{REASON}\nand\x07 so on")
    assert (result.model_version, result.series_instance_uid) == ("1", evidence.SeriesInstanceUID)
    assert site.home.rows(tables.finding) == []
    assert {str(row.destination) for row in site.home.rows(tables.delivery)} == {"asking"}
    explained = site.home.cli("explain", "1").stdout
    assert "result 1 of job 1: toy 1, failed\n" in explained
    assert f"\n    {REASON}" in explained
    assert "not to usual: it takes no result that is failed" in explained
    assert "its failure is told of by result 1" in site.home.cli("jobs", "show", "1").stdout


WORKER = "worker@machine.hospital.example:4711"


def _expire(site: Site) -> None:
    claim(site.database, lease_seconds=OVER, worker=WORKER)
    with site.database.write() as connection:
        jobs.expire(connection)


def _miss(site: Site) -> None:
    with site.database.write() as connection:
        connection.execute(text("UPDATE job SET deadline_at = 1"))
        jobs.miss(connection)


def _work(site: Site) -> None:
    """Have a real worker read the series, whose third slice is missing."""
    settings = WorkerSettings(
        lease_seconds=60, heartbeat_seconds=20, backoff_seconds=60, poll_seconds=1, drain_seconds=1
    )
    worker = Worker(site.database, "worker", settings, site.stages)
    assert worker.work_one()


@pytest.mark.parametrize(
    ("discard", "said"),
    [(_expire, "stopped renewing its lease"), (_miss, "it had not begun at its deadline"), (_work, "gap: ")],
)
def test_every_way_to_fail_is_told_of(site: Site, discard: Callable[[Site], None], said: str) -> None:
    planes = [path for path in site.stored if dcmread(path).InstanceNumber != 3]
    inputs = {"image": tuple(path.stem for path in planes)}
    site.ask(inputs=inputs, deadline_seconds=60.0, when_late=WhenLate.DISCARD)
    discard(site)
    assert site.tell()
    (document,) = site.documents()
    assert any(said in each for each in texts(document))
    # Nobody outside learns which machines there are.
    assert "machine" not in str(document)
    if discard is _expire:
        assert WORKER in site.home.cli("explain", "1").stdout


def test_a_document_names_no_path_and_nothing_that_a_process_printed(site: Site) -> None:
    printed = 'Traceback:\n  File "/home/jane/venv/lib/model.py", line 3, in load'
    reason = f"FileNotFoundError: '/srv/models/toy/models/model.pt'{LAST_OUTPUT}{printed}"
    site.ask()
    site.fail(reason)
    assert site.tell()
    (document,) = site.documents()
    assert document.CompletionFlagDescription == "Failed: FileNotFoundError: 'model.pt'"
    assert not any(each in str(document) for each in ("/srv", "jane", "Traceback"))
    assert site.result().reason == reason


def test_the_answer_of_a_job_that_failed_names_the_document_of_its_failure(site: Site) -> None:
    job_id = site.ask()
    for reason in (REASON, "the model raised"):
        site.fail(reason)
        assert site.tell()
        with site.database.write() as connection:
            requests.requeue(connection, job_id)
    prediction = Prediction(
        series_instance_uid=str(dcmread(site.series[0]).SeriesInstanceUID), beyond="planes 6; the model takes 20"
    )
    contract = site.settings.contracts["toy"]
    prepared = PreparedJob(contract=contract, inputs={"image": site.stored}, ready=prediction)
    site.stages.publish(claim(site.database), InferredJob(prepared=prepared, prediction=prediction))
    first, second, answer = site.documents()
    assert predecessors(first) == []
    assert set(predecessors(second)) & {str(first.SOPInstanceUID)}
    assert set(predecessors(answer)) & {str(second.SOPInstanceUID)}
    # Archives show what the first object of a series says of it.
    assert len({each.SeriesInstanceUID for each in (first, second, answer)}) == 3
    assert [row.failed_at is None for row in site.home.rows(tables.result)] == [False, False, True]
    assert {bool(row.wanted) for row in site.home.rows(tables.delivery)} == {False}
    assert "outdated: its job was queued again" in site.home.cli("explain", "1").stdout


# --- once, whoever dies ---------------------------------------------------------------------------------------------


def _tell_until(config: Path, point: str) -> None:
    os.environ[failpoints.VARIABLE] = f"{point}:kill"
    failpoints._armed.cache_clear()
    settings = load(config, {})
    database = Database(settings.database.url)
    tell_of_failure(database, settings, Staging(settings.store.results / "incoming"))


def killed(site: Site, point: str) -> None:
    """Have a process tell of the failure that is killed at a point; its lease is over then."""
    process = multiprocessing.get_context("fork").Process(target=_tell_until, args=(site.home.config, point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with site.database.write() as connection:
        connection.execute(text("UPDATE job SET lease_expires_at = 1"))


def test_a_failure_is_told_of_once_and_in_the_same_bytes_wherever_its_teller_is_killed(
    found: Callable[[str], Site],
) -> None:
    undisturbed = found("undisturbed")
    undisturbed.ask()
    undisturbed.fail()
    assert undisturbed.tell()
    for points in (["telling", "synced"], ["renamed", "told"]):
        site = found("-".join(points))
        site.ask()
        site.fail()
        for point in points:
            killed(site, point)
            assert site.home.rows(tables.result) == []
        assert site.tell()
        assert not site.tell()
        assert site.written() == undisturbed.written()
        assert len(site.home.rows(tables.result)) == 1


def test_what_no_process_survives_is_told_of_without_a_document(site: Site) -> None:
    site.ask()
    site.fail()
    for _ in range(FAILURE_TRIES):
        killed(site, "telling")
    assert site.tell()
    assert site.written() == {}
    assert site.result().reason == f"{REASON}; there is no document of it: none of 3 tries to write it came to an end"


def test_what_may_pass_is_tried_again_but_not_for_ever(site: Site) -> None:
    site.ask()
    site.fail()
    site.settings.store.instances.rename(site.home.folder / "away")
    for _ in range(FAILURE_TRIES - 1):
        assert site.tell()
        assert not site.tell()
        assert site.home.rows(tables.result) == []
        with site.database.write() as connection:
            connection.execute(text("UPDATE job SET lease_expires_at = 1"))
    assert site.tell()
    assert site.result().reason.endswith("there is no document of it: FileNotFoundError")


# --- where there can be none ----------------------------------------------------------------------------------------


def _lose(site: Site) -> None:
    site.stored[0].unlink()


def _contradict(site: Site) -> None:
    dataset = dcmread(site.stored[0])
    dataset.PatientID = "somebody else"
    dataset.save_as(site.stored[0])


def _spoil(site: Site) -> None:
    site.stored[0].write_bytes(b"nothing of DICOM")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(_lose, "missing_instance"), (_contradict, "contradictory_identity"), (_spoil, "unreadable_source")],
)
def test_a_source_that_carries_no_document_is_said_in_the_result(
    site: Site, spoil: Callable[[Site], None], why: str
) -> None:
    site.ask()
    site.fail()
    spoil(site)
    assert site.tell()
    assert site.written() == {}
    assert site.result().reason.startswith(f"{REASON}; there is no document of it: {why}: ")
    assert "goes nowhere" not in site.home.cli("explain", "1").stdout


def test_a_model_that_is_not_what_it_was_has_a_result_that_says_so(site: Site) -> None:
    site.ask(model_digest="a" * 64)
    site.fail()
    assert not site.tell()
    with site.database.write() as connection:
        connection.execute(text("UPDATE job SET finished_at = finished_at - 3600"))
    assert site.tell()
    result = site.result()
    assert "there is no document of it: model toy has digest" in result.reason
    assert result.model_version == ""


# --- the whole way --------------------------------------------------------------------------------------------------


def test_a_failure_goes_to_who_asks_for_it_and_the_answer_after_it_to_all(tmp_path: Path) -> None:
    asking, usual = Pacs(), Pacs()
    with asking.listening() as one, usual.listening() as other:
        home = make_site(tmp_path, {"asking": one, "usual": other}, attempts=1)
        said = f"port = {one}\n"
        home.config.write_text(home.config.read_text().replace(said, said + 'statuses = ["plausible", "failed"]\n'))
        # Once, what the model said cannot be published.
        with home.running("serve", failpoint="inferred:raise") as daemon:
            send(head(tmp_path / "scanner"), daemon.port())
            (failed,) = wait_until(lambda: asking.of("SR"), what="the document of the failure")
            assert failed.SeriesDescription.startswith("AI FAILED")
            assert [row.state for row in home.rows(tables.job)] == [JobState.DISCARDED]
            assert home.cli("jobs", "requeue", "1").returncode == 0
            wait_until(lambda: len(asking.of("SR")) == 2 and usual.of("SR"), what="the answer")
            wait_until(
                lambda: {str(row.state) for row in home.rows(tables.delivery)} == {DeliveryState.SENT},
                what="the deliveries to be recorded",
            )
    answer = asking.of("SR")[1]
    assert predecessors(answer) == [failed.SOPInstanceUID]
    assert [each.SOPInstanceUID for each in usual.of("SR")] == [answer.SOPInstanceUID]
