"""Messages that are wrong, incomplete, endless or end in the middle, on an association that stands."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import wire
from encoded import written
from listening import PDU_BYTES, Taken, assert_served, associated, listening
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from running import Home, wait_until
from watched import Watched
from wire import (
    ABORT,
    ASSOCIATE_AC,
    ECHO_CONTEXT,
    P_DATA_TF,
    STORE_CONTEXT,
    Peer,
    command,
    element,
    pdu,
    pdv,
    store_command,
    uid_value,
)

UNRECOGNIZED, CLASS_NOT_SUPPORTED, MISMATCH, CANNOT_UNDERSTAND, INVALID_INSTANCE = (
    0x0211,
    0x0122,
    0xA900,
    0xC000,
    0x0117,
)
NO_DATA_SET = element(0x800, b"\1\1")
DATA_SET = element(0x800, b"\1\0")
MESSAGE_ID = element(0x110, b"\1\0")
PRIORITY = element(0x700, b"\0\0")


def ct(sop_instance_uid: str, size: int = 64) -> bytes:
    data_set = Dataset()
    data_set.SOPClassUID, data_set.SOPInstanceUID = CTImageStorage, sop_instance_uid
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.Modality = "2.25.41", "2.25.42", "CT"
    data_set.PatientID = "D"
    data_set.add_new(0x7FE00010, "OW", bytes(size))
    return written(data_set, ExplicitVRLittleEndian)


@contextmanager
def talking(site: Watched) -> Iterator[Peer]:
    with Peer(site.port, 10) as peer:
        assert peer.associate() == ASSOCIATE_AC
        yield peer


def message(context: int, request: bytes, data: bytes | None = None) -> bytes:
    """Return a message in one PDU, with a data set where there is one."""
    return pdu(P_DATA_TF, pdv(context, 3, request) + (b"" if data is None else pdv(context, 2, data)))


# --- requests that are not the context's --------------------------------------------------------------------------


def asks(field: int, *more: bytes, sop_class: str = CTImageStorage) -> bytes:
    return command(element(2, uid_value(sop_class)), element(0x100, struct.pack("<H", field)), MESSAGE_ID, *more)


def normalised(field: int, *more: bytes, sop_class: str = CTImageStorage) -> bytes:
    """Return a request that names a Requested SOP Class and Instance UID (PS3.7 10.3)."""
    return command(
        element(3, uid_value(sop_class)),
        element(0x100, struct.pack("<H", field)),
        MESSAGE_ID,
        NO_DATA_SET,
        element(0x1001, uid_value("1.2.3")),
        *more,
    )


ELSEWHERE = {
    "C-FIND": (STORE_CONTEXT, asks(0x20, PRIORITY, DATA_SET), b"\x08\0\x52\0CS\6\0STUDY "),
    "C-GET": (STORE_CONTEXT, asks(0x10, PRIORITY, DATA_SET), b"\x08\0\x52\0CS\6\0STUDY "),
    "C-MOVE": (STORE_CONTEXT, asks(0x21, element(0x600, b"X "), PRIORITY, DATA_SET), b"\x08\0\x52\0CS\6\0STUDY "),
    "C-ECHO": (STORE_CONTEXT, asks(0x30, NO_DATA_SET), None),
    "C-STORE": (ECHO_CONTEXT, store_command("2.25.400"), b"data"),
    "N-EVENT-REPORT": (
        STORE_CONTEXT,
        asks(0x100, NO_DATA_SET, element(0x1000, uid_value("1.2")), element(0x1002, b"\1\0")),
        None,
    ),
    "N-GET": (STORE_CONTEXT, normalised(0x110), None),
    "N-ACTION": (STORE_CONTEXT, normalised(0x130, element(0x1008, b"\1\0")), None),
    "N-CREATE": (STORE_CONTEXT, asks(0x140, NO_DATA_SET), None),
    "N-DELETE": (STORE_CONTEXT, normalised(0x150), None),
}


@pytest.mark.fault(35)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_request_that_the_context_does_not_have_is_answered_at_once(site: Watched, name: str) -> None:
    context, request, data = ELSEWHERE[name]
    seconds = []
    with talking(site) as peer:
        for _ in range(3):
            begun = time.monotonic()
            peer.send(message(context, request, data))
            assert peer.status() == UNRECOGNIZED
            seconds.append(time.monotonic() - begun)
        assert peer.echo() == 0
    assert min(seconds) < 1  # of three: the machine may be busy
    site.assert_quiet()


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("sop_class", "context", "status"),
    [
        (MRImageStorage, STORE_CONTEXT, CLASS_NOT_SUPPORTED),
        (wire.VERIFICATION, STORE_CONTEXT, CLASS_NOT_SUPPORTED),
        ("1.2.3.4", STORE_CONTEXT, CLASS_NOT_SUPPORTED),
        ("../../x", STORE_CONTEXT, INVALID_INSTANCE),
    ],
)
def test_an_object_of_another_class_than_agreed_on_is_refused(
    site: Watched, sop_class: str, context: int, status: int
) -> None:
    with talking(site) as peer:
        request = store_command("2.25.401", sop_class_uid=sop_class)
        peer.send(message(context, request, ct("2.25.401")))
        assert peer.status() == status
        assert peer.echo() == 0
    assert site.stored("2.25.401") == []
    assert site.home.refusals()[-1].status == status


@pytest.mark.fault(38)
def test_an_echo_that_names_another_class_is_refused(site: Watched) -> None:
    with talking(site) as peer:
        peer.send(message(ECHO_CONTEXT, asks(0x30, NO_DATA_SET)))
        assert peer.status() == CLASS_NOT_SUPPORTED
        assert peer.echo() == 0


# --- requests that lack something ---------------------------------------------------------------------------------

STORE = {
    "class": element(2, uid_value(CTImageStorage)),
    "field": element(0x100, b"\1\0"),
    "message": MESSAGE_ID,
    "priority": PRIORITY,
    "data": DATA_SET,
    "instance": element(0x1000, uid_value("2.25.402")),
}
LACKING = {
    "class": MISMATCH,
    "field": ABORT,
    "message": ABORT,
    "data": ABORT,
    "instance": INVALID_INSTANCE,
    "priority": 0,
}
"""What answers a C-STORE request without one of its elements: a status, or A-ABORT. Nobody goes by the priority."""


@pytest.mark.fault(36)
@pytest.mark.parametrize("lacks", LACKING)
def test_a_store_request_that_lacks_something_is_answered(site: Watched, lacks: str) -> None:
    request = command(*(value for name, value in STORE.items() if name != lacks))
    with talking(site) as peer:
        peer.send(message(STORE_CONTEXT, request, ct("2.25.402")))
        if LACKING[lacks] == ABORT:
            assert peer.receive()[0] == ABORT
        else:
            assert peer.status() == LACKING[lacks]
    assert_served(site.port)
    assert len(site.stored("2.25.402")) == (lacks == "priority")
    site.assert_quiet()


UNANSWERABLE = {
    "an answer that nobody asked for": command(
        element(0x100, b"\x01\x80"), element(0x120, b"\1\0"), NO_DATA_SET, element(0x900, b"\0\0")
    ),
    "a message id of no number": command(
        element(2, uid_value(CTImageStorage)), element(0x100, b"\1\0"), element(0x110, b""), NO_DATA_SET
    ),
    "a length beyond the command": command(struct.pack("<HHL", 0, 2, 2**31)),
    "half an element": command(b"\0\0\2"),
    "a field of three bytes": command(element(0x100, b"\1\0\0"), MESSAGE_ID, NO_DATA_SET),
    "elements of another group": struct.pack("<HHL", 0x10, 0x10, 4) + b"A^B ",
}


@pytest.mark.fault(34, 35, 36)
@pytest.mark.parametrize("name", UNANSWERABLE)
def test_what_has_no_answer_is_aborted(site: Watched, name: str) -> None:
    with talking(site) as peer:
        peer.send(message(STORE_CONTEXT, UNANSWERABLE[name]))
        assert peer.receive()[0] == ABORT
    assert_served(site.port)


@pytest.mark.fault(37, 49)
def test_a_request_that_announces_no_data_set_stores_nothing(site: Watched) -> None:
    request = command(*(value for name, value in STORE.items() if name != "data"), NO_DATA_SET)
    with talking(site) as peer:
        peer.send(message(STORE_CONTEXT, request))
        assert peer.status() == CANNOT_UNDERSTAND
        assert peer.echo() == 0
    assert site.home.half_received() == []


DISORDER = {
    "a data set first": pdv(STORE_CONTEXT, 0, b"data"),
    "the last of a data set first": pdv(STORE_CONTEXT, 2, b"data"),
    "a data set within the command": pdv(STORE_CONTEXT, 1, store_command("2.25.5")[:20]) + pdv(STORE_CONTEXT, 2, b""),
    "a second command": pdv(STORE_CONTEXT, 3, store_command("2.25.5")) * 2,
    "a data set of an even context": pdv(STORE_CONTEXT, 3, store_command("2.25.5")) + pdv(4, 2, b"data"),
    "a data set of another context": pdv(STORE_CONTEXT, 3, store_command("2.25.5")) + pdv(ECHO_CONTEXT, 2, b"data"),
    "an even context": pdv(2, 3, wire.echo_command()),
    "context 0": pdv(0, 3, wire.echo_command()),
    "a context that was not proposed": pdv(5, 3, wire.echo_command()),
}


@pytest.mark.fault(33, 37)
@pytest.mark.parametrize("name", DISORDER)
def test_fragments_that_belong_to_nothing_are_aborted(site: Watched, name: str) -> None:
    with talking(site) as peer:
        peer.send(pdu(P_DATA_TF, DISORDER[name]))
        assert peer.receive()[0] == ABORT
    assert_served(site.port)
    site.assert_quiet()


# --- much and many ------------------------------------------------------------------------------------------------


@pytest.mark.fault(39)
def test_fragments_of_two_bytes_are_taken_in_linear_time(site: Watched) -> None:
    def seconds(size: int, number: int) -> float:
        uid = f"2.25.39{number}"
        data = ct(uid, size)
        begun = site.cpu_seconds()
        with talking(site) as peer:
            # 2 bytes for each PDV, some thousand PDVs for each PDU.
            parts = wire.fragments(STORE_CONTEXT, store_command(uid), 2, is_command=True)
            parts += wire.fragments(STORE_CONTEXT, data, 2, is_command=False)
            peer.send(*(pdu(P_DATA_TF, b"".join(parts[at : at + 2000])) for at in range(0, len(parts), 2000)))
            assert peer.status() == 0
        assert site.stored(uid) == [data]
        return site.cpu_seconds() - begun

    few, many = seconds(20_000, 1), seconds(200_000, 2)
    assert many < 20 * max(few, 0.1)


@pytest.mark.fault(39)
def test_each_fragment_of_two_bytes_in_a_pdu_of_its_own(site: Watched) -> None:
    data = ct("2.25.395", 2000)
    with talking(site) as peer:
        peer.send(wire.store_message("2.25.395", data, maximum=8))
        assert peer.status() == 0
    assert site.stored("2.25.395") == [data]


@pytest.mark.fault(43)
def test_a_hundred_requests_at_once_are_answered_in_order() -> None:
    taken = Taken()
    with listening(taken) as listener, associated(listener) as peer:
        objects = {f"2.25.{number}": bytes([number]) * 100 for number in range(1, 101)}
        peer.send(
            b"".join(wire.store_message(uid, data, number) for number, (uid, data) in enumerate(objects.items(), 1))
        )
        answered = []
        for _ in objects:
            _, body = peer.receive()
            at = body.index(struct.pack("<HHL", 0, 0x120, 2)) + 8
            answered.append(int.from_bytes(body[at : at + 2], "little"))
    assert answered == list(range(1, 101))
    assert {each.sop_instance_uid: each.data for each in taken.objects} == objects


@pytest.mark.fault(44)
def test_a_flood_of_cancels_is_ignored(site: Watched) -> None:
    cancel = command(element(0x100, b"\xff\x0f"), element(0x120, b"\7\0"), NO_DATA_SET)
    memory = site.status("VmRSS")
    with talking(site) as peer:
        peer.send(message(STORE_CONTEXT, cancel) * 5000)
        assert peer.echo() == 0
        assert peer.store("2.25.44", ct("2.25.44")) == 0
    assert site.status("VmRSS") - memory < 5_000
    site.assert_quiet()


@pytest.mark.fault(45)
def test_a_command_set_without_end_is_cut(site: Watched) -> None:
    memory, sent = site.status("VmHWM"), 0
    piece = pdu(P_DATA_TF, pdv(STORE_CONTEXT, 1, bytes(8000)))
    with talking(site) as peer:
        try:
            while sent < 32_000_000:
                peer.send(piece)
                sent += len(piece)
            pytest.fail("32 MB of a command set were taken")
        except ConnectionError:
            pass
    assert site.status("VmHWM") - memory < 10_000
    site.assert_quiet()


@pytest.mark.fault(45)
def test_a_command_set_over_64_kib_is_aborted(site: Watched) -> None:
    with talking(site) as peer:
        peer.send(*(pdu(P_DATA_TF, pdv(STORE_CONTEXT, 1, bytes(8192))) for _ in range(9)))
        assert peer.receive()[0] == ABORT


# --- the end in the middle ----------------------------------------------------------------------------------------

ENDS = {
    "A-ABORT": lambda peer: peer.send(pdu(ABORT, bytes(4))),
    "RST": lambda peer: peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)),
    "FIN": lambda peer: peer.socket.shutdown(socket.SHUT_WR),
}


@pytest.mark.fault(40)
@pytest.mark.parametrize("at", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ENDS)
def test_what_ends_in_the_middle_leaves_nothing(site: Watched, name: str, at: float) -> None:
    wait_until(lambda: site.status("Threads") < 12, what="the threads of others to end")
    threads, files = site.status("Threads"), site.descriptors()
    stored = set(site.home.files())
    data = ct("2.25.403", 200_000)
    whole = wire.store_message("2.25.403", data, maximum=PDU_BYTES)
    with talking(site) as peer:
        peer.send(whole[: int(at * len(whole))])
        ENDS[name](peer)
    wait_until(lambda: site.status("Threads") <= threads, what="the thread to end")
    wait_until(lambda: site.descriptors() <= files, what="the descriptors to be given back")
    site.assert_quiet()
    assert site.stored("2.25.403") == []
    assert set(site.home.files()) == stored


@pytest.mark.fault(10, 41)
@pytest.mark.parametrize("into_the_next", [0, 100])
def test_a_peer_that_stops_in_an_object_is_ended_and_nobody_waits(tmp_path: Path, into_the_next: int) -> None:
    """Between two PDUs, and within one."""
    home = Home.make(tmp_path)
    home.config.write_text(home.config.read_text().replace("port = 0", "port = 0\nidle_timeout_seconds = 0.7"))
    with home.running("listen") as role:
        site = Watched(home, role, role.port())
        parts = [pdv(STORE_CONTEXT, 3, store_command("2.25.1")), *[pdv(STORE_CONTEXT, 0, bytes(10_000))] * 3]
        whole = b"".join(pdu(P_DATA_TF, part) for part in parts)
        with talking(site) as peer:
            peer.send(whole + pdu(P_DATA_TF, pdv(STORE_CONTEXT, 2, bytes(10_000)))[:into_the_next])
            assert_served(site.port)
            assert peer.receive()[0] == ABORT
        site.assert_quiet()
        assert home.files() == {}


@pytest.mark.fault(46)
def test_a_huge_object_that_is_aborted_costs_bounded_memory(site: Watched) -> None:
    memory = site.status("VmHWM")
    piece = pdu(P_DATA_TF, pdv(STORE_CONTEXT, 0, bytes(100_000)))
    with talking(site) as peer:
        peer.send(pdu(P_DATA_TF, pdv(STORE_CONTEXT, 3, store_command("2.25.46"))))
        for _ in range(3000):
            peer.send(piece)
        peer.send(pdu(ABORT, bytes(4)))
    site.assert_quiet()
    assert site.stored("2.25.46") == []
    assert site.status("VmHWM") - memory < 150_000


@pytest.mark.fault(43)
def test_answers_that_nobody_reads_hold_nobody_else_up(site: Watched) -> None:
    with talking(site) as deaf:
        stop = threading.Event()

        def flood() -> None:
            try:
                while not stop.is_set():
                    deaf.send(wire.echo_message() * 100)
            except OSError:
                return

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            for _ in range(5):
                assert_served(site.port)
        finally:
            stop.set()
            deaf.socket.shutdown(socket.SHUT_RDWR)
            sender.join(20)
    assert not sender.is_alive()
