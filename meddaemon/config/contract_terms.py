"""The words that every part of a contract file is made of: texts as DICOM can hold them, codes, and limits."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from meddaemon.config.problems import Problems, did_you_mean
from meddaemon.config.toml_file import Keys
from meddaemon.domain.codes import Code
from meddaemon.domain.contract import Range

_SCHEMES = ("SCT", "DCM", "UCUM", "LN", "FMA", "RADLEX", "NCIt", "UMLS", "IBSI", "MDC", "NEU", "I10", "ICDO3")
_RETIRED_SCHEMES = ("SRT", "SNM3", "99SDM")

# PS3.5 6.2: LO holds 64 characters, SH 16; neither holds a backslash or control characters.
LongString = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\\\x00-\x1f\x7f]*$")]
ShortString = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[^\\\s\x00-\x1f\x7f]*$")]
Score = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Values as they stand in the file: nothing converted, nothing unknown, nothing infinite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class CodeTable(Strict):
    """A coded concept (PS3.3 8.1: Code Value, Coding Scheme Designator, Code Meaning)."""

    value: ShortString
    scheme: ShortString
    meaning: LongString

    @field_validator("scheme")
    @classmethod
    def _known(cls, scheme: str) -> str:
        if scheme in _RETIRED_SCHEMES:
            raise ValueError(f"{scheme!r} is retired from DICOM; use the SCT code of the same concept")
        if scheme not in _SCHEMES and not scheme.startswith("99"):
            raise ValueError(
                f"{scheme!r} is not a known Coding Scheme Designator{did_you_mean(scheme, _SCHEMES)}; "
                "a private one begins with 99"
            )
        return scheme

    def as_code(self) -> Code:
        """Return the code as the domain speaks of it."""
        return Code(value=self.value, scheme=self.scheme, meaning=self.meaning)


class Limits(Strict):
    """From `min` to `max`, one of which may be absent."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("limits nothing: say min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is greater than max {self.max:g}")
        return self

    def as_range(self) -> Range:
        """Return the limits as the domain speaks of them."""
        return Range(minimum=self.min, maximum=self.max)


def check_unique(array: str, key: str, values: Sequence[object], problems: Problems, *, hint: str = "") -> None:
    """Note every value that stands in the array before already."""
    for index, value in enumerate(values):
        if value in values[:index]:
            first = values.index(value)
            problems.add((array, index, key), f"{value!r} stands there already in {array}[{first}]{hint}")


def check_in_context_group(code: CodeTable | None, group: int, keys: Keys, problems: Problems) -> None:
    """Note an SCT code that a context group of PS3.16 does not have, or a meaning that is not its own."""
    if code is None or code.scheme != "SCT":
        return
    meanings = _context_group(group)
    meaning = meanings.get(code.value)
    if meaning is None:
        named = next((value for value, text in meanings.items() if text.casefold() == code.meaning.casefold()), "")
        hint = f"; {code.meaning!r} is {named}" if named else ""
        problems.add((*keys, "value"), f"SCT {code.value} is not in CID {group} of PS3.16{hint}")
    elif meaning.casefold() != code.meaning.casefold():
        problems.add((*keys, "meaning"), f"SCT {code.value} means {meaning!r} in PS3.16, not {code.meaning!r}")


def check_concept(code: CodeTable, keys: Keys, problems: Problems) -> None:
    """Note a code of any context whose meaning is another in PS3.16, or a DCM code that PS3.16 does not have.

    An SCT code that PS3.16 does not use is taken as it is: SNOMED CT has many more.
    """
    if code.scheme not in {"SCT", "DCM"}:
        return
    meanings = _dictionary(code.scheme).get(code.value, ())
    if not meanings and code.scheme == "DCM":
        problems.add((*keys, "value"), f"DCM {code.value} is not in PS3.16")
    elif meanings and code.meaning.casefold() not in {each.casefold() for each in meanings}:
        known = " or ".join(map(repr, meanings))
        problems.add((*keys, "meaning"), f"{code.scheme} {code.value} means {known} in PS3.16, not {code.meaning!r}")


@cache
def _context_group(number: int) -> Mapping[str, str]:
    """Return code value -> meaning of the SCT codes in a context group of PS3.16, its included groups with it."""
    # Imported where it is needed: the dictionary costs a third of a second and most commands load no contract.
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    group = getattr(codes, f"cid{number}")
    concepts = (getattr(group, keyword) for keyword in group.dir())
    return {code.value: code.meaning for code in concepts if code.scheme_designator == "SCT"}


@cache
def _dictionary(scheme: str) -> Mapping[str, tuple[str, ...]]:
    """Return code value -> its meanings, of every code of a scheme that PS3.16 uses."""
    from pydicom.sr.codedict import codes  # noqa: PLC0415  as above

    found: dict[str, tuple[str, ...]] = {}
    for code in getattr(codes, scheme).concepts.values():
        found[code.value] = (*found.get(code.value, ()), code.meaning)
    return found
