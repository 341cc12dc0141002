"""A result as HL7 v2.5.1 ORU^R01 (chapter 7), told by the Minimal Lower Layer Protocol, and acknowledged.

The same notice is the same message, byte by byte, under the same Message Control ID: who hears it twice can tell.
"""

import re
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from socket import socket
from typing import Any

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.exceptions import HL7apyException

from meddaemon.db.engine import Database
from meddaemon.db.notices import Notice
from meddaemon.db.reported import ReportedFinding, ReportedResult
from meddaemon.domain.codes import Code
from meddaemon.domain.result import Measurement, reported
from meddaemon.domain.uids import digest_of
from meddaemon.results.notices.content import (
    ANY_PROCEDURE,
    FRAME,
    IMAGE,
    LATERALITY,
    MARK,
    SITE,
    STATUSES,
    doubt_of,
    extents_of,
    name_of,
    presence_of,
    subject_of,
)
from meddaemon.results.notices.header import Header, Issuer, NotWritable, on_one_line, verbatim
from meddaemon.results.notices.outbox import Reply
from meddaemon.results.transport import Verdict, printable
from meddaemon.tls import Identity, TlsUnusable, client_context, connected, why_not

ANSWER_BYTES = 2**16
"""More of an acknowledgement is not read."""
MESSAGE_BYTES = 2**22
"""A longer message is not sent."""
_BEGIN, _END = b"\x0b", b"\x1c\x0d"
_ESCAPES = str.maketrans({"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"})
"""Of HL7 v2.5.1 section 2.7; hl7apy leaves them as they are, and takes what looks like one for one."""
_PRELIMINARY, _NOT_OBTAINED = "P", "X"
"""Observation Result Status (HL7 table 0085)."""

STUDY_UID = Code(value="110180", scheme="DCM", meaning="Study Instance UID")
INSTANCE_UID = Code(value="SOP_INSTANCE", scheme="99MEDDAEMON", meaning="SOP Instance UID")
STATUS = Code(value="RESULT_STATUS", scheme="99MEDDAEMON", meaning="Status of the result")


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Who is told by MLLP: `sender` and `receiver` are application and facility as MSH has them.

    With `tls` the host name is checked against its certificate, for which one in `trusted` vouches (default: the
    system's authorities); `identity` is who we are.
    """

    host: str
    port: int
    sender: tuple[str, str] = ("", "")
    receiver: tuple[str, str] = ("", "")
    tls: bool = False
    trusted: Path | None = None
    identity: Identity | None = None
    connection_timeout_seconds: float = 10.0
    response_timeout_seconds: float = 60.0


def tell(
    interfaces: dict[str, Interface], database: Database, results: Path, detects: Collection[str], notice: Notice
) -> Reply:
    """Tell one of `interfaces`, by the target of the notice; return what its acknowledgement means (`subject_of`)."""
    subject = subject_of(interfaces, database, results, detects, notice)
    if isinstance(subject, Reply):
        return subject
    try:
        written = message(subject.way, notice, subject.header, subject.result, detects=subject.detects)
    except NotWritable as failure:
        return Reply(verdict=Verdict.HOLD, reason=f"cannot be written as HL7: {failure}")
    except HL7apyException as failure:
        return Reply(verdict=Verdict.HOLD, reason=f"cannot be written as HL7: {type(failure).__name__}")
    return send(subject.way, written.encode(), control_id(notice))


def control_id(notice: Notice) -> str:
    """Return the Message Control ID: the same for the same objects told to the same one (20 characters, MSH-10)."""
    return digest_of("HL7", notice.target, *(each.sop_instance_uid for each in notice.objects))[:20].upper()


# --- the message ------------------------------------------------------------------------------------------------------


def message(interface: Interface, notice: Notice, header: Header, result: ReportedResult, *, detects: bool) -> str:
    """Return the message, valid by the structure ORU_R01, its segments ended by CR.

    Raises NotWritable, HL7apyException.
    """
    told = Message("ORU_R01", version="2.5.1", validation_level=VALIDATION_LEVEL.STRICT)
    msh = told.msh
    msh.msh_3, msh.msh_4 = map(_said, interface.sender)
    msh.msh_5, msh.msh_6 = map(_said, interface.receiver)
    msh.msh_7 = _timestamp(notice.created_at)
    msh.msh_9 = "ORU^R01^ORU_R01"
    msh.msh_10 = control_id(notice)
    msh.msh_11, msh.msh_12, msh.msh_18 = "P", "2.5.1", "UNICODE UTF-8"
    about = told.add_group("ORU_R01_PATIENT_RESULT")
    _write_patient(about.add_group("ORU_R01_PATIENT").add_segment("PID"), header)
    order = about.add_group("ORU_R01_ORDER_OBSERVATION")
    _write_request(order.add_segment("OBR"), header, result)
    _write_note(order, MARK)
    for ordinal, observed in enumerate(_observations(notice, header, result, detects=detects), 1):
        _write_observation(order.add_group("ORU_R01_OBSERVATION"), ordinal, observed, result)
    told.validate()
    return str(told.to_er7()).rstrip("\r") + "\r"


@dataclass(frozen=True, kw_only=True)
class _Observed:
    """What one OBX says; `value` is written already, `note` what must be read with it."""

    name: Code
    value_type: str = ""
    value: str = ""
    group: str = ""
    unit: str = ""
    status: str = _PRELIMINARY
    method: str = ""
    note: str = ""


def _observations(notice: Notice, header: Header, result: ReportedResult, *, detects: bool) -> Iterator[_Observed]:
    yield _Observed(name=STUDY_UID, value_type="HD", value=_hd(Issuer(universal_id=header.study_instance_uid)))
    for ordinal, each in enumerate(notice.objects, 1):
        value = _hd(Issuer(universal_id=each.sop_instance_uid))
        yield _Observed(name=INSTANCE_UID, value_type="HD", value=value, group=f"{each.kind}.{ordinal}")
    doubt = doubt_of(result)
    status = Code(value=result.status.value, scheme=STATUS.scheme, meaning=STATUSES[result.status])
    yield _Observed(name=STATUS, value_type="CWE", value=_coded(status), note=doubt)
    for ordinal, finding in enumerate(result.findings, 1):
        presence = presence_of(finding, result.status, detects=detects)
        value = _coded(presence) + (f"^^^^^^{_said(finding.label)}" if finding.label else "")
        yield _Observed(name=finding.code, value_type="CWE", value=value, group=str(ordinal), note=doubt)
        yield from _places(finding, str(ordinal), doubt)
        for measurement in finding.measurements:
            yield _measured(measurement, str(ordinal), doubt)


def _places(finding: ReportedFinding, group: str, note: str) -> Iterator[_Observed]:
    """Yield where a finding is, in the group of what is said of it."""
    for name, code in ((SITE, finding.site), (LATERALITY, finding.laterality)):
        if code is not None:
            yield _Observed(name=name, value_type="CWE", value=_coded(code), group=group, note=note)
    if finding.place is None:
        return
    image, frame = _hd(Issuer(universal_id=finding.place.sop_instance_uid)), str(finding.place.frame_number)
    yield _Observed(name=IMAGE, value_type="HD", value=image, group=group, note=note)
    yield _Observed(name=FRAME, value_type="NM", value=frame, group=group, note=note)
    for extent in extents_of(finding):
        low, high, unit = _number(extent.low), _number(extent.high), _coded(extent.unit)
        # A structured number may be a range (HL7 v2.5.1 section 2.A.70).
        kind, value = ("NM", low) if low == high else ("SN", f"^{low}^-^{high}")
        yield _Observed(name=extent.name, value_type=kind, value=value, unit=unit, group=group, note=note)


def _number(value: float) -> str:
    """Return a number without an exponent."""
    return f"{Decimal(repr(value)):f}"


def _measured(measurement: Measurement, group: str, note: str) -> _Observed:
    derivation, value = measurement.derivation, measurement.value
    return _Observed(
        name=name_of(measurement),
        value_type="" if value is None else "NM",
        value="" if value is None else _number(reported(value)),
        unit=_coded(measurement.unit),
        group=group,
        status=_NOT_OBTAINED if value is None else _PRELIMINARY,
        method="" if derivation is None else _coded(derivation),
        note=note,
    )


def _write_observation(group: Any, ordinal: int, observed: _Observed, result: ReportedResult) -> None:
    obx = group.add_segment("OBX")
    obx.obx_1 = str(ordinal)
    for field, value in (
        ("obx_2", observed.value_type),
        ("obx_3", _coded(observed.name)),
        ("obx_4", _said(observed.group)),
        ("obx_5", observed.value),
        ("obx_6", observed.unit),
        ("obx_11", observed.status),
        ("obx_17", observed.method),
        ("obx_18", f"{_said(f'{result.model} {result.model_version}')}^MEDDAEMON"),
    ):
        if value:
            setattr(obx, field, value)
    if observed.note:
        _write_note(group, observed.note)


def _write_patient(pid: Any, header: Header) -> None:
    pid.pid_1 = "1"
    issuer = header.issuer
    authority = "&".join(
        (
            _identifying("issuer of the Patient ID", issuer.name),
            _identifying("issuer of the Patient ID", issuer.universal_id),
            _identifying("issuer of the Patient ID", issuer.universal_type),
        )
    ).rstrip("&")
    pid.pid_3 = f"{_identifying('Patient ID', header.patient_id)}^^^{authority}".rstrip("^")
    # Name Type Code (HL7 table 0200): legal name, or unspecified where there is none.
    names = [_name(group, kind) for group, kind in zip(header.names, ("A", "I", "P"), strict=False) if any(group)] or [
        "^^^^^^U"
    ]
    for name in names:
        pid.add_field("pid_5").value = name
    if re.fullmatch(r"\d{8}", header.birth_date):
        pid.pid_7 = header.birth_date
    if header.sex in {"M", "F", "O"}:
        pid.pid_8 = header.sex


def _name(group: tuple[str, str, str, str, str], representation: str) -> str:
    """Return a name as XPN, which has the suffix before the prefix."""
    family, given, middle, prefix, suffix = (_identifying("Patient's Name", each) for each in group)
    return f"{family}^{given}^{middle}^{suffix}^{prefix}^^L^{representation}"


def _write_request(obr: Any, header: Header, result: ReportedResult) -> None:
    accession = _identifying("Accession Number", header.accession_number)
    filler = _identifying("Filler Order Number", header.filler_order)
    issuer = _hd(header.accession_issuer, "^") if accession else ""
    time = header.time[: len("HHMMSS.FFFF")]
    observed_at = "" if not header.date else f"{header.date}{time}{header.offset if time else ''}"
    for field, value in (
        ("obr_1", "1"),
        ("obr_2", _identifying("Placer Order Number", header.placer_order)),
        ("obr_3", filler or f"{accession}^{issuer}".rstrip("^")),
        ("obr_4", _procedure(header)),
        ("obr_7", observed_at),
        ("obr_18", accession),
        ("obr_22", _timestamp(result.created_at)),
        ("obr_25", _PRELIMINARY),
    ):
        if value:
            setattr(obr, field, value)


def _procedure(header: Header) -> str:
    if header.procedure is not None:
        return _coded(header.procedure)
    described = _said(header.study_description)
    return f"{_coded(ANY_PROCEDURE)}^^{described}" if described else _coded(ANY_PROCEDURE)


def _write_note(group: Any, text: str) -> None:
    nte = group.add_segment("NTE")
    nte.nte_1, nte.nte_2, nte.nte_3 = "1", "L", _said(text)


def _coded(code: Code) -> str:
    return "^".join((_said(code.value), _said(code.meaning), _said(code.scheme)))


def _hd(issuer: Issuer, separator: str = "^") -> str:
    kind = issuer.universal_type or ("ISO" if issuer.universal_id else "")
    return separator.join(map(_said, (issuer.name, issuer.universal_id, kind))).rstrip(separator)


def _identifying(field: str, text: str) -> str:
    """Return text that identifies somebody, escaped. Raises NotWritable where it cannot be written as it is."""
    return verbatim(field, text).translate(_ESCAPES)


def _said(text: str) -> str:
    """Return text that describes something, on one line, escaped."""
    return on_one_line(text).translate(_ESCAPES)


def _timestamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y%m%d%H%M%S+0000")


# --- the way ----------------------------------------------------------------------------------------------------------


def send(interface: Interface, content: bytes, identifier: str) -> Reply:
    """Send a message and return what its acknowledgement means; all of it within the time that an answer may take."""
    if len(content) > MESSAGE_BYTES:
        return Reply(verdict=Verdict.HOLD, reason=f"a message of {len(content)} bytes is too long")
    try:
        context = client_context(interface.identity, interface.trusted, check_name=True) if interface.tls else None
        seconds = interface.connection_timeout_seconds
        with closing(connected(interface.host, interface.port, seconds, context)) as connection:
            until = time.monotonic() + interface.response_timeout_seconds
            connection.settimeout(interface.response_timeout_seconds)
            connection.sendall(_BEGIN + content + _END)
            answer = _answer(connection, until)
    except TimeoutError:
        return Reply(verdict=Verdict.TRY_AGAIN, reason="no acknowledgement in time")
    except TlsUnusable as failure:
        return Reply(verdict=Verdict.TRY_AGAIN, reason=str(failure))
    except OSError as failure:
        return Reply(verdict=Verdict.TRY_AGAIN, reason=f"cannot be reached: {why_not(failure)}")
    if answer is None:
        return Reply(verdict=Verdict.TRY_AGAIN, reason="no acknowledgement: it hung up, or sent something else")
    return judged(answer, identifier)


def _answer(connection: socket, until: float) -> bytes | None:
    """Return what stands in the frame that is answered; None where there is none. Raises TimeoutError, OSError."""
    received = b""
    while _END not in received:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(4096)
        received += piece
        if not piece or len(received) > ANSWER_BYTES or not received.startswith(_BEGIN):
            return None
    return received[len(_BEGIN) : received.index(_END)]


def judged(answer: bytes, identifier: str) -> Reply:
    """Return what an acknowledgement means: MSA-1 by HL7 tables 0008 (AA, AE, AR; CA, CE, CR in enhanced mode)."""
    text = answer.decode("utf-8", errors="replace")
    separator = text[3:4] if text.startswith("MSH") else ""
    segments = [segment.split(separator) for segment in re.split(r"[\r\n]+", text)] if separator else []
    said = next((fields for fields in segments if fields[0] == "MSA"), [])
    code, acknowledged, detail = (*said[1:4], "", "", "")[:3]
    errors = [fields[3].split("^")[0] for fields in segments if fields[0] == "ERR" and len(fields) > 3]
    condition = next((each for each in errors if re.fullmatch(r"[0-9A-Za-z]{1,8}", each)), "")
    if code in {"AA", "CA", "AE", "CE", "AR", "CR"} and acknowledged != identifier:
        return Reply(verdict=Verdict.TRY_AGAIN, reason=f"{code} for another message", own=True)
    reason = f"answered {code}" + (f", error {condition}" if condition else "")
    if code in {"AA", "CA"}:
        return Reply(verdict=Verdict.TAKEN)
    if code in {"AE", "CE"}:
        return Reply(verdict=Verdict.TRY_AGAIN, reason=reason, detail=printable(detail), own=True)
    if code in {"AR", "CR"}:
        return Reply(verdict=Verdict.HOLD, reason=reason, detail=printable(detail))
    return Reply(verdict=Verdict.TRY_AGAIN, reason="the answer is no acknowledgement", own=True)
