"""How one run of a model is carried out: decided by the worker, which knows the memory, followed by the child."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What may be changed about a run so that it needs less memory, its result staying the same.

    `window_batch` is how many windows go through the network at once, None as the bundle says. `outputs_on_host`
    keeps what is stitched together in the memory of the host when the network runs on a GPU. `class_by_class` takes
    the channels of the output one after the other through whatever follows the network.
    """

    window_batch: int | None = None
    outputs_on_host: bool = False
    class_by_class: bool = False

    def message(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Return the plan that `message` made these values of."""
        batch = message["window_batch"]
        return cls(
            window_batch=None if batch is None else int(batch),
            outputs_on_host=bool(message["outputs_on_host"]),
            class_by_class=bool(message["class_by_class"]),
        )


AS_SHIPPED = RunPlan()
"""The bundle's own way."""
