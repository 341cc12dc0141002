"""Group commit: threads that each wait for the disk share one wait."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Work = TypeVar("Work")
Outcome = TypeVar("Outcome")


class _Entry(Generic[Work, Outcome]):
    """What one thread handed in, and what became of it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.outcome: Outcome | BaseException | None = None


class GroupCommit(Generic[Work, Outcome]):
    """Does the work of several threads together: one of them does it for all who wait by then.

    Nobody waits for company: who comes alone goes alone. While a group is under way the next one gathers.
    """

    def __init__(self, together: Callable[[Sequence[Work]], Sequence[Outcome | Exception]]) -> None:
        """`together` returns one outcome for each piece of work, in their order; an error counts for its own only.

        What `together` itself raises counts for everyone in the group.
        """
        self._together = together
        self._changed = threading.Condition()
        self._waiting: list[_Entry[Work, Outcome]] = []
        self._busy = False

    def do(self, work: Work) -> Outcome:
        """Return the outcome of this piece of work, or raise it where it is an error."""
        mine = _Entry[Work, Outcome](work)
        with self._changed:
            self._waiting.append(mine)
            self._changed.wait_for(lambda: mine.outcome is not None or not self._busy)
            group = self._waiting if mine.outcome is None else []
            if group:
                self._busy, self._waiting = True, []
        if group:
            self._lead(group)
        if isinstance(mine.outcome, BaseException):
            raise mine.outcome
        assert mine.outcome is not None  # noqa: S101  for the type checker: it was led by us or by somebody else
        return mine.outcome

    def _lead(self, group: Sequence[_Entry[Work, Outcome]]) -> None:
        outcomes: Sequence[Outcome | BaseException]
        try:
            outcomes = self._together([entry.work for entry in group])
        except BaseException as failure:  # noqa: BLE001  nobody in the group may wait for ever; ours raises it again
            outcomes = [failure] * len(group)
        with self._changed:
            for entry, outcome in zip(group, outcomes, strict=True):
                entry.outcome = outcome
            self._busy = False
            self._changed.notify_all()
