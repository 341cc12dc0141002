"""How a network is carried out where its contract asks for another way than the bundle's. Only for the model child.

Nothing here is bit for bit what the bundle ships: whether it is near enough is what `models check` finds out.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from meddaemon.domain.contract import Engine, EngineContract, Precision, WindowSize
from meddaemon.domain.errors import ModelFailed

TENSORRT_CONFIGS = ("inference_trt.json", "inference_trt.yaml", "inference_trt.yml")
"""What a bundle that comes with TensorRT calls the configuration that is merged into its own for it."""
MULTIPLE = 32
"""Networks that halve their input five times want multiples of it; windows that are none are cut in finer steps."""
_KEPT_SHAPES = 8

Forward = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A network and its inferer as the contract has them carried out, and what the provenance says of it."""

    network: Any
    inferer: Any
    said: str


def with_configs(engine: EngineContract, configs: Sequence[str], bundle: Path, *, on_gpu: bool) -> tuple[str, ...]:
    """Return the configurations to merge: with TensorRT, also the one that the bundle ships for it.

    Raises `ModelFailed` when it ships none, or there is no GPU.
    """
    if engine.engine is not Engine.TENSORRT:
        return tuple(configs)
    shipped = [name for name in TENSORRT_CONFIGS if (bundle / "configs" / name).is_file()]
    if not shipped:
        raise ModelFailed(f"engine tensorrt: the bundle ships none of configs/{', '.join(TENSORRT_CONFIGS)}")
    if not on_gpu:
        raise ModelFailed("engine tensorrt: there is no GPU here that the model may use")
    return tuple(dict.fromkeys([*configs, shipped[0]]))


def carried(
    engine: EngineContract, network: Any, inferer: Any, *, device: torch.device, scratch: Path, own_evaluator: bool
) -> Carried:
    """Return network and inferer carried out as `engine` says; a network keeps its identity and its parts.

    Raises `ModelFailed` when something is asked for that the bundle has no place for, or that is not installed.
    """
    if not engine.changes:
        return Carried(network=network, inferer=inferer, said="")
    _set_windows(engine, inferer)
    with_torch = isinstance(network, torch.nn.Module)
    scripted = isinstance(network, torch.jit.ScriptModule)
    changes_network = engine.channels_last or engine.precision is not Precision.FP32
    changes_network = changes_network or engine.engine not in {Engine.EAGER, Engine.TENSORRT}
    versions = [f"CPU with {torch.backends.cpu.get_cpu_capability()}"] if device.type == "cpu" else []
    if changes_network:
        if not with_torch or (scripted and own_evaluator):
            raise ModelFailed(f"{', '.join(engine.changes)}: the bundle's own evaluator runs what cannot be changed")
        forward = _forward(engine, network, device, scratch)
        if isinstance(forward, _OpenVino):
            versions.insert(0, f"OpenVINO {forward.version}")
        if engine.channels_last:
            _make_channels_last(network)
        runner = _Runner(forward, engine, device)
        if scripted:
            network = _Scripted(network, runner)
        else:
            network.forward = runner
    said = ", ".join([*engine.changes, *versions])
    return Carried(network=network, inferer=inferer, said=f"{said}; admitted from a parity of {engine.parity:g} on")


def fitted_to(inferer: Any, extent: Sequence[int]) -> Any:
    """Return the inferer of the bundle's own class that `inferer` is for an image of this extent (x, y[, z]).

    One whose windows are not fitted is returned as it is.
    """
    if not getattr(inferer, "windows_are_fitted", False):
        return inferer
    smaller = copy.copy(inferer)
    smaller.__class__ = type(inferer).__bases__[0]
    given = smaller.roi_size
    window = tuple(given) if isinstance(given, Sequence) else (given,) * len(extent)
    if len(window) == len(extent):
        smaller.roi_size = tuple(_fitted(size, length) for size, length in zip(window, extent, strict=True))
        if smaller.roi_size != window:
            smaller.roi_weight_map = None
    return smaller


def _fit_windows(inferer: Any) -> None:
    """Have no window larger than the image has use for; the inferer stays the object that an evaluator has, too."""

    def run(self: Any, inputs: torch.Tensor, *given: Any, **named: Any) -> Any:
        return fitted_to(self, inputs.shape[2:])(inputs, *given, **named)

    own = type(inferer)
    inferer.__class__ = type(f"Fitted{own.__name__}", (own,), {"__call__": run, "windows_are_fitted": True})


@contextmanager
def as_shipped(network: Any) -> Iterator[Any]:
    """Give the network as it was before it was carried out in another way, which it is again afterwards."""
    if isinstance(network, _Scripted):
        yield network.shipped
        return
    runner = vars(network).pop("forward", None)
    try:
        yield network
    finally:
        if runner is not None:
            network.forward = runner


def _fitted(window: Any, length: int) -> Any:
    """Return the least length of a window that holds all of the image and that a network takes as well as its own."""
    if not isinstance(window, int) or window <= length or window <= 0:
        return window
    step = next(step for step in (MULTIPLE, 16, 8, 4, 2, 1) if window % step == 0)
    return min(window, -(-length // step) * step)


def _set_windows(engine: EngineContract, inferer: Any) -> None:
    asked = [said for said in engine.changes if said.startswith(("window", "overlap"))]
    if asked and not isinstance(inferer, SlidingWindowInferer):
        raise ModelFailed(f"{', '.join(asked)}: the bundle has no sliding window, but a {type(inferer).__name__}")
    if engine.window is WindowSize.FITTED:
        _fit_windows(inferer)
    if engine.overlap is not None:
        inferer.overlap = engine.overlap
    if engine.window_batch is not None:
        inferer.sw_batch_size = engine.window_batch


def _forward(engine: EngineContract, network: torch.nn.Module, device: torch.device, scratch: Path) -> Forward:
    match engine.engine:
        case Engine.COMPILE:
            return _Compiled(network.forward, scratch)
        case Engine.TORCHSCRIPT:
            return _Traced(network)
        case Engine.OPENVINO:
            if device.type != "cpu":
                raise ModelFailed(f"engine openvino runs on the CPU, the model on {device.type}")
            return _OpenVino(network, engine.precision)
        case _:
            return network.forward


class _Runner:
    """Stands for the `forward` of a network: its input as the engine wants it, its output as the bundle has it."""

    def __init__(self, forward: Forward, engine: EngineContract, device: torch.device) -> None:
        self._forward = forward
        self._channels_last = engine.channels_last
        self._mixed: torch.dtype | None = None
        if engine.precision is not Precision.FP32 and engine.engine is not Engine.OPENVINO:
            half = engine.precision is Precision.AMP and device.type == "cuda"
            self._mixed = torch.float16 if half else torch.bfloat16
        self._device = device.type

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self._channels_last and given:
            given = (_channels_last(given[0]), *given[1:])
        if self._mixed is None:
            return _single(self._forward(*given, **named))
        with torch.autocast(self._device, dtype=self._mixed):
            return _single(self._forward(*given, **named))


class _Scripted(torch.nn.Module):
    """A TorchScript network, whose `forward` cannot be replaced, and what is called in its stead."""

    def __init__(self, shipped: torch.nn.Module, runner: _Runner) -> None:
        super().__init__()
        self.shipped = shipped
        self.runner = runner

    def forward(self, *given: Any, **named: Any) -> Any:
        """Run it."""
        return self.runner(*given, **named)


class _Traced:
    """A network traced for each shape of its input: what depends on the shape is right for that shape only."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._traced: dict[tuple[Any, ...], Any] = {}

    def __call__(self, *given: Any, **named: Any) -> Any:
        if isinstance(self._network, torch.jit.ScriptModule):
            return self._network(*given, **named)
        plain = _one_tensor("torchscript", given, named)
        key = (tuple(plain.shape), plain.dtype, torch.is_autocast_enabled(plain.device.type))
        if key not in self._traced:
            with as_shipped(self._network) as network:
                trace: Any = torch.jit.trace
                traced = trace(network, plain, check_trace=False, strict=False)
            _forget_oldest(self._traced)
            self._traced[key] = torch.jit.freeze(traced)
        return self._traced[key](plain)


class _Compiled:
    """A network that `torch.compile` makes a program of, which takes a compiler and another process."""

    def __init__(self, forward: Forward, scratch: Path) -> None:
        # What it writes belongs in scratch; what it runs beside this process the sandbox refuses.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(scratch / "torchinductor")
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        self._compiled = torch.compile(forward, dynamic=False)

    def __call__(self, *given: Any, **named: Any) -> Any:
        # Here, since it loads half of torch again.
        from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415
        from torch._inductor.exc import InductorError  # noqa: PLC0415

        try:
            return self._compiled(*given, **named)
        except (OSError, subprocess.SubprocessError, TorchDynamoException, InductorError) as error:
            lines = str(error).strip().splitlines() or [""]
            raise ModelFailed(
                f"engine compile: torch.compile failed ({type(error).__name__}: {lines[0][:200]}); it runs a compiler,"
                f" which the sandbox of models refuses and a machine may not have"
            ) from error


class _OpenVino:
    """A network converted to OpenVINO, compiled once for each shape of its input."""

    def __init__(self, network: torch.nn.Module, precision: Precision) -> None:
        # It would tell its makers that it was imported.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino  # noqa: PLC0415  an extra
        except ImportError as error:
            raise ModelFailed(
                "engine openvino: OpenVINO is not installed: pip install 'meddaemon[openvino]'"
            ) from error
        self.version = str(openvino.__version__).partition("-")[0]
        self._openvino = openvino
        self._network = network
        self._core = openvino.Core()
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32" if precision is Precision.FP32 else "bf16",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Other models and the loader want their cores, too.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, *given: Any, **named: Any) -> Any:
        plain = _one_tensor("openvino", given, named).contiguous()
        shape = tuple(plain.shape)
        if shape not in self._compiled:
            with as_shipped(self._network) as network:
                model = self._openvino.convert_model(network, example_input=plain, input=[shape])
            if len(model.outputs) != 1:
                raise ModelFailed(f"engine openvino: the network has {len(model.outputs)} outputs, not one")
            _forget_oldest(self._compiled)
            self._compiled[shape] = self._core.compile_model(model, "CPU", self._settings)
        return torch.from_numpy(self._compiled[shape](plain.numpy())[0].copy())


def _forget_oldest(kept: dict[Any, Any]) -> None:
    if len(kept) >= _KEPT_SHAPES:
        del kept[next(iter(kept))]


def _one_tensor(engine: str, given: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor:
    if len(given) != 1 or named or not isinstance(given[0], torch.Tensor):
        raise ModelFailed(f"engine {engine} takes networks of one input, this one has {len(given) + len(named)}")
    value = given[0]
    plain: torch.Tensor = value.as_tensor() if isinstance(value, MetaTensor) else value
    return plain


def _make_channels_last(network: torch.nn.Module) -> None:
    for each in (*network.parameters(), *network.buffers()):
        each.data = _channels_last(each.data)


def _channels_last(value: Any) -> Any:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if isinstance(value, torch.Tensor) and value.ndim in formats:
        return value.contiguous(memory_format=formats[value.ndim])
    return value


def _single(value: Any) -> Any:
    """Return what a network gave in single precision, which is what bundles go on with."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: _single(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_single(each) for each in value)
    return value
