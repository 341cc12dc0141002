"""Tiny MONAI bundles, one for each way that published ones are written, and volumes that know the answer.

The network is one convolution that makes class 1 of every voxel above 50: an answer that random weights never give.
"""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meddaemon.domain.picture import Pictures
from meddaemon.domain.volume import Geometry, Volume

torch = pytest.importorskip("torch")

LOAD = {"_target_": "LoadImaged", "keys": "image"}
CHANNEL = {"_target_": "EnsureChannelFirstd", "keys": "image"}
RAS = {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}
SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [2.0, 2.0, 2.0], "mode": "bilinear"}
SOFTMAX = {"_target_": "Activationsd", "keys": "pred", "softmax": True}
ARGMAX = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "/nonexistent/never/written"}
INVERT = {
    "_target_": "Invertd",
    "keys": "pred",
    "transform": "@preprocessing",
    "orig_keys": "image",
    "nearest_interp": False,
    "to_tensor": True,
}
LOADER = {
    "_target_": "CheckpointLoader",
    "load_path": "$@bundle_root + '/models/model.pt'",
    "load_dict": {"model": "@network"},
}
EVALUATOR = {
    "_target_": "SupervisedEvaluator",
    "device": "@device",
    "val_data_loader": "@dataloader",
    "network": "@network",
    "inferer": "@inferer",
    "postprocessing": "@postprocessing",
    "amp": False,
}

CONFIG: Mapping[str, Any] = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "dataset_dir": "/nonexistent",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
    "network": "$@network_def.to(@device)",
    "preprocessing": {"_target_": "Compose", "transforms": [LOAD, CHANNEL, RAS]},
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in os.listdir(@dataset_dir)]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 4},
    "inferer": {"_target_": "SimpleInferer"},
    "postprocessing": {"_target_": "Compose", "transforms": [SOFTMAX, INVERT, ARGMAX, SAVE]},
    "evaluator": EVALUATOR,
    "run": ["$@evaluator.run()"],
}


def config(**changes: Any) -> dict[str, Any]:
    """Return the configuration with entries replaced, or left out where they are None."""
    result = {**copy.deepcopy(dict(CONFIG)), **copy.deepcopy(changes)}
    return {key: value for key, value in result.items() if value is not None}


def steps(*transforms: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def above_50(dimensions: int = 3) -> Any:
    """Return the convolution that makes class 1 of every voxel above 50."""
    network = torch.nn.Conv3d(1, 2, 1) if dimensions == 3 else torch.nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 1.0]).reshape(2, 1, *[1] * dimensions))
        network.bias.copy_(torch.tensor([0.0, -50.0]))
    return network


def write_bundle(
    folder: Path,
    content: Mapping[str, Any],
    *,
    weights: Callable[[Path], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """Write a bundle below `folder`; `weights` writes into its folder `models`, `scripts` are modules of its code."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs/inference.json").write_text(json.dumps(content))
    (folder / "configs/metadata.json").write_text(json.dumps(metadata or {"name": "tiny", "version": "1"}))
    if weights is not None:
        weights(folder / "models")
    if scripts:
        (folder / "scripts").mkdir()
        (folder / "scripts/__init__.py").touch()
        for name, text in scripts.items():
            (folder / f"scripts/{name}.py").write_text(text)
    return folder


def saved(models: Path) -> None:
    """Write the weights as MONAI's CheckpointSaver does."""
    torch.save({"model": above_50().state_dict()}, models / "model.pt")


def make_volume(
    voxels: np.ndarray, *, spacing: tuple[float, float, float] = (2.5, 1.0, 1.0), turn: np.ndarray | None = None
) -> Volume:
    """Return a volume of `voxels` [plane, row, column]; `turn` is a 3x3 rotation of its axes in the patient."""
    planes = voxels.shape[0]
    affine = np.eye(4)
    # Axial: columns to the left, rows to the back, planes to the head.
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=float) * spacing
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ axes
    affine[:3, 3] = (-31.0, 17.0, 205.0)
    geometry = Geometry(
        shape=voxels.shape,
        affine_lps=affine,
        frame_of_reference_uid="1.2.3",
        sop_instance_uids=tuple(f"1.2.4.{plane}" for plane in range(planes)),
        frame_numbers=(1,) * planes,
    )
    return Volume(voxels=voxels.astype(np.float32), geometry=geometry, series_instance_uid="1.2.5")


def rotation(seed: int) -> np.ndarray:
    """Return a rotation by a few degrees about every axis."""
    angles = np.random.default_rng(seed).uniform(-0.3, 0.3, 3)
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        about = np.eye(3)
        about[one, one] = about[other, other] = np.cos(angle)
        about[one, other], about[other, one] = -np.sin(angle), np.sin(angle)
        turn = about @ turn
    return turn


def phantom(turn: np.ndarray | None = None) -> Volume:
    """Return a volume with three bright bodies off centre, each of another size and in another corner."""
    voxels = np.zeros((18, 40, 44))
    voxels[3:9, 6:20, 5:17] = 100
    voxels[11:15, 24:34, 8:20] = 100
    voxels[5:13, 10:18, 28:40] = 100
    return make_volume(voxels, turn=turn)


def balls(turn: np.ndarray | None = None) -> tuple[Volume, list[tuple[slice, ...]]]:
    """Return a volume with three soft balls off centre, and the box around each: faces would hide half a voxel."""
    voxels = np.zeros((20, 48, 52))
    index = np.moveaxis(np.indices(voxels.shape), 0, -1) * (2.5, 1.0, 1.0)
    boxes = []
    for centre, radius in (((6, 13, 12), 9), ((13, 34, 16), 8), ((8, 15, 38), 10)):
        distance = np.linalg.norm(index - np.array(centre) * (2.5, 1.0, 1.0), axis=-1)
        voxels = np.maximum(voxels, np.clip(50 + 20 * (radius - distance), 0, 100))
        reach = (int(radius / 2.5) + 2, radius + 2, radius + 2)
        boxes.append(tuple(slice(max(0, at - far), at + far + 1) for at, far in zip(centre, reach, strict=True)))
    return make_volume(voxels, turn=turn), boxes


def pictures(frames: np.ndarray) -> Pictures:
    return Pictures(
        frames=frames.astype(np.float32),
        sources=tuple((f"1.2.6.{index}", 1) for index in range(len(frames))),
        series_instance_uid="1.2.7",
        spacing_mm=(0.5, 0.25),
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)))
