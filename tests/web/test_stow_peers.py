"""STOW-RS from a real client (Orthanc's DICOMweb plugin), with real files, and as a part of `serve`."""

import hashlib
import json
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from pydicom import dcmread

from meddaemon.domain.errors import RefusedInstance
from meddaemon.ingest.part10 import read_part10
from tests.running import Home, data_set_of
from tests.scanner import scanner
from tests.system.site import head
from tests.system.test_peers import orthanc
from tests.web.posting import WEB, image, multipart, new_uid, post, send, web_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


@pytest.mark.peer
def test_orthanc_sends_by_stow(tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    token = b"orthanc's token".hex()
    digest = hashlib.sha256(token.encode()).hexdigest()
    home = Home.make(tmp_path / "home", f'{WEB}tokens = {{ ORTHANC = "{digest}" }}\n')
    files = head(tmp_path / "scanner")
    with home.running("web") as role:
        server = {
            "Url": f"http://127.0.0.1:{web_port(role)}/dicom-web/",
            "HttpHeaders": {"Authorization": f"Bearer {token}"},
        }
        plugin = {"Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Servers": {"ours": server}}}
        with orthanc(tmp_path / "orthanc", **plugin) as archive:
            stored = [archive.ask("/instances", path.read_bytes())["ID"] for path in files]
            asked = json.dumps({"Resources": stored, "Synchronous": True}).encode()
            outcome = archive.ask("/dicom-web/servers/ours/stow", asked)
            again = archive.ask("/dicom-web/servers/ours/stow", asked)
            originals = {}
            for instance in stored:
                uid = archive.ask(f"/instances/{instance}/simplified-tags")["SOPInstanceUID"]
                originals[uid] = archive.bytes_of(f"/instances/{instance}/file")
    assert (outcome["InstancesCount"], again["InstancesCount"]) == (str(len(files)), str(len(files)))
    rows = {row.sop_instance_uid: row for row in home.instances()}
    assert rows.keys() == originals.keys() == {dcmread(path).SOPInstanceUID for path in files}
    for uid, row in rows.items():
        (tmp_path / "original").write_bytes(originals[uid])
        assert data_set_of(home.files()[str(row.sha256)]) == read_part10(tmp_path / "original").data
        assert row.calling_ae_title == "ORTHANC"


@pytest.mark.shared
def test_real_files_are_taken_and_refused_as_an_import_does(tmp_path: Path, shared_dicom: Path) -> None:
    paths = [
        path
        for folder in ("multiframe", "compressed", "other", "charset", "nonimage", "broken", "cxr")
        for path in sorted((shared_dicom / folder).iterdir())
        if path.is_file() and path.stat().st_size < 3_000_000
    ]
    assert len(paths) > 40
    imported = Home.make(tmp_path / "imported")
    imported.cli("import", *paths)
    home = Home.make(tmp_path / "home", WEB)
    with home.running("web") as role:
        port = web_port(role)
        # One at a time, so that of two versions of an object the same comes first.
        answers = [post(port, multipart([path.read_bytes()])) for path in paths]
    assert [row.sha256 for row in home.instances()] == [row.sha256 for row in imported.instances()]
    assert home.files().keys() == imported.files().keys()
    for path, answer in zip(paths, answers, strict=True):
        try:
            uid = read_part10(path).sop_instance_uid
        except RefusedInstance:
            assert (answer.status, answer.others) == (409, [0xC000]), path
            continue
        if answer.status == 200:
            assert answer.stored == [uid], path
        else:
            assert answer.status == 409, path
            assert [*answer.failed, *answer.others], path
    assert sum(answer.status == 200 for answer in answers) > 35
    assert home.cli("store", "check", "--hash").returncode == 0


def test_serve_runs_it_where_it_is_enabled(tmp_path: Path) -> None:
    uid = new_uid()
    home = Home.make(tmp_path / "on", f"{WEB}enabled = true\n")
    with home.running("serve") as daemon:
        port = web_port(daemon)
        assert send(port, {uid: image(uid)}).stored == [uid]
        with ExitStack() as slow, scanner(daemon.port()) as sender:
            # Fault 158: they fill the web role, which is a process of its own.
            for _ in range(100):
                peer = slow.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
                with suppress(OSError):
                    peer.sendall(b"POST /dicom-web/studies HTTP/1.1\r\nA: ")
            began = time.monotonic()
            assert sender.echo() == 0
            assert time.monotonic() - began < 1
        well = home.cli("doctor", "--no-network").stdout
    assert "ok  web: pid" in well
    assert [row.sop_instance_uid for row in home.instances()] == [uid]
