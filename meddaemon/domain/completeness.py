"""When a study is complete (pure): what others announce of it, what a rule requires, and how long that is waited for.

DICOM has no message that says "this was all", so a quiet time decides. What others say goes over it, in both
directions: when every instance that they announce is here, nobody needs to wait; when some are missing, silence means
nothing, and only the maximum wait ends the waiting.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from meddaemon.domain.conditions import Condition, Outcome
from meddaemon.domain.series import SeriesKind, Study
from meddaemon.domain.states import AnnouncementState


class AnnouncementSource(StrEnum):
    """Who speaks: a modality, an archive that tells, an archive that was asked."""

    PROCEDURE_STEP = "MPPS"
    """Modality Performed Procedure Step (PS3.4 F.7)."""
    AVAILABILITY = "IAN"
    """Instance Availability Notification (PS3.4 Annex R)."""
    QUERY = "C-FIND"
    """The peer that sent the study, asked how many instances it has (PS3.4 C.4.1)."""


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """What somebody says that a study consists of, and how much of it is not here.

    `named` instances, of which `missing` are not here, some of them `examples`. Of somebody who is asked: `problem`
    says why nothing could be learned, `asking` is for how many seconds an answer is waited for, whatever the maximum
    wait; `again` is after how many seconds the answer may be another one.
    """

    source: AnnouncementSource
    ae_title: str
    state: AnnouncementState
    named: int
    missing: int
    uid: str = ""
    examples: tuple[str, ...] = ()
    problem: str = ""
    asking: float = 0.0
    again: float = math.inf

    @property
    def who(self) -> str:
        """The announcement in a few words: its kind, UID and sender."""
        return " ".join(filter(None, (self.source.value, self.uid, f"of {self.ae_title}" if self.ae_title else "")))

    @property
    def objection(self) -> str:
        """Why the study is not complete, if this announcement is right; nothing where it has no objection."""
        if self.asking:
            return ""
        if self.state is AnnouncementState.IN_PROGRESS:
            return f"{self.who} is in progress"
        if self.state is AnnouncementState.COMPLETED and self.missing:
            some = f" ({', '.join(self.examples)})" if self.examples else ""
            return f"{self.missing} of {self.named} instances of {self.who} are not here{some}"
        return ""

    @property
    def remark(self) -> str:
        """What it says, whether that is an objection or not."""
        if self.asking:
            return f"{self.who}: it is being asked"
        if self.problem:
            return f"{self.who}: {self.problem}; the quiet time decides"
        if self.state is AnnouncementState.DISCONTINUED:
            unsent = f", {self.missing} of them not here and not waited for" if self.missing else ""
            return f"{self.who} was discontinued with {self.named} instances{unsent}"
        return self.objection or f"all {self.named} instances of {self.who} are here"


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What all announcements say together.

    `complete`: every announced instance is here, and nobody is still at work. `objections`: why it is not complete.
    Neither: nobody has said anything that decides. `asking` and `again` are as in `Announcement`.
    """

    complete: bool = False
    objections: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    asking: float = 0.0
    again: float = math.inf


def heard(announcements: Sequence[Announcement]) -> Signals:
    """Return what announcements say together: one objection is enough.

    A count says nothing of which instances are meant, and may still be growing: it can object, and no more. What a
    discontinued step made may have been thrown away: its instances are not waited for.
    """
    objections = tuple(each.objection for each in announcements if each.objection)
    named = [each for each in announcements if each.source is not AnnouncementSource.QUERY]
    return Signals(
        complete=not objections and any(each.named for each in named) and not any(each.missing for each in named),
        objections=objections,
        remarks=tuple(each.remark for each in announcements),
        asking=max((each.asking for each in announcements), default=0.0),
        again=min((each.again for each in announcements), default=math.inf),
    )


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Series that must be there before a rule is asked.

    `series` are the choosers by name; `expression` is a condition over these names: an attribute that is a name, with
    the UIDs of the series that fit as its values. `text` is how it was written.
    """

    text: str
    expression: Condition
    series: Mapping[str, Condition]

    def evaluate(self, study: Study, admit: frozenset[SeriesKind]) -> Outcome:
        """Return whether the series are there; only images count, and the kinds in `admit`."""
        candidates = [each for each in study.series if each.kind is SeriesKind.IMAGE or each.kind in admit]
        fitting = {
            name: tuple((each.series_instance_uid,) for each in candidates if chooser.evaluate(each.attributes).held)
            for name, chooser in self.series.items()
        }
        return self.expression.evaluate(fitting)

    def keywords(self) -> frozenset[str]:
        """Return the attributes that the choosers look at."""
        return frozenset().union(*(chooser.keywords() for chooser in self.series.values()))


class WhenIncomplete(StrEnum):
    """What becomes of a study that is not complete when the maximum wait is over."""

    RUN = "run"
    """The rule is asked all the same, with a remark."""
    HOLD = "hold"
    """A person decides: nothing runs before the study is released."""
    DISCARD = "discard"
    """The rule does not run on it, unless more comes."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a rule waits: until the study was quiet for so long, and at most so long for what is missing.

    The maximum counts from the first instance of the study's generation.
    """

    quiet_seconds: float
    maximum_seconds: float
    when_incomplete: WhenIncomplete = WhenIncomplete.RUN


class Step(StrEnum):
    """What is to be done about a rule and a study now."""

    ASK = "ask"
    WAIT = "wait"
    HOLD = "hold"
    DISCARD = "discard"


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What is to be done, why, and after how many seconds to look again when it is to wait."""

    step: Step
    reason: str = ""
    seconds: float = 0.0


def assess(
    patience: Patience,
    signals: Signals,
    *,
    missing: Sequence[str] = (),
    concerned: bool = True,
    quiet_for: float,
    waited: float,
) -> Readiness:
    """Decide whether a rule is asked now.

    `missing` are the parts of its requirement that are not met; `concerned`: whether the study is one for this rule
    at all, as far as can be told, because nobody needs to hold or discard what it would not have run on anyway.
    `quiet_for` and `waited` are the seconds since the last instance, and since the first one of this generation.
    """
    objections = [*signals.objections, *(f"required series: {part}" for part in missing)]
    why = "; ".join(objections)
    if not objections and signals.complete:
        return Readiness(step=Step.ASK)
    if quiet_for < patience.quiet_seconds:
        return Readiness(step=Step.WAIT, reason=why or "instances arrive", seconds=patience.quiet_seconds - quiet_for)
    if signals.asking:
        return Readiness(step=Step.WAIT, reason="its sender is asked what it has", seconds=signals.asking)
    if objections and waited < patience.maximum_seconds:
        seconds = min(patience.maximum_seconds - waited, signals.again)
        return Readiness(step=Step.WAIT, reason=why, seconds=seconds)
    if not objections or not concerned:
        return Readiness(step=Step.ASK)
    return Readiness(
        step=_AFTERWARDS[patience.when_incomplete],
        reason=f"not complete after the maximum wait of {patience.maximum_seconds:g} s: {why}",
    )


_AFTERWARDS = {WhenIncomplete.RUN: Step.ASK, WhenIncomplete.HOLD: Step.HOLD, WhenIncomplete.DISCARD: Step.DISCARD}
