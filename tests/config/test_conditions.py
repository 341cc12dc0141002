from pathlib import Path
from typing import Any as Anything

import pytest

from meddaemon.config import toml_file
from meddaemon.config.conditions import parse_condition
from meddaemon.config.problems import Problems
from meddaemon.domain.conditions import All, Any, Condition, Equals, InRange, Matches, Not, OneOf, Present


def _parsed(tmp_path: Path, condition: str) -> tuple[Condition, list[str]]:
    path = tmp_path / "rules.toml"
    path.write_text(f"study = {condition}\n")
    document = toml_file.read(path)
    problems = Problems(document)
    parsed = parse_condition(document.data["study"], ("study",), problems)
    return parsed, [text.removeprefix(f"{path}:") for text in problems.texts]


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ('{ attribute = "Modality", equals = "MR" }', Equals(attribute="Modality", value="MR")),
        ('{ attribute = "instances", equals = 3 }', Equals(attribute="instances", value="3")),
        ('{ attribute = "Modality", one_of = ["CT", "MR"] }', OneOf(attribute="Modality", values=("CT", "MR"))),
        ('{ attribute = "SeriesDescription", matches = "^t1" }', Matches(attribute="SeriesDescription", pattern="^t1")),
        ('{ attribute = "SliceThickness", min = 1 }', InRange(attribute="SliceThickness", minimum=1.0)),
        ('{ attribute = "instances", min = 2, max = 2.5 }', InRange(attribute="instances", minimum=2, maximum=2.5)),
        ('{ attribute = "PatientID", present = false }', Present(attribute="PatientID", present=False)),
        (
            '{ all = [ { attribute = "Modality", equals = "MR" },'
            ' { any = [ { attribute = "kind", equals = "image" } ] } ] }',
            All((Equals(attribute="Modality", value="MR"), Any((Equals(attribute="kind", value="image"),)))),
        ),
        (
            '{ not = { attribute = "orientation", equals = "axial" } }',
            Not(Equals(attribute="orientation", value="axial")),
        ),
    ],
)
def test_a_condition_becomes_a_domain_value(tmp_path: Path, text: str, condition: Condition) -> None:
    assert _parsed(tmp_path, text) == (condition, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('"MR"', "1: study: must be a table"),
        ("{}", "1: study: needs exactly one of all, any, not, attribute"),
        (
            '{ attribute = "Modality", not = {} }',
            "1: study: needs exactly one of all, any, not, attribute, not not and",
        ),
        ('{ atribute = "Modality", equals = "MR" }', "study.atribute: unknown key; did you mean 'attribute'?"),
        ('{ attribute = "Modalty", equals = "MR" }', "study.attribute: 'Modalty' is neither a DICOM keyword nor"),
        ('{ attribute = "Modalty", equals = "MR" }', "did you mean 'Modality'?"),
        ('{ attribute = "orientatoin", equals = "axial" }', "did you mean 'orientation'?"),
        ('{ attribute = "PixelData", present = true }', "PixelData is of VR OB or OW and cannot be tested"),
        ('{ attribute = "ReferencedStudySequence", present = true }', "is of VR SQ and cannot be tested"),
        ('{ attribute = 3, equals = "MR" }', "study.attribute: must be the keyword of a DICOM attribute in quotes"),
        ('{ attribute = "Modality" }', "1: study: needs exactly one test"),
        ('{ attribute = "Modality", equals = "MR", min = 1 }', "not equals and min; combine several with all"),
        ('{ attribute = "Modality", equals = "" }', "study.equals: must not be empty; use present = false"),
        ('{ attribute = "Modality", equals = 1.5 }', "study.equals: compares text; test a number with min and max"),
        ('{ attribute = "Modality", equals = true }', "study.equals: must be text or a whole number"),
        ('{ attribute = "Modality", one_of = [] }', "study.one_of: must be an array of at least one value"),
        ('{ attribute = "Modality", one_of = "MR" }', "study.one_of: must be an array of at least one value"),
        ('{ attribute = "Modality", matches = "(" }', "study.matches: '(' is not a regular expression: missing )"),
        ('{ attribute = "instances", min = "3" }', "study.min: must be a number"),
        ('{ attribute = "instances", max = nan }', "study.max: must be a number"),
        ('{ attribute = "instances", min = 3, max = 2 }', "study.min: min 3 is greater than max 2"),
        ('{ attribute = "Modality", present = "yes" }', "study.present: must be true or false"),
        ("{ all = [] }", "study.all: must be an array of at least one condition"),
        ('{ any = [ { attribute = "Modality" } ] }', "study.any[0]: needs exactly one test"),
        (
            '{ not = { all = 1 }, equals = "x" }',
            "study.equals: a test needs an attribute and cannot stand beside 'not'",
        ),
    ],
)
def test_a_wrong_condition_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    _, problems = _parsed(tmp_path, text)
    assert any(problem in each for each in problems), problems


def test_all_problems_of_a_nested_condition_come_at_once_with_their_lines(tmp_path: Path) -> None:
    _, problems = _parsed(
        tmp_path,
        """{ all = [
          { attribute = "Modalty", equals = "MR" },
          { any = [
             { attribute = "instances", min = "x" },
          ] },
        ] }""",
    )
    assert [each.split(":")[0:2] for each in problems] == [
        ["2", " study.all[0].attribute"],
        ["4", " study.all[1].any[0].min"],
    ]


def test_a_stand_in_for_a_wrong_condition_is_still_a_condition(tmp_path: Path) -> None:
    condition: Anything = _parsed(tmp_path, '{ all = [ { attribute = "Modality" }, 3 ] }')[0]
    assert condition.evaluate({}).held in (True, False)
