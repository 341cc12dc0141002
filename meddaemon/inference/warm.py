"""Models kept warm between jobs, as many as fit into memory."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from meddaemon.domain.contract import EngineContract, ModelContract
from meddaemon.domain.errors import OutOfMemory
from meddaemon.domain.result import Prediction
from meddaemon.inference.ledger import Ledger
from meddaemon.inference.loading import Loader, Prepared
from meddaemon.inference.processes import Interrupted
from meddaemon.inference.runtime import Limits, ModelProcess, model_server
from meddaemon.telemetry import log

_log = log(__name__)


class WarmModels:
    """One model process for each model that was used lately; those that rested longest make room.

    One thread predicts, another may `prepare` what comes next, and any may `interrupt`.
    """

    def __init__(self, scratch: Path, limits: Limits | None = None) -> None:
        """`limits.memory_bytes` is what all models together may hold."""
        self._scratch = scratch
        self._limits = limits or Limits()
        self._ledger = Ledger(self._limits.memory_bytes, self._limits.gpu_fraction)
        self._server = model_server()
        self._loader = Loader(sandbox=self._limits.sandbox, memory_bytes=self._limits.memory_bytes)
        self._processes: dict[str, ModelProcess] = {}
        self._interrupts = 0

    def start(self) -> None:
        """Have the libraries loaded from now on, so that the first job need not wait for it."""
        self._loader.start()
        self._server.start()

    def prepare(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]]) -> Prepared:
        """Read and decode the inputs of a run, also while another one is on. Raises InputRefused and ModelFailed.

        What is returned is to be closed; `predict` takes it.
        """
        return self._loader.load(contract, inputs, time_limit=contract.time_limit_seconds)

    def predict(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]] | Prepared) -> Prediction:
        """Run a model within its time limit, on files or on what was prepared. Raises InputRefused and ModelFailed.

        Where memory runs out the run is tried again: alone, then, if it was the GPU's and the contract allows it, on
        the CPU, which the provenance tells. Raises `OutOfMemory` when there is nothing left to try.
        """
        deadline = time.monotonic() + contract.time_limit_seconds
        interrupts = self._interrupts
        try:
            if isinstance(inputs, Prepared):
                return self._predict(contract, inputs, deadline, interrupts)
            # The bundle is loaded while the files are read.
            self._begin(contract, deadline)
            with self._loader.load(contract, inputs, time_limit=contract.time_limit_seconds) as prepared:
                return self._predict(contract, prepared, deadline, interrupts)
        finally:
            self._note(contract.digest)

    def apart(self, contract: ModelContract) -> ModelProcess:
        """Return a process for a model beside the warm ones, on the same machine; whoever asks for it ends it."""
        return self._process(contract)

    def interrupt(self) -> None:
        """Make what is in progress fail at once, from another thread; the model starts afresh for the next one."""
        self._interrupts += 1
        for process in list(self._processes.values()):
            process.kill()
        self._loader.kill()

    def close(self) -> None:
        """End every process."""
        for model in list(self._processes):
            self._end(model)
        self._server.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, contract: ModelContract, deadline: float) -> ModelProcess:
        """Return the process of a model, for which others made room, loading its bundle if it has not."""
        if (contract.memory_bytes or 0) > self._ledger.budget:
            raise OutOfMemory(
                f"{contract.name} needs {contract.memory_bytes} bytes of memory, all models together may have"
                f" {self._ledger.budget}: see worker.memory_bytes",
                "host",
            )
        for model in self._ledger.making_room(contract.digest, contract.memory_bytes):
            _log.info("a warm model makes room", ended=model[:12], needed=contract.name)
            self._end(model)
        process = self._processes.get(contract.digest)
        if process is None:
            process = self._process(contract)
            self._processes[contract.digest] = process
        process.begin(deadline=deadline, memory_bytes=self._ledger.allowance(contract.digest))
        return process

    def _process(self, contract: ModelContract, device: str = "") -> ModelProcess:
        if device == "cpu" and contract.engine.changes:
            # Its engine was compared with the bundle as shipped on the GPU, and is another one here.
            contract = replace(contract, engine=EngineContract())
        return ModelProcess(
            contract,
            device=device,
            scratch=self._scratch,
            limits=self._limits,
            server=self._server,
            loader=self._loader,
        )

    def _predict(self, contract: ModelContract, prepared: Prepared, deadline: float, interrupts: int) -> Prediction:
        said = {"model": contract.name}
        try:
            return self._run(contract, prepared, deadline, interrupts)
        except OutOfMemory as failure:
            others = [model for model in self._processes if model != contract.digest]
            if not others and not (failure.where == "gpu" and contract.cpu_fallback):
                raise
            _log.warning("out of memory: trying again", where=failure.where, alone=bool(others), **said)
            where = failure.where
        if others:
            for model in others:
                self._end(model)
            try:
                return self._run(contract, prepared, deadline, interrupts)
            except OutOfMemory as failure:
                if failure.where != "gpu" or not contract.cpu_fallback:
                    raise
                where = failure.where
        _log.warning("out of memory: trying on the CPU", where=where, **said)
        return self._run_on_cpu(contract, prepared, deadline, interrupts)

    def _run(self, contract: ModelContract, prepared: Prepared, deadline: float, interrupts: int) -> Prediction:
        """Run a model on its warm process."""
        if self._interrupts != interrupts:
            raise Interrupted("the run was interrupted")
        return self._begin(contract, deadline).infer(
            prepared,
            time_limit=contract.time_limit_seconds,
            deadline=deadline,
            memory_bytes=self._ledger.allowance(contract.digest),
        )

    def _run_on_cpu(self, contract: ModelContract, prepared: Prepared, deadline: float, interrupts: int) -> Prediction:
        """Run a model once in a process that sees no GPU, which ends afterwards: the next study may fit."""
        if self._interrupts != interrupts:
            raise Interrupted("the run was interrupted")
        with self._process(contract, "cpu") as process:
            self._processes[f"{contract.digest} on the CPU"] = process
            try:
                prediction = process.infer(
                    prepared,
                    time_limit=contract.time_limit_seconds,
                    deadline=deadline,
                    memory_bytes=self._ledger.allowance(contract.digest),
                )
            finally:
                del self._processes[f"{contract.digest} on the CPU"]
        fallback = {"fallback": "run on the CPU: the memory of the GPU was not enough"}
        return replace(prediction, provenance={**prediction.provenance, **fallback})

    def _note(self, model: str) -> None:
        """Write down what memory a model holds now, or strike it when it has ended."""
        process = self._processes.get(model)
        use = process.use() if process else None
        if use is None:
            self._end(model)
        else:
            self._ledger.note(model, use)

    def _end(self, model: str) -> None:
        self._ledger.forget(model)
        process = self._processes.pop(model, None)
        if process is not None:
            process.close()
