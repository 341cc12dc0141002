"""The main job through real processes, associations and databases: what was promised, watched from outside."""

import json
import os
import signal
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset

from meddaemon.db import tables
from meddaemon.domain.states import DeliveryState, JobState
from tests.admission import REASON
from tests.dicom_factory import make_series
from tests.running import Home, Role, wait_until
from tests.system.site import Pacs, head, make_site, send

REPORTED = "SR volumes binary/3d: sent"
VOLUME_ML = 24 * 2.0 * 1.5 * 1.25 / 1000
"""The toy's object: 24 voxels of the factory's default spacing."""


def measured(report: Dataset) -> float:
    """Return the only number of a TID 1500 report."""

    def numbers(items: list[Dataset]) -> list[float]:
        found = []
        for item in items:
            if item.ValueType == "NUM":
                found.append(float(item.MeasuredValueSequence[0].NumericValue))
            found += numbers(item.get("ContentSequence", []))
        return found

    (value,) = numbers(report.ContentSequence)
    return value


def only_job(home: Home) -> dict[str, object]:
    (row,) = home.rows(tables.job)
    return dict(row._mapping)


def job_states(home: Home) -> list[str]:
    return [str(row.state) for row in home.rows(tables.job)]


def child_of(role: Role, name: str) -> int:
    return wait_until(lambda: role.announced(name), what=f"role {name}").pid


@pytest.fixture
def pacs() -> Pacs:
    return Pacs()


def test_a_study_comes_back_as_seg_and_sr_and_can_be_queried(tmp_path: Path, pacs: Pacs) -> None:
    files = head(tmp_path / "scanner", orientation="oblique", patient_name="Müller^Jürgen")
    # Two planes across, in the same series: the contract takes the largest stack, and says what it left out.
    across = make_series(
        tmp_path / "across",
        planes=2,
        orientation="sagittal",
        patient_name="Müller^Jürgen",
        edit=lambda plane, dataset: setattr(dataset, "SOPInstanceUID", f"2.25.10{plane}"),
    )
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            send([*across, *files], daemon.port())
            wait_until(lambda: pacs.of("SR"), what="the SR")
            send([*files, *across], daemon.port())
            explained = wait_until(
                lambda: next((said for said in [home.cli("explain", "1")] if REPORTED in said.stdout), None),
                what="the delivery to be recorded",
            )
            results = home.cli("results", "--model", "toy", "--code", "volume", "--format", "json")
            log = daemon.log_text()
    (segmentation,), (report,) = pacs.of("SEG"), pacs.of("SR")
    assert report.PatientName == segmentation.PatientName == "Müller^Jürgen"
    assert measured(report) == pytest.approx(VOLUME_ML)
    assert report.VerificationFlag == "UNVERIFIED"
    mask = hd.seg.Segmentation.from_dataset(segmentation).get_volume(combine_segments=True).array
    assert np.count_nonzero(mask) == 24
    (row,) = json.loads(results.stdout)
    assert row["value"] == measured(report)
    assert (row["finding"], row["unit"], row["status"]) == ("Brain", "mL", "plausible")
    assert "rule 'toy' matched" in explained.stdout
    assert "Modality equals 'MR'; saw MR" in explained.stdout
    left_out = "2 planes of another Image Orientation (Patient): 2.25.100, 2.25.101"
    assert f"input image: stacks_left_out: {left_out}" in " ".join(explained.stdout.split())
    # What describes them is there for searches, which open no file.
    assert {tuple(row.header["Modality"]) for row in home.rows(tables.result_object)} == {("SEG",), ("SR",)}
    (result,) = home.rows(tables.result)
    assert result.provenance["admitted_by_force"] == REASON
    assert result.provenance["input image: stacks_left_out"] == left_out
    named = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert len(named) == len(files), "the segmentation refers to the images that it was drawn on"
    # The same study sent again is no new work: one job, one result, one copy of each object at the PACS.
    assert len(home.rows(tables.job)) == 1
    assert len(pacs.received) == 2
    assert "ller" not in log


@pytest.mark.fault(79)
def test_a_late_image_reopens_the_study_and_its_result_supersedes_the_first(tmp_path: Path, pacs: Pacs) -> None:
    files = head(tmp_path / "scanner")
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            send(files[:-1], daemon.port())
            wait_until(lambda: pacs.of("SR"), what="the first SR")
            send(files[-1:], daemon.port())
            wait_until(lambda: len(pacs.of("SR")) == 2, what="the second SR")
    first, second = pacs.of("SR")
    assert first.SOPInstanceUID != second.SOPInstanceUID
    (predecessor,) = second.PredecessorDocumentsSequence
    referenced = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert referenced == first.SOPInstanceUID
    (study,) = home.rows(tables.study)
    assert study.generation == 2
    _, new = home.rows(tables.result)
    (request,) = home.rows(tables.request)
    assert request.job_id == new.job_id
    assert f"superseded by job {new.job_id}" in home.cli("explain", "1").stdout
    assert len(json.loads(home.cli("results", "--format", "json").stdout)) == 1


def test_destinations_do_not_wait_for_each_other_and_nothing_is_computed_twice(tmp_path: Path, pacs: Pacs) -> None:
    down = Pacs()
    with down.listening() as free_port:
        pass
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"up": port, "down": free_port})
        with home.running("serve") as daemon:
            send(head(tmp_path / "scanner"), daemon.port())
            wait_until(lambda: len(pacs.received) == 2, what="the PACS that is up")
            wait_until(
                lambda: all(row.attempt > 1 for row in home.rows(tables.delivery) if row.destination == "down"),
                what="attempts on the PACS that is down",
            )
            with down.listening(free_port):
                wait_until(lambda: len(down.received) == 2, what="the PACS that came back")
                wait_until(
                    lambda: all(row.state == DeliveryState.SENT for row in home.rows(tables.delivery)),
                    what="every delivery to be recorded",
                )
    assert only_job(home)["attempt"] == 1
    assert {each.SOPInstanceUID for each in pacs.received} == {each.SOPInstanceUID for each in down.received}


def test_a_status_that_a_person_must_look_at_holds_the_delivery_and_resources_are_waited_for(
    tmp_path: Path, pacs: Pacs
) -> None:
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        pacs.status = 0xA700
        with home.running("serve") as daemon:
            send(head(tmp_path / "scanner"), daemon.port())
            wait_until(
                lambda: [row for row in home.rows(tables.delivery) if row.status == 0xA700 and row.attempt > 1],
                what="another attempt after A700",
            )
            pacs.status = 0xA900
            # What refers to it waits for it, unless it went, and is held, first.
            wait_until(
                lambda: home.rows(tables.delivery)[0].state == DeliveryState.HELD, what="the segmentation to be held"
            )
            pacs.status = None
            assert home.cli("deliveries", "requeue", "--destination", "pacs").returncode == 0
            wait_until(lambda: len(pacs.received) == 2, what="what was requeued")


@pytest.mark.fault(126, 130)
def test_a_killed_worker_loses_nothing_and_its_job_gives_one_result(tmp_path: Path, pacs: Pacs) -> None:
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port}, lease=4)
        with home.running("serve") as daemon:
            send(head(tmp_path / "scanner"), daemon.port())
            wait_until(lambda: job_states(home) == [JobState.EXECUTING], what="the job to run", every=0.005)
            os.kill(child_of(daemon, "work"), signal.SIGKILL)
            wait_until(lambda: pacs.of("SR"), what="the SR of the second attempt")
    job = only_job(home)
    assert (job["state"], job["attempt"]) == (JobState.COMPLETED, 2)
    assert len(home.rows(tables.result)) == 1
    assert len(pacs.received) == 2


@pytest.mark.fault(133)
def test_a_model_that_hangs_is_ended_by_its_time_limit_and_the_queue_goes_on(tmp_path: Path, pacs: Pacs) -> None:
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port}, time_limit=20)
        with home.running("serve") as daemon:
            send(head(tmp_path / "bad", order=104, study="bad"), daemon.port())
            wait_until(lambda: job_states(home) == [JobState.EXECUTING], what="the job to run")
            send(head(tmp_path / "good", study="good"), daemon.port())
            wait_until(lambda: pacs.of("SR"), what="the SR of the sound study", seconds=120)
            wait_until(lambda: home.rows(tables.job)[0].reason, what="the reason of the failure")
    hung = home.rows(tables.job)[0]
    assert "20" in hung.reason


@pytest.mark.fault(127)
def test_sigterm_ends_within_15_seconds_and_the_job_is_given_back(tmp_path: Path, pacs: Pacs) -> None:
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            send(head(tmp_path / "scanner", order=104), daemon.port())
            wait_until(lambda: job_states(home) == [JobState.EXECUTING], what="the job to run")
            daemon.stop()
    job = only_job(home)
    assert (job["state"], job["attempt"]) == (JobState.AVAILABLE, 0)
    assert home.rows(tables.process) == []


@pytest.mark.fault(83)
def test_an_unsound_series_is_refused_by_name_and_never_retried(tmp_path: Path, pacs: Pacs) -> None:
    files = head(tmp_path / "scanner")
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            send([*files[:2], *files[3:]], daemon.port())
            wait_until(lambda: job_states(home) == [JobState.DISCARDED], what="the job to be discarded")
            explained = home.cli("explain", "1").stdout
    assert only_job(home)["attempt"] == 1
    assert "gap" in explained
    assert not pacs.received


@pytest.mark.fault(136)
def test_a_role_that_dies_is_started_again(tmp_path: Path, pacs: Pacs) -> None:
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            daemon.port()
            for role in ("listen", "deliver"):
                killed = child_of(daemon, role)
                os.kill(killed, signal.SIGKILL)
                wait_until(
                    lambda role=role, killed=killed: any(
                        row.role == role and row.pid != killed for row in home.rows(tables.process)
                    ),
                    what=f"a new {role}",
                )
            newest = [row for row in home.rows(tables.process) if row.role == "listen"][-1]
            send(head(tmp_path / "scanner"), int(newest.address.rpartition(":")[2]))
            wait_until(lambda: pacs.of("SR"), what="the SR")


def test_only_the_model_child_loads_torch(tmp_path: Path, pacs: Pacs) -> None:
    with pacs.listening() as port:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            send(head(tmp_path / "scanner"), daemon.port())
            wait_until(lambda: pacs.of("SR"), what="the SR")
            loaded = {
                row.role: "libtorch" in Path(f"/proc/{row.pid}/maps").read_text() for row in home.rows(tables.process)
            }
    assert loaded == {"listen": False, "work": False, "deliver": False}
