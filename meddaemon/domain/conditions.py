"""Conditions on DICOM attributes: the language of rules and of series choosers, as pure data.

A condition is evaluated over a set of attributes and returns an `Outcome`, a tree that says of each part whether
it held and which values it saw, so that every decision can be explained afterwards.

Attributes are handed over as `Attributes`: keyword -> the distinct values that the instances carry. A value is the
tuple of its components (VM > 1), as strings; an absent or empty attribute is the empty tuple. A condition holds
for a series when it holds for every distinct value, so one deviating instance is enough to fail it.

Besides DICOM keywords there are computed attributes, written in snake_case so that they cannot be confused:
`instances` (count), `orientation` (axial, coronal, sagittal, oblique, mixed, none), `kind` (see `series.py`),
`called_ae_title`, `calling_ae_title`, `called_label` (what the settings call that called AE title).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Value: TypeAlias = tuple[str, ...]
Attributes: TypeAlias = Mapping[str, tuple[Value, ...]]


MAXIMUM_MATCHED = 256
"""Characters of a value that a regular expression is applied to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Whether a condition held, what it asked, what it saw, and the outcomes of its parts.

    `label` is the condition's name in the words of whoever wrote it, where it was given one.
    """

    held: bool
    asked: str
    label: str = ""
    seen: str = ""
    parts: tuple["Outcome", ...] = ()


class Condition(Protocol):
    """Anything that can be asked of attributes."""

    def evaluate(self, attributes: Attributes) -> Outcome:
        """Return whether the condition holds, and why."""
        ...

    def keywords(self) -> frozenset[str]:
        """Return the attributes that the condition looks at."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeTest:
    """One test of one attribute; subclasses say what a single value must satisfy."""

    attribute: str
    label: str = ""

    def keywords(self) -> frozenset[str]:
        """Return the one attribute that is tested."""
        return frozenset({self.attribute})

    def evaluate(self, attributes: Attributes) -> Outcome:
        """Hold when every distinct value passes; an attribute that nobody carries counts as one empty value."""
        values = attributes.get(self.attribute, ()) or ((),)
        return Outcome(
            held=all(self.accepts(value) for value in values),
            asked=f"{self.attribute} {self.describe()}",
            label=self.label,
            seen=_shown(values),
        )

    def accepts(self, value: Value) -> bool:
        """Return whether one value passes."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return the test in words, without the attribute."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Equals(AttributeTest):
    """The whole value equals `value`, components joined with a backslash, ignoring case and outer spaces."""

    value: str

    def accepts(self, value: Value) -> bool:  # noqa: D102
        return _folded("\\".join(value)) == _folded(self.value)

    def describe(self) -> str:  # noqa: D102
        return f"equals {self.value!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OneOf(AttributeTest):
    """The whole value equals one of `values`."""

    values: tuple[str, ...]

    def accepts(self, value: Value) -> bool:  # noqa: D102
        return _folded("\\".join(value)) in {_folded(each) for each in self.values}

    def describe(self) -> str:  # noqa: D102
        return f"is one of {', '.join(map(repr, self.values))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Matches(AttributeTest):
    """The regular expression is found in the value (ignoring case; anchor it to match the whole)."""

    pattern: str

    def accepts(self, value: Value) -> bool:  # noqa: D102
        # Values come from the wire: their length bounds what a slow pattern can cost.
        return re.search(self.pattern, "\\".join(value)[:MAXIMUM_MATCHED], re.IGNORECASE) is not None

    def describe(self) -> str:  # noqa: D102
        return f"matches /{self.pattern}/"


@dataclass(frozen=True, kw_only=True, slots=True)
class InRange(AttributeTest):
    """Every component is a number within the closed range; an absent attribute is not."""

    minimum: float | None = None
    maximum: float | None = None

    def accepts(self, value: Value) -> bool:  # noqa: D102
        numbers = [_number(component) for component in value]
        return bool(numbers) and all(
            number is not None
            and (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            for number in numbers
        )

    def describe(self) -> str:  # noqa: D102
        low = "" if self.minimum is None else f"{self.minimum:g} ≤ "
        high = "" if self.maximum is None else f" ≤ {self.maximum:g}"
        return f"in range {low}x{high}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Present(AttributeTest):
    """The attribute has a value (`present=True`) or has none (`present=False`) in every instance."""

    present: bool = True

    def accepts(self, value: Value) -> bool:  # noqa: D102
        return any(component for component in value) is self.present

    def describe(self) -> str:  # noqa: D102
        return "is present" if self.present else "is absent"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contains(AttributeTest):
    """One component equals `component` (`ImageType` contains `MPR`)."""

    component: str

    def accepts(self, value: Value) -> bool:  # noqa: D102
        return _folded(self.component) in {_folded(each) for each in value}

    def describe(self) -> str:  # noqa: D102
        return f"contains {self.component!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainsNot(AttributeTest):
    """No component equals `component`."""

    component: str

    def accepts(self, value: Value) -> bool:  # noqa: D102
        return _folded(self.component) not in {_folded(each) for each in value}

    def describe(self) -> str:  # noqa: D102
        return f"does not contain {self.component!r}"


@dataclass(frozen=True, slots=True)
class All:
    """Holds when every part holds; every part is evaluated, so that the explanation is whole."""

    parts: tuple[Condition, ...]
    label: str = ""

    def evaluate(self, attributes: Attributes) -> Outcome:
        """Evaluate every part."""
        outcomes = tuple(part.evaluate(attributes) for part in self.parts)
        held = all(each.held for each in outcomes)
        return Outcome(held=held, asked="all of", label=self.label, parts=outcomes)

    def keywords(self) -> frozenset[str]:
        """Return the attributes of all parts."""
        return frozenset().union(*(part.keywords() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Any:
    """Holds when one part holds; every part is evaluated, so that the explanation is whole."""

    parts: tuple[Condition, ...]
    label: str = ""

    def evaluate(self, attributes: Attributes) -> Outcome:
        """Evaluate every part."""
        outcomes = tuple(part.evaluate(attributes) for part in self.parts)
        held = any(each.held for each in outcomes)
        return Outcome(held=held, asked="any of", label=self.label, parts=outcomes)

    def keywords(self) -> frozenset[str]:
        """Return the attributes of all parts."""
        return frozenset().union(*(part.keywords() for part in self.parts))


@dataclass(frozen=True, slots=True)
class Not:
    """Holds when its part does not."""

    part: Condition
    label: str = ""

    def evaluate(self, attributes: Attributes) -> Outcome:
        """Evaluate the part and turn it round."""
        outcome = self.part.evaluate(attributes)
        return Outcome(held=not outcome.held, asked="not", label=self.label, parts=(outcome,))

    def keywords(self) -> frozenset[str]:
        """Return the attributes of the part."""
        return self.part.keywords()


ALWAYS = All(())
"""The condition that always holds."""


def unmet(outcome: Outcome) -> tuple[str, ...]:
    """Return, in words, the parts on which an outcome that did not hold failed; nothing where it held.

    A part that has a label is named by it; the values it saw stand in the explanation.
    """
    if outcome.held:
        return ()
    if outcome.label:
        return (outcome.label,)
    if not outcome.parts or outcome.asked == "not":
        inner = outcome.parts[0] if outcome.parts else outcome
        return (f"{'not: ' if outcome.parts else ''}{inner.asked} (saw {inner.seen or 'nothing'})",)
    if outcome.asked == "any of":
        return ("none of: " + "; ".join(part for each in outcome.parts for part in unmet(each)),)
    return tuple(part for each in outcome.parts for part in unmet(each))


def outcome_as_dict(outcome: Outcome) -> dict[str, object]:
    """Return the outcome as plain JSON values, for keeping beside a decision."""
    plain: dict[str, object] = {"held": outcome.held, "asked": outcome.asked}
    if outcome.label:
        plain["label"] = outcome.label
    if outcome.seen:
        plain["seen"] = outcome.seen
    if outcome.parts:
        plain["parts"] = [outcome_as_dict(part) for part in outcome.parts]
    return plain


def _folded(text: str) -> str:
    return text.strip().casefold()


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _shown(values: tuple[Value, ...], limit: int = 4, width: int = 80) -> str:
    """Show the distinct values, bounded: at most `limit` of them, each at most `width` characters."""
    texts = ["\\".join(value)[:width] or "(absent)" for value in values[:limit]]
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(texts) + more
