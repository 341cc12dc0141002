"""What is changed about a run, step by step, so that it fits into memory: pure, and the same for every device.

    as the bundle says ──> fewer windows at once ──> outputs in the host ──> class by class ──> alone ──> on the CPU

An estimate chooses the rung on which a run begins; where memory runs out all the same, it is tried on the next one
that spares what ran out. Below the last one there is only a refusal.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import prod
from typing import Any, NamedTuple, Self

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.plan import AS_SHIPPED, RunPlan, peak_bytes

_MAX_LENGTH = 2**31
_MAX_AXES = 5
_FLOAT = 4
_BY_CLASS = RunPlan(class_by_class=True)


class Memory(StrEnum):
    """Which memory."""

    GPU = "gpu"
    HOST = "host"


class Bytes(NamedTuple):
    """So much of each memory."""

    host: int
    gpu: int = 0


NOTHING = Bytes(host=0)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What is known of a run once its input is preprocessed; lengths of axes in voxels.

    `image` is (channel, x[, y[, z]]) as the network sees it, `source` the grid on which the answer lies, `window` and
    `window_batch` what goes through the network at once (the whole image without windows), `outputs` how many channels
    came out of it in the last run, 0 before the first one, and `items` how many images one run has.
    """

    image: tuple[int, ...]
    source: tuple[int, ...]
    window: tuple[int, ...] = ()
    window_batch: int = 1
    outputs: int = 0
    items: int = 1
    on_gpu: bool = False

    def message(self) -> dict[str, Any]:
        """Return the shapes as JSON values."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: object) -> Self:
        """Return the shapes that a child told. Raises `ModelFailed` for what can be none."""
        said = message if isinstance(message, Mapping) else {}
        try:
            lengths = {name: tuple(said[name]) for name in ("image", "source", "window")}
            numbers = {name: said[name] for name in ("window_batch", "outputs", "items")}
            on_gpu = said["on_gpu"]
        except (LookupError, TypeError) as error:
            raise ModelFailed("a child sent shapes that are none") from error
        every = [*numbers.values(), *(each for axes in lengths.values() for each in axes)]
        if (
            not all(type(each) is int and 0 <= each <= _MAX_LENGTH for each in every)
            or any(len(axes) > _MAX_AXES for axes in lengths.values())
            or min(numbers["window_batch"], numbers["items"]) < 1
            or type(on_gpu) is not bool
        ):
            raise ModelFailed("a child sent shapes that are none")
        return cls(image=lengths["image"], source=lengths["source"], window=lengths["window"], on_gpu=on_gpu, **numbers)

    @property
    def voxels(self) -> int:
        """How many voxels the network sees of one image."""
        return prod(self.image[1:])


def estimate(shapes: Shapes, plan: RunPlan) -> Bytes:
    """Return what a run is expected to take beyond the loaded network and what its layers take (see `peak_bytes`).

    On a GPU, what follows the network takes there what it would take of the host, unless its outputs are kept in the
    host; preprocessing always takes of the host. What layers take is not known before a run: see `Ledger.learn`.
    """

    def peak(classes: int, batch: int, plan: RunPlan) -> int:
        return peak_bytes(shapes.source, shapes.image[1:], classes, window=shapes.window, window_batch=batch, plan=plan)

    outputs, batch = max(1, shapes.outputs), plan.window_batch or shapes.window_batch
    every = peak(outputs, batch, plan)
    if not shapes.on_gpu:
        return Bytes(host=every)
    if not plan.outputs_on_host:
        # Channels that nothing has chosen from come to the host as they are.
        brought = 0 if plan.class_by_class else _FLOAT * outputs * prod(shapes.source)
        return Bytes(host=peak(1, 0, AS_SHIPPED) + brought, gpu=every)
    image, window = _FLOAT * prod(shapes.image), _FLOAT * prod(shapes.window or shapes.image[1:])
    return Bytes(host=peak(outputs, 0, plan), gpu=image + batch * window * (shapes.image[0] + 2 * outputs))


def spares_by_class(shapes: Shapes) -> bool:
    """Say whether a run takes less class by class: where there are few, what is kept beside them takes more."""
    return sum(estimate(shapes, _BY_CLASS)) < sum(estimate(shapes, AS_SHIPPED))


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One way to carry out a run; `alone`: every other model of this worker is ended before."""

    plan: RunPlan = AS_SHIPPED
    alone: bool = False
    on_cpu: bool = False
    """Whether it runs on the CPU although its model has a GPU."""

    def __str__(self) -> str:
        plan = self.plan
        said = [
            f"windows {plan.window_batch} at a time" if plan.window_batch else "",
            "outputs in the memory of the host" if plan.outputs_on_host else "",
            "class by class" if plan.class_by_class else "",
            "alone" if self.alone else "",
            "on the CPU" if self.on_cpu else "",
        ]
        return ", ".join(filter(None, said)) or "as the bundle says"


TOP = Rung()
"""The bundle's own way."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What may be changed about a run.

    `window_batch` is how many windows go through the network at once as the bundle says, 1 where there are none.
    `by_class`: its output has channels that can be taken one by one. `others`: other models are warm. `cpu`: the
    contract allows the CPU. `planned`: a plan counts for something; none does for what happens before the network.
    """

    window_batch: int = 1
    on_gpu: bool = False
    by_class: bool = False
    others: bool = False
    cpu: bool = False
    planned: bool = True


def lower(rung: Rung, where: Memory, choices: Choices) -> Rung | None:
    """Return the next rung that spares the memory that ran out; None when there is none."""
    plan, on_gpu, planned = rung.plan, where is Memory.GPU and not rung.on_cpu, choices.planned
    batch = plan.window_batch or choices.window_batch
    ways = (
        (planned and on_gpu and batch > 1, replace(rung, plan=replace(plan, window_batch=batch // 2))),
        (planned and on_gpu and not plan.outputs_on_host, replace(rung, plan=replace(plan, outputs_on_host=True))),
        (
            planned and choices.by_class and not plan.class_by_class,
            replace(rung, plan=replace(plan, class_by_class=True)),
        ),
        # Without a GPU, what the network makes of its windows lies in the host: that of one is the least there can be.
        (
            planned and batch > 1 and (rung.on_cpu or not choices.on_gpu),
            replace(rung, plan=replace(plan, window_batch=1)),
        ),
        (choices.others and not rung.alone, replace(rung, alone=True)),
        # Nothing of the GPU is left to be spared.
        (on_gpu and choices.cpu, replace(rung, plan=replace(plan, outputs_on_host=False), on_cpu=True)),
    )
    return next((below for applies, below in ways if applies), None)


def ladder(where: Memory, choices: Choices) -> tuple[Rung, ...]:
    """Return every rung from the bundle's own way down, if it is always the same memory that runs out."""
    rungs = [TOP]
    while (below := lower(rungs[-1], where, choices)) is not None:
        rungs.append(below)
    return tuple(rungs)


def first(start: Rung, choices: Choices, need: Callable[[Rung], Bytes], room: Callable[[Rung], Bytes]) -> Rung:
    """Return the highest rung from `start` down that is expected to fit.

    `need` is what a run is expected to take, `room` what it may have. Where none fits it is the lowest that needs no
    other device: an estimate may be wrong.
    """
    rung = start
    while True:
        wanted, there = need(rung), room(rung)
        where = Memory.GPU if wanted.gpu > there.gpu else Memory.HOST
        below = lower(rung, where, choices) if wanted.gpu > there.gpu or wanted.host > there.host else None
        if below is None or below.on_cpu != start.on_cpu:
            return rung
        rung = below
