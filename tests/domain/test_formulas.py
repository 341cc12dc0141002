"""Formulas over measurements: what they mean, what cannot be computed, and what is none."""

import ast
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meddaemon.domain.formulas import InvalidFormula, Measured, evaluate, measured_in, parse_formula

LEFT, RIGHT = Measured("volume", "Left lung"), Measured("volume", "Right lung")
VALUES = {LEFT: 1500.0, RIGHT: 2000.0, Measured("mean", "Spleen"): None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('volume of "Left lung" / (volume of "Left lung" + volume of "Right lung") * 70', 30.0),
        ("2 + 3 * 4 - 6 / 3 - 1", 11.0),
        ("-(2 - 5) * -2", -6.0),
        ('max(volume of "Left lung", volume of "Right lung", 3)', 2000.0),
        ("min(4, 2 + 1)", 3.0),
        ("1e3 / .5", 2000.0),
        ('volume of "Left lung" / (2000 - volume of "Right lung")', None),
        ('mean of "Spleen" * 0', None),
        ('volume of "Liver"', None),
        ('max(1, mean of "Spleen")', None),
        ("1e300 * 1e300", None),
    ],
)
def test_what_a_formula_is_worth(text: str, value: float | None) -> None:
    assert evaluate(parse_formula(text), VALUES) == (value if value is None else pytest.approx(value))


def test_what_it_names() -> None:
    formula = parse_formula('max(volume of "Left lung", 1) / volume of "Right lung" - mean of "Spleen"')
    assert list(measured_in(formula)) == [LEFT, RIGHT, Measured("mean", "Spleen")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "character 1: a number, a parenthesis"),
        ("1 +", "character 4: a number, a parenthesis"),
        ("(1 + 2", "character 7: the parenthesis of character 1 is open"),
        ("1 2", "character 3: '2': an operation"),
        ("volume", "character 7: of expected"),
        ("volume of Spleen", "character 11: the name of a segment in quotation marks"),
        ('__import__("os")', "character 1: a number"),
        ("1e999", "character 1: 1e999 is no finite number"),
        ("(" * 30, "is nested more than 20 deep"),
        ("-" * 30 + "1", "is nested more than 20 deep"),
        ("1" * 1001, "is longer than 1000 characters"),
    ],
)
def test_what_is_no_formula(text: str, said: str) -> None:
    with pytest.raises(InvalidFormula) as caught:
        parse_formula(text)
    assert said in str(caught.value)


sums = st.recursive(
    st.integers(0, 99).map(str) | st.floats(0, 99, allow_nan=False).map(lambda value: f"{value:.3f}"),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(" ".join),
        inner.map(lambda part: f"({part})"),
        inner.map(lambda part: f"-({part})"),
    ),
    max_leaves=8,
)


@given(sums)
@settings(max_examples=200, deadline=None)
def test_arithmetic_is_what_everybody_takes_it_for(text: str) -> None:
    try:
        expected = eval(compile(ast.parse(text, mode="eval"), "formula", "eval"), {})
    except ZeroDivisionError:
        expected = None
    found = evaluate(parse_formula(text), {})
    if expected is None or not math.isfinite(expected):
        assert found is None
    else:
        assert found == pytest.approx(expected)
