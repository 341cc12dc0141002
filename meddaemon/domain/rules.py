"""Rules: which models run on which studies, and where the results go. Values only; see `ingest/matching.py`."""

from dataclasses import dataclass

from meddaemon.domain.completeness import Requirement, WhenIncomplete
from meddaemon.domain.conditions import ALWAYS, Condition
from meddaemon.domain.schedule import WhenLate
from meddaemon.domain.series import SeriesKind

FORCED = "forced: "
"""Begins the name of a rule that stands for an operator's own choice; no rule of the configuration can (colon)."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of the configuration.

    `study` must hold for the study, and `series` for each series that a model of this rule may see, on top of the
    model's own series chooser. `admit` lifts the guard for kinds of series that otherwise never reach a model.
    `quiet_seconds` overrides the default quiet time; `priority` 0 is the most urgent, 9 the least. A `fallback`
    rule is looked at only when no other rule matched. `requires` names series that must be there;
    `maximum_wait_seconds` and `when_incomplete` override the defaults of how long is waited for what is missing, and
    of what becomes of the study then. Its jobs begin only in its `window` ("" is at any time); `deadline_seconds`
    after they were queued they should have begun, else `when_late` says what becomes of them.
    """

    name: str
    models: tuple[str, ...]
    destinations: tuple[str, ...] = ()
    study: Condition = ALWAYS
    series: Condition = ALWAYS
    admit: frozenset[SeriesKind] = frozenset()
    quiet_seconds: float | None = None
    requires: Requirement | None = None
    maximum_wait_seconds: float | None = None
    when_incomplete: WhenIncomplete | None = None
    priority: int = 5
    window: str = ""
    deadline_seconds: float | None = None
    when_late: WhenLate = WhenLate.RUN
    fallback: bool = False
