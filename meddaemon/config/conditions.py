"""Conditions as they are written in TOML, parsed to `meddaemon.domain.conditions`.

A condition is a table with exactly one of `all`, `any` (arrays of conditions), `not` (a condition) or `attribute`;
the last goes with exactly one test: `equals`, `one_of`, `matches`, `min` and/or `max`, `present`, `contains`,
`contains_not`. A condition may have a `label`, which explanations show in place of its parts.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.datadict import keyword_dict as _keyword_dict

from meddaemon.config.problems import Problems, did_you_mean
from meddaemon.config.toml_file import Keys
from meddaemon.domain.conditions import (
    ALWAYS,
    All,
    Any,
    AttributeTest,
    Condition,
    Contains,
    ContainsNot,
    Equals,
    InRange,
    Matches,
    Not,
    OneOf,
    Present,
)

COMPUTED_ATTRIBUTES = frozenset(
    {"instances", "orientation", "kind", "called_ae_title", "called_label", "calling_ae_title"}
)
"""Attributes that are computed from a series or its association instead of read from a header."""

_STRUCTURES = ("all", "any", "not", "attribute")
_LABEL = "label"
MAXIMUM_LABEL = 80
_UNTESTABLE_VRS = {"SQ", "OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW"}


def parse_condition(raw: object, keys: Keys, problems: Problems) -> Condition:
    """Return the condition that `raw` (the TOML value at `keys`) says.

    Everything that is wrong is added to `problems`; the value returned then is only a stand-in.
    """
    if not isinstance(raw, Mapping):
        problems.add(keys, 'must be a table such as { attribute = "Modality", equals = "MR" }')
        return ALWAYS
    known = (*_STRUCTURES, *_TESTS, _LABEL)
    for name in raw.keys() - {*known}:
        problems.add((*keys, name), f"unknown key{did_you_mean(name, known)}")
    label = raw.get(_LABEL, "")
    if not isinstance(label, str) or len(label) > MAXIMUM_LABEL:
        problems.add((*keys, _LABEL), f"must be text of at most {MAXIMUM_LABEL} characters")
        label = ""
    structures = [name for name in _STRUCTURES if name in raw]
    if len(structures) != 1:
        had = f", not {' and '.join(structures)}" if structures else ""
        problems.add(keys, f"needs exactly one of {', '.join(_STRUCTURES)}{had}")
        return ALWAYS
    (structure,) = structures
    tests = [name for name in _TESTS if name in raw]
    if structure == "attribute":
        test = _attribute_test(raw, tests, keys, problems)
        return replace(test, label=label) if isinstance(test, AttributeTest) else test
    for name in tests:
        problems.add((*keys, name), f"a test needs an attribute and cannot stand beside {structure!r}")
    if structure == "not":
        return Not(parse_condition(raw["not"], (*keys, "not"), problems), label)
    parts = _parts(raw[structure], (*keys, structure), problems)
    return All(parts, label) if structure == "all" else Any(parts, label)


def _parts(raw: object, keys: Keys, problems: Problems) -> tuple[Condition, ...]:
    if not isinstance(raw, list | tuple) or not raw:
        problems.add(keys, "must be an array of at least one condition")
        return ()
    return tuple(parse_condition(part, (*keys, index), problems) for index, part in enumerate(raw))


def _attribute_test(raw: Mapping[str, object], tests: list[str], keys: Keys, problems: Problems) -> Condition:
    attribute = raw["attribute"]
    if not isinstance(attribute, str):
        problems.add((*keys, "attribute"), "must be the keyword of a DICOM attribute in quotes")
        return ALWAYS
    complaint = complaint_about(attribute, computed=True)
    if complaint:
        problems.add((*keys, "attribute"), complaint)
    if not tests or (len(tests) > 1 and set(tests) != {"min", "max"}):
        had = f", not {' and '.join(tests)}; combine several with all" if tests else ""
        problems.add(keys, f"needs exactly one test ({', '.join(_TESTS)}; min and max go together){had}")
        return ALWAYS
    try:
        return _PARSERS[tests[0]](attribute, raw)
    except _Wrong as wrong:
        problems.add((*keys, wrong.key), wrong.message)
        return ALWAYS


def complaint_about(attribute: str, *, computed: bool = False) -> str | None:
    """Return what is wrong with the name of an attribute that is looked up in a header, or None.

    With `computed`, also those are right that are not in a header.
    """
    if computed and attribute in COMPUTED_ATTRIBUTES:
        return None
    tag = tag_for_keyword(attribute)
    if tag is None:
        known = (*(COMPUTED_ATTRIBUTES if computed else ()), *_keyword_dict)
        what = "neither a DICOM keyword nor computed" if computed else "no DICOM keyword"
        return f"{attribute!r} is {what}{did_you_mean(attribute, known)}"
    vr = dictionary_VR(tag)
    if vr in _UNTESTABLE_VRS:
        return f"{attribute} is of VR {vr} and cannot be tested; name an attribute with a text or number"
    return None


class _Wrong(Exception):
    """The value of one test is wrong."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.message = message


def _equals(attribute: str, raw: Mapping[str, object]) -> Condition:
    return Equals(attribute=attribute, value=_text("equals", raw["equals"]))


def _one_of(attribute: str, raw: Mapping[str, object]) -> Condition:
    values = raw["one_of"]
    if not isinstance(values, list | tuple) or not values:
        raise _Wrong("one_of", "must be an array of at least one value")
    return OneOf(attribute=attribute, values=tuple(_text("one_of", value) for value in values))


def _matches(attribute: str, raw: Mapping[str, object]) -> Condition:
    pattern = raw["matches"]
    if not isinstance(pattern, str) or not pattern:
        raise _Wrong("matches", "must be a regular expression in quotes")
    try:
        re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise _Wrong("matches", f"{pattern!r} is not a regular expression: {error}") from error
    return Matches(attribute=attribute, pattern=pattern)


def _in_range(attribute: str, raw: Mapping[str, object]) -> Condition:
    minimum, maximum = (_limit(name, raw.get(name)) for name in ("min", "max"))
    if minimum is not None and maximum is not None and minimum > maximum:
        raise _Wrong("min", f"min {minimum:g} is greater than max {maximum:g}")
    return InRange(attribute=attribute, minimum=minimum, maximum=maximum)


def _limit(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Wrong(name, "must be a number")
    return float(value)


def _present(attribute: str, raw: Mapping[str, object]) -> Condition:
    present = raw["present"]
    if not isinstance(present, bool):
        raise _Wrong("present", "must be true or false")
    return Present(attribute=attribute, present=present)


def _contains(attribute: str, raw: Mapping[str, object]) -> Condition:
    return Contains(attribute=attribute, component=_text("contains", raw["contains"]))


def _contains_not(attribute: str, raw: Mapping[str, object]) -> Condition:
    return ContainsNot(attribute=attribute, component=_text("contains_not", raw["contains_not"]))


def _text(name: str, value: object) -> str:
    """Return a value to compare with as text, which is what attribute values are compared as."""
    if isinstance(value, float):
        raise _Wrong(name, "compares text; test a number with min and max")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Wrong(name, "must be text or a whole number")
    if value == "":
        raise _Wrong(name, "must not be empty; use present = false for an attribute without a value")
    return str(value)


_Parser: TypeAlias = Callable[[str, Mapping[str, object]], Condition]
_PARSERS: Mapping[str, _Parser] = {
    "equals": _equals,
    "one_of": _one_of,
    "matches": _matches,
    "min": _in_range,
    "max": _in_range,
    "present": _present,
    "contains": _contains,
    "contains_not": _contains_not,
}
_TESTS = tuple(_PARSERS)
