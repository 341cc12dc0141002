"""Searching by QIDO-RS: what is there is found, what is not meant is not, and nothing hostile costs anything."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR, tag_for_keyword
from queue_samples import claim, enqueue, finish, received, register

from meddaemon.db import catalogue, instances, tables
from meddaemon.db.catalogue import Narrowing
from meddaemon.db.engine import Database
from meddaemon.web.matching import InvalidQuery, matches_pattern, parse_key
from meddaemon.web.qido import Level, parse_search
from tests.dicom_factory import make_series
from tests.running import Home
from tests.web.archive import Site, serving

PATIENT_NAME, PATIENT_ID, STUDY, SERIES, INSTANCE = "00100010", "00100020", "0020000D", "0020000E", "00080018"
MODALITY, MODALITIES = "00080060", "00080061"


def test_studies_are_described_by_the_headers_of_what_came(archive_site: Site) -> None:
    answer = archive_site.ask("studies")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/dicom+json")
    found = {each[PATIENT_ID]["Value"][0]: each for each in answer.json}
    assert found.keys() == {"P-1", "P-2"}
    first, second = found["P-1"], found["P-2"]
    assert second[PATIENT_NAME] == {"vr": "PN", "Value": [{"Alphabetic": "Müller^Änne"}]}
    assert second["00080030"] == {"vr": "TM", "Value": ["235959.5"]}
    # SEG and SR of the result that counts; those of the superseded one are not there.
    assert first[MODALITIES]["Value"] == ["CT", "MR", "SEG", "SR"]
    assert (first["00201206"]["Value"], first["00201208"]["Value"]) == ([5], [11])
    assert first["00081190"]["Value"] == [f"{archive_site.url}/studies/{first[STUDY]['Value'][0]}"]
    assert list(first) == sorted(first)


def test_series_and_instances_of_a_study_have_its_results(archive_site: Site) -> None:
    study = str(archive_site.received[0].StudyInstanceUID)
    series = archive_site.ask(f"studies/{study}/series")
    assert series.values(MODALITY) == ["CT", "MR", "MR", "SEG", "SR"]
    assert series.values("00201209") == [5, 2, 2, 1, 1]
    for number, each in enumerate(archive_site.made):
        uid = series.json[3 + number][SERIES]["Value"][0]
        (instance,) = archive_site.ask(f"studies/{study}/series/{uid}/instances").json
        assert instance[INSTANCE]["Value"] == [each.sop_instance_uid]
        assert instance["00080016"]["Value"] == [each.sop_class_uid]
    all_of_it = archive_site.ask(f"studies/{study}/instances")
    of_study = {str(each.SOPInstanceUID) for each in archive_site.received if each.StudyInstanceUID == study}
    assert set(all_of_it.values(INSTANCE)) == of_study | {each.sop_instance_uid for each in archive_site.made}
    for each in archive_site.received[:5]:
        (described,) = archive_site.ask("instances", SOPInstanceUID=str(each.SOPInstanceUID)).json
        assert described["00200013"]["Value"] == [each.InstanceNumber]
        assert (described["00280010"]["Value"], described["00280011"]["Value"]) == ([each.Rows], [each.Columns])
        # Nothing in the path says whose it is, so that the answer does.
        assert described[PATIENT_ID]["Value"] == [each.PatientID]
    assert PATIENT_ID not in all_of_it.json[0]


@pytest.mark.parametrize(
    ("query", "patients"),
    [
        ({"PatientName": "doe^jane"}, {"P-1"}),
        ({"PatientName": "*ÄNNE*"}, {"P-2"}),
        ({"00100010": "M?ller*"}, {"P-2"}),
        ({"PatientName": "Doe"}, set()),
        ({"PatientID": "P-?"}, {"P-1", "P-2"}),
        ({"PatientID": "p-1"}, set()),
        ({"StudyDate": "20200131"}, {"P-2"}),
        ({"StudyDate": "20200101-20200131"}, {"P-2"}),
        ({"StudyDate": "-20200130"}, set()),
        ({"StudyDate": "20200132-"}, {"P-1"}),
        ({"StudyTime": "2359"}, {"P-2"}),
        ({"StudyTime": "235959.6-"}, set()),
        ({"AccessionNumber": "ACC-2"}, {"P-2"}),
        ({"AccessionNumber": ""}, {"P-1", "P-2"}),
        ({"StudyDate": "-", "StudyTime": "-", "includefield": ""}, {"P-1", "P-2"}),
        ({"ModalitiesInStudy": "SEG"}, {"P-1"}),
        ({"ModalitiesInStudy": "XA,SR"}, {"P-1"}),
        ({"ModalitiesInStudy": "M*"}, {"P-1", "P-2"}),
        ({"StudyInstanceUID": "1.2.3"}, set()),
    ],
)
def test_keys_are_matched(archive_site: Site, query: dict[str, str], patients: set[str]) -> None:
    answer = archive_site.ask("studies", **query)
    assert answer.status == (200 if patients else 204)
    assert set(answer.values(PATIENT_ID)) == patients


def test_lists_of_uids_across_studies(archive_site: Site) -> None:
    wanted = {str(archive_site.received[n].SOPInstanceUID) for n in (0, 6, -1)}
    answer = archive_site.ask("instances", SOPInstanceUID=",".join(wanted))
    assert set(answer.values(INSTANCE)) == wanted
    assert set(archive_site.ask("series", Modality="SEG,SR").values(MODALITY)) == {"SEG", "SR"}
    assert archive_site.ask("instances", Modality="MR", InstanceNumber="2", PatientID="P-2").values("00200013") == [2]


def test_pages_are_capped_and_say_so(archive_site: Site) -> None:
    study = str(archive_site.received[0].StudyInstanceUID)
    everything = archive_site.ask(f"studies/{study}/instances").values(INSTANCE)
    pages = []
    for offset in range(0, len(everything) + 3, 3):
        answer = archive_site.ask(f"studies/{study}/instances", limit="3", offset=str(offset))
        assert ("additional results" in answer.headers.get("Warning", "")) == (offset + 3 < len(everything))
        pages += answer.values(INSTANCE)
    assert pages == everything
    with archive_site.home.database() as database, serving(archive_site.home, database, maximum_matches=2) as port:
        capped = Site(port, archive_site.home, (), ()).ask("instances", limit="1000")
    assert len(capped.json) == 2
    assert capped.headers["Warning"].startswith('299 meddaemon "There are additional results')


def test_more_is_returned_where_it_is_asked_for(archive_site: Site) -> None:
    of_study = f"studies/{archive_site.received[0].StudyInstanceUID}/series"
    usual = archive_site.ask(of_study, Modality="CT").json[0]
    more = archive_site.ask(of_study, Modality="CT", includefield="ModalitiesInStudy,00180015,00204000").json[0]
    assert MODALITIES not in usual
    assert more[MODALITIES]["Value"] == ["CT", "MR", "SEG", "SR"]
    assert "00180015" in more
    assert more.keys() >= usual.keys()
    everything = archive_site.ask("instances", Modality="CT", includefield="all", limit="1").json[0]
    assert everything["00200037"]["vr"] == "DS"
    fuzzy = archive_site.ask("studies", PatientName="Do^Jane", fuzzymatching="true")
    assert (fuzzy.status, "Only literal matching" in fuzzy.headers["Warning"]) == (204, True)


def test_what_must_be_in_an_answer_is_there_without_a_value(tmp_path: Path) -> None:
    """PS3.18 10.6.3.3, type R: of an image of which nobody knows anything."""
    home = Home.make(tmp_path / "home")
    unknown = ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID")
    unknown += ("PatientBirthDate", "PatientSex", "StudyID", "SeriesNumber", "TimezoneOffsetFromUTC")
    make_series(tmp_path / "in", planes=1, attributes=dict.fromkeys(unknown))
    assert home.cli("import", tmp_path / "in").returncode == 0
    with home.database() as database, serving(home, database) as port:
        site = Site(port, home, (), ())
        (study,), (series,) = site.ask("studies").json, site.ask("series").json
    tags = [f"{tag_for_keyword(keyword):08X}" for keyword in unknown]
    assert [study.get(tag) for tag in tags[:9]] == [{"vr": dictionary_VR(keyword)} for keyword in unknown[:9]]
    assert series[tags[9]] == {"vr": "IS"}
    assert tags[10] not in study


def test_where_the_path_names_no_study_the_answer_says_all_of_it(archive_site: Site) -> None:
    """PS3.18 10.6.3.3.2: of the study everything that a search for studies says, but where it is retrieved from."""
    of_study = {each[STUDY]["Value"][0]: each for each in archive_site.ask("studies").json}
    for path in ("series", "instances"):
        for each in archive_site.ask(path).json:
            whole = of_study[each[STUDY]["Value"][0]]
            assert {tag: each.get(tag) for tag in whole if tag != "00081190"} == {
                tag: said for tag, said in whole.items() if tag != "00081190"
            }


def test_a_kind_of_matching_that_is_not_done_is_said(archive_site: Site) -> None:
    for name in ("fuzzymatching", "emptyvaluematching", "multiplevaluematching"):
        told = archive_site.ask("studies", **{name: "true"})
        assert (told.status, f"The {name} parameter is not supported." in told.headers["Warning"]) == (200, True)
        assert "Warning" not in archive_site.ask("studies", **{name: "false"}).headers


def test_a_private_attribute_is_nothing_that_is_kept(archive_site: Site) -> None:
    (first, _) = archive_site.ask("studies", includefield="0009100A,PatientAge").json
    assert "00101010" in first
    assert "0009100A" not in first


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("studies", "limit=-1"),
        ("studies", "limit=1&limit=2"),
        ("studies", "offset=1e9"),
        ("studies", "offset=999999999"),
        ("studies", "Modality=CT"),
        ("studies", "NumberOfStudyRelatedInstances=3"),
        ("studies", "PatientWeight=70"),
        ("studies", "patient%20name=Doe"),
        ("studies", "00100010.00100020=x"),
        ("studies", "PatientName=Doe&00100010=Doe"),
        ("studies", "StudyDate=yesterday"),
        ("studies", "StudyDate=--"),
        ("studies", "StudyTime=25:00"),
        ("studies", "StudyInstanceUID=1.2.*"),
        ("studies", "StudyInstanceUID=" + ",".join(["1.2"] * 3 + [f"1.{n}" for n in range(600)])),
        ("studies", "PatientName=" + "*a" * 600),
        ("studies", "fuzzymatching=perhaps"),
        ("studies", "emptyvaluematching=perhaps"),
        ("studies", "0009100A=x"),
        ("studies", "includefield=%27%3B--"),
        ("studies/not-a-uid/series", ""),
        ("studies/1.2%5C1.3/series", ""),
        ("instances", "InstanceNumber=one"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_with_a_reason(archive_site: Site, path: str, query: str) -> None:
    answer = archive_site.ask(f"{path}?{query}" if query else path)
    assert answer.status == 400, answer.body
    assert answer.headers["Content-Type"].startswith("text/plain")
    reason = answer.body.decode()
    assert reason.count("\n") == 1
    assert "Doe" not in reason
    assert "yesterday" not in reason


def test_what_cannot_be_written_is_said(archive_site: Site) -> None:
    assert archive_site.ask("studies", {"Accept": "application/dicom+xml"}).status == 406
    assert archive_site.ask("studies", {"Accept": "application/json"}).headers["Content-Type"] == "application/json"


def test_only_one_version_of_an_object_is_seen_and_none_that_is_gone(database: Database) -> None:
    """Conflicts, objects whose files are gone, our own results that came back, and results that do not count."""
    study = register(database, received("one", sop_instance_uid="1.2.3.1.1")).study_id
    register(database, received("another content", sop_instance_uid="1.2.3.1.1"))
    register(database, received("gone"))
    with database.write() as connection:
        instances.note_missing(connection, [received("gone").sha256], missing=True)
    enqueue(database, study, rule="rule")
    job = claim(database)
    with database.write() as connection:
        finish(connection, job)
    own = f"1.2.9.{job.id}.1"
    register(database, received("came back", series=f"1.2.9.{job.id}", sop_instance_uid=own))
    with database.read() as connection:
        seen = catalogue.seen_objects(connection, "1.2.3")
        (extent,) = catalogue.extents(connection, [study]).values()
    assert [(each.sop_instance_uid, each.is_result) for each in seen] == [
        ("1.2.3.1.1", False),
        (own, True),
        (f"1.2.9.{job.id}.2", True),
    ]
    assert (extent.series, extent.instances) == (2, 3)
    with database.write() as connection:
        other = tables.result_object.update().where(tables.result_object.c.kind == "SEG").values(edition="labelmap")
        connection.execute(other)
    with database.read() as connection:
        # Made for destinations that want another form: the usual edition is what is seen.
        assert [each.sop_instance_uid for each in catalogue.seen_objects(connection, "1.2.3") if each.is_result] == [
            f"1.2.9.{job.id}.2"
        ]
        assert catalogue.extents(connection, [study])[study].instances == 2
    enqueue(database, study, rule="rule")  # the result is outdated by that
    with database.read() as connection:
        seen = catalogue.seen_objects(connection, "1.2.3")
    assert [each.sop_instance_uid for each in seen] == ["1.2.3.1.1"]


def test_every_page_of_a_large_archive_is_seen_once(database: Database) -> None:
    with database.write() as connection:
        connection.execute(
            tables.study.insert(),
            [
                {"study_instance_uid": f"1.9.{n}", "state": "complete", "generation": 1, "first_received_at": 0.0,
                 "last_received_at": 0.0, "patient_id": f"P{n % 3}", "accession_number": "", "study_date": "20240101",
                 "study_description": ""}
                for n in range(450)
            ],
        )  # fmt: skip
        connection.execute(
            tables.series.insert(),
            [
                {"study_id": n + 1, "series_instance_uid": f"1.9.{n}.1", "modality": "CT", "series_description": ""}
                for n in range(450)
            ],
        )
        connection.execute(
            tables.instance.insert(),
            [
                {"series_id": n + 1, "sop_instance_uid": f"1.9.{n}.1.1", "sop_class_uid": "1.2", "size": 1,
                 "transfer_syntax_uid": "1.2.840.10008.1.2.1", "sha256": f"{n:064x}", "calling_ae_title": "",
                 "header": {"PatientID": [f"P{n % 3}"], "StudyDate": ["20240101"]}, "called_ae_title": "",
                 "received_at": 0.0}
                for n in range(450)
            ],
        )  # fmt: skip
    with database.read() as connection:
        pages = list(catalogue.seen_studies(connection, Narrowing()))
        narrowed = [
            study.study_instance_uid
            for narrowing in (
                Narrowing(patient_ids=("P1",), first_date="20240101", last_date="20240101", modalities=("CT",)),
                Narrowing(series=("1.9.7.1",)),
                Narrowing(instances=("1.9.8.1.1",)),
            )
            for page in catalogue.seen_studies(connection, narrowing)
            for study in page
        ]
    uids = [study.study_instance_uid for page in pages for study in page]
    assert uids == [f"1.9.{n}" for n in range(449, -1, -1)]
    assert narrowed[-2:] == ["1.9.7", "1.9.8"]
    assert len(narrowed) == 152


# --- the language of keys, without a server -----------------------------------------------------------------------

ALPHABET = st.text("ab*?", max_size=8)


@given(ALPHABET, st.text("ab", max_size=8))
def test_patterns_mean_what_the_standard_says(pattern: str, text: str) -> None:
    def said(at: int, begin: int) -> bool:
        if at == len(pattern):
            return begin == len(text)
        if pattern[at] == "*":
            return any(said(at + 1, end) for end in range(begin, len(text) + 1))
        return begin < len(text) and pattern[at] in {"?", text[begin]} and said(at + 1, begin + 1)

    assert matches_pattern(pattern, text) == said(0, 0)


def test_no_pattern_is_expensive() -> None:
    steps = 0

    class Counted(str):
        def __getitem__(self, key: object) -> str:
            nonlocal steps
            steps += 1
            return str.__getitem__(self, key)  # type: ignore[index]

    assert not matches_pattern("*a" * 100 + "b", Counted("a" * 256))
    assert steps < 256 * 256 * 2


@given(
    st.sampled_from(list(Level)),
    st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(
                    ["PatientName", "StudyDate", "StudyTime", "Modality", "limit", "offset", "includefield"]
                ),
                st.sampled_from(["SOPInstanceUID", "InstanceNumber", "00100020", "7FE00010", "fuzzymatching"]),
                st.text(max_size=12),
            ),
            st.one_of(st.text(max_size=30), st.sampled_from(["20240101-", "1200", "CT", "1.2.3", "a*b?", "all", "\0"])),
        ),
        max_size=6,
    ),
)
@examples(max_examples=300)
def test_any_query_is_understood_or_refused(level: Level, parameters: list[tuple[str, str]]) -> None:
    try:
        search = parse_search(level, parameters, {}, 100)
    except InvalidQuery:
        return
    assert 0 <= search.limit <= 100
    assert search.narrowing is not None
    header = dict.fromkeys(search.keys, ("20240101", "x�", ""))
    for each in Level:
        search.met_by(each, header)
        json.dumps(search.attributes(each, header)).encode()


@given(st.dates(), st.dates(), st.dates())
def test_a_date_lies_in_a_range_or_not(first: object, last: object, wanted: object) -> None:
    low, high, day = (each.strftime("%Y%m%d").zfill(8) for each in (first, last, wanted))  # type: ignore[attr-defined]
    assert parse_key("StudyDate", f"{low}-{high}").met_by([day]) == (low <= day <= high)
    assert parse_key("StudyDate", f"{low}-").met_by([day]) == (low <= day)
    assert parse_key("StudyDate", f"-{high}").met_by([day]) == (day <= high)
    assert not parse_key("StudyDate", f"{low}-{high}").met_by([])


def test_names_of_people_match_in_every_writing() -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    for wanted in ("yamada^tarou", "山田^太郎", "Yamada*", "*太郎", name, "YAMADA^TAROU^^^", "ｙａｍａｄａ*"):
        assert parse_key("PatientName", wanted).met_by([name]), wanted
    # Of several component groups each is asked of its own, and one that is empty is not asked.
    for wanted in ("=山田*", "yamada*=山田^太郎", "==やまだ*", "Yamada^Tarou=", "*=*=*"):
        assert parse_key("PatientName", wanted).met_by([name]), wanted
    for wanted in ("=Yamada*", "Yamada*=鈴木*", "yamada=山田^太郎", "山田^太郎=*", "*=*=*=*"):
        assert not parse_key("PatientName", wanted).met_by([name]), wanted
    for wanted in ("Yamada", "山田", "?amada"):
        assert not parse_key("PatientName", wanted).met_by([name]), wanted
