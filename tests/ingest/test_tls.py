"""TLS (PS3.15 B.12): who is let in by which certificate, and that nobody waits behind a peer that is not."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import wire
from certificates import Authority
from dicom_factory import make_series
from hypothesis import given
from hypothesis import strategies as st
from listening import storage_of
from pydicom import dcmread
from running import Home, Role, wait_until
from scanner import scanner
from wire import ABORT, ASSOCIATE_AC, ASSOCIATE_RJ, RELEASE_RP, Peer, associate_request

from meddaemon.ingest.callers import Caller
from meddaemon.ingest.receive import Incoming
from meddaemon.ingest.scp import Listener, ListenerSettings, TlsSettings
from meddaemon.results.dimse import ClientTls, Problem, RemoteEntity, offers
from meddaemon.roles.remote import remote_of
from meddaemon.tls import CIPHERS, Identity, ServerTls, TlsUnusable, client_context, expires_at

SERVED_SECONDS = 3.0
CALLING_NOT_RECOGNIZED = bytes((0, 1, 1, 3))


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("hospital"))


@pytest.fixture(scope="module")
def server(ca: Authority) -> Identity:
    return ca.issue("server")


@pytest.fixture(scope="module")
def client(ca: Authority) -> Identity:
    return ca.issue("client")


class TlsPeer(Peer):
    """A peer that has shaken hands, with a certificate or without."""

    def __init__(self, port: int, ca: Authority, identity: Identity | None, seconds: float = 30.0, **tls: int) -> None:
        super().__init__(port, seconds)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca.file)
        for name, value in tls.items():
            setattr(context, name, value)
        if identity is not None:
            context.load_cert_chain(identity.certificate, identity.key)
        try:
            self.socket: ssl.SSLSocket = context.wrap_socket(self.socket, server_hostname="localhost")
        except BaseException:
            self.socket.close()
            raise


class Taken:
    def __init__(self) -> None:
        self.objects: list[Incoming] = []

    def __call__(self, incoming: Incoming) -> None:
        self.objects.append(incoming)


@contextmanager
def listening(
    identity: Identity,
    trusted: Path | None,
    take: Taken | None = None,
    *,
    plain: bool = False,
    everyone: bool = True,
    callers: tuple[Caller, ...] = (),
    own: dict[str, Path] | None = None,
    required: bool = True,
    maximum_associations: int = 5,
    association_seconds: float = 30.0,
) -> Iterator[Listener]:
    settings = ListenerSettings(
        ae_title="MEDDAEMON",
        host="127.0.0.1",
        port=0,
        maximum_associations=maximum_associations,
        maximum_pdu_bytes=131_072,
        idle_timeout_seconds=30,
        association_timeout_seconds=association_seconds,
        message_timeout_seconds=30,
        everyone=everyone,
        callers=callers,
        plain=plain,
        tls=TlsSettings(port=0, identity=identity, trusted=trusted, own=own or {}, required=required),
    )
    take = take or Taken()
    with Listener(settings, take, storage=storage_of(take)) as listener:
        yield listener


def port_of(listener: Listener) -> int:
    assert listener.tls_address is not None
    return listener.tls_address[1]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def assert_served(port: int, ca: Authority, client: Identity) -> None:
    begun = time.monotonic()
    with TlsPeer(port, ca, client) as peer:
        assert peer.associate() == ASSOCIATE_AC
        assert peer.echo() == 0
        assert peer.release() == RELEASE_RP
    assert time.monotonic() - begun < SERVED_SECONDS


def assert_refused(port: int, ca: Authority, identity: Identity | None) -> None:
    """Assert that the handshake fails; with TLS 1.3 a client hears of it only when it reads."""
    try:
        with TlsPeer(port, ca, identity) as peer:
            assert peer.associate() == 0
    except OSError:  # an alert, or no connection any more
        pass


# --- what is spoken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_are_spoken_with_the_ciphers_of_the_profile(
    ca: Authority, server: Identity, client: Identity, version: ssl.TLSVersion
) -> None:
    with (
        listening(server, ca.file) as listener,
        TlsPeer(port_of(listener), ca, client, minimum_version=version, maximum_version=version) as peer,
    ):
        assert peer.associate() == ASSOCIATE_AC
        assert peer.echo() == 0
        name, _, bits = peer.socket.cipher() or ("", "", 0)
        assert bits >= 128
        assert name in CIPHERS if version == ssl.TLSVersion.TLSv1_2 else name.startswith("TLS_")
        assert peer.socket.compression() is None
        assert peer.release() == RELEASE_RP


@pytest.mark.parametrize("rsa_key", [True, False], ids=["RSA", "EC"])
def test_either_kind_of_key_will_do(ca: Authority, tmp_path: Path, client: Identity, *, rsa_key: bool) -> None:
    own = Authority.make(tmp_path)
    with listening(own.issue("server", rsa_key=rsa_key), ca.file) as listener:
        assert_served(port_of(listener), own, client)


@pytest.mark.parametrize("offer", [["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], ["-tls1_2", "-cipher", "AES128-SHA"]])
def test_older_versions_and_weaker_ciphers_are_refused(
    ca: Authority, server: Identity, client: Identity, offer: list[str]
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with listening(server, ca.file) as listener:
        tried = subprocess.run(
            ["openssl", "s_client", *_to(listener, client), *offer],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert tried.returncode != 0
        assert "alert" in tried.stderr, tried.stderr
        assert_served(port_of(listener), ca, client)


def _to(listener: Listener, client: Identity) -> list[str]:
    to = f"127.0.0.1:{port_of(listener)}"
    return ["-connect", to, "-cert", str(client.certificate), "-key", str(client.key)]


def test_a_client_cannot_negotiate_anew(ca: Authority, server: Identity, client: Identity) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    with listening(server, ca.file) as listener:
        tried = subprocess.run(
            ["openssl", "s_client", *_to(listener, client), "-tls1_2"],
            input="R\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "RENEGOTIATING" in tried.stdout + tried.stderr
        assert "no renegotiation" in tried.stderr, tried.stderr


# --- who is let in ------------------------------------------------------------------------------------------------


@pytest.mark.fault(28)
def test_without_a_certificate_nobody_is_let_in(ca: Authority, server: Identity, client: Identity) -> None:
    with listening(server, ca.file) as listener:
        assert_refused(port_of(listener), ca, None)
        assert_served(port_of(listener), ca, client)


def test_a_certificate_of_another_ca_is_refused(
    ca: Authority, server: Identity, client: Identity, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(server, ca.file) as listener:
        assert_refused(port_of(listener), ca, Authority.make(tmp_path, "stranger").issue("client"))
        assert_served(port_of(listener), ca, client)
    assert "TLS handshake failed" in capfd.readouterr().err


def test_an_expired_certificate_is_refused(
    ca: Authority, server: Identity, client: Identity, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(server, ca.file) as listener:
        assert_refused(port_of(listener), ca, ca.issue("late", days=-1))
        assert_served(port_of(listener), ca, client)
    assert "certificate has expired" in capfd.readouterr().err


def test_where_none_is_required_a_certificate_is_still_checked(
    ca: Authority, server: Identity, client: Identity, tmp_path: Path
) -> None:
    with listening(server, ca.file, required=False) as listener:
        with TlsPeer(port_of(listener), ca, None) as peer:
            assert peer.associate() == ASSOCIATE_AC
        assert_served(port_of(listener), ca, client)
        assert_refused(port_of(listener), ca, Authority.make(tmp_path, "stranger").issue("client"))


def associated_as(port: int, ca: Authority, identity: Identity | None, title: str) -> tuple[int, bytes]:
    with TlsPeer(port, ca, identity) as peer:
        peer.send(associate_request(calling=title))
        return peer.receive()


def test_an_ae_title_is_believed_only_with_the_certificate_that_is_its_own(
    ca: Authority, server: Identity, client: Identity, tmp_path: Path
) -> None:
    vendor = Authority.make(tmp_path, "vendor")
    device = vendor.issue("device")
    pinned = Authority.make(tmp_path, "alone").issue("pinned")
    own = {"CT1": vendor.file, "MR1": pinned.certificate}
    with listening(server, ca.file, own=own, everyone=False, callers=(Caller(ae_title="US1"),)) as listener:
        port = port_of(listener)
        for title, identity, kind in (
            ("CT1", device, ASSOCIATE_AC),
            ("MR1", pinned, ASSOCIATE_AC),
            ("US1", client, ASSOCIATE_AC),
            ("CT1", client, ASSOCIATE_RJ),
            ("CT1", pinned, ASSOCIATE_RJ),
            ("MR1", device, ASSOCIATE_RJ),
            ("US1", device, ASSOCIATE_RJ),
            ("XA1", client, ASSOCIATE_RJ),
        ):
            answer = associated_as(port, ca, identity, title)
            assert answer[0] == kind, title
            assert kind == ASSOCIATE_AC or answer[1] == CALLING_NOT_RECOGNIZED


def test_an_intermediate_ca_can_vouch(ca: Authority, server: Identity, tmp_path: Path) -> None:
    department = ca.intermediate("radiology")
    other = ca.intermediate("cardiology")
    inside, outside = department.issue("inside"), other.issue("outside")
    for identity, issuer in ((inside, department), (outside, other)):
        identity.certificate.write_bytes(identity.certificate.read_bytes() + issuer.file.read_bytes())
    with listening(server, ca.file, own={"CT1": department.file}) as listener:
        assert associated_as(port_of(listener), ca, inside, "CT1")[0] == ASSOCIATE_AC
        assert associated_as(port_of(listener), ca, outside, "CT1") == (ASSOCIATE_RJ, CALLING_NOT_RECOGNIZED)
        assert associated_as(port_of(listener), ca, outside, "CT2")[0] == ASSOCIATE_AC


def test_a_session_that_goes_on_is_as_good_as_its_first_connection(
    ca: Authority, server: Identity, client: Identity
) -> None:
    """TLS 1.2 keeps sessions by their ID, and then shows no certificate anew."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca.file)
    context.load_cert_chain(client.certificate, client.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session = None
    with listening(server, None, own={"CT1": ca.file}) as listener:
        for title, kind in (("CT1", ASSOCIATE_AC), ("CT1", ASSOCIATE_AC), ("CT2", ASSOCIATE_RJ)):
            with Peer(port_of(listener)) as peer:
                peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost", session=session)
                peer.send(associate_request(calling=title))
                assert peer.receive()[0] == kind
                session = peer.socket.session


def test_without_tls_nobody_has_the_name_of_one_that_must_prove_it(
    ca: Authority, server: Identity, client: Identity
) -> None:
    with listening(server, ca.file, plain=True, own={"CT1": ca.file}) as listener:
        assert listener.address != listener.tls_address
        assert associated_as(port_of(listener), ca, client, "CT1")[0] == ASSOCIATE_AC
        with Peer(listener.address[1]) as peer:
            peer.send(associate_request(calling="CT1"))
            assert peer.receive() == (ASSOCIATE_RJ, CALLING_NOT_RECOGNIZED)
        with Peer(listener.address[1]) as peer:
            assert peer.associate() == ASSOCIATE_AC


# --- nobody waits -------------------------------------------------------------------------------------------------


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


HALF = {
    "nothing": b"",
    "a byte": client_hello()[:1],
    "half a ClientHello": client_hello()[:100],
    "a ClientHello": client_hello(),
}


@pytest.mark.parametrize("said", HALF.values(), ids=HALF)
def test_one_silent_peer_holds_nobody_up_and_is_ended(
    ca: Authority, server: Identity, client: Identity, said: bytes
) -> None:
    with listening(server, ca.file, association_seconds=1.0) as listener, Peer(port_of(listener)) as silent:
        silent.send(said)
        assert_served(port_of(listener), ca, client)
        silent.socket.settimeout(10)
        begun = time.monotonic()
        while silent.socket.recv(2**16):
            pass
        assert time.monotonic() - begun < 5


def test_silence_after_the_handshake_is_ended_at_the_same_deadline(
    ca: Authority, server: Identity, client: Identity
) -> None:
    with (
        listening(server, ca.file, association_seconds=1.0) as listener,
        TlsPeer(port_of(listener), ca, client) as peer,
    ):
        peer.send(associate_request()[:50])
        assert_served(port_of(listener), ca, client)
        assert peer.receive() == (0, b"")


@pytest.mark.fault(27)
def test_fifty_silent_peers_cost_no_thread_and_nobody_s_time(ca: Authority, server: Identity, client: Identity) -> None:
    threads, files = threading.active_count(), descriptors()
    with listening(server, ca.file, maximum_associations=2) as listener:
        with ExitStack() as peers:
            for number in range(50):
                peers.enter_context(Peer(port_of(listener))).send(list(HALF.values())[number % len(HALF)])
            for _ in range(5):
                assert_served(port_of(listener), ca, client)
            assert listener.associations <= 1
            wait_until(lambda: threading.active_count() == threads + 1, what="no thread but the reception's")
        assert_served(port_of(listener), ca, client)
    wait_until(lambda: threading.active_count() <= threads, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")


JUNK = {"a plain request": associate_request(), "HTTP": b"GET / HTTP/1.1\r\n\r\n", "zeros": bytes(500)}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_what_is_not_tls_is_ended_at_once(
    ca: Authority, server: Identity, client: Identity, junk: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(server, ca.file) as listener, Peer(port_of(listener), seconds=5) as peer:
        peer.send(junk)
        while peer.socket.recv(2**16):
            pass
        assert listener.associations == 0
        assert_served(port_of(listener), ca, client)
    assert "TLS handshake failed" in capfd.readouterr().err


def test_what_is_not_a_request_is_aborted_inside_tls(ca: Authority, server: Identity, client: Identity) -> None:
    with listening(server, ca.file) as listener, TlsPeer(port_of(listener), ca, client) as peer:
        peer.send(b"GET / HTTP/1.1\r\n\r\n")
        assert peer.receive()[0] == ABORT
        assert peer.receive()[0] == 0


def test_health_probes_cost_nothing_and_nobody_hears_of_them(
    ca: Authority, server: Identity, client: Identity, capfd: pytest.CaptureFixture[str]
) -> None:
    files = descriptors()
    with listening(server, ca.file) as listener:
        for number in range(60):
            with Peer(port_of(listener)) as peer:
                if number % 3 == 1:
                    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST
                elif number % 3 == 2:
                    peer.send(client_hello()[:50])
        assert_served(port_of(listener), ca, client)
        wait_until(lambda: listener.associations == 0, what="the association to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")
    assert capfd.readouterr() == ("", "")


# --- associations -------------------------------------------------------------------------------------------------


def test_objects_of_many_records_arrive_bit_for_bit(ca: Authority, server: Identity, client: Identity) -> None:
    taken = Taken()
    sizes = (0, 1, 2**14 - 1, 2**14, 2**14 + 1, 300_001, 5_000_003)
    sent = [os.urandom(size) for size in sizes]
    with listening(server, ca.file, taken) as listener, TlsPeer(port_of(listener), ca, client) as peer:
        assert peer.associate() == ASSOCIATE_AC
        for number, data in enumerate(sent, 1):
            assert peer.store(f"2.25.{number}", data) == 0
        # All in one breath: what comes with the request in one record waits nowhere.
        peer.send(b"".join(wire.store_message(f"2.25.{number}", data) for number, data in enumerate(sent, 11)))
        assert [peer.status() for _ in sent] == [0] * len(sent)
        assert peer.echo() == 0
        assert peer.release() == RELEASE_RP
    assert [each.data for each in taken.objects] == sent * 2


def test_messages_in_one_record_are_all_heard(ca: Authority, server: Identity, client: Identity) -> None:
    with listening(server, ca.file) as listener, TlsPeer(port_of(listener), ca, client) as peer:
        assert peer.associate() == ASSOCIATE_AC
        peer.send(b"".join(wire.echo_message(number) for number in range(1, 21)))
        assert [peer.status() for _ in range(20)] == [0] * 20
        peer.send(wire.echo_message() + wire.RELEASE)
        assert peer.status() == 0
        assert peer.receive()[0] == RELEASE_RP


class Dripping:
    """A socket that sends byte by byte, records and all."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        self._connected = connected
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def sendall(self, data: bytes) -> None:
        self._do(lambda: self._tls.write(data))

    def recv(self, size: int) -> bytes:
        return bytes(self._do(lambda: self._tls.read(size)))

    def close(self) -> None:
        self._connected.close()

    def _do(self, action: Callable[[], object]) -> object:
        while True:
            try:
                return action()
            except ssl.SSLWantReadError:
                self._drip()
                self._incoming.write(self._connected.recv(2**16))
            finally:
                self._drip()

    def _drip(self) -> None:
        for byte in self._outgoing.read():
            self._connected.sendall(bytes([byte]))


def test_a_peer_whose_records_drip_is_served(ca: Authority, server: Identity, client: Identity) -> None:
    """Bytes of a record that is not whole yet are nothing to read."""
    with listening(server, ca.file) as listener, Peer(port_of(listener)) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.socket = Dripping(peer.socket, client_context(client, ca.file, check_name=True))
        assert peer.associate() == ASSOCIATE_AC
        assert peer.store("2.25.1", os.urandom(300)) == 0
        assert peer.release() == RELEASE_RP


def test_the_end_is_told_by_tls_too(ca: Authority, server: Identity, client: Identity) -> None:
    """A closure alert, so that nobody can cut a connection short unnoticed (RFC 8446 6.1)."""
    with listening(server, ca.file) as listener, TlsPeer(port_of(listener), ca, client) as peer:
        assert peer.associate() == ASSOCIATE_AC
        peer.socket.suppress_ragged_eofs = False
        assert peer.release() == RELEASE_RP
        assert peer.socket.recv(1) == b""


def test_a_peer_that_leaves_without_a_word_leaves_nothing(ca: Authority, server: Identity, client: Identity) -> None:
    threads, files = threading.active_count(), descriptors()
    with listening(server, ca.file, maximum_associations=1) as listener:
        for number in range(10):
            with TlsPeer(port_of(listener), ca, client) as peer:
                assert peer.associate() == ASSOCIATE_AC
                if number % 2:
                    peer.send(wire.store_message("2.25.1", bytes(100_000))[:50_000])
            wait_until(lambda: listener.associations == 0, what="the association to end")
        assert_served(port_of(listener), ca, client)
    wait_until(lambda: threading.active_count() <= threads, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")


def test_a_listener_that_is_closed_leaves_no_peer_waiting(ca: Authority, server: Identity, client: Identity) -> None:
    threads, files = threading.active_count(), descriptors()
    with ExitStack() as peers:
        with listening(server, ca.file, plain=True) as listener:
            silent = peers.enter_context(Peer(port_of(listener)))
            idle = peers.enter_context(TlsPeer(port_of(listener), ca, client))
            assert idle.associate() == ASSOCIATE_AC
            halfway = peers.enter_context(TlsPeer(port_of(listener), ca, client))
            assert halfway.associate() == ASSOCIATE_AC
            halfway.send(wire.store_message("2.25.1", bytes(100_000))[:50_000])
        for peer in (silent, idle, halfway):
            peer.socket.settimeout(5)
            with suppress(ssl.SSLError):  # the end of a record that is not whole
                while peer.receive()[0]:
                    pass
        for address in (listener.address, ("127.0.0.1", port_of(listener))):
            with pytest.raises(ConnectionError):
                Peer(address[1])
    wait_until(lambda: threading.active_count() <= threads, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [-1, 3, 365, 365 * 40])
def test_the_end_of_a_certificate_is_read(ca: Authority, days: int) -> None:
    expected = datetime.now(UTC) + timedelta(days=days)
    assert abs(expires_at(ca.issue("read", days=days).certificate) - expected) < timedelta(minutes=1)


@given(at=st.integers(0), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_a_certificate_however_damaged_is_read_or_named(server: Identity, at: int, byte: int, cut: int) -> None:
    damaged = bytearray(ssl.PEM_cert_to_DER_cert(server.certificate.read_text()))
    damaged[at % len(damaged)] = byte
    file = server.certificate.with_name("damaged.pem")
    file.write_text(ssl.DER_cert_to_PEM_cert(bytes(damaged[: len(damaged) - cut])))
    with suppress(TlsUnusable):
        assert expires_at(file).tzinfo is UTC


def test_files_that_are_no_good_are_named(ca: Authority, server: Identity, client: Identity, tmp_path: Path) -> None:
    absent, empty, broken = tmp_path / "absent.pem", tmp_path / "empty.pem", tmp_path / "broken.pem"
    empty.touch()
    broken.write_text(server.certificate.read_text().replace("MII", "MIX"))
    protected = ca.issue("protected", password="secret")
    for identity, trusted, problem in (
        (Identity(certificate=absent, key=server.key), ca.file, "absent.pem: cannot be read: No such file"),
        (
            Identity(certificate=server.certificate, key=absent),
            ca.file,
            "absent.pem: is no usable key for .*No such file",
        ),
        (Identity(certificate=empty, key=server.key), ca.file, "empty.pem: holds no certificate"),
        (Identity(certificate=broken, key=server.key), ca.file, "broken.pem"),
        (Identity(certificate=server.certificate, key=client.key), ca.file, "client.key: is no usable key for"),
        (Identity(certificate=server.certificate, key=empty), ca.file, "empty.pem: is no usable key for"),
        (protected, ca.file, "protected.key: is no usable key for"),
        (server, empty, "empty.pem: holds no certificate"),
        (server, broken, "broken.pem"),
    ):
        with pytest.raises(TlsUnusable, match=problem):
            ServerTls(identity, [trusted], required=True)


SETTINGS = """
transports = ["plain", "tls"]
tls_port = 0
[tls]
certificate = "server.pem"
key = "server.key"
ca = "ca.pem"
"""


@contextmanager
def daemon(home: Home, role: str = "listen") -> Iterator[tuple[Role, int]]:
    """Run a role with TLS; give it and its port for TLS."""
    with home.running(role) as running:
        running.port()
        listener = running.announced("listen")
        assert listener is not None
        yield running, int(listener.address.split(",")[0].rpartition(":")[2])


def make_home(folder: Path, *, days: float = 365) -> tuple[Home, Authority]:
    ca = Authority.make(folder)
    ca.issue("server", days=days)
    home = Home.make(folder)
    home.config.write_text(home.config.read_text().replace("port = 0", "port = 0" + SETTINGS))
    return home, ca


def certificate_shown(port: int, ca: Authority, client: Identity) -> bytes:
    with TlsPeer(port, ca, client) as peer:
        return peer.socket.getpeercert(binary_form=True) or b""


def test_a_hangup_of_serve_reaches_the_listener(tmp_path: Path) -> None:
    home, ca = make_home(tmp_path)
    client = ca.issue("client")
    with daemon(home, "serve") as (serve, port):
        before = certificate_shown(port, ca, client)
        ca.issue("server")
        serve.process.send_signal(signal.SIGHUP)
        wait_until(lambda: certificate_shown(port, ca, client) != before, what="the new certificate")
        assert "ended unasked" not in serve.log_text()


@pytest.mark.fault(29)
def test_new_certificates_count_at_once_and_open_associations_go_on(tmp_path: Path) -> None:
    home, ca = make_home(tmp_path)
    client = ca.issue("client")
    with daemon(home) as (serve, port), TlsPeer(port, ca, client) as peer:
        assert peer.associate() == ASSOCIATE_AC
        before = certificate_shown(port, ca, client)
        ca.issue("server", rsa_key=True)
        serve.process.send_signal(signal.SIGHUP)
        wait_until(lambda: certificate_shown(port, ca, client) != before, what="the new certificate")
        after = certificate_shown(port, ca, client)
        assert peer.echo() == 0
        # Files that are no good: all stays as it is.
        for spoil in (
            lambda: (tmp_path / "server.key").write_text("nothing"),
            (tmp_path / "server.pem").unlink,
            lambda: ca.issue("server", days=-1),
        ):
            spoil()
            failures = serve.log_text().count("certificates not read anew")
            serve.process.send_signal(signal.SIGHUP)
            wait_until(
                lambda failures=failures: serve.log_text().count("certificates not read anew") > failures,
                what="the error in the log",
            )
            assert certificate_shown(port, ca, client) == after
        assert peer.echo() == 0
        assert peer.release() == RELEASE_RP


def test_an_end_that_comes_near_is_told(tmp_path: Path) -> None:
    home, _ = make_home(tmp_path, days=10.5)
    with daemon(home) as (listener, _):
        wait_until(lambda: '"days": 10' in listener.log_text(), what="the warning")
    said = home.cli("doctor", "--no-network").stdout
    assert "    certificate: " in said
    assert "in 10 days" in said


def test_an_expired_certificate_is_told_by_the_doctor(tmp_path: Path) -> None:
    home, ca = make_home(tmp_path, days=-1)
    examined = home.cli("doctor", "--no-network")
    assert examined.returncode == 1
    assert "BAD certificate: " in examined.stdout.replace("BAD  ", "BAD ")
    ca.issue("server")
    assert "ok  certificate: " in home.cli("doctor", "--no-network").stdout


def test_a_listener_whose_files_are_no_good_says_so_and_ends(tmp_path: Path) -> None:
    home, _ = make_home(tmp_path)
    (tmp_path / "server.key").unlink()
    ended = home.cli("listen")
    assert ended.returncode == 1
    assert "server.key: is no usable key for" in ended.stderr
    assert "No such file or directory" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- others -------------------------------------------------------------------------------------------------------


@pytest.mark.peer
def test_dcmtk_sends_by_tls(tmp_path: Path) -> None:
    dcmsend = shutil.which("dcmsend")
    if dcmsend is None:
        pytest.skip("DCMTK is not installed")
    scu, echoscu = (Path(dcmsend).with_name(name) for name in ("storescu", "echoscu"))
    home, ca = make_home(tmp_path / "home")
    client = ca.issue("client")
    files = make_series(tmp_path / "series")
    tls = ["+tls", str(client.key), str(client.certificate), "+cf", str(ca.file)]
    with daemon(home) as (_, port):
        to = ["-aec", "MEDDAEMON", "localhost", str(port)]
        subprocess.run([str(echoscu), *tls, *to], check=True, timeout=60)
        subprocess.run([str(scu), *tls, *to, *map(str, files)], check=True, timeout=60)
        stranger = Authority.make(tmp_path / "stranger").issue("client")
        other = ["+tls", str(stranger.key), str(stranger.certificate), "+cf", str(ca.file)]
        assert subprocess.run([str(echoscu), *other, *to], check=False, timeout=60, capture_output=True).returncode != 0
        assert subprocess.run([str(echoscu), *to], check=False, timeout=60, capture_output=True).returncode != 0
    stored = {each.SOPInstanceUID: each.PixelData for each in map(dcmread, home.files().values())}
    assert stored == {each.SOPInstanceUID: each.PixelData for each in map(dcmread, files)}


def said_to(remote: RemoteEntity) -> str:
    """Return why a peer cannot be spoken to; empty when it can."""
    offered = offers(remote)
    return offered.reason if isinstance(offered, Problem) else ""


def test_we_call_others_by_tls(ca: Authority, server: Identity, client: Identity, tmp_path: Path) -> None:
    stranger = Authority.make(tmp_path, "stranger")
    with listening(server, ca.file) as listener:

        def called(identity: Identity | None, trusted: Path, host: str = "127.0.0.1", *, check: bool = True) -> str:
            return said_to(
                RemoteEntity(
                    ae_title="MEDDAEMON",
                    host=host,
                    port=port_of(listener),
                    calling_ae_title="US",
                    connection_timeout_seconds=5,
                    association_timeout_seconds=5,
                    tls=ClientTls(identity=identity, trusted=trusted, check_name=check),
                )
            )

        assert called(client, ca.file) == ""
        assert called(client, server.certificate, check=False) == ""
        # Loopback as well, and not in the certificate.
        assert called(client, ca.file, "127.0.0.2") != ""
        assert called(client, stranger.file) != ""
        assert called(None, ca.file) != ""
        assert "absent.pem: cannot be read" in called(client, tmp_path / "absent.pem")


def test_a_destination_is_called_by_tls_as_the_settings_say(
    ca: Authority, server: Identity, client: Identity, tmp_path: Path
) -> None:
    stranger = Authority.make(tmp_path, "stranger")
    with listening(server, ca.file) as listener:

        def said(more: str) -> str:
            home = Home(tmp_path)
            home.config.write_text(
                f'[tls]\ncertificate = "{client.certificate}"\nkey = "{client.key}"\nca = "{ca.file}"\n'
                '[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\n'
                f"port = {port_of(listener)}\n{more}\n"
            )
            return said_to(remote_of(home.settings, home.settings.destinations[0]))

        assert said("tls = true") == ""
        assert said(f'tls = true\nca = "{ca.file}"') == ""
        assert said(f'tls = true\nca = "{stranger.file.name}"') != ""
        assert said("") != ""


def test_pynetdicom_and_our_scanner_are_served_beside_it(ca: Authority, server: Identity) -> None:
    """The port without TLS is as it always was."""
    taken = Taken()
    with listening(server, ca.file, taken, plain=True) as listener, scanner(listener.address[1]) as sender:
        assert sender.store(b"anything", "2.25.1") == 0
    assert len(taken.objects) == 1
