"""Numbers that a contract makes of measurements: `volume of "Left lung" / volume of "Lungs" * 100`. Data, never code.

    formula = term { ( "+" | "-" ) term }
    term    = sign { ( "*" | "/" ) sign }
    sign    = "-" sign | value
    value   = number | measure "of" text | ( "min" | "max" ) "(" formula { "," formula } ")" | "(" formula ")"

A measure is one of those that segments have (`volume`, `mean`, ...), the text the name of a segment. What cannot be
computed, because something was not measured or would be divided by zero, is None, never a number.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

MAXIMUM_LENGTH = 1000
MAXIMUM_DEPTH = 20


class InvalidFormula(ValueError):
    """What is written is no formula; says at which character, counted from 1."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"character {position}: {message}")


@dataclass(frozen=True)
class Constant:
    """A number."""

    value: float


@dataclass(frozen=True)
class Measured:
    """What was measured on a segment, by its name."""

    measure: str
    segment: str


@dataclass(frozen=True)
class Combined:
    """What an operation (`+ - * / min max`) makes of several parts, from left to right."""

    operation: str
    parts: tuple["Formula", ...]


Formula: TypeAlias = Constant | Measured | Combined

_OPERATIONS: Mapping[str, Callable[[float, float], float]] = MappingProxyType(
    {
        "+": operator.add,
        "-": operator.sub,
        "*": operator.mul,
        "/": operator.truediv,
        "min": min,
        "max": max,
    }
)


def parse_formula(text: str) -> Formula:
    """Return the formula that `text` says. Raises InvalidFormula."""
    if len(text) > MAXIMUM_LENGTH:
        raise InvalidFormula(MAXIMUM_LENGTH + 1, f"is longer than {MAXIMUM_LENGTH} characters")
    return _Parser(text).parse()


def measured_in(formula: Formula) -> Iterator[Measured]:
    """Yield every measurement that a formula names."""
    if isinstance(formula, Measured):
        yield formula
    elif isinstance(formula, Combined):
        for part in formula.parts:
            yield from measured_in(part)


def evaluate(formula: Formula, values: Mapping[Measured, float | None]) -> float | None:
    """Return the value of a formula; None where a value that it needs is missing, or the result is no finite number."""
    if isinstance(formula, Constant):
        return formula.value
    if isinstance(formula, Measured):
        return values.get(formula)
    parts = [evaluate(part, values) for part in formula.parts]
    total = parts[0]
    for part in parts[1:]:
        if total is None or part is None or (formula.operation == "/" and part == 0):
            return None
        total = _OPERATIONS[formula.operation](total, part)
    return total if total is not None and math.isfinite(total) else None


class _Parser:
    _SPACE = re.compile(r"\s*")
    _WORD = re.compile(r"[a-z][a-z0-9_]*")
    _NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
    _QUOTED = re.compile(r'"([^"]*)"')

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> Formula:
        formula = self._sum(0)
        self._skip()
        if self._at < len(self._text):
            raise self._wrong(f"{self._text[self._at]!r}: an operation (+ - * /) or the end expected")
        return formula

    def _sum(self, depth: int) -> Formula:
        return self._chain("+-", self._product, depth)

    def _product(self, depth: int) -> Formula:
        return self._chain("*/", self._sign, depth)

    def _chain(self, operations: str, part: Callable[[int], Formula], depth: int) -> Formula:
        found = part(depth)
        while operation := self._took(operations):
            found = Combined(operation, (found, part(depth)))
        return found

    def _sign(self, depth: int) -> Formula:
        if depth > MAXIMUM_DEPTH:
            raise self._wrong(f"is nested more than {MAXIMUM_DEPTH} deep")
        if self._took("-"):
            return Combined("-", (Constant(0.0), self._sign(depth + 1)))
        return self._value(depth)

    def _value(self, depth: int) -> Formula:
        self._skip()
        begun = self._at
        if self._took("("):
            within = self._sum(depth + 1)
            self._close(begun)
            return within
        if (number := self._match(self._NUMBER)) is not None:
            if not math.isfinite(float(number)):
                raise InvalidFormula(begun + 1, f"{number} is no finite number")
            return Constant(float(number))
        word = self._match(self._WORD)
        if word in {"min", "max"} and self._took("("):
            parts = [self._sum(depth + 1)]
            while self._took(","):
                parts.append(self._sum(depth + 1))
            self._close(begun)
            return Combined(word, tuple(parts))
        if word is None:
            raise self._wrong('a number, a parenthesis or a measurement such as volume of "Spleen" expected')
        if self._match(re.compile(r"of\b")) is None:
            raise self._wrong(f'of expected: {word} of "the name of a segment"')
        self._skip()
        quoted = self._QUOTED.match(self._text, self._at)
        if quoted is None:
            raise self._wrong("the name of a segment in quotation marks expected")
        self._at = quoted.end()
        return Measured(word, quoted[1])

    def _close(self, begun: int) -> None:
        if not self._took(")"):
            raise self._wrong(f"the parenthesis of character {begun + 1} is open")

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        self._skip()
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _took(self, marks: str) -> str:
        """Take one of several marks, if it comes next."""
        self._skip()
        mark = self._text[self._at : self._at + 1]
        if not mark or mark not in marks:
            return ""
        self._at += 1
        return mark

    def _skip(self) -> None:
        found = self._SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _wrong(self, message: str) -> InvalidFormula:
        return InvalidFormula(self._at + 1, message)
