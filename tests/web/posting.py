"""Senders by STOW-RS, and the web role that they send to, for tests."""

import http.client
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from meddaemon.ingest.store import as_part10
from tests.ingest.encoded import written
from tests.running import Role, wait_until

WEB = """
[web]
port = 0
"""
BOUNDARY = "a-boundary"
STUDIES = "/dicom-web/studies"
FAILED, STORED, OTHERS, RETRIEVE_URL = "00081198", "00081199", "0008119A", "00081190"
CLASS, INSTANCE, REASON = "00081150", "00081155", "00081197"


def web_port(role: Role) -> int:
    """Return the port that the web role took, as soon as it serves."""
    web = wait_until(lambda: role.announced("web"), what="the web role to announce itself", every=0.1)
    return int(web.address.rpartition(":")[2])


def new_uid() -> str:
    return f"2.25.{secrets.randbits(100)}"


def image(uid: str, *, study: str = "2.25.1", series: str = "2.25.2", size: int = 2000, fill: bytes = b"") -> bytes:
    """Return the data set of a CT image."""
    data_set = Dataset()
    data_set.SOPClassUID = CTImageStorage
    data_set.SOPInstanceUID = uid
    data_set.StudyInstanceUID = study
    data_set.SeriesInstanceUID = series
    data_set.Modality = "CT"
    data_set.add_new(0x7FE00010, "OW", fill * (size // len(fill)) if fill else secrets.token_bytes(size // 2 * 2))
    return written(data_set, ExplicitVRLittleEndian)


def part10(data: bytes, uid: str) -> bytes:
    return as_part10(
        data, sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax_uid=ExplicitVRLittleEndian
    )


def part(content: bytes, boundary: str = BOUNDARY, headers: Mapping[str, str] | None = None) -> bytes:
    fields = {"Content-Type": "application/dicom"} if headers is None else headers
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"--{boundary}\r\n{lines}\r\n".encode() + content + b"\r\n"


def multipart(contents: Iterable[bytes], boundary: str = BOUNDARY) -> bytes:
    return b"".join(part(content, boundary) for content in contents) + f"--{boundary}--\r\n".encode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    def items(self, tag: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.json.get(tag, {}).get("Value", [])
        return items

    @property
    def stored(self) -> list[str]:
        return [item[INSTANCE]["Value"][0] for item in self.items(STORED)]

    @property
    def failed(self) -> dict[str, int]:
        return {item[INSTANCE]["Value"][0]: item[REASON]["Value"][0] for item in self.items(FAILED)}

    @property
    def others(self) -> list[int]:
        return [item[REASON]["Value"][0] for item in self.items(OTHERS)]


def post(
    port: int,
    body: bytes | Iterator[bytes],
    *,
    path: str = STUDIES,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> Answer:
    """Post a body as it is, chunked where it is not bytes; `headers` go over the usual ones."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    usual = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}
    try:
        connection.request("POST", path, body, {**usual, **(headers or {})}, encode_chunked=not isinstance(body, bytes))
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def send(port: int, objects: Mapping[str, bytes], **more: Any) -> Answer:
    """Post data sets by their SOP Instance UIDs."""
    return post(port, multipart(part10(data, uid) for uid, data in objects.items()), **more)


def head(fields: Sequence[str], *, path: str = STUDIES, method: str = "POST") -> bytes:
    """Return the head of a request with the usual fields and these."""
    usual = ["Host: x", f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}']
    return "\r\n".join([f"{method} {path} HTTP/1.1", *usual, *fields, "", ""]).encode()
