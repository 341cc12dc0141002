"""The main job between real peers: Orthanc as archive and sender, DCMTK as sender and as PACS."""

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.running import Home, wait_until
from tests.system.site import head, make_site

pytestmark = pytest.mark.peer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Orthanc:
    http: int
    dicom: int

    def ask(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def bytes_of(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=60) as answer:
            return bytes(answer.read())

    def answers(self) -> bool:
        try:
            return bool(self.ask("/system"))
        except OSError:
            return False

    def of(self, modality: str) -> list[dict[str, Any]]:
        query = {"Level": "Instance", "Query": {"Modality": modality}, "Expand": True}
        return list(self.ask("/tools/find", json.dumps(query).encode()))


@contextmanager
def orthanc(folder: Path, **more: object) -> Iterator[Orthanc]:
    """Run Orthanc, with more settings than the usual."""
    program = shutil.which("Orthanc")
    if program is None:
        pytest.skip("Orthanc is not installed")
    server = Orthanc(http=free_port(), dicom=free_port())
    folder.mkdir()
    settings = {
        "HttpPort": server.http,
        "DicomPort": server.dicom,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "ExecuteLuaEnabled": False,
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [],
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_until(server.answers, what="Orthanc to start", every=0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def know(archive: Orthanc, port: int, *, ae_title: str = "MEDDAEMON") -> None:
    """Tell Orthanc where the daemon listens."""
    modality = {"AET": ae_title, "Host": "127.0.0.1", "Port": port}
    request = urllib.request.Request(
        f"http://127.0.0.1:{archive.http}/modalities/ai", data=json.dumps(modality).encode(), method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()


PEER = """
[delivery]
poll_seconds = 0.1

[[peers]]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = {port}
"""


def test_orthanc_asks_for_storage_commitment_and_hears_the_outcome(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        home = Home.make(tmp_path / "home", PEER.format(port=archive.dicom))
        with home.running("listen") as listener, home.running("deliver"):
            know(archive, listener.port())
            files = head(tmp_path / "scanner")
            stored = [archive.ask("/instances", path.read_bytes())["ID"] for path in files]
            archive.ask("/modalities/ai/store", json.dumps(stored[1:]).encode())
            asked = {"Resources": stored}
            answer = archive.ask("/modalities/ai/storage-commitment", json.dumps(asked).encode())
            outcome = wait_until(
                lambda: next(
                    (each for each in [archive.ask(answer["Path"])] if each["Status"] not in {"Pending"}), None
                ),
                what="Orthanc to hear the outcome",
                every=0.1,
            )
    # The one that was not sent is named as failed: no such object instance.
    assert outcome["Status"] == "Failure"
    assert len(outcome["Success"]) == len(files) - 1
    (failed,) = outcome["Failures"]
    assert failed["SOPInstanceUID"] == dcmread(files[0]).SOPInstanceUID
    assert 0x0112 in failed.values()


def test_orthanc_sends_a_study_and_gets_its_results(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        home = make_site(tmp_path / "home", {"orthanc": archive.dicom})
        with home.running("serve") as daemon:
            know(archive, daemon.port())
            stored = [archive.ask("/instances", path.read_bytes())["ID"] for path in head(tmp_path / "scanner")]
            archive.ask("/modalities/ai/store", json.dumps(stored).encode())
            wait_until(lambda: archive.of("SR") and archive.of("SEG"), what="SEG and SR in Orthanc")
            (study,) = archive.ask("/studies")
            modalities = {
                archive.ask(f"/series/{series}")["MainDicomTags"]["Modality"]
                for series in archive.ask(f"/studies/{study}")["Series"]
            }
    # One study at the archive: the results lie with the images they were made from.
    assert modalities == {"MR", "SEG", "SR"}


def test_dcmtk_sends_a_study_and_gets_its_results(tmp_path: Path) -> None:
    dcmsend = shutil.which("dcmsend")
    if dcmsend is None:
        pytest.skip("DCMTK is not installed")
    # Beside `dcmsend`, which only DCMTK has: pynetdicom installs a storescp and a storescu of its own.
    scp, scu = Path(dcmsend).with_name("storescp"), Path(dcmsend).with_name("storescu")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    port = free_port()
    receiver = subprocess.Popen([scp, "--output-directory", str(inbox), "--aetitle", "PACS", str(port)])
    try:
        home = make_site(tmp_path / "home", {"pacs": port})
        with home.running("serve") as daemon:
            files = head(tmp_path / "scanner")
            sent = subprocess.run(
                [scu, "-aec", "MEDDAEMON", "127.0.0.1", str(daemon.port()), *map(str, files)], check=False, timeout=60
            )
            assert sent.returncode == 0
            wait_until(
                lambda: {each.name[:2] for each in inbox.iterdir()} >= {"SG", "SR"}, what="SEG and SR from storescp"
            )
            said = "SR volumes binary/3d: sent"
            wait_until(lambda: said in home.cli("explain", "1").stdout, what="the answer to be recorded")
    finally:
        receiver.terminate()
        receiver.wait(30)
    assert {dcmread(path).Modality for path in inbox.iterdir()} == {"SEG", "SR"}
