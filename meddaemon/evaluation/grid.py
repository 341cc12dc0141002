"""Stacks of planes in the patient, and how a mask on one of them is brought to another.

Arrays are [plane, row, column], coordinates LPS mm (PS3.3 C.7.6.2.1.1). Planes may lie at uneven distances or sheared.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAME_MM = 1e-3
"""Grids whose voxels lie nearer to each other than this are one grid."""
EVEN_MM = 0.06
"""How far a plane may lie from its place on an even, upright stack: scanners round positions by so much."""
MOST_VOXELS = 2**31
"""Beyond this a reference does not lie where the source is, whatever its header says."""


MOST_PLANES = 4096
"""Beyond this, planes that are not there are not thought to be left out: the distances are uneven."""


class NoOverlap(Exception):
    """The reference lies elsewhere; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """Part of a grid, and around it, as indices: from `low` up to, not including, `high` (plane, row, column)."""

    low: tuple[int, int, int]
    high: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Its lengths."""
        plane, row, column = (last - first for first, last in zip(self.low, self.high, strict=True))
        return plane, row, column

    def union(self, other: "Box | None") -> "Box":
        """Return the smallest box that holds both."""
        if other is None:
            return self
        low = tuple(min(pair) for pair in zip(self.low, other.low, strict=True))
        high = tuple(max(pair) for pair in zip(self.high, other.high, strict=True))
        return Box(low=(low[0], low[1], low[2]), high=(high[0], high[1], high[2]))

    def grown(self) -> "Box":
        """Return the box with one voxel more on each side, so that surfaces have an outside."""
        (a, b, c), (d, e, f) = self.low, self.high
        return Box(low=(a - 1, b - 1, c - 1), high=(d + 1, e + 1, f + 1))


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where voxels lie: `positions` are centres of the first voxels of the planes, (planes, 3), rising along a normal.

    `row_step` and `column_step` lead from a voxel to that of the next row and of the next column. `outer_mm` is the
    distance at which planes would follow beyond the first and the last, along the normal.
    """

    positions: NDArray[np.float64]
    row_step: NDArray[np.float64]
    column_step: NDArray[np.float64]
    rows: int
    columns: int
    outer_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        return len(self.positions), self.rows, self.columns

    @property
    def normal(self) -> NDArray[np.float64]:
        """The unit vector across the planes along which they rise."""
        across = np.cross(self.column_step, self.row_step)
        across /= np.linalg.norm(across)
        if len(self.positions) > 1 and across @ (self.positions[-1] - self.positions[0]) < 0:
            across = -across
        normal: NDArray[np.float64] = across
        return normal

    @property
    def heights(self) -> NDArray[np.float64]:
        """How far each plane lies along the normal, in mm, rising."""
        rising: NDArray[np.float64] = self.positions @ self.normal
        return rising

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Distances in mm between (planes, rows, columns) of an even and upright stack; None for any other."""
        row, column = (float(np.linalg.norm(step)) for step in (self.row_step, self.column_step))
        if abs(self.row_step @ self.column_step) > SAME_MM * row * column:
            return None
        even = self.heights[0] + np.arange(len(self.positions)) * self.outer_mm
        upright = self.positions[0] + np.outer(even - self.heights[0], self.normal)
        if np.abs(self.positions - upright).max() > EVEN_MM:
            return None
        return self.outer_mm, row, column

    def place_of(self, planes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where the first voxels of planes lie, (n, 3), also between planes and beyond the outermost."""
        index = np.arange(len(self.positions), dtype=np.float64)
        inside = np.column_stack([np.interp(planes, index, self.positions[:, axis]) for axis in range(3)])
        inside += np.outer(np.minimum(planes, 0), self._outer(0))
        beyond = np.maximum(planes - (len(self.positions) - 1), 0)
        return np.asarray(inside + np.outer(beyond, self._outer(-1)))

    def index_of(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (plane, row, column) of points in LPS mm, (n, 3), as numbers with a fraction, also beyond the grid."""
        heights, last = self.heights, len(self.positions) - 1
        at = points @ self.normal
        planes = np.interp(at, heights, np.arange(len(heights), dtype=np.float64))
        planes = planes + np.minimum(at - heights[0], 0) / self.outer_mm
        planes = planes + np.maximum(at - heights[last], 0) / self.outer_mm
        return np.column_stack([planes, self._in_plane(points - self.place_of(planes))])

    def nearest(self, points: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the voxel that points in LPS mm, (n, 3), lie in as indices (n, 3), and whether they lie in any."""
        heights = self.heights
        middle = (heights[1:] + heights[:-1]) / 2
        at = points @ self.normal
        plane = np.searchsorted(middle, at, side="right")
        in_plane = np.floor(self._in_plane(points - self.positions[plane]) + 0.5)
        half = self.outer_mm / 2
        inside = (at >= heights[0] - half) & (at < heights[-1] + half)
        inside &= ((in_plane >= 0) & (in_plane < (self.rows, self.columns))).all(axis=1)
        index = np.column_stack([plane, np.where(inside[:, None], in_plane, 0).astype(np.intp)])
        return index.astype(np.intp), np.asarray(inside)

    def voxel_volumes_mm3(self, box: Box) -> NDArray[np.float64]:
        """Return the volume of a voxel of each plane of a box in mm³; a plane reaches half-way to its neighbours."""
        planes = np.arange(box.low[0] - 1, box.high[0] + 1, dtype=np.float64)
        heights = self.place_of(planes) @ self.normal
        area = float(np.linalg.norm(np.cross(self.row_step, self.column_step)))
        volumes: NDArray[np.float64] = (heights[2:] - heights[:-2]) / 2 * area
        return volumes

    def is_same(self, other: "Grid") -> bool:
        """Return whether the voxels of both are the same."""
        if self.shape != other.shape:
            return False
        far = np.array([self.rows - 1, self.columns - 1])
        steps = np.stack([self.row_step - other.row_step, self.column_step - other.column_step])
        drift = np.abs(self.positions - other.positions).max() + np.abs(far @ np.abs(steps)).max()
        return bool(drift < SAME_MM)

    def _outer(self, end: int) -> NDArray[np.float64]:
        """Return the step beyond the first plane (0) or the last (-1), sheared as the planes there are."""
        if len(self.positions) == 1:
            return self.normal * self.outer_mm
        step = self.positions[1] - self.positions[0] if end == 0 else self.positions[-1] - self.positions[-2]
        outer: NDArray[np.float64] = step * (self.outer_mm / float(step @ self.normal))
        return outer

    def _in_plane(self, offsets: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (row, column) of offsets from the first voxel of a plane; rows and columns need not be orthogonal."""
        steps = np.column_stack([self.row_step, self.column_step])
        solved: NDArray[np.float64] = offsets @ np.linalg.pinv(steps).T
        return solved


def grid_of_affine(affine_lps: NDArray[np.float64], shape: tuple[int, int, int]) -> Grid:
    """Return the grid of an affine from (plane, row, column, 1) to LPS mm. Raises ValueError where it is singular."""
    steps = affine_lps[:3, :3]
    if not np.isfinite(affine_lps).all() or abs(np.linalg.det(steps)) < 1e-9 or min(shape) < 1:
        raise ValueError("its affine is singular: its voxels lie nowhere")
    across = np.cross(steps[:, 2], steps[:, 1])
    return Grid(
        positions=affine_lps[:3, 3] + np.outer(np.arange(shape[0]), steps[:, 0]),
        row_step=steps[:, 1],
        column_step=steps[:, 2],
        rows=shape[1],
        columns=shape[2],
        outer_mm=abs(float(across @ steps[:, 0])) / float(np.linalg.norm(across)),
    )


def grid_of_planes(
    positions: NDArray[np.float64],
    row_step: NDArray[np.float64],
    column_step: NDArray[np.float64],
    size: tuple[int, int],
    *,
    spacing_mm: float | None = None,
    thickness_mm: float | None = None,
) -> tuple[Grid, NDArray[np.intp]]:
    """Return the grid of planes in any order, and which of its planes each of them is.

    Where the planes lie at multiples of one distance, those between them that are not there belong to the grid, too:
    objects leave out the frames on which nothing is. That distance is `spacing_mm` where it is given (Spacing Between
    Slices), else the least of any two; `thickness_mm` is taken where only one plane is there. Raises ValueError where
    nobody can tell it.
    """
    normal = np.cross(column_step, row_step)
    length = float(np.linalg.norm(normal))
    if not np.isfinite(positions).all() or not length:
        raise ValueError("its planes lie nowhere")
    heights = positions @ (normal / length)
    order = np.argsort(heights, kind="stable")
    distinct = [0, *(np.flatnonzero(np.diff(heights[order]) > SAME_MM) + 1)]
    of_sorted = np.searchsorted(distinct, np.arange(len(order)), side="right") - 1
    planes = positions[order][distinct]
    rising = heights[order][distinct] - heights[order][0]
    places = np.empty(len(order), dtype=np.intp)
    places[order] = of_sorted
    if len(planes) == 1:
        apart = spacing_mm or thickness_mm
        if not apart or not np.isfinite(apart) or apart < 0:
            raise ValueError("it has one plane and does not say how thick it is (Spacing Between Slices)")
        return _planes(planes, row_step, column_step, size, apart), places
    steps = _steps(rising, spacing_mm)
    if steps is None:
        return _planes(planes, row_step, column_step, size, float(np.diff(rising).mean())), places
    every = np.arange(steps[-1] + 1, dtype=np.float64)
    filled = np.column_stack([np.interp(every, steps, planes[:, axis]) for axis in range(3)])
    places[order] = steps[of_sorted]
    return _planes(filled, row_step, column_step, size, float(rising[-1] / steps[-1])), places


def _steps(rising: NDArray[np.float64], spacing_mm: float | None) -> NDArray[np.intp] | None:
    """Return how many steps of one distance each plane lies above the first; None where there is no such distance."""
    for step in (spacing_mm, float(np.diff(rising).min())):
        if step is None or not np.isfinite(step) or step <= 2 * EVEN_MM:
            continue
        steps = np.rint(rising / step)
        if steps[-1] > MOST_PLANES or (np.diff(steps) < 1).any():
            continue
        exact = float(rising[-1] / steps[-1])
        # Of two planes, any distance is a part that is near enough: it must be the one that is said.
        if abs(exact - step) <= EVEN_MM and np.abs(rising - steps * exact).max() <= EVEN_MM:
            return steps.astype(np.intp)
    return None


def _planes(
    positions: NDArray[np.float64],
    row_step: NDArray[np.float64],
    column_step: NDArray[np.float64],
    size: tuple[int, int],
    outer_mm: float,
) -> Grid:
    rows, columns = size
    return Grid(
        positions=positions,
        row_step=row_step,
        column_step=column_step,
        rows=rows,
        columns=columns,
        outer_mm=outer_mm,
    )


def extent(mask: NDArray[np.bool_]) -> Box | None:
    """Return the box of what is drawn; None where nothing is."""
    sides = []
    for axis in range(3):
        others = tuple(each for each in range(3) if each != axis)
        drawn = np.flatnonzero(mask.any(axis=others))
        if not len(drawn):
            return None
        sides.append((int(drawn[0]), int(drawn[-1]) + 1))
    (a, d), (b, e), (c, f) = sides
    return Box(low=(a, b, c), high=(d, e, f))


def extent_on(mask: NDArray[np.bool_], grid: Grid, other: Grid) -> Box | None:
    """Return the box on another grid in which everything lies that is drawn on this one; None where nothing is."""
    box = extent(mask)
    if box is None:
        return None
    planes = np.arange(box.low[0] - 1, box.high[0] + 1, dtype=np.float64)
    edges = np.array([(row, column) for row in (box.low[1], box.high[1]) for column in (box.low[2], box.high[2])]) - 0.5
    offsets = edges @ np.stack([grid.row_step, grid.column_step])
    corners = (grid.place_of(planes)[:, None, :] + offsets[None]).reshape(-1, 3)
    found = other.index_of(corners)
    low, high = np.floor(found.min(axis=0)).astype(int), np.ceil(found.max(axis=0)).astype(int) + 1
    return Box(low=(int(low[0]), int(low[1]), int(low[2])), high=(int(high[0]), int(high[1]), int(high[2])))


def cut(mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    """Return a mask within a box, which may reach beyond it: nothing is drawn there."""
    out = np.zeros(box.shape, dtype=np.bool_)
    inside, there = [], []
    for first, last, length in zip(box.low, box.high, mask.shape, strict=True):
        begin, end = max(first, 0), min(last, length)
        if begin >= end:
            return out
        there.append(slice(begin, end))
        inside.append(slice(begin - first, end - first))
    out[tuple(inside)] = mask[tuple(there)]
    return out


def resample(mask: NDArray[np.bool_], grid: Grid, onto: Grid, box: Box) -> NDArray[np.bool_]:
    """Return a mask in a box of another grid: each voxel there is what its centre lies in here (nearest neighbour)."""
    out = np.zeros(box.shape, dtype=np.bool_)
    rows, columns = np.meshgrid(
        np.arange(box.low[1], box.high[1]), np.arange(box.low[2], box.high[2]), indexing="ij", copy=False
    )
    offsets = rows.reshape(-1, 1) * onto.row_step + columns.reshape(-1, 1) * onto.column_step
    places = onto.place_of(np.arange(box.low[0], box.high[0], dtype=np.float64))
    for plane, place in enumerate(places):
        index, inside = grid.nearest(place + offsets)
        taken = mask[index[:, 0], index[:, 1], index[:, 2]] & inside
        out[plane] = taken.reshape(box.shape[1:])
    return out


def brought_together(
    result: NDArray[np.bool_], source: Grid, reference: NDArray[np.bool_], drawn_on: Grid
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Box]:
    """Return result and reference on the grid of the source, in the box that holds both, and one voxel around them.

    Where the reference reaches beyond the source, so does the grid: nothing of it is lost. Raises NoOverlap where it
    lies elsewhere altogether.
    """
    if source.is_same(drawn_on):
        boxes = [extent(result), extent(reference)]
    else:
        boxes = [extent(result), extent_on(reference, drawn_on, source)]
        _refuse_elsewhere(boxes[1], source)
    known = [box for box in boxes if box is not None]
    if not known:
        empty = Box(low=(0, 0, 0), high=(1, 1, 1))
        return np.zeros(empty.shape, bool), np.zeros(empty.shape, bool), empty
    box = known[0].union(known[-1]).grown()
    if np.prod(box.shape, dtype=np.float64) > MOST_VOXELS:
        raise NoOverlap("the reference reaches too far beyond the source to lie in the same patient")
    if source.is_same(drawn_on):
        return cut(result, box), cut(reference, box), box
    return cut(result, box), resample(reference, drawn_on, source, box), box


def _refuse_elsewhere(box: Box | None, source: Grid) -> None:
    if box is None:
        return
    outside = [
        last <= 0 or first >= length for first, last, length in zip(box.low, box.high, source.shape, strict=True)
    ]
    if any(outside):
        raise NoOverlap(
            f"what is drawn in the reference lies at planes {box.low[0]} to {box.high[0]}, rows {box.low[1]} to "
            f"{box.high[1]}, columns {box.low[2]} to {box.high[2]} of the source, which has {source.shape[0]} × "
            f"{source.shape[1]} × {source.shape[2]}: is it of this patient, and is its orientation right?"
        )
