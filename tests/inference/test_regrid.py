"""Stacks that are no box: straightened for a model and brought back, exactly where that is possible."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_geometry import rotations, stack

from meddaemon.domain.contract import GeometryPolicy, Unevenness
from meddaemon.domain.errors import UnsoundVolume
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.inference.geometry import Plane, arrange
from meddaemon.inference.regrid import Straightened, is_straight

TAKES_ALL = GeometryPolicy(tilt=Unevenness.RESAMPLE, irregular=Unevenness.RESAMPLE)


def uneven(rotation: np.ndarray, steps: list[float], tilt: tuple[float, float]) -> list[Plane]:
    """Planes at heights that rise by `steps`, each shifted in its plane by `tilt` times its height."""
    heights = np.cumsum([0.0, *steps])
    planes = stack(len(heights), rotation=rotation)
    shift = heights[:, None] * (tilt[0] * rotation[:, 0] + tilt[1] * rotation[:, 1])
    positions = np.array([-100.0, -80.0, 30.0]) + heights[:, None] * rotation[:, 2] + shift
    return [replace(plane, position=tuple(map(float, at))) for plane, at in zip(planes, positions, strict=True)]


STEPS = st.integers(3, 12).flatmap(
    lambda count: st.floats(0.5, 5.0).flatmap(
        lambda usual: st.lists(st.floats(0.6 * usual, 1.4 * usual), min_size=count, max_size=count)
    )
)
TILTS = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5))


@settings(max_examples=150)
@given(rotation=rotations(), steps=STEPS, tilt=TILTS, order=st.randoms())
def test_every_plane_keeps_its_place_whatever_the_stack(
    rotation: np.ndarray, steps: list[float], tilt: tuple[float, float], order: object
) -> None:
    planes = uneven(rotation, steps, tilt)
    mixed = list(planes)
    order.shuffle(mixed)  # type: ignore[attr-defined]
    geometry, _ = arrange(mixed, TAKES_ALL)
    assert geometry.sop_instance_uids == tuple(plane.sop_instance_uid for plane in planes)
    assert np.abs(geometry.positions - [plane.position for plane in planes]).max() <= 1e-3


@given(rotation=rotations(), digits=st.integers(2, 4), order=st.randoms())
def test_positions_that_a_scanner_rounded_are_kept_to_the_last_digit(
    rotation: np.ndarray, digits: int, order: object
) -> None:
    planes = [
        replace(plane, position=tuple(round(each, digits) for each in plane.position))
        for plane in stack(9, 2.5, rotation=rotation)
    ]
    mixed = list(planes)
    order.shuffle(mixed)  # type: ignore[attr-defined]
    geometry, _ = arrange(mixed)
    assert np.abs(geometry.positions - [plane.position for plane in planes]).max() <= 1e-3
    assert is_straight(geometry)


@settings(max_examples=60, deadline=None)
@given(rotation=rotations(), steps=STEPS, tilt=TILTS)
def test_what_is_linear_in_space_is_straightened_exactly(
    rotation: np.ndarray, steps: list[float], tilt: tuple[float, float]
) -> None:
    """A value that grows evenly through space is the same at the same place, wherever the source reaches."""
    geometry, _ = arrange(uneven(rotation, steps, tilt), TAKES_ALL)
    slope = np.array([0.7, -1.3, 0.4])
    volume = volume_of(geometry, lambda at: at @ slope)
    straight = Straightened(geometry)
    values = straight.volume(volume)
    assert np.allclose(
        straight.geometry.affine_lps[:3, :3].T @ straight.geometry.affine_lps[:3, :3],
        np.diag(np.square(straight.geometry.spacing)),
        atol=1e-6,
    )
    wanted = volume_of(values.geometry, lambda at: at @ slope).voxels
    inside = covered(straight)
    assert inside.any()
    assert np.abs(values.voxels - wanted)[inside].max() < 2e-3


@settings(max_examples=60, deadline=None)
@given(rotation=rotations(), steps=STEPS, tilt=TILTS)
def test_what_is_drawn_returns_to_its_place(
    rotation: np.ndarray, steps: list[float], tilt: tuple[float, float]
) -> None:
    """Labels come back from no farther than half a voxel along each axis of the grid; points to the same place."""
    geometry, _ = arrange(uneven(rotation, steps, tilt), TAKES_ALL)
    straight = Straightened(geometry)
    grid = straight.geometry
    indices = np.indices(grid.shape).reshape(3, -1).T
    numbered = np.arange(1, len(indices) + 1, dtype=np.uint16).reshape(grid.shape)
    back = straight.labels(numbered)
    taken = indices[back.astype(int).ravel() - 1]
    places = (grid.affine_lps[:3, :3] @ taken.T).T + grid.affine_lps[:3, 3]
    apart = (places - centres(geometry).reshape(-1, 3)) @ grid.axes / grid.spacing
    assert np.abs(apart).max() <= 0.5 + 1e-3
    rows, columns = geometry.shape[1:]
    for plane in range(geometry.shape[0]):
        point = inverse(grid, centres(geometry)[plane, rows - 1, columns - 2])
        assert np.allclose(straight.point(point), (plane, rows - 1, columns - 2), atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(rotation=rotations(), steps=STEPS, tilt=TILTS)
def test_numbers_that_are_linear_in_space_return_exactly(
    rotation: np.ndarray, steps: list[float], tilt: tuple[float, float]
) -> None:
    """What a model says of each voxel of the grid is the same at the same place of the source, between voxels too."""
    geometry, _ = arrange(uneven(rotation, steps, tilt), TAKES_ALL)
    straight = Straightened(geometry)
    slope = np.array([0.7, -1.3, 0.4])
    back = straight.values(volume_of(straight.geometry, lambda at: at @ slope).voxels)
    assert back.dtype == np.float32
    assert np.abs(back - centres(geometry) @ slope).max() < 2e-3
    assert straight.values(np.ones(straight.geometry.shape, np.float16)).dtype == np.float16
    with pytest.raises(ValueError, match="do not lie on the grid"):
        straight.values(np.ones((1, 2, 3), np.float32))


def test_a_box_needs_no_straightening_and_a_tilted_stack_does() -> None:
    box, _ = arrange(stack(6))
    tilted, _ = arrange(uneven(np.eye(3), [2.0] * 5, (0.0, 0.3)), TAKES_ALL)
    assert is_straight(box)
    assert not is_straight(tilted)
    assert tilted.positions_lps is None  # the affine says it all
    assert tilted.spacing[0] == pytest.approx(2.0)
    assert tilted.voxel_volumes_mm3 == pytest.approx([2.0 * 0.9 * 0.7] * 6)


def test_planes_at_uneven_distances_have_the_volume_that_is_theirs() -> None:
    geometry, _ = arrange(uneven(np.eye(3), [2.0, 2.0, 3.0, 2.0], (0, 0)), TAKES_ALL)
    assert geometry.voxel_volumes_mm3 / (0.9 * 0.7) == pytest.approx([2.0, 2.0, 2.5, 2.5, 2.0])


@pytest.mark.parametrize(
    ("reason", "steps", "tilt"),
    [("gap", [2.0, 2.0, 7.0, 2.0], (0.0, 0.0)), ("tilt", [2.0] * 4, (0.0, 1.5))],
)
def test_what_no_policy_takes_is_refused(reason: str, steps: list[float], tilt: tuple[float, float]) -> None:
    with pytest.raises(UnsoundVolume) as refused:
        arrange(uneven(np.eye(3), steps, tilt), TAKES_ALL)
    assert refused.value.reason == reason


@pytest.mark.shared
def test_a_real_tilted_series_is_straightened_and_returns(shared_dicom: Path) -> None:
    """A phantom at -18.5 degrees: what is thresholded on the straight copy is what is thresholded on the planes."""
    from meddaemon.inference.volume import assemble_read, read_header  # noqa: PLC0415

    files = sorted((shared_dicom / "series" / "ct_phantom_tilt_m18_5").iterdir())
    headers = [read_header(path) for path in files]
    with pytest.raises(UnsoundVolume, match="tilt"):
        assemble_read(headers)
    volume = assemble_read(headers, TAKES_ALL)
    straight = Straightened(volume.geometry)
    copy = straight.volume(volume)
    assert copy.geometry.shape[1] > volume.geometry.shape[1]  # widened by the tilt
    drawn = (copy.voxels > -300).astype(np.uint8)
    back = straight.labels(drawn) > 0
    truth = volume.voxels > -300

    def dice(one: np.ndarray) -> float:
        return float(2 * (truth & one).sum() / (truth.sum() + one.sum()))

    # Half a pixel is lost on the way, in neither direction more than in the other.
    assert dice(back) > 0.985
    assert dice(np.roll(back, 1, axis=1)) < dice(back) - 0.02
    assert dice(np.roll(back, -1, axis=1)) < dice(back) - 0.02


def centres(geometry: Geometry) -> np.ndarray:
    """Return the centre of every voxel in LPS mm, (planes, rows, columns, 3)."""
    rows, columns = geometry.shape[1:]
    in_plane = np.indices((rows, columns)).transpose(1, 2, 0) @ geometry.affine_lps[:3, 1:3].T
    return geometry.positions[:, None, None, :] + in_plane[None]


def inverse(geometry: Geometry, at: np.ndarray) -> tuple[float, float, float]:
    plane, row, column = np.linalg.solve(geometry.affine_lps[:3, :3], at - geometry.affine_lps[:3, 3])
    return float(plane), float(row), float(column)


def volume_of(geometry: Geometry, value: object) -> Volume:
    voxels = value(centres(geometry)).astype(np.float32)  # type: ignore[operator]
    return Volume(voxels=voxels, geometry=geometry, series_instance_uid="1.2.3")


def covered(straight: Straightened) -> np.ndarray:
    """Return which voxels of the grid lie within the source, edges left out."""
    source = straight.source
    marks = Volume(voxels=np.ones(source.shape, dtype=np.float32), geometry=source, series_instance_uid="1.2.3")
    marks.voxels[:, [0, -1]] = 0
    marks.voxels[:, :, [0, -1]] = 0
    return straight.volume(marks).voxels > 0.9999
