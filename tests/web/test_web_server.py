"""HTTP peers that are slow, silent, many or hostile; each test on the real role, with short deadlines."""

import http.client
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meddaemon.web.server import WebServer
from meddaemon.web.settings import WebServerSettings
from tests.running import Home, Role, environment, wait_until
from tests.web.posting import BOUNDARY, STUDIES, WEB, head, image, multipart, new_uid, part10, post, send, web_port

SHORT = f"""{WEB}
request_timeout_seconds = 1.0
idle_timeout_seconds = 1.0
maximum_connections = 12
maximum_uploads = 3
"""
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Role, int]]:
    home = Home.make(tmp_path_factory.mktemp("web"), SHORT)
    with home.running("web") as role:
        yield role, web_port(role)


def connected(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=20)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def until_closed(peer: socket.socket) -> tuple[bytes, float]:
    """Return what still comes, and after how many seconds the other side closed."""
    began = time.monotonic()
    said = b""
    with suppress(ConnectionResetError):
        while piece := peer.recv(65536):
            said += piece
    return said, time.monotonic() - began


def serves(port: int) -> None:
    """Assert that others are served, as soon as what was begun by those who left is done."""
    uid = new_uid()
    wait_until(lambda: send(port, {uid: image(uid)}).status == 200, 20, what="an object to be stored")


def test_silent_and_dripping_heads_end_in_time(site: tuple[Role, int]) -> None:
    """Slow-loris: the head has one deadline from the beginning, whatever comes meanwhile."""
    _, port = site
    with connected(port) as silent, connected(port) as dripping:
        began = time.monotonic()
        for byte in head([CHUNKED]):
            try:
                dripping.send(bytes([byte]))
            except OSError:
                break
            if time.monotonic() - began > 5:
                raise AssertionError("nobody stopped it")
            threading.Event().wait(0.03)  # this is what the peer does
        assert time.monotonic() - began < 4
        assert until_closed(silent)[0] == b""
    serves(port)


def test_a_body_that_stops_or_drips_is_told_so(site: tuple[Role, int]) -> None:
    role, port = site
    uid = new_uid()
    with connected(port) as stopped, connected(port) as dripping:
        for peer in (stopped, dripping):
            peer.sendall(head(["Content-Length: 5000"]) + f"--{BOUNDARY}\r\n".encode())
        began = time.monotonic()
        while time.monotonic() - began < 5:
            try:
                dripping.send(b"A")
            except OSError:
                break
            threading.Event().wait(0.05)  # this is what the peer does
        assert time.monotonic() - began < 4
        assert until_closed(stopped)[0].startswith(b"HTTP/1.1 408 ")
    assert "Exception" not in role.log_text()
    assert uid not in role.log_text()
    serves(port)


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    """The server alone, with an application whose answer fits into no buffer."""

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(bytes(50_000_000))(scope, receive, send)

    settings = WebServerSettings(host="127.0.0.1", port=0, maximum_connections=5, request_seconds=0.5, drain_seconds=1)
    with WebServer(large, settings) as server:
        before = descriptors()
        with connected(server.address[1]) as peer:
            peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            began = time.monotonic()
            wait_until(lambda: descriptors() == before + 2, 10, what="the connection to be taken")
            wait_until(lambda: descriptors() == before + 1, 10, what="the connection to be given up")
            assert time.monotonic() - began > 0.4
            assert len(until_closed(peer)[0]) < 50_000_000


def descriptors() -> int:
    """Return how many files and connections this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_requests_that_are_sent_ahead_fill_no_memory(site: tuple[Role, int]) -> None:
    role, port = site
    before = memory(role)
    body = multipart([b""] * 3)
    request = head([f"Content-Length: {len(body)}"]) + body
    sent = 0
    with connected(port) as peer, suppress(ConnectionError):
        while sent < 50_000_000:
            sent += peer.send(request * 100)
    assert sent < 50_000_000
    assert memory(role) - before < 20_000_000
    serves(port)


def memory(role: Role) -> int:
    """Return the resident memory of a role in bytes."""
    fields = Path(f"/proc/{role.process.pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def test_surplus_connections_are_closed_at_once_and_others_are_served(site: tuple[Role, int]) -> None:
    _, port = site
    with ExitStack() as held:
        peers = [held.enter_context(connected(port)) for _ in range(12)]
        surplus = held.enter_context(connected(port))
        said, seconds = until_closed(surplus)
        assert said == b""
        assert seconds < 0.9
        assert all(until_closed(peer)[1] < 10 for peer in peers)
    serves(port)


def test_surplus_uploads_are_told_to_come_again(site: tuple[Role, int]) -> None:
    _, port = site
    uid = new_uid()
    with ExitStack() as held:
        peers = [held.enter_context(connected(port)) for _ in range(3)]
        for peer in peers:
            peer.sendall(head([CHUNKED, "Expect: 100-continue"]))
            assert peer.recv(1000).startswith(b"HTTP/1.1 100 ")
        answer = send(port, {uid: image(uid)})
        assert (answer.status, answer.headers["retry-after"]) == (503, "30")
    wait_until(lambda: send(port, {uid: image(uid)}).status == 200, what="the places to be free again")


def test_a_sender_that_waits_for_permission_and_gets_none_is_not_misunderstood(site: tuple[Role, int]) -> None:
    """What it sends next may be the body or another request: nobody knows, so the connection ends."""
    _, port = site
    with connected(port) as peer:
        peer.sendall(head(["Content-Length: 100", "Expect: 100-continue", "Content-Encoding: gzip"]))
        said, _ = until_closed(peer)
    assert said.startswith(b"HTTP/1.1 415 ")
    assert b"connection: close" in said.lower()


def test_requests_on_one_connection(site: tuple[Role, int]) -> None:
    """Also after one whose body was refused unread."""
    _, port = site
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    good = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
    sockets = set()
    for kind, status in ((good, 200), ("text/plain", 415), (good, 200)):
        uid = new_uid()
        connection.request("POST", STUDIES, multipart([part10(image(uid, size=300_000), uid)]), {"Content-Type": kind})
        sockets.add(connection.sock)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    assert len(sockets) == 1
    connection.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 70_000,
        head([CHUNKED]) + b"zz\r\n",
        head([CHUNKED]) + b"FFFFFFFFFFFFFFFFFFFFFFFFF\r\n",
        bytes(1000),
    ],
    ids=range(8),
)
def test_what_is_no_http_is_refused_and_harms_nobody(site: tuple[Role, int], junk: bytes) -> None:
    _, port = site
    with connected(port) as peer:
        with suppress(OSError):
            peer.sendall(junk)
        said, seconds = until_closed(peer)
    assert said == b"" or said.startswith(b"HTTP/1.1 4")
    assert seconds < 5
    serves(port)


def test_changed_requests_are_answered_and_harm_nobody(site: tuple[Role, int]) -> None:
    role, port = site
    chance = random.Random(20)
    uid = new_uid()
    data = image(uid, size=300)
    body = multipart([part10(data, uid)] * 2)
    good = head([f"Content-Length: {len(body)}", "Connection: close"]) + body
    for _ in range(300):
        request = bytearray(good)
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(request))
            if chance.random() < 0.5:
                request[at] = chance.randrange(256)
            else:
                request[at : at + chance.randint(0, 9)] = chance.choice(
                    [b"", b"\r\n", b"--" + BOUNDARY.encode(), b"\0"]
                )
        with connected(port) as peer:
            with suppress(OSError):
                peer.sendall(request)
                peer.shutdown(socket.SHUT_WR)
            said, _ = until_closed(peer)
        assert said == b"" or said.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4", b"HTTP/1.1 503")), said[:60]
        if said.startswith(b"HTTP/1.1 200"):
            assert role.home.instances(), "acknowledged and not there"
    assert "uncaught" not in role.log_text()
    assert "cannot take an object" not in role.log_text()
    serves(port)
    assert role.home.cli("store", "check", "--hash").returncode == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_https(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -days 2 -keyout {key} -out {certificate}".split()
    asked += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(asked, check=True, capture_output=True)
    home = Home.make(tmp_path / "home", f'{SHORT}certificate = "{certificate}"\nprivate_key = "{key}"\n')
    uid = new_uid()
    body = multipart([part10(image(uid), uid)])
    with home.running("web") as role:
        port = web_port(role)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=20, context=ssl.create_default_context(cafile=certificate)
        )
        connection.request(
            "POST", STUDIES, body, {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}
        )
        assert connection.getresponse().status == 200
        connection.close()
        with pytest.raises((http.client.BadStatusLine, ConnectionError)):
            post(port, body)
        with connected(port) as silent:
            assert until_closed(silent)[1] < 5
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with connected(port) as peer, pytest.raises(ssl.SSLError):
            old.wrap_socket(peer)
    assert len(home.instances()) == 1


def test_a_request_in_hand_is_finished_when_the_role_ends(tmp_path: Path) -> None:
    home = Home.make(tmp_path, WEB)
    uid = new_uid()
    body = multipart([part10(image(uid), uid)])
    with home.running("web") as role, connected(web_port(role)) as peer:
        peer.sendall(head([f"Content-Length: {len(body)}", "Expect: 100-continue"]))
        assert peer.recv(1000).startswith(b"HTTP/1.1 100 ")
        role.process.terminate()
        wait_until(lambda: not accepts(peer.getpeername()), what="the role to take no more connections")
        peer.sendall(body)
        assert until_closed(peer)[0].startswith(b"HTTP/1.1 200 ")
    assert len(home.instances()) == 1


def accepts(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


def test_the_web_role_loads_no_models(site: tuple[Role, int]) -> None:
    role, _ = site
    assert "libtorch" not in Path(f"/proc/{role.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("loaded", "absent"),
    [
        ("meddaemon.web.app, meddaemon.web.server, meddaemon.web.stow", "torch monai scipy highdicom pynetdicom"),
        ("meddaemon.cli", "starlette uvicorn"),
    ],
)
def test_each_role_pays_for_its_own_packages_only(loaded: str, absent: str) -> None:
    code = f"import sys, {loaded}; print([each for each in {absent.split()} if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment())
    assert done.stdout.strip() == "[]"
