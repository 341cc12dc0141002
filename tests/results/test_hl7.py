"""Whoever is told by HL7 hears the numbers of the report, of the right patient, once; and what is answered decides."""

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian
from queue_samples import BRAIN, analysis, claim, enqueue, received, register
from sqlalchemy import update

from meddaemon.db import jobs, notices, results, tables
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.db.notices import Available, Notice
from meddaemon.db.reported import ReportedFinding, ReportedResult
from meddaemon.db.results import StoredObject
from meddaemon.domain.codes import ATTENUATION, HOUNSFIELD_UNIT, MILLILITRE, STANDARD_DEVIATION, VOLUME, Code
from meddaemon.domain.notices import NoticeForm, Target
from meddaemon.domain.outlet import Outlet
from meddaemon.domain.result import Analysis, EncodedObject, Location, Measurement, ResultStatus
from meddaemon.domain.states import DeliveryState
from meddaemon.ingest.store import as_part10
from meddaemon.results.delivery import Retry
from meddaemon.results.notices import hl7
from meddaemon.results.notices.header import Header, Issuer
from meddaemon.results.notices.hl7 import ANSWER_BYTES, Interface
from meddaemon.results.notices.outbox import announce
from tests.ingest.encoded import written

RETRY = Retry(first_seconds=100, longest_seconds=250, lease_seconds=60, maximum_tries=2)
TARGET = Target(form=NoticeForm.HL7, target="ris")


@pytest.fixture
def dialect() -> str:
    """The outbox of notices has its own tests, on both; here one database will do."""
    return "sqlite"


def source(**changes: str) -> Dataset:
    """What an object of a result says of patient and study."""
    data_set = Dataset()
    data_set.SpecificCharacterSet = "ISO_IR 192"
    data_set.SOPClassUID, data_set.SOPInstanceUID = BasicTextSRStorage, "1.2.9.1"
    data_set.StudyInstanceUID, data_set.SeriesInstanceUID = "1.2.3", "1.2.9"
    data_set.Modality = "SR"
    data_set.PatientID, data_set.IssuerOfPatientID = "47|11^&~", "CLINIC"
    data_set.PatientName = "Müller^Jörg^M^Dr.^III=山田^太郎"
    data_set.PatientBirthDate, data_set.PatientSex = "19700102", "M"
    data_set.AccessionNumber = "ACC1"
    data_set.SeriesDate, data_set.SeriesTime, data_set.TimezoneOffsetFromUTC = "20260101", "101112.123456", "+0100"
    for keyword, value in changes.items():
        setattr(data_set, keyword, value)
    return data_set


def post(database: Database, folder: Path, header: Dataset | None = None, said: Analysis | None = None) -> None:
    """Store a result of one report that is done at `pacs`."""
    study = register(database, received("an instance")).study_id
    enqueue(database, study)
    job = claim(database)
    names = {
        "sop_class_uid": str(BasicTextSRStorage),
        "sop_instance_uid": "1.2.9.1",
        "transfer_syntax_uid": str(ExplicitVRLittleEndian),
    }
    content = as_part10(written(header or source(), ExplicitVRLittleEndian), **names)
    stored = StoredObject.of(EncodedObject(kind="SR", series_instance_uid="1.2.9", content=content, **names))
    path_of(folder, stored.sha256).parent.mkdir(parents=True)
    path_of(folder, stored.sha256).write_bytes(content)
    with database.write() as connection:
        results.record(
            connection,
            jobs.complete(connection, job),
            said or analysis(1400.25),
            [stored],
            model_version="1",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets={"pacs": Outlet(kinds=("SR",), statuses=tuple(ResultStatus))},
        )
        delivery = tables.delivery
        connection.execute(
            update(delivery).values(
                state=DeliveryState.SENT, sent_at=delivery.c.created_at, done_at=delivery.c.created_at
            )
        )


def acknowledged(code: str, *, more: str = "", about: str = "") -> Callable[[Any], bytes]:
    """Return what answers a message."""

    def answer(heard: Any) -> bytes:
        head = "MSH|^~\\&|RIS||MEDDAEMON||20260101||ACK^R01^ACK|1|P|2.5.1\r"
        return b"\x0b" + f"{head}MSA|{code}|{about or heard.msh.msh_10.value}{more}\r".encode() + b"\x1c\r"

    return answer


@dataclass
class Ris:
    """Who is told by MLLP: keeps the frames, which it reads strictly; it says what `answer` returns, byte by byte."""

    answer: Callable[[Any], bytes] = field(default_factory=lambda: acknowledged("AA"))
    drip: bool = False
    context: ssl.SSLContext | None = None
    frames: list[bytes] = field(default_factory=list)

    @property
    def heard(self) -> list[Any]:
        return [read(frame) for frame in self.frames]

    @contextmanager
    def listening(self) -> Iterator[Interface]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            stop = threading.Event()
            thread = threading.Thread(target=self._serve, args=(server, stop))
            thread.start()
            try:
                yield Interface(
                    host="127.0.0.1",
                    port=server.getsockname()[1],
                    sender=("MEDDAEMON", "SITE"),
                    receiver=("RIS", ""),
                    connection_timeout_seconds=10,
                    response_timeout_seconds=20,
                )
            finally:
                stop.set()
                with suppress(OSError):
                    socket.create_connection(server.getsockname()).close()
                thread.join()

    def _serve(self, server: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            plain, _ = server.accept()
            with suppress(OSError):
                connection = self.context.wrap_socket(plain, server_side=True) if self.context else plain
                with connection:
                    self._serve_one(connection, stop)

    def _serve_one(self, connection: socket.socket, stop: threading.Event) -> None:
        frame = b""
        while not frame.endswith(b"\x1c\r"):
            piece = connection.recv(65536)
            if not piece:
                return
            frame += piece
        self.frames.append(frame)
        answer = self.answer(read(frame))
        if not self.drip:
            connection.sendall(answer)
            return
        while not stop.wait(0.02):
            connection.sendall(answer)


def read(frame: bytes) -> Any:
    assert (frame[:1], frame[-2:]) == (b"\x0b", b"\x1c\r")
    message = parse_message(frame[1:-2].decode(), validation_level=VALIDATION_LEVEL.STRICT)
    message.validate()
    return message


def plain(escaped: str) -> str:
    """Return text without the escapes of HL7 v2.5.1 section 2.7."""
    return re.sub(
        r"\\([FSTRE])\\", lambda found: {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\"}[found[1]], escaped
    )


def say(database: Database, folder: Path, to: Interface, retry: Retry = RETRY) -> bool:
    tell = partial(hl7.tell, {"ris": to}, database, folder, frozenset())
    return announce(database, "pacs", NoticeForm.HL7, [TARGET], tell, retry)


def only(database: Database) -> notices.NoticeRow:
    with database.read() as connection:
        (row,) = notices.listing(connection)
    return row


def observations(message: Any) -> list[Any]:
    order = message.oru_r01_patient_result.oru_r01_order_observation
    return [each.obx for each in order.oru_r01_observation]


def test_the_numbers_of_the_report_and_the_right_patient(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path)
    ris = Ris()
    with ris.listening() as to:
        assert say(database, tmp_path, to)
        assert not say(database, tmp_path, to)
    (heard,) = ris.heard
    assert only(database).state is DeliveryState.SENT
    assert [heard.msh.msh_3.value, heard.msh.msh_4.value, heard.msh.msh_5.value] == ["MEDDAEMON", "SITE", "RIS"]
    assert (heard.msh.msh_9.value, heard.msh.msh_18.value) == ("ORU^R01^ORU_R01", "UNICODE UTF-8")
    pid = heard.oru_r01_patient_result.oru_r01_patient.pid
    assert plain(pid.pid_3.pid_3_1.to_er7()) == "47|11^&~"
    assert pid.pid_3.pid_3_4.to_er7() == "CLINIC"
    assert [each.to_er7() for each in pid.pid_5] == ["Müller^Jörg^M^III^Dr.^^L^A", "山田^太郎^^^^^L^I"]
    assert (pid.pid_7.value, pid.pid_8.value) == ("19700102", "M")
    obr = heard.oru_r01_patient_result.oru_r01_order_observation.obr
    assert (obr.obr_3.value, obr.obr_18.value, obr.obr_25.value) == ("ACC1", "ACC1", "P")
    assert obr.obr_7.value == "20260101101112.1234+0100"
    seen = [(each.obx_3.to_er7(), each.obx_2.value, each.obx_5.to_er7()) for each in observations(heard)]
    assert seen == [
        ("110180^Study Instance UID^DCM", "HD", "^1.2.3^ISO"),
        ("SOP_INSTANCE^SOP Instance UID^99MEDDAEMON", "HD", "^1.2.9.1^ISO"),
        ("RESULT_STATUS^Status of the result^99MEDDAEMON", "CWE", "plausible^Plausible^99MEDDAEMON"),
        ("12738006^Brain^SCT", "CWE", "52101004^Present^SCT^^^^^^Brain"),
        ("118565006^Volume^SCT", "NM", "1400.25"),
    ]
    with database.read() as connection:
        (row,) = results.query(connection)
    volume = observations(heard)[-1]
    assert float(volume.obx_5.value) == row.value
    assert volume.obx_6.to_er7() == "mL^Milliliter^UCUM"


def silent(_: Any) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("answer", "states", "reason"),
    [
        (acknowledged("AA"), "sent", ""),
        (acknowledged("CA"), "sent", ""),
        (acknowledged("AE", more="\rERR||PID^1^3|204^Unknown key identifier"), "retryable held", "AE, error 204"),
        (acknowledged("CE"), "retryable held", "answered CE"),
        (acknowledged("AR", more="|nobody is called\x1b[31m Müller"), "held", "answered AR: nobody is called[31m"),
        (acknowledged("CR"), "held", "answered CR"),
        (acknowledged("AA", about="OTHER"), "retryable held", "AA for another message"),
        (lambda _: b"\x0bMSH|^~\\&\rMSA\r\x1c\r", "retryable held", "the answer is no acknowledgement"),
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", "retryable retryable", "sent something else"),
        (silent, "retryable retryable", "it hung up"),
        (lambda _: b"\x0b" + b"A" * (ANSWER_BYTES + 1), "retryable retryable", "sent something else"),
    ],
)
def test_the_acknowledgement_decides(
    database: Database,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    answer: Callable[[Any], bytes],
    states: str,
    reason: str,
) -> None:
    post(database, tmp_path)
    ris = Ris(answer)
    seen = []
    with ris.listening() as to:
        for _ in states.split():
            assert say(database, tmp_path, to)
            seen.append(only(database).state.value)
            assert reason in only(database).reason
            with database.write() as connection:
                connection.execute(update(tables.notice).values(available_at=0.0))
        assert seen == states.split()
    # Told again, it is the same message.
    assert len(set(ris.frames)) == 1
    said = "".join(capfd.readouterr())
    assert not re.search("Müller|47.11|nobody is called", said)


@pytest.mark.parametrize("drip", [False, True])
def test_who_never_ends_an_answer_is_not_waited_for(database: Database, tmp_path: Path, drip: bool) -> None:
    post(database, tmp_path)
    # Without `drip` nothing accepts: the connection waits in the queue of the listening socket.
    ris = Ris(answer=lambda _: b"\x0bMSH", drip=True)
    if drip:
        with ris.listening() as to:
            say(database, tmp_path, replace(to, response_timeout_seconds=0.5))
    else:
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            port = deaf.getsockname()[1]
            say(database, tmp_path, Interface(host="127.0.0.1", port=port, response_timeout_seconds=0.3))
    assert (only(database).state, only(database).reason) == (DeliveryState.RETRYABLE, "no acknowledgement in time")


def test_killed_after_it_was_heard_it_is_told_again_as_the_same_message(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path)
    ris = Ris()
    with ris.listening() as to:
        with database.write() as connection:
            notices.post(connection, "pacs", [TARGET])
            notice = notices.claim(connection, "pacs", NoticeForm.HL7, lease_seconds=-1)
        assert notice is not None
        hl7.tell({"ris": to}, database, tmp_path, frozenset(), notice)
        assert say(database, tmp_path, to)
    first, second = ris.frames
    assert first == second
    assert only(database).state is DeliveryState.SENT


def test_who_is_away_or_gone(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path)
    with Ris().listening() as to:
        pass
    assert say(database, tmp_path, to)
    assert (only(database).state, "cannot be reached" in only(database).reason) == (DeliveryState.RETRYABLE, True)
    with database.write() as connection:
        notices.requeue(connection, only(database).id)
    tell = partial(hl7.tell, {}, database, tmp_path, frozenset())
    announce(database, "pacs", NoticeForm.HL7, [TARGET], tell, RETRY)
    assert (only(database).state, only(database).reason) == (
        DeliveryState.HELD,
        "who was to be told is not configured any more",
    )


def test_by_tls_only_who_is_vouched_for(database: Database, tmp_path: Path) -> None:
    post(database, tmp_path / "results")
    authority, other = Authority.make(tmp_path / "ca"), Authority.make(tmp_path / "other", "other")
    identity = authority.issue("ris")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate, identity.key)
    ris = Ris(context=context)
    with ris.listening() as to:
        say(database, tmp_path / "results", replace(to, tls=True, trusted=other.file))
        assert (only(database).state, ris.frames) == (DeliveryState.RETRYABLE, [])
        with database.write() as connection:
            notices.requeue(connection, only(database).id)
        say(database, tmp_path / "results", replace(to, tls=True, trusted=authority.file))
    assert (only(database).state, len(ris.frames)) == (DeliveryState.SENT, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"PatientID": ""}, "the study has no Patient ID: a message could not say whose it is"),
        ({"PatientID": "47\n11"}, "cannot be written as HL7: Patient ID has a control character in it"),
        ({"PatientName": "A\tB"}, "cannot be written as HL7: Patient's Name has a control character in it"),
    ],
)
def test_who_cannot_be_named_is_told_by_nobody(
    database: Database, tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    post(database, tmp_path, source(**changes))
    with Ris().listening() as to:
        say(database, tmp_path, to)
    assert (only(database).state, only(database).reason) == (DeliveryState.HELD, reason)


@pytest.mark.parametrize(
    ("charset", "name", "family"),
    [
        ("ISO_IR 100", "Ångström^Åsa", "Ångström"),
        ("ISO_IR 144", "Люкceмбypг", "Люкceмбypг"),
        ("ISO_IR 126", "Διονυσιος", "Διονυσιος"),
        ("GB18030", "Wang^XiaoDong=王^小东", "Wang"),
    ],
)
def test_every_character_set(database: Database, tmp_path: Path, charset: str, name: str, family: str) -> None:
    post(database, tmp_path, source(SpecificCharacterSet=charset, PatientName=name))
    ris = Ris()
    with ris.listening() as to:
        say(database, tmp_path, to)
    assert ris.heard[0].oru_r01_patient_result.oru_r01_patient.pid.pid_5[0].pid_5_1.to_er7() == family


# --- what a message says of a result ----------------------------------------------------------------------------------

HEADER = Header(
    patient_id="4711",
    issuer=Issuer(),
    names=(("Doe", "Jane", "", "", ""),),
    birth_date="",
    sex="",
    accession_number="",
    accession_issuer=Issuer(),
    study_instance_uid="1.2.3",
    study_description="",
    procedure=None,
    date="",
    time="000000",
    offset="",
    placer_order="",
    filler_order="",
)
NOTICE = Notice(
    id=1,
    result_id=1,
    target="ris",
    study_instance_uid="1.2.3",
    objects=(
        Available(
            kind="SR",
            sop_class_uid=str(BasicTextSRStorage),
            sop_instance_uid="1.2.9.1",
            series_instance_uid="1.2.9",
            sha256="0" * 64,
            size=1,
        ),
    ),
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    attempt=1,
    fence=1,
)


def told(
    *findings: ReportedFinding,
    status: ResultStatus = ResultStatus.PLAUSIBLE,
    reason: str = "",
    detects: bool = False,
    header: Header = HEADER,
) -> Any:
    result = ReportedResult(
        model="m", model_version="1", status=status, reason=reason, created_at=NOTICE.created_at, findings=findings
    )
    text = hl7.message(Interface(host="ris", port=1), NOTICE, header, result, detects=detects)
    return read(b"\x0b" + text.encode() + b"\x1c\r")


def finding(*measurements: Measurement, present: bool = True) -> ReportedFinding:
    return ReportedFinding(code=BRAIN, label="", present=present, measurements=measurements)


def values(message: Any) -> list[tuple[str, str, str]]:
    return [(each.obx_3.to_er7(), each.obx_5.to_er7(), each.obx_11.value) for each in observations(message)][3:]


VOLUME_OF_NOTHING = Measurement(name=VOLUME, value=None, unit=MILLILITRE)


@pytest.mark.parametrize(
    ("present", "status", "detects", "said"),
    [
        (True, ResultStatus.PLAUSIBLE, False, "Present"),
        (False, ResultStatus.PLAUSIBLE, False, "Undetermined"),
        (False, ResultStatus.PLAUSIBLE, True, "Absent"),
        (True, ResultStatus.NOT_EVALUABLE, False, "Undetermined"),
    ],
)
def test_whether_it_is_there(present: bool, status: ResultStatus, detects: bool, said: str) -> None:
    message = told(finding(VOLUME_OF_NOTHING, present=present), status=status, reason="why", detects=detects)
    presence, number = values(message)
    assert presence[1].split("^")[1] == said
    # What was not measured is no number.
    assert number == ("118565006^Volume^SCT", "", "X")


LEFT = Code(value="7771000", scheme="SCT", meaning="Left")
KIDNEY = Code(value="64033007", scheme="SCT", meaning="Kidney")
BOXED = ReportedFinding(
    code=BRAIN,
    label="",
    present=True,
    measurements=(),
    site=KIDNEY,
    laterality=LEFT,
    place=Location(
        low=(0.5, 1.5, -4.0),
        high=(3.5, 6.5, 8.5),
        sop_instance_uid="1.2.3.4",
        frame_number=2,
        centre_lps=(-12.5, 3.25, 100.125),
    ),
    low=(2.0, 0.0),
    high=(7.0, 9.0),
)


def test_where_a_finding_is_and_on_which_side() -> None:
    message = told(BOXED)
    assert [(each.obx_4.value, each.obx_2.value) for each in observations(message)[3:]] == [
        ("1", kind) for kind in ("CWE", "CWE", "CWE", "HD", "NM", "SN", "SN", "NM", "NM", "NM")
    ]
    seen = [(each.obx_3.to_er7(), each.obx_5.to_er7(), each.obx_6.obx_6_1.value) for each in observations(message)[4:]]
    assert seen == [
        ("363698007^Finding Site^SCT", "64033007^Kidney^SCT", ""),
        ("272741003^Laterality^SCT", "7771000^Left^SCT", ""),
        ("121112^Source of Measurement^DCM", "^1.2.3.4^ISO", ""),
        ("FRAME^Frame of that image^99MEDDAEMON", "2", ""),
        ("COLUMNS^Columns on that image, from its left edge^99MEDDAEMON", "^0.0^-^9.0", "{pixels}"),
        ("ROWS^Rows on that image, from its top edge^99MEDDAEMON", "^2.0^-^7.0", "{pixels}"),
        ("CENTRE_L^Centre in the patient, towards left^99MEDDAEMON", "-12.5", "mm"),
        ("CENTRE_P^Centre in the patient, towards posterior^99MEDDAEMON", "3.25", "mm"),
        ("CENTRE_S^Centre in the patient, towards superior^99MEDDAEMON", "100.125", "mm"),
    ]


def test_a_doubt_stands_beside_every_number() -> None:
    volume = Measurement(name=VOLUME, value=9000.0, unit=MILLILITRE)
    message = told(finding(volume), status=ResultStatus.IMPLAUSIBLE, reason="9000 mL > 2500 mL | & more")
    order = message.oru_r01_patient_result.oru_r01_order_observation
    notes = [plain(each.nte.nte_3.to_er7()) for each in list(order.oru_r01_observation)[2:]]
    assert notes == ["Implausible: 9000 mL > 2500 mL | & more"] * 3
    assert observations(message)[2].obx_5.to_er7() == "implausible^Implausible^99MEDDAEMON"


def test_a_spread_is_not_taken_for_the_number() -> None:
    spread = Measurement(name=ATTENUATION, value=12.5, unit=HOUNSFIELD_UNIT, derivation=STANDARD_DEVIATION)
    message = told(finding(spread))
    (_, number) = values(message)
    assert number[:2] == ("112031-386136009^Attenuation Coefficient, Standard Deviation^99MEDDAEMON", "12.5")
    assert observations(message)[-1].obx_17.to_er7() == "386136009^Standard Deviation^SCT"
    assert observations(message)[-1].obx_6.to_er7() == "[hnsf'U]^Hounsfield unit^UCUM"


def test_what_nothing_is_known_of_is_left_out() -> None:
    message = told(header=replace(HEADER, names=(("", "", "", "", ""),)))
    obr = message.oru_r01_patient_result.oru_r01_order_observation.obr
    assert obr.obr_4.to_er7() == "18748-4^Diagnostic imaging study^LN"
    assert (obr.obr_3.to_er7(), obr.obr_7.to_er7(), obr.obr_18.to_er7()) == ("", "", "")
    assert message.oru_r01_patient_result.oru_r01_patient.pid.pid_5.to_er7() == "^^^^^^U"


# What is smaller than any measurement is too long for NM, and held.
@settings(max_examples=25, deadline=None)
@given(
    number=st.one_of(st.just(0.0), *(st.floats(min(s * 1e-30, s * 1e12), max(s * 1e-30, s * 1e12)) for s in (-1, 1)))
)
def test_a_number_is_told_as_it_is_reported_and_without_an_exponent(number: float) -> None:
    (_, (_, text, _)) = values(told(finding(Measurement(name=VOLUME, value=number, unit=MILLILITRE))))
    assert float(text) == float(f"{number:.6g}")
    assert re.fullmatch(r"-?\d+(\.\d+)?", text)


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(
        st.one_of(st.sampled_from("\\|^&~EFSTR."), st.characters(exclude_categories=("Cs", "Cc"))),
        min_size=1,
        max_size=24,
    ).filter(str.strip)  # of spaces alone nothing is left when a header is read: a study that does not say whose it is
)
def test_every_patient_id_comes_back_as_it_was(text: str) -> None:
    message = told(header=replace(HEADER, patient_id=text))
    assert plain(message.oru_r01_patient_result.oru_r01_patient.pid.pid_3.pid_3_1.to_er7()) == text
