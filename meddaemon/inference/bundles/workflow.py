"""Makes the workflow of a bundle that is a class of Python, and asks it for its parts. Only for the model child."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.transforms import Compose

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.edges import SAVER

_METADATA = "configs/metadata.json"
_PLACES = {"network_def": ("network_def", "network", "net")}
"""Under what names workflows have a part; the first is the one of MONAI's properties."""


class Workflow:
    """The workflow of a bundle, initialized: `name` is that of its class.

    Its evaluator is not run: the parts that it would run are (see `kinds` for evaluators that do more than that).
    """

    def __init__(self, name: str, bundle_root: str, device: torch.device, scratch: str) -> None:
        module, _, title = name.rpartition(".")
        made = getattr(import_module(module), title)
        wanted = {"workflow_type": "inference", "meta_file": str(Path(bundle_root, _METADATA))}
        taken = inspect.signature(made).parameters
        every = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
        self._workflow = made(**{key: value for key, value in wanted.items() if every or key in taken})
        self._name = name
        for key, value in {"bundle_root": bundle_root, "device": device, "dataset_dir": scratch}.items():
            if key in (self._workflow.properties or {}):
                setattr(self._workflow, key, value)
        self._workflow.initialize()

    def part(self, key: str, *, savers: bool = True) -> Any:
        """Return one part; without `savers`, transforms that write files are left out.

        Raises `ModelFailed` when the workflow has no such part, and there is nothing that usually takes its place.
        """
        found = next((part for part in map(self._found, _PLACES.get(key, (key,))) if part is not None), None)
        if found is None and key == "preprocessing":
            found = getattr(self._found("dataset"), "transform", None)
        if found is None:
            match key:
                case "inferer":
                    return SimpleInferer()
                case "postprocessing":
                    return Compose([])
                case _:
                    raise ModelFailed(f"the workflow {self._name} of the bundle has no {key}")
        if not savers and isinstance(found, Compose):
            return Compose([each for each in found.transforms if not SAVER.fullmatch(type(each).__name__)])
        return found

    def _found(self, key: str) -> Any:
        try:
            return getattr(self._workflow, key)
        except (AttributeError, ValueError) as error:
            # What Python, and MONAI for a property without a method that makes it, say of what is not there.
            if f"'{key}'" not in str(error):
                raise
            return None
