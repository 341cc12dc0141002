"""What announcements, requirements and times say together, without any database: laws, and one table."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.config.expressions import parse_expression
from meddaemon.domain.completeness import (
    Announcement,
    AnnouncementSource,
    Patience,
    Readiness,
    Requirement,
    Signals,
    Step,
    WhenIncomplete,
    assess,
    heard,
)
from meddaemon.domain.conditions import Matches, unmet
from meddaemon.domain.series import Instance, SeriesKind, Study
from meddaemon.domain.states import ANNOUNCEMENT_TRANSITIONS, AnnouncementState
from meddaemon.ingest.describe import describe_study

_seconds = st.floats(0, 1e6)


@st.composite
def announcements(draw: st.DrawFn) -> Announcement:
    named = draw(st.integers(0, 5))
    asking = draw(st.sampled_from([0.0, 0.0, 7.0]))
    return Announcement(
        source=draw(st.sampled_from(AnnouncementSource)),
        ae_title="CT1",
        uid="1.2.3",
        state=draw(st.sampled_from(AnnouncementState)),
        named=named,
        missing=draw(st.integers(0, named)),
        asking=asking,
    )


patiences = st.builds(
    Patience, quiet_seconds=_seconds, maximum_seconds=_seconds, when_incomplete=st.sampled_from(WhenIncomplete)
)


@given(patience=patiences, quiet_for=_seconds, waited=_seconds)
def test_without_signals_and_requirement_the_quiet_time_alone_decides(
    patience: Patience, quiet_for: float, waited: float
) -> None:
    readiness = assess(patience, heard([]), quiet_for=quiet_for, waited=waited)
    if quiet_for >= patience.quiet_seconds:
        assert readiness == Readiness(step=Step.ASK)
    else:
        assert readiness.step is Step.WAIT
        assert readiness.seconds == patience.quiet_seconds - quiet_for


@given(
    patience=patiences,
    said=st.lists(announcements(), max_size=4),
    missing=st.lists(st.just("T1"), max_size=1),
    quiet_for=_seconds,
    waited=_seconds,
)
def test_laws_of_waiting(
    patience: Patience, said: list[Announcement], missing: list[str], quiet_for: float, waited: float
) -> None:
    signals = heard(said)
    readiness = assess(patience, signals, missing=missing, quiet_for=quiet_for, waited=waited)
    objected = bool(signals.objections or missing)
    quiet, over = quiet_for >= patience.quiet_seconds, waited >= patience.maximum_seconds
    # Whoever waits knows how long, and why.
    assert (readiness.step is not Step.WAIT) or (readiness.seconds > 0 and readiness.reason)
    # Nobody waits longer than the maximum wait, the quiet time and the patience with a peer.
    assert not (quiet and over and not signals.asking and readiness.step is Step.WAIT)
    # What is known to be incomplete is not asked as if it were complete.
    if objected and readiness.step is Step.ASK:
        assert over
        assert patience.when_incomplete is WhenIncomplete.RUN
        assert "not complete" in readiness.reason
    # Holding and discarding are for what is incomplete after all the waiting.
    if readiness.step in {Step.HOLD, Step.DISCARD}:
        assert objected
        assert quiet
        assert over
    if signals.complete and not missing:
        assert readiness == Readiness(step=Step.ASK)


@given(said=st.lists(announcements(), max_size=5))
def test_laws_of_hearing(said: list[Announcement]) -> None:
    signals = heard(said)
    assert not (signals.complete and signals.objections)
    assert len(signals.remarks) == len(said)
    # The order in which they were said does not matter.
    turned = heard(said[::-1])
    assert (turned.complete, sorted(turned.objections)) == (signals.complete, sorted(signals.objections))
    named = [each for each in said if each.source is not AnnouncementSource.QUERY]
    if any(each.state is AnnouncementState.IN_PROGRESS and not each.asking for each in named):
        assert signals.objections
    if signals.complete:
        assert sum(each.named for each in named) > 0
        assert sum(each.missing for each in named) == 0


def _said(source: AnnouncementSource, state: AnnouncementState, named: int, missing: int, **more: object) -> Signals:
    return heard(
        [Announcement(source=source, ae_title="CT1", state=state, named=named, missing=missing, **more)]  # type: ignore[arg-type]
    )


MPPS, IAN, QUERY = AnnouncementSource.PROCEDURE_STEP, AnnouncementSource.AVAILABILITY, AnnouncementSource.QUERY
IN_PROGRESS, COMPLETED, DISCONTINUED = AnnouncementState


@pytest.mark.parametrize(
    ("signals", "complete", "objection"),
    [
        (_said(MPPS, IN_PROGRESS, 0, 0), False, "MPPS of CT1 is in progress"),
        (_said(MPPS, COMPLETED, 3, 0), True, ""),
        (_said(MPPS, COMPLETED, 3, 1, examples=("1.9",)), False, "1 of 3 instances of MPPS of CT1 are not here (1.9)"),
        (_said(MPPS, COMPLETED, 0, 0), False, ""),
        (_said(MPPS, DISCONTINUED, 3, 0), True, ""),
        (_said(MPPS, DISCONTINUED, 3, 2), False, ""),
        (_said(IAN, COMPLETED, 3, 0), True, ""),
        (_said(IAN, COMPLETED, 3, 3), False, "3 of 3 instances of IAN of CT1 are not here"),
        # A count may still be growing: nothing is hastened on its account.
        (_said(QUERY, COMPLETED, 3, 0), False, ""),
        (_said(QUERY, COMPLETED, 3, 2), False, "2 of 3 instances of C-FIND of CT1 are not here"),
        (_said(QUERY, COMPLETED, 0, 0, problem="no answer"), False, ""),
        (_said(QUERY, IN_PROGRESS, 0, 0, asking=5.0), False, ""),
    ],
)
def test_what_one_announcement_says(signals: Signals, *, complete: bool, objection: str) -> None:
    assert (signals.complete, "; ".join(signals.objections)) == (complete, objection)


def test_a_rule_that_is_not_for_the_study_holds_and_discards_nothing() -> None:
    signals = heard([Announcement(source=MPPS, ae_title="", state=IN_PROGRESS, named=0, missing=0)])
    for action in WhenIncomplete:
        patience = Patience(quiet_seconds=1, maximum_seconds=10, when_incomplete=action)
        assert assess(patience, signals, concerned=False, quiet_for=20, waited=20) == Readiness(step=Step.ASK)
        assert assess(patience, signals, concerned=False, quiet_for=5, waited=5).step is Step.WAIT


def test_a_peer_that_is_asked_is_waited_for_a_little_even_when_the_maximum_is_over() -> None:
    patience = Patience(quiet_seconds=1, maximum_seconds=10, when_incomplete=WhenIncomplete.HOLD)
    asking = _said(QUERY, IN_PROGRESS, 0, 0, asking=5.0)
    assert assess(patience, asking, quiet_for=20, waited=20).seconds == 5
    more = _said(QUERY, COMPLETED, 3, 2, again=2.0)
    assert assess(patience, more, quiet_for=5, waited=5) == Readiness(
        step=Step.WAIT, reason="2 of 3 instances of C-FIND of CT1 are not here", seconds=2.0
    )
    assert assess(patience, more, quiet_for=5, waited=20).step is Step.HOLD
    assert more.again == 2
    assert heard([]).again == math.inf


def test_a_procedure_step_that_is_over_stays_as_it_is() -> None:
    assert set(ANNOUNCEMENT_TRANSITIONS) == set(AnnouncementState)
    assert ANNOUNCEMENT_TRANSITIONS[IN_PROGRESS] == set(AnnouncementState)
    assert not ANNOUNCEMENT_TRANSITIONS[COMPLETED]
    assert not ANNOUNCEMENT_TRANSITIONS[DISCONTINUED]


def _study(*descriptions: str) -> Study:
    def instance(number: int, description: str) -> Instance:
        header = {"SeriesDescription": (description,), "Rows": ("64",), "ImageType": ("ORIGINAL",)}
        return Instance(
            sop_instance_uid=f"1.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            path=Path("x"),
            sha256="",
            size=1,
            header=header,
        )

    return describe_study(
        study_id=1,
        study_instance_uid="1",
        generation=1,
        instances={f"2.{number}": (instance(number, each),) for number, each in enumerate(descriptions)},
    )


def _requirement(text: str) -> Requirement:
    choosers = {name: Matches(attribute="SeriesDescription", pattern=f"^{name}") for name in ("T1", "T2", "FLAIR")}
    expression, _ = parse_expression(text, choosers)
    return Requirement(text=text, expression=expression, series=choosers)


@pytest.mark.parametrize(
    ("series", "missing"),
    [
        (("t1 tra", "flair"), ()),
        (("t1 tra", "t2 tra"), ()),
        (("t1 tra",), ("none of: T2; FLAIR",)),
        (("t2 tra",), ("T1",)),
        ((), ("T1", "none of: T2; FLAIR")),
        # A localizer is no T1, whatever it is called, unless the rule admits localizers.
        (("t1 localizer", "t2"), ("T1",)),
    ],
)
def test_the_missing_series_are_named(series: tuple[str, ...], missing: tuple[str, ...]) -> None:
    outcome = _requirement("T1 and (T2 or FLAIR)").evaluate(_study(*series), frozenset())
    assert unmet(outcome) == missing
    assert outcome.held is not bool(missing)


def test_an_admitted_kind_counts_and_what_must_not_be_there_is_named() -> None:
    study = _study("t1 localizer")
    assert _requirement("T1").evaluate(study, frozenset({SeriesKind.LOCALIZER})).held
    unwanted = _requirement("not T2").evaluate(_study("t2"), frozenset())
    assert not unwanted.held
    assert "not: T2" in unmet(unwanted)[0]
