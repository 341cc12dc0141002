"""What a contract file says of how its network is carried out: the table `[engine]`."""

from typing import Annotated

from pydantic import Field

from meddaemon.config.contract_terms import Strict
from meddaemon.domain.contract import Engine, EngineContract, Precision, WindowSize


class EngineTable(Strict):
    """The table `[engine]`; without it, and with what it leaves out, a bundle runs as it is shipped."""

    engine: Annotated[Engine, Field(strict=False)] = EngineContract.engine
    precision: Annotated[Precision, Field(strict=False)] = EngineContract.precision
    channels_last: bool = EngineContract.channels_last
    window: Annotated[WindowSize, Field(strict=False)] = EngineContract.window
    overlap: Annotated[float, Field(ge=0, lt=1)] | None = None
    window_batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    parity: Annotated[float, Field(gt=0, le=1)] = EngineContract.parity

    def as_contract(self) -> EngineContract:
        """Return the engine as the domain speaks of it."""
        return EngineContract(
            engine=self.engine,
            precision=self.precision,
            channels_last=self.channels_last,
            window=self.window,
            overlap=self.overlap,
            window_batch=self.window_batch,
            parity=self.parity,
        )
