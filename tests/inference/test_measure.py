"""Measurements of segments, held against closed forms, brute force and SimpleITK."""

from itertools import combinations, product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own name
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from skimage.measure import marching_cubes, mesh_surface_area

from meddaemon.domain.volume import Geometry
from meddaemon.inference.measure import Extent, components, extent, intensities

SPACING = (3.0, 0.7, 1.1)
OBLIQUE = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]


def geometry(
    shape: tuple[int, ...], axes: NDArray[np.float64] | None = None, positions: NDArray[np.float64] | None = None
) -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE * SPACING if axes is None else axes
    planes, rows, columns = shape
    return Geometry(
        shape=(planes, rows, columns),
        affine_lps=affine,
        frame_of_reference_uid="1.2",
        sop_instance_uids=("1.3",) * planes,
        frame_numbers=(1,) * planes,
        positions_lps=positions,
    )


def measured(mask: NDArray[np.bool_], place: Geometry | None = None) -> Extent:
    found = extent(mask, place or geometry(mask.shape))
    assert found is not None
    return found


masks = arrays.arrays(np.bool_, st.tuples(*[st.integers(1, 4)] * 3)).filter(lambda mask: bool(mask.any()))


def between(mask: NDArray[np.bool_], axes: tuple[int, ...] = (0, 1, 2)) -> list[tuple[float, ...]]:
    """Every point half-way between a voxel inside and its neighbour outside, in voxels."""
    padded = np.pad(mask, 1)
    points = []
    for voxel in np.argwhere(padded):
        for axis, side in product(axes, (-1, 1)):
            step = np.zeros(3, int)
            step[axis] = side
            if not padded[tuple(voxel + step)]:
                points.append(tuple(map(float, voxel - 1 + step / 2)))
    return points


def test_a_box_and_a_voxel() -> None:
    box = np.zeros((6, 7, 8), np.bool_)
    box[1:5, 1:6, 1:7] = True
    found = measured(box, geometry(box.shape, np.eye(3)))
    # Its corners and edges are cut at half a voxel.
    cut = (5 * 6 + 4 * 6 + 4 * 5) * 2
    faces = 2 * (4 * 5 + 5 * 3 + 4 * 3)
    edges = 4 * (3 + 4 + 5) * np.sqrt(0.5)
    corners = 8 * np.sqrt(3) / 8
    assert faces < found.surface < cut
    planes, rows, columns = 4, 5, 6
    inner = 2 * ((planes - 1) * (rows - 1) + (rows - 1) * (columns - 1) + (planes - 1) * (columns - 1))
    assert found.surface == pytest.approx(inner + edges + corners)
    voxel = np.zeros((3, 3, 3), np.bool_)
    voxel[1, 1, 1] = True
    a, b, c = (each / 2 for each in SPACING)
    octahedron = 4 * np.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2)
    assert measured(voxel) == Extent(
        surface=pytest.approx(octahedron), diameter=pytest.approx(3.0), long_axis=pytest.approx(1.1),
        short_axis=pytest.approx(0.7),
    )  # fmt: skip
    assert extent(np.zeros((3, 3, 3), np.bool_), geometry((3, 3, 3))) is None


def test_a_ball_measures_what_others_measure() -> None:
    shape, radius = (24, 96, 64), 30.0
    grid = np.meshgrid(
        *[(np.arange(size) - size / 2 + 0.3) * step for size, step in zip(shape, SPACING, strict=True)], indexing="ij"
    )
    ball = sum(each**2 for each in grid) < radius**2
    found = measured(ball)
    vertices, faces, _, _ = marching_cubes(np.pad(ball, 1).astype(float), 0.5, spacing=SPACING, method="lorensen")
    assert found.surface == pytest.approx(mesh_surface_area(vertices, faces), rel=0.01)
    image = sitk.GetImageFromArray(ball.astype(np.uint8))
    image.SetSpacing(SPACING[::-1])
    statistics = sitk.LabelShapeStatisticsImageFilter()
    statistics.ComputeFeretDiameterOn()
    statistics.Execute(image)
    # Between centres of voxels there, between their borders here.
    assert 0 <= found.diameter - statistics.GetFeretDiameter(1) <= np.linalg.norm(SPACING)
    for axis in (found.long_axis, found.short_axis):
        assert axis == pytest.approx(2 * radius, abs=np.linalg.norm(SPACING[1:]))


@given(masks)
@settings(max_examples=60, deadline=None)
def test_diameters_are_the_longest_of_all(mask: NDArray[np.bool_]) -> None:
    place = geometry(mask.shape)
    points = [np.array(place.point(*point)) for point in between(mask)]
    longest = max(float(np.linalg.norm(one - other)) for one, other in combinations(points, 2))
    found = measured(mask, place)
    assert found.diameter == pytest.approx(longest)
    in_planes = [
        max(
            float(np.linalg.norm((np.array(one) - other) * SPACING))
            for one, other in combinations([each for each in between(mask, (1, 2)) if each[0] == plane], 2)
        )
        for plane in np.flatnonzero(mask.any(axis=(1, 2)))
    ]
    assert found.long_axis == pytest.approx(max(in_planes))
    assert 0 < found.short_axis <= found.long_axis + 1e-9


@given(masks, st.permutations(range(3)), st.sets(st.integers(0, 2)), st.floats(0.5, 4))
@settings(max_examples=60, deadline=None)
def test_turning_changes_nothing_and_scale_what_it_must(
    mask: NDArray[np.bool_], order: list[int], flipped: set[int], scale: float
) -> None:
    axes = OBLIQUE * SPACING
    as_given = measured(mask, geometry(mask.shape, axes))
    turned = np.flip(mask, tuple(flipped)).transpose(order)
    found = measured(
        turned, geometry(turned.shape, (axes * [-1 if axis in flipped else 1 for axis in range(3)])[:, order])
    )
    assert found.surface == pytest.approx(as_given.surface)
    assert found.diameter == pytest.approx(as_given.diameter)
    scaled = measured(mask, geometry(mask.shape, axes * scale))
    assert scaled.surface == pytest.approx(as_given.surface * scale**2)
    assert (scaled.diameter, scaled.long_axis, scaled.short_axis) == pytest.approx(
        (as_given.diameter * scale, as_given.long_axis * scale, as_given.short_axis * scale)
    )


@given(masks, st.lists(st.floats(0.5, 5), min_size=4, max_size=4), st.floats(-0.6, 0.6))
@settings(max_examples=40, deadline=None)
def test_tilted_and_uneven_planes_lie_where_they_lie(
    mask: NDArray[np.bool_], distances: list[float], shift: float
) -> None:
    """The mesh goes through the points half-way between planes, wherever these are."""
    axes = OBLIQUE * SPACING
    normal, row = OBLIQUE[:, 0], OBLIQUE[:, 1]
    heights = np.concatenate([[0.0], np.cumsum(distances)])[: len(mask)]
    positions = np.outer(heights, normal + shift * row)
    place = geometry(mask.shape, axes, positions if len(mask) > 1 else None)
    points = [np.array(place.point(*point)) for point in between(mask)]
    longest = max(float(np.linalg.norm(one - other)) for one, other in combinations(points, 2))
    assert measured(mask, place).diameter == pytest.approx(longest)


@given(masks)
@settings(max_examples=40, deadline=None)
def test_things_apart_measure_what_they_measure_alone(mask: NDArray[np.bool_]) -> None:
    twice = np.concatenate([np.pad(mask, 1)] * 2)
    assert measured(twice).surface == pytest.approx(2 * measured(mask).surface)


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_intensities_are_those_of_simpleitk(dtype: type) -> None:
    random = np.random.default_rng(1)
    voxels = random.normal(40, 300, (7, 20, 30)).astype(dtype)
    mask = random.random(voxels.shape) < 0.2
    found = intensities(mask, voxels)
    assert found is not None
    statistics = sitk.LabelIntensityStatisticsImageFilter()
    statistics.Execute(sitk.GetImageFromArray(mask.astype(np.uint8)), sitk.GetImageFromArray(voxels))
    assert found.mean == pytest.approx(statistics.GetMean(1))
    assert found.deviation == pytest.approx(statistics.GetStandardDeviation(1))
    assert (found.minimum, found.maximum) == pytest.approx((statistics.GetMinimum(1), statistics.GetMaximum(1)))
    assert intensities(np.zeros_like(mask), voxels) is None
    one = np.zeros_like(mask)
    one[3, 4, 5] = True
    alone = intensities(one, voxels)
    assert alone is not None
    assert (alone.mean, alone.deviation) == (voxels[3, 4, 5], 0.0)


@given(arrays.arrays(np.bool_, st.tuples(*[st.integers(1, 5)] * 3)), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_components_are_connected_and_apart(mask: NDArray[np.bool_], touching: int) -> None:
    parts, count = components(mask, touching=touching)
    assert set(np.unique(parts[mask]).tolist()) == set(range(1, count + 1))
    assert not parts[~mask].any()
    voxels = {tuple(voxel): int(parts[tuple(voxel)]) for voxel in np.argwhere(mask)}
    neighbours = [each for each in product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, each)) <= touching]
    for voxel, part in voxels.items():
        for neighbour in neighbours:
            beside = tuple(int(a + b) for a, b in zip(voxel, neighbour, strict=True))
            assert voxels.get(beside, part) == part
    # A part that fell into two would be reached from its first voxel only in part.
    for part in range(1, count + 1):
        members = {voxel for voxel, other in voxels.items() if other == part}
        reached, waiting = set(), [min(members)]
        while waiting:
            voxel = waiting.pop()
            reached.add(voxel)
            beside_all = {tuple(int(a + b) for a, b in zip(voxel, each, strict=True)) for each in neighbours}
            waiting += (beside_all & members) - reached
        assert reached == members
