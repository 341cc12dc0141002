"""Models kept warm between jobs, a bounded number of them."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Prediction
from meddaemon.inference.runtime import ModelProcess

MAXIMUM_WARM = 2


class WarmModels:
    """One model process for each model that was used lately; the one that rested longest makes room."""

    def __init__(self, scratch: Path, maximum: int = MAXIMUM_WARM) -> None:
        self._scratch = scratch
        self._maximum = maximum
        self._processes: OrderedDict[str, ModelProcess] = OrderedDict()

    def predict(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]]) -> Prediction:
        """Run a model within its time limit. Raises InputRefused and ModelFailed."""
        process = self._processes.pop(contract.digest, None)
        if process is None:
            while len(self._processes) >= self._maximum:
                self._processes.popitem(last=False)[1].close()
            process = ModelProcess(contract, scratch=self._scratch)
        self._processes[contract.digest] = process
        return process.predict(inputs, time_limit=contract.time_limit_seconds)

    def interrupt(self) -> None:
        """Make the run in progress fail at once, from another thread; the model starts afresh for the next one."""
        for process in list(self._processes.values()):
            process.kill()

    def close(self) -> None:
        """End every model process."""
        while self._processes:
            self._processes.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
