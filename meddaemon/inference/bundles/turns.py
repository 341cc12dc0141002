"""What preparing one study and inferring another may not do at the same time. Only for the model child.

The transforms of a bundle are one set of objects for both: `Invertd` inverts with the very objects that preprocess.
Some keep state while they work (MONAI calls its own `ThreadUnsafe`, and bundles bring theirs), so either preprocessing
or postprocessing has them; the network runs beside both. What draws random numbers from the generators that all of a
process shares has the whole session: the order of the draws is part of the result.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from monai.utils import set_determinism

SEED = 0


class Turns:
    """Who has the transforms of a session. `apart`: nothing is inferred while anything is prepared."""

    def __init__(self, *, apart: bool = False) -> None:
        """`apart` is for bundles whose inference cannot be told from their postprocessing."""
        self.apart = apart
        self._transforms = threading.RLock()
        self._counting = threading.Lock()
        self._inferring = self._runs = 0

    @contextmanager
    def preparing(self, preprocessing: Any) -> Iterator[None]:
        """Have the transforms, seeded; one that draws random numbers that others draw from too is apart from now on."""
        with self._transforms:
            if isinstance(preprocessing, Randomizable):
                preprocessing.set_random_state(seed=SEED)
            with self._counting:
                watched, runs = not self._inferring, self._runs
                if watched:
                    set_determinism(seed=SEED)
                    before = _random_state()
            yield
            with self._counting:
                if watched and runs == self._runs and _random_state() != before:
                    self.apart = True

    @contextmanager
    def inferring(self) -> Iterator[None]:
        """Infer with the seed that every run has; the transforms are free, unless the session is apart."""
        with self._counting:
            self._inferring += 1
            self._runs += 1
        try:
            if self.apart:
                with self._transforms:
                    set_determinism(seed=SEED)
                    yield
            else:
                set_determinism(seed=SEED)
                yield
        finally:
            with self._counting:
                self._inferring -= 1

    @contextmanager
    def postprocessing(self) -> Iterator[None]:
        """Have the transforms."""
        with self._transforms:
            yield


def _random_state() -> tuple[Any, ...]:
    """Return where the generators are that everything in this process shares."""
    _, keys, *rest = np.random.get_state(legacy=True)
    has_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_gpu = torch.cuda.get_rng_state().numpy().tobytes() if has_gpu else b""
    return random.getstate(), np.asarray(keys).tobytes(), *rest, torch.get_rng_state().numpy().tobytes(), on_gpu
