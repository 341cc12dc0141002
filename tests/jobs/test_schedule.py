"""Windows by the wall clock, and turns: each law against a plain statement of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain.schedule import DAYS, URGENT, Window, level, parse_times, patience

BERLIN = ZoneInfo("Europe/Berlin")
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/St_Johns"]


def window(*times: str, zone: str = "Europe/Berlin") -> Window:
    return Window(name="night", spans=tuple(span for each in times for span in parse_times(each)), zone=ZoneInfo(zone))


def at(text: str, zone: ZoneInfo = BERLIN, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold).astimezone(UTC)


NIGHTS = window("Mon-Fri 18:00-06:00")


@pytest.mark.parametrize(
    ("wall", "until"),
    [
        ("2026-11-16 17:59:59", None),  # a Monday
        ("2026-11-16 18:00", "2026-11-17 06:00"),
        ("2026-11-17 05:59:59", "2026-11-17 06:00"),
        ("2026-11-17 06:00", None),
        ("2026-11-20 23:00", "2026-11-21 06:00"),  # Friday's night ends on Saturday
        ("2026-11-21 18:00", None),
        ("2026-11-23 03:00", None),  # before dawn on Monday: Sunday's night is not among them
    ],
)
def test_a_night_goes_over_midnight(wall: str, until: str | None) -> None:
    assert NIGHTS.open_until(at(wall)) == (None if until is None else at(until))
    assert NIGHTS.is_open(at(wall)) is (until is not None)


def test_times_that_touch_are_one_opening() -> None:
    weekend = window("Fri 18:00-24:00", "Sat,Sun 00:00-24:00", "Mon 00:00-06:00")
    assert weekend.open_until(at("2026-11-20 18:00")) == at("2026-11-23 06:00")
    assert window("Sun 18:00-06:00").open_until(at("2026-11-23 05:00")) == at("2026-11-23 06:00")


def test_what_never_closes_is_looked_at_again_some_day_and_that_day_stands_for_the_day() -> None:
    always = window("00:00-24:00")
    morning, evening = always.open_until(at("2026-11-16 08:00")), always.open_until(at("2026-11-16 20:00"))
    assert morning == evening
    assert morning is not None
    assert morning > at("2026-11-23 00:00")


# Clocks go forward on 2026-03-29 at 02:00 (there is no 02:30) and back on 2026-10-25 at 03:00 (02:30 comes twice).
@pytest.mark.parametrize(
    ("times", "now", "until"),
    [
        ("Sat 22:00-06:00", at("2026-03-28 22:00"), datetime(2026, 3, 29, 4, tzinfo=UTC)),  # seven hours
        ("Sat 22:00-06:00", at("2026-10-24 22:00"), datetime(2026, 10, 25, 5, tzinfo=UTC)),  # nine hours
        ("Sun 01:00-02:30", at("2026-03-29 01:00"), datetime(2026, 3, 29, 1, tzinfo=UTC)),  # the wall leaps past 02:30
        ("Sun 02:30-04:00", datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 29, 2, tzinfo=UTC)),
        ("Sun 02:30-02:45", at("2026-10-25 02:30"), at("2026-10-25 02:45")),
        ("Sun 02:30-02:45", at("2026-10-25 02:30", fold=1), at("2026-10-25 02:45", fold=1)),
        ("Sun 02:30-02:45", at("2026-10-25 02:00", fold=1), None),
    ],
)
def test_when_clocks_are_changed_the_wall_decides(times: str, now: datetime, until: datetime | None) -> None:
    assert window(times).open_until(now) == until


def _times() -> st.SearchStrategy[str]:
    clock = st.integers(0, 24 * 60 - 1).map(lambda minute: f"{minute // 60:02}:{minute % 60:02}")
    days = st.lists(st.sampled_from(DAYS), min_size=1, max_size=3, unique=True).map(",".join)
    return st.tuples(days, clock, clock).filter(lambda each: each[1] != each[2]).map(lambda e: f"{e[0]} {e[1]}-{e[2]}")


def _wall_says_open(times: str, local: datetime) -> bool:
    """The same question by the text itself: today from its beginning, or what is left of yesterday's."""
    days, _, span = times.partition(" ")
    begin, _, end = span.partition("-")
    clock, today, yesterday = f"{local:%H:%M}", DAYS[local.weekday()], DAYS[local.weekday() - 1]
    if begin < end:
        return today in days and begin <= clock < end
    return (today in days and clock >= begin) or (yesterday in days and clock < end)


@given(
    times=_times(),
    zone=st.sampled_from(ZONES),
    now=st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)).map(lambda each: each.replace(tzinfo=UTC)),
)
def test_a_window_is_open_until_the_minute_in_which_the_wall_says_no(times: str, zone: str, now: datetime) -> None:
    asked = window(times, zone=zone)
    assert asked.is_open(now) is _wall_says_open(times, now.astimezone(asked.zone))
    until, opens = asked.open_until(now), asked.opens_at(now)
    assert (until is None) is not asked.is_open(now)
    assert (opens is None) is asked.is_open(now)
    change = until or opens
    assert change is not None
    assert change > now
    assert asked.is_open(change) is (opens is not None)
    assert asked.is_open(change - timedelta(microseconds=1)) is (until is not None)
    for instant in _between(now, change):
        assert _wall_says_open(times, instant.astimezone(asked.zone)) is (until is not None)


def _between(first: datetime, last: datetime) -> Iterator[datetime]:
    """Yield instants all over the time between two, and every quarter of an hour in which clocks are changed."""
    step = max((last - first) / 200, timedelta(minutes=1))
    while first < last:
        yield first
        first += step


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Mon-Fri", "is not of the form"),
        ("18:00-6:00", "is not of the form"),
        ("Mo-Fr 18:00-06:00", "neither a day nor a range"),
        ("Mon-Wed-Fri 18:00-06:00", "neither a day nor a range"),
        ("Mon 25:00-06:00", "no time of a day"),
        ("Mon 18:60-06:00", "no time of a day"),
        ("Mon 18:00-18:00", "a whole day is"),
        ("Mon 24:00-18:00", "at 24:00"),
    ],
)
def test_times_that_say_nothing_are_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_times(text)


def test_days_may_be_named_one_by_one_in_ranges_and_over_the_end_of_the_week() -> None:
    def days(text: str) -> list[int]:
        return [begin // (24 * 60) for begin, _ in parse_times(f"{text} 10:00-11:00")]

    assert days("Mon-Wed,Fri") == [0, 1, 2, 4]
    assert days("Fri-Mon") == [0, 4, 5, 6]
    assert days("sat,SUN") == [5, 6]
    assert parse_times("10:00-11:00") == parse_times("Mon-Sun 10:00-11:00")


PRIORITIES = st.integers(1, 9)
SECONDS = st.floats(0, 1e6)


@given(
    older=PRIORITIES, newer=PRIORITIES, later=SECONDS, ageing=st.floats(1, 1e5), deadline=st.none() | st.floats(0, 1e6)
)
def test_a_job_is_overtaken_only_by_what_is_more_urgent_and_came_soon_enough(
    older: int, newer: int, later: float, ageing: float, deadline: float | None
) -> None:
    first, second = patience(older, ageing), later + patience(newer, ageing)
    if newer >= older:
        assert first <= second
    elif later > (older - newer) * ageing * (1 + 1e-9) + 1e-6:
        assert first < second
    assert patience(URGENT, ageing, deadline) + later < patience(newer, ageing, deadline)
    assert patience(older, ageing, deadline) <= patience(older, ageing)
    assert deadline is None or patience(older, ageing, deadline) <= deadline


@given(priority=PRIORITIES, ageing=st.floats(1, 1e5), waited=SECONDS)
def test_a_job_grows_one_level_for_each_ageing_time_and_never_becomes_urgent(
    priority: int, ageing: float, waited: float
) -> None:
    assert level(patience(priority, ageing), ageing) == priority
    grown = level(patience(priority, ageing) - waited, ageing)
    assert URGENT < grown <= priority
    assert abs(grown - max(1.0, priority - waited / ageing)) < 1 + 1e-6
