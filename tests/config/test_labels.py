"""Labels of conditions: named in explanations and objections, and nothing else changes."""

import pytest

from meddaemon.config.conditions import parse_condition
from meddaemon.config.problems import Problems
from meddaemon.domain.conditions import unmet


def test_a_label_stands_for_its_parts_in_objections() -> None:
    problems = Problems(None)
    raw = {
        "all": [
            {"label": "magnetic resonance", "attribute": "Modality", "equals": "MR"},
            {"label": "the head", "any": [{"attribute": "BodyPartExamined", "equals": "HEAD"}]},
            {"attribute": "Rows", "min": 10},
            {"not": {"attribute": "BodyPartExamined", "equals": "CHEST"}},
        ]
    }
    condition = parse_condition(raw, (), problems)
    problems.raise_if_any()
    outcome = condition.evaluate({"Modality": (("CT",),), "BodyPartExamined": (("CHEST",),), "Rows": (("5",),)})
    assert unmet(outcome) == (
        "magnetic resonance",
        "the head",
        "Rows in range 10 ≤ x (saw 5)",
        "not: BodyPartExamined equals 'CHEST' (saw CHEST)",
    )
    assert (
        unmet(condition.evaluate({"Modality": (("MR",),), "BodyPartExamined": (("HEAD",),), "Rows": (("64",),)})) == ()
    )


@pytest.mark.parametrize("label", [5, "x" * 81])
def test_a_label_that_is_no_short_text_is_a_problem(label: object) -> None:
    problems = Problems(None)
    parse_condition({"label": label, "attribute": "Modality", "equals": "MR"}, ("series",), problems)
    (text,) = problems.texts
    assert "at most 80 characters" in text
