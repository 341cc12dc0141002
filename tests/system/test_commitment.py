"""Storage commitment: what is answered with Success is reported, after the files were read, whatever happens."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from meddaemon.db import tables
from meddaemon.domain.states import DeliveryState
from tests.ingest.encoded import written
from tests.running import Home, Role, wait_until
from tests.scanner import scanner

INSTANCE = "1.2.840.10008.1.20.1.1"
SITE = """
[delivery]
poll_seconds = 0.1
backoff_seconds = 0.2
maximum_backoff_seconds = 0.2
connection_timeout_seconds = 2

[[peers]]
ae_title = "CT1"
host = "127.0.0.1"
port = {port}
"""


class Modality:
    """CT1: sends, asks for commitment, and listens for reports; answers them with `status`."""

    def __init__(self) -> None:
        self.reports: list[tuple[int, Dataset]] = []
        self.status = 0x0000

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        entity = AE(ae_title="CT1")
        # The association is asked for by the provider of the service: roles are turned round.
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        handlers = [(evt.EVT_N_EVENT_REPORT, self._hear)]
        server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        assert server is not None
        try:
            yield int(server.server_address[1])
        finally:
            entity.shutdown()

    def _hear(self, event: evt.Event) -> tuple[int, None]:
        if self.status == 0x0000:
            self.reports.append((event.event_type, event.event_information))
        return self.status, None


def ask(
    port: int,
    transaction: str | None,
    named: Sequence[tuple[str, str]],
    *,
    calling: str = "CT1",
    action: int = 1,
    instance: str = INSTANCE,
) -> int:
    """Ask for storage commitment and return the status."""
    information = Dataset()
    if transaction is not None:
        information.TransactionUID = transaction
    items = []
    for sop_class, uid in named:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        items.append(item)
    information.ReferencedSOPSequence = DicomSequence(items)
    entity = AE(ae_title=calling)
    entity.add_requested_context(StorageCommitmentPushModel)
    association = entity.associate("127.0.0.1", port, ae_title="MEDDAEMON")
    assert association.is_established
    try:
        status, _ = association.send_n_action(information, action, StorageCommitmentPushModel, instance)
    finally:
        association.release()
    return int(status.Status)


def send(port: int, *uids: str) -> None:
    with scanner(port, calling="CT1") as sender:
        for uid in uids:
            data_set = Dataset()
            data_set.SOPClassUID, data_set.SOPInstanceUID = CTImageStorage, uid
            data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "2.25.1", "2.25.2"
            data_set.Modality = "CT"
            assert sender.store(written(data_set, ExplicitVRLittleEndian), uid) == 0


@contextmanager
def site(folder: Path, modality: Modality, *roles: str) -> Iterator[tuple[Home, list[Role]]]:
    with modality.listening() as port, ExitStack() as stack:
        home = Home.make(folder / "home", SITE.format(port=port))
        yield home, [stack.enter_context(home.running(role)) for role in roles]


def uids_of(items: Sequence[Dataset]) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in items]


def test_what_is_stored_is_committed_and_the_rest_is_named_with_its_reason(tmp_path: Path) -> None:
    modality = Modality()
    with site(tmp_path, modality, "listen", "deliver") as (home, (listener, _)):
        port = listener.port()
        send(port, "2.25.11", "2.25.12", "2.25.13")
        rows = {row.sop_instance_uid: row.sha256 for row in home.instances()}
        damaged = home.files()[rows["2.25.13"]]
        damaged.chmod(0o600)
        damaged.write_bytes(damaged.read_bytes()[:-2] + b"??")
        named = [
            (CTImageStorage, "2.25.11"),
            (MRImageStorage, "2.25.12"),
            (CTImageStorage, "2.25.13"),
            (CTImageStorage, "2.25.99"),
        ]
        assert ask(port, "2.25.1000", named) == 0x0000
        wait_until(lambda: modality.reports, what="the report")
        wait_until(lambda: home.rows(tables.commitment)[0].state == DeliveryState.SENT, what="its record")
        assert ask(port, "2.25.1001", named[:1]) == 0x0000
        wait_until(lambda: len(modality.reports) == 2, what="the second report")
    (first, information), (second, well) = modality.reports
    assert (first, second) == (2, 1)
    assert information.TransactionUID == "2.25.1000"
    assert uids_of(information.ReferencedSOPSequence) == ["2.25.11"]
    assert {
        str(item.ReferencedSOPInstanceUID): (item.ReferencedSOPClassUID, item.FailureReason)
        for item in information.FailedSOPSequence
    } == {
        "2.25.12": (MRImageStorage, 0x0119),
        "2.25.13": (CTImageStorage, 0x0110),
        "2.25.99": (CTImageStorage, 0x0112),
    }
    assert uids_of(well.ReferencedSOPSequence) == ["2.25.11"]
    assert "FailedSOPSequence" not in well
    assert home.rows(tables.commitment)[0].failed == 3
    assert "2.25.1000" in home.cli("commitments", "list").stdout


def test_a_request_outlives_the_listener_and_a_peer_that_is_away(tmp_path: Path) -> None:
    modality = Modality()
    with modality.listening() as port:
        pass
    home = Home.make(tmp_path / "home", SITE.format(port=port))
    with home.running("listen") as listener:
        send(listener.port(), "2.25.11")
        assert ask(listener.port(), "2.25.1000", [(CTImageStorage, "2.25.11")]) == 0
        listener.kill_all()
        listener.process.returncode = 0  # asked for
    with home.running("deliver"):
        wait_until(lambda: home.rows(tables.commitment)[0].attempt > 1, what="another attempt")
        modality.status = 0x0110
        with modality.listening(port):
            wait_until(lambda: "0110H" in home.rows(tables.commitment)[0].reason, what="an attempt that is not taken")
            modality.status = 0x0000
            wait_until(lambda: modality.reports, what="the report")
            wait_until(lambda: home.rows(tables.commitment)[0].state == DeliveryState.SENT, what="its record")
    assert len(modality.reports) == 1


def test_the_same_request_again_is_reported_again_and_another_under_its_uid_refused(tmp_path: Path) -> None:
    modality = Modality()
    with site(tmp_path, modality, "listen", "deliver") as (home, (listener, _)):
        port = listener.port()
        send(port, "2.25.11", "2.25.12")
        for heard in (1, 2):
            assert ask(port, "2.25.1000", [(CTImageStorage, "2.25.11")]) == 0
            wait_until(lambda heard=heard: len(modality.reports) == heard, what="a report")
            wait_until(lambda: home.rows(tables.commitment)[0].state == DeliveryState.SENT, what="its record")
        assert ask(port, "2.25.1000", [(CTImageStorage, "2.25.12")]) == 0x0110
    assert len(home.rows(tables.commitment)) == 1


ONE = [(CTImageStorage, "2.25.11")]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"transaction": None, "named": ONE}, 0x0115),
        ({"transaction": "../x", "named": ONE}, 0x0115),
        ({"transaction": "2.25.1", "named": []}, 0x0115),
        ({"transaction": "2.25.1", "named": [("", "2.25.11")]}, 0x0115),
        ({"transaction": "2.25.1", "named": [(CTImageStorage, "../../x")]}, 0x0115),
        ({"transaction": "2.25.1", "named": ONE, "action": 2}, 0x0123),
        ({"transaction": "2.25.1", "named": ONE, "instance": "2.25.5"}, 0x0112),
        ({"transaction": "2.25.1", "named": ONE, "calling": "STRANGER"}, 0x0124),
    ],
)
def test_what_cannot_be_answered_for_is_refused(
    listener: tuple[Home, int, Role], asked: dict[str, object], status: int
) -> None:
    home, port, _ = listener
    assert ask(port, **asked) == status  # type: ignore[arg-type]
    assert home.rows(tables.commitment) == []


def test_who_asks_for_what_cannot_be_answered_is_named(listener: tuple[Home, int, Role]) -> None:
    _, port, role = listener
    assert ask(port, "2.25.1", ONE, calling="NOBODY") == 0x0124
    events = [json.loads(line) for line in role.log_text().splitlines()]
    (said,) = (each for each in events if each.get("calling_ae_title") == "NOBODY")
    assert said["event"].startswith("storage commitment asked for by an AE that has no host in [[peers]]")
    assert said["peer"] == "127.0.0.1"


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, int, Role]]:
    home = Home.make(tmp_path_factory.mktemp("home"), SITE.format(port=104))
    with home.running("listen") as role:
        yield home, role.port(), role


def test_a_peer_that_takes_no_reports_is_told_to_a_person(tmp_path: Path) -> None:
    entity = AE(ae_title="CT1")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        home = Home.make(tmp_path / "home", SITE.format(port=server.server_address[1]))
        with home.running("listen") as listener, home.running("deliver"):
            assert ask(listener.port(), "2.25.1000", ONE) == 0
            wait_until(lambda: home.rows(tables.commitment)[0].state == DeliveryState.HELD, what="it to be held")
            assert "accepts no presentation context" in home.rows(tables.commitment)[0].reason
            assert "held for a person" in home.cli("doctor", "--no-network").stdout
            assert home.cli("commitments", "requeue", "1").returncode == 0
    finally:
        entity.shutdown()
