"""Which form of a result a destination gets: what it prefers, what was made, what it accepts; never half of one."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from edition_samples import ALL, editions, encoded, pixels, post, rows, states, whole
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from queue_samples import OVER
from scripted_scp import COMPREHENSIVE, LABELMAP, Reply, ScriptedScp
from sqlalchemy import update

from meddaemon.cli.explain import explain
from meddaemon.db import deliveries, requests, tables
from meddaemon.db.engine import Database
from meddaemon.db.instances import path_of
from meddaemon.domain.errors import LeaseLost, NotFound
from meddaemon.domain.filters import parse_filter
from meddaemon.domain.outlet import EDITIONS, Edition, Outlet, TransferForm, choose_edition, go_together, next_edition
from meddaemon.domain.states import DeliveryState
from meddaemon.results.delivery import Retry, deliver
from meddaemon.results.dimse import RemoteEntity, store
from meddaemon.results.folder import Folder
from meddaemon.results.transport import Send

RETRY = Retry(first_seconds=100, longest_seconds=250, lease_seconds=60)
SEG_SR = Outlet(kinds=("SEG", "SR"), editions=ALL)
KO_TOO = Outlet(kinds=("KO", "SR", "SEG"), editions=ALL)


@pytest.fixture
def dialect() -> str:
    """The outbox has its own tests, on both; here one database will do."""
    return "sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def drain(database: Database, folder: Path, send: Send, allowed: Sequence[Edition] = ALL) -> int:
    return deliver(database, folder, "pacs", send, RETRY, threading.Event(), editions=allowed)


def to(pacs: ScriptedScp, port: int, *forms: TransferForm) -> Send:
    return partial(store, pacs.remote(port, transfer_forms=forms))


# --- the law ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    kind: str
    edition: str
    part: str = ""


MARKS = sorted({mark for edition in EDITIONS for mark in edition.parts})
made = st.builds(Made, kind=st.sampled_from(["SEG", "SR", "KO"]), edition=st.sampled_from(MARKS))
results_made = st.lists(made, max_size=8, unique=True)
allowed = st.lists(st.sampled_from(EDITIONS), min_size=1, max_size=4, unique=True)


def of(edition: Edition, objects: Sequence[Made]) -> list[Made]:
    return [each for each in objects if each.edition in edition.parts]


@given(allowed, results_made)
def test_no_edition_says_more_than_the_chosen_and_none_before_it_as_much(
    wanted: list[Edition], objects: list[Made]
) -> None:
    chosen = choose_edition(wanted, objects)
    assert chosen in wanted
    said = {(each.kind, each.part) for each in of(chosen, objects)}
    for place, other in enumerate(wanted):
        rival = {(each.kind, each.part) for each in of(other, objects)}
        assert len(rival) < len(said) or (len(rival) == len(said) and place >= wanted.index(chosen))
    assert all(go_together(one.edition, two.edition) for one in of(chosen, objects) for two in of(chosen, objects))


@given(allowed, results_made, st.data())
def test_what_has_begun_is_gone_on_with(wanted: list[Edition], objects: list[Made], data: st.DataObject) -> None:
    begun = of(data.draw(st.sampled_from(EDITIONS)), objects)
    chosen = choose_edition(wanted, objects, begun=begun)
    assert chosen is not None
    assert all(each.edition in chosen.parts for each in begun)


@given(allowed, results_made, st.data())
def test_falling_back_ends_and_loses_nothing(wanted: list[Edition], objects: list[Made], data: st.DataObject) -> None:
    edition: Edition | None = choose_edition(wanted, objects)
    assert edition is not None
    out: set[Made] = set()
    said = {(each.kind, each.part) for each in of(edition, objects) if each.edition}
    for _ in range(len(objects) + 1):
        current = [each for each in of(edition, objects) if each.edition]
        if not current:
            return
        out.add(data.draw(st.sampled_from(current)))
        following = next_edition(wanted, objects, current=current, refused=out)
        if following is None:
            return
        assert said <= {(each.kind, each.part) for each in of(following, objects)}
        assert not out & set(of(following, objects))
        edition = following
    pytest.fail("never ends")


# --- what is posted -----------------------------------------------------------------------------------------------


def test_the_preferred_edition_goes_whole_and_in_order(database: Database, folder: Path) -> None:
    post(database, folder, whole(), KO_TOO)
    pacs = ScriptedScp()
    with pacs.listening() as port:
        assert drain(database, folder, to(pacs, port)) == 3
    assert pacs.kinds == ["SEG", "SR", "KO"]
    assert states(database) == [("SEG", "labelmap", "sent"), ("SR", "labelmap/3d", "sent"), ("KO", "", "sent")]


def test_where_the_preferred_was_not_made_the_next_goes(database: Database, folder: Path) -> None:
    """Segments that overlap have no label map."""
    post(database, folder, whole("labelmap"), SEG_SR)
    assert states(database) == [("SEG", "binary", "pending"), ("SR", "binary/3d", "pending")]


def test_what_a_destination_does_not_get_is_explained(database: Database, folder: Path) -> None:
    only = Outlet(kinds=("SEG", "SR", "KO", "PDF"), editions=editions("labelmap/3d"))
    large = Outlet(kinds=("SR",), when=parse_filter("volume > 2 L"))
    outlets = {"pacs": only, "research": large, "late": SEG_SR}
    post(database, folder, whole("labelmap"), *outlets.values(), names=[*outlets])
    assert [(each.destination, each.kind) for each in rows(database)] == [
        ("late", "SEG"),
        ("late", "SR"),
        ("pacs", "KO"),
    ]
    with database.read() as connection:
        said = [line.strip() for line in explain(connection, "1", outlets)]
    assert [line for line in said if line.startswith("not to ")] == [
        "not to pacs: PDF was not made",
        "not to pacs: SEG was not made in a form that it may be given (labelmap/3d)",
        "not to pacs: SR was not made in a form that it may be given (labelmap/3d)",
        "not to research: it is none of the results that this destination takes",
    ]


def test_a_destination_that_is_asked_for_later_gets_what_goes_with_what_it_has(
    database: Database, folder: Path
) -> None:
    seg_only = Outlet(kinds=("SEG",), editions=editions("binary/3d"))
    result = post(database, folder, whole(), seg_only)
    with database.write() as connection:
        deliveries.post(connection, result, destinations=["pacs"], outlets={"pacs": SEG_SR}, priority=5)
    assert states(database) == [("SEG", "binary", "pending"), ("SR", "binary/3d", "pending")]


# --- what is accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "edition"),
    [
        ([LABELMAP], "binary/3d"),
        (["1.2.840.10008.5.1.4.1.1.88.34"], "labelmap/2d"),
        ([LABELMAP, "1.2.840.10008.5.1.4.1.1.88.34"], "binary/2d"),
    ],
)
def test_what_is_refused_goes_in_another_form_with_what_refers_to_it(
    database: Database, folder: Path, refused: list[str], edition: str
) -> None:
    post(database, folder, whole(), KO_TOO)
    pacs = ScriptedScp(refuses=refused)
    with pacs.listening() as port:
        while drain(database, folder, to(pacs, port)):
            pass
    form = edition.partition("/")[0]
    arrived = {each.data_set.Modality: each.data_set for each in pacs.arrivals}
    assert sorted(pacs.kinds) == ["KO", "SEG", "SR"]
    assert (arrived["SEG"].SOPClassUID == LABELMAP) is (form == "labelmap")
    assert (arrived["SR"].SOPClassUID == COMPREHENSIVE) is edition.endswith("2d")
    assert arrived["SR"].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == arrived["SEG"].SOPInstanceUID
    kept = {each[:2] for each in states(database) if each[2] == "sent"}
    assert kept == {("SEG", form), ("SR", edition), ("KO", "")}
    others = [each for each in rows(database) if each.state is not DeliveryState.SENT]
    assert others
    assert {each.state for each in others} == {DeliveryState.REPLACED}
    assert all("accepts no presentation context" in each.reason for each in others)
    assert all("in its place" in each.reason for each in others)
    with pytest.raises(NotFound), database.write() as connection:
        deliveries.requeue(connection, others[0].id)
    # Nor does it come back when the rules are asked again.
    with database.write() as connection:
        before = states(database)
        requests.settle(connection, 1, 1, {"pacs": KO_TOO})
    assert states(database) == before
    with database.read() as connection:
        told = "\n".join(explain(connection, "1", {"pacs": KO_TOO}))
    assert ": replaced: " in told
    assert "not to pacs" not in told


def test_a_pacs_that_accepts_nothing_at_all_is_offered_every_form(database: Database, folder: Path) -> None:
    post(database, folder, whole(), Outlet(kinds=("SEG",), editions=ALL))
    pacs = ScriptedScp(refuses=[LABELMAP])
    with pacs.listening() as port:
        assert drain(database, folder, to(pacs, port)) == 1
        assert drain(database, folder, to(pacs, port)) == 1
    assert states(database) == [("SEG", "labelmap", "replaced"), ("SEG", "binary", "sent")]


def test_without_another_form_it_is_held_whole(database: Database, folder: Path) -> None:
    post(database, folder, whole("binary"), KO_TOO)
    pacs = ScriptedScp(refuses=[LABELMAP])
    with pacs.listening() as port:
        assert drain(database, folder, to(pacs, port)) == 1
        assert drain(database, folder, to(pacs, port)) == 0
    assert states(database) == [("SEG", "labelmap", "held"), ("SR", "labelmap/3d", "held"), ("KO", "", "sent")]
    assert all("no other edition can go in its place" in each.reason for each in rows(database)[:2])


def test_an_edition_that_was_sent_in_part_stays(database: Database, folder: Path) -> None:
    post(database, folder, whole(), SEG_SR)
    pacs = ScriptedScp.answering(0, 0xA700)
    with pacs.listening() as port:
        assert drain(database, folder, to(pacs, port)) == 1
    pass_time(database)
    changed = ScriptedScp(refuses=["1.2.840.10008.5.1.4.1.1.88.34"])
    with changed.listening() as port:
        assert drain(database, folder, to(changed, port)) == 0
    assert states(database) == [("SEG", "labelmap", "sent"), ("SR", "labelmap/3d", "held")]


def test_a_class_that_is_refused_by_its_status_is_replaced_too(database: Database, folder: Path) -> None:
    """A web server negotiates nothing, and some SCP accept every context."""
    post(database, folder, whole(), SEG_SR)
    pacs = ScriptedScp(script=lambda sop_class, _: Reply(0x0122) if sop_class == LABELMAP else None)
    with pacs.listening() as port:
        assert drain(database, folder, to(pacs, port)) == 1
        assert drain(database, folder, to(pacs, port)) == 2
    assert [each.status for each in pacs.arrivals] == [0x0122, 0, 0]
    assert [each[2] for each in states(database)] == ["replaced", "replaced", "sent", "sent"]


def test_who_comes_too_late_replaces_nothing(database: Database, folder: Path) -> None:
    post(database, folder, whole(), SEG_SR)
    with database.write() as connection:
        late = deliveries.claim(connection, destination="pacs", lease_seconds=OVER)
        again = deliveries.claim(connection, destination="pacs", lease_seconds=60)
    with pytest.raises(LeaseLost), database.write() as connection:
        deliveries.substitute(connection, late[:1], editions=ALL, reason="no")
    assert {each[2] for each in states(database)} == {"sending"}
    with database.write() as connection:
        assert deliveries.substitute(connection, again[:1], editions=ALL, reason="no") == editions("binary/3d")[0]


def test_a_result_is_claimed_whole(database: Database, folder: Path) -> None:
    for number in (1, 2, 3):
        post(database, folder, whole(result=number), KO_TOO)
    with database.write() as connection:
        first = deliveries.claim(connection, destination="pacs", lease_seconds=60, limit=4)
        assert [(each.result_id, each.kind) for each in first] == [
            (result, kind) for result in (1, 2) for kind in ("SEG", "SR", "KO")
        ]
        assert len(deliveries.claim(connection, destination="pacs", lease_seconds=60, limit=1)) == 3


# --- transfer syntaxes --------------------------------------------------------------------------------------------

EXPLICIT, IMPLICIT, RLE = map(str, (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless))


@pytest.mark.parametrize(
    ("refused", "forms", "syntax"),
    [
        ([], (), RLE),
        ([(LABELMAP, RLE)], (), EXPLICIT),
        ([(LABELMAP, RLE), (LABELMAP, EXPLICIT)], (), IMPLICIT),
        ([], (TransferForm.IMPLICIT, TransferForm.EXPLICIT), IMPLICIT),
        ([(LABELMAP, IMPLICIT)], (TransferForm.IMPLICIT, TransferForm.EXPLICIT), EXPLICIT),
    ],
)
def test_what_is_compressed_is_decoded_for_who_does_not_take_it_so(
    database: Database, folder: Path, refused: list[str | tuple[str, str]], forms: tuple[TransferForm, ...], syntax: str
) -> None:
    label_map = encoded("SEG", "labelmap")
    post(database, folder, [label_map], Outlet(kinds=("SEG",), editions=ALL))
    pacs = ScriptedScp(refuses=refused)
    with pacs.listening() as port:
        assert drain(database, folder, to(pacs, port, *forms)) == 1
    (arrived,) = pacs.arrivals
    assert (arrived.sop_instance_uid, arrived.transfer_syntax_uid) == (label_map.sop_instance_uid, syntax)
    assert (arrived.data_set.pixel_array == pixels()).all()
    assert arrived.data_set.SOPInstanceUID == label_map.sop_instance_uid
    with database.read() as connection:
        (delivery,) = deliveries.listing(connection)
        sha256 = connection.execute(tables.result_object.select()).one().sha256
    assert path_of(folder, sha256).read_bytes() == label_map.content
    assert delivery.state is DeliveryState.SENT


def test_a_folder_gets_what_it_prefers(database: Database, folder: Path, tmp_path: Path) -> None:
    post(database, folder, [encoded("SEG", "labelmap")], Outlet(kinds=("SEG",), editions=ALL))
    (tmp_path / "out").mkdir()
    way = Folder(directory=tmp_path / "out", transfer_forms=(TransferForm.EXPLICIT,))
    assert drain(database, folder, way.store) == 1
    (written,) = way.directory.rglob("*.dcm")
    found = dcmread(written)
    assert found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (found.pixel_array == pixels()).all()


def test_what_no_allowed_syntax_can_hold_is_held_or_goes_in_another_form(database: Database, folder: Path) -> None:
    post(database, folder, whole(), SEG_SR)
    pacs = ScriptedScp()
    with pacs.listening() as port:
        while drain(database, folder, to(pacs, port, TransferForm.JPEG_LS)):
            pass
    assert [each[2] for each in states(database)] == ["replaced", "replaced", "held", "held"]
    assert all("no transfer syntax that this destination may be given" in each.reason for each in rows(database))
    assert pacs.associations == 0


# --- objects that fail by themselves ------------------------------------------------------------------------------


def pass_time(database: Database, seconds: float = 86_400.0) -> None:
    """Move the clock, which is the database's: everything happened so much earlier."""
    row = tables.delivery.c
    moved = {
        name: row[name] - seconds
        for name in ("available_at", "created_at", "sent_at", "faulted_at", "lease_expires_at")
    }
    with database.write() as connection:
        connection.execute(update(tables.delivery).values(moved))


def tries(database: Database, folder: Path, pacs: ScriptedScp, count: int, maximum: int = 3) -> None:
    """Send for some days; each day there is another result."""
    retry = Retry(first_seconds=100, longest_seconds=250, lease_seconds=60, maximum_tries=maximum)
    with pacs.listening() as port:
        for day in range(count):
            post(database, folder, whole(result=day + 2), SEG_SR)
            deliver(database, folder, "pacs", to(pacs, port), retry, threading.Event(), editions=ALL)
            pass_time(database)


@pytest.mark.parametrize(("status", "state"), [(0x0110, "held"), (0xA700, "retryable")])
def test_an_object_that_fails_while_others_pass_is_held_in_the_end(
    database: Database, folder: Path, status: int, state: str
) -> None:
    bad = encoded("SEG", "labelmap", result=1).sop_instance_uid
    post(database, folder, whole(result=1), SEG_SR)
    pacs = ScriptedScp(script=lambda _, uid: Reply(status) if uid == bad else None)
    tries(database, folder, pacs, 5)
    first, *others = states(database)
    assert first == ("SEG", "labelmap", state)
    assert {each[2] for each in others} == {"sent"}
    # The first time, nothing else had been taken yet.
    assert pacs.uids.count(bad) == (4 if state == "held" else 5)
    assert ("failed 3 times while others were taken" in rows(database)[0].reason) is (state == "held")


def test_a_pacs_that_fails_for_everything_is_tried_for_ever(database: Database, folder: Path) -> None:
    pacs = ScriptedScp.answering(0x0110)
    tries(database, folder, pacs, 5)
    assert {each[2] for each in states(database)} == {"retryable"}
    mended = ScriptedScp()
    with mended.listening() as port:
        while drain(database, folder, to(mended, port)):
            pass
    assert {each[2] for each in states(database)} == {"sent"}


# --- a day --------------------------------------------------------------------------------------------------------


def test_after_a_day_without_pacs_everything_arrives_once_and_the_urgent_first(
    database: Database, folder: Path
) -> None:
    gone = ScriptedScp()
    with gone.listening() as port:
        pass
    for number, priority in enumerate((5, 9, 0, 5), 1):
        post(database, folder, whole(result=number), KO_TOO, priority=priority)
    for _ in range(6):
        assert drain(database, folder, partial(store, gone.remote(port))) == 0
        pass_time(database, 4 * 3600.0)
    assert {each[2] for each in states(database)} == {"retryable"}
    pacs = ScriptedScp(refuses=[LABELMAP])
    with pacs.listening() as there:
        remote: RemoteEntity = pacs.remote(there)
        while drain(database, folder, partial(store, remote)):
            pass
    seg, sr = "1.2.9.{}.0.1", "1.2.9.{}.3.3"
    # Key objects stand on their own; what refers to each other comes in its other form.
    assert [uid for uid in pacs.uids if uid.split(".")[4] != "8"] == [
        uid.format(number) for number in (3, 1, 4, 2) for uid in (seg, sr)
    ]
    assert len(set(pacs.uids)) == len(pacs.uids) == 12
    assert [each[2] for each in states(database)].count("sent") == 12
    with database.read() as connection:
        assert [each.attempt for each in connection.execute(tables.job.select())] == [1] * 4
