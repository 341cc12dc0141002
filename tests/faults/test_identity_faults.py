"""UIDs that want to be something else, objects that want to be another, and what comes twice, late or never."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import wire
from encoded import explicit
from pydicom.uid import CTImageStorage
from running import Home, wait_until
from watched import Watched
from wire import ASSOCIATE_AC, Peer

from meddaemon.db import tables
from meddaemon.domain.states import StudyState

SUCCESS, MISMATCH, INVALID_INSTANCE = 0x0000, 0xA900, 0x0117


def ct(
    uid: str | None, *, study: str = "2.25.71", series: str = "2.25.72", patient: str = "I-1", pixels: bytes = bytes(8)
) -> bytes:
    """Return an object whose UIDs are written as they are given; without SOP UIDs where there is none."""
    named = (
        (0x0008, 0x0016, b"UI", str(CTImageStorage) if uid is not None else None),
        (0x0008, 0x0018, b"UI", uid),
        (0x0008, 0x0060, b"CS", "CT"),
        (0x0010, 0x0020, b"LO", patient),
        (0x0020, 0x000D, b"UI", study),
        (0x0020, 0x000E, b"UI", series),
    )
    values = ((tag, element, vr, text.encode()) for tag, element, vr, text in named if text is not None)
    parts = [explicit(tag, element, vr, text + b"\0" * (len(text) % 2)) for tag, element, vr, text in values]
    return b"".join((*parts, explicit(0x7FE0, 0x0010, b"OW", pixels)))


def send(port: int, uid: str, data: bytes, *, calling: str = "RAW") -> int:
    with Peer(port, 30) as peer:
        assert peer.associate(wire.associate_request(calling=calling)) == ASSOCIATE_AC
        status = peer.store(uid, data)
        assert peer.echo() == SUCCESS
        peer.release()
    return status


def new_uid() -> str:
    return f"2.25.{secrets.randbits(100)}"


def around(site: Watched) -> set[Path]:
    """Return every file in and near the store, apart from logs, the database's own, and the journal, which grows."""
    files = (path for path in site.home.folder.parent.rglob("*") if path.is_file())
    own = {".log", ".segment", ".new"}
    return {path for path in files if path.suffix not in own and ".sqlite" not in path.name and path.name != "lock"}


PATHS = ("../../x", "/tmp/x", "..\\..\\x", "%2e%2e%2f", "C:\\x", "1.2/3", "file:///etc/passwd", "\\\\h\\x")
CHARACTERS = ("1.2\0.3", "1.2\r\n3", "1.2\x1b[2J", "1.2.ä", "1." * 151, "1" * 65, "", ".", "..", "1..2", "1.2.", ".1")
COMMANDS = ("-rf", "--help", ";touch x", "$(id)", "`id`", "*", "1.2|id", "1' OR '1'='1", "1;DROP TABLE study", "{{7}}")
HOSTILE = [
    *(pytest.param(uid, marks=pytest.mark.fault(69)) for uid in PATHS),
    *(pytest.param(uid, marks=pytest.mark.fault(70)) for uid in CHARACTERS),
    *(pytest.param(uid, marks=pytest.mark.fault(71)) for uid in COMMANDS),
]


@pytest.mark.parametrize("uid", HOSTILE)
def test_what_is_no_uid_names_no_object(site: Watched, uid: str) -> None:
    before, refused = around(site), len(site.home.refusals())
    # Data set and command agree, so nothing but the UID itself is at fault. Where the library sees several values it
    # takes the first, which is no UID either.
    first = uid.partition("\\")[0]
    with Peer(site.port, 30) as peer:
        assert peer.associate() == ASSOCIATE_AC
        request = wire.command(
            wire.element(2, wire.uid_value(CTImageStorage)),
            wire.element(0x100, b"\1\0"),
            wire.element(0x110, b"\1\0"),
            wire.element(0x700, b"\0\0"),
            wire.element(0x800, b"\1\0"),
            wire.element(0x1000, uid.encode("latin-1") + b"\0" * (len(uid) % 2)),
        )
        peer.send(wire.store_message("", ct(first), request=request))
        assert peer.status() == INVALID_INSTANCE
        assert peer.echo() == SUCCESS
    assert around(site) == before
    assert len(site.home.refusals()) == refused + 1
    assert site.home.refusals()[-1].status == INVALID_INSTANCE


NO_UIDS = ("../../x", "/etc/x", "1.2\0.3", "-rf", ";id", "*", "1" * 65, "1..2", "%2e%2e", "ü")


@pytest.mark.fault(72)
@pytest.mark.parametrize("level", ["study", "series"])
@pytest.mark.parametrize("uid", NO_UIDS)
def test_what_is_no_uid_names_no_study_and_no_series(site: Watched, level: str, uid: str) -> None:
    own, before = new_uid(), around(site)
    data = ct(own, study=uid) if level == "study" else ct(own, series=uid)
    assert send(site.port, own, data) == INVALID_INSTANCE
    assert around(site) == before


@pytest.mark.fault(63)
@pytest.mark.parametrize("lacks", [{"study": ""}, {"series": ""}, {"study": " "}])
def test_an_object_of_no_study_or_series_is_refused(site: Watched, lacks: dict[str, str]) -> None:
    uid = new_uid()
    assert send(site.port, uid, ct(uid, **lacks)) == MISMATCH
    assert site.stored(uid) == []


@pytest.mark.fault(63)
def test_an_object_that_nobody_names_is_refused(site: Watched) -> None:
    """Where only the data set does not name it (anonymisers do that), the sender's word is all there is."""
    assert send(site.port, "", ct(None)) == INVALID_INSTANCE
    uid = new_uid()
    assert send(site.port, uid, ct(None)) == SUCCESS
    assert site.stored(uid) == [ct(None)]


@pytest.mark.fault(72)
@pytest.mark.parametrize("patient", ["../../x", "/etc/passwd", "-rf", "a/b", "..", "x" * 64, "$(id)"])
def test_a_patient_id_is_no_part_of_a_path(site: Watched, patient: str) -> None:
    uid, before = new_uid(), around(site)
    assert send(site.port, uid, ct(uid, study=new_uid(), series=new_uid(), patient=patient)) == SUCCESS
    (row,) = (row for row in site.home.instances() if row.sop_instance_uid == uid)
    (added,) = around(site) - before
    assert added == site.home.store / "instances" / row.sha256[:2] / f"{row.sha256}.dcm"


@pytest.mark.fault(73)
def test_leading_zeros_and_padding_are_taken_and_kept_as_sent(site: Watched) -> None:
    own = secrets.randbits(80)
    zeros, padded = f"2.025.{own}", f"2.25.{own}"
    assert send(site.port, zeros, ct(zeros)) == SUCCESS
    assert site.stored(zeros) == [ct(zeros)]
    with_space = ct(padded + " ", study="2.25.71 ", series="2.25.72 ")
    assert [send(site.port, each, with_space) for each in (padded, padded + " ", padded + "\0")] == [SUCCESS] * 3
    # Compared without the padding: one object, and of the same study.
    assert site.stored(padded) == [with_space]
    studies = {row.study_instance_uid for row in site.home.rows(tables.study)}
    assert "2.25.71" in studies
    assert not [uid for uid in studies if uid != uid.strip()]


@pytest.mark.fault(74)
def test_one_object_is_not_taken_for_another(site: Watched) -> None:
    one, other, before = new_uid(), new_uid(), around(site)
    assert send(site.port, one, ct(other)) == MISMATCH
    assert send(site.port, one, ct(one + "0")) == MISMATCH
    assert around(site) == before


@pytest.mark.fault(76, 77)
def test_eight_senders_of_one_uid_leave_whole_objects_only(site: Watched) -> None:
    """Four of them with the same content, four each with its own."""
    uid = new_uid()
    contents = [ct(uid, pixels=bytes([max(number - 3, 0)]) * 2_000_000) for number in range(8)]

    def sent(number: int) -> int:
        return send(site.port, uid, contents[number], calling=f"SENDER{number}")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(sent, range(8))) == [SUCCESS] * 8
    assert sorted(site.stored(uid)) == sorted(set(contents))
    rows = [row for row in site.home.instances() if row.sop_instance_uid == uid]
    assert sorted(row.conflict for row in rows) == [False, True, True, True, True]
    assert site.home.half_received() == []


@pytest.mark.fault(75)
def test_an_identical_object_changes_nothing(site: Watched) -> None:
    uid, study = new_uid(), new_uid()
    data = ct(uid, study=study, series=study + "1")
    assert send(site.port, uid, data) == SUCCESS

    def state() -> tuple[object, ...]:
        (row,) = (row for row in site.home.rows(tables.study) if row.study_instance_uid == study)
        return (row.state, row.generation, row.last_received_at, row.due_at)

    before, files = state(), around(site)
    assert [send(site.port, uid, data) for _ in range(3)] == [SUCCESS] * 3
    assert (state(), around(site)) == (before, files)
    assert len([row for row in site.home.instances() if row.sop_instance_uid == uid]) == 1


@pytest.mark.fault(80)
def test_a_study_from_two_modalities_at_once_is_one_study(site: Watched) -> None:
    study = new_uid()

    def modality(number: int) -> list[int]:
        statuses = []
        with Peer(site.port, 30) as peer:
            assert peer.associate(wire.associate_request(calling=f"CT{number}")) == ASSOCIATE_AC
            for image in range(20):
                uid = f"{study}.{number}.{image}"
                statuses.append(peer.store(uid, ct(uid, study=study, series=f"{study}.{number}")))
            peer.release()
        return statuses

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(modality, (1, 2))) == [[SUCCESS] * 20] * 2
    (row,) = (row for row in site.home.rows(tables.study) if row.study_instance_uid == study)
    series = {each.series_instance_uid: each.id for each in site.home.rows(tables.series) if each.study_id == row.id}
    senders = {
        uid: {each.calling_ae_title for each in site.home.instances() if each.series_id == own}
        for uid, own in series.items()
    }
    assert senders == {f"{study}.1": {"CT1"}, f"{study}.2": {"CT2"}}


@pytest.mark.fault(82)
def test_a_study_of_which_the_rest_never_comes_is_closed_and_shows_how_much_there_is(tmp_path: Path) -> None:
    home = Home.make(tmp_path, quiet_seconds=0.5)
    with home.running("listen") as listener, home.running("deliver"):
        for number in range(2):
            assert send(listener.port(), f"2.25.9{number}", ct(f"2.25.9{number}")) == SUCCESS
        wait_until(
            lambda: [row.state for row in home.rows(tables.study)] == [StudyState.COMPLETE],
            what="the study to be closed",
        )
    assert "1 series, 2 instances" in home.cli("explain", "2.25.71").stdout
