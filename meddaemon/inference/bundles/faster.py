"""Parts of MONAI that are slow on a CPU, done faster and bit for bit the same. Only for the model child.

Each stands in `REPLACED` beside what it replaces, which it hands everything to that it is not made for: other devices,
other modes. Equality, the order in which numbers are added up included, is what tests/inference/test_faster.py shows.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers.spatial_transforms import AffineTransform
from monai.networks.utils import to_norm_affine
from monai.transforms.post import array as post
from monai.transforms.spatial import functional as spatial
from monai.utils import GridSampleMode, GridSamplePadMode, convert_to_dst_type
from numpy.typing import NDArray

BLOCK = 16_384
"""Voxels worked on at once: few enough to stay in a core's cache."""

_largest_component = post.get_largest_connected_component_mask


# --- resampling along the axes --------------------------------------------------------------------------------------


class AlongAxes(AffineTransform):  # type: ignore[misc]
    """MONAI's resampling, axis by axis where source and target have the same axes.

    There, where along one axis a voxel lies depends on no other axis, so that a table for each axis says what MONAI
    and torch work out, and read from memory, for each voxel (`affine_grid`, `grid_sample`).
    """

    def forward(
        self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Sequence[int] | int | None = None
    ) -> torch.Tensor:
        """Return `src` [1, channel, x, y, z] resampled as `theta` says.

        What MONAI would round to single precision in its next step already is.
        """
        moved = self._along_axes(src, theta, spatial_size)
        if moved is None:
            whole: torch.Tensor = super().forward(src, theta, spatial_size)
            return whole
        return moved

    def _along_axes(self, src: torch.Tensor, theta: torch.Tensor, spatial_size: Any) -> torch.Tensor | None:
        mode, padding = str(GridSampleMode(self.mode).value), str(GridSamplePadMode(self.padding_mode).value)
        if (
            not (src.device.type == "cpu" and src.dtype == torch.float64 and src.ndim == 5 and src.shape[0] == 1)
            or not (theta.shape == (4, 4) and theta.dtype == torch.float64)
            or mode not in {"bilinear", "nearest"}
            or padding not in {"zeros", "border"}
            or isinstance(spatial_size, int | None)
            or self.normalized
            or not self.reverse_indexing
        ):
            return None
        size = tuple(int(each) for each in spatial_size)
        if 0 in size or 0 in src.shape:
            return None
        normal = to_norm_affine(
            affine=theta[None],
            src_size=src.shape[2:],
            dst_size=size,
            align_corners=self.align_corners,
            zero_centered=self.zero_centered,
        )[0]
        if (normal[:3, :3] - torch.diag(torch.diagonal(normal)[:3])).any():
            return None
        # Torch has the axes the other way round.
        order = [2, 1, 0, 3]
        places = _places(normal[order][:, order][:3], size, bool(self.align_corners))
        tables = [
            _Axis.of(place, length, mode, padding, bool(self.align_corners))
            for place, length in zip(places, src.shape[2:], strict=True)
        ]
        source = src[0].contiguous().numpy()
        target = np.empty((len(source), *size), np.float32)
        work = _interpolated if mode == "bilinear" else _nearest
        _in_parts(size[0], lambda part: work(source, target, tables, part))
        return torch.from_numpy(target)[None]


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """For each voxel along one axis of the target, the two of the source that it lies between, and its part in each.

    `inside` says which of the two exist. What is nearest is `low` alone.
    """

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    part_low: NDArray[np.float64]
    part_high: NDArray[np.float64]
    inside_low: NDArray[np.bool_]
    inside_high: NDArray[np.bool_]

    @classmethod
    def of(cls, place: NDArray[np.float64], length: int, mode: str, padding: str, align_corners: bool) -> "_Axis":
        """Return the table for places from -1 to 1; the steps are those of torch, for the sake of the last bit."""
        at = ((place + 1) / 2) * (length - 1) if align_corners else ((place + 1) * length - 1) / 2
        if padding == "border":
            at = np.minimum(float(length - 1), np.maximum(at, 0.0))
        low = np.rint(at) if mode == "nearest" else np.floor(at)
        high = low + 1
        return cls(
            low=low.clip(0, length - 1).astype(np.intp),
            high=high.clip(0, length - 1).astype(np.intp),
            part_low=high - at,
            part_high=at - low,
            inside_low=(low >= 0) & (low < length),
            inside_high=(high >= 0) & (high < length),
        )


def _places(theta: torch.Tensor, size: Sequence[int], align_corners: bool) -> list[NDArray[np.float64]]:
    """Return for each axis where its voxels lie, as `affine_grid` has it for all voxels."""
    places = []
    for axis in range(3):
        only = [length if each == axis else 1 for each, length in enumerate(size)]
        grid = torch.nn.functional.affine_grid(theta[None], [1, 1, *only], align_corners=align_corners)
        places.append(grid.reshape(-1, 3)[:, 2 - axis].numpy())
    return places


def _interpolated(
    source: NDArray[np.float64], target: NDArray[np.float32], tables: Sequence[_Axis], part: range
) -> None:
    """Fill the planes `part` of the target; products and sums are in the order of torch, and so have its last bit."""
    first, rows, columns = tables
    across = [
        (columns.part_low, columns.low, columns.inside_low),
        (columns.part_high, columns.high, columns.inside_high),
    ]
    height = max(1, BLOCK // target.shape[3])
    for top in range(0, target.shape[2], height):
        block = slice(top, top + height)
        down = [
            (rows.part_low[block], rows.low[block], rows.inside_low[block]),
            (rows.part_high[block], rows.high[block], rows.inside_high[block]),
        ]
        pairs = [(row, column) for row in down for column in across]
        shares = [column[0][None, :] * row[0][:, None] for row, column in pairs]
        corners = [_Corner.of_tables(row[1:], column[1:], source.shape[3]) for row, column in pairs]
        weights = [np.empty_like(shares[0]) for _ in range(8)]
        product, total = np.empty_like(shares[0]), np.empty_like(shares[0])
        seen: dict[int, list[list[NDArray[np.float64]]]] = {}
        for plane in part:
            planes = (
                (first.part_low[plane], int(first.low[plane]), first.inside_low[plane]),
                (first.part_high[plane], int(first.high[plane]), first.inside_high[plane]),
            )
            needed = {index for _, index, inside in planes if inside}
            seen = {index: values for index, values in seen.items() if index in needed}
            for index in needed - seen.keys():
                seen[index] = [[corner.of(each[index]) for corner in corners] for each in source]
            weighed = [
                (index, corner, np.multiply(shares[corner], share, out=weights[4 * which + corner]))
                for which, (share, index, inside) in enumerate(planes)
                if inside
                for corner in range(4)
            ]
            for channel in range(len(source)):
                total.fill(0.0)
                for index, corner, weight in weighed:
                    np.multiply(seen[index][channel][corner], weight, out=product)
                    np.add(total, product, out=total)
                target[channel, plane, block] = total


def _nearest(source: NDArray[np.float64], target: NDArray[np.float32], tables: Sequence[_Axis], part: range) -> None:
    """Fill the planes `part` of the target with the nearest voxels."""
    first, rows, columns = tables
    corner = _Corner.of_tables((rows.low, rows.inside_low), (columns.low, columns.inside_low), source.shape[3])
    for plane in part:
        for channel, each in enumerate(source):
            target[channel, plane] = corner.of(each[first.low[plane]]) if first.inside_low[plane] else 0.0


@dataclass(frozen=True, kw_only=True)
class _Corner:
    """Where in a plane of the source the values for some rows and columns of the target lie, and which there are."""

    at: NDArray[np.intp]
    outside: NDArray[np.bool_] | None

    @classmethod
    def of_tables(cls, rows: tuple[Any, ...], columns: tuple[Any, ...], width: int) -> "_Corner":
        """Return the places of rows and columns, each given as places and whether these are inside."""
        inside = rows[1][:, None] & columns[1][None, :]
        return cls(at=rows[0][:, None] * width + columns[0][None, :], outside=None if inside.all() else ~inside)

    def of(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values of one plane, 0 where there are none."""
        values: NDArray[np.float64] = plane.ravel().take(self.at)
        if self.outside is not None:
            values[self.outside] = 0.0
        return values


def _in_parts(count: int, work: Any) -> None:
    """Have the work done on as many cores as torch uses."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(range(count))
        return
    ends = [round(count * each / threads) for each in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, range(start, end)) for start, end in pairwise(ends)]:
            done.result()


# --- after the network ----------------------------------------------------------------------------------------------


def first_greatest(values: torch.Tensor) -> torch.Tensor:
    """Return what `torch.argmax` does along the first axis, of at most 255 channels, as 8 bits [1, ...].

    As there, the first of several that are greatest wins, and what is not a number is greater than anything.
    """
    greatest = values[0]
    place = torch.zeros(values.shape[1:], dtype=torch.uint8, device=values.device)
    for index, channel in enumerate(values[1:], start=1):
        greater = torch.le(channel, greatest).logical_not_().logical_and_(~torch.isnan(greatest))
        place.masked_fill_(greater, index)
        if index + 1 < len(values):
            greatest = torch.where(greater, channel, greatest)
    return place[None]


def _discrete(
    self: Any,
    img: Any,
    argmax: bool | None = None,
    to_onehot: int | None = None,
    threshold: float | None = None,
    rounding: str | None = None,
) -> Any:
    """Stand for `AsDiscrete.__call__`: torch finds the greatest along a first axis voxel by voxel."""
    argmax = self.argmax if argmax is None else argmax
    if (
        argmax
        and (rounding or self.rounding) is None
        and not {"dim", "keepdim"} & self.kwargs.keys()
        and isinstance(img, torch.Tensor)
        and img.device.type == "cpu"
        and 1 < len(img) <= 255
    ):
        plain = img.as_tensor() if isinstance(img, MetaTensor) else img
        img, argmax = convert_to_dst_type(first_greatest(plain), img, dtype=torch.uint8)[0], False
    return _as_discrete(self, img, argmax, to_onehot, threshold, rounding)


def _largest(img: Any, connectivity: int | None = None, num_components: int = 1) -> Any:
    """Stand for `get_largest_connected_component_mask`: looks only where there is anything."""
    if not isinstance(img, torch.Tensor) or img.device.type != "cpu" or not (box := _box_of(img)):
        return _largest_component(img, connectivity, num_components)
    part = _largest_component(img[box], connectivity, num_components)
    whole = torch.zeros_like(img, dtype=part.dtype)
    whole[box] = part
    return whole


def _box_of(image: torch.Tensor) -> tuple[slice, ...]:
    """Return the box around all that is not 0; nothing where that is nothing, or no smaller than the whole."""
    box: list[slice] = []
    something = image != 0
    for axis in range(image.ndim):
        others = [each for each in range(image.ndim) if each != axis]
        found = torch.nonzero(something.any(dim=others) if others else something)
        if not len(found):
            return ()
        box.append(slice(int(found[0]), int(found[-1]) + 1))
    return () if all(each == slice(0, size) for each, size in zip(box, image.shape, strict=True)) else tuple(box)


# --- the table ------------------------------------------------------------------------------------------------------

_as_discrete = post.AsDiscrete.__call__

REPLACED: tuple[tuple[Any, str, Any, Any], ...] = (
    (spatial, "AffineTransform", AffineTransform, AlongAxes),
    (post.AsDiscrete, "__call__", _as_discrete, _discrete),
    (post, "get_largest_connected_component_mask", _largest_component, _largest),
)
"""Where, under which name, what was there, and what is in its place."""


def install() -> None:
    """Put the faster parts in place, in this process."""
    for where, name, _, faster in REPLACED:
        setattr(where, name, faster)


@contextmanager
def as_shipped() -> Iterator[None]:
    """Have MONAI's own parts in place inside."""
    now = [getattr(where, name) for where, name, _, _ in REPLACED]
    for where, name, own, _ in REPLACED:
        setattr(where, name, own)
    try:
        yield
    finally:
        for (where, name, _, _), value in zip(REPLACED, now, strict=True):
            setattr(where, name, value)
