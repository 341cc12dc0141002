"""Peers that are silent, slow, many, or not DICOM at all: they get their answer, and everybody else is served."""

import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import wire
from listening import (
    PDU_BYTES,
    SERVED_SECONDS,
    Taken,
    assert_ended,
    assert_served,
    associated,
    descriptors,
    drip,
    listening,
    port_of,
)
from running import wait_until
from scanner import scanner
from wire import ABORT, ASSOCIATE_AC, ASSOCIATE_RJ, Peer, associate_request

from meddaemon.ingest.reception import HALF_OPEN, Reception


@pytest.fixture(autouse=True, scope="module")
def descriptors_enough() -> Iterator[None]:
    """Let this process have the two ends of a thousand connections, where it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- those who do not get as far as an association ----------------------------------------------------------------

HALF = {
    "nothing": b"",
    "a byte": b"\x01",
    "a header": associate_request()[:6],
    "half a request": associate_request()[:100],
    "all but a byte": associate_request()[:-1],
}


@pytest.mark.fault(2, 3, 4, 6)
@pytest.mark.parametrize("said", HALF.values(), ids=HALF)
def test_a_half_open_peer_is_ended_at_its_deadline(said: bytes) -> None:
    with listening(association_seconds=0.5) as listener, Peer(port_of(listener)) as peer:
        peer.send(said)
        assert_served(port_of(listener))
        assert assert_ended(peer, 10) == []


@pytest.mark.fault(5)
def test_a_request_that_drips_is_ended_at_the_same_deadline() -> None:
    with listening(association_seconds=0.5) as listener, Peer(port_of(listener)) as peer:
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            drip(peer, associate_request() * 100)
        assert time.monotonic() - begun < 5


@pytest.mark.fault(7)
def test_hundreds_of_half_open_peers_take_nobody_s_place() -> None:
    threads, files = threading.active_count(), descriptors()
    with listening(maximum_associations=2) as listener, ExitStack() as peers:
        for number in range(300):
            peer = peers.enter_context(Peer(port_of(listener)))
            peer.send(list(HALF.values())[number % len(HALF)])
        assert listener.associations == 0
        for _ in range(10):
            assert_served(port_of(listener))
        wait_until(lambda: threading.active_count() == threads + 1, what="no thread but the reception's")
    wait_until(lambda: threading.active_count() <= threads, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")


def test_more_half_open_peers_than_may_be_make_room_for_the_next() -> None:
    with listening() as listener, ExitStack() as peers:
        held = [peers.enter_context(Peer(port_of(listener))) for _ in range(HALF_OPEN + 10)]
        assert_served(port_of(listener))
        assert assert_ended(held[0], 10) == []
        held[-1].send(associate_request())
        assert held[-1].receive()[0] == ASSOCIATE_AC


@pytest.mark.fault(1)
def test_health_probes_cost_nothing_and_nobody_hears_of_them(capfd: pytest.CaptureFixture[str]) -> None:
    threads, files = threading.active_count(), descriptors()
    with listening(maximum_associations=1) as listener:
        for number in range(200):
            with Peer(port_of(listener)) as peer:
                if number % 2:
                    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
        assert_served(port_of(listener))
        wait_until(lambda: listener.associations == 0, what="the association to end")
        wait_until(lambda: threading.active_count() == threads + 1, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")
    assert capfd.readouterr() == ("", "")


JUNK = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01" + bytes(100),
    "a PDU of type 0": bytes(200),
    "a release": wire.RELEASE,
    "a message": wire.echo_message(),
    "a request of 4 GiB": b"\x01\0\xff\xff\xff\xff" + bytes(1000),
}


@pytest.mark.fault(12, 13, 22)
@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
def test_what_is_not_a_request_is_aborted_at_once(junk: bytes) -> None:
    with listening() as listener, Peer(port_of(listener)) as peer:
        peer.send(junk)
        assert assert_ended(peer, 5) == [ABORT]
        assert listener.associations == 0
        assert_served(port_of(listener))


@pytest.mark.fault(25)
@pytest.mark.parametrize("at", range(6, 220, 7))
def test_a_damaged_request_is_answered_and_leaves_nothing(at: int) -> None:
    request = bytearray(associate_request())
    request[at] ^= 0xFF
    with listening(maximum_associations=1) as listener:
        with Peer(port_of(listener)) as peer:
            peer.send(bytes(request))
            kind, _ = peer.receive()
            assert kind in {ASSOCIATE_AC, ASSOCIATE_RJ, ABORT, 0}
        wait_until(lambda: listener.associations == 0, 10, what="the place to be free again")
        assert_served(port_of(listener))


# --- as many as may be --------------------------------------------------------------------------------------------


@pytest.mark.fault(9)
def test_surplus_associations_are_rejected_at_once_and_places_come_back() -> None:
    with listening(maximum_associations=3) as listener:
        with ExitStack() as peers:
            held = [peers.enter_context(Peer(port_of(listener))) for _ in range(3)]
            assert [peer.associate() for peer in held] == [ASSOCIATE_AC] * 3
            for _ in range(20):
                with Peer(port_of(listener)) as surplus:
                    begun = time.monotonic()
                    surplus.send(associate_request())
                    kind, body = surplus.receive()
                    assert (kind, body[1:]) == (ASSOCIATE_RJ, bytes([2, 3, 2]))
                    assert time.monotonic() - begun < SERVED_SECONDS
                    assert assert_ended(surplus, 5) == []
            assert [peer.echo() for peer in held] == [0] * 3
            held[0].release()
            wait_until(lambda: listener.associations == 2, what="the place to be free")
            assert_served(port_of(listener))
        # The rest hang up without a word.
        wait_until(lambda: listener.associations == 0, what="all places to be free")
        assert_served(port_of(listener))


def test_a_storm_leaves_nothing_behind() -> None:
    threads, files = threading.active_count(), descriptors()
    with listening(maximum_associations=4) as listener:
        port = port_of(listener)
        for number in range(100):
            peer = Peer(port)
            peer.send(associate_request())
            if number % 3 == 0:
                peer.receive()
            if number % 3 == 1:
                peer.send(wire.store_message("2.25.1", bytes(50_000), maximum=PDU_BYTES)[:20_000])
            peer.socket.close()
        wait_until(lambda: listener.associations == 0, what="the associations to end")
        assert_served(port)
    wait_until(lambda: threading.active_count() <= threads, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")


@pytest.mark.fault(107)
@pytest.mark.parametrize("left", [0, 1])
def test_without_descriptors_nobody_is_served_and_afterwards_everybody(left: int) -> None:
    """With one left a connection can be accepted, but no association be made of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with listening() as listener, socket.socket() as connection:
        connection.settimeout(30)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, hard))
        try:
            connection.connect(listener.address)
            connection.sendall(associate_request())
            if left:
                assert connection.recv(10) == bytes([ASSOCIATE_RJ, 0, 0, 0, 0, 4, 0, 2, 3, 2])
            else:
                connection.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert_served(port_of(listener))


# --- within an association ----------------------------------------------------------------------------------------


@pytest.mark.fault(14, 42)
@pytest.mark.parametrize("length", [PDU_BYTES + 7, 2**31, 2**32 - 1])
def test_a_pdu_over_the_announced_maximum_is_aborted_unread(length: int) -> None:
    with listening() as listener, associated(listener) as peer:
        peer.send(struct.pack(">BxL", wire.P_DATA_TF, length), bytes(50_000))
        assert assert_ended(peer, 10) == [ABORT]
        wait_until(lambda: listener.associations == 0, what="the association to end")


@pytest.mark.fault(42)
@pytest.mark.parametrize("extra", [0, 6])
def test_a_pdu_of_the_announced_maximum_is_taken_however_it_was_counted(extra: int) -> None:
    taken = Taken()
    with listening(taken) as listener, associated(listener) as peer:
        data = bytes(range(256)) * 200
        peer.send(wire.store_message("2.25.1", data, maximum=PDU_BYTES + extra))
        assert peer.status() == 0
    assert [each.data for each in taken.objects] == [data]


@pytest.mark.fault(24)
def test_a_pdu_that_drips_is_ended_and_nobody_waits_for_it() -> None:
    with listening(idle_seconds=0.5) as listener, associated(listener) as peer:
        peer.send(struct.pack(">BxL", wire.P_DATA_TF, 10_000))
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            drip(peer, bytes(10_000))
        assert time.monotonic() - begun < 5
        wait_until(lambda: listener.associations == 0, what="the association to end")
        assert_served(port_of(listener))


@pytest.mark.fault(10)
def test_a_peer_that_falls_silent_is_aborted_at_its_deadline() -> None:
    with listening(idle_seconds=0.5) as listener, associated(listener) as idle, associated(listener) as halfway:
        halfway.send(wire.store_message("2.25.1", bytes(50_000), maximum=PDU_BYTES)[:30_000])
        assert assert_ended(idle, 10) == [ABORT]
        assert assert_ended(halfway, 10) == [ABORT]


def test_time_that_we_take_for_an_answer_is_not_the_peer_s() -> None:
    taken = Taken()
    taken.go.clear()
    with listening(taken, idle_seconds=1.0) as listener, associated(listener) as peer:
        peer.send(wire.store_message("2.25.1", bytes(1000)))
        threading.Event().wait(1.5)
        taken.go.set()
        assert peer.status() == 0
        assert peer.echo() == 0


def test_idle_associations_cost_next_to_nothing() -> None:
    with listening(maximum_associations=20) as listener, ExitStack() as peers:
        for _ in range(20):
            peers.enter_context(associated(listener))
        # All of them in this process, as everything that they cost.
        begun, spent = time.monotonic(), time.process_time()
        threading.Event().wait(2)
        assert time.process_time() - spent < 0.05 * (time.monotonic() - begun)


@pytest.mark.fault(43)
def test_a_peer_that_does_not_wait_for_answers_is_slowed_and_served() -> None:
    taken = Taken()
    taken.go.clear()
    with listening(taken) as listener, associated(listener) as peer:
        sent = threading.Event()

        def send() -> None:
            for number in range(1, 61):
                peer.send(wire.store_message(f"2.25.{number}", bytes(400_000), number, maximum=PDU_BYTES))
            sent.set()

        sender = threading.Thread(target=send)
        sender.start()
        # What it sends is not read while two messages wait: 24 MB do not fit into the buffers of the system.
        assert not sent.wait(2)
        taken.go.set()
        assert [peer.status() for _ in range(60)] == [0] * 60
        sender.join()
        assert peer.echo() == 0
    assert [each.sop_instance_uid for each in taken.objects] == [f"2.25.{number}" for number in range(1, 61)]


@pytest.mark.fault(23)
def test_a_peer_that_does_not_read_holds_up_only_itself() -> None:
    with listening(idle_seconds=1.0) as listener:
        # The least that the system gives, so that answers soon find no room.
        listener._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with Peer(port_of(listener)) as deaf:
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            assert deaf.associate() == ASSOCIATE_AC
            deaf.send(wire.echo_message() * 3000)
            assert_served(port_of(listener))
            wait_until(lambda: listener.associations == 0, 30, what="the association to end")


@pytest.mark.fault(22)
@pytest.mark.parametrize("kind", [0x00, 0x01, 0x02, 0x03, 0x06, 0x08, 0xFF])
def test_a_pdu_that_does_not_belong_there_is_aborted(kind: int) -> None:
    with listening() as listener, associated(listener) as peer:
        peer.send(associate_request() if kind == 1 else wire.pdu(kind, bytes(4)))
        assert assert_ended(peer, 10) == [ABORT]


def test_an_abort_ends_it_without_an_answer() -> None:
    with listening() as listener, associated(listener) as peer:
        peer.send(wire.pdu(ABORT, bytes(4)))
        assert assert_ended(peer, 10) == []
        wait_until(lambda: listener.associations == 0, what="the association to end")


def test_many_descriptors_are_no_limit() -> None:
    """Beyond 1024 select(2) cannot look at a descriptor."""
    with listening() as listener, ExitStack() as files:
        try:
            while True:
                if files.enter_context(Path("/dev/null").open()).fileno() > 1100:
                    break
        except OSError:
            pytest.skip("this process may not have so many descriptors")
        assert_served(port_of(listener))


def test_a_listener_that_is_closed_leaves_no_peer_waiting() -> None:
    threads, files = threading.active_count(), descriptors()
    with ExitStack() as peers:
        with listening() as listener:
            silent = peers.enter_context(Peer(port_of(listener)))
            idle = peers.enter_context(associated(listener))
            halfway = peers.enter_context(associated(listener))
            halfway.send(struct.pack(">BxL", wire.P_DATA_TF, 10_000))
            wait_until(lambda: listener.associations == 2, what="both associations")
        for peer in (silent, idle, halfway):
            assert_ended(peer, 5)
        with pytest.raises(ConnectionError):
            Peer(port_of(listener))
    wait_until(lambda: threading.active_count() <= threads, what="the threads to end")
    wait_until(lambda: descriptors() <= files, what="the descriptors to be given back")


def test_a_refused_object_and_the_next(capfd: pytest.CaptureFixture[str]) -> None:
    taken = Taken()
    with listening(taken) as listener, associated(listener) as peer:
        assert [peer.store("2.25.666", b"x" * 100), peer.store("2.25.7", b"y" * 100)] == [0xA700, 0]
    assert [each.sop_instance_uid for each in taken.objects] == ["2.25.7"]


def test_a_proposal_of_everything_is_accepted_quickly() -> None:
    with listening() as listener:
        begun = time.monotonic()
        for _ in range(5):
            with scanner(port_of(listener)) as sender:
                assert sender.echo() == 0
        assert time.monotonic() - begun < 5 * SERVED_SECONDS


@pytest.mark.fault(16, 25)
def test_an_association_that_is_over_before_it_is_noted_leaves_the_reception_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection may be closed already when the reception is told that the association has begun."""
    begin = Reception.finish_request

    def begin_and_wait(reception: Reception, request: Any, address: Any) -> None:
        begin(reception, request, address)
        wait_until(lambda: not reception.associations, what="the association to be over", every=0.001)

    monkeypatch.setattr(Reception, "finish_request", begin_and_wait)
    # Aborted for its even context id as soon as it is read.
    hopeless = associate_request([(2, wire.VERIFICATION, wire.IMPLICIT)])
    with listening(association_seconds=0.5) as listener, Peer(port_of(listener)) as peer:
        peer.send(hopeless)
        assert peer.receive()[0] == ABORT
        # The number of its descriptor is free again; nobody else may have it, or nothing is to be seen.
        with os.fdopen(os.dup(0)), Peer(port_of(listener)) as silent:
            assert assert_ended(silent, 10) == []
        monkeypatch.undo()
        assert_served(port_of(listener))
