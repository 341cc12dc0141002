"""Archives that do not know label maps get masks, with the report that refers to these."""

import json
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest
from edition_samples import ALL, post, states, whole
from pydicom import dcmread
from test_editions import RETRY, SEG_SR

from meddaemon.db.engine import Database
from meddaemon.results.delivery import deliver
from meddaemon.results.dimse import Problem, RemoteEntity, offers, store
from tests.running import wait_until
from tests.system.test_peers import free_port, orthanc

pytestmark = pytest.mark.peer
SEG, SR = "1.2.9.1.0.1", "1.2.9.1.3.3"


@pytest.fixture
def dialect() -> str:
    """The outbox has its own tests, on both; here one database will do."""
    return "sqlite"


def sent_to(database: Database, folder: Path, port: int, ae_title: str) -> None:
    remote = RemoteEntity(ae_title=ae_title, host="127.0.0.1", port=port, calling_ae_title="MEDDAEMON")
    wait_until(lambda: not isinstance(offers(remote), Problem), what=f"{ae_title} to answer")
    post(database, folder, whole(), SEG_SR)
    while deliver(database, folder, "pacs", partial(store, remote), RETRY, threading.Event(), editions=ALL):
        pass
    assert states(database) == [
        ("SEG", "labelmap", "replaced"),
        ("SR", "labelmap/3d", "replaced"),
        ("SEG", "binary", "sent"),
        ("SR", "binary/3d", "sent"),
    ]


def test_orthanc(database: Database, tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        sent_to(database, tmp_path / "results", archive.dicom, "ORTHANC")
        query = {"Level": "Instance", "Query": {}, "Expand": True}
        found = archive.ask("/tools/find", json.dumps(query).encode())
        report = next(each["ID"] for each in found if each["MainDicomTags"]["SOPInstanceUID"] == SR)
        tags = archive.ask(f"/instances/{report}/simplified-tags")
    assert {each["MainDicomTags"]["SOPInstanceUID"] for each in found} == {SEG, SR}
    assert tags["ReferencedInstanceSequence"][0]["ReferencedSOPInstanceUID"] == SEG


def test_dcmtk(database: Database, tmp_path: Path) -> None:
    dcmsend = shutil.which("dcmsend")
    if dcmsend is None:
        pytest.skip("DCMTK is not installed")
    (tmp_path / "inbox").mkdir()
    port = free_port()
    # Beside `dcmsend`, which only DCMTK has: pynetdicom installs a storescp of its own.
    program = Path(dcmsend).with_name("storescp")
    receiver = subprocess.Popen(
        [program, "--output-directory", str(tmp_path / "inbox"), "--aetitle", "PACS", str(port)]
    )
    try:
        sent_to(database, tmp_path / "results", port, "PACS")
    finally:
        receiver.terminate()
        receiver.wait(30)
    arrived = {each.SOPInstanceUID: each for each in map(dcmread, (tmp_path / "inbox").iterdir())}
    assert set(arrived) == {SEG, SR}
    assert arrived[SR].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == SEG
