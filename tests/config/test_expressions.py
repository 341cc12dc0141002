"""Expressions over names of required series: they mean what Python means by them, and mistakes are shown."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.config.expressions import (
    MAXIMUM_DEPTH,
    MAXIMUM_LENGTH,
    InvalidExpression,
    parse_expression,
)
from meddaemon.config.settings import load
from meddaemon.domain.conditions import unmet
from meddaemon.domain.errors import InvalidConfiguration
from tests.config.test_settings import MODEL, MODELS, RULE

NAMES = ("T1", "T2", "FLAIR", "post_contrast", "DWI")


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> str:
    """Draw what Python reads as an expression, with as many spaces and parentheses as anybody may write."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(NAMES))
    kind = draw(st.sampled_from(["and", "or", "not", "parentheses"]))
    part = draw(expressions(depth=depth - 1))
    if kind == "not":
        return f"not {part}"
    if kind == "parentheses":
        return f"({draw(st.sampled_from(['', ' ']))}{part})"
    return f"{part} {kind}{draw(st.sampled_from([' ', '  ', chr(10)]))}{draw(expressions(depth=depth - 1))}"


@given(text=expressions(), present=st.frozensets(st.sampled_from(NAMES)))
def test_an_expression_means_what_python_means_by_it(text: str, present: frozenset[str]) -> None:
    condition, used = parse_expression(text, NAMES)
    outcome = condition.evaluate(dict.fromkeys(present, (("1.2.3",),)))
    expected = eval(f"({text})", {}, {name: name in present for name in NAMES})
    assert outcome.held is bool(expected)
    assert used == set(re.findall(r"\w+", text)) - {"and", "or", "not"}
    assert (unmet(outcome) == ()) is outcome.held


PIECES = st.sampled_from([*"()andortAND TX1-_\n\0ä&", *NAMES, " and ", " or ", " not "])


@given(text=st.lists(PIECES, max_size=40).map("".join))
def test_anything_is_an_expression_or_refused_with_its_position(text: str) -> None:
    try:
        parse_expression(text, NAMES)
    except InvalidExpression as wrong:
        position = int(re.match(r"character (\d+): ", str(wrong))[1])  # type: ignore[index]
        assert 1 <= position <= len(text) + 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("T1 and", "character 7: the name of a required series expected"),
        ("", "character 1: the name of a required series expected"),
        ("T1 T2", "character 4: 'T2': and/or expected before this"),
        ("T1)", "character 3: ')': no parenthesis is open"),
        ("(T1 or (T2)", "character 12: the parenthesis of character 1 is open"),
        ("T1 and (or T2)", "character 9: the name of a required series expected, not 'or'"),
        ("T1 and FLARE", "character 8: there is no required series 'FLARE'; did you mean 'FLAIR'?"),
        ("T1 & T2", "character 4: '&' has no meaning here"),
        ("T1 AND t2", "character 8: there is no required series 't2'; did you mean 'T2'?"),
        ("(" * (MAXIMUM_DEPTH + 1) + "T1", f"character {MAXIMUM_DEPTH + 2}: is nested more than {MAXIMUM_DEPTH} deep"),
        ("not " * 10_000 + "T1", f"is longer than {MAXIMUM_LENGTH} characters"),
    ],
)
def test_a_mistake_is_shown_with_its_position(text: str, complaint: str) -> None:
    with pytest.raises(InvalidExpression) as raised:
        parse_expression(text, NAMES)
    assert complaint in str(raised.value)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('requires = "T1"', "requires: character 1: there is no required series 'T1'"),
        ('requires = "T1"\nrequired_series = 3', "required_series: must be a table"),
        (
            'requires = "T1"\nrequired_series.T1 = { attribute = "Modalty", equals = "MR" }',
            "required_series.T1.attribute: 'Modalty' is neither",
        ),
        (
            'requires = "T1"\nrequired_series.T1 = { attribute = "Modality", equals = "MR" }\n'
            'required_series.T2 = { attribute = "Modality", equals = "MR" }',
            "required_series.T2: is not named in requires",
        ),
        (
            'required_series.T1 = { attribute = "Modality", equals = "MR" }',
            "required_series.T1: is defined, and there is no requires that names it",
        ),
        (
            'requires = "T1"\nrequired_series."T 1" = { attribute = "Modality", equals = "MR" }',
            "is no name: letters, digits",
        ),
        (
            'requires = "T1"\nrequired_series.AND = { attribute = "Modality", equals = "MR" }',
            "required_series.AND: is no name",
        ),
        ("requires = 3", "requires: should be a valid string"),
        ('when_incomplete = "wait"', "when_incomplete: should be 'run', 'hold' or 'discard'"),
        ("maximum_wait_seconds = -1", "maximum_wait_seconds: should be greater than or equal to 0"),
    ],
)
def test_problems_of_a_rule_are_told_with_file_and_line(tmp_path: Path, lines: str, problem: str) -> None:
    (tmp_path / "models" / "example").mkdir(parents=True)
    (tmp_path / "models" / "example" / "contract.toml").write_text(MODEL)
    file = tmp_path / "meddaemon.toml"
    file.write_text(MODELS + RULE.replace('destinations = ["pacs"]\n', "") + lines)
    with pytest.raises(InvalidConfiguration) as raised:
        load(file, {})
    found = [each for each in raised.value.problems if problem in each]
    assert found, raised.value.problems
    assert re.match(rf"{file}:\d+: rules\[0\]\.", found[0])


def test_what_the_choosers_of_a_rule_ask_for_is_read_from_headers(tmp_path: Path) -> None:
    (tmp_path / "models" / "example").mkdir(parents=True)
    (tmp_path / "models" / "example" / "contract.toml").write_text(MODEL)
    file = tmp_path / "meddaemon.toml"
    chooser = 'requires = "T1"\nrequired_series.T1 = { attribute = "ScanningSequence", contains = "GR" }\n'
    file.write_text(MODELS + RULE.replace('destinations = ["pacs"]\n', "") + chooser)
    settings = load(file, {})
    assert "ScanningSequence" in settings.keywords
    (rule,) = settings.rules
    assert rule.requires is not None
    assert rule.requires.text == "T1"
