"""Replaces the edges of a bundle's configuration: loaders, savers, paths, device and weights. Nothing is evaluated."""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddaemon.domain.errors import ModelFailed
from meddaemon.inference.bundles.reading import components, look_up, target

IMAGES = "meddaemon.inference.bundles.images"
WEIGHTS = "meddaemon.inference.bundles.weights"
EVALUATION = "meddaemon.inference.bundles.evaluation"
BATCHES = "meddaemon_batches"
"""The id under which our one batch stands in the configuration."""

LOADER = re.compile(r"LoadImage(d|D|Dict)?")
SAVER = re.compile(r"Save[A-Z]\w*|\w*Saver(d|D|Dict)?")
TO_WORLD = re.compile(r"AffineBoxToWorldCoordinate(d|D|Dict)")
BOX_MODE = re.compile(r"ConvertBox(To)?(Standard)?Mode(d|D|Dict)")
CUDA = re.compile(r"torch\.device\((?:[^()]|\([^()]*\))*cuda(?:[^()]|\([^()]*\))*\)")
"""A device made in an expression, the question for CUDA within it included."""

# What the loader in our place understands; readers and their settings go.
_KEPT = ("keys", "ensure_channel_first", "image_only", "meta_keys", "meta_key_postfix", "dtype", "_disabled_")


@dataclass(frozen=True, kw_only=True)
class Edges:
    """What was found where the edges were replaced.

    `checkpoints` are the ids of checkpoint loaders, `box_mode` how the bundle's boxes are written ("": corners).
    `world_left_out`: the bundle's own conversion of boxes to patient coordinates is switched off.
    `own_evaluator`: the bundle's evaluator is not, or not only, MONAI's, so that it must be run itself.
    """

    checkpoints: tuple[str, ...]
    box_mode: str
    own_evaluator: bool
    world_left_out: bool


def replace_edges(
    config: MutableMapping[str, Any], *, bundle: Path, scratch: Path, device: str, weights: Sequence[Path] = ()
) -> Edges:
    """Replace the edges of `config`, in place.

    Raises `ModelFailed` when `weights` are given and the bundle has no place for them, or several.
    """
    box_mode, world_left_out = "", False
    checkpoints = []
    for at, component in list(components(config)):
        name = target(component)
        if LOADER.fullmatch(name):
            kept = {key: component[key] for key in _KEPT if key in component}
            component.clear()
            component.update({"_target_": f"{IMAGES}.{'TakeImage' if name == 'LoadImage' else 'TakeImaged'}", **kept})
        elif SAVER.fullmatch(name):
            component["_disabled_"] = True
        elif TO_WORLD.fullmatch(name):
            # Boxes stay in voxels, where they are boxes still: in the patient, an oblique image makes them none.
            component["_disabled_"] = world_left_out = True
        elif BOX_MODE.fullmatch(name):
            box_mode = str(component.get("src_mode", component.get("mode", box_mode)))
            component["_disabled_"] = True
        elif name == "CheckpointLoader":
            component["_target_"] = f"{WEIGHTS}.Checkpoint"
            checkpoints.append(at)
    _replace_devices(config, device)
    config["bundle_root"] = str(bundle)
    for key in ("output_dir", "dataset_dir"):
        if key in config:
            config[key] = str(scratch)
    config["device"] = f"$torch.device('{device}')"
    if weights:
        _replace_weights(config, weights, checkpoints)
    return Edges(
        checkpoints=tuple(checkpoints),
        box_mode=box_mode,
        own_evaluator=_replace_evaluation(config),
        world_left_out=world_left_out,
    )


def _replace_devices(config: object, device: str) -> None:
    items: Any = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in list(items):
        if isinstance(value, str) and value.startswith("$"):
            config[key] = CUDA.sub(f"torch.device('{device}')", value)  # type: ignore[index]
        elif isinstance(value, str) and key in {"device", "sw_device", "map_location"} and value.startswith("cuda"):
            config[key] = device  # type: ignore[index]
        else:
            _replace_devices(value, device)


def _replace_weights(config: MutableMapping[str, Any], weights: Sequence[Path], checkpoints: Sequence[str]) -> None:
    """Put weights that lie outside the bundle where it takes them: its entry `weights`, or its checkpoint loaders."""
    if "weights" in config:
        config["weights"] = [str(path) for path in weights]
        return
    loaders = dict(components(config))
    if len(weights) == len(checkpoints) == 1:
        chosen = [(checkpoints[0], weights[0])]
    else:
        taken = {at: str(look_up(config, loaders[at].get("load_path"))) for at in checkpoints}
        chosen = [(at, path) for path in weights for at in checkpoints if path.name in taken[at]]
    if len(chosen) != len(weights):
        raise ModelFailed(
            f"the contract names {len(weights)} files of weights, but the bundle has no entry 'weights' to take them"
            f" and {len(checkpoints)} checkpoint loaders, of which {len(chosen)} are meant for a file of such a name"
        )
    for at, path in chosen:
        loaders[at]["load_path"] = str(path)
        loaders[at].pop("_disabled_", None)


def _replace_evaluation(config: MutableMapping[str, Any]) -> bool:
    """Feed the evaluator with our one batch, and say whether it does more than MONAI's does by itself."""
    evaluator = config.get("evaluator")
    if not isinstance(evaluator, dict):
        return False
    loader = look_up(config, evaluator.get("val_data_loader"))
    if isinstance(loader, Mapping):
        dataset = look_up(config, loader.get("dataset"))
        if "preprocessing" not in config and isinstance(dataset, Mapping) and "transform" in dataset:
            config["preprocessing"] = dataset["transform"]
    collate = loader.get("collate_fn") if isinstance(loader, Mapping) else None
    config[BATCHES] = {"_target_": f"{EVALUATION}.Batches", **({"collate_fn": collate} if collate else {})}
    evaluator["val_data_loader"] = f"@{BATCHES}"
    # There is nothing to compare with.
    for key in ("key_val_metric", "additional_metrics"):
        evaluator.pop(key, None)
    own = {"prepare_batch", "iteration_update", "decollate", "event_names", "_requires_"} & evaluator.keys()
    return target(evaluator) != "SupervisedEvaluator" or bool(own)
