"""Who may call, from where, under which of our names: decided by one list, told by PS3.8 9.3.4, never flooding."""

import errno
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st
from running import Home, wait_until
from wire import ASSOCIATE_AC, ASSOCIATE_RJ, Peer, associate_request

from meddaemon import telemetry
from meddaemon.config.settings import load
from meddaemon.domain.errors import InvalidConfiguration
from meddaemon.ingest.callers import Call, Caller, Callers, Refusal
from meddaemon.ingest.scp import Listener, ListenerSettings
from meddaemon.telemetry import Sparing

CALLING, CALLED = bytes((0, 1, 1, 3)), bytes((0, 1, 1, 7))
"""Rejected permanently by the service user: calling, called AE title not recognized (PS3.8 9.3.4)."""


def call(
    calling: str = "CT1", called: str = "MEDDAEMON", address: str = "10.1.2.3", chain: bytes | None = None
) -> Call:
    return Call.of(
        associate_request(calling=calling, called=called), address, None if chain is None else frozenset([chain])
    )


def listed(*callers: Caller, everyone: bool = False) -> Callers:
    return Callers(
        everyone=everyone,
        ae_titles=frozenset({"MEDDAEMON", "RESEARCH"}),
        known={caller.ae_title: caller for caller in callers},
        certificates=frozenset([b"hospital"]),
    )


CT1 = Caller(ae_title="CT1", addresses=(ip_network("10.1.0.0/16"), ip_network("fd00::/8")))
PROVEN = Caller(ae_title="CT1", certificates=frozenset([b"vendor"]))
RESEARCHER = Caller(ae_title="CT1", called_ae_titles=("RESEARCH",))


@pytest.mark.parametrize(
    ("callers", "who", "refusal"),
    [
        (listed(CT1), call(), None),
        (listed(CT1), call(called="RESEARCH"), None),
        (listed(CT1), call(calling="CT2"), Refusal.UNKNOWN),
        (listed(CT1), call(calling="ct1"), Refusal.UNKNOWN),
        (listed(CT1), call(calling=""), Refusal.UNKNOWN),
        (listed(CT1), call(called="OTHER"), Refusal.CALLED),
        (listed(CT1), call(address="10.2.0.0"), Refusal.ELSEWHERE),
        (listed(CT1), call(address="fd12::1"), None),
        (listed(CT1), call(address="fe80::1"), Refusal.ELSEWHERE),
        (listed(CT1), call(address="fd00::1%eth0"), None),
        # A socket for both families.
        (listed(CT1), call(address="::ffff:10.1.2.3"), None),
        (listed(CT1), call(address="::ffff:10.2.2.3"), Refusal.ELSEWHERE),
        (listed(CT1), call(chain=b"hospital"), None),
        (listed(CT1), call(chain=b"vendor"), Refusal.UNPROVEN),
        (listed(PROVEN), call(chain=b"vendor"), None),
        (listed(PROVEN), call(chain=b"hospital"), Refusal.UNPROVEN),
        (listed(PROVEN), call(), Refusal.UNPROVEN),
        (listed(RESEARCHER), call(called="RESEARCH"), None),
        (listed(RESEARCHER), call(), Refusal.CALLED),
        (listed(), call(), Refusal.UNKNOWN),
        # Everyone is everyone who is not listed: who is, calls as it says there.
        (listed(everyone=True), call(calling="CT2", called="OTHER"), None),
        (listed(everyone=True), call(chain=b"hospital"), None),
        (listed(everyone=True), call(chain=b"vendor"), Refusal.UNPROVEN),
        (listed(CT1, everyone=True), call(called="OTHER"), None),
        (listed(CT1, everyone=True), call(address="10.2.0.0"), Refusal.ELSEWHERE),
        (listed(RESEARCHER, everyone=True), call(), Refusal.CALLED),
        (listed(PROVEN, everyone=True), call(), Refusal.UNPROVEN),
    ],
)
def test_who_may_call(callers: Callers, who: Call, refusal: Refusal | None) -> None:
    assert callers.refusal(who) is refusal


@given(request=st.binary(max_size=100), address=st.ip_addresses())
def test_no_request_is_too_strange_to_be_refused(request: bytes, address: object) -> None:
    refusal = listed(CT1).refusal(Call.of(request, str(address), None))
    assert refusal is not None or b"CT1" in request


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_an_address_is_in_each_network_of_its_own_however_it_is_told(address: object, length: int) -> None:
    network = ip_network(f"{address}/{length}", strict=False)
    callers = listed(Caller(ae_title="CT1", addresses=(network,)))
    assert callers.refusal(call(address=str(address))) is None
    assert callers.refusal(call(address=f"::ffff:{address}")) is None


@contextmanager
def listening(host: str = "127.0.0.1", **settings: object) -> Iterator[int]:
    values = ListenerSettings(
        ae_title="MEDDAEMON",
        host=host,
        port=0,
        maximum_associations=2,
        maximum_pdu_bytes=16_384,
        idle_timeout_seconds=30,
        association_timeout_seconds=30,
        message_timeout_seconds=30,
        **settings,  # type: ignore[arg-type]
    )
    with Listener(values, lambda _: None) as listener:
        yield listener.address[1]


def answer(port: int, calling: str = "CT1", called: str = "MEDDAEMON") -> tuple[int, bytes]:
    with Peer(port) as peer:
        peer.send(associate_request(calling=calling, called=called))
        kind, body = peer.receive()
        if kind == ASSOCIATE_AC:
            assert peer.echo() == 0
            assert peer.release() == wire.RELEASE_RP
        return kind, body


@pytest.mark.fault(30)
def test_the_list_is_kept_on_the_wire_and_costs_no_thread() -> None:
    here, there = ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")
    callers = (
        Caller(ae_title="CT1", addresses=(here,)),
        Caller(ae_title="CT2", addresses=(there,)),
        Caller(ae_title="CT3", called_ae_titles=("RESEARCH",)),
    )
    with listening(everyone=False, callers=callers, called_ae_titles=("RESEARCH",)) as port:
        assert answer(port)[0] == ASSOCIATE_AC
        assert answer(port, called="RESEARCH")[0] == ASSOCIATE_AC
        assert answer(port, "CT3", "RESEARCH")[0] == ASSOCIATE_AC
        wait_until(lambda: not [each for each in threading.enumerate() if "Acceptor" in each.name], what="their ends")
        for calling, called, said in (
            ("CT1", "OTHER", CALLED),
            ("CT2", "MEDDAEMON", CALLING),
            ("CT3", "MEDDAEMON", CALLED),
            ("CT4", "MEDDAEMON", CALLING),
            ("CT4", "OTHER", CALLING),
        ):
            with Peer(port) as peer:
                peer.send(associate_request(calling=calling, called=called))
                assert peer.receive() == (ASSOCIATE_RJ, said)
                assert not [each for each in threading.enumerate() if "Acceptor" in each.name]
                assert peer.receive() == (0, b"")


@pytest.mark.parametrize(("network", "kind"), [("127.0.0.0/8", ASSOCIATE_AC), ("::1", ASSOCIATE_RJ)])
def test_a_socket_for_both_families_tells_ipv4_as_what_it_is(network: str, kind: int) -> None:
    callers = (Caller(ae_title="CT1", addresses=(ip_network(network),)),)
    try:
        with listening("::", everyone=False, callers=callers) as port:
            assert answer(port)[0] == kind
    except OSError as failure:
        if failure.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("this machine has no IPv6")


def test_those_who_may_not_call_take_nobody_s_place() -> None:
    with listening(everyone=False, callers=(Caller(ae_title="CT1"),)) as port:
        for _ in range(100):
            assert answer(port, "XX")[0] == ASSOCIATE_RJ
        assert answer(port)[0] == ASSOCIATE_AC


def test_a_flood_of_rejections_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "json")
    try:
        with listening(everyone=False) as port:
            for _ in range(50):
                assert answer(port, "\n\x1b[2J%n<b>", "\0{x}")[0] == ASSOCIATE_RJ
    finally:
        telemetry._configure_structlog("info", "text")
    (line,) = capfd.readouterr().err.splitlines()
    said = json.loads(line)
    assert said["event"] == "rejected an association: calling AE title not known"
    assert said["peer"] == "127.0.0.1"
    assert line.isprintable()
    assert said["calling_ae_title"] == r"\n\x1b[2J%n<b>"


class Minutes:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_what_went_unsaid_is_counted_and_told_when_the_minute_is_over(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Minutes()
    sparing = Sparing("test", clock=clock)

    def lines() -> list[str]:
        return [line.partition("warning ")[2] for line in capfd.readouterr().err.splitlines()]

    for peer in ("a", "a", "b", "a"):
        sparing.warning("rejected", peer, why=peer)
    sparing.warning("silent", "a")
    assert lines() == [
        "rejected logger=test peer=a why=a",
        "rejected logger=test peer=b why=b",
        "silent logger=test peer=a",
    ]
    assert sparing.seconds_left == 60
    clock.seconds = 59.9
    sparing.flush()
    assert lines() == []
    clock.seconds = 60
    sparing.flush()
    assert lines() == ["rejected logger=test peer=a why=a unsaid=2"]
    # It goes on: a line a minute.
    sparing.warning("rejected", "a", why="still")
    sparing.warning("rejected", "b", why="again")
    assert lines() == ["rejected logger=test peer=b why=again"]
    clock.seconds = 120
    sparing.flush()
    assert lines() == ["rejected logger=test peer=a why=still unsaid=1"]
    assert sparing.seconds_left is None
    clock.seconds = 300
    sparing.flush()
    assert lines() == []


def test_more_peers_than_can_be_kept_are_others(capfd: pytest.CaptureFixture[str]) -> None:
    sparing = Sparing("test", clock=Minutes())
    for number in range(5000):
        sparing.warning("rejected", str(ip_address(number)))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1001
    assert lines[-1].endswith("peer=(others)")


def test_the_reception_tells_what_went_unsaid_without_another_caller(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meddaemon.ingest.reception.Sparing", lambda name: Sparing(name, seconds=0.3))
    said: list[str] = []

    def told() -> bool:
        said.extend(capfd.readouterr().err.splitlines())
        return any("unsaid=" in line for line in said)

    with listening(everyone=False) as port:
        for _ in range(10):
            assert answer(port)[0] == ASSOCIATE_RJ
        wait_until(told, 10, what="the line about those that went unsaid")
    unsaid = [int(found[1]) for line in said if (found := re.search(r"unsaid=(\d+)", line))]
    assert sum(unsaid) + len(said) - len(unsaid) == 10


# --- settings -----------------------------------------------------------------------------------------------------

LISTED = """
[listener]
accept = "listed"
labels = { RESEARCH = "research" }
[[peers]]
ae_title = "CT1"
"""


def _problems(folder: Path, text: str) -> list[str]:
    file = folder / "meddaemon.toml"
    file.write_text(text)
    with pytest.raises(InvalidConfiguration) as raised:
        load(file, {})
    return [each.removeprefix(f"{file}:") for each in raised.value.problems]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LISTED + 'addresses = ["10.1.2.3/16"]', "7: peers[0].addresses[0]: 10.1.2.3/16 has host bits set"),
        (LISTED + 'addresses = ["ct1.example.org"]', "7: peers[0].addresses[0]: 'ct1.example.org' does not appear"),
        (LISTED + "addresses = [10]", "7: peers[0].addresses[0]: must be an address or a network in quotes"),
        (
            LISTED + 'called_ae_titles = ["RESAERCH"]',
            "7: peers[0].called_ae_titles[0]: 'RESAERCH' is neither the listener's ae_title nor among its labels; "
            "did you mean 'RESEARCH'?",
        ),
        (LISTED + 'host = "ct1"', "5: peers[0]: needs host and port, or neither"),
        (LISTED + 'ca = "ct1.pem"', '7: peers[0].ca: asks for a certificate, and listener.transports has no "tls"'),
        (LISTED + 'host = "ct1"\nport = 104\ntls = true', "9: peers[0].tls: needs tls.ca or a ca of its own"),
        ('[listener]\ntransports = ["tls"]', "2: listener.transports: TLS needs tls.certificate"),
        ('[listener]\ntransports = ["tls"]', "2: listener.transports: TLS needs tls.ca: nobody vouches"),
        ("[listener]\ntransports = []", "2: listener.transports: should have at least one element, not []"),
        ('[tls]\ncertificate = "a"', "1: tls: needs certificate and key, or neither"),
        ('[listener]\naccept = "all"', "2: listener.accept: should be 'everyone' or 'listed'"),
        ('[listener]\nlabels = { "a\\\\b" = "x" }', "2: listener.labels"),
    ],
)
def test_a_wrong_setting_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    problems = _problems(tmp_path, text)
    assert any(each.startswith(problem) for each in problems), problems


@pytest.mark.parametrize(
    ("listener", "warned"),
    [
        ("", False),
        ('host = "0.0.0.0"', True),
        ('host = "::"', True),
        ('host = "pacs.example.org"', True),
        ('host = "localhost"', False),
        ('host = "0.0.0.0"\naccept = "listed"', False),
        ('host = "0.0.0.0"\ntransports = ["tls"]', False),
        ('host = "0.0.0.0"\ntransports = ["plain", "tls"]', True),
        ('host = "0.0.0.0"\ntransports = ["tls"]\n[tls]\nclient_certificates = "optional"', True),
    ],
)
def test_a_door_that_stands_open_is_warned_about(tmp_path: Path, listener: str, *, warned: bool) -> None:
    tls = "" if "[tls]" in listener else "\n[tls]"
    file = tmp_path / "meddaemon.toml"
    file.write_text(f'[listener]\n{listener}{tls}\ncertificate = "c"\nkey = "k"\nca = "a"\n')
    warnings = load(file, {}).warnings
    assert [("everyone who reaches" in each) for each in warnings] == [True] * warned


def test_an_open_door_is_told_by_the_doctor_and_an_open_key(tmp_path: Path) -> None:
    key = tmp_path / "server.key"
    key.write_text("secret")
    key.chmod(0o644)
    home = Home.make(tmp_path, f'[tls]\ncertificate = "absent.pem"\nkey = "{key}"\n')
    home.config.write_text(home.config.read_text().replace("port = 0", 'port = 0\nhost = "0.0.0.0"'))
    said = home.cli("doctor", "--no-network").stdout
    assert "everyone who reaches 0.0.0.0 may send studies" in said
    assert f"every user of this machine may read {key}" in said
    assert "absent.pem: cannot be read" in said
