"""A study of two patients through listener and scheduler: held, also after a restart, until it is released."""

from pathlib import Path

import pytest
from encoded import written
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from running import Home, wait_until
from scanner import scanner

from meddaemon.db import tables
from meddaemon.domain.states import StudyState


def _image(number: int, name: str) -> bytes:
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = f"2.25.3.{number}"
    data_set.StudyInstanceUID = "2.25.1"
    data_set.SeriesInstanceUID = "2.25.2"
    data_set.Modality = "CT"
    data_set.PatientName = name
    data_set.PatientID = "SECRET-7"
    return written(data_set, ExplicitVRLittleEndian)


def _send(port: int, number: int, name: str) -> None:
    with scanner(port) as sender:
        assert sender.store(_image(number, name), f"2.25.3.{number}") == 0


def _state(home: Home) -> StudyState:
    (study,) = home.rows(tables.study)
    return StudyState(study.state)


@pytest.mark.fault(81)
def test_a_study_of_two_patients_is_held_until_it_is_released(tmp_path: Path) -> None:
    """Fault 81."""
    home = Home.make(tmp_path, quiet_seconds=0.5)
    with home.running("listen") as listener, home.running("deliver") as deliver:
        _send(listener.port(), 1, "Secret^Anna")
        _send(listener.port(), 2, "Other^Person")
        wait_until(lambda: _state(home) is StudyState.HELD, what="the study to be held")
    log = listener.log_text() + deliver.log_text()
    assert "held a study" in log
    with home.running("listen") as listener:
        _send(listener.port(), 3, "Secret^Anna")
    assert _state(home) is StudyState.HELD
    listed = home.cli("studies")
    explained = home.cli("explain", "2.25.1")
    looked_at = home.cli("doctor", "--no-network")
    assert "PatientName" in listed.stdout
    assert "2 different values of PatientName: instance 2.25.3.1 (1 such), 2.25.3.2 (1 such)" in explained.stdout
    assert "meddaemon studies release 1" in explained.stdout
    assert "held for a person: contradictory, incomplete, or of nobody: study 1" in looked_at.stdout
    said = log + explained.stdout + looked_at.stdout
    assert not [word for word in ("Secret", "SECRET", "Other", "Anna") if word in said]
    assert home.cli("studies", "release", "2.25.1").stdout == "study 1 is released\n"
    again = home.cli("studies", "release", "1")
    assert (again.returncode, again.stderr) == (1, "meddaemon: study 1 is not held; see `meddaemon studies`\n")
    with home.running("deliver"):
        wait_until(lambda: _state(home) is StudyState.COMPLETE, what="the study to go on")
    assert "released 20" in home.cli("explain", "1").stdout
