"""Real studies through the whole daemon and the built-in model; the README beside the files says what must happen."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from meddaemon.db import tables
from meddaemon.domain.states import JobState
from meddaemon.domain.uids import derived_uid
from tests.running import Home, wait_until
from tests.system.site import Pacs, send
from tests.system.test_main_job import measured

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(find_spec("deepbet") is None, reason="needs the weights that the package deepbet carries"),
    pytest.mark.timeout(900),
]

SITE = """
[delivery]
poll_seconds = 0.2

[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}

[[rules]]
name = "brain"
models = ["brain_volume"]
destinations = ["pacs"]
"""


def files_of(folder: Path, scratch: Path) -> list[Path]:
    """Return the files of a real series; one that was published without UIDs is given some, or nobody would take it."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    headers = [dcmread(path) for path in files]
    if all(header.SOPClassUID and header.SOPInstanceUID and _names_itself(header) for header in headers):
        return files
    scratch.mkdir(parents=True)
    for number, header in enumerate(headers):
        header.StudyInstanceUID = header.StudyInstanceUID or derived_uid(folder.name, "study")
        header.SeriesInstanceUID = header.SeriesInstanceUID or derived_uid(folder.name, "series")
        header.SOPInstanceUID = header.SOPInstanceUID or derived_uid(folder.name, str(number))
        header.FrameOfReferenceUID = header.get("FrameOfReferenceUID") or derived_uid(folder.name, "frame")
        header.SOPClassUID = header.SOPClassUID or CTImageStorage
        header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
        header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        header.save_as(scratch / f"{number:04d}.dcm", enforce_file_format=True)
    return sorted(scratch.iterdir())


def _names_itself(header: Dataset) -> bool:
    meta = header.file_meta
    return meta.get("MediaStorageSOPInstanceUID") == header.SOPInstanceUID


def test_the_brain_of_a_real_head_is_measured_and_nothing_else_is_run(tmp_path: Path, shared_dicom: Path) -> None:
    pacs = Pacs()
    others = ["series/ct_abdomen_totalseg", "series/ct_phantom_tilt_m18_5", "derived/missing_slice"]
    with pacs.listening() as port:
        home = Home.make(tmp_path / "home", SITE.format(port=port), quiet_seconds=2, hold_unidentified=False)
        with home.running("serve") as daemon:
            send(files_of(shared_dicom / "series/mr_brain_sag_anon", tmp_path / "mr"), daemon.port())
            for other in others:
                send(files_of(shared_dicom / other, tmp_path / other), daemon.port())
            wait_until(lambda: pacs.of("SR"), what="the SR", seconds=300)
            wait_until(
                lambda: len(home.rows(tables.decision)) == len(home.rows(tables.study)),
                what="every study to be decided",
            )
    (job,) = home.rows(tables.job)
    assert job.state == JobState.COMPLETED
    assert measured(pacs.of("SR")[0]) == pytest.approx(1468.57, abs=0.01)
    assert len(pacs.of("SEG")) == 1
    (row,) = json.loads(home.cli("results", "--min", "1400", "--max", "1500", "--format", "json").stdout)
    assert row["value"] == measured(pacs.of("SR")[0])


@pytest.mark.parametrize(
    ("series", "state", "why"),
    [
        ("series/ct_phantom_tilt_m18_5", JobState.DISCARDED, "tilt"),
        ("derived/missing_slice", JobState.DISCARDED, "gap"),
        ("derived/duplicate_position", JobState.DISCARDED, "duplicate_position"),
        ("series/ct_abdomen_totalseg", JobState.COMPLETED, "implausible"),
        ("series/ct_chest_P001", JobState.COMPLETED, "implausible"),
    ],
)
def test_what_is_no_head_is_refused_or_marked_when_it_is_forced_through(
    tmp_path: Path, shared_dicom: Path, series: str, state: JobState, why: str
) -> None:
    pacs = Pacs()
    with pacs.listening() as port:
        home = Home.make(tmp_path / "home", SITE.format(port=port), quiet_seconds=1, hold_unidentified=False)
        with home.running("serve") as daemon:
            send(files_of(shared_dicom / series, tmp_path / "scanner"), daemon.port())
            wait_until(lambda: home.rows(tables.decision), what="the rule to be asked")
            assert home.rows(tables.job) == []
            forced = home.cli("run", "1", "--model", "brain_volume", "--to", "pacs")
            assert forced.returncode == 0, forced.stderr
            wait_until(
                lambda: [row.state for row in home.rows(tables.job)] == [state],
                what=f"the job to be {state}",
                seconds=300,
            )
            explained = home.cli("explain", "1").stdout
    assert why in explained
    assert not pacs.received
