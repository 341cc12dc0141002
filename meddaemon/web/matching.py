"""Attribute matching of DICOMweb searches (PS3.4 C.2.2.2, PS3.18 8.3.4): what a query asks, and what answers it (pure).

Single values, wildcards, lists of UIDs and ranges of dates and times. Names of people match whatever their case.
Everything takes time in proportion to what is compared: no pattern of an enemy is an expensive one.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

Header = Mapping[str, Sequence[str]]
LONGEST_VALUE = 1024
LONGEST_UID_LIST = 500
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]{1,63}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:\.([0-9]{1,6}))?)?)?")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_NUMERIC = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "US or SS"})
_WILD = frozenset("*?")


class InvalidQuery(ValueError):
    """The query cannot be answered; the message says why, and quotes nothing of what was sent."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key to match: `matches` says it of one component, `exact` are the only components that can match, if known.

    A key without a value matches everything, absent attributes too.
    """

    keyword: str
    universal: bool
    exact: tuple[str, ...] | None
    bounds: tuple[str, str] | None
    """First and last value of a range of dates; "" where it is open."""
    matches: Callable[[str], bool]

    def met_by(self, components: Sequence[str]) -> bool:
        """Return whether an attribute with these components satisfies it."""
        return self.universal or any(map(self.matches, components))


def keyword_of(name: str) -> str:
    """Return the keyword of an attribute that a query names by keyword or tag (PS3.18 8.3.4.1). Raises InvalidQuery."""
    if _TAG.fullmatch(name):
        keyword = keyword_for_tag(int(name, 16))
        if keyword:
            return keyword
    elif _KEYWORD.fullmatch(name) and tag_for_keyword(name) is not None:
        return name
    raise InvalidQuery("an attribute of the query is none of the data dictionary, or lies within a sequence")


def parse_key(keyword: str, value: str) -> Key:
    """Return what is asked of an attribute. Raises InvalidQuery."""
    if len(value) > LONGEST_VALUE * 64:
        raise InvalidQuery(f"{keyword} is too long")
    vr = dictionary_VR(keyword)
    # A range that is open at both ends is what forms send of which nobody has filled in the dates.
    if not value or set(value) == {"*"} or (value == "-" and vr in {"DA", "TM"}):
        return Key(keyword=keyword, universal=True, exact=None, bounds=None, matches=lambda _: True)
    if vr == "UI":
        return _uids(keyword, value)
    if len(value) > LONGEST_VALUE:
        raise InvalidQuery(f"{keyword} is longer than {LONGEST_VALUE} characters")
    if vr == "DA":
        return _dates(keyword, value)
    if vr == "TM":
        return _times(keyword, value)
    if vr in _NUMERIC:
        return _number(keyword, value)
    # A comma is no character of a coded string: several of them may be listed (PS3.18 8.3.4.1).
    return _any_text(keyword, re.split(r"[\\,]", value) if vr == "CS" else [value], folded=vr == "PN")


def _uids(keyword: str, value: str) -> Key:
    listed = tuple(dict.fromkeys(re.split(r"[\\,]", value)))
    if len(listed) > LONGEST_UID_LIST:
        raise InvalidQuery(f"{keyword} lists more than {LONGEST_UID_LIST} UIDs")
    if not all(len(each) <= 64 and _UID.fullmatch(each) for each in listed):
        raise InvalidQuery(f"{keyword} is no UID and no list of UIDs")
    wanted = frozenset(listed)
    return Key(keyword=keyword, universal=False, exact=listed, bounds=None, matches=wanted.__contains__)


def _dates(keyword: str, value: str) -> Key:
    first, last = _range(keyword, value, _DATE)

    def matches(component: str) -> bool:
        return (
            bool(_DATE.fullmatch(component)) and (not first or component >= first) and (not last or component <= last)
        )

    return Key(keyword=keyword, universal=False, exact=None, bounds=(first, last), matches=matches)


def _times(keyword: str, value: str) -> Key:
    first, last = _range(keyword, value, _TIME)
    since = _microseconds(first)[0] if first else None
    until = _microseconds(last)[1] if last else None

    def matches(component: str) -> bool:
        if not _TIME.fullmatch(component):
            return False
        moment = _microseconds(component)[0]
        return (since is None or moment >= since) and (until is None or moment < until)

    return Key(keyword=keyword, universal=False, exact=None, bounds=None, matches=matches)


def _range(keyword: str, value: str, form: re.Pattern[str]) -> tuple[str, str]:
    """Return the first and last value of a range (PS3.4 C.2.2.2.5), of which one may be open; of a value, it twice."""
    first, separator, last = value.partition("-")
    ends = (first, last) if separator else (first, first)
    if not any(ends) or not all(form.fullmatch(each) for each in ends if each):
        raise InvalidQuery(f"{keyword} is neither a value nor a range of its kind, such as 20240101-20241231")
    return ends


def _microseconds(time: str) -> tuple[int, int]:
    """Return when a time begins, and when it has passed: one that is said to the minute only lasts a minute."""
    found = _TIME.fullmatch(time)
    assert found is not None  # noqa: S101  whoever asks has looked
    hours, minutes, seconds, fraction = found.groups()
    begin = (int(hours) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)) * 10**6 + int(
        (fraction or "").ljust(6, "0")
    )
    if fraction:
        return begin, begin + 10 ** (6 - len(fraction))
    return begin, begin + (10**6 if seconds else 60 * 10**6 if minutes else 3600 * 10**6)


def _number(keyword: str, value: str) -> Key:
    if not _NUMBER.fullmatch(value):
        raise InvalidQuery(f"{keyword} is no number")
    wanted = float(value)

    def matches(component: str) -> bool:
        return bool(_NUMBER.fullmatch(component)) and float(component) == wanted

    return Key(keyword=keyword, universal=False, exact=None, bounds=None, matches=matches)


def _any_text(keyword: str, values: Sequence[str], *, folded: bool) -> Key:
    patterns = [_folded(each) if folded else each.strip() for each in values]
    wild = folded or any(_WILD & set(each) for each in patterns)

    def matches(component: str) -> bool:
        if folded:
            return any(_is_named(_folded(component), pattern) for pattern in patterns)
        return any(matches_pattern(pattern, component.strip()) for pattern in patterns)

    exact = None if wild else tuple(patterns)
    return Key(keyword=keyword, universal=False, exact=exact, bounds=None, matches=matches)


def _is_named(name: str, pattern: str) -> bool:
    """Return whether a name matches: a pattern of one component group any group, one of several each its own."""
    groups, wanted = name.split("="), pattern.split("=")
    if len(wanted) == 1:
        return any(matches_pattern(pattern, form) for form in {name, *groups})
    return len(wanted) <= len(groups) and all(
        not each or matches_pattern(each, group) for each, group in zip(wanted, groups, strict=False)
    )


def _folded(name: str) -> str:
    """Return the name of a person such that the same names are equal; empty components at its end say nothing."""
    groups = unicodedata.normalize("NFKC", name).casefold().split("=")
    return "=".join("^".join(part.strip() for part in group.split("^")).rstrip("^") for group in groups).rstrip("=")


def matches_pattern(pattern: str, text: str) -> bool:
    """Return whether a text matches a pattern in which `*` is any characters and `?` is any one (PS3.4 C.2.2.2.4).

    Goes back to the last `*` only, so that it takes at most as many steps as the product of both lengths.
    """
    at = in_text = 0
    star = resume = -1
    while in_text < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, in_text
            at += 1
        elif at < len(pattern) and pattern[at] in {"?", text[in_text]}:
            at, in_text = at + 1, in_text + 1
        elif star >= 0:
            resume += 1
            at, in_text = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")
