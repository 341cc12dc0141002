"""The tables of states are sound, whatever is written in them."""

from collections.abc import Mapping
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain import states
from meddaemon.domain.states import (
    DELIVERY_TAKEN,
    DELIVERY_TRANSITIONS,
    JOB_TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
    JobEvent,
    JobState,
)

Table = Mapping[StrEnum, Mapping[StrEnum, StrEnum]]
LIVES: list[tuple[Table, type[StrEnum], type[StrEnum], StrEnum, StrEnum]] = [
    (JOB_TRANSITIONS, JobState, JobEvent, JobState.AVAILABLE, JobState.COMPLETED),  # type: ignore[list-item]
    (DELIVERY_TRANSITIONS, DeliveryState, DeliveryEvent, DeliveryState.PENDING, DeliveryState.COMMITTED),  # type: ignore[list-item]
    (DELIVERY_TRANSITIONS, DeliveryState, DeliveryEvent, DeliveryState.PENDING, DeliveryState.VERIFIED),  # type: ignore[list-item]
]
each_life = pytest.mark.parametrize(
    ("table", "state", "event", "first", "last"), LIVES, ids=["job", "delivery committed", "delivery verified"]
)


@each_life
def test_every_state_has_a_row_and_every_event_leads_to_one_state(
    table: Table, state: type[StrEnum], event: type[StrEnum], first: StrEnum, last: StrEnum
) -> None:
    assert set(table) == set(state)
    for each in event:
        assert len({row[each] for row in table.values() if each in row}) == 1, each


@each_life
def test_nothing_leaves_the_end_and_the_end_can_be_reached_from_everywhere(
    table: Table, state: type[StrEnum], event: type[StrEnum], first: StrEnum, last: StrEnum
) -> None:
    ends = {each for each in state if not table[each]}
    assert last in ends
    for start in set(state) - ends:
        assert {last, first} <= _reachable(table, start), start
    assert _reachable(table, first) == set(state)


def _reachable(table: Table, start: StrEnum) -> set[StrEnum]:
    reached, waiting = {start}, [start]
    while waiting:
        new = set(table[waiting.pop()].values()) - reached
        reached |= new
        waiting += new
    return reached


def test_sources_and_targets_are_read_from_the_table() -> None:
    for event in JobEvent:
        rows = {state for state, row in JOB_TRANSITIONS.items() if event in row}
        assert set(states.sources(event)) == rows
        assert {JOB_TRANSITIONS[state][event] for state in rows} == {states.target(event)}
    for delivery_event in DeliveryEvent:
        found = {state for state, row in DELIVERY_TRANSITIONS.items() if delivery_event in row}
        assert set(states.delivery_sources(delivery_event)) == found
        assert {DELIVERY_TRANSITIONS[state][delivery_event] for state in found} == {
            states.delivery_target(delivery_event)
        }


@given(st.lists(st.sampled_from(DeliveryEvent), max_size=30))
def test_whatever_happens_nothing_is_confirmed_that_was_not_sent(events: list[DeliveryEvent]) -> None:
    state, sent = DeliveryState.PENDING, False
    for event in events:
        after = DELIVERY_TRANSITIONS[state].get(event)
        if after is None:
            continue
        assert state not in {DeliveryState.COMMITTED, DeliveryState.VERIFIED}, "somebody left the end"
        if event in {DeliveryEvent.VERIFY, DeliveryEvent.LOSE, DeliveryEvent.DOUBT}:
            assert sent, "it was not taken since it was claimed last"
        sent = (sent or event is DeliveryEvent.ACCEPT) and event not in {DeliveryEvent.CLAIM, DeliveryEvent.LOSE}
        state = after
        assert (state in DELIVERY_TAKEN) <= (sent or event is DeliveryEvent.COMMIT)


def test_only_a_claimed_thing_can_end_well() -> None:
    assert states.sources(JobEvent.COMPLETE) == (JobState.EXECUTING,)
    assert states.delivery_sources(DeliveryEvent.ACCEPT) == (DeliveryState.SENDING,)
