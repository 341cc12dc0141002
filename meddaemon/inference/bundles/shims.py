"""What a bundle made for older versions needs to run on these, in one table.

A shim changes the configuration or the interpreter of the model's process, nothing else, and never silently: its name
goes into the provenance of every result. One that could change numbers restores what the bundle was made with.
"""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from meddaemon.inference.bundles.reading import Reading, code, components, target

NUMPY_NAMES: Mapping[str, str] = {
    # What NumPy 1.24 and 2.0 took away, and what it was.
    "product": "prod",
    "cumproduct": "cumprod",
    "alltrue": "all",
    "sometrue": "any",
    "row_stack": "vstack",
    "in1d": "isin",
    "trapz": "trapezoid",
    "float_": "float64",
    "complex_": "complex128",
    "infty": "inf",
    "Inf": "inf",
    "NaN": "nan",
    "NAN": "nan",
}
NUMPY_TYPES: Mapping[str, type] = {"bool": bool, "int": int, "float": float, "object": object, "str": str}
_NUMPY_NAME = re.compile(rf"\b(?:np|numpy)\.({'|'.join([*NUMPY_NAMES, *NUMPY_TYPES])})\b")


@dataclass(frozen=True, kw_only=True)
class Shim:
    """One row of the table: how it shows, and what is done about it.

    `apply` changes the configuration in place, or the interpreter, and returns whether there was anything to change.
    """

    name: str
    symptom: str
    remedy: str
    apply: Callable[[Reading], bool]


def apply_shims(reading: Reading) -> tuple[str, ...]:
    """Apply every shim that this bundle needs, in this process, and return their names."""
    return tuple(shim.name for shim in SHIMS if shim.apply(reading))


def _img_size(reading: Reading) -> bool:
    return _each(reading, r"SwinUNETR", lambda part: part.pop("img_size", None) is not None)


def _channel_first(reading: Reading) -> bool:
    def change(part: dict[str, Any]) -> bool:
        name = target(part)
        suffix = "" if name in {"AsChannelFirst", "AddChannel"} else "d"
        part["_target_"] = f"EnsureChannelFirst{suffix}"
        part["channel_dim"] = part.get("channel_dim", -1) if name.startswith("As") else "no_channel"
        return True

    return _each(reading, r"(AsChannelFirst|AddChannel)(d|D|Dict)?", change)


def _allow_smaller(reading: Reading) -> bool:
    def change(part: dict[str, Any]) -> bool:
        return part.setdefault("allow_smaller", True) is True

    def needed(part: dict[str, Any]) -> bool:
        return "allow_smaller" not in part and change(part)

    return reading.metadata.made_before(1, 5) and _each(reading, r"CropForeground(d|D|Dict)?", needed)


def _pretrained(reading: Reading) -> bool:
    def change(part: dict[str, Any]) -> bool:
        if part.get("pretrained") is not True:
            return False
        part["pretrained"] = False
        return True

    return _each(reading, r".+", change)


def _labels_by_nearest(reading: Reading) -> bool:
    """Invert a map of labels by the nearest voxel where it would be interpolated between the numbers of its labels."""
    found = False
    postprocessing = reading.config.get("postprocessing")
    steps = postprocessing.get("transforms") if isinstance(postprocessing, dict) else None
    steps = steps if isinstance(steps, list) else []
    for index, step in enumerate(steps):
        if not (isinstance(step, dict) and re.fullmatch(r"Invert(d|D|Dict)", target(step))):
            continue
        before, after = steps[:index], steps[index + 1 :]
        if (
            any(map(_makes_labels, before))
            and not any(map(_makes_labels, after))
            and not step.get("nearest_interp", True)
        ):
            step["nearest_interp"] = True
            found = True
    return found


def _makes_labels(step: object) -> bool:
    return isinstance(step, dict) and target(step).startswith("AsDiscrete") and step.get("argmax") is True


def _resized_labels(reading: Reading) -> bool:
    """Have the inversion of `Resize` take the nearest voxel for labels; PyTorch's "nearest" takes the one before."""
    parts = [part for _, part in components(reading.config)]
    resizes = any(re.fullmatch(r"Resize(d|D|Dict)?", target(part)) for part in parts)
    if not resizes or not any(target(part).startswith("Invert") and part.get("nearest_interp", True) for part in parts):
        return False
    from monai.transforms import Resize  # noqa: PLC0415 - this is only for the process that runs the bundle

    if not hasattr(Resize, _EXACT):
        inverse = Resize.inverse_transform

        def exactly(resize: Any, data: Any, transform: Any) -> Any:
            extra = transform["extra_info"]
            mode = "nearest-exact" if extra["mode"] == "nearest" else extra["mode"]
            return inverse(resize, data, {**transform, "extra_info": {**extra, "mode": mode}})

        Resize.inverse_transform = exactly
        setattr(Resize, _EXACT, True)
    return True


_EXACT = "inverts_to_the_nearest"


def _numpy_names(reading: Reading) -> bool:
    import numpy as np  # noqa: PLC0415 - changed here, and only in the process that runs the bundle

    used = {name for text in code(reading) for name in _NUMPY_NAME.findall(text)}
    for name in sorted(name for name in used if name not in vars(np)):
        setattr(np, name, NUMPY_TYPES[name] if name in NUMPY_TYPES else getattr(np, NUMPY_NAMES[name]))
        _PUT_BACK.add(name)
    return not _PUT_BACK.isdisjoint(used)


def _torchvision(reading: Reading) -> bool:
    """Declare the operators without which torchvision cannot be imported beside a torch without CUDA."""
    if not any(re.search("torchvision|retinanet|resnet_fpn", text, re.IGNORECASE) for text in code(reading)):
        return False
    import torch  # noqa: PLC0415 - this is only for the process that runs the bundle

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    except ImportError:
        return False  # which `kinds` has to say
    else:
        return bool(_KEPT_ALIVE)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    library.impl("nms", _suppressed, "CPU")  # type: ignore[no-untyped-call]
    _KEPT_ALIVE.append(library)
    importlib.import_module("torchvision")
    _resume_imports("torchvision")
    return True


_PUT_BACK: set[str] = set()
_KEPT_ALIVE: list[object] = []


def _resume_imports(package: str) -> None:
    """Import what MONAI could not when it was imported itself: it keeps the error where the module would be."""
    wanted = re.compile(rf"(?:from (?P<module>{package}\S*) )?import (?P<name>\S+)")
    for module in [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "monai"]:
        for name, value in list(vars(module).items()):
            error = vars(value).get("_exception") if type(value).__name__ == "_LazyRaise" else None
            found = wanted.match(str(error)) if error else None
            if found and (found["module"] or found["name"]).partition(".")[0] == package:
                here = importlib.import_module(found["module"] or found["name"])
                setattr(module, name, getattr(here, found["name"]) if found["module"] else here)


def _suppressed(boxes: Any, scores: Any, limit: float) -> Any:
    """Return the indices of the boxes (x, y, x, y) that are left when lower ones that overlap more are dropped."""
    order = scores.argsort(descending=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = boxes[rest, :2].maximum(boxes[best, :2]), boxes[rest, 2:].minimum(boxes[best, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        order = rest[shared <= limit * (areas[best] + areas[rest] - shared)]
    return scores.new_tensor(kept).long()


def _each(reading: Reading, name: str, change: Callable[[dict[str, Any]], bool]) -> bool:
    pattern = re.compile(name)
    parts = [part for _, part in components(reading.config) if pattern.fullmatch(target(part))]
    # Every one is changed, not only the first.
    return sum(map(change, parts)) > 0


SHIMS: tuple[Shim, ...] = (
    Shim(
        name="swin_unetr_img_size",
        symptom="SwinUNETR takes no img_size since MONAI 1.5",
        remedy="left out: the network does not depend on it",
        apply=_img_size,
    ),
    Shim(
        name="ensure_channel_first",
        symptom="AsChannelFirst and AddChannel left MONAI with 1.3",
        remedy="EnsureChannelFirst with the same channel",
        apply=_channel_first,
    ),
    Shim(
        name="crop_may_be_smaller",
        symptom="since MONAI 1.5, CropForeground pads beyond the image unless told otherwise; it crops differently",
        remedy="allow_smaller = true, the default of the MONAI that the bundle was made with",
        apply=_allow_smaller,
    ),
    Shim(
        name="no_pretrained_download",
        symptom="a network with pretrained = true asks the network for weights that the bundle replaces anyway",
        remedy="pretrained = false; every parameter must have come from a file all the same",
        apply=_pretrained,
    ),
    Shim(
        name="labels_inverted_by_nearest",
        symptom="labels are inverted linearly, which draws a third structure where two others meet",
        remedy="nearest_interp = true",
        apply=_labels_by_nearest,
    ),
    Shim(
        name="resized_labels_to_the_nearest",
        symptom="labels inverted through Resize lie up to half a voxel off: PyTorch's nearest takes the voxel before",
        remedy="nearest-exact for the inversion",
        apply=_resized_labels,
    ),
    Shim(
        name="numpy_names",
        symptom="names that NumPy 1.24 and 2.0 took away (np.product, np.bool)",
        remedy="they are there again, in this process",
        apply=_numpy_names,
    ),
    Shim(
        name="torchvision_nms",
        symptom="torchvision from PyPI does not import beside a torch without CUDA: no operator torchvision::nms",
        remedy="the operator is declared, and computed by torch",
        apply=_torchvision,
    ),
)
NUMPY_IN_CHECKPOINT = "numpy_in_checkpoint"
"""Arrays of NumPy in a checkpoint are allowed, which weights-only loading refuses; see `weights.Witness`."""
