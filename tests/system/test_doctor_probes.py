"""The doctor says of everybody whom we call whether he is there and takes what we have: what, where, what to do."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certificates import Authority
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from meddaemon.config.settings import load
from meddaemon.domain.commitment import STORAGE_COMMITMENT_PUSH_MODEL
from meddaemon.results.folder import Folder
from meddaemon.results.notices.ian import INSTANCE_AVAILABILITY_NOTIFICATION
from meddaemon.results.query import STUDY_ROOT_FIND
from meddaemon.roles.probing import Check, probe
from tests.results.scripted_scp import COMPREHENSIVE, LABELMAP, ScriptedScp

SEGMENTATION, REPORT_3D = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"


def probed(folder: Path, text: str) -> list[Check]:
    file = folder / "meddaemon.toml"
    file.write_text(text)
    return list(probe(load(file, {})))


def said(checks: list[Check]) -> dict[str, tuple[bool | None, str]]:
    """The worst of each, by what was looked at."""
    found: dict[str, tuple[bool | None, str]] = {}
    for check in sorted(checks, key=lambda each: {True: 0, None: 1, False: 2}[each.well]):
        found[check.what] = (check.well, check.said)
    return found


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


DICOM = """
[[destinations]]
name = "{name}"
ae_title = "PACS"
host = "{host}"
port = {port}
{more}
"""


def test_a_pacs_that_takes_everything_is_well_and_hears_nothing(tmp_path: Path) -> None:
    also = [STORAGE_COMMITMENT_PUSH_MODEL, STUDY_ROOT_FIND, INSTANCE_AVAILABILITY_NOTIFICATION]
    pacs = ScriptedScp(also=also)
    more = 'custody = "commitment"\ncustody_fallback = "query"\nannounce_to = ["PACS"]\nobjects = ["SEG", "SR", "KO"]'
    with pacs.listening() as port:
        text = 'listener.accept = "everyone"\n' + DICOM.format(name="pacs", host="127.0.0.1", port=port, more=more)
        (check,) = probed(tmp_path, text)
    assert (check.well, check.what) == (True, "destination pacs")
    assert f"PACS at 127.0.0.1:{port}" in check.said
    assert (pacs.arrivals, pacs.associations) == ([], 1)


@pytest.mark.parametrize(
    ("refuses", "more", "well", "what"),
    [
        ([SEGMENTATION], "", False, "Segmentation Storage: SEG would be held"),
        ([LABELMAP], 'segmentation = ["labelmap", "binary"]', None, "Segmentation Storage goes in its place"),
        ([REPORT_3D], "", None, "Comprehensive SR Storage goes in its place"),
        ([REPORT_3D, COMPREHENSIVE], "", False, "Comprehensive SR Storage: SR would be held: have it set up there"),
        ([], 'custody = "commitment"', False, "Storage Commitment Push Model SOP Class: nothing would be confirmed"),
        ([], 'custody = "query"', False, "nothing would be found, and all be held: allow us to ask (C-FIND)"),
        ([], 'announce_to = ["PACS"]', False, "take it out of announce_to of pacs"),
    ],
)
def test_what_a_pacs_does_not_take_is_named(
    tmp_path: Path, refuses: list[str], more: str, well: bool | None, what: str
) -> None:
    with ScriptedScp(refuses=refuses).listening() as port:
        text = 'listener.accept = "everyone"\n' + DICOM.format(name="pacs", host="127.0.0.1", port=port, more=more)
        found = said(probed(tmp_path, text))["destination pacs"]
    assert found[0] is well
    assert what in found[1]


def test_who_is_not_there_and_who_does_not_know_us(tmp_path: Path) -> None:
    text = "".join(
        DICOM.format(name=name, host=host, port=port, more=more)
        for name, host, port, more in (
            ("gone", "127.0.0.1", closed_port(), f'hl7 = "127.0.0.1:{closed_port()}"'),
            ("unknown", "no-such-host.invalid", 104, ""),
        )
    )
    text += '[[destinations]]\nname = "back"\nkind = "sender"\n'
    text += f'[[destinations]]\nname = "folder"\nkind = "folder"\ndirectory = "{tmp_path}/none"\n'
    text += f'[[peers]]\nae_title = "RIS"\nhost = "127.0.0.1"\nport = {closed_port()}\nquery = true\n'
    text += f'[[peers]]\nae_title = "SCANNER"\nhost = "127.0.0.1"\nport = {closed_port()}\n'
    found = said(probed(tmp_path, text))
    back = "destination back"
    assert {well for name, (well, _) in found.items() if name != back} == {False}
    assert "nobody listens there: check host and port" in found["destination gone"][1]
    assert "nobody listens there: check host and port" in found["HL7 of gone"][1]
    assert "nobody listens there: check host and port" in found["peer RIS"][1]
    assert "no-such-host.invalid:104: nobody knows this host name" in found["destination unknown"][1]
    assert found[back] == (True, "back to RIS, SCANNER; what comes from any other AE is held")
    assert "is its volume mounted?" in found["destination folder"][1]


def test_a_pacs_that_rejects_our_name_says_which(tmp_path: Path) -> None:
    entity = AE(ae_title="OTHER")
    entity.require_called_aet = True
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        text = DICOM.format(name="pacs", host="127.0.0.1", port=server.server_address[1], more="")
        (check,) = probed(tmp_path, f'delivery.ae_title = "WE"\n{text}')
    finally:
        server.shutdown()
    assert check.well is False
    assert "check both AE titles; we call as WE" in check.said


# --- by HTTP ----------------------------------------------------------------------------------------------------------


@dataclass
class Answering:
    """A web server that answers every GET alike, and keeps what it was asked for."""

    status: int
    body: bytes
    context: ssl.SSLContext
    location: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[int]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Authorization"]))
                self.send_response(outer.status)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.socket = self.context.wrap_socket(server.socket, server_side=True)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                yield server.server_port
            finally:
                server.shutdown()
                thread.join()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    identity = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    return context


def capable(version: str = "4.0.1", **rest: object) -> bytes:
    return json.dumps({"resourceType": "CapabilityStatement", "fhirVersion": version, "rest": [rest]}).encode()


TRANSACTIONS: Mapping[str, object] = {"interaction": [{"code": "transaction"}]}


@pytest.mark.parametrize(
    ("status", "body", "well", "what"),
    [
        (200, capable(**TRANSACTIONS), True, "FHIR 4.0.1, takes transactions"),
        (200, capable(), None, "does not say that it takes transactions"),
        (200, capable("3.0.2", **TRANSACTIONS), False, "is FHIR 3.0.2, and we speak R4: check fhir_url"),
        (200, b"<html>", False, "answers HTTP 200 and no CapabilityStatement: check fhir_url"),
        (200, b"[" * 100_000, False, "no CapabilityStatement"),
        (401, b"", False, "answers HTTP 401: check the credentials"),
        (302, b"", False, "sends us elsewhere (HTTP 302)"),
    ],
)
def test_a_fhir_server(
    tmp_path: Path,
    authority: Authority,
    context: ssl.SSLContext,
    status: int,
    body: bytes,
    well: bool | None,
    what: str,
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    server = Answering(status, body, context, location="https://elsewhere.invalid/" if status == 302 else "")
    with server.serving() as port:
        text = f"""
[[destinations]]
name = "out"
kind = "folder"
directory = "{tmp_path}"
fhir_url = "https://127.0.0.1:{port}/r4/"
fhir_token_file = "token"
fhir_ca = "{authority.file}"
"""
        found = said(probed(tmp_path, text))["FHIR of out"]
    assert found[0] is well
    assert what in found[1]
    assert server.asked == [("/r4/metadata", "Bearer s3cret")]
    assert "s3cret" not in found[1]


@pytest.mark.parametrize(
    ("status", "custody", "well", "what"),
    [
        (200, "query", True, "answers searches"),
        (204, "sent", True, "answers searches"),
        (401, "sent", False, "check the credentials of this destination"),
        (404, "sent", None, "check url, below which /studies lies; whether it stores is known when something is sent"),
        (404, "query", False, "answers a search with HTTP 404: check url"),
        (503, "sent", False, "HTTP 503"),
    ],
)
def test_a_dicomweb_server(
    tmp_path: Path,
    authority: Authority,
    context: ssl.SSLContext,
    status: int,
    custody: str,
    well: bool | None,
    what: str,
) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    server = Answering(status, b"", context)
    with server.serving() as port:
        text = f"""
[[destinations]]
name = "web"
kind = "dicomweb"
url = "https://127.0.0.1:{port}/dicom-web"
user = "we"
password_file = "password"
ca = "{authority.file}"
custody = "{custody}"
"""
        found = said(probed(tmp_path, text))["destination web"]
    assert found[0] is well
    assert what in found[1]
    ((path, authorization),) = server.asked
    # No patient's study is fetched to find out.
    assert path == "/dicom-web/studies?StudyInstanceUID=2.25.0&limit=1"
    assert authorization is not None
    assert authorization.startswith("Basic ")


# --- TLS --------------------------------------------------------------------------------------------------------------


@contextmanager
def handshaking(context: ssl.SSLContext) -> Iterator[int]:
    """An HL7 interface by TLS that takes one connection and keeps what it reads until the peer hangs up."""
    heard: list[bytes] = []

    def serve(server: socket.socket) -> None:
        plain, _ = server.accept()
        with plain:
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    heard.append(connection.recv(100))
            except OSError:
                heard.append(b"")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        yield int(server.getsockname()[1])
        thread.join()
    assert heard == [b""]


@pytest.mark.parametrize(
    ("vouched", "wants_ours", "what"),
    [
        (True, False, "takes connections by TLS"),
        (False, False, "certificate not accepted"),
        (True, True, "no TLS (tlsv13 alert certificate required): check whether it speaks TLS there"),
    ],
)
def test_an_hl7_interface_by_tls(
    tmp_path: Path, authority: Authority, vouched: bool, wants_ours: bool, what: str
) -> None:
    identity = authority.issue("ris")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    if wants_ours:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.file)
    ca = authority.file if vouched else Authority.make(tmp_path / "other", "other").file
    with handshaking(context) as port:
        text = f"""
[[destinations]]
name = "out"
kind = "folder"
directory = "{tmp_path}"
hl7 = "127.0.0.1:{port}"
hl7_tls = true
hl7_ca = "{ca}"
"""
        found = said(probed(tmp_path, text))["HL7 of out"]
    assert found[0] is (what == "takes connections by TLS")
    assert what in found[1]


def test_why_a_pacs_is_not_reached_by_tls(tmp_path: Path, authority: Authority, context: ssl.SSLContext) -> None:
    other = Authority.make(tmp_path / "other", "other")
    pacs = ScriptedScp()
    with pacs.listening(context=context) as by_tls, ScriptedScp().listening() as plain:
        text = DICOM.format(name="stranger", host="127.0.0.1", port=by_tls, more=f'tls = true\nca = "{other.file}"')
        text += DICOM.format(name="plain", host="127.0.0.1", port=plain, more=f'tls = true\nca = "{authority.file}"')
        found = said(probed(tmp_path, text))
    assert "certificate not accepted" in found["destination stranger"][1]
    assert "check who vouches for it (ca)" in found["destination stranger"][1]
    assert "no TLS" in found["destination plain"][1]


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_on_a_volume_that_is_mounted_read_only(tmp_path: Path) -> None:
    assert Folder(directory=tmp_path).problem() == ""
    assert list(tmp_path.iterdir()) == []
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    read_only = [Path(where) for _, where, _, options, *_ in mounts if options.split(",")[0] == "ro"]
    folder = next((each for each in read_only if each.is_dir()), None)
    if folder is None:
        pytest.skip("nothing is mounted read-only here")
    assert Folder(directory=folder).problem() == f"{folder} is mounted read-only"


def test_a_folder_where_a_volume_is_mounted_is_remarked_on(tmp_path: Path) -> None:
    # Where it is not mounted one day, files would lie below it.
    mounts = [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    volume = next((each for each in mounts if each != Path("/") and not Folder(directory=each).problem()), None)
    if volume is None:
        pytest.skip("no volume here can be written to")
    folder = '[[destinations]]\nname = "{0}"\nkind = "folder"\ndirectory = "{1}"\n'
    found = said(probed(tmp_path, folder.format("volume", volume) + folder.format("folder", tmp_path)))
    assert found["destination folder"] == (True, f"{tmp_path} can be written to")
    well, remark = found["destination volume"]
    assert well is None
    assert "name a folder on it" in remark
