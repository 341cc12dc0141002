"""When a job may run and which one goes first: windows of the week, priorities that age, deadlines. Values only.

A window is open whenever the clock on the wall of its time zone says so; that one law also settles what happens when
clocks are changed.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY, _WEEK = 24 * 60, 7 * 24 * 60
_HORIZON = timedelta(days=9)
"""A window that has not closed within so many days is looked at again then."""

URGENT = 0
"""The priority that nothing else grows into, however long it waits."""

_CENTURY = 100 * 365.25 * 86400.0

Span = tuple[int, int]
"""Minutes since Monday 00:00 from which on and before which a window is open; the end may lie in the next week."""


class WhenLate(StrEnum):
    """What becomes of a job that has not begun when its deadline passes."""

    RUN = "run"
    DISCARD = "discard"


@dataclass(frozen=True, kw_only=True)
class Window:
    """Times of the week in which the jobs that name it may begin; one that runs at the close runs to its end."""

    name: str
    spans: tuple[Span, ...]
    zone: tzinfo

    def is_open(self, instant: datetime) -> bool:
        """Return whether the clock on the wall says that it is open; `instant` is aware."""
        local = instant.astimezone(self.zone)
        minute = local.weekday() * _DAY + local.hour * 60 + local.minute
        return any(begin <= each < end for begin, end in self.spans for each in (minute, minute + _WEEK))

    def open_until(self, instant: datetime) -> datetime | None:
        """Return when it closes next, None when it is closed at `instant`; of one that never closes, a day to come."""
        return self._change(instant, to=False) if self.is_open(instant) else None

    def opens_at(self, instant: datetime) -> datetime | None:
        """Return when it opens next, None when it is open at `instant` or stays closed in the days to come."""
        if self.is_open(instant):
            return None
        opening = self._change(instant, to=True)
        return opening if self.is_open(opening) else None

    def _change(self, instant: datetime, *, to: bool) -> datetime:
        """Return the first instant after this one at which it is open, or closed; at the latest the horizon."""
        today = instant.astimezone(self.zone).date()
        horizon = datetime.combine(today + _HORIZON, time(), tzinfo=self.zone).astimezone(UTC)
        changes = sorted({*self._boundaries(today), *_shifts(self.zone, instant, horizon)})
        return next((each for each in changes if instant < each < horizon and self.is_open(each) is to), horizon)

    def _boundaries(self, today: date) -> Iterator[datetime]:
        """Yield every instant of the days to come at which the wall shows an end or a beginning, once or twice."""
        minutes = {minute % _WEEK for span in self.spans for minute in span}
        for day in (today + timedelta(days=number) for number in range(_HORIZON.days)):
            for minute in minutes:
                if minute // _DAY == day.weekday():
                    shown = time(minute % _DAY // 60, minute % 60)
                    for fold in (0, 1):
                        yield datetime.combine(day, shown.replace(fold=fold), tzinfo=self.zone).astimezone(UTC)


def _shifts(zone: tzinfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the instants, to the second, at which the clocks of a zone are changed."""
    early = begin.astimezone(UTC).replace(microsecond=0)
    while early < end:
        late = early + timedelta(days=1)
        low, high = early, late
        if _offset(zone, low) != _offset(zone, high):
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) // 2
                middle = middle.replace(microsecond=0)
                low, high = (middle, high) if _offset(zone, middle) == _offset(zone, low) else (low, middle)
            yield high
        early = late


def _offset(zone: tzinfo, instant: datetime) -> timedelta | None:
    return instant.astimezone(zone).utcoffset()


_TIMES = re.compile(r"(?:(?P<days>\S+) +)?(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)")


def parse_times(text: str) -> tuple[Span, ...]:
    """Return the spans of `Mon-Fri 18:00-06:00`, `Sat,Sun 00:00-24:00` or, on every day, `18:00-06:00`.

    An end that is not after the beginning is on the next day. Raises ValueError.
    """
    found = _TIMES.fullmatch(text.strip())
    if found is None:
        raise ValueError(f'{text!r} is not of the form "Mon-Fri 18:00-06:00", "Sat,Sun 00:00-24:00" or "18:00-06:00"')
    begin, end = _minute(found["begin"]), _minute(found["end"])
    if begin in {_DAY, end}:
        raise ValueError(f'{text!r} begins at its own end, or at 24:00; a whole day is "00:00-24:00"')
    days = _days(found["days"] or f"{DAYS[0]}-{DAYS[-1]}")
    length = (end - begin) % _DAY or _DAY
    return tuple((day * _DAY + begin, day * _DAY + begin + length) for day in days)


def _minute(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > _DAY:
        raise ValueError(f"{text} is no time of a day: 00:00 to 24:00")
    return hours * 60 + minutes


def _days(text: str) -> Sequence[int]:
    """Return the numbers of the days of `Mon-Wed,Fri`; a range may go over the end of the week."""
    days: set[int] = set()
    for part in text.split(","):
        names = [name.capitalize() for name in part.split("-")]
        if len(names) > 2 or not set(names) <= set(DAYS):
            raise ValueError(f"{part!r} is neither a day nor a range of days: {', '.join(DAYS)}")
        first, last = DAYS.index(names[0]), DAYS.index(names[-1])
        days |= {day % 7 for day in range(first, last + 1 if first <= last else last + 8)}
    return sorted(days)


def patience(priority: int, ageing_seconds: float, deadline_seconds: float | None = None) -> float:
    """Return how many seconds after it was queued a job's turn is; of those that wait, the earliest turn goes first.

    So a job is overtaken only by what is more urgent and was queued soon enough after it: each step of priority
    counts as much as `ageing_seconds` of waiting. A deadline brings the turn forward, and what is urgent has had its
    turn long ago.
    """
    if priority == URGENT:
        return -_CENTURY
    return min(priority * ageing_seconds, math.inf if deadline_seconds is None else deadline_seconds)


def level(seconds_left: float, ageing_seconds: float) -> int:
    """Return the priority, 1 to 9, to which a job has grown whose turn is in so many seconds."""
    # Seconds since 1970 in a double are right to a quarter of a microsecond: what has just been queued has not aged.
    return max(1, math.ceil(seconds_left / ageing_seconds - 1e-6))
