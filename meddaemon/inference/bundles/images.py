"""What a loader of MONAI would have read: images with the axes, the place and the channels that bundles expect.

Only for the model child.
"""

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged, MapTransform, SpatialResample, Transform
from monai.utils import MetaKeys, SpaceKeys, convert_data_type
from monai.utils.type_conversion import get_equivalent_dtype
from numpy.typing import NDArray

from meddaemon.domain.errors import InputRefused
from meddaemon.domain.picture import Pictures, Signal
from meddaemon.domain.volume import Volume

Source: TypeAlias = Volume | Pictures | Signal

AFFINE_TOLERANCE = 1e-3
"""mm; MONAI keeps affines in double precision, so that a wrong grid is off by far more than rounding."""
LEAST_SHARED = 0.9
"""So much of the first series must lie within each other one that becomes a channel beside it."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where an image lies: its shape (x, y[, z]) and the affine, 4x4 for volumes and 3x3 for pictures, to RAS mm."""

    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def lies_as(self, other: Self) -> bool:
        """Say whether another grid has the same voxels in the same places."""
        return self.shape == other.shape and float(np.abs(self.affine - other.affine).max()) <= AFFINE_TOLERANCE


class TakeImaged(MapTransform):  # type: ignore[misc]
    """Stands where the bundle has `LoadImaged`: the image of each key is there already, in the layout of a reader.

    A key that the inputs do not fill is left alone: bundles load labels that they need for training only. Arguments
    are those of MONAI's, of which readers and their settings count for nothing.
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        reader: object = None,
        dtype: Any = np.float32,
        meta_keys: Sequence[str] | str | None = None,
        meta_key_postfix: str = "meta_dict",
        overwriting: bool = False,
        image_only: bool = True,
        ensure_channel_first: bool = False,
        **_of_the_reader: object,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.take = TakeImage(ensure_channel_first=ensure_channel_first, dtype=dtype)
        self.image_only = image_only
        self.meta_keys = [meta_keys] if isinstance(meta_keys, str) else meta_keys
        self.meta_key_postfix = meta_key_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with each image as the bundle asks for it, and its meta data beside it where asked for."""
        result = dict(data)
        for index, key in enumerate(self.keys):
            image = result.get(key)
            if isinstance(image, MetaTensor):
                result[key] = self.take(image)
                if not self.image_only:
                    named = self.meta_keys[index] if self.meta_keys else None
                    result[named or f"{key}_{self.meta_key_postfix}"] = dict(result[key].meta)
        return result


class TakeImage(Transform):  # type: ignore[misc]
    """Stands where the bundle has `LoadImage`."""

    def __init__(
        self,
        reader: object = None,
        image_only: bool = True,
        dtype: Any = np.float32,
        ensure_channel_first: bool = False,
        **_of_the_reader: object,
    ) -> None:
        self.ensure_channel_first = ensure_channel_first
        self.image_only = image_only
        self.dtype = dtype

    def __call__(self, image: MetaTensor) -> MetaTensor:
        """Return the image with the number type and the channel that were asked for."""
        if self.dtype is not None:
            dtype = get_equivalent_dtype(self.dtype, torch.Tensor)
            image = convert_data_type(image, MetaTensor, dtype=dtype)[0]
        return EnsureChannelFirst()(image) if self.ensure_channel_first else image


@contextmanager
def loaders_replaced() -> Iterator[None]:
    """Have `LoadImage` and `LoadImaged` of MONAI be ours inside, for bundles that make them in code of their own."""
    ours = {LoadImage: TakeImage, LoadImaged: TakeImaged}
    found = [
        (module, name, value)
        for title, module in list(sys.modules.items())
        if title.partition(".")[0] == "monai"
        for name, value in list(vars(module).items())
        if isinstance(value, type) and value in ours
    ]
    for module, name, value in found:
        setattr(module, name, ours[value])
    try:
        yield
    finally:
        for module, name, value in found:
            setattr(module, name, value)


def as_image(volume: Volume, *, channel_first: bool = False) -> MetaTensor:
    """Return the volume as a MONAI image (x, y, z), with one channel before it when `channel_first`.

    x runs along a row, y down a column and z through the planes, with an affine to RAS mm: the axis order of MONAI's
    own DICOM readers.
    """
    voxels = np.ascontiguousarray(volume.voxels.transpose(), dtype=np.float32)
    image = _image(voxels, image_affine(volume), volume.series_instance_uid, "no_channel")
    return EnsureChannelFirst()(image) if channel_first else image


def as_channels(volumes: Sequence[Volume]) -> MetaTensor:
    """Return several volumes as the channels of one image (channel, x, y, z) on the grid of the first.

    Raises `InputRefused` when one lies in another frame of reference, or shares too little with the first.
    """
    first = volumes[0]
    channels = np.stack([_onto(volume, first) for volume in volumes])
    return _image(channels, image_affine(first), first.series_instance_uid, 0)


def as_plane(volume: Volume, plane: int) -> MetaTensor:
    """Return one plane of a volume as an image (x, y) of its own."""
    pixels = np.ascontiguousarray(volume.voxels[plane].transpose(), dtype=np.float32)
    _, row, column = volume.geometry.spacing
    return _image(pixels, np.diag([column, row, 1.0, 1.0]), f"{volume.series_instance_uid}.{plane}", "no_channel")


def as_picture(pictures: Pictures, frame: int) -> MetaTensor:
    """Return one frame as an image (x, y), or (x, y, 3) in RGB, as MONAI reads pictures."""
    pixels = np.ascontiguousarray(pictures.frames[frame].swapaxes(0, 1), dtype=np.float32)
    row, column = pictures.spacing_mm or (1.0, 1.0)
    channel: Any = -1 if pixels.ndim == 3 else "no_channel"
    return _image(pixels, np.diag([column, row, 1.0, 1.0]), f"{pictures.series_instance_uid}.{frame}", channel)


def as_cine(pictures: Pictures) -> MetaTensor:
    """Return all frames, which are one place at many times, as one image (x, y, 1, frame)."""
    pixels = np.ascontiguousarray(pictures.frames.transpose()[:, :, np.newaxis], dtype=np.float32)
    row, column = pictures.spacing_mm or (1.0, 1.0)
    return _image(pixels, np.diag([column, row, 1.0, 1.0]), pictures.series_instance_uid, "no_channel")


def as_signal(signal: Signal) -> MetaTensor:
    """Return a waveform as (channel, sample)."""
    return _image(np.ascontiguousarray(signal.samples, np.float32), np.eye(4), signal.series_instance_uid, 0)


def image_affine(volume: Volume) -> NDArray[np.float64]:
    """Return the affine that maps (column, row, plane) to RAS mm."""
    affine = volume.geometry.affine_ras.copy()
    affine[:, :3] = affine[:, 2::-1]
    return affine


def affine_of(image: MetaTensor, dimensions: int) -> NDArray[np.float64]:
    """Return the affine of an image for so many spatial dimensions."""
    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    kept = [*range(dimensions), -1]
    return affine[np.ix_(kept, kept)]


def grid_of(image: MetaTensor) -> Grid:
    """Return where an image with a channel lies."""
    return Grid(shape=tuple(image.shape[1:]), affine=affine_of(image, image.ndim - 1))


def grid_of_source(image: MetaTensor) -> Grid:
    """Return where an image lies that was not preprocessed yet; of a cine, where each of its frames does."""
    shape = tuple(int(size) for size in image.meta[MetaKeys.SPATIAL_SHAPE])
    shape = shape[:2] if len(shape) > 3 else shape
    return Grid(shape=shape, affine=affine_of(image, len(shape)))


def resampled(image: MetaTensor, grid: Grid, *, nearest: bool) -> torch.Tensor:
    """Return an image (channel, x, y[, z]) on another grid; 0 outside."""
    resample = SpatialResample(mode="nearest" if nearest else "bilinear", padding_mode="zeros", dtype=torch.float64)
    moved: torch.Tensor = resample(image, dst_affine=torch.from_numpy(grid.affine), spatial_size=grid.shape)
    return moved.as_tensor() if isinstance(moved, MetaTensor) else moved


def _image(pixels: NDArray[np.float32], affine: NDArray[np.float64], name: str, channel: object) -> MetaTensor:
    spatial = {"no_channel": pixels.shape, 0: pixels.shape[1:], -1: pixels.shape[:-1]}[channel]
    meta = {
        MetaKeys.ORIGINAL_CHANNEL_DIM: channel,
        MetaKeys.SPATIAL_SHAPE: np.array(spatial),
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        # Orientationd asks for it since MONAI 1.5, and takes what it finds without asking whether it is so.
        MetaKeys.SPACE: SpaceKeys.RAS,
        "filename_or_obj": name,
    }
    return MetaTensor(torch.from_numpy(pixels), affine=torch.from_numpy(affine), meta=meta)


def _onto(volume: Volume, first: Volume) -> NDArray[np.float32]:
    """Return the voxels (x, y, z) of a volume on the grid of the first, interpolated where the grids differ."""
    grid = Grid(shape=first.voxels.shape[::-1], affine=image_affine(first))
    if Grid(shape=volume.voxels.shape[::-1], affine=image_affine(volume)).lies_as(grid):
        return volume.voxels.transpose().astype(np.float32)
    one, other = first.geometry.frame_of_reference_uid, volume.geometry.frame_of_reference_uid
    if not one or one != other:
        raise InputRefused(
            "other_frame_of_reference",
            f"series {volume.series_instance_uid} has the frame of reference {other}, the first series {one}",
        )
    image = as_image(volume, channel_first=True)
    inside = MetaTensor(torch.ones_like(image.as_tensor()), affine=image.affine)
    shared = float(resampled(inside, grid, nearest=True).mean())
    if shared < LEAST_SHARED:
        raise InputRefused(
            "little_shared",
            f"{shared:.0%} of the first series lie within series {volume.series_instance_uid}",
            numbers={"shared": shared, "least": LEAST_SHARED},
        )
    # Beyond its border, a channel goes on as it ends there: 0 would be water in a CT.
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)
    moved = resample(image, dst_affine=torch.from_numpy(grid.affine), spatial_size=grid.shape)
    voxels: NDArray[np.float32] = moved[0].cpu().numpy().astype(np.float32)
    return voxels
