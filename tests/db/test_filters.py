"""The language in which results are asked for: what it says, what it refuses, and that the database understands it."""

import operator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_samples import BRAIN, OUTLETS, claim, enqueue, received, register, stored_objects
from sqlalchemy import update

from meddaemon.db import jobs, results, tables
from meddaemon.db.engine import Database
from meddaemon.db.results import ResultRow
from meddaemon.domain.codes import MILLILITRE, STANDARD_DEVIATION, VOLUME, Code
from meddaemon.domain.filters import (
    AllOf,
    AnyOf,
    Filter,
    InvalidFilter,
    Made,
    Measured,
    Not,
    Number,
    Present,
    Row,
    Text,
    holds,
    parse_filter,
)
from meddaemon.domain.result import Analysis, Finding, Measurement, ResultStatus, Segment

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def code(meaning: str) -> Code:
    return Code(value=f"V{meaning[:9]}", scheme="99TEST", meaning=meaning)


CUBIC_MM = Code(value="mm3", scheme="UCUM", meaning="Cubic Millimeter")
HU = Code(value="[hnsf'U]", scheme="UCUM", meaning="Hounsfield unit")
MEAN = code("Mean attenuation")

# (finding, present, segment, measurements)
FINDINGS = (
    (code("Spleen"), True, "Spleen", ((VOLUME, 320.0, MILLILITRE), (MEAN, 45.0, HU))),
    (code("Spleen"), True, "Spleen", ((VOLUME, 250_000.0, CUBIC_MM),)),
    (
        code("Liver 50%_x"),
        True,
        "Liver",
        ((VOLUME, None, MILLILITRE), (VOLUME, 2.0, MILLILITRE, STANDARD_DEVIATION), (MEAN, -3.5, HU)),
    ),
    (code("Fracture"), False, None, ((code("Certainty"), 12.0, code("%")),)),
)
MODELS = ("organs", "Organs-2", "fractures")


def record(database: Database, model: str, status: ResultStatus, made: datetime, serial: int) -> None:
    study = register(
        database, received(f"an instance {serial}", study=f"1.2.{serial}", series=f"1.2.{serial}.1")
    ).study_id
    enqueue(database, study, model=model)
    segments = tuple(
        Segment(
            number=number,
            label=label or "",
            category=BRAIN,
            type=finding,
            colour=(1, 2, 3),
            laterality=None,
            voxel_count=1,
            tracking_id=f"{number}",
            tracking_uid=f"1.2.{serial}.{number}",
        )
        for number, (finding, _, label, _) in enumerate(FINDINGS, 1)
        if label
    )
    analysis = Analysis(
        status=status,
        reason="",
        segments=segments,
        findings=tuple(
            Finding(
                code=finding,
                segment_number=number if label else None,
                present=present,
                measurements=tuple(
                    Measurement(
                        name=name,
                        value=value,
                        unit=unit,
                        derivation=derived[0] if derived else None,
                        key=f"{name.meaning.lower()[:6]}{'_spread' if derived else ''}",
                    )
                    for name, value, unit, *derived in measured
                ),
            )
            for number, (finding, present, label, measured) in enumerate(FINDINGS, 1)
        ),
        labels=np.ones((1, 2, 2), np.uint8),
    )
    job = claim(database)
    with database.write() as connection:
        result_id = results.record(
            connection,
            jobs.complete(connection, job),
            analysis,
            stored_objects(job),
            model_version=f"{serial}.0",
            series_instance_uid="1.2.3.1",
            provenance={},
            seconds={},
            outlets=OUTLETS,
        )
        connection.execute(update(tables.result).where(tables.result.c.id == result_id).values(created_at=made))


@pytest.fixture
def filled(database: Database) -> Database:
    for serial, model in enumerate(MODELS, 1):
        status = ResultStatus.IMPLAUSIBLE if serial == 2 else ResultStatus.PLAUSIBLE
        record(database, model, status, NOW - timedelta(days=20 * serial), serial)
    return database


def found(database: Database, text: str) -> list[ResultRow]:
    with database.read() as connection:
        return results.query(connection, satisfying=parse_filter(text, now=NOW))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            'finding = "Spleen" and volume > 300 mL and since 30d',
            [("organs", "Mean attenuation", 45.0), ("organs", "Volume", 320.0)],
        ),
        ("volume > 300mL and measurement = Volume and model = ORGANS", [("organs", "Volume", 320.0)]),
        ("volume_spread < 3 mL and measurement = volume_spread and since 30d", [("organs", "Volume", 2.0)]),
        ("volume < 0.3 L and model = fractures", [("fractures", "Volume", 250_000.0)]),
        ('"mean attenuation" <= -3 HU and status = implausible', "Liver"),
        ("not present and until 50d", [("fractures", "Certainty", 12.0)]),
        ('finding ~ "50%_" and model in (organs, fractures) and study = 1', "Liver"),
        ('certainty >= 12 "V%" and since 2026-11-01', [("organs", "Certainty", 12.0)]),
        ('accession = "" and until 50d and measurement = Certainty', [("fractures", "Certainty", 12.0)]),
        ("segment != Spleen and version = 1.0 and not segment ~ LIV", [("organs", "Certainty", 12.0)]),
    ],
)
def test_what_is_asked_for_is_found(filled: Database, text: str, wanted: object) -> None:
    rows = found(filled, text)
    if isinstance(wanted, str):
        assert {row.finding for row in rows} == {"Liver 50%_x"}
        assert {row.measurement for row in rows} == {"Volume", "Mean attenuation"}
    else:
        assert [(row.model, row.measurement, row.value) for row in rows] == wanted


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
def test_letters_beyond_ascii_are_compared_as_they_are_in_any_locale(filled: Database) -> None:
    with filled.write() as connection:
        connection.execute(update(tables.result).values(model="ÜBERSICHT"))
        # As in a database that was made with this locale; those of tests may have another one.
        for view in sa.inspect(connection).get_view_names():
            connection.execute(sa.text(f"DROP VIEW IF EXISTS {view} CASCADE"))
        connection.execute(sa.text('ALTER TABLE result ALTER COLUMN model TYPE text COLLATE "C.utf8"'))
    assert found(filled, 'model = "Übersicht"')
    assert found(filled, 'model ~ "ÜBER"')


names = st.sampled_from(
    ["Spleen", "spleen", "VSpleen", "Liver 50%_x", "50%", "_", "organs", "volume", "1", "x' or 1=1 --"]
)
tests = st.one_of(
    st.builds(
        Text,
        st.sampled_from(["finding", "segment", "measurement", "model", "version", "status", "study", "accession"]),
        st.lists(names, min_size=1, max_size=3).map(tuple),
        st.booleans(),
    ),
    st.builds(
        Number,
        st.sampled_from(["volume", "volume_spread", "Mean attenuation", "certainty", "118565006"]),
        st.sampled_from(["=", "!=", "<", "<=", ">", ">="]),
        st.sampled_from([-3.5, 0.0, 12.0, 45.0, 250.0, 320.0]),
        st.sampled_from([(), (("mL", 1.0), ("mm3", 1e-3)), (("[hnsf'U]", 1.0),)]),
    ),
    st.builds(Made, st.booleans(), st.integers(0, 70).map(lambda days: NOW - timedelta(days=days))),
    st.just(Present()),
)
asked = st.recursive(
    tests,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: AllOf(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: AnyOf(tuple(parts))),
    ),
    max_leaves=6,
)


def as_row(row: ResultRow, series: str, of_finding: list[ResultRow]) -> Row:
    return Row(
        fields={
            "finding": (row.finding_value, row.finding),
            # The type of each of these segments is the code of its finding.
            "segment": (row.segment, row.finding_value, row.finding) if row.segment else (),
            "measurement": (row.measurement_value, row.measurement, row.key),
            "model": (row.model,),
            "version": (row.model_version,),
            "status": (row.status.value,),
            "study": (str(row.study_id), row.study_instance_uid),
            "series": (series,),
            "accession": (row.accession_number,),
        },
        measurements=[
            Measured(
                names=(each.key,) if each.derivation else (each.key, each.measurement_value, each.measurement),
                value=each.value,
                unit=each.unit,
            )
            for each in of_finding
        ],
        present=row.present,
        made=row.created_at,
    )


@given(wanted=asked)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_database_understands_a_filter_as_it_is_meant(filled: Database, wanted: Filter) -> None:
    with filled.read() as connection:
        every = results.query(connection)
        rows = results.query(connection, satisfying=wanted)
    # Measurements of one finding follow each other.
    findings: dict[int, list[ResultRow]] = {}
    sizes = [len(measured) for *_, measured in FINDINGS] * len(MODELS)
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    for number, row in zip(numbers, sorted(every, key=operator.attrgetter("id")), strict=True):
        findings.setdefault(number, []).append(row)
    expected = {row.id for group in findings.values() for row in group if holds(wanted, as_row(row, "1.2.3.1", group))}
    assert {row.id for row in rows} == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "character 1: a field"),
        ("finding = ", "character 11: text expected"),
        ('finding = "Spleen', "character 11: the quotation mark is not closed"),
        (
            "volume > 300 mLL",
            "character 14: the unit 'mLL' is not known: put one of UCUM in quotation marks; did you mean mL?",
        ),
        ("volume > much", "character 10: a number expected, which 'volume' is compared with"),
        ("finding > 3", "character 10: the field finding is text"),
        ("findng = Spleen", "did you mean the field finding?"),
        ("findng ~ Spleen", "did you mean the field finding?"),
        ("(present", "character 9: the parenthesis of character 1 is open"),
        ("present)", "character 8: ')': no parenthesis is open"),
        ("present volume > 3", "character 9: 'volume': and/or expected before this"),
        ("since yesterday", "character 7: a moment expected"),
        ("since 2026-13-01", "character 7: '2026-13-01' is no date"),
        ("volume = 1e999", "a number expected"),
        ("and present", "character 1: a field"),
        ("(" * 30 + "present", "is nested more than 20 deep"),
        ("not " * 30 + "present", "is nested more than 20 deep"),
        (" or ".join(["present"] * 101), "asks more than 100 questions"),
        ("present" + " " * 2000, "is longer than 2000 characters"),
        ("model in organs", "a list in parentheses expected"),
        ("status = plausable", "character 7: a status is plausible, implausible, not_evaluable"),
        ("status in (plausible, fine)", "a status is plausible"),
        ("model = a\udcff", "character 10: is no character"),
        ("model = 'a\0'", "is no character"),
        ("model = 'a", "the quotation mark is not closed"),
        ("model in (organs; fractures)", "a comma or a closing parenthesis expected"),
    ],
)
def test_what_is_no_filter_is_refused_at_its_place(text: str, said: str) -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse_filter(text, now=NOW)
    assert said in str(caught.value)


@given(st.text(max_size=60) | st.from_regex(r"[a-z\"()=<>~ 0-9.mLdn]{0,60}"))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    try:
        parse_filter(text, now=NOW)
    except InvalidFilter as caught:
        invalid = caught
    else:
        return
    assert str(invalid).startswith("character ")


def test_what_binds_first_and_what_words_mean() -> None:
    parsed = parse_filter("not present or model = a and (study = 1 or since 6w)", now=NOW)
    assert parsed == AnyOf(
        (
            Not(Present()),
            AllOf(
                (
                    Text("model", ("a",)),
                    AnyOf((Text("study", ("1",)), Made(True, NOW - timedelta(weeks=6)))),
                )
            ),
        )
    )
