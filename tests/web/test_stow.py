"""The Store Transaction through the real role: what is stored, what is refused with which status, and who is asked."""

import hashlib
import http.client
import json
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian

from meddaemon.ingest.store import PREAMBLE, as_part10
from tests.ingest.encoded import deflated
from tests.running import Home, data_set_of
from tests.web.posting import (
    BOUNDARY,
    OTHERS,
    RETRIEVE_URL,
    STORED,
    STUDIES,
    WEB,
    Answer,
    image,
    multipart,
    new_uid,
    part,
    part10,
    post,
    send,
    web_port,
)

OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND, INVALID_INSTANCE = 0xA700, 0xA900, 0xC000, 0x0117
TYPE = "multipart/related; type=application/dicom; boundary="


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, int]]:
    """A home, and the port of its web role."""
    home = Home.make(tmp_path_factory.mktemp("web"), WEB + "maximum_object_bytes = 3_000_000\n")
    with home.running("web") as role:
        yield home, web_port(role)


def kept(home: Home, uid: str) -> list[bytes]:
    """Return the data sets that are kept under a UID."""
    files = home.files()
    return [data_set_of(files[str(row.sha256)]) for row in home.instances() if row.sop_instance_uid == uid]


def refused(home: Home, status: int) -> list[str]:
    return [str(row.reason) for row in home.refusals() if row.status == status]


# --- what is stored -----------------------------------------------------------------------------------------------


def test_objects_are_stored_bit_for_bit_and_named_in_their_order(site: tuple[Home, int]) -> None:
    home, port = site
    objects = {uid: image(uid, size=size) for uid, size in [(new_uid(), n) for n in (0, 100, 70_000, 2_900_000)]}
    answer = send(port, objects)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert answer.stored == list(objects)
    assert all(item["00081150"]["Value"] == [CTImageStorage] for item in answer.items(STORED))
    assert answer.json.keys() == {RETRIEVE_URL, STORED}
    assert answer.json[RETRIEVE_URL] == {"vr": "UR"}
    for uid, data in objects.items():
        assert kept(home, uid) == [data]
    senders = {(row.calling_ae_title, row.called_ae_title) for row in home.instances()}
    assert senders == {("STOW-RS", "MEDDAEMON")}


def test_the_answer_is_a_data_set_that_pydicom_reads(site: tuple[Home, int]) -> None:
    _, port = site
    good, bad = new_uid(), new_uid()
    body = multipart([part10(image(good), good), part10(image(bad, study=""), bad), b"no DICOM"])
    answer = post(port, body)
    data_set = Dataset.from_json(answer.body.decode())
    assert answer.status == 202
    assert data_set.RetrieveURL == ""
    (stored,), (failed,), (other,) = (
        data_set.ReferencedSOPSequence,
        data_set.FailedSOPSequence,
        data_set.OtherFailuresSequence,
    )
    assert (stored.ReferencedSOPInstanceUID, stored.ReferencedSOPClassUID) == (good, CTImageStorage)
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (bad, MISMATCH)
    assert other.FailureReason == CANNOT_UNDERSTAND


def test_the_answer_in_xml_says_the_same(site: tuple[Home, int]) -> None:
    _, port = site
    good, bad = new_uid(), new_uid()
    body = multipart([part10(image(good), good), part10(image(bad, study=""), bad)])
    answer = post(port, body, headers={"Accept": "application/dicom+xml"})
    assert (answer.status, answer.headers["content-type"]) == (202, "application/dicom+xml")
    namespace = {"n": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    root = ElementTree.fromstring(answer.body)
    stored = root.find("n:DicomAttribute[@keyword='ReferencedSOPSequence']", namespace)
    failed = root.find("n:DicomAttribute[@tag='00081198']", namespace)
    assert stored is not None
    assert failed is not None
    assert root.find("n:DicomAttribute[@tag='00081190'][@vr='UR']", namespace) is not None
    uid = "n:Item[@number='1']/n:DicomAttribute[@keyword='ReferencedSOPInstanceUID']/n:Value[@number='1']"
    assert stored.findtext(uid, namespaces=namespace) == good
    assert failed.findtext(uid, namespaces=namespace) == bad
    reason = "n:Item/n:DicomAttribute[@keyword='FailureReason'][@vr='US']/n:Value"
    assert failed.findtext(reason, namespaces=namespace) == str(MISMATCH)


def test_a_body_in_chunks_without_a_length(site: tuple[Home, int]) -> None:
    home, port = site
    uid = new_uid()
    data = image(uid, size=200_000)
    body = multipart([part10(data, uid)])
    answer = post(port, iter([body[start : start + 777] for start in range(0, len(body), 777)]))
    assert (answer.status, kept(home, uid)) == (200, [data])


def test_the_same_object_again_changes_nothing_and_another_is_kept_too(site: tuple[Home, int]) -> None:
    home, port = site
    uid = new_uid()
    first, second = image(uid), image(uid)
    assert [send(port, {uid: each}).status for each in (first, first, second)] == [200, 200, 200]
    assert sorted(kept(home, uid)) == sorted([first, second])
    assert [row.conflict for row in home.instances() if row.sop_instance_uid == uid] == [False, True]


def test_the_preamble_is_not_kept(site: tuple[Home, int]) -> None:
    """It may hold a program (the CVE of dual-use DICOM files), and our own meta group says who stored it."""
    home, port = site
    uid = new_uid()
    content = part10(image(uid), uid)
    assert post(port, multipart([b"\x7fELF" + b"\x90" * 124 + content[128:]])).status == 200
    (row,) = [row for row in home.instances() if row.sop_instance_uid == uid]
    stored = home.files()[str(row.sha256)].read_bytes()
    assert stored == content
    assert stored.startswith(PREAMBLE)
    assert hashlib.sha256(stored).hexdigest() == row.sha256


def test_a_study_in_the_path(site: tuple[Home, int]) -> None:
    home, port = site
    mine, other = new_uid(), new_uid()
    body = multipart([part10(image(mine, study="2.25.71"), mine), part10(image(other, study="2.25.72"), other)])
    answer = post(port, body, path=f"{STUDIES}/2.25.71")
    assert (answer.status, answer.stored, answer.failed) == (202, [mine], {other: MISMATCH})
    assert kept(home, other) == []
    assert "the object is not of the study that it was sent for" in refused(home, MISMATCH)
    alone = post(port, multipart([part10(image(other, study="2.25.72"), other)]), path=f"{STUDIES}/2.25.71")
    assert (alone.status, alone.failed) == (409, {other: MISMATCH})
    assert post(port, body, path=f"{STUDIES}/not-a-uid").status == 400


def test_curl_is_a_sender(site: tuple[Home, int], tmp_path: Path) -> None:
    """It waits for permission to send the body (Expect: 100-continue) when that is large."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    home, port = site
    uid = new_uid()
    data = image(uid, size=2_000_000)
    (tmp_path / "body").write_bytes(multipart([part10(data, uid)]))
    url = f"http://127.0.0.1:{port}{STUDIES}"
    asked = [curl, "-sS", "-H", f"Content-Type: {TYPE}{BOUNDARY}", "--data-binary", f"@{tmp_path / 'body'}", url]
    said = subprocess.run(asked, check=True, capture_output=True, timeout=60).stdout
    assert json.loads(said)[STORED]["Value"][0]["00081155"]["Value"] == [uid]
    assert kept(home, uid) == [data]
    wrong = [curl, "-sS", "-w", "%{http_code}", "-H", "Content-Type: text/plain", *asked[4:]]
    assert subprocess.run(wrong, check=True, capture_output=True, timeout=60).stdout.endswith(b"415")


# --- what is not --------------------------------------------------------------------------------------------------


def _failure(home: Home, port: int, content: bytes, headers: dict[str, str] | None = None) -> Answer:
    before = len(home.refusals())
    answer = post(port, part(content, headers=headers) + f"--{BOUNDARY}--".encode())
    assert answer.status == 409
    assert len(home.refusals()) == before + 1, "a refusal is recorded"
    row = home.refusals()[-1]
    assert row.status == (answer.others or list(answer.failed.values()))[0]
    assert (row.calling_ae_title, row.called_ae_title) == ("STOW-RS", "MEDDAEMON")
    return answer


def test_each_object_is_refused_for_what_is_wrong_with_it(site: tuple[Home, int]) -> None:
    home, port = site
    uid = new_uid()
    good = part10(image(uid), uid)
    assert _failure(home, port, b"").others == [CANNOT_UNDERSTAND]
    assert _failure(home, port, b"junk" * 100).others == [CANNOT_UNDERSTAND]
    assert _failure(home, port, good[:-1]).failed == {uid: CANNOT_UNDERSTAND}
    assert _failure(home, port, part10(image(uid, study="not a uid"), uid)).failed == {uid: INVALID_INSTANCE}
    hostile = as_part10(
        image("../../etc/passwd"),
        sop_class_uid=CTImageStorage,
        sop_instance_uid="1.2",
        transfer_syntax_uid="1.2.840.10008.1.2.1",
    )
    answer = _failure(home, port, hostile)
    assert (answer.others, answer.failed) == ([INVALID_INSTANCE], {})
    assert b"passwd" not in answer.body
    assert _failure(home, port, good, {"Content-Type": "application/octet-stream"}).others == [CANNOT_UNDERSTAND]
    encoded = {"Content-Type": "application/dicom", "Content-Transfer-Encoding": "base64"}
    assert _failure(home, port, good, encoded).others == [CANNOT_UNDERSTAND]
    assert _failure(home, port, good, {"Content-Length": str(len(good) + 1)}).others == [CANNOT_UNDERSTAND]
    assert kept(home, uid) == []
    assert post(port, part(good, headers={"Content-Length": str(len(good))}) + b"--a-boundary--").stored == [uid]


def test_an_object_of_another_patient_under_a_known_uid_is_refused(site: tuple[Home, int]) -> None:
    home, port = site
    uid = new_uid()
    assert send(port, {uid: image(uid, study="2.25.81")}).status == 200
    assert send(port, {uid: image(uid, study="2.25.82")}).failed == {uid: MISMATCH}
    assert len(kept(home, uid)) == 1


def test_a_deflate_bomb_is_refused(site: tuple[Home, int]) -> None:
    _, port = site
    uid = new_uid()
    bomb = deflated(image(uid) + bytes(513 * 2**20))
    content = as_part10(
        bomb,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=uid,
        transfer_syntax_uid=DeflatedExplicitVRLittleEndian,
    )
    assert len(content) < 1_000_000
    assert post(port, multipart([content])).failed == {uid: CANNOT_UNDERSTAND}


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Content-Type": ""}, 415, "multipart/related"),
        ({"Content-Type": "application/dicom"}, 415, "multipart/related"),
        ({"Content-Type": "multipart/form-data; boundary=a"}, 415, "multipart/related"),
        ({"Content-Type": "multipart/related; boundary=a"}, 415, 'type="application/dicom"'),
        (
            {"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=a'},
            415,
            "not metadata with the bulk data apart",
        ),
        ({"Content-Type": 'multipart/related; type="application/dicom+xml"; boundary=a'}, 415, "bulk data"),
        ({"Content-Type": "multipart/related; type=application/dicom"}, 400, "boundary"),
        ({"Content-Type": TYPE + "a;boundary=b"}, 415, "multipart/related"),
        ({"Content-Type": TYPE + "a" * 201}, 400, "boundary"),
        ({"Content-Encoding": "gzip"}, 415, "content encoding"),
        ({"Origin": "https://elsewhere.example"}, 403, "web pages need a token"),
        ({"Accept": "text/html"}, 406, "application/dicom+json"),
        ({"Content-Length": str(2**40)}, 413, "bytes in one request"),
    ],
)
def test_a_request_that_cannot_be_served(
    site: tuple[Home, int], headers: dict[str, str], status: int, said: str
) -> None:
    home, port = site
    uid = new_uid()
    answer = send(port, {uid: image(uid)}, headers=headers)
    assert (answer.status, kept(home, uid)) == (status, [])
    assert said in answer.body.decode()
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "ends before its last boundary"),
        (b"--a-boundary--", "no instance"),
        (part(b"x") + b"--a-boundary\r\n", "ends before its last boundary"),
        (part(b"x") + b"--a-boundary-<script>", "on the line of a boundary"),
        (b"--a-boundary\r\n<script>\r\n\r\n", "is no header field"),
    ],
)
def test_a_body_that_is_no_multipart(site: tuple[Home, int], body: bytes, said: str) -> None:
    _, port = site
    answer = post(port, body)
    assert (answer.status, b"script" in answer.body) == (400, False)
    assert said in answer.body.decode()


def test_an_object_that_is_too_large_and_those_before_it(site: tuple[Home, int]) -> None:
    home, port = site
    small, large = new_uid(), new_uid()
    answer = send(port, {small: image(small), large: image(large, size=3_000_000)})
    assert answer.status == 413
    assert "more than 3000000 bytes in one instance" in answer.body.decode()
    # Nobody was told so, and sending it again is right.
    assert len(kept(home, small)) == 1
    assert kept(home, large) == []
    assert send(port, {small: kept(home, small)[0]}).status == 200


def test_hundreds_of_parts_each_have_an_answer_of_their_own(site: tuple[Home, int]) -> None:
    """Fault 160."""
    _, port = site
    answer = post(port, part(b"", headers={}) * 300 + b"--a-boundary--")
    assert (answer.status, answer.others) == (409, [CANNOT_UNDERSTAND] * 300)
    uid = new_uid()
    assert send(port, {uid: image(uid)}).stored == [uid]


def test_only_what_is_there_is_served(site: tuple[Home, int]) -> None:
    _, port = site
    assert post(port, b"", path="/").status == 404
    assert post(port, b"", path=f"{STUDIES}/").status == 404
    assert post(port, b"", path=f"{STUDIES}/1.2/series").status == 405
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    # Nobody is a reader here.
    for method, status in (("GET", 403), ("HEAD", 403), ("OPTIONS", 403), ("PUT", 405), ("DELETE", 405)):
        connection.request(method, STUDIES, headers={"Host": "elsewhere.example"})
        response = connection.getresponse()
        assert response.status == status
        assert b"elsewhere" not in response.read()
        assert "server" not in {name.lower() for name, _ in response.getheaders()}
    connection.close()


# --- who may ------------------------------------------------------------------------------------------------------


def test_senders_are_known_by_their_tokens(tmp_path: Path) -> None:
    digests = {name: hashlib.sha256(token.encode()).hexdigest() for name, token in (("GATE1", "one"), ("GATE2", "two"))}
    written = ", ".join(f'{name} = "{digest}"' for name, digest in digests.items())
    home = Home.make(tmp_path, f"{WEB}tokens = {{ {written} }}\nae_title = 'WEB'\n")
    with home.running("web") as role:
        port = web_port(role)
        uid = new_uid()
        for authorization in (
            "",
            "Bearer three",
            "Basic one",
            "Bearer",
            "Bearer one two",
            f"Bearer {digests['GATE1']}",
        ):
            answer = send(port, {uid: image(uid)}, headers={"Authorization": authorization} if authorization else {})
            assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="meddaemon"')
        assert post(port, b"", path="/elsewhere").status == 401
        for name, token in (("GATE1", "one"), ("GATE2", "two")):
            uid = new_uid()
            headers = {"Authorization": f"bearer {token}", "Origin": "https://viewer.example"}
            assert send(port, {uid: image(uid)}, headers=headers).stored == [uid]
            row = home.instances()[-1]
            assert (row.calling_ae_title, row.called_ae_title) == (name, "WEB")
        log = role.log_text()
    assert "Bearer" not in log
    assert digests["GATE1"] not in log


def test_no_identity_in_the_logs(tmp_path: Path) -> None:
    home = Home.make(tmp_path, WEB)
    uid = new_uid()
    data_set = Dataset()
    data_set.PatientName, data_set.PatientID = "SECRET^NAME", "SECRET-ID"
    name = struct.pack("<HH2sH", 0x10, 0x10, b"PN", 12) + b"SECRET^NAME "
    content = part10(image(uid), uid)
    at = content.index(struct.pack("<HH", 0x20, 0x0D))
    with home.running("web") as role:
        port = web_port(role)
        assert post(port, multipart([content[:at] + name + content[at:]])).status == 200
        assert post(port, multipart([content[:at] + name + content[at:-1]])).status == 409
        post(port, b"", path="/dicom-web/studies/SECRET")
    assert "received by STOW-RS" in role.log_text()
    assert "SECRET" not in role.log_text()
    assert OTHERS not in role.log_text()
