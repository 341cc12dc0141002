"""Models kept warm between jobs, as many as fit into memory."""

import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakSet

from meddaemon.domain.contract import EngineContract, ModelContract, ModelKind
from meddaemon.domain.errors import ModelFailed, OutOfMemory
from meddaemon.domain.result import Prediction
from meddaemon.inference.ladder import (
    NOTHING,
    TOP,
    Bytes,
    Choices,
    Memory,
    Rung,
    Shapes,
    estimate,
    first,
    lower,
    spares_by_class,
)
from meddaemon.inference.ledger import Ledger, Use
from meddaemon.inference.loading import Loader, Prepared
from meddaemon.inference.processes import Interrupted
from meddaemon.inference.runtime import Limits, ModelProcess, model_server
from meddaemon.telemetry import log

_COPIES = 4
"""So many times the size of what was decoded is taken while it is preprocessed: numbers of 2 bytes become of 4."""
_MARGIN = 1.1
"""What a child holds before a run is not quite the same each time: what was enough is, and what was not is not."""
_UNKNOWN_GPU = 2**50
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
        # Held while processes begin and end, and while it is said who is in hand.
        self._changing = threading.RLock()
        self._in_hand: WeakSet[Prepared] = WeakSet()
        """What was prepared and is neither closed nor forgotten."""
        self._running = ""
        """The model that infers now."""
        self._outputs: dict[str, int] = {}
        """How many channels came out of each model."""

    def start(self) -> None:
        """Have the libraries loaded from now on, so that the first job need not wait for it."""
        self._loader.start()
        self._server.start()

    def prepare(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]]) -> Prepared:
        """Read and decode the inputs of a run, also while another one is on. Raises InputRefused and ModelFailed.

        The bundle is loaded meanwhile, if nothing else is in hand. While its model runs, what was decoded is
        preprocessed, too, where the model's process can do both. What is returned is to be closed; `predict` takes it.
        """
        self._check(contract)
        with self._changing:
            if not self._in_hand and not self._running:
                self._begin(contract, time.monotonic() + contract.time_limit_seconds)
        prepared = self._loader.load(contract, inputs, time_limit=contract.time_limit_seconds)
        prepared.on_close.append(lambda: self._let_go(prepared))
        with self._changing:
            self._in_hand.add(prepared)
            self._prepare_beside(prepared)
        return prepared

    def predict(self, contract: ModelContract, inputs: Mapping[str, Sequence[Path]] | Prepared) -> Prediction:
        """Run a model within its time limit, on files or on what was prepared. Raises InputRefused and ModelFailed.

        Where memory runs out the run is tried again in a way that takes less of it (see `ladder`): the provenance
        tells which gave the result. Raises `OutOfMemory` when there is nothing left to try, with all that was tried.
        """
        deadline = time.monotonic() + contract.time_limit_seconds
        interrupts = self._interrupts
        self._check(contract)
        if not isinstance(inputs, Prepared):
            with self.prepare(contract, inputs) as prepared:
                return self._predict(_Run(contract, prepared, deadline, interrupts))
        return self._predict(_Run(contract, inputs, deadline, interrupts))

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
        with self._changing:
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

    def _predict(self, run: "_Run") -> Prediction:
        """Go down the ladder until there is a result, or nothing left to try."""
        try:
            while True:
                try:
                    return self._attempt(run)
                except Interrupted:
                    raise
                except ModelFailed as failure:
                    self._lower(run, failure)
        finally:
            self._close_fallback(run)
            self._note(run.contract.digest)

    def _attempt(self, run: "_Run") -> Prediction:
        """Carry the run out on its rung or, where the estimate says that it will not fit, on a lower one."""
        contract = run.contract
        run.shapes = None
        process = self._process_of(run)
        limits = {"time_limit": contract.time_limit_seconds, "deadline": run.deadline}
        found = process.prepare(run.prepared, memory_bytes=self._ledger.allowance(contract.digest), **limits)
        run.shapes = shapes = self._completed(contract, found)
        if not run.is_estimated:
            run.is_estimated = True
            rung = first(
                run.rung,
                self._choices(run),
                lambda each: self._expected(contract, shapes, each),
                lambda each: self._room(contract, process, each),
            )
            if rung != run.rung:
                _log.info("a run that would take too much begins otherwise", plan=str(rung), **run.said)
            self._take(run, rung)
        rung = run.rung
        run.room, run.expected = self._room(contract, process, rung), self._expected(contract, shapes, rung)
        with self._changing:
            self._running = "" if run.by_itself else contract.digest
            for each in list(self._in_hand):
                if each is not run.prepared:
                    self._prepare_beside(each)
        try:
            allowed = self._ledger.allowance(contract.digest)
            prediction = process.infer(run.prepared, memory_bytes=allowed, plan=rung.plan, **limits)
        finally:
            self._running = ""
        run.shapes = self._completed(contract, replace(shapes, outputs=process.outputs))
        # There was enough, though what a limit leaves for the stacks of threads may have been taken for more.
        taken, most = process.measured, run.room
        self._learn(
            run, Bytes(host=min(taken.host, int(most.host / _MARGIN)), gpu=min(taken.gpu, int(most.gpu / _MARGIN)))
        )
        told = {"plan": str(rung)} if rung != TOP else {}
        if rung.on_cpu:
            told["fallback"] = "run on the CPU: the memory of the GPU was not enough"
        return replace(prediction, provenance={**prediction.provenance, **told})

    def _take(self, run: "_Run", rung: Rung) -> None:
        """Go down to a rung."""
        if rung.alone and not run.rung.alone:
            with self._changing:
                for model in [model for model in self._processes if model not in {run.contract.digest, run.key}]:
                    self._end(model)
        # On another device, the estimate has not been asked yet.
        run.is_estimated = run.is_estimated and rung.on_cpu == run.rung.on_cpu
        run.rung = rung

    def _lower(self, run: "_Run", failure: ModelFailed) -> None:
        """Choose how a run that failed is tried again; raises what is to be told when it is not."""
        process = self._processes.get(run.key)
        had_company = process is not None and process.had_company
        if had_company and not run.by_itself and time.monotonic() < run.deadline:
            # What was prepared beside it may have been the cause: that pays for it when its turn comes.
            run.by_itself = True
            _log.warning("a run failed beside another one: tried by itself", reason=str(failure), **run.said)
            return
        if not isinstance(failure, OutOfMemory):
            if run.tried:
                failure.args = (f"{failure}; before, memory ran out: {'; '.join(run.tried)}",)
            raise failure
        where, rung = Memory(failure.where), run.rung
        begun = run.shapes is not None
        if begun:
            self._note_lesson(run, run.room, failed=where)
        there, wanted = (getattr(each, where.value) for each in (run.room, run.expected))
        numbers = f": {_size(wanted)} expected, {_size(there)} there" if begun else " before the network"
        run.tried.append(f"{rung} ({where}{numbers})")
        # Of what comes before the network, a plan changes nothing.
        below = lower(rung, where, replace(self._choices(run), planned=begun))
        if below is None:
            tried = "; ".join(run.tried)
            raise OutOfMemory(
                f"{run.contract.name}: memory ran out in every way that there is: {tried}; the last time: {failure}",
                where,
            ) from failure
        _log.warning("out of memory: trying again", tried=run.tried[-1], plan=str(below), **run.said)
        self._take(run, below)

    def _process_of(self, run: "_Run") -> ModelProcess:
        """Return the process that carries the run out. Raises `Interrupted`, ModelFailed."""
        if self._interrupts != run.interrupts:
            raise Interrupted("the run was interrupted")
        if not run.rung.on_cpu:
            with self._changing:
                return self._begin(run.contract, run.deadline)
        # One that sees no GPU, and ends after the run: the next study may fit.
        run.key = f"{run.contract.digest} on the CPU"
        with self._changing:
            if run.key not in self._processes:
                self._processes[run.key] = self._process(run.contract, "cpu")
            return self._processes[run.key]

    def _close_fallback(self, run: "_Run") -> None:
        with self._changing:
            if run.key != run.contract.digest:
                process = self._processes.pop(run.key, None)
                if process is not None:
                    process.close()

    def _completed(self, contract: ModelContract, shapes: Shapes) -> Shapes:
        """Return shapes with the number of outputs: that of the last run, else what the contract lets expect."""
        outputs = self._outputs[contract.digest] = shapes.outputs or self._outputs.get(contract.digest, 0)
        return replace(shapes, outputs=outputs or _outputs(contract))

    def _choices(self, run: "_Run") -> Choices:
        contract, shapes = run.contract, run.shapes
        by_class = False
        if shapes is not None and contract.kind is ModelKind.SEGMENTATION and shapes.outputs > 1:
            # Before its first result, a model may have more classes than its contract names.
            by_class = not self._outputs.get(contract.digest) or spares_by_class(shapes)
        return Choices(
            window_batch=shapes.window_batch if shapes else 1,
            on_gpu=shapes.on_gpu if shapes else False,
            by_class=by_class,
            others=any(model not in {contract.digest, run.key} for model in self._processes),
            cpu=contract.cpu_fallback,
        )

    def _expected(self, contract: ModelContract, shapes: Shapes, rung: Rung) -> Bytes:
        """Return what a run is expected to take on a rung, by the estimate and by what it took before."""
        raw = estimate(replace(shapes, on_gpu=shapes.on_gpu and not rung.on_cpu), rung.plan)
        of = contract.digest
        host, gpu = (
            self._ledger.expected(of, (where, rung.plan, rung.on_cpu), estimated)
            for where, estimated in ((Memory.HOST, raw.host), (Memory.GPU, raw.gpu))
        )
        return Bytes(host=host, gpu=gpu)

    def _learn(self, run: "_Run", taken: Bytes) -> None:
        """Write down what a run took and, now that it has a result, what was too little for it before."""
        self._note_lesson(run, taken)
        for way, estimated, measured in run.lessons:
            self._ledger.learn(run.contract.digest, way, estimated=estimated, measured=measured)

    def _note_lesson(self, run: "_Run", taken: Bytes, failed: Memory | None = None) -> None:
        """Keep what a run took in its way or, where it failed, that what there was is too little."""
        if run.shapes is None:
            return
        rung = run.rung
        raw = estimate(replace(run.shapes, on_gpu=run.shapes.on_gpu and not rung.on_cpu), rung.plan)
        for where, estimated, measured in ((Memory.HOST, raw.host, taken.host), (Memory.GPU, raw.gpu, taken.gpu)):
            if failed in {None, where} and estimated and measured:
                way = (where, rung.plan, rung.on_cpu)
                run.lessons.append((way, estimated, int(measured * _MARGIN) if failed else measured))

    def _room(self, contract: ModelContract, process: ModelProcess, rung: Rung) -> Bytes:
        """Return what a run may take on a rung beyond the bundle itself."""
        use = process.use() or Use(host=0, peak=0)
        ledger, model = self._ledger, contract.digest
        host = ledger.budget if rung.alone else ledger.allowance(model)
        # Before the first message of a process that has one, nothing is known of its GPU.
        gpu = ledger.gpu_allowance(model, use.gpu_total or _UNKNOWN_GPU, alone=rung.alone)
        return Bytes(host=max(0, host - process.loaded.host), gpu=max(0, gpu - process.loaded.gpu))

    def _prepare_beside(self, prepared: Prepared) -> None:
        """Have inputs preprocessed by the process that infers others with the same model, if both fit."""
        model = prepared.contract.digest
        process = self._processes.get(model)
        if process is None or self._running != model or self._limits.prepare_beside == "never":
            return
        need = self._ledger.need(model, prepared.contract.memory_bytes) + _COPIES * prepared.nbytes
        if need <= self._ledger.allowance(model):
            process.prepare_beside(prepared)

    def _let_go(self, prepared: Prepared) -> None:
        with self._changing:
            self._in_hand.discard(prepared)
            process = self._processes.get(prepared.contract.digest)
        if process is not None:
            process.drop(prepared)

    def _check(self, contract: ModelContract) -> None:
        """Raise `OutOfMemory` for a model that says itself that it never fits."""
        if (contract.memory_bytes or 0) > self._ledger.budget:
            raise OutOfMemory(
                f"{contract.name} needs {contract.memory_bytes} bytes of memory, all models together may have"
                f" {self._ledger.budget}: see worker.memory_bytes",
                "host",
            )

    def _begin(self, contract: ModelContract, deadline: float) -> ModelProcess:
        """Return the process of a model, for which others made room, loading its bundle if it has not."""
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

    def _note(self, model: str) -> None:
        """Write down what memory a model holds now, or strike it when it has ended."""
        with self._changing:
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


@dataclass(eq=False)
class _Run:
    """One run on its way down the ladder."""

    contract: ModelContract
    prepared: Prepared
    deadline: float
    interrupts: int
    """How often there had been an interrupt when it was asked for."""
    rung: Rung = TOP
    is_estimated: bool = False
    """Whether the estimate was asked."""
    by_itself: bool = False
    """Whether nothing else is prepared in its process any more."""
    shapes: Shapes | None = None
    """What its process told of it; None before its input is preprocessed."""
    room: Bytes = NOTHING
    expected: Bytes = NOTHING
    lessons: list[tuple[Hashable, int, int]] = field(default_factory=list)
    """For the ledger, if there is a result: what never fits says nothing of others."""
    tried: list[str] = field(default_factory=list)
    key: str = ""

    def __post_init__(self) -> None:
        self.key = self.contract.digest

    @property
    def said(self) -> dict[str, str]:
        return {"model": self.contract.name}


def _outputs(contract: ModelContract) -> int:
    """Return how many channels a network is taken to have before it was seen."""
    match contract.kind:
        case ModelKind.SEGMENTATION:
            return 1 + max((each.label for each in contract.segments), default=0)
        case _:
            return 1


def _size(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count < _UNKNOWN_GPU // 2 else "an unknown size"
