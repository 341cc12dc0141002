"""What can be measured on a segment: the mesh around it, how long and wide it is, what values lie in it.

Masks are [plane, row, column]; lengths are mm in the patient, whatever the spacing, the obliquity, the tilt of a gantry
or the distances between planes. The mesh is that of marching cubes at half-way between voxels inside and outside, as
the Image Biomarker Standardisation Initiative defines surface area and diameter of a mesh (IBSI C0JK, L0JK); where four
crossings of a face leave a choice, voxels that touch at an edge only are two things.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.result import Drawing
from meddaemon.domain.volume import Geometry

Mask: TypeAlias = NDArray[np.bool_]
Place: TypeAlias = tuple[slice, slice, slice]
"""The planes, rows and columns that hold something."""
Points: TypeAlias = NDArray[np.float64]

_CORNERS = tuple(product((0, 1), repeat=3))
"""Corners of a cube of eight voxels, (plane, row, column); the first is bit 0 of its pattern."""


_DIRECTIONS = 8
"""In which the planes are looked at, to know which of them may have the longest diameter."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How large a segment is, in mm and mm².

    `long_axis` is the longest diameter within any plane, `short_axis` the longest one at a right angle to it in the
    same plane; `diameter` is the longest in space.
    """

    surface: float
    diameter: float
    long_axis: float
    short_axis: float


@dataclass(frozen=True, kw_only=True)
class Intensities:
    """The values within a segment; the deviation is that of a sample, and 0 for a single voxel."""

    mean: float
    deviation: float
    minimum: float
    maximum: float


def extent(mask: Mask, geometry: Geometry) -> Extent | None:
    """Return how large a segment is; None for an empty one. `mask` has the shape of `geometry`."""
    place = place_of(mask)
    if place is None:
        return None
    within, first = mask[place], place[0].start
    long_axis, short_axis = axes(within, geometry)
    return Extent(
        surface=surface(within, geometry, first),
        diameter=diameter(within, geometry, first),
        long_axis=long_axis,
        short_axis=short_axis,
    )


def place_of(mask: Mask) -> Place | None:
    """Return the least box around a segment; None around an empty one."""
    planes = np.flatnonzero(mask.any(axis=(1, 2)))
    if not planes.size:
        return None
    within = mask[planes[0] : planes[-1] + 1]
    rows, columns = (np.flatnonzero(within.any(axis=axis)) for axis in ((0, 2), (0, 1)))
    first, second, third = (slice(int(each[0]), int(each[-1]) + 1) for each in (planes, rows, columns))
    return first, second, third


def places_of(labels: NDArray[np.integer], count: int) -> list[Place | None]:
    """Return the least box around each of the labels from 1 to `count`, found in one pass; None around none."""
    from scipy import ndimage  # noqa: PLC0415  takes 0.2 s, and not every model needs it

    return [None if place is None else (place[0], place[1], place[2]) for place in ndimage.find_objects(labels, count)]


def segment_places(drawing: Drawing, count: int) -> list[Place | None]:
    """Return the least box around each of the segments from 1 to `count`."""
    if drawing.labels is not None:
        return places_of(drawing.labels, count)
    return [] if drawing.masks is None else [place_of(mask) for mask in drawing.masks[:count]]


def segment_within(drawing: Drawing, number: int, place: Place) -> Mask:
    """Return where a segment lies within a box. Raises ValueError where nothing was drawn."""
    if drawing.labels is not None:
        inside: Mask = drawing.labels[place] == number
        return inside
    if drawing.masks is None:
        raise ValueError("nothing was drawn")
    mask: Mask = drawing.masks[number - 1]
    return mask[place]


def surface(mask: Mask, geometry: Geometry, first: int = 0) -> float:
    """Return the area of the mesh around a segment in mm².

    `mask` may be a part of the grid that holds all of it; `first` is the plane on which that begins.
    """
    steps = _steps(geometry)[first : first + len(mask) + 1]
    return _surface(mask, steps, geometry.affine_lps[:3, 1:3])


def diameter(mask: Mask, geometry: Geometry, first: int = 0) -> float:
    """Return the longest diameter of a segment that is not empty in mm; see `surface`."""
    steps = _steps(geometry)[first : first + len(mask) + 1]
    return _longest(_placed(_outermost(mask), steps, geometry.affine_lps[:3, 1:3]))


def axes(mask: Mask, geometry: Geometry) -> tuple[float, float]:
    """Return the longest diameter within any plane, and the longest at a right angle to it there; see `surface`."""
    points = np.concatenate([_ends(mask, 1), _ends(mask, 2)])
    points = points[np.argsort(points[:, 0], kind="stable")]
    starts = np.flatnonzero(np.diff(points[:, 0], prepend=-1.0))
    placed = points[:, 1:] @ _flat(geometry.affine_lps[:3, 1:3])
    planes = np.split(placed, starts[1:])
    longest = (0.0, 0.0)
    # The plane of the farthest reach first: those that cannot have what was found are not looked at.
    reaches = _reaches(placed, starts)
    for plane in np.argsort(-reaches):
        if reaches[plane] < longest[0]:
            break
        longest = max(longest, _axes(planes[plane]))
    return longest


def intensities(mask: Mask, voxels: NDArray[np.float32] | NDArray[np.int16]) -> Intensities | None:
    """Return what values of `voxels`, of the shape of `mask`, lie in a segment; None for an empty one."""
    # Twice plane by plane: nothing as long as the volume is made in double precision.
    values = [plane[inside] for plane, inside in zip(voxels, mask, strict=True) if inside.any()]
    if not values:
        return None
    count = sum(each.size for each in values)
    mean = sum(float(each.sum(dtype=np.float64)) for each in values) / count
    squares = sum(float(((each - mean) ** 2).sum(dtype=np.float64)) for each in values)
    return Intensities(
        mean=mean,
        deviation=float(np.sqrt(squares / (count - 1))) if count > 1 else 0.0,
        minimum=float(min(each.min() for each in values)),
        maximum=float(max(each.max() for each in values)),
    )


def components(mask: Mask, *, touching: int = 3) -> tuple[NDArray[np.int32], int]:
    """Return the connected parts of a mask, numbered from 1 in the order of their first voxels, and how many.

    Voxels are connected that share a face (`touching` 1), an edge (2) or a corner (3, 26 neighbours).
    """
    from scipy import ndimage  # noqa: PLC0415  as above

    parts = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, ndimage.generate_binary_structure(3, touching), output=parts)
    return parts, int(count)


def _steps(geometry: Geometry) -> Points:
    """Return the way from each plane to the next, (planes + 1, 3), those before the first and beyond the last too."""
    steps = np.diff(geometry.positions, axis=0)
    if not len(steps):
        steps = geometry.affine_lps[:3, 0][np.newaxis]
    return np.concatenate([steps[:1], steps, steps[-1:]])


def _surface(mask: Mask, steps: Points, in_plane: Points) -> float:
    """Return the area of the mesh; `steps` lead to the first plane, between the planes, and away from the last."""
    rows, columns = mask.shape[1:]
    empty = np.zeros((rows + 2, columns + 2), np.uint8)
    below, area = empty, 0.0
    for step, above in zip(steps, [*(np.pad(plane, 1).astype(np.uint8) for plane in mask), empty], strict=True):
        patterns = np.zeros((rows + 1, columns + 1), np.uint8)
        for bit, (plane, row, column) in enumerate(_CORNERS):
            corner = (above if plane else below)[row : row + rows + 1, column : column + columns + 1]
            patterns |= corner << np.uint8(bit)
        counts = np.bincount(patterns.ravel(), minlength=256)
        area += float(counts @ _areas(tuple(np.column_stack([step, in_plane]).ravel())))
        below = above
    return area


@lru_cache(maxsize=1024)
def _areas(axes: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the area in mm² of the mesh within a cube, for each of 256 patterns of its corners.

    `axes` are the rows of a matrix (3, 3) whose columns lead from a voxel to the next plane, row and column in mm.
    """
    to_mm = np.array(axes).reshape(3, 3).T
    areas = np.zeros(256)
    for patterns, polygons in _polygons():
        np.add.at(areas, patterns, _tightest(polygons @ to_mm))
    return areas


@lru_cache(maxsize=1)
def _polygons() -> tuple[tuple[NDArray[np.intp], Points], ...]:
    """Return all polygons of all patterns, those of as many points together: their patterns, and points (n, k, 3)."""
    found: dict[int, list[tuple[int, Points]]] = {}
    for pattern in range(256):
        for loop in _loops(pattern):
            found.setdefault(len(loop), []).append((pattern, loop))
    return tuple(
        (np.array([pattern for pattern, _ in each]), np.stack([loop for _, loop in each])) for each in found.values()
    )


def _loops(pattern: int) -> Iterator[Points]:
    """Yield the polygons that part the corners of a cube inside from those outside, their points between voxels."""
    inside = [bool(pattern >> bit & 1) for bit in range(8)]
    joined: dict[frozenset[int], list[frozenset[int]]] = {}
    for face in _faces():
        for one, other in _segments(list(face), inside):
            joined.setdefault(one, []).append(other)
            joined.setdefault(other, []).append(one)
    while joined:
        start = next(iter(joined))
        loop, at = [start], joined.pop(start)[0]
        while at != start:
            loop.append(at)
            at = next((each for each in joined.pop(at) if each in joined), start)
        yield np.array([np.mean([_CORNERS[corner] for corner in edge], axis=0) for edge in loop])


def _faces() -> Iterator[tuple[int, int, int, int]]:
    """Yield the corners of each face of a cube, around it."""
    for axis, side in product(range(3), (0, 1)):
        around = [[0, 0], [0, 1], [1, 1], [1, 0]]
        corners = [[*pair[:axis], side, *pair[axis:]] for pair in around]
        first, second, third, fourth = (_CORNERS.index((plane, row, column)) for plane, row, column in corners)
        yield first, second, third, fourth


def _segments(face: list[int], inside: list[bool]) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    """Yield the lines on a face between the crossings of its edges."""
    edges = [frozenset((face[index - 1], face[index])) for index in range(4)]
    crossed = [len({inside[corner] for corner in edge}) == 2 for edge in edges]
    if sum(crossed) == 2:
        one, other = (edge for edge, is_crossed in zip(edges, crossed, strict=True) if is_crossed)
        yield one, other
    elif sum(crossed) == 4:
        # Each corner inside is cut off by itself; edge i ends where edge i + 1 begins.
        for index in range(4):
            if inside[face[index]]:
                yield edges[index], edges[(index + 1) % 4]


def _tightest(polygons: Points) -> NDArray[np.float64]:
    """Return the least area of the fans of triangles that fill each of (n, k, 3): the same however it is turned."""
    fans = []
    for start in range(polygons.shape[1]):
        around = np.roll(polygons, -start, axis=1) - polygons[:, start : start + 1]
        fans.append(np.linalg.norm(np.cross(around[:, 1:-1], around[:, 2:]), axis=2).sum(axis=1) / 2)
    least: NDArray[np.float64] = np.min(fans, axis=0)
    return least


def _outermost(mask: Mask) -> Points:
    """Return points of the mesh in voxels, (n, 3), among them all that lie outermost: the ends of every line."""
    return np.concatenate([_ends(mask, axis) for axis in range(3)])


def _ends(mask: Mask, axis: int) -> Points:
    """Return where each line along an axis enters a segment first and leaves it last, in voxels, (n, 3)."""
    others = [each for each in range(3) if each != axis]
    there = mask.any(axis=axis)
    lines = np.argwhere(there)
    points = np.empty((2, len(lines), 3))
    points[:, :, others] = lines
    points[0, :, axis] = mask.argmax(axis=axis)[there] - 0.5
    points[1, :, axis] = mask.shape[axis] - np.flip(mask, axis).argmax(axis=axis)[there] - 0.5
    return points.reshape(-1, 3)


def _placed(points: Points, steps: Points, in_plane: Points) -> Points:
    """Return points in voxels as points in mm; `steps` are those of `_surface`."""
    positions = np.cumsum(np.concatenate([-steps[:1], steps]), axis=0)
    below = np.floor(points[:, 0]).astype(int)
    between = (points[:, 0] - below)[:, np.newaxis]
    placed: Points = positions[below + 1] + between * steps[below + 1] + points[:, 1:] @ in_plane.T
    return placed


def _longest(points: Points) -> float:
    """Return the greatest distance between two of the points."""
    from scipy.spatial import ConvexHull, distance  # noqa: PLC0415  as above

    return float(distance.pdist(points[ConvexHull(points).vertices]).max())


def _flat(in_plane: Points) -> Points:
    """Return a matrix (2, 2) that leads from rows and columns to mm along two axes at right angles within a plane."""
    row, column = in_plane.T
    along = row / np.linalg.norm(row)
    aside = column - (column @ along) * along
    return np.array([[np.linalg.norm(row), 0.0], [column @ along, np.linalg.norm(aside)]])


def _reaches(points: Points, starts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return for each plane how long a diameter in it may be at most; its points begin at one of `starts`."""
    angles = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    seen = points @ np.stack([np.cos(angles), np.sin(angles)])
    widths = np.maximum.reduceat(seen, starts) - np.minimum.reduceat(seen, starts)
    # No diameter is farther than half a step from one of the directions.
    reaches: NDArray[np.float64] = widths.max(axis=1) / np.cos(np.pi / _DIRECTIONS / 2) * (1 + 1e-9)
    return reaches


def _axes(points: Points) -> tuple[float, float]:
    """Return the longest diameter of points in a plane, in mm, and the longest at a right angle to it."""
    from scipy.spatial import ConvexHull, distance  # noqa: PLC0415  as above

    hull = points[ConvexHull(points).vertices]
    apart = distance.squareform(distance.pdist(hull))
    one, other = np.unravel_index(apart.argmax(), apart.shape)
    direction = (hull[other] - hull[one]) / apart[one, other]
    turned = np.column_stack([hull @ direction, hull @ [-direction[1], direction[0]]])
    return float(apart[one, other]), _widest(turned - turned[one])


def _widest(hull: Points) -> float:
    """Return the longest chord of a convex polygon across its first axis; it ends at one of the corners."""
    following = np.roll(hull, -1, axis=0)
    widest = 0.0
    for at in hull[:, 0]:
        low, high = np.minimum(hull[:, 0], following[:, 0]), np.maximum(hull[:, 0], following[:, 0])
        crossed = (low <= at) & (at <= high)
        start, end = hull[crossed], following[crossed]
        length = end[:, 0] - start[:, 0]
        share = np.divide(at - start[:, 0], length, out=np.zeros_like(length), where=length != 0)
        heights = np.concatenate([start[:, 1] + share * (end[:, 1] - start[:, 1]), end[length == 0, 1]])
        widest = max(widest, float(np.ptp(heights)))
    return widest
