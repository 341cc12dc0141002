"""A bundle with as many classes as the whole body has, in the manner of the model zoo, and what a run of it takes.

Its configuration is that of `wholeBody_ct_segmentation` 0.2.6 of Project-MONAI/model-zoo but for the network, which is
one convolution of 1x1x1 with seeded weights: memory is that of the classes, not of a network.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bundle_factory import ARGMAX, CHANNEL, INVERT, LOAD, RAS, SOFTMAX, config, make_volume, steps, write_bundle

from meddaemon.config.digest import bundle_digest
from meddaemon.domain.codes import Code
from meddaemon.domain.conditions import ALWAYS
from meddaemon.domain.contract import InputContract, ModelContract, SegmentContract
from meddaemon.domain.volume import Volume
from meddaemon.inference.loading import Prepared
from meddaemon.inference.messages import Sealed
from meddaemon.inference.values import input_message

torch = __import__("pytest").importorskip("torch")

AFTER: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "labels, inverted": (SOFTMAX, ARGMAX, {**INVERT, "nearest_interp": True}),
    "probabilities, inverted": (SOFTMAX, INVERT, ARGMAX),
}
"""What follows the network: as in the whole-body bundle, and as in most others of the zoo."""


def write_many(folder: Path, classes: int, after: str, window: int = 96) -> ModelContract:
    """Write the bundle and return a contract for it."""
    before = (
        LOAD,
        {"_target_": "EnsureTyped", "keys": "image"},
        CHANNEL,
        RAS,
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
        {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
    )
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": classes, "kernel_size": 1}
    inferer = {
        "_target_": "SlidingWindowInferer",
        "roi_size": [window] * 3,
        "sw_batch_size": 1,
        "overlap": 0.25,
        "padding_mode": "replicate",
        "mode": "gaussian",
        "device": "@device",
    }
    content = config(
        network_def=network, preprocessing=steps(*before), inferer=inferer, postprocessing=steps(*AFTER[after])
    )

    def seeded(models: Path) -> None:
        torch.manual_seed(7)
        network = torch.nn.Conv3d(1, classes, 1)
        # Straight lines over the intensity, of which each is the highest somewhere.
        slopes = torch.linspace(-20, 20, classes)
        with torch.no_grad():
            network.weight.copy_(slopes.reshape(-1, 1, 1, 1, 1))
            network.bias.copy_(-(slopes**2) / 40 + torch.rand(classes) / 100)
        torch.save(network.state_dict(), models / "model.pt")

    write_bundle(folder, content, weights=seeded)
    contract_file = folder / "contract.toml"
    contract_file.write_text("")
    organ = Code(value="113343008", scheme="SCT", meaning="Organ")
    structure = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
    return ModelContract(
        name="many",
        title="Many",
        version="1",
        manufacturer="nobody",
        bundle=folder,
        contract_file=contract_file,
        digest=bundle_digest(folder, contract_file, ()),
        inputs=(InputContract(key="image", series=ALWAYS),),
        output="pred",
        segments=tuple(
            SegmentContract(label=label, name=f"Organ {label}", category=structure, type=organ, colour=(1, 2, 3))
            for label in range(1, classes)
        ),
    )


def body(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Volume:
    """Return a smooth volume [plane, row, column] with a little noise, of all intensities."""
    generator = np.random.default_rng(3)
    planes, rows, columns = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    voxels = np.empty(shape, dtype=np.float32)
    for index, plane in enumerate(planes):
        voxels[index] = 500 * (np.sin(3 * rows)[:, None] + np.cos(4 * columns) + plane)
        voxels[index] += generator.normal(0, 5, shape[1:]).astype(np.float32)
    return make_volume(voxels, spacing=spacing)


def decoded(contract: ModelContract, volume: Volume) -> Prepared:
    """Return the volume as the loader hands it to a model."""
    said, array = input_message(volume)
    return Prepared(contract=contract, inputs={"image": (said, Sealed.of(array))}, seconds={})


def soon(seconds: float) -> float:
    return time.monotonic() + seconds
