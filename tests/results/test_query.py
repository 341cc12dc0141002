"""Asking a peer how many instances it has of a study: whatever it can tell, and whatever it does instead."""

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from meddaemon.db.custody import Unconfirmed
from meddaemon.results import query
from meddaemon.results.dimse import Problem, RemoteEntity
from meddaemon.results.lookup import find
from meddaemon.results.query import count_instances
from tests.dicom_factory import make_series
from tests.running import wait_until
from tests.system.test_peers import know, orthanc

STUDY = "1.2.3"
SERIES = {"1.2.3.1": ["1.2.3.1.1", "1.2.3.1.2"], "1.2.3.2": ["1.2.3.2.1"]}
Answer = tuple[int, Dataset | None]


def remote(port: int, *, seconds: float = 10.0) -> RemoteEntity:
    return RemoteEntity(
        ae_title="PACS",
        host="127.0.0.1",
        port=port,
        calling_ae_title="MEDDAEMON",
        connection_timeout_seconds=2,
        association_timeout_seconds=5,
        response_timeout_seconds=seconds,
    )


@contextmanager
def archive(find: Callable[[Dataset], Iterator[Answer]]) -> Iterator[int]:
    """Listen as an archive that answers each question with what `find` says."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)

    def handle(event: evt.Event) -> Iterator[Answer]:
        yield from find(event.identifier)

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, handle)])
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        entity.shutdown()


def able(*levels: str, levels_asked: list[str] | None = None) -> Callable[[Dataset], Iterator[Answer]]:
    """Return an archive that has the study and fills in the counts of these levels."""

    def find(asked: Dataset) -> Iterator[Answer]:
        if levels_asked is not None:
            levels_asked.append(asked.QueryRetrieveLevel)
        assert asked.StudyInstanceUID == STUDY
        matches = {
            "STUDY": [{"StudyInstanceUID": STUDY, "NumberOfStudyRelatedInstances": "3"}],
            "SERIES": [
                {"SeriesInstanceUID": uid, "NumberOfSeriesRelatedInstances": str(len(members))}
                for uid, members in SERIES.items()
            ],
            "IMAGE": [{"SOPInstanceUID": uid} for uid in SERIES.get(asked.get("SeriesInstanceUID", ""), ())],
        }
        for match in matches[asked.QueryRetrieveLevel]:
            said = Dataset()
            for keyword, value in match.items():
                counts = keyword.startswith("Number")
                setattr(said, keyword, "" if counts and asked.QueryRetrieveLevel not in levels else value)
            yield 0xFF00, said

    return find


@pytest.mark.parametrize(
    ("levels", "asked"),
    [
        (("STUDY", "SERIES"), ["STUDY"]),
        (("SERIES",), ["STUDY", "SERIES"]),
        ((), ["STUDY", "SERIES", "IMAGE", "IMAGE"]),
    ],
)
def test_the_first_count_that_the_peer_can_tell_is_taken(levels: tuple[str, ...], asked: list[str]) -> None:
    heard: list[str] = []
    with archive(able(*levels, levels_asked=heard)) as port:
        assert count_instances(remote(port), STUDY, within_seconds=30) == 3
    assert heard == asked


def _nothing(_: Dataset) -> Iterator[Answer]:
    yield from ()


def _others(_: Dataset) -> Iterator[Answer]:
    for uid in ("1.2.30", "1.2.31"):
        other = Dataset()
        other.StudyInstanceUID, other.NumberOfStudyRelatedInstances = uid, "7"
        yield 0xFF00, other


@pytest.mark.parametrize("find", [_nothing, _others])
def test_of_a_study_that_it_does_not_know_the_peer_has_nothing(find: Callable[[Dataset], Iterator[Answer]]) -> None:
    with archive(find) as port:
        assert count_instances(remote(port), STUDY, within_seconds=30) == 0


@pytest.mark.parametrize("said", ["-3", "99999999999"])
def test_a_count_that_cannot_be_one_is_not_taken(said: str) -> None:
    def find(asked: Dataset) -> Iterator[Answer]:
        for status, found in able("STUDY", "SERIES")(asked):
            assert found is not None
            if asked.QueryRetrieveLevel == "STUDY":
                found.NumberOfStudyRelatedInstances = said
            yield status, found

    with archive(find) as port:
        assert count_instances(remote(port), STUDY, within_seconds=30) == 3


def _refuses(_: Dataset) -> Iterator[Answer]:
    yield 0xA700, None


def _never_ends(_: Dataset) -> Iterator[Answer]:
    while True:
        said = Dataset()
        said.StudyInstanceUID = STUDY
        yield 0xFF00, said


@pytest.mark.parametrize(
    ("find", "reason"), [(_refuses, "the peer answered A700H"), (_never_ends, "does not come to an end")]
)
def test_a_peer_that_does_not_answer_the_question_is_no_count(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[Dataset], Iterator[Answer]], reason: str
) -> None:
    monkeypatch.setattr(query, "MAXIMUM_ANSWERS", 50)
    with archive(find) as port:
        said = count_instances(remote(port), STUDY, within_seconds=30)
    assert isinstance(said, Problem)
    assert reason in said.reason


def test_an_answer_that_drips_ends_in_time() -> None:
    with archive(_never_ends) as port:
        began = monotonic()
        said = count_instances(remote(port), STUDY, within_seconds=0.3)
    assert isinstance(said, Problem)
    assert monotonic() - began < 10


def test_nobody_listens_or_listens_to_something_else() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    said = count_instances(remote(port), STUDY, within_seconds=5)
    assert isinstance(said, Problem)
    assert "nobody listens" in said.reason
    entity = AE(ae_title="PACS")
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    try:
        said = count_instances(remote(int(server.server_address[1])), STUDY, within_seconds=5)
    finally:
        entity.shutdown()
    assert isinstance(said, Problem)
    assert "accepts no presentation context" in said.reason


def test_a_peer_that_takes_the_question_and_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_remote = RemoteEntity(
            ae_title="PACS",
            host="127.0.0.1",
            port=int(silent.getsockname()[1]),
            calling_ae_title="MEDDAEMON",
            connection_timeout_seconds=1,
            association_timeout_seconds=0.5,
            response_timeout_seconds=0.5,
        )
        said = count_instances(silent_remote, STUDY, within_seconds=5)
    assert isinstance(said, Problem)


DCMQRSCP = """\
NetworkTCPPort  = {port}
MaxPDUSize      = 16384
MaxAssociations = 16
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
PACS  {folder}  RW (200, 1024mb)  ANY
AETable END
"""


@pytest.mark.peer
def test_dcmtk_is_asked(tmp_path: Path) -> None:
    """DCMTK's archive: what it cannot tell of a study or series it tells of the instances."""
    program = shutil.which("dcmqrscp")
    if program is None:
        pytest.skip("DCMTK is not installed")
    files = [*make_series(tmp_path / "one", planes=3), *make_series(tmp_path / "two", planes=2, seed="2")]
    (tmp_path / "db").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (tmp_path / "dcmqrscp.cfg").write_text(DCMQRSCP.format(port=port, folder=tmp_path / "db"))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(tmp_path / "dcmqrscp.cfg")], stdout=log, stderr=log)
    try:
        wait_until(lambda: _answers(port), what="dcmqrscp to listen")
        send = ["storescu", "-aec", "PACS", "127.0.0.1", str(port), *map(str, files)]
        subprocess.run(send, check=True, timeout=60)
        study = dcmread(files[0]).StudyInstanceUID
        assert count_instances(remote(port), study, within_seconds=30) == 5
        assert count_instances(remote(port), "1.2.3.999", within_seconds=30) == 0
        sought = [_sought(file, number) for number, file in enumerate(files)]
        gone = replace(sought[0], sop_instance_uid="1.2.3.999")
        assert find(remote(port), [*sought, gone]) == {each.sop_instance_uid for each in sought}
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.peer
def test_orthanc_is_asked(tmp_path: Path) -> None:
    """Orthanc counts the instances of a study itself."""
    files = [*make_series(tmp_path / "one", planes=3), *make_series(tmp_path / "two", planes=2, seed="2")]
    with orthanc(tmp_path / "orthanc") as pacs:
        for file in files:
            pacs.ask("/instances", file.read_bytes())
        know(pacs, 104)
        study = dcmread(files[0]).StudyInstanceUID
        assert count_instances(remote(pacs.dicom), study, within_seconds=30) == 5
        assert count_instances(remote(pacs.dicom), "1.2.3.999", within_seconds=30) == 0


def _sought(file: Path, number: int) -> Unconfirmed:
    header = dcmread(file, stop_before_pixels=True)
    return Unconfirmed(
        delivery_id=number,
        fence=1,
        asked=0,
        missed=0,
        losses=0,
        sop_class_uid=header.SOPClassUID,
        sop_instance_uid=header.SOPInstanceUID,
        series_instance_uid=header.SeriesInstanceUID,
        study_instance_uid=header.StudyInstanceUID,
        sender="",
        reason="",
    )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
