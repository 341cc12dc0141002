"""Stacks that are no box of voxels, straightened for the model, and what it says brought back. Pure NumPy.

A CT with gantry tilt shifts sideways at each step, and some scanners leave uneven distances. Models, and the transforms
around them, take an affine for a box. So the model sees a straight copy: the same planes, shifted in their own plane
and, where their distances differ, interpolated between neighbours (linear). What it draws returns to the planes of the
source by nearest voxel, and points return exactly; the source itself never changes.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.result import Labels
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.inference.geometry import TOLERANCE_MM, usual_step

_Numbers = NDArray[np.float64]


def is_straight(geometry: Geometry) -> bool:
    """Return whether all planes lie on a grid with orthogonal axes, to within the tolerance of one."""
    even = geometry.heights[-1] / max(1, geometry.shape[0] - 1) * np.arange(geometry.shape[0])
    straight = np.outer(even, geometry.axes[:, 0])
    return bool(np.abs(geometry.positions - geometry.positions[0] - straight).max() <= 2 * TOLERANCE_MM)


@dataclass(frozen=True)
class Straightened:
    """A straight grid over the planes of `source`, in the same directions; it covers all of them."""

    source: Geometry

    @cached_property
    def geometry(self) -> Geometry:
        """The straight grid. Its planes have no instances of their own: they are numbered."""
        source = self.source
        planes, rows, columns = source.shape
        _, row_spacing, column_spacing = source.spacing
        heights = source.heights
        usual = usual_step(np.diff(heights))
        count = max(planes, round(heights[-1] / usual) + 1)
        (first_row, first_column), (last_row, last_column) = self._extent
        normal, column_direction, row_direction = source.axes.T
        affine = np.eye(4)
        affine[:3, 0] = normal * (heights[-1] / (count - 1))
        affine[:3, 1] = column_direction * row_spacing
        affine[:3, 2] = row_direction * column_spacing
        affine[:3, 3] = source.positions[0] + affine[:3, 1] * first_row + affine[:3, 2] * first_column
        return Geometry(
            shape=(count, rows + last_row - first_row, columns + last_column - first_column),
            affine_lps=affine,
            frame_of_reference_uid=source.frame_of_reference_uid,
            sop_instance_uids=("",) * count,
            frame_numbers=tuple(range(1, count + 1)),
        )

    def volume(self, volume: Volume) -> Volume:
        """Return the volume on the straight grid; where no plane reaches, it has its own smallest value."""
        fill = float(volume.voxels.min())
        voxels = np.empty(self.geometry.shape, dtype=np.float32)
        at = self._source_planes
        known: dict[int, NDArray[np.float32]] = {}
        for plane, place in enumerate(at):
            lower = min(int(place), self.source.shape[0] - 1)
            weight = float(place) - lower
            # Only the two planes that this one lies between are kept.
            known = {index: image for index, image in known.items() if index >= lower}
            for index in {lower, lower + 1} if weight > 0 else {lower}:
                if index not in known:
                    known[index] = self._shifted(volume.voxels[index], index, fill)
            voxels[plane] = known[lower]
            if weight > 0:
                voxels[plane] += np.float32(weight) * (known[lower + 1] - known[lower])
        return replace(volume, voxels=voxels, geometry=self.geometry)

    def labels(self, labels: Labels) -> Labels:
        """Return labels of the straight grid on the planes of the source, by nearest voxel."""
        if labels.shape != self.geometry.shape:
            raise ValueError(f"labels of the shape {labels.shape} do not lie on the grid {self.geometry.shape}")
        planes, rows, columns = self.source.shape
        nearest = np.rint(self.source.heights / self.geometry.spacing[0]).astype(int)
        back = np.empty(self.source.shape, dtype=labels.dtype)
        (first_row, first_column), _ = self._extent
        for plane in range(planes):
            row, column = (round(float(each)) for each in self._offsets[plane] - (first_row, first_column))
            back[plane] = labels[nearest[plane], row : row + rows, column : column + columns]
        return back

    def values(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return numbers of the straight grid on the planes of the source, interpolated linearly."""
        if values.shape != self.geometry.shape:
            raise ValueError(f"values of the shape {values.shape} do not lie on the grid {self.geometry.shape}")
        planes, rows, columns = self.source.shape
        at = np.minimum(self.source.heights / self.geometry.spacing[0], len(values) - 1)
        back = np.empty(self.source.shape, dtype=values.dtype)
        (first_row, first_column), _ = self._extent
        for plane in range(planes):
            image = _between(values, float(at[plane]))
            for axis, (offset, length) in enumerate(
                zip(self._offsets[plane] - (first_row, first_column), (rows, columns), strict=True)
            ):
                image = _between_all(image, float(offset), length, axis)
            back[plane] = image
        return back

    def point(self, position: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return where a point (plane, row, column) of the straight grid lies among the planes of the source."""
        plane, row, column = position
        height = plane * self.geometry.spacing[0]
        at = float(np.interp(height, self.source.heights, np.arange(self.source.shape[0])))
        (first_row, first_column), _ = self._extent
        steps = np.arange(self.source.shape[0])
        return (
            at,
            row + first_row - float(np.interp(at, steps, self._offsets[:, 0])),
            column + first_column - float(np.interp(at, steps, self._offsets[:, 1])),
        )

    @cached_property
    def _offsets(self) -> _Numbers:
        """How far each plane of the source is shifted against the first, in (rows, columns)."""
        apart = self.source.positions - self.source.positions[0]
        offsets: _Numbers = apart @ self.source.axes[:, 1:] / self.source.spacing[1:]
        # A millionth of a pixel is how positions are written, and no reason to widen the grid.
        return np.round(offsets, 6)

    @property
    def _extent(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First and last offset that the grid must cover, in whole (rows, columns)."""
        lowest, highest = np.floor(self._offsets.min(axis=0)), np.ceil(self._offsets.max(axis=0))
        return (int(lowest[0]), int(lowest[1])), (int(highest[0]), int(highest[1]))

    @property
    def _source_planes(self) -> _Numbers:
        """Where each plane of the grid lies among those of the source, as a fraction of their count."""
        heights = np.arange(self.geometry.shape[0]) * self.geometry.spacing[0]
        at: _Numbers = np.interp(heights, self.source.heights, np.arange(self.source.shape[0]))
        # A straight step that was computed is not the one that was read to the last bit.
        near = np.abs(at - np.rint(at)) < 1e-4
        return np.where(near, np.rint(at), at)

    def _shifted(self, image: NDArray[np.float32], plane: int, fill: float) -> NDArray[np.float32]:
        """Return a plane of the source on the rows and columns of the grid, interpolated linearly."""
        (first_row, first_column), _ = self._extent
        _, rows, columns = self.geometry.shape
        row, column = self._offsets[plane] - (first_row, first_column)
        out = np.full((rows + 1, columns + 1), fill, dtype=np.float32)
        out[int(row) : int(row) + image.shape[0], int(column) : int(column) + image.shape[1]] = image
        for axis, part in ((0, row - int(row)), (1, column - int(column))):
            before = np.roll(out, 1, axis=axis)
            out += np.float32(part) * (before - out)
        return out[:rows, :columns]


def _between(values: NDArray[Any], at: float) -> NDArray[np.float32]:
    """Return the plane of an array that lies at a fraction of its first axis."""
    lower = int(at)
    part = np.float32(at - lower)
    below: NDArray[np.float32] = values[lower].astype(np.float32)
    return below + part * (values[lower + 1] - below) if part > 0 else below


def _between_all(image: NDArray[np.float32], offset: float, length: int, axis: int) -> NDArray[np.float32]:
    """Return so many rows, or columns, of an image from a fraction of one on."""
    lower = int(offset)
    part = np.float32(offset - lower)
    below = image.take(range(lower, lower + length), axis=axis)
    if part == 0:
        return below
    above = image.take(range(lower + 1, lower + 1 + length), axis=axis, mode="clip")
    return below + part * (above - below)
