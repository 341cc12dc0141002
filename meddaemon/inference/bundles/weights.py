"""Fills the networks of a bundle from its files, and makes sure that nothing is left as it was drawn at random.

A checkpoint loader may stand anywhere in a bundle, may be switched off, may name a file that is not there, or there
may be none because MONAI's `run` would have found `models/model.pt` by itself. All of that ends in a network that
computes, and says nothing. So every parameter of every module that the configuration makes is followed: one that no
file has filled is a refusal, by name. Only for the model child.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from monai.networks import copy_model_state

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.shims import NUMPY_IN_CHECKPOINT

CONVENTION = ("models/model.pt", "models/model.ts")
"""Where a bundle without any checkpoint loader keeps its weights."""
STATES = ("model", "network", "net", "state_dict", "model_state_dict")
"""Under what names a checkpoint keeps the state of the network."""
_NAMED_AT_MOST = 5


class Checkpoint:
    """Stands where the bundle has `CheckpointLoader`, and loads once, when it is told to: weights only, on the CPU."""

    def __init__(
        self,
        load_path: str,
        load_dict: Mapping[str, Any],
        name: str | None = None,
        map_location: object = None,
        strict: bool = True,
        strict_shape: bool = True,
    ) -> None:
        self.path = Path(load_path)
        self.targets = dict(load_dict)
        self.strict = bool(strict)
        self.strict_shape = bool(strict_shape)

    @property
    def fills_modules(self) -> bool:
        """Say whether there is a module to fill; one of TorchScript brought its weights."""
        modules = [each for each in self.targets.values() if isinstance(each, torch.nn.Module)]
        return any(not isinstance(each, torch.jit.ScriptModule) for each in modules)

    def attach(self, engine: object) -> None:
        """Do nothing: the weights are loaded before there is an engine."""

    def __call__(self, engine: object) -> None:
        """Do nothing, as above."""

    def load(self) -> None:
        """Fill the modules of `load_dict`; raises `ModelFailed` when the file is missing or does not fit."""
        content = read_weights(self.path)
        if len(self.targets) == 1 and next(iter(self.targets)) not in content:
            content = {next(iter(self.targets)): content}
        for key, module in self.targets.items():
            if not isinstance(module, torch.nn.Module):
                continue
            if not isinstance(content.get(key), Mapping):
                raise ModelFailed(f"{self.path.name} holds no state named {key!r}, but {', '.join(map(str, content))}")
            state = dict(content[key])
            if not self.strict_shape:
                state = copy_model_state(module, state, inplace=False)[0]
            fill(module, state, self.path, strict=self.strict and self.strict_shape)


class Witness:
    """Knows which parameters were filled from a file while it watched, by whoever did it.

    `shims` are those that loading needed, `files` the names of what was read, whoever read it.
    """

    def __init__(self) -> None:
        # The tensors themselves are held: an id is one tensor's only as long as that tensor lives.
        self._filled: dict[int, torch.Tensor] = {}
        self.shims: set[str] = set()
        self.files: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow what is loaded inside, in this process."""
        load_state_dict, load, jit_load = torch.nn.Module.load_state_dict, torch.load, torch.jit.load

        def watched_state(module: torch.nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            before = {name: value.data_ptr() for name, value in _tensors(module)}
            result = load_state_dict(module, state, *args, **kwargs)
            assigned = bool(kwargs.get("assign") or (len(args) > 1 and args[1]))
            for name, value in _tensors(module):
                given = state.get(name)
                # A module that is given its own values back has been given nothing.
                if isinstance(given, torch.Tensor) and (assigned or given.data_ptr() != before.get(name)):
                    self._filled[id(value)] = value
            return result

        def watched_load(*args: Any, **kwargs: Any) -> Any:
            try:
                content = load(*args, **kwargs)
            except UnpicklingError as error:
                if "numpy" not in str(error):
                    raise
                with torch.serialization.safe_globals(_numpy_globals()):
                    content = load(*args, **kwargs)
                self.shims.add(NUMPY_IN_CHECKPOINT)
            self._read(args, content)
            return content

        def watched_jit(*args: Any, **kwargs: Any) -> Any:
            module = jit_load(*args, **kwargs)  # type: ignore[no-untyped-call]
            self._read(args, module)
            return module

        torch.nn.Module.load_state_dict = watched_state  # type: ignore[assignment, method-assign]
        torch.load = watched_load
        torch.jit.load = watched_jit
        try:
            yield
        finally:
            torch.nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
            torch.load = load
            torch.jit.load = jit_load

    def unfilled(self, network: torch.nn.Module | None, others: Sequence[torch.nn.Module]) -> tuple[list[str], int]:
        """Return the names of the parameters and running statistics that no file has filled, and how many there are.

        Every one of `network` counts, and of the `others` that the configuration makes, but not the left-over layers
        of one that another, which is filled wholly, was built from.
        """
        wholes = [each for each in others if all(id(value) in self._filled for _, value in _tensors(each))]
        used = {id(value) for whole in [*wholes, *([network] if network else [])] for _, value in _tensors(whole)}
        apart = [each for each in others if used.isdisjoint(id(value) for _, value in _tensors(each))]
        names: dict[int, str] = {}
        count: set[int] = set()
        for module in [*([network] if network else []), *wholes, *apart]:
            for name, value in _tensors(module):
                count.add(id(value))
                if id(value) not in self._filled:
                    names.setdefault(id(value), name)
        return list(names.values()), len(count)

    def _read(self, arguments: tuple[Any, ...], content: object) -> None:
        if arguments and isinstance(arguments[0], str | Path):
            self.files.append(Path(arguments[0]).name)
        if isinstance(content, torch.nn.Module):
            self._filled.update((id(value), value) for _, value in _tensors(content))


def read_weights(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds: of a TorchScript module its state, of anything else only tensors and numbers.

    Raises `ModelFailed` when the file is missing, damaged, or holds more than weights.
    """
    if not path.is_file():
        raise ModelFailed(f"the weights {path.parent.name}/{path.name} are not in the bundle")
    try:
        if is_torchscript(path):
            module: torch.nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            return dict(module.state_dict())
        content = torch.load(str(path), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFailed(f"{path.name} cannot be read as weights: {_first_lines(error)}") from error
    if not isinstance(content, Mapping):
        raise ModelFailed(f"{path.name} holds a {type(content).__name__}, not weights")
    return dict(content)


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript module: unlike a checkpoint, it holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def fill(module: torch.nn.Module, state: Mapping[str, Any], path: Path, *, strict: bool = True) -> None:
    """Load `state` into `module`; raises `ModelFailed` when it does not fit."""
    try:
        module.load_state_dict(state, strict=strict)
    except RuntimeError as error:
        raise ModelFailed(f"the weights {path.name} do not fit the network: {_first_lines(error)}") from error


def fill_by_convention(bundle: Path, network: torch.nn.Module) -> str:
    """Fill a network that no checkpoint loader fills from `models/model.pt` or `.ts`, and return which; "" for none."""
    for name in CONVENTION:
        path = bundle / name
        if path.is_file():
            content = read_weights(path)
            inside = [key for key in STATES if isinstance(content.get(key), Mapping)]
            fill(network, content[inside[0]] if inside else content, path)
            return name
    return ""


def refuse_unfilled(unfilled: Sequence[str], count: int, looked_for: Sequence[str]) -> None:
    """Raise `ModelFailed` where parameters are as they were drawn at random."""
    if unfilled:
        named = ", ".join(unfilled[:_NAMED_AT_MOST]) + (", ..." if len(unfilled) > _NAMED_AT_MOST else "")
        raise ModelFailed(
            f"{len(unfilled)} of {count} parameters would be random, because nothing was loaded into them: {named}."
            f" Looked for: {'; '.join(looked_for)}"
        )


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what training leaves in a module: parameters and running statistics, not constants."""
    yield from module.named_parameters()
    for name, value in module.named_buffers():
        if name.rpartition(".")[2] in {"running_mean", "running_var"}:
            yield name, value


def _numpy_globals() -> list[Any]:
    """Return what arrays and scalars of NumPy are rebuilt with; none of it runs code of the file."""
    core = np._core.multiarray  # type: ignore[attr-defined]
    names = ("numpy.core.multiarray", "numpy._core.multiarray")
    rebuilt = [(getattr(core, part), f"{name}.{part}") for name in names for part in ("_reconstruct", "scalar")]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDSU"}
    return [*rebuilt, np.ndarray, np.dtype, *kinds]


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:600]
