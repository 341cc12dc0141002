"""Bundles for tests of deployment: one that is only looked at, and one that segments and can be run."""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from dicom_factory import affine_lps
from numpy.typing import NDArray

from meddaemon.config.admission import Check, read_check
from meddaemon.deploy import golden
from meddaemon.deploy.golden import Case, Grid, Source
from meddaemon.domain.contract import ModelContract
from tests.admission import loaded

METADATA = {
    "name": "Spleen segmentation",
    "version": "0.5.9",
    "authors": "Somebody",
    "task": "segmentation",
    "network_data_format": {
        "inputs": {"image": {"type": "image", "format": "hounsfield", "modality": "MR", "num_channels": 1}},
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "channel_def": {"0": "background", "1": "Spleen", "2": "Left tumour"},
            }
        },
    },
}

FILES: Mapping[str, bytes] = {
    "LICENSE": b"Apache-2.0",
    "configs/inference.json": b'{"network": {"_target_": "UNet"}}',
    "configs/metadata.json": json.dumps(METADATA).encode(),
    "models/model.pt": b"\x80\x02}.",
}


def write_bundle(folder: Path, more: Mapping[str, bytes] | None = None) -> Path:
    """Write a bundle's files below a folder."""
    for name, content in {**FILES, **(more or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zip_of(folder: Path, archive: Path) -> Path:
    """Zip a folder, with its own name before all others, as archives are mostly made."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, f"{folder.name}/{path.relative_to(folder)}")
    return archive


def complete(contract: str) -> str:
    """Fill in what a scaffolded contract leaves to a person."""
    spleen = 'type = { value = "78961009", scheme = "SCT", meaning = "Spleen" }'
    return re.sub(r"(?m)^type = .*$", spleen, contract)


CONTRACT = """
name = "segmenter"
title = "Segmenter"
version = "1"
manufacturer = "nobody"

[[inputs]]
key = "image"
series = { attribute = "Modality", equals = "MR" }

[[segments]]
label = 1
name = "Brain"
category = { value = "91723000", scheme = "SCT", meaning = "Anatomical Structure" }
type = { value = "12738006", scheme = "SCT", meaning = "Brain" }
colour = [230, 159, 0]
"""


_HEAD, _, _SEGMENT = CONTRACT.partition("[[segments]]")

CLASSIFIER = (
    _HEAD.replace('manufacturer = "nobody"', 'manufacturer = "nobody"\nkind = "classification"')
    + """
[[classes]]
name = "bright"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
threshold = 0.5
"""
)
"""One class that stands alone."""

_OTHER = _SEGMENT.replace("label = 1", "label = 2").replace('"Brain"\n', '"Other"\n', 1)
OVERLAPPING = f"{CONTRACT}\n[[segments]]{_OTHER}"
"""Two segments."""


FINDER = (
    _HEAD.replace('manufacturer = "nobody"', 'manufacturer = "nobody"\nkind = "KIND"\nframe = "voxel"')
    + """
[[objects]]
label = 1
name = "bright"
finding = { value = "27925004", scheme = "SCT", meaning = "Nodule" }
threshold = 0.5
"""
)
"""One kind of object, in the voxels of the image that the network sees; `KIND` is detection or landmarks."""


def write_segmenter(folder: Path, behaviour: str, *, oriented: bool, contract: str = CONTRACT) -> Path:
    """Write a bundle that segments what is bright, `y` [batch, channel, x, y, z], and makes `behaviour` of it.

    Unless it is `oriented`, it sees the axes as they are stored. A contract without segments makes it one that scores.
    Returns its contract file.
    """
    draws = "[[segments]]" in contract
    transforms = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": True},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *([{"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}] if oriented else []),
    ]
    invert = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    config = {
        "imports": ["$from scripts.toy import Toy"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "network": "$Toy().to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [{**invert, "nearest_interp": True}] if draws else []},
    }
    code = (
        "import torch\n\n\nclass Toy(torch.nn.Module):\n    def forward(self, x):\n"
        f"        y = (x > 50).float()\n        return {behaviour}\n"
    )
    for name, text in (
        ("configs/inference.json", json.dumps(config)),
        ("configs/metadata.json", json.dumps({"name": "segmenter", "version": "1"})),
        ("scripts/__init__.py", ""),
        ("scripts/toy.py", code),
        ("contract.toml", contract),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "contract.toml"


def case_of(given_grid: Grid, labels: NDArray[np.uint8] | None = None) -> Case:
    return Case(
        name="c",
        sources=(Source(key="image", modality="MR", grid=given_grid),),
        labels=(given_grid.voxels > 50).astype(np.uint8) if labels is None else labels,
        affine_lps=given_grid.affine_lps,
        scores=(),
        dice=0.99,
        difference=0.01,
    )


def head() -> Grid:
    """Lopsided along every axis, so that no flip goes unseen."""
    voxels: NDArray[np.float32] = np.full((5, 8, 6), 10, np.float32)
    voxels[1:3, 2:7, 1:5] = 100
    return Grid(voxels=voxels, affine_lps=affine_lps(orientation="oblique"))


def model(folder: Path, behaviour: str, *, oriented: bool, labels: NDArray[np.uint8] | None = None) -> ModelContract:
    contract = loaded(write_segmenter(folder, behaviour, oriented=oriented))
    if labels is None:
        labels = (head().voxels > 50).astype(np.uint8)
    golden.write_case(folder / "golden" / "head", case_of(head(), labels))
    return loaded(contract.contract_file)


def results_of(contract: ModelContract) -> tuple[Check, dict[str, bool]]:
    found = read_check(contract)
    assert found is not None
    return found, {each.variant: each.ok for each in found.cases}
