"""Bundles to run: one like `spleen_ct_segmentation` of MONAI's model zoo, and those that lie beside the checkout."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEED = 20261122

# As models/spleen_ct_segmentation/configs/inference.json of Project-MONAI/model-zoo has it, the datalist's folder and
# the largest component apart.
CONFIG: Mapping[str, Any] = {
    "imports": ["$import glob", "$import numpy", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "/nonexistent",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [16, 32, 64, 128, 256],
        "strides": [2, 2, 2, 2],
        "num_res_units": 2,
        "norm": "batch",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@image_key",
                "a_min": -57,
                "a_max": 164,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in @datalist]",
        "transform": "@preprocessing",
    },
    "dataloader": {
        "_target_": "DataLoader",
        "dataset": "@dataset",
        "batch_size": 1,
        "shuffle": False,
        "num_workers": 4,
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [96, 96, 96],
        "sw_batch_size": 4,
        "overlap": 0.5,
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "@image_key",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "applied_labels": [1]},
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_ext": ".nii.gz",
                "output_dtype": "$numpy.float32",
                "output_postfix": "trans",
                "separate_folder": True,
            },
        ],
    },
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
        "amp": True,
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}

CONTRACT = """
name = "{name}"
title = "Benchmark"
version = "1"
manufacturer = "nobody"
bundle = "{bundle}"
{engine}
[[inputs]]
key = "image"
series = {{ attribute = "Modality", equals = "CT" }}

[[segments]]
label = 1
name = "Spleen"
category = {{ value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }}
type = {{ value = "78961009", scheme = "SCT", meaning = "Spleen" }}
colour = [230, 159, 0]
"""


def write_spleen(folder: Path) -> Path:
    """Write the bundle with random weights, the same each time; return its folder."""
    import torch  # noqa: PLC0415
    from monai.networks.nets import UNet  # noqa: PLC0415

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs/inference.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "configs/metadata.json").write_text(json.dumps({"name": "like spleen_ct_segmentation", "version": "1"}))
    torch.manual_seed(SEED)
    settings = {key: value for key, value in CONFIG["network_def"].items() if key != "_target_"}
    torch.save(UNet(**settings).state_dict(), folder / "models/model.pt")
    return folder


def write_contract(folder: Path, bundle: Path, name: str, engine: str = "") -> Path:
    """Write a contract for a bundle, with these lines on its engine; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "contract.toml"
    file.write_text(CONTRACT.format(name=name, bundle=bundle, engine=engine))
    return file


def copy_of(bundle: Path, folder: Path) -> Path:
    """Return a copy of a bundle without what Python compiled of it."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
