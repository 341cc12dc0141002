"""Which warm models fit into memory together, and which make room: pure bookkeeping, on measured numbers."""

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

_REMEMBERED_RUNS = 8
UNKNOWN_BYTES = 2 * 2**30
"""What a model is taken to need before it was measured and where its contract says nothing."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """Memory of one model process in bytes: of the host now and at most, of the GPU now and at most."""

    host: int
    peak: int
    gpu: int = 0
    gpu_peak: int = 0
    gpu_total: int = 0
    """What its GPU has, 0 where there is none."""


class Ledger:
    """What each warm model holds while it rests, and what it needed at most while it ran; names are digests."""

    def __init__(self, budget: int, gpu_fraction: float = 1.0) -> None:
        """`budget` is what all models together may hold, in bytes, `gpu_fraction` what of the GPU."""
        self.budget = budget
        self._gpu_fraction = gpu_fraction
        self._gpu_budget: float = 0
        self._resting: dict[str, Use] = {}
        """In the order of last use."""
        self._peaks: dict[str, int] = {}
        self._gpu_peaks: dict[str, int] = {}
        self._ratios: dict[tuple[str, Hashable], deque[float]] = {}
        """What the last runs of a model took, by the way in which they were carried out: parts of the estimate."""

    @property
    def warm(self) -> tuple[str, ...]:
        """The models that hold memory, the one that rested longest first."""
        return tuple(self._resting)

    def note(self, model: str, use: Use) -> None:
        """Write down what a model holds after a run: it is the one used last."""
        self._resting.pop(model, None)
        self._resting[model] = use
        self._peaks[model] = max(use.peak, use.host, self._peaks.get(model, 0))
        self._gpu_peaks[model] = max(use.gpu_peak, use.gpu, self._gpu_peaks.get(model, 0))
        if use.gpu_total:
            self._gpu_budget = self._gpu_fraction * use.gpu_total

    def forget(self, model: str) -> None:
        """Strike a model that has ended; what it needed stays known."""
        self._resting.pop(model, None)

    def learn(self, model: str, way: Hashable, *, estimated: int, measured: int) -> None:
        """Write down what a run took that was carried out in this way, or what was too little for it."""
        known = self._ratios.setdefault((model, way), deque(maxlen=_REMEMBERED_RUNS))
        known.append(measured / max(1, estimated))

    def expected(self, model: str, way: Hashable, estimated: int) -> int:
        """Return what a run of the model is expected to take: the estimate, corrected by its last runs of this way.

        Of these, the one that took most for its size counts.
        """
        known = self._ratios.get((model, way))
        return estimated if known is None else math.ceil(estimated * max(known))

    def need(self, model: str, stated: int | None) -> int:
        """Return what a run of the model is expected to take: the more of what was measured and what is stated."""
        known = max(self._peaks.get(model, 0), stated or 0)
        return known or min(UNKNOWN_BYTES, self.budget)

    def making_room(self, model: str, stated: int | None) -> list[str]:
        """Return the models that must end before this one runs, the one that rested longest first."""
        others = [name for name in self._resting if name != model]
        ending: list[str] = []
        while others and not self._fits(model, stated, others):
            ending.append(others.pop(0))
        return ending

    def gpu_allowance(self, model: str, total: int, *, alone: bool = False) -> int:
        """Return what the model may take of its GPU, which has so much: all, or all that the others do not hold."""
        others = 0 if alone else sum(use.gpu for name, use in self._resting.items() if name != model)
        return max(0, int(self._gpu_fraction * total) - others)

    def allowance(self, model: str) -> int:
        """Return what the model may take: all that the others do not hold."""
        return max(0, self.budget - sum(use.host for name, use in self._resting.items() if name != model))

    def _fits(self, model: str, stated: int | None, others: list[str]) -> bool:
        """Return whether a run of the model fits beside these others, in the host and on the GPU."""
        held = [self._resting[name] for name in others]
        fits = sum(use.host for use in held) + self.need(model, stated) <= self.budget
        on_gpu = sum(use.gpu for use in held) + self._gpu_peaks.get(model, 0)
        return fits and (not self._gpu_budget or on_gpu <= self._gpu_budget)
