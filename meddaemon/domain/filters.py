"""The small language in which results are asked for: `finding = "Spleen" and volume > 300 mL and since 30d`.

    filter     = term { "or" term }
    term       = factor { "and" factor }
    factor     = "not" factor | "(" filter ")" | test
    test       = field ( "=" | "!=" | "~" ) text | field "in" "(" text { "," text } ")"
               | measurement ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) number [ unit ]
               | "present" | ( "since" | "until" ) moment

A field is one of `FIELDS`; a measurement is any other word, or a name in quotation marks (" or '): its key (`volume`,
`mean`, `long_axis`), its code, or its meaning. What is derived of several, a mean or a spread, goes by its key only.
What is asked is one measurement of one finding at a time; a comparison of a measurement asks for any of the same
finding. Text is compared without regard to case; `~` asks whether it is contained. Units are converted where they
measure the same (UCUM); without a unit, numbers are compared as they are stored. A moment is an ISO 8601 date or time,
or how long ago: `30d`, `12h`, `6w`.
"""

import difflib
import math
import operator
import re
import string
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TypeAlias

from meddaemon.domain.result import ResultStatus

MAXIMUM_LENGTH = 2000
MAXIMUM_DEPTH = 20
"""Parentheses and `not` within each other."""
MAXIMUM_TESTS = 100

FIELDS = (
    "finding",
    "segment",
    "measurement",
    "model",
    "version",
    "status",
    "study",
    "series",
    "accession",
)
_WORDS = frozenset({"and", "or", "not", "in", "since", "until", "present"})

COMPARISONS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
)

_QUANTITIES: tuple[Mapping[str, float], ...] = (
    {"mm3": 1e-3, "uL": 1e-3, "mL": 1.0, "ml": 1.0, "cm3": 1.0, "cc": 1.0, "dL": 1e2, "L": 1e3, "l": 1e3, "dm3": 1e3},
    {"um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3},
    {"mm2": 1.0, "cm2": 1e2, "m2": 1e6},
    {"%": 1.0, "1": 100.0},
    {"[hnsf'U]": 1.0, "HU": 1.0},
    {"g/ml": 1.0, "g/mL": 1.0, "g/ml{SUVbw}": 1.0, "{SUVbw}g/ml": 1.0, "SUV": 1.0},
    {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    {"deg": 1.0},
    {"mg": 1e-3, "g": 1.0, "kg": 1e3},
)
"""Units that measure the same, and how much of the first kind each is; those of speech beside those of UCUM."""


_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
"""What no database takes; half of a character is what Python makes of a command line that is not UTF-8."""
_FOLDED = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class InvalidFilter(ValueError):
    """What is written is no filter; says at which character, counted from 1, and what would be one."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"character {position}: {message}")


@dataclass(frozen=True)
class AllOf:
    """Every one of several filters."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one of several filters."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class Not:
    """What does not satisfy a filter."""

    part: "Filter"


@dataclass(frozen=True)
class Text:
    """A field that is one of these values, or contains one."""

    field: str
    values: tuple[str, ...]
    contained: bool = False


@dataclass(frozen=True)
class Number:
    """A measurement of the finding with this code or meaning, whose value compares so.

    `bounds` are the units in which it may be stored, each with `value` in that unit; empty for any unit as it is.
    """

    measurement: str
    comparison: str
    value: float
    bounds: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Made:
    """A result made at or after a moment (`since`), or before it."""

    since: bool
    moment: datetime


@dataclass(frozen=True)
class Present:
    """A finding that is there."""


Filter: TypeAlias = AllOf | AnyOf | Not | Text | Number | Made | Present


def names_of(key: str, code_value: str, code_meaning: str, *, derived: bool) -> tuple[str, ...]:
    """Return what filters call a measurement, its key first.

    What is derived of several, a spread for one, shares the code of what it is derived of, and goes by its key alone.
    """
    return (key,) if derived else (key, code_value, code_meaning)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measurement: what it is called (`names_of`), value (None where it could not be measured), unit (UCUM)."""

    names: tuple[str, ...]
    value: float | None
    unit: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a filter is asked of: one measurement, `fields`, of a finding that has all `measurements`."""

    fields: Mapping[str, Collection[str]]
    measurements: Sequence[Measured]
    present: bool
    made: datetime


def parse_filter(text: str, *, now: datetime | None = None) -> Filter:
    """Return the filter that `text` says; ages count back from `now`, and times without a zone are local.

    Raises InvalidFilter.
    """
    if len(text) > MAXIMUM_LENGTH:
        raise InvalidFilter(MAXIMUM_LENGTH + 1, f"is longer than {MAXIMUM_LENGTH} characters")
    if strange := _UNWRITABLE.search(text):
        raise InvalidFilter(strange.start() + 1, "is no character: write the filter in UTF-8")
    return _Parser(text, now or datetime.now(UTC)).parse()


def holds(condition: Filter, row: Row) -> bool:
    """Say whether a row satisfies a filter."""
    match condition:
        case AllOf(parts) | AnyOf(parts):
            together = all if isinstance(condition, AllOf) else any
            return together(holds(part, row) for part in parts)
        case Not(part):
            return not holds(part, row)
        case Text(field, values, contained):
            said = [folded(each) for each in row.fields.get(field, ())]
            wanted = [folded(each) for each in values]
            return any(one in other if contained else one == other for one in wanted for other in said)
        case Number():
            return any(_compares(condition, each) for each in row.measurements)
        case Made(since, moment):
            return (row.made >= moment) is since
        case Present():
            return row.present


def parts_of(condition: Filter) -> Iterator[Filter]:
    """Yield a filter and all that it is made of."""
    yield condition
    match condition:
        case AllOf(parts) | AnyOf(parts):
            for part in parts:
                yield from parts_of(part)
        case Not(part):
            yield from parts_of(part)


def folded(text: str) -> str:
    """Return text without regard to the case of its ASCII letters, as every database compares it."""
    return text.translate(_FOLDED)


def unmeasured(condition: Filter, measured: Collection[Measured]) -> list[str]:
    """Return the names of measurements that a filter asks for, and none of these has in a unit that compares."""
    numbers = (part for part in parts_of(condition) if isinstance(part, Number))
    return [test.measurement for test in numbers if not any(_asks_for(test, each) for each in measured)]


def _asks_for(test: Number, measured: Measured) -> bool:
    named = folded(test.measurement) in map(folded, measured.names)
    return named and (not test.bounds or measured.unit in dict(test.bounds))


def _compares(test: Number, measured: Measured) -> bool:
    if measured.value is None or not _asks_for(test, measured):
        return False
    at = dict(test.bounds).get(measured.unit, test.value)
    return COMPARISONS[test.comparison](measured.value, at)


def in_units(value: float, unit: str) -> dict[str, float]:
    """Return a quantity in each unit that measures what `unit` does; one that is not known is only itself."""
    for quantity in _QUANTITIES:
        if unit in quantity:
            return {other: value * (quantity[unit] / much) for other, much in quantity.items()}
    return {unit: value}


_MARKS = ('"', "'")


class _Parser:
    _SPACE = re.compile(r"\s*")
    _WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
    _QUOTED = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1""", re.DOTALL)
    _COMPARISON = re.compile(r"!=|<=|>=|==?|<|>|~")
    _NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
    _UNIT = re.compile(r"[A-Za-z%\[{][A-Za-z0-9%\[\]{}'/^.*-]*")
    _MOMENT = re.compile(r"\d[0-9A-Za-z:.+-]*")
    _AGE = re.compile(r"(\d{1,5})(h|d|w)")
    _HOURS = MappingProxyType({"h": 1, "d": 24, "w": 168})

    def __init__(self, text: str, now: datetime) -> None:
        self._text = text
        self._now = now
        self._at = 0
        self._tests = 0

    def parse(self) -> Filter:
        found = self._filter(0)
        self._skip()
        if self._at < len(self._text):
            rest = self._text[self._at :].split(maxsplit=1)[0]
            what = "no parenthesis is open" if rest.startswith(")") else "and/or expected before this"
            raise self._wrong(f"{rest[:40]!r}: {what}")
        return found

    def _filter(self, depth: int) -> Filter:
        parts = [self._term(depth)]
        while self._took_word("or"):
            parts.append(self._term(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _term(self, depth: int) -> Filter:
        parts = [self._factor(depth)]
        while self._took_word("and"):
            parts.append(self._factor(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _factor(self, depth: int) -> Filter:
        self._skip()
        if depth > MAXIMUM_DEPTH:
            raise self._wrong(f"is nested more than {MAXIMUM_DEPTH} deep")
        begun = self._at
        if self._took_word("not"):
            return Not(self._factor(depth + 1))
        if self._took("("):
            within = self._filter(depth + 1)
            if not self._took(")"):
                raise self._wrong(f"the parenthesis of character {begun + 1} is open")
            return within
        self._tests += 1
        if self._tests > MAXIMUM_TESTS:
            raise self._wrong(f"asks more than {MAXIMUM_TESTS} questions")
        if self._took_word("present"):
            return Present()
        for word in ("since", "until"):
            if self._took_word(word):
                return Made(word == "since", self._moment())
        return self._test()

    def _test(self) -> Filter:
        begun = self._at
        name = self._text_value()
        quoted = self._text.startswith(_MARKS, begun)
        if name is None or (name.lower() in _WORDS and not quoted):
            raise self._wrong(f"a field ({', '.join(FIELDS)}), a measurement, present, since or until expected", begun)
        if name.lower() in FIELDS and not quoted:
            return self._text_test(name.lower())
        compared = self._comparison(name)
        if compared not in COMPARISONS:
            known = difflib.get_close_matches(name.lower(), FIELDS, 1)
            hint = f"; did you mean the field {known[0]}?" if known else ""
            raise self._wrong(f"the measurement {name!r} is a number: compare it with = != < <= > >={hint}", begun)
        value = self._match(self._NUMBER)
        if value is None or not math.isfinite(float(value)):
            known = difflib.get_close_matches(name.lower(), FIELDS, 1)
            hint = f"; did you mean the field {known[0]}?" if known else ""
            raise self._wrong(f"a number expected, which {name!r} is compared with{hint}")
        unit = self._unit()
        bounds = in_units(float(value), unit) if unit else {}
        return Number(name, compared, float(value), tuple(bounds.items()))

    def _text_test(self, field: str) -> Filter:
        begun = self._at
        if self._took_word("in"):
            if not self._took("("):
                raise self._wrong("a list in parentheses expected after `in`")
            values = [self._required_text()]
            while self._took(","):
                values.append(self._required_text())
            if not self._took(")"):
                raise self._wrong("a comma or a closing parenthesis expected")
            return self._known(Text(field, tuple(values)), begun)
        compared = self._comparison(field)
        if compared not in {"=", "!=", "~"}:
            raise self._wrong(f"the field {field} is text: it is compared with = != ~ or in, not {compared}")
        test = self._known(Text(field, (self._required_text(),), contained=compared == "~"), begun)
        return Not(test) if compared == "!=" else test

    def _known(self, test: Text, begun: int) -> Text:
        """Return a test whose values may be: of states there are only so many."""
        if test.field == "status" and not test.contained and not set(map(folded, test.values)) <= {*ResultStatus}:
            raise self._wrong(f"a status is {', '.join(ResultStatus)}", begun)
        return test

    def _comparison(self, name: str) -> str:
        found = self._match(self._COMPARISON)
        if found is None:
            raise self._wrong(f"a comparison expected after {name!r}")
        return "=" if found == "==" else found

    def _required_text(self) -> str:
        value = self._text_value()
        if value is None:
            value = self._match(self._MOMENT)
        if value is None:
            raise self._wrong("text expected, in quotation marks where it is more than one word")
        return value

    def _text_value(self) -> str | None:
        """Take a word, or what stands in quotation marks."""
        self._skip()
        if quoted := self._QUOTED.match(self._text, self._at):
            self._at = quoted.end()
            return re.sub(r"\\(.)", r"\1", quoted[2], flags=re.DOTALL)
        if self._text.startswith(_MARKS, self._at):
            raise self._wrong("the quotation mark is not closed")
        return self._match(self._WORD)

    def _unit(self) -> str:
        """Take a unit, if there is one."""
        self._skip()
        begun = self._at
        if self._text.startswith(_MARKS, begun):
            return str(self._text_value())
        found = self._UNIT.match(self._text, begun)
        if found is None or found[0].lower() in {"and", "or"}:
            return ""
        self._at = found.end()
        known = [unit for quantity in _QUANTITIES for unit in quantity]
        if found[0] not in known:
            close = difflib.get_close_matches(found[0], known, 1, 0.3)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise self._wrong(f"the unit {found[0]!r} is not known: put one of UCUM in quotation marks{hint}", begun)
        return found[0]

    def _moment(self) -> datetime:
        self._skip()
        begun = self._at
        said = self._text_value() if self._text.startswith(_MARKS, begun) else self._match(self._MOMENT)
        if said is None:
            raise self._wrong("a moment expected: 2026-11-01, 2026-11-01T18:00 or an age such as 30d, 12h, 6w")
        if age := self._AGE.fullmatch(said):
            return self._now - timedelta(hours=int(age[1]) * self._HOURS[age[2]])
        try:
            moment = datetime.fromisoformat(said)
            return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            raise self._wrong(f"{said[:40]!r} is no date, time or age (30d, 12h, 6w)", begun) from None

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip()
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _took(self, mark: str) -> bool:
        self._skip()
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _took_word(self, word: str) -> bool:
        self._skip()
        found = self._WORD.match(self._text, self._at)
        if found is None or found[0].lower() != word:
            return False
        self._at = found.end()
        return True

    def _skip(self) -> None:
        found = self._SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _wrong(self, message: str, at: int | None = None) -> InvalidFilter:
        return InvalidFilter((self._at if at is None else at) + 1, message)
