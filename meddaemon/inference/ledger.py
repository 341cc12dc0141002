"""Which warm models fit into memory together, and which make room: pure bookkeeping, on measured numbers."""

from dataclasses import dataclass

UNKNOWN_BYTES = 2 * 2**30
"""What a model is taken to need before it was measured and where its contract says nothing."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """Memory of one model process in bytes: of the host now and at most, and of the GPU."""

    host: int
    peak: int
    gpu: int = 0


class Ledger:
    """What each warm model holds while it rests, and what it needed at most while it ran; names are digests."""

    def __init__(self, budget: int) -> None:
        """`budget` is what all models together may hold, in bytes."""
        self.budget = budget
        self._resting: dict[str, Use] = {}
        """In the order of last use."""
        self._peaks: dict[str, int] = {}

    @property
    def warm(self) -> tuple[str, ...]:
        """The models that hold memory, the one that rested longest first."""
        return tuple(self._resting)

    def note(self, model: str, use: Use) -> None:
        """Write down what a model holds after a run: it is the one used last."""
        self._resting.pop(model, None)
        self._resting[model] = use
        self._peaks[model] = max(use.peak, use.host, self._peaks.get(model, 0))

    def forget(self, model: str) -> None:
        """Strike a model that has ended; what it needed stays known."""
        self._resting.pop(model, None)

    def need(self, model: str, stated: int | None) -> int:
        """Return what a run of the model is expected to take: the more of what was measured and what is stated."""
        known = max(self._peaks.get(model, 0), stated or 0)
        return known or min(UNKNOWN_BYTES, self.budget)

    def making_room(self, model: str, stated: int | None) -> list[str]:
        """Return the models that must end before this one runs, the one that rested longest first."""
        others = [name for name in self._resting if name != model]
        ending: list[str] = []
        held = sum(self._resting[name].host for name in others)
        while others and held + self.need(model, stated) > self.budget:
            ending.append(others.pop(0))
            held -= self._resting[ending[-1]].host
        return ending

    def allowance(self, model: str) -> int:
        """Return what the model may take: all that the others do not hold."""
        return max(0, self.budget - sum(use.host for name, use in self._resting.items() if name != model))
