"""Planes to grid: laws over many geometries, and every refusal with its reason and instance."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meddaemon.domain.errors import UnsoundVolume
from meddaemon.inference.geometry import Plane, arrange


def stack(
    count: int = 6,
    spacing: float = 2.0,
    *,
    rotation: np.ndarray | None = None,
    origin: tuple[float, float, float] = (-100.0, -80.0, 30.0),
    pixel_spacing: tuple[float, float] = (0.9, 0.7),
) -> list[Plane]:
    """Planes of a perfect box; `rotation` turns it in the patient."""
    turn = np.eye(3) if rotation is None else rotation
    row, column, normal = turn[:, 0], turn[:, 1], turn[:, 2]
    planes = []
    for index in range(count):
        position = np.array(origin) + index * spacing * normal
        planes.append(
            Plane(
                sop_instance_uid=f"1.2.{index + 1}",
                frame_number=1,
                position=(float(position[0]), float(position[1]), float(position[2])),
                orientation=tuple(float(v) for v in (*row, *column)),  # type: ignore[arg-type]
                pixel_spacing=pixel_spacing,
                rows=5,
                columns=7,
                frame_of_reference_uid="1.9",
            )
        )
    return planes


def moved(plane: Plane, by: tuple[float, float, float]) -> Plane:
    x, y, z = plane.position
    return replace(plane, position=(x + by[0], y + by[1], z + by[2]))


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    angles = st.floats(-np.pi, np.pi)
    a, b, c = draw(angles), draw(angles), draw(angles)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


@st.composite
def boxes(draw: st.DrawFn) -> list[Plane]:
    spacings = st.floats(0.3, 10.0)
    return stack(
        draw(st.integers(2, 40)),
        draw(spacings),
        rotation=draw(rotations()),
        origin=draw(st.tuples(*[st.floats(-500, 500)] * 3)),
        pixel_spacing=(draw(spacings), draw(spacings)),
    )


@pytest.mark.fault(83)
@given(box=boxes(), data=st.data())
def test_any_order_of_arrival_gives_the_same_grid(box: list[Plane], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(box))
    expected, straight = arrange(box)
    found, order = arrange(shuffled)
    assert np.array_equal(found.affine_lps, expected.affine_lps)
    assert found.sop_instance_uids == expected.sop_instance_uids
    assert [shuffled[i].sop_instance_uid for i in order] == [box[i].sop_instance_uid for i in straight]


@pytest.mark.fault(85, 90)
@given(box=boxes())
def test_the_grid_puts_every_voxel_where_dicom_puts_it(box: list[Plane]) -> None:
    geometry, order = arrange(box)
    for plane_index, source in enumerate(order):
        plane = box[source]
        row_direction, column_direction = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
        for row, column in ((0, 0), (plane.rows - 1, plane.columns - 1)):
            # PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
            expected = (
                np.array(plane.position)
                + row_direction * plane.pixel_spacing[1] * column
                + column_direction * plane.pixel_spacing[0] * row
            )
            found = geometry.affine_lps @ [plane_index, row, column, 1]
            assert np.allclose(found[:3], expected, rtol=0, atol=1e-3)
    axes = geometry.affine_lps[:3, :3] / geometry.spacing
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    # The normal is row × column, so (row, column, plane) is right-handed and (plane, row, column) is not.
    assert np.linalg.det(geometry.affine_lps[:3, :3]) < 0


@pytest.mark.fault(83)
@given(box=boxes(), step=st.integers(1, 38))
def test_a_missing_plane_is_a_gap(box: list[Plane], step: int) -> None:
    if len(box) < 4 or step > len(box) - 2:
        return
    del box[step]
    with pytest.raises(UnsoundVolume) as refusal:
        arrange(box)
    assert refusal.value.reason == "gap"
    assert refusal.value.sop_instance_uid == f"1.2.{step + 2}"


@pytest.mark.fault(83)
@given(box=boxes(), which=st.integers(0, 39))
def test_a_plane_sent_twice_is_a_duplicate(box: list[Plane], which: int) -> None:
    source = box[which % len(box)]
    box.insert(0, replace(source, sop_instance_uid="1.2.999"))
    with pytest.raises(UnsoundVolume) as refusal:
        arrange(box)
    assert refusal.value.reason == "duplicate_position"
    assert {refusal.value.sop_instance_uid, refusal.value.numbers["twin"]} == {"1.2.999", source.sop_instance_uid}


@pytest.mark.fault(85)
@given(box=boxes(), degrees=st.floats(1.0, 40.0), rotation=rotations())
def test_a_tilted_gantry_is_seen_at_any_angle(box: list[Plane], degrees: float, rotation: np.ndarray) -> None:
    sideways = np.array(box[0].orientation[3:])
    spacing = np.linalg.norm(np.array(box[1].position) - np.array(box[0].position))
    shift = np.tan(np.radians(degrees)) * spacing
    tilted = [moved(p, tuple(float(v) for v in sideways * shift * i)) for i, p in enumerate(box)]  # type: ignore[arg-type]
    if shift * (len(box) - 1) < 0.06:
        return
    with pytest.raises(UnsoundVolume) as refusal:
        arrange(tilted)
    assert refusal.value.reason == "tilt"
    assert refusal.value.numbers["degrees"] == pytest.approx(degrees, abs=1e-3)


BOX = stack()
REFUSED = {
    "too_few_planes": BOX[:1],
    "temporal": [*BOX, *(replace(p, sop_instance_uid=p.sop_instance_uid + ".2") for p in BOX)],
    "irregular_spacing": [*BOX[:3], moved(BOX[3], (0, 0, 0.3)), *BOX[4:]],
    "scattered": [*BOX[:3], moved(BOX[3], (4, 0, 0)), *BOX[4:]],
    "mixed_orientation": [*BOX[:3], replace(BOX[3], orientation=(0, 1, 0, 0, 0, -1)), *BOX[4:]],
    "mixed_size": [*BOX[:3], replace(BOX[3], rows=6), *BOX[4:]],
    "mixed_frame_of_reference": [*BOX[:3], replace(BOX[3], frame_of_reference_uid="1.8"), *BOX[4:]],
    "mixed_pixel_spacing": [*BOX[:3], replace(BOX[3], pixel_spacing=(0.9, 0.8)), *BOX[4:]],
    "not_finite": [*BOX[:3], moved(BOX[3], (float("nan"), 0, 0)), *BOX[4:]],
    "orientation": [*BOX[:3], replace(BOX[3], orientation=(1, 0, 0, 0.5, 1, 0)), *BOX[4:]],
    "pixel_spacing": [*BOX[:3], replace(BOX[3], pixel_spacing=(0.0, 0.7)), *BOX[4:]],
}


@pytest.mark.fault(83, 84, 86, 90, 91, 92)
@pytest.mark.parametrize("reason", REFUSED)
def test_refusals_name_their_reason_and_instance(reason: str) -> None:
    with pytest.raises(UnsoundVolume) as refusal:
        arrange(REFUSED[reason])
    assert refusal.value.reason == reason
    if reason not in {"too_few_planes", "temporal"}:
        assert refusal.value.sop_instance_uid == "1.2.4"


def test_planes_side_by_side_are_not_a_time_series() -> None:
    beside = [replace(moved(p, (300, 0, 0)), sop_instance_uid=p.sop_instance_uid + ".2") for p in BOX]
    with pytest.raises(UnsoundVolume) as refusal:
        arrange([*BOX, *beside])
    assert refusal.value.reason == "scattered"


def test_a_claim_of_too_many_voxels_costs_no_memory() -> None:
    with pytest.raises(UnsoundVolume) as refusal:
        arrange([replace(p, rows=30_000, columns=30_000) for p in BOX])
    assert refusal.value.reason == "too_large"


def test_positions_rounded_to_a_tenth_of_a_millimetre_still_make_a_volume() -> None:
    rounded = [replace(p, position=(*p.position[:2], round(p.position[2], 1))) for p in stack(40, 0.625)]
    geometry, _ = arrange(rounded)
    assert geometry.spacing[0] == pytest.approx(0.625, abs=0.002)


def test_two_planes_are_the_shortest_volume() -> None:
    geometry, order = arrange(list(reversed(BOX[:2])))
    assert geometry.shape == (2, 5, 7)
    assert order == (1, 0)
    assert geometry.spacing == pytest.approx((2.0, 0.9, 0.7))
