"""Runs a bundle's own evaluator (an ignite engine) on one item that is already preprocessed. For the model child.

Needed where the evaluator does more than MONAI's: its own iteration, its own way to prepare a batch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ignite.engine import Events
from monai.data import list_data_collate

from meddaemon.domain.errors import ModelFailed


class Batches:
    """Stands where the bundle has its data loader: one batch of one item, in this process."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any] = list_data_collate) -> None:
        self.collate_fn = collate_fn
        self.item: Any = None

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.collate_fn([self.item])


class Evaluation:
    """The evaluator of a bundle, and what it returned last."""

    def __init__(self, evaluator: Any, batches: Batches) -> None:
        """Listen to `evaluator`, which reads from `batches`."""
        self._evaluator = evaluator
        self._batches = batches
        self._seen: list[tuple[Any, Any]] = []
        evaluator.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: self._seen.append((engine.state.batch, engine.state.output))
        )
        # It reports every epoch of one image as if there were a training.
        evaluator.logger.setLevel(logging.WARNING)

    def run(self, item: Any, adapted: Callable[[Any], Any] = lambda inferer: inferer) -> dict[Any, Any]:
        """Run one preprocessed item through the evaluator, and return it with what was found beside it.

        `adapted` makes of the evaluator's inferer the one for this run.
        Raises `ModelFailed` when the evaluator returned nothing; what its own code raises passes through.
        """
        self._seen.clear()
        self._batches.item = item
        inferer = getattr(self._evaluator, "inferer", None)
        if inferer is not None:
            self._evaluator.inferer = adapted(inferer)
        try:
            self._evaluator.run()
        finally:
            self._batches.item = None
            if inferer is not None:
                self._evaluator.inferer = inferer
        if not self._seen:
            raise ModelFailed("the evaluator of the bundle ended without an output")
        batch, output = ((each[0] if isinstance(each, list) and each else each) for each in self._seen[-1])
        self._seen.clear()
        # Results of postprocessing beyond the prediction itself come back in the batch.
        return {**(batch if isinstance(batch, Mapping) else {}), **(output if isinstance(output, Mapping) else {})}
