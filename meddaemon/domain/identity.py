"""Whether two objects tell of the same patient, by what their headers say (pure).

What is empty says nothing and contradicts nothing: Patient ID, name, birth date and sex are type 2 (PS3.3 C.7.1.1).
Case, spaces and padding are no difference either, because archives change them.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Header = Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Something in which instances of one study differ and must not, or that none of them says.

    `kind` is the keyword of the attribute, or `unidentified`; `subject` the series it is about (empty: the study),
    `value` a digest of the values that were seen, by which the same contradiction is known again. `reason` names UIDs,
    no patient.
    """

    kind: str
    subject: str
    value: str
    reason: str


def normal(components: Sequence[str]) -> str:
    """Return a value such that equal ones mean the same."""
    return " ".join(unicodedata.normalize("NFKC", "\\".join(components)).casefold().split())


def name_groups(components: Sequence[str]) -> tuple[str, ...]:
    """Return the alphabetic, ideographic and phonetic group of a name (PS3.5 6.2.1), each in a normal form."""
    groups = "\\".join(components).split("=")
    return tuple("^".join(normal([part]) for part in group.split("^")).rstrip("^") for group in groups)


def same_patient(one: Header, other: Header) -> bool:
    """Return whether Patient ID, with its issuer where both name one, lets these be one patient."""
    for keyword in ("PatientID", "IssuerOfPatientID"):
        said = {normal(each.get(keyword, ())) for each in (one, other)} - {""}
        if len(said) > 1:
            return False
    return True
