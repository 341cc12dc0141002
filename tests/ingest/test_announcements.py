"""MPPS and IAN through real associations: every status, what is kept of them, and that it is kept."""

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import cast

import pytest
from hypothesis import given, settings
from pydicom import DataElement, Dataset

from meddaemon.db import announcements
from meddaemon.db.engine import Database
from meddaemon.domain.completeness import Announcement
from meddaemon.domain.states import AnnouncementState
from meddaemon.ingest import announcements as provider
from meddaemon.ingest import message
from meddaemon.ingest.announcements import AnnouncementProvider
from meddaemon.ingest.scp import Listener, ListenerSettings
from tests.ingest.encoded import data_sets
from tests.modality import Modality, available, data_set, modality, performed, step

SETTINGS = ListenerSettings(
    ae_title="MEDDAEMON",
    host="127.0.0.1",
    port=0,
    maximum_associations=8,
    maximum_pdu_bytes=131_072,
    idle_timeout_seconds=30,
    association_timeout_seconds=10,
    message_timeout_seconds=30,
)
STEP, OTHER = "2.25.500", "2.25.501"
_serial = itertools.count(1)


@contextmanager
def listening(database: Database) -> Iterator[int]:
    with Listener(SETTINGS, lambda _: None, None, AnnouncementProvider(database)) as listener:
        yield listener.address[1]


@pytest.fixture
def ct(database: Database) -> Iterator[Modality]:
    with listening(database) as port, modality(port) as opened:
        yield opened


def _of(database: Database, study: str) -> list[Announcement]:
    with database.read() as connection:
        return [each.announcement for each in announcements.of_study(connection, study)]


def test_a_procedure_step_from_its_begin_to_its_end(database: Database, ct: Modality) -> None:
    assert ct.begin(STEP, step("1.2.3")).Status == 0x0000
    (said,) = _of(database, "1.2.3")
    assert (said.uid, said.ae_title, said.state, said.named) == (STEP, "CT1", AnnouncementState.IN_PROGRESS, 0)
    assert ct.update(STEP, performed({"1.2.3.1": ["1.1", "1.2"]}, None)).Status == 0x0000
    (said,) = _of(database, "1.2.3")
    assert (said.state, said.named, said.missing) == (AnnouncementState.IN_PROGRESS, 2, 2)
    # The sequence replaces what was there (PS3.4 F.7.2.2.2), images and others, each once.
    final = performed({"1.2.3.1": ["1.1", "1.3", "1.3"], "1.2.3.2": ["1.1"]}, others=["1.9"])
    assert ct.update(STEP, final).Status == 0x0000
    (said,) = _of(database, "1.2.3")
    assert (said.state, said.named, said.examples) == (AnnouncementState.COMPLETED, 3, ("1.1", "1.3", "1.9"))


@pytest.mark.parametrize("status", ["COMPLETED", "DISCONTINUED"])
def test_a_step_that_is_over_is_not_updated_any_more(database: Database, ct: Modality, status: str) -> None:
    ct.begin(STEP, step("1.2.3"))
    assert ct.update(STEP, performed({"1.2.3.1": ["1.1"]}, status)).Status == 0x0000
    for again in (performed({"1.2.3.1": ["1.1", "1.2"]}, None), performed({"1.2.3.1": []}), data_set(Modality="CT")):
        answer = ct.update(STEP, again)
        assert answer.Status == 0x0110
        assert answer.ErrorID == 0xA710
        assert answer.ErrorComment == "Performed Procedure Step Object may no longer be updated"
    (said,) = _of(database, "1.2.3")
    assert (said.state, said.named) == (status, 1)


def test_a_uid_names_one_step_and_what_nobody_began_cannot_be_updated(database: Database, ct: Modality) -> None:
    assert ct.begin(STEP, step("1.2.3")).Status == 0x0000
    assert ct.begin(STEP, step("9.9.9")).Status == 0x0111
    assert ct.notify(STEP, available("9.9.9", {"9.9.9.1": {"9.1": "ONLINE"}})).Status == 0x0111
    assert ct.update(OTHER, performed({"1.2.3.1": ["1.1"]})).Status == 0x0112
    assert _of(database, "9.9.9") == []
    ct.notify(OTHER, available("1.2.3", {"1.2.3.1": {"1.1": "ONLINE"}}))
    assert ct.update(OTHER, performed({"1.2.3.1": ["1.1"]})).Status == 0x0112


def test_peers_that_begin_and_end_the_same_step_at_once_are_told_apart(database: Database) -> None:
    together = threading.Barrier(4)

    def take_part(port: int) -> tuple[int, int]:
        with modality(port) as ct:
            together.wait(30)
            begun = ct.begin(STEP, step("1.2.3")).Status
            together.wait(30)
            return begun, ct.update(STEP, performed({"1.2.3.1": ["1.1"]})).Status

    with listening(database) as port, ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(take_part, [port] * 4))
    assert sorted(begun for begun, _ in statuses) == [0x0000, 0x0111, 0x0111, 0x0111]
    assert sorted(ended for _, ended in statuses) == [0x0000, 0x0110, 0x0110, 0x0110]
    (said,) = _of(database, "1.2.3")
    assert (said.state, said.named) == (AnnouncementState.COMPLETED, 1)


def test_one_step_may_make_parts_of_several_studies(database: Database, ct: Modality) -> None:
    """The group case (PS3.3 C.4.14): each of the studies knows of the step."""
    ct.begin(STEP, step("1.2.3", "1.2.4", "1.2.4"))
    assert [each.uid for study in ("1.2.3", "1.2.4") for each in _of(database, study)] == [STEP, STEP]


def test_a_step_that_was_discontinued_before_anything_was_made(database: Database, ct: Modality) -> None:
    ct.begin(STEP, step("1.2.3"))
    assert ct.update(STEP, data_set(PerformedProcedureStepStatus="DISCONTINUED")).Status == 0x0000
    ct.begin(OTHER, step("1.2.3"))
    over = data_set(PerformedProcedureStepStatus="DISCONTINUED", PerformedSeriesSequence=[])
    assert ct.update(OTHER, over).Status == 0x0000
    assert {(each.state, each.named) for each in _of(database, "1.2.3")} == {(AnnouncementState.DISCONTINUED, 0)}


def test_available_instances_are_announced_and_unavailable_ones_are_not(database: Database, ct: Modality) -> None:
    named = {"1.1": "ONLINE", "1.2": "NEARLINE", "1.3": "OFFLINE", "1.4": "UNAVAILABLE"}
    assert ct.notify(STEP, available("1.2.3", {"1.2.3.1": named, "1.2.3.2": {"2.1": "ONLINE"}})).Status == 0x0000
    (said,) = _of(database, "1.2.3")
    assert (said.source, said.state, said.named) == ("IAN", AnnouncementState.COMPLETED, 4)


def test_without_a_uid_the_provider_gives_one(database: Database, ct: Modality) -> None:
    """PS3.7 10.1.5.1.3: the Affected SOP Instance UID is the user's to give or to leave."""
    answers = [ct.notify(None, available("1.2.3", {"1.2.3.1": {"1.1": "ONLINE"}})) for _ in range(2)]
    assert [answer.Status for answer in answers] == [0x0000, 0x0000]
    assert len({each.uid for each in _of(database, "1.2.3")}) == 2


def _without(attributes: Dataset, keyword: str) -> Dataset:
    delattr(attributes, keyword)
    return attributes


def _many(count: int) -> list[str]:
    return [f"1.2.{number}" for number in range(count)]


ANNA = data_set(ReferencedSOPInstanceUID="Anna")
BEGINNINGS = [
    (0x0120, lambda: _without(step("1.2.3"), "ScheduledStepAttributesSequence")),
    (0x0121, step),
    (0x0120, lambda: data_set(PerformedProcedureStepStatus="IN PROGRESS", ScheduledStepAttributesSequence=[Dataset()])),
    (0x0121, lambda: step("")),
    (0x0106, lambda: step("../../etc")),
    (0x0106, lambda: step("1." + "2" * 70)),
    (0x0120, lambda: _without(step("1.2.3"), "PerformedProcedureStepStatus")),
    (0x0121, lambda: step("1.2.3", status="")),
    (0x0106, lambda: step("1.2.3", status="SCHEDULED")),
    (0x0106, lambda: step("1.2.3", status="COMPLETED")),
    (0x0106, lambda: step("1.2.3", PerformedSeriesSequence=[data_set(ReferencedImageSequence=[ANNA])])),
    (0x0213, lambda: step(*_many(provider.MAXIMUM_STUDIES + 1))),
]
ENDS = [
    (0x0120, lambda: data_set(PerformedProcedureStepStatus="COMPLETED")),
    (0x0121, lambda: data_set(PerformedProcedureStepStatus="COMPLETED", PerformedSeriesSequence=[])),
    (0x0106, lambda: data_set(PerformedProcedureStepStatus="DONE")),
    (0x0106, lambda: performed({"1.2.3.1": ["no uid"]})),
    (0x0120, lambda: data_set(PerformedSeriesSequence=[data_set(ReferencedImageSequence=[Dataset()])])),
    (0x0213, lambda: data_set(PerformedSeriesSequence=[Dataset()] * (provider.MAXIMUM_SERIES + 1))),
]
NOTICES = [
    (0x0120, lambda: data_set(StudyInstanceUID="1.2.3")),
    (0x0121, lambda: available("1.2.3", {})),
    (0x0121, lambda: available("1.2.3", {"1.2.3.1": {}})),
    (0x0121, lambda: available("", {"1.2.3.1": {"1.1": "ONLINE"}})),
    (0x0106, lambda: available("x", {"1.2.3.1": {"1.1": "ONLINE"}})),
    (0x0106, lambda: available("1.2.3", {"1.2.3.1": {"1.1": "MAYBE"}})),
    (0x0106, lambda: available("1.2.3", {"1.2.3.1": {"1.1 OR 1=1": "ONLINE"}})),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, Modality]]:
    """What is refused leaves nothing behind, so one database serves all these cases."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('announced')}/database.sqlite")
    database.upgrade()
    with listening(database) as port, modality(port) as opened:
        yield database, opened
    database.close()


@pytest.mark.parametrize(("status", "attributes"), BEGINNINGS)
def test_a_step_that_is_begun_wrongly_is_refused(
    shared: tuple[Database, Modality], status: int, attributes: object
) -> None:
    database, ct = shared
    uid = f"2.25.{600 + next(_serial)}"
    answer = ct.begin(uid, attributes())  # type: ignore[operator]
    assert answer.Status == status
    assert "Anna" not in answer.get("ErrorComment", "")
    assert ct.update(uid, performed({"1.2.3.1": ["1.1"]})).Status == 0x0112
    assert _of(database, "1.2.3") == []


@pytest.mark.parametrize(("status", "attributes"), ENDS)
def test_a_step_that_is_ended_wrongly_goes_on(
    shared: tuple[Database, Modality], status: int, attributes: object
) -> None:
    database, ct = shared
    uid = f"2.25.{600 + next(_serial)}"
    study = f"5.5.{uid}"
    assert ct.begin(uid, step(study)).Status == 0x0000
    assert ct.update(uid, attributes()).Status == status  # type: ignore[operator]
    assert [(each.state, each.named) for each in _of(database, study)] == [(AnnouncementState.IN_PROGRESS, 0)]
    assert ct.update(uid, performed({"1.2.3.1": ["1.1"]})).Status == 0x0000


@pytest.mark.parametrize(("status", "attributes"), NOTICES)
def test_a_notification_that_is_wrong_is_refused(
    shared: tuple[Database, Modality], status: int, attributes: object
) -> None:
    database, ct = shared
    assert ct.notify(f"2.25.{600 + next(_serial)}", attributes()).Status == status  # type: ignore[operator]
    assert _of(database, "1.2.3") == []


def test_more_instances_than_may_be_are_refused(
    shared: tuple[Database, Modality], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, ct = shared
    monkeypatch.setattr(provider, "MAXIMUM_INSTANCES", 3)
    assert ct.begin("2.25.9000", step("7.7")).Status == 0x0000
    assert ct.update("2.25.9000", performed({"7.7.1": _many(2), "7.7.2": _many(4)})).Status == 0x0213
    assert ct.update("2.25.9000", performed({"7.7.1": _many(3)})).Status == 0x0000
    assert _of(database, "7.7")[0].named == 3


def _raw(**elements: tuple[int, str, object]) -> Dataset:
    """Return a data set with elements of another VR than the dictionary's."""
    made = Dataset()
    for tag, vr, value in elements.values():
        made.add(DataElement(tag, vr, value))
    return made


def _nested(depth: int) -> Dataset:
    inner = data_set(StudyInstanceUID="1.2.3")
    for _ in range(depth):
        inner = data_set(ScheduledStepAttributesSequence=[inner])
    return inner


@pytest.mark.parametrize(
    ("status", "attributes"),
    [
        (0x0120, lambda: _raw(state=(0x00400252, "CS", "IN PROGRESS"), steps=(0x00400270, "LO", "text"))),
        (0x0110, lambda: _raw(state=(0x00400252, "CS", "IN PROGRESS"), steps=(0x00400270, "US", 7))),
        (0x0106, lambda: _raw(state=(0x00400252, "SQ", [Dataset()]))),
        (0x0106, lambda: _raw(state=(0x00400252, "CS", ["IN PROGRESS", "COMPLETED"]))),
        (0x0110, lambda: _nested(200)),
        (0x0213, lambda: data_set(ScheduledStepAttributesSequence=[Dataset()] * (message.MAXIMUM_ITEMS + 1))),
        (0x0213, lambda: _raw(large=(0x00420011, "OB", b"0" * (message.MAXIMUM_BYTES + 2)))),
    ],
)
def test_hostile_attributes_are_refused_and_the_association_goes_on(
    shared: tuple[Database, Modality], status: int, attributes: object
) -> None:
    database, ct = shared
    assert ct.begin(f"2.25.{600 + next(_serial)}", attributes()).Status == status  # type: ignore[operator]
    assert _of(database, "1.2.3") == []
    uid = f"2.25.{600 + next(_serial)}"
    assert ct.begin(uid, step(f"8.8.{uid}")).Status == 0x0000


@given(said=data_sets())
@settings(max_examples=200)
def test_whatever_is_announced_has_an_answer(said: Dataset) -> None:
    """Nothing of this can be right, so nothing reaches a database; there is none here."""
    nowhere = AnnouncementProvider(cast("Database", None))
    for sop_class in (provider.MODALITY_PERFORMED_PROCEDURE_STEP, provider.INSTANCE_AVAILABILITY_NOTIFICATION, "1.2"):
        assert nowhere.create(sop_class, "1.2.3", "CT1", said).status in {0x0106, 0x0118, 0x0120, 0x0121}


def test_a_uid_that_is_none_is_refused(shared: tuple[Database, Modality]) -> None:
    _, ct = shared
    assert ct.begin("no.uid", step("1.2.3")).Status == 0x0117


def test_a_database_that_is_away_is_told(shared: tuple[Database, Modality], database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("DROP TABLE announced_study")
    with listening(database) as port, modality(port) as ct:
        assert ct.begin(STEP, step("1.2.3")).Status == 0x0213
    with database.read() as connection:
        assert announcements.untold(connection) == []


def test_an_archive_may_announce_a_large_study(database: Database, ct: Modality) -> None:
    """A CT of 5 000 images is announced in seconds and looked up at once."""
    images = dict.fromkeys((f"1.2.826.0.1.3680043.10.1.{number}" for number in range(5000)), "ONLINE")
    assert ct.notify(STEP, available("1.2.3", {"1.2.3.1": images})).Status == 0x0000
    (said,) = _of(database, "1.2.3")
    assert (said.named, said.missing, len(said.examples)) == (5000, 5000, 3)
