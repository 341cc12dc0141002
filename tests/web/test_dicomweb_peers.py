"""Searching and retrieving by a real client (dicomweb-client), with Orthanc as the oracle, and by the real role."""

import json
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import dcmread
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian

from tests.running import Home
from tests.system.test_peers import orthanc
from tests.web.archive import ORIGIN, READERS, SENDER_TOKEN, SENDERS, TOKEN, Site
from tests.web.posting import WEB, web_port
from tests.web.test_stow_peers import PLUGIN

dicomweb_client = pytest.importorskip("dicomweb_client")


def client_of(url: str, token: str = TOKEN) -> Any:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    session.trust_env = False
    client = dicomweb_client.DICOMwebClient(url, session=session)
    # It leaves out the port, and would be told to come to the usual one.
    client.host = url.split("/")[2]
    return client


def test_a_real_client_finds_and_retrieves_everything(archive_site: Site) -> None:
    client = client_of(archive_site.url)
    originals = {str(each.SOPInstanceUID): each for each in archive_site.received}
    made = {each.sop_instance_uid: each for each in archive_site.made}
    found = client.search_for_instances(get_remaining=True, limit=4)
    assert sorted(each["00080018"]["Value"][0] for each in found) == sorted([*originals, *made])
    for study in client.search_for_studies():
        uid = study["0020000D"]["Value"][0]
        retrieved = {each.SOPInstanceUID: each for each in client.retrieve_study(uid, (("application/dicom", "*"),))}
        assert len(retrieved) == study["00201208"]["Value"][0]
        for each in retrieved.values():
            if each.SOPInstanceUID in originals:
                assert each == originals[each.SOPInstanceUID]
        for series in client.search_for_series(uid):
            metadata = client.retrieve_series_metadata(uid, series["0020000E"]["Value"][0])
            assert len(metadata) == series["00201209"]["Value"][0]
            for each in metadata:
                instance = each["00080018"]["Value"][0]
                assert each["00080060"] == series["00080060"]
                if "7FE00010" in each and instance in originals:
                    syntax = originals[instance].file_meta.TransferSyntaxUID
                    accepted = None if not syntax.is_encapsulated else (("application/octet-stream", "*"),)
                    (frame,) = client.retrieve_instance_frames(
                        uid, series["0020000E"]["Value"][0], instance, [1], media_types=accepted
                    )
                    if not syntax.is_encapsulated:
                        assert frame == originals[instance].pixel_array.astype("<i2").tobytes()
                    (bulk,) = client.retrieve_bulkdata(each["7FE00010"]["BulkDataURI"], media_types=accepted)
                    assert bulk[: len(frame)] == frame


@pytest.mark.peer
def test_orthanc_gives_the_same_answers(archive_site: Site, tmp_path: Path) -> None:
    if not PLUGIN.exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    settings = {"Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True}}
    with orthanc(tmp_path / "orthanc", **settings) as archive:
        for content in [path.read_bytes() for path in archive_site.home.files().values()]:
            archive.ask("/instances", content)
        for made in archive_site.made:
            archive.ask("/instances", made.content)
        study = str(archive_site.received[0].StudyInstanceUID)
        for path, key in (
            ("studies", "0020000D"),
            ("studies?PatientID=P-1", "0020000D"),
            ("studies?PatientName=doe*", "0020000D"),
            ("studies?StudyDate=20200101-20200201", "0020000D"),
            ("studies?StudyDate=-20200101", "0020000D"),
            ("studies?StudyDate=20200201-", "0020000D"),
            ("studies?ModalitiesInStudy=SEG", "0020000D"),
            ("studies?AccessionNumber=ACC-?", "0020000D"),
            (f"studies/{study}/series", "0020000E"),
            (f"studies/{study}/series?Modality=SR", "0020000E"),
            (f"studies/{study}/instances", "00080018"),
            (f"studies/{study}/instances?InstanceNumber=2", "00080018"),
            ("instances?Modality=SEG", "00080018"),
        ):
            ours = {each[key]["Value"][0]: each for each in archive_site.ask(path).json}
            theirs = {each[key]["Value"][0]: each for each in archive.ask(f"/dicom-web/{path}")}
            assert ours.keys() == theirs.keys(), path
            for uid, each in ours.items():
                for tag, said in each.items():
                    # Where it is retrieved from differs; and Orthanc writes names that it has not been told as null.
                    if tag not in {"00081190", "00080056"} and theirs[uid].get(tag, {}).get("Value") not in (
                        [None],
                        None,
                    ):
                        assert plain(said["Value"]) == plain(theirs[uid][tag]["Value"]), (path, tag)
        metadata = archive.ask(f"/dicom-web/studies/{study}/metadata")
        ours = {each["00080018"]["Value"][0]: each for each in archive_site.ask(f"studies/{study}/metadata").json}
        assert len(metadata) == len(ours)
        for each in metadata:
            own = ours[each["00080018"]["Value"][0]]
            assert own.keys() >= each.keys() - {"00081190"}


def plain(values: list[Any]) -> list[Any]:
    """Return values such that the same ones are equal, whoever wrote them."""
    return sorted(values, key=str)


def test_the_role_serves_readers_and_names_nobody_in_its_log(archive_site: Site, tmp_path: Path) -> None:
    written = {name: f"{name} = {{ {', '.join(f'{who} = {json.dumps(key)}' for who, key in known.items())} }}\n"
               for name, known in (("tokens", SENDERS), ("readers", READERS))}  # fmt: skip
    home = Home.make(
        tmp_path / "home", f'{WEB}{"".join(written.values())}origins = ["{ORIGIN}"]\nmaximum_matches = 3\n'
    )
    assert home.cli("import", *{path.parent for path in archive_site.files}).returncode == 0
    with home.running("web") as role:
        site = Site(web_port(role), home, archive_site.files, ())
        assert len(site.ask("studies", PatientName="*ÄNNE*").json) == 1
        assert len(site.ask("instances").json) == 3
        assert site.ask("studies", PatientName="Doe^Jane", StudyDate="Müller").status == 400
        assert site.ask("studies", {"Authorization": f"Bearer {SENDER_TOKEN}"}, PatientID="P-1").status == 403
        assert site.ask(site.at(site.received[0])).status == 200
        assert site.ask(f"{site.at(site.received[0])}/metadata", {"Origin": ORIGIN}).status == 200
        log = role.log_text()
    assert "answered a search" in log
    assert "VIEWER" in log
    for said in ("Doe", "Jane", "Müller", "NNE", "P-1", "P-2", TOKEN, SENDER_TOKEN):
        assert said not in log


@pytest.mark.shared
def test_real_studies_are_what_pydicom_reads(tmp_path: Path, shared_dicom: Path) -> None:
    """Real headers in every character set, enhanced and compressed images, and objects without pixels."""
    home = Home.make(
        tmp_path / "home", f'{WEB}readers = {{ VIEWER = "{READERS["VIEWER"]}" }}\n', hold_unidentified=False
    )
    folders = [shared_dicom / each for each in ("charset", "multiframe", "compressed", "nonimage", "other")]
    home.cli("import", *folders)  # which names those that are no DICOM files
    rows = {str(row.sha256): row for row in home.instances() if not row.conflict}
    with home.running("web") as role:
        site = Site(web_port(role), home, (), ())
        seen = 0
        for sha256, path in home.files().items():
            if sha256 not in rows:
                continue
            data_set = dcmread(path)
            if not all(data_set.get(each) for each in ("StudyInstanceUID", "SeriesInstanceUID")):
                continue
            seen += 1
            (metadata,) = site.ask(f"{site.at(data_set)}/metadata").json
            for element in data_set:
                said = metadata.get(f"{element.tag:08X}")
                if element.tag.is_private:
                    continue  # pydicom knows some of them
                if said is None:
                    assert element.tag.element == 0 or element.tag == 0xFFFCFFFC, (path, element.tag)
                elif element.VR == "PN" and element.VM == 1:
                    groups = str(element.value).split("=")
                    assert said["Value"][0]["Alphabetic"] == groups[0], path
                elif (
                    element.VR in {"LO", "UI", "CS", "SH"}
                    and element.VM == 1
                    and element.keyword != "SpecificCharacterSet"
                ):
                    assert str(said.get("Value", [""])[0] or "").strip() == str(element.value or "").strip(), path
            syntax = data_set.file_meta.TransferSyntaxUID
            frames = site.ask(f"{site.at(data_set)}/frames/1", {"Accept": "*/*"})
            assert (frames.status == 200) == ("PixelData" in data_set), path
            if frames.status == 200:
                ((media_type, frame),) = frames.parts
                wanted = syntax if syntax.is_encapsulated else ExplicitVRLittleEndian
                assert media_type.endswith(f"transfer-syntax={wanted}")
                if not syntax.is_encapsulated:
                    decoded = get_decoder(syntax).as_buffer(data_set, index=0)[0] if syntax.is_little_endian else frame
                    assert frame[: len(decoded)] == bytes(decoded)[: len(frame)], path
            whole = site.ask(site.at(data_set), {"Accept": "application/dicom; transfer-syntax=*"})
            assert whole.body == path.read_bytes()
    assert seen > 30
