"""Signals through the real daemon: a modality that says when it is done, an archive that is asked, a person."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind

from meddaemon.db import tables
from meddaemon.domain.states import StudyState
from tests.admission import let_in
from tests.db.test_studies import MODEL, RULE
from tests.ingest.encoded import written
from tests.modality import available, modality, performed, step
from tests.running import Home, wait_until
from tests.scanner import scanner

SITE = """
[models]
directories = ["models"]

[delivery]
poll_seconds = 0.1
connection_timeout_seconds = 1
association_timeout_seconds = 2
dimse_timeout_seconds = 2
"""
PEER = """
[[peers]]
ae_title = "{name}"
host = "127.0.0.1"
port = {port}
query = true
"""


def make(folder: Path, extra: str = "", *, quiet_seconds: float, rule: str = "") -> Home:
    model = folder / "models" / "example"
    model.mkdir(parents=True)
    (model / "contract.toml").write_text(MODEL)
    let_in(model / "contract.toml")
    return Home.make(folder, SITE + extra + RULE.format(name="rule") + rule, quiet_seconds=quiet_seconds)


def send(port: int, study: str, *numbers: int, calling: str = "CT1") -> None:
    with scanner(port, calling=calling) as sender:
        for number in numbers:
            data_set = Dataset()
            data_set.SOPClassUID, data_set.SOPInstanceUID = CTImageStorage, f"{study}.1.{number}"
            data_set.StudyInstanceUID, data_set.SeriesInstanceUID = study, f"{study}.1"
            data_set.Modality, data_set.PatientName, data_set.PatientID = "CT", "Secret^Anna", "SECRET-7"
            data_set.Rows = data_set.Columns = 64
            assert sender.store(written(data_set, ExplicitVRLittleEndian), f"{study}.1.{number}") == 0


def state_of(home: Home, study: str) -> StudyState | None:
    return next((StudyState(row.state) for row in home.rows(tables.study) if row.study_instance_uid == study), None)


def decided(home: Home, study: str) -> list[str]:
    (study_id,) = [row.id for row in home.rows(tables.study) if row.study_instance_uid == study]
    return [row.reason for row in home.rows(tables.decision) if row.study_id == study_id]


def test_a_modality_says_when_it_is_done(tmp_path: Path) -> None:
    """The listener is killed as soon as it has answered: what it answered is kept."""
    home = make(tmp_path, quiet_seconds=3600)
    with home.running("listen") as listener:
        with modality(listener.port()) as ct:
            assert ct.begin("2.25.500", step("2.25.1")).Status == 0
            listener.kill_all()
        listener.process.returncode = 0  # asked for
    killed = listener.log_text()
    with home.running("listen") as listener, home.running("deliver") as deliver:
        port = listener.port()
        send(port, "2.25.1", 1, 2)
        with modality(port) as ct:
            assert ct.begin("2.25.500", step("2.25.1")).Status == 0x0111
            end = performed({"2.25.1.1": ["2.25.1.1.1", "2.25.1.1.2", "2.25.1.1.3"]})
            assert ct.update("2.25.500", end).Status == 0
            waits = "1 of 3 instances of MPPS 2.25.500 of CT1 are not here (2.25.1.1.3)"
            wait_until(lambda: waits in str(home.rows(tables.study)[0].waiting), what="the study to wait for the third")
            send(port, "2.25.1", 3)
            wait_until(lambda: state_of(home, "2.25.1") is StudyState.COMPLETE, what="the rule to be asked")
            # An archive tells of another study before anything of it arrives.
            assert ct.notify(None, available("2.25.2", {"2.25.2.1": {"2.25.2.1.1": "ONLINE"}})).Status == 0
            send(port, "2.25.2", 1)
            wait_until(lambda: state_of(home, "2.25.2") is StudyState.COMPLETE, what="the rule to be asked")
    assert decided(home, "2.25.1") == decided(home, "2.25.2") == ["example: runs"]
    explained = home.cli("explain", "2.25.1").stdout
    assert "announced, completed" in explained
    assert "all 3 instances of MPPS 2.25.500 of CT1 are here" in explained
    said = killed + listener.log_text() + deliver.log_text() + explained
    assert not [word for word in ("Secret", "SECRET", "Anna") if word in said]


@contextmanager
def archive(has: dict[str, int]) -> Iterator[int]:
    """An archive that has so many instances of each study."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset]]:
        found = Dataset()
        found.StudyInstanceUID = event.identifier.StudyInstanceUID
        found.NumberOfStudyRelatedInstances = has[found.StudyInstanceUID]
        yield 0xFF00, found

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        entity.shutdown()


def test_the_archive_that_sent_a_study_is_asked_whether_it_is_complete(tmp_path: Path) -> None:
    with archive({"2.25.1": 3}) as port, socket.create_server(("127.0.0.1", 0)) as silent:
        peers = PEER.format(name="PACS", port=port) + PEER.format(name="SILENT", port=silent.getsockname()[1])
        home = make(tmp_path, peers, quiet_seconds=0.5)
        with home.running("listen") as listener, home.running("deliver"):
            send(listener.port(), "2.25.3", 1, calling="SILENT")
            send(listener.port(), "2.25.1", 1, 2, calling="PACS")
            # Both may have been registered together, in whatever order.
            wait_until(
                lambda: any("1 of 3 instances of C-FIND" in str(row.waiting) for row in home.rows(tables.study)),
                what="waiting",
            )
            send(listener.port(), "2.25.2", 1)
            # Nobody else waits for the one that waits, nor for the peer that says nothing.
            wait_until(lambda: state_of(home, "2.25.2") is StudyState.COMPLETE, what="the study of another sender")
            assert state_of(home, "2.25.1") is StudyState.RECEIVING
            send(listener.port(), "2.25.1", 3, calling="PACS")
            wait_until(lambda: state_of(home, "2.25.1") is StudyState.COMPLETE, what="the whole study to be asked")
            wait_until(lambda: state_of(home, "2.25.3") is StudyState.COMPLETE, what="the study of the silent peer")
    explained = home.cli("explain", "2.25.1").stdout
    assert "all 3 instances of C-FIND of PACS are here" in explained
    silent_one = home.cli("explain", "2.25.3").stdout
    assert "C-FIND of SILENT: SILENT at 127.0.0.1" in silent_one
    assert "the quiet time decides" in silent_one


def test_an_incomplete_study_is_held_for_a_person(tmp_path: Path) -> None:
    """Fault 82."""
    rule = (
        'requires = "T1"\nrequired_series.T1 = { attribute = "SeriesDescription", matches = "t1" }\n'
        'maximum_wait_seconds = 1\nwhen_incomplete = "hold"\n'
    )
    home = make(tmp_path, quiet_seconds=0.5, rule=rule)
    with home.running("listen") as listener:
        send(listener.port(), "2.25.1", 1)
        with home.running("deliver"):
            wait_until(lambda: state_of(home, "2.25.1") is StudyState.HELD, what="the study to be held")
            assert "required series: T1" in home.cli("explain", "1").stdout
            assert home.cli("studies", "release", "1").returncode == 0
            wait_until(lambda: state_of(home, "2.25.1") is StudyState.COMPLETE, what="the study to go on")
    (reason,) = decided(home, "2.25.1")
    assert reason.startswith("example: runs; not complete after the maximum wait of 1 s: required series: T1")
    assert reason.endswith("an operator let it go on")
