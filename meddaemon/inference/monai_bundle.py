"""Runs MONAI bundles as they are published, on volumes in memory. The only module here that imports torch.

A bundle is read through MONAI's own `ConfigParser`; only its edges are replaced: loaders take the volume that was
assembled and checked, savers are left out, and paths, device and weights are ours. Whatever lies between (its
preprocessing, inferer, network and postprocessing) runs unchanged.

Only the model child imports this (see `runtime.py`).
"""

import sys
import time
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SimpleInferer
from monai.transforms import Compose, MapTransform, apply_transform
from monai.utils import CommonKeys, MetaKeys, set_determinism
from numpy.typing import NDArray

from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Prediction
from meddaemon.domain.volume import Volume

CONFIG = Path("configs", "inference.json")
METADATA = Path("configs", "metadata.json")
LOADERS = frozenset({"LoadImage", "LoadImaged", "LoadImageD", "LoadImageDict"})
SAVERS = frozenset(
    f"{name}{suffix}" for name in ("SaveImage", "SaveClassification") for suffix in ("", "d", "D", "Dict")
)
AFFINE_TOLERANCE = 1e-3
"""mm; MONAI keeps affines in double precision, so that a wrong grid is off by far more than rounding."""


class TakeVolumed(MapTransform):  # type: ignore[misc]
    """Stands where the bundle has `LoadImaged`: turns the `Volume` under each key into what a reader returns.

    That is a float32 `MetaTensor` (x, y, z) without channel, where x runs along a row, y down a column and z through
    the planes, with an affine to RAS mm: the axis order of MONAI's own DICOM readers.
    """

    def __init__(
        self, keys: Sequence[str] | str, ensure_channel_first: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.ensure_channel_first = ensure_channel_first

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with a `MetaTensor` in the place of each `Volume`."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = as_image(result[key], channel_first=self.ensure_channel_first)
        return result


def as_image(volume: Volume, *, channel_first: bool = False) -> MetaTensor:
    """Return the volume as a MONAI image (x, y, z), with one channel before it when `channel_first`."""
    voxels = np.ascontiguousarray(volume.voxels.transpose(), dtype=np.float32)
    if channel_first:
        voxels = voxels[np.newaxis]
    meta = {
        MetaKeys.ORIGINAL_CHANNEL_DIM: 0 if channel_first else "no_channel",
        MetaKeys.SPATIAL_SHAPE: np.array(volume.voxels.shape[::-1]),
        "filename_or_obj": volume.series_instance_uid,
    }
    return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(image_affine(volume)), meta=meta)


def image_affine(volume: Volume) -> NDArray[np.float64]:
    """Return the affine that maps (column, row, plane) to RAS mm."""
    affine = volume.geometry.affine_ras.copy()
    affine[:, :3] = affine[:, 2::-1]
    return affine


@dataclass(frozen=True, kw_only=True)
class Session:
    """One loaded bundle, warm: `predict` may be called again and again."""

    preprocessing: Compose
    inferer: Any
    network: Any
    postprocessing: Compose
    output: str
    device: torch.device
    provenance: dict[str, str] = field(default_factory=dict)

    def predict(self, volumes: Mapping[str, Volume]) -> Prediction:
        """Run the bundle on one volume per input key; the labels come back on the grid of the first volume.

        Raises `ModelFailed` when the result does not lie on that grid or is not a map of labels.
        """
        source = next(iter(volumes.values()))
        seconds: dict[str, float] = {}
        set_determinism(seed=0)
        with torch.no_grad():
            with _timed("preprocess", seconds):
                data = apply_transform(self.preprocessing, dict(volumes))
            with _timed("infer", seconds):
                image = data[CommonKeys.IMAGE] if CommonKeys.IMAGE in data else data[next(iter(volumes))]
                raw = self.inferer(image.unsqueeze(0).to(self.device), self.network)
                # Wrapped because TorchScript returns plain tensors and Invertd skips those.
                data[self.output] = MetaTensor(torch.as_tensor(raw[0]), meta=dict(image.meta))
            with _timed("postprocess", seconds):
                data = apply_transform(self.postprocessing, data)
                labels = source_labels(data[self.output], source)
        return Prediction(
            labels=labels,
            geometry=source.geometry,
            series_instance_uid=source.series_instance_uid,
            provenance=dict(self.provenance),
            seconds=seconds,
        )


def load(bundle: Path, *, output: str, weights: Sequence[Path] = (), scratch: Path, device: str = "") -> Session:
    """Load a bundle directory and return a session that runs it.

    `output` is the key of the prediction, `weights` replaces the config's entry of that name, `scratch` is where
    anything the bundle still writes goes, `device` is a torch device (default: the first GPU, else the CPU).
    Raises `ModelFailed` when the bundle has no usable `preprocessing` or `network`; whatever its own code raises
    passes through.
    """
    chosen = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    config: dict[str, Any] = ConfigParser.load_config_file(str(bundle / CONFIG))
    metadata: dict[str, Any] = ConfigParser.load_config_file(str(bundle / METADATA))
    _replace_edges(config)
    _replace_settings(
        config,
        {
            "bundle_root": str(bundle),
            "output_dir": str(scratch),
            "dataset_dir": str(scratch),
            "device": f"$torch.device('{chosen}')",
            "weights": [str(path) for path in weights],
        },
        weights=bool(weights),
    )
    # The bundle's own code is the package `scripts` below its root: one bundle per process.
    sys.path.insert(0, str(bundle))
    parser = ConfigParser()
    parser.read_config(config)
    parser.read_meta(metadata)
    for key in ("preprocessing", "network"):
        if key not in config:
            raise ModelFailed(f"the bundle has no {key!r} in {CONFIG}")
    network = parser.get_parsed_content("network")
    return Session(
        preprocessing=parser.get_parsed_content("preprocessing"),
        network=network.to(chosen).eval() if isinstance(network, torch.nn.Module) else network,
        inferer=parser.get_parsed_content("inferer") if "inferer" in config else SimpleInferer(),
        postprocessing=parser.get_parsed_content("postprocessing") if "postprocessing" in config else Compose([]),
        output=output,
        device=chosen,
        provenance={
            "runtime": f"MONAI {monai.__version__}",
            "torch": str(torch.__version__),
            "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type,
            "bundle": f"{metadata.get('name', bundle.name)} {metadata.get('version', '')}".strip(),
        },
    )


def source_labels(prediction: object, source: Volume) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the prediction as labels [plane, row, column] of the source volume.

    Raises `ModelFailed` for another grid, several channels, or values that are not whole numbers from 0 to 65535.
    """
    if not isinstance(prediction, MetaTensor):
        raise ModelFailed(f"the prediction is a {type(prediction).__name__} that does not know where it lies")
    values = prediction.as_tensor().cpu().numpy()
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    expected = source.voxels.shape[::-1]
    if values.shape != expected:
        raise ModelFailed(f"the prediction has the shape {values.shape}, the source {expected}: not one label map")
    off = float(np.abs(np.asarray(prediction.affine.cpu()) - image_affine(source)).max())
    if not off <= AFFINE_TOLERANCE:
        raise ModelFailed(f"the prediction lies on another grid than the source, {off:.4g} mm off in its affine")
    if not np.isfinite(values).all():
        raise ModelFailed("the prediction holds values that are not finite")
    lowest, highest = float(values.min()), float(values.max())
    if lowest < 0 or highest > np.iinfo(np.uint16).max or (np.rint(values) != values).any():
        raise ModelFailed(f"the prediction holds values from {lowest:g} to {highest:g} that are not labels")
    dtype = np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16
    labels: NDArray[np.uint8] | NDArray[np.uint16] = np.ascontiguousarray(values.transpose().astype(dtype))
    return labels


def _replace_edges(config: object) -> None:
    """Replace every loader by `TakeVolumed` and disable every saver, in place, wherever they stand."""
    if isinstance(config, MutableMapping):
        target = str(config.get("_target_", "")).rpartition(".")[2]
        if target in LOADERS:
            kept = {name: config[name] for name in ("keys", "ensure_channel_first") if name in config}
            config.clear()
            config.update({"_target_": f"{__name__}.{TakeVolumed.__name__}", **kept})
        elif target in SAVERS:
            config["_disabled_"] = True
    parts = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    for part in parts:
        _replace_edges(part)


def _replace_settings(config: MutableMapping[str, Any], settings: Mapping[str, object], *, weights: bool) -> None:
    """Overwrite settings that the bundle has; one that it lacks is not invented."""
    for key, value in settings.items():
        if key in config and (key != "weights" or weights):
            config[key] = value
    if weights and "weights" not in config:
        raise ModelFailed("the contract names weights, but the bundle has no entry 'weights' to take them")


@contextmanager
def _timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - started
