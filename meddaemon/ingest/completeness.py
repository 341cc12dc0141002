"""Whether a rule is asked of a study now: its times, what it requires, and what others say of the study.

What is decided is pure (`domain/completeness.py`); here it is put together from settings and database.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from meddaemon.config.settings import Settings
from meddaemon.db import announcements, holds, inquiries, studies
from meddaemon.db.engine import Connection
from meddaemon.db.studies import DueStudy
from meddaemon.domain.completeness import (
    Announcement,
    AnnouncementSource,
    Patience,
    Readiness,
    Signals,
    Step,
    assess,
    heard,
)
from meddaemon.domain.conditions import Outcome, outcome_as_dict, unmet
from meddaemon.domain.identity import Contradiction
from meddaemon.domain.rules import Rule
from meddaemon.domain.series import Study
from meddaemon.domain.states import AnnouncementState
from meddaemon.domain.uids import digest_of
from meddaemon.ingest.matching import Decision, decide, decide_fallback

ANSWER_SECONDS = 60.0
"""How long the sender of a study may take to say how many instances it has."""
ASK_AGAIN_SECONDS = 30.0
"""After this time it is asked again when it had more than is here."""


def readiness(rule: Rule, settings: Settings, study: Study, due: DueStudy, signals: Signals) -> Readiness:
    """Return what is to be done about a rule and a study now."""
    required = _required(rule, study)
    return assess(
        patience(rule, settings),
        signals,
        missing=unmet(required) if required else (),
        concerned=rule.study.evaluate(study.attributes).held,
        quiet_for=due.quiet_for,
        waited=due.waited,
    )


def is_left_to_a_person(connection: Connection, study: Study, rule: Rule, ready: Readiness) -> bool:
    """Leave a rule and this generation of a study to a person; return False when one has let it go on already."""
    found = Contradiction(
        kind=holds.INCOMPLETE,
        subject="",
        value=digest_of(rule.name, str(study.generation)),
        reason=f"rule {rule.name!r}: {ready.reason}",
    )
    return bool(holds.record(connection, study.id, [found]))


def ask(
    rule: Rule, study: Study, settings: Settings, matched: Sequence[str], signals: Signals, ready: Readiness
) -> Decision:
    """Ask a rule, or give the study up for it; the decision says what was known of its completeness.

    `matched` are the rules that have matched, which a fallback wants to know.
    """
    known: dict[str, object] = {"signals": list(signals.remarks)} if signals.remarks else {}
    if rule.requires and (required := _required(rule, study)):
        known |= {"requires": rule.requires.text, "required": outcome_as_dict(required)}
    if ready.step is Step.DISCARD:
        reason = f"discarded, {ready.reason}"
        return Decision(rule=rule.name, matched=False, reason=reason, detail={studies.DISCARDED: True, **known})
    decision = (
        decide_fallback(rule, study, settings.contracts, matched)
        if rule.fallback
        else decide(rule, study, settings.contracts)
    )
    released = "an operator let it go on" if ready.step is Step.HOLD else ""
    reason = "; ".join(filter(None, (decision.reason, ready.reason, released)))
    return replace(decision, reason=reason, detail={**decision.detail, **known})


def _required(rule: Rule, study: Study) -> Outcome | None:
    """Return whether the series are there that a rule requires, where it does and the study is one for it."""
    if rule.requires is None or not rule.study.evaluate(study.attributes).held:
        return None
    return rule.requires.evaluate(study, rule.admit)


def patience(rule: Rule, settings: Settings) -> Patience:
    """Return how long a rule waits for a study; a fallback wants it as quiet as the most patient of all rules."""
    default = settings.completeness
    quiet = [
        default.quiet_seconds if each.quiet_seconds is None else each.quiet_seconds
        for each in (settings.rules if rule.fallback else (rule,))
    ]
    maximum = rule.maximum_wait_seconds
    return Patience(
        quiet_seconds=max(quiet),
        maximum_seconds=default.maximum_wait_seconds if maximum is None else maximum,
        when_incomplete=rule.when_incomplete or default.when_incomplete,
    )


def hear(connection: Connection, settings: Settings, due: DueStudy, waiting: Sequence[Rule]) -> Signals:
    """Return what others say of a study; once it is quiet enough for a rule, its senders are asked, too."""
    told = [each.announcement for each in announcements.of_study(connection, due.study_instance_uid)]
    signals = heard(told)
    quiet = any(patience(rule, settings).quiet_seconds <= due.quiet_for for rule in waiting)
    if not quiet or signals.complete:
        return signals
    peers = {peer.ae_title for peer in settings.peers if peer.query}
    asked = peers.intersection(studies.senders(connection, due.id)) if peers else ()
    return heard([*told, *(_answer(connection, settings, due, ae_title) for ae_title in sorted(asked))])


def _answer(connection: Connection, settings: Settings, due: DueStudy, ae_title: str) -> Announcement:
    """Return what a peer says of a study that it sent, and have it asked where it has not said anything that counts.

    What it said before the last instance arrived does not.
    """
    answer = partial(Announcement, source=AnnouncementSource.QUERY, ae_title=ae_title)
    said = AnnouncementState.COMPLETED
    known = next(iter(inquiries.of_study(connection, due.id, [ae_title])), None)
    if known is None or known.outdated:
        inquiries.want(connection, due.id, ae_title, afresh=True)
        return answer(state=AnnouncementState.IN_PROGRESS, named=0, missing=0, asking=ANSWER_SECONDS)
    patient_for = ANSWER_SECONDS - known.age
    if known.answered_at is None and known.instances is None and patient_for > 0:
        return answer(state=AnnouncementState.IN_PROGRESS, named=0, missing=0, asking=patient_for)
    if known.problem or known.instances is None or (known.answered_at is None and patient_for <= 0):
        problem = known.problem or f"no answer within {ANSWER_SECONDS:g} s"
        return answer(state=said, named=0, missing=0, problem=problem)
    same = [each.name for each in settings.destinations if each.ae_title == ae_title]
    missing = max(known.instances - announcements.count_here(connection, due.id, same), 0)
    again = ASK_AGAIN_SECONDS - known.age if known.answered_at else patient_for
    if missing and again <= 0:
        inquiries.want(connection, due.id, ae_title, afresh=False)
        again = ANSWER_SECONDS
    return answer(state=said, named=known.instances, missing=missing, again=again if missing else math.inf)
