"""Series that a rule requires, as they are written in TOML: an expression over names, and a condition for each name."""

import re
from collections.abc import Mapping

from meddaemon.config.conditions import parse_condition
from meddaemon.config.expressions import NAME, WORDS, InvalidExpression, parse_expression
from meddaemon.config.problems import Problems, did_you_mean
from meddaemon.config.toml_file import Keys
from meddaemon.domain.completeness import Requirement
from meddaemon.domain.conditions import Condition

_REQUIRES, _SERIES = "requires", "required_series"


def parse_requirement(rule: Mapping[str, object], keys: Keys, problems: Problems) -> Requirement | None:
    """Return what `requires` and `required_series` of a rule say; None where nothing is required.

    Everything that is wrong is added to `problems`; the value returned then is only a stand-in.
    """
    series = _series(rule.get(_SERIES, {}), (*keys, _SERIES), problems)
    text = rule.get(_REQUIRES, "")
    if not isinstance(text, str) or not text.strip():
        # Another type is told by the settings' own check.
        for name in series:
            problems.add((*keys, _SERIES, name), f"is defined, and there is no {_REQUIRES} that names it")
        return None
    try:
        expression, used = parse_expression(text, series.keys())
    except InvalidExpression as wrong:
        problems.add((*keys, _REQUIRES), str(wrong))
        return None
    for name in series.keys() - used:
        problems.add((*keys, _SERIES, name), f"is not named in {_REQUIRES}{did_you_mean(name, used)}")
    return Requirement(text=text, expression=expression, series=series)


def _series(raw: object, keys: Keys, problems: Problems) -> dict[str, Condition]:
    if not isinstance(raw, Mapping):
        problems.add(keys, 'must be a table such as { T1 = { attribute = "SeriesDescription", matches = "t1" } }')
        return {}
    for name in raw:
        if not re.fullmatch(NAME, name) or name.lower() in WORDS:
            problems.add((*keys, name), "is no name: letters, digits, _ and -, and none of and, or, not")
    return {name: parse_condition(condition, (*keys, name), problems) for name, condition in raw.items()}
