import json
import secrets
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from encoded import deflated, encode, written
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPIPHTJ2KReferencedDeflate,
    MRImageStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts
from running import Home, Role, data_set_of, run_cli
from scanner import scanner

from meddaemon.ingest.deflate import MAXIMUM_INFLATED_BYTES

SUCCESS, OUT_OF_RESOURCES, MISMATCH, CANNOT_UNDERSTAND, INVALID_INSTANCE = 0x0000, 0xA700, 0xA900, 0xC000, 0x0117
CLASS_NOT_SUPPORTED = 0x0122
DEFLATED = (DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.4.95", JPIPHTJ2KReferencedDeflate)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.make(tmp_path_factory.mktemp("receive"))


@pytest.fixture(scope="module")
def listener(home: Home) -> Iterator[Role]:
    with home.running("listen") as role:
        role.port()
        yield role


@pytest.fixture(scope="module")
def port(listener: Role) -> int:
    return listener.port()


def new_uid() -> str:
    return f"2.25.{secrets.randbits(100)}"


def ct(sop_instance_uid: str, *, size: int = 64, **attributes: object) -> Dataset:
    """Return an object of our making; attributes of None are left out."""
    data_set = Dataset()
    values: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": sop_instance_uid,
        "StudyInstanceUID": "2.25.1",
        "SeriesInstanceUID": "2.25.2",
        "Modality": "CT",
        "PatientName": "Secret^Person",
        "PatientID": "SECRET-ID-7",
        **attributes,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(data_set, keyword, value)
    data_set.add(DataElement(0x7FE00010, "OW", bytes(size)))
    return data_set


def encoded_as(data_set: Dataset, syntax: str) -> bytes:
    """Return an object as it travels in a syntax, its pixels in fragments where the syntax says so."""
    if "JPIP" in UID(syntax).name:
        del data_set[0x7FE00010]  # fetched from a server instead (PS3.5 A.6)
    elif UID(syntax).is_encapsulated:
        pixels = DataElement(0x7FE00010, "OB", encapsulate([b"\xff\xd8not really\xff\xd9"]))
        pixels.is_undefined_length = True
        data_set[0x7FE00010] = pixels
    data = encode(data_set, syntax).data
    return deflated(data) if syntax in DEFLATED else data


def stored(home: Home, sop_instance_uid: str) -> list[bytes]:
    """Return the data sets that the store has under this UID, by way of the index."""
    return [
        data_set_of(home.files()[row.sha256]) for row in home.instances() if row.sop_instance_uid == sop_instance_uid
    ]


def everything(home: Home) -> set[Path]:
    """Return every file in and around the store; the logs of roles and SQLite's own files left out."""
    around = (path for path in home.folder.parent.rglob("*") if path.is_file())
    return {path for path in around if path.suffix != ".log" and ".sqlite" not in path.name and path.name != "lock"}


def peak_memory(role: Role) -> int:
    """Return the most bytes of memory that the process ever had."""
    status = Path(f"/proc/{role.process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


# --- what is taken ------------------------------------------------------------------------------------------------


def test_c_echo_is_answered(port: int) -> None:
    with scanner(port) as sender:
        assert sender.echo() == SUCCESS


def test_every_storage_class_that_pynetdicom_knows_is_taken(home: Home, port: int) -> None:
    classes = sorted({str(context.abstract_syntax) for context in AllStoragePresentationContexts})
    assert len(classes) > 150
    sent: dict[str, bytes] = {}
    for batch in (classes[:100], classes[100:]):
        with scanner(port, [(each, ImplicitVRLittleEndian) for each in batch]) as sender:
            for sop_class in batch:
                uid = new_uid()
                sent[uid] = written(ct(uid, SOPClassUID=sop_class), ImplicitVRLittleEndian)
                status = sender.store(
                    sent[uid], uid, sop_class_uid=sop_class, transfer_syntax_uid=ImplicitVRLittleEndian
                )
                assert status == SUCCESS, UID(sop_class).name
    files = home.files()
    kept = {row.sop_instance_uid: data_set_of(files[row.sha256]) for row in home.instances()}
    assert {uid: kept[uid] for uid in sent} == sent


@pytest.mark.parametrize("syntax", ALL_TRANSFER_SYNTAXES)
def test_every_transfer_syntax_is_stored_bit_for_bit(home: Home, port: int, syntax: str) -> None:
    uid = new_uid()
    data = encoded_as(ct(uid), syntax)
    with scanner(port, [(CTImageStorage, syntax)]) as sender:
        assert sender.store(data, uid, transfer_syntax_uid=syntax) == SUCCESS
    assert stored(home, uid) == [data]
    (row,) = (row for row in home.instances() if row.sop_instance_uid == uid)
    assert row.transfer_syntax_uid == syntax
    assert row.header["Modality"] == ["CT"]
    assert row.calling_ae_title == "SCANNER"
    assert row.called_ae_title == "MEDDAEMON"


@pytest.mark.parametrize(
    ("proposed", "chosen"),
    [
        ([ImplicitVRLittleEndian, ExplicitVRLittleEndian], ExplicitVRLittleEndian),
        ([JPEGBaseline8Bit, JPEG2000, ImplicitVRLittleEndian], ImplicitVRLittleEndian),
        ([JPEGBaseline8Bit, JPEG2000, JPEG2000Lossless], JPEG2000Lossless),
    ],
)
def test_where_the_sender_leaves_the_choice_no_vr_and_no_pixel_is_lost(
    port: int, proposed: list[UID], chosen: UID
) -> None:
    entity = AE()
    entity.add_requested_context(CTImageStorage, proposed)
    association = entity.associate("127.0.0.1", port)
    (context,) = association.accepted_contexts
    association.release()
    assert context.transfer_syntax == [chosen]


@pytest.mark.fault(75)
def test_an_identical_object_is_taken_again_and_stored_once(home: Home, port: int) -> None:
    uid = new_uid()
    data = written(ct(uid), ExplicitVRLittleEndian)
    before = len(home.files())
    for _ in range(2):
        with scanner(port) as sender:
            assert [sender.store(data, uid), sender.store(data, uid)] == [SUCCESS, SUCCESS]
    assert stored(home, uid) == [data]
    assert len(home.files()) == before + 1


@pytest.mark.fault(73)
def test_padding_of_the_named_uid_does_not_make_another_object(home: Home, port: int) -> None:
    uid = new_uid()
    data = written(ct(uid), ExplicitVRLittleEndian)
    with scanner(port) as sender:
        assert {sender.store(data, uid), sender.store(data, f"{uid} "), sender.store(data, f"{uid}\0")} == {SUCCESS}
    assert stored(home, uid) == [data]


@pytest.mark.fault(76)
def test_other_content_under_the_same_uid_is_kept_beside_the_first_and_told(home: Home, port: int) -> None:
    uid = new_uid()
    first, second = (written(ct(uid, SeriesDescription=each), ExplicitVRLittleEndian) for each in ("one", "two"))
    with scanner(port) as sender:
        assert [sender.store(each, uid) for each in (first, second, first)] == [SUCCESS] * 3
    assert stored(home, uid) == [first, second]
    rows = [row for row in home.instances() if row.sop_instance_uid == uid]
    assert [row.conflict for row in rows] == [False, True]
    told = home.cli("explain", uid)
    assert told.returncode == 0
    assert "in conflict" in told.stdout
    assert "several objects under one UID in study 1: see" in home.cli("doctor", "--no-network").stdout
    assert "  conflicts  " in home.cli("studies").stdout


@pytest.mark.fault(77)
def test_parallel_senders_of_one_object_leave_one_whole_copy(home: Home, port: int) -> None:
    uid = new_uid()
    data = written(ct(uid, size=3_000_000), ExplicitVRLittleEndian)

    def send(number: int) -> int:
        with scanner(port, calling=f"SENDER{number}") as sender:
            return sender.store(data, uid)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [SUCCESS] * 8
    assert stored(home, uid) == [data]
    assert home.half_received() == []


@pytest.mark.peer
@pytest.mark.parametrize(
    "command",
    [
        ["storescu", "-aet", "DCMTK", "-aec", "MEDDAEMON", "127.0.0.1", "{port}", "{file}"],
        ["dcmsend", "-aet", "DCMTK", "-aec", "MEDDAEMON", "127.0.0.1", "{port}", "{file}"],
    ],
    ids=lambda command: command[0],
)
def test_dcmtk_sends_and_its_bytes_are_kept(home: Home, port: int, tmp_path: Path, command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    uid = new_uid()
    data_set = ct(uid)
    data_set.file_meta = FileMetaDataset()
    data_set.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = tmp_path / "ct.dcm"
    data_set.save_as(file, enforce_file_format=True)
    asked = [part.format(port=port, file=file) for part in command]
    sent = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert sent.returncode == 0, sent.stderr
    # DCMTK encodes again what it sends; the values are ours, and the bytes those that an uncompressed data set has.
    assert stored(home, uid) == [written(ct(uid), ExplicitVRLittleEndian)]


@pytest.mark.peer
def test_dcmtk_echoes(port: int) -> None:
    if shutil.which("echoscu") is None:
        pytest.skip("echoscu is not installed")
    subprocess.run(["echoscu", "-aec", "MEDDAEMON", "127.0.0.1", str(port)], timeout=60, check=True)


# --- what is refused ----------------------------------------------------------------------------------------------

HOSTILE = {
    "a path": "../../../../x",
    "an absolute path": "/tmp/meddaemon-was-here",
    "a NUL inside": "1.2\x00.3",
    "302 characters": "1." * 151,
    "65 characters": "1" * 65,
    "a shell command": "1.2;touch x",
    "a template": "{{7*7}}",
    "a line break": "1.2\n3",
    "two values": "1.2\\1.3",
    "letters": "1.2.a",
    "an empty component": "1..2",
    "the folder above": "..",
    "an option": "-rf",
    "a jump in an address": "%2e%2e%2f",
    "a backslash": "..\\..\\x",
    "a statement": "1';DROP TABLE study;--",
    "a wildcard": "1.2.*",
    "an umlaut": "1.2.\xe4",
}


@pytest.mark.fault(69, 70, 71)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sop_instance_uid_is_refused(home: Home, port: int, name: str) -> None:
    uid = HOSTILE[name]
    before, refusals = everything(home), len(home.refusals())
    data = written(ct("1.2.3"), ExplicitVRLittleEndian).replace(b"1.2.3\0", uid.encode()[:6].ljust(6, b"\0"))
    with scanner(port) as sender:
        assert sender.store(data, uid) == INVALID_INSTANCE
        assert sender.echo() == SUCCESS
    assert everything(home) == before
    assert len(home.refusals()) == refusals + 1


@pytest.mark.fault(72)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_hostile_study_or_series_uid_is_refused(home: Home, port: int, keyword: str, name: str) -> None:
    uid = new_uid()
    data_set = ct(uid)
    # Written under a VR that does not check what a UID is, and renamed afterwards.
    setattr(data_set, keyword, None)
    data_set[keyword] = DataElement(data_set.data_element(keyword).tag, "LT", HOSTILE[name])  # type: ignore[union-attr]
    data = written(data_set, ExplicitVRLittleEndian)
    mark = data.index(b"LT")
    before = everything(home)
    with scanner(port) as sender:
        assert sender.store(data[:mark] + b"UI" + data[mark + 2 :], uid) == INVALID_INSTANCE
    assert everything(home) == before
    assert stored(home, uid) == []
    assert home.refusals()[-1].sop_instance_uid == uid


@pytest.mark.fault(63)
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, ""])
def test_an_object_that_belongs_to_nothing_is_refused(home: Home, port: int, keyword: str, value: str | None) -> None:
    uid = new_uid()
    with scanner(port) as sender:
        assert sender.store(written(ct(uid, **{keyword: value}), ExplicitVRLittleEndian), uid) == MISMATCH
    assert stored(home, uid) == []
    told = home.cli("explain", uid)
    assert told.returncode == 0
    assert f"instance {uid}  status A900H" in told.stdout


@pytest.mark.fault(78)
@pytest.mark.parametrize("changed", [{"StudyInstanceUID": "2.25.99"}, {"PatientID": "SECRET-ID-8"}])
def test_the_uid_of_another_study_or_patient_is_refused_with_an_alarm(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    """Fault 78: the object is set aside, the operator is told, and nobody learns who the patients are."""
    home = Home.make(tmp_path)
    uid = new_uid()
    first, second = (written(ct(uid, **each), ExplicitVRLittleEndian) for each in ({}, changed))
    with home.running("listen") as role, scanner(role.port()) as sender:
        assert [sender.store(first, uid), sender.store(second, uid)] == [SUCCESS, MISMATCH]
        assert sender.echo() == SUCCESS
    assert stored(home, uid) == [first]
    assert len(home.files()) == 1
    (aside,) = (home.store / "quarantine").iterdir()
    assert data_set_of(aside) == second
    log = role.log_text()
    assert f'"sop_instance_uid": "{uid}"' in log
    told = home.cli("explain", uid)
    assert "status A900H: the SOP Instance UID is that of an object of another" in told.stdout
    assert "identity alarms: 1 refused" in home.cli("doctor", "--no-network").stdout
    assert not [word for word in ("SECRET", "Secret") if word in log + told.stdout]


@pytest.mark.fault(74)
@pytest.mark.parametrize("wrong", ["SOPInstanceUID", "SOPClassUID"])
def test_a_data_set_that_is_not_what_the_command_says_is_refused(home: Home, port: int, wrong: str) -> None:
    uid = new_uid()
    data_set = ct(uid, **{wrong: MRImageStorage if wrong == "SOPClassUID" else new_uid()})
    with scanner(port) as sender:
        assert sender.store(written(data_set, ExplicitVRLittleEndian), uid) == MISMATCH
        assert sender.echo() == SUCCESS
    assert stored(home, uid) == []
    assert f"{wrong} of the data set" in home.refusals()[-1].reason


@pytest.mark.fault(38)
def test_a_class_named_other_than_negotiated_is_refused(home: Home, port: int) -> None:
    uid = new_uid()
    with scanner(port) as sender:
        status = sender.store(written(ct(uid), ExplicitVRLittleEndian), uid, named_class=MRImageStorage)
    assert status == CLASS_NOT_SUPPORTED
    assert stored(home, uid) == []
    assert home.refusals()[-1].status == CLASS_NOT_SUPPORTED


BROKEN = {
    "cut in the pixels": lambda data: data[:-7],
    "cut in the header of the pixels": lambda data: data[: data.index(b"\xe0\x7f\x10\x00") + 6],
    "random bytes": lambda data: secrets.token_bytes(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "a length too long": lambda data: data.replace(b"CS\x02\x00CT", b"CS\xfe\xffCT"),
}


@pytest.mark.fault(48, 49)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_a_whole_data_set_is_refused(home: Home, port: int, name: str) -> None:
    uid = new_uid()
    before = everything(home)
    with scanner(port) as sender:
        status = sender.store(BROKEN[name](written(ct(uid), ExplicitVRLittleEndian)), uid)
        assert status == CANNOT_UNDERSTAND
        assert sender.echo() == SUCCESS
    assert everything(home) == before
    assert home.refusals()[-1].sop_instance_uid == uid


@pytest.mark.fault(56)
def test_another_byte_order_than_negotiated_is_refused(port: int) -> None:
    uid = new_uid()
    with scanner(port) as sender:
        assert sender.store(written(ct(uid), ExplicitVRBigEndian), uid) == CANNOT_UNDERSTAND
        assert sender.store(written(ct(uid), ImplicitVRLittleEndian), uid) == CANNOT_UNDERSTAND


@pytest.mark.fault(52)
def test_deep_nesting_is_refused_and_the_listener_lives(port: int) -> None:
    begin = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    data = begin * 10_000 + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * 10_000
    with scanner(port) as sender:
        assert sender.store(data, new_uid()) == CANNOT_UNDERSTAND
        assert sender.echo() == SUCCESS


@pytest.mark.fault(65)
def test_a_deflate_bomb_is_refused_within_its_memory(home: Home, listener: Role, port: int) -> None:
    machine = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    zeros = bytes(2**20)
    bomb = b"".join(machine.compress(zeros) for _ in range(MAXIMUM_INFLATED_BYTES // 2**20 + 1)) + machine.flush()
    assert len(bomb) < 5_000_000
    before = peak_memory(listener)
    with scanner(port, [(CTImageStorage, DeflatedExplicitVRLittleEndian)]) as sender:
        status = sender.store(bomb, new_uid(), transfer_syntax_uid=DeflatedExplicitVRLittleEndian)
        assert status == CANNOT_UNDERSTAND
        assert sender.echo() == SUCCESS
    assert peak_memory(listener) - before < 20_000_000


@pytest.mark.fault(58)
def test_a_value_that_cannot_be_read_is_no_reason_to_refuse(home: Home, port: int) -> None:
    uid = new_uid()
    data = written(ct(uid, SpecificCharacterSet="ISO_IR 100", Rows=7), ExplicitVRLittleEndian)
    data = data.replace(b"ISO_IR 100", b"no\0such\xffOS").replace(b"US\x02\x00\x07\x00", b"FD\x02\x00\x07\x00")
    with scanner(port) as sender:
        assert sender.store(data, uid) == SUCCESS
    assert stored(home, uid) == [data]
    (row,) = (row for row in home.instances() if row.sop_instance_uid == uid)
    assert row.header["Rows"] == []


# --- circumstances ------------------------------------------------------------------------------------------------


def test_a_full_store_takes_no_association(tmp_path: Path) -> None:
    """Nobody sends a study to be refused object by object; what fills up meanwhile is in test_storage_faults."""
    home = Home.make(tmp_path, minimum_free_bytes=2**60)
    with home.running("listen") as role:
        with pytest.raises(AssertionError), scanner(role.port()):
            pass
        assert "the store can take nothing now" in role.log_text()
    assert home.instances() == []
    assert home.files() == {}


@pytest.mark.fault(72)
def test_nothing_from_the_wire_is_in_a_path(home: Home, port: int) -> None:
    uid = new_uid()
    with scanner(port) as sender:
        assert sender.store(written(ct(uid, PatientID="WIRE/../TEXT"), ExplicitVRLittleEndian), uid) == SUCCESS
    paths = [str(path.relative_to(home.store)) for path in (home.store / "instances").rglob("*")]
    wire = {uid, "2.25.1", "2.25.2", "WIRE", "SECRET", "SCANNER", CTImageStorage}
    assert paths
    assert not [path for path in paths if any(word in path for word in wire)]


def test_logs_name_no_patient_and_every_line_is_one_event(listener: Role, port: int) -> None:
    uid = new_uid()
    with scanner(port, calling="<b>%n{x}</b>") as sender:
        sender.store(b"garbage", uid)
    text = listener.log_text()
    (refused,) = (each for each in map(json.loads, text.splitlines()) if each.get("sop_instance_uid") == uid)
    assert (refused["event"], refused["calling_ae_title"]) == ("refused an object", "<b>%n{x}</b>")
    assert not [word for word in ("Secret", "Person", "SECRET-ID-7") if word in text]
    assert all(line.startswith("{") and line.isprintable() for line in text.splitlines())


def test_only_those_who_may_call_are_accepted(tmp_path: Path) -> None:
    home = Home.make(tmp_path)
    home.config.write_text(
        home.config.read_text().replace("port = 0", 'port = 0\naccept = "listed"\n[[peers]]\nae_title = "CT1"')
    )
    with home.running("listen") as role:
        port = role.port()
        with scanner(port, calling="CT1") as sender:
            assert sender.echo() == SUCCESS
        for called, calling in (("OTHER", "CT1"), ("MEDDAEMON", "CT2")):
            with pytest.raises(AssertionError), scanner(port, called=called, calling=calling):
                pass


def test_a_listener_without_a_schema_says_what_to_do(tmp_path: Path) -> None:
    config = tmp_path / "meddaemon.toml"
    config.write_text('[store]\ndirectory = "store"\n[listener]\nport = 0\n')
    ended = run_cli("listen", "--config", config)
    assert ended.returncode == 1
    assert "`meddaemon db upgrade` makes it" in ended.stderr


@pytest.mark.fault(31)
def test_a_port_that_is_taken_ends_the_listener_with_a_line(tmp_path: Path, port: int) -> None:
    home = Home.make(tmp_path)
    home.config.write_text(home.config.read_text().replace("port = 0", f"port = {port}"))
    ended = home.cli("listen")
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
