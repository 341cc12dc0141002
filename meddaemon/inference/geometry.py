"""Planes in, one grid out: the pure half of volume assembly.

The grid that is returned is a promise: the centre of the first pixel of every plane lies where its own Image
Position (Patient) says, and unless the contract takes tilted or uneven stacks, within `TOLERANCE_MM` of a grid with
three orthogonal axes. A stack that cannot keep it is refused with a reason, the numbers and the instance, and never
resampled, completed or thinned out in silence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.contract import GeometryPolicy, Unevenness
from meddaemon.domain.errors import UnsoundVolume
from meddaemon.domain.volume import Geometry

Vector = NDArray[np.float64]

TOLERANCE_MM = 0.06
"""How far a plane may lie from the grid: scanners round positions, some to 0.1 mm, which leaves 0.05 mm and a little
for the fit. Never more than a tenth of the plane spacing."""

SAME_PLACE_MM = 1e-3
"""Planes nearer to each other than this lie in the same place; no scanner has planes that thin."""

COSINE_TOLERANCE = 1e-4
"""Direction cosines that differ by less are equal: 0.05 mm over half a metre. Decimal strings carry about 1e-6."""

EXACT_MM = 1e-3
"""The affine says where a plane lies when it does so to within this; else the geometry says it plane by plane."""

_LARGEST_TILT_DEGREES = 45.0
"""Gantries tilt by 30 degrees at most."""
_LARGEST_RESAMPLED_STEP = 3.0
"""What lies farther apart than so many usual steps is not guessed, whatever the policy."""
_MOST_MISSING = 10
"""Of so many planes one may be missing where the policy lets gaps be filled; of a short stack, one."""

STRICT = GeometryPolicy()
"""Nothing but boxes."""

MAX_VOXELS = 2**31
"""A volume larger than this is refused before memory is asked for; 8 GiB as float32."""


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One single-frame instance or one frame, as its header describes it (PS3.3 C.7.6.2 and C.7.6.16.2).

    `position` is the centre of the first pixel in LPS mm; `orientation` the direction cosines of a row (towards
    rising column index), then of a column; `pixel_spacing` the mm between rows, then between columns. `moment` has the
    numbers that tell images of one place apart, by keyword; only `stacks` looks at these and at what follows.
    """

    sop_instance_uid: str
    frame_number: int
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    pixel_spacing: tuple[float, float]
    rows: int
    columns: int
    frame_of_reference_uid: str
    moment: tuple[tuple[str, float], ...] = ()
    instance_number: int = 0
    is_localizer: bool = False


def arrival_order(planes: Sequence[Plane]) -> list[int]:
    """Return the planes' indices in an order that does not depend on how they arrived."""
    return sorted(range(len(planes)), key=lambda i: (planes[i].sop_instance_uid, planes[i].frame_number))


def arrange(planes: Sequence[Plane], policy: GeometryPolicy = STRICT) -> tuple[Geometry, tuple[int, ...]]:
    """Return the grid on which the planes lie, and the planes' indices in ascending order along the normal.

    The normal is the cross product of row and column direction; positions alone decide order and spacing. The
    order of `planes` does not matter. Tilted and uneven stacks are refused unless `policy` takes them.

    Raises `UnsoundVolume` with one of: `too_few_planes`, `not_finite`, `orientation`, `pixel_spacing`,
    `mixed_orientation`, `mixed_size`, `mixed_pixel_spacing`, `mixed_frame_of_reference`, `too_large`, `temporal`,
    `duplicate_position`, `tilt`, `scattered`, `gap`, `irregular_spacing`.
    """
    # A canonical first plane makes which instance an error names independent of the order of arrival.
    arrival = arrival_order(planes)
    if len(planes) < 2:
        raise UnsoundVolume(
            "too_few_planes",
            f"{len(planes)} plane(s) do not make a volume",
            sop_instance_uid=planes[0].sop_instance_uid if planes else None,
            numbers={"planes": len(planes)},
        )
    for index in arrival:
        refuse_unusable(planes[index])
    first = planes[arrival[0]]
    for index in arrival:
        _refuse_mixture(first, planes[index])
    _refuse_too_large(first, len(planes))

    row_direction, column_direction, normal = _axes(first.orientation)
    positions = np.array([plane.position for plane in planes], dtype=np.float64)
    heights = positions @ normal
    order = sorted(arrival, key=lambda index: float(heights[index]))
    ordered = [planes[index] for index in order]
    step, start = _step(ordered, positions[order], heights[order], normal, policy)
    row_spacing, column_spacing = first.pixel_spacing
    affine = np.eye(4)
    affine[:3, 0] = step
    # The row index counts down a column and the column index along a row (PS3.3 C.7.6.2.1.1).
    affine[:3, 1] = column_direction * row_spacing
    affine[:3, 2] = row_direction * column_spacing
    affine[:3, 3] = start
    off = np.abs(positions[order] - (start + np.outer(np.arange(len(order)), step))).max()
    geometry = Geometry(
        shape=(len(order), first.rows, first.columns),
        affine_lps=affine,
        frame_of_reference_uid=first.frame_of_reference_uid,
        sop_instance_uids=tuple(plane.sop_instance_uid for plane in ordered),
        frame_numbers=tuple(plane.frame_number for plane in ordered),
        positions_lps=positions[order] if off > EXACT_MM else None,
    )
    return geometry, tuple(order)


def _axes(orientation: Sequence[float]) -> tuple[Vector, Vector, Vector]:
    """Return row direction, column direction and normal, orthonormal to the last bit, in LPS."""
    row = np.array(orientation[:3], dtype=np.float64)
    row /= np.linalg.norm(row)
    column = np.array(orientation[3:], dtype=np.float64)
    column -= (column @ row) * row
    column /= np.linalg.norm(column)
    return row, column, np.cross(row, column)


def refuse_unusable(plane: Plane) -> None:
    """Refuse a plane whose own numbers do not describe a plane."""

    def refuse(reason: str, message: str, **numbers: object) -> None:
        raise UnsoundVolume(reason, message, sop_instance_uid=plane.sop_instance_uid, numbers=numbers)

    numbers = (*plane.position, *plane.orientation, *plane.pixel_spacing)
    if not all(map(math.isfinite, numbers)) or max(map(abs, numbers)) > 1e6:
        refuse(
            "not_finite",
            "position, orientation or pixel spacing is not a finite, plausible number",
            position=plane.position,
            orientation=plane.orientation,
            pixel_spacing=plane.pixel_spacing,
        )
    row, column = plane.orientation[:3], plane.orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    cosine = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1)) > 1e-3 or abs(cosine) > 1e-3:
        refuse(
            "orientation",
            f"Image Orientation (Patient) is not orthonormal: lengths {lengths[0]:.6g} and {lengths[1]:.6g},"
            f" product {cosine:.3g}",
            orientation=plane.orientation,
        )
    if min(plane.pixel_spacing) <= 0:
        refuse(
            "pixel_spacing",
            f"Pixel Spacing {plane.pixel_spacing} is not positive",
            pixel_spacing=plane.pixel_spacing,
        )
    if plane.rows < 1 or plane.columns < 1:
        refuse("size", f"{plane.rows} rows and {plane.columns} columns", rows=plane.rows, columns=plane.columns)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """In what two planes cannot belong to one grid: a reason, the attribute, and its two values."""

    reason: str
    attribute: str
    here: object
    elsewhere: object


def difference(first: Plane, plane: Plane) -> Difference | None:
    """Return why two planes cannot belong to one grid, None where they can."""
    checks: tuple[tuple[str, str, bool, Callable[[Plane], object]], ...] = (
        (
            "mixed_frame_of_reference",
            "Frame of Reference UID",
            plane.frame_of_reference_uid != first.frame_of_reference_uid,
            lambda each: each.frame_of_reference_uid,
        ),
        (
            "mixed_orientation",
            "Image Orientation (Patient)",
            max(abs(a - b) for a, b in zip(plane.orientation, first.orientation, strict=True)) > COSINE_TOLERANCE,
            lambda each: each.orientation,
        ),
        (
            "mixed_size",
            "size (rows, columns)",
            (plane.rows, plane.columns) != (first.rows, first.columns),
            lambda each: (each.rows, each.columns),
        ),
        (
            "mixed_pixel_spacing",
            "Pixel Spacing",
            _drift_across(first, plane) > TOLERANCE_MM,
            lambda each: each.pixel_spacing,
        ),
    )
    return next(
        (
            Difference(reason=reason, attribute=name, here=value(plane), elsewhere=value(first))
            for reason, name, differs, value in checks
            if differs
        ),
        None,
    )


def _refuse_mixture(first: Plane, plane: Plane) -> None:
    """Refuse two planes that cannot belong to one grid."""
    if found := difference(first, plane):
        raise UnsoundVolume(
            found.reason,
            f"{found.attribute} {found.here} differs from {found.elsewhere} of instance {first.sop_instance_uid}",
            sop_instance_uid=plane.sop_instance_uid,
            numbers={"here": found.here, "elsewhere": found.elsewhere},
        )


def _drift_across(first: Plane, plane: Plane) -> float:
    """Return by how many mm the last pixels of two planes part because their pixel spacings differ."""
    row, column = (abs(a - b) for a, b in zip(first.pixel_spacing, plane.pixel_spacing, strict=True))
    return max(row * plane.rows, column * plane.columns)


def _refuse_too_large(first: Plane, planes: int) -> None:
    voxels = planes * first.rows * first.columns
    if voxels > MAX_VOXELS:
        raise UnsoundVolume(
            "too_large",
            f"{planes} × {first.rows} × {first.columns} voxels are more than {MAX_VOXELS}",
            numbers={"planes": planes, "rows": first.rows, "columns": first.columns},
        )


def _step(
    ordered: Sequence[Plane], positions: Vector, heights: Vector, normal: Vector, policy: GeometryPolicy
) -> tuple[Vector, Vector]:
    """Return the step from plane to plane and the position of the first one, in LPS mm.

    Refuses planes that do not sit one behind the other at even distances, unless the policy takes them.
    """
    steps = np.diff(heights)
    _refuse_same_height(ordered, positions, steps)
    tilted = _refuse_drift(ordered, positions, heights, normal, policy)
    if policy.irregular is Unevenness.RESAMPLE:
        _refuse_gap(ordered, steps, most=_LARGEST_RESAMPLED_STEP)
        spacing, start, _ = _line(heights, np.arange(len(heights)))
    else:
        _refuse_gap(ordered, steps, most=1.5 if policy.gap is Unevenness.REFUSE else _LARGEST_RESAMPLED_STEP + 0.5)
        places = _places(ordered, steps)
        spacing, start = _even_spacing(ordered, heights, steps, places)
    if not tilted:
        return normal * spacing, positions[0] + normal * start
    # What the planes shift sideways at each step, by least squares as well.
    sideways = positions - np.outer(heights, normal)
    along = heights - heights.mean()
    shift = along @ (sideways - sideways.mean(axis=0)) / (along @ along)
    middle = sideways.mean(axis=0) + heights.mean() * normal
    step = (normal + shift) * spacing
    return step, middle - step * (heights.mean() - heights[0] - start) / spacing


def _refuse_gap(ordered: Sequence[Plane], steps: Vector, *, most: float) -> None:
    """Refuse a step of so many times the usual one: planes are missing."""
    usual = usual_step(steps)
    for index, step in enumerate(steps.tolist()):
        if step >= most * usual:
            raise UnsoundVolume(
                "gap",
                f"{step:.6g} mm to the plane before, where {usual:.6g} mm is usual:"
                f" about {round(step / usual) - 1} plane(s) missing",
                sop_instance_uid=ordered[index + 1].sop_instance_uid,
                numbers={"step_mm": step, "usual_step_mm": usual, "plane": index + 1},
            )


def usual_step(steps: Vector) -> float:
    """Return the lower median, so that of two steps the smaller one is the spacing and the larger one the gap."""
    return float(np.sort(steps)[(len(steps) - 1) // 2])


def _places(ordered: Sequence[Plane], steps: Vector) -> NDArray[np.int64]:
    """Return which place each plane has on an even grid, from 0; refuses where too many places have no plane."""
    counts = np.maximum(np.rint(steps / usual_step(steps)), 1).astype(np.int64)
    missing = int(counts.sum()) - len(steps)
    if missing > max(1, len(ordered) // _MOST_MISSING):
        widest = int(np.argmax(steps))
        raise UnsoundVolume(
            "gap",
            f"{missing} planes are missing beside {len(ordered)}, of which {max(1, len(ordered) // _MOST_MISSING)} may",
            sop_instance_uid=ordered[widest + 1].sop_instance_uid,
            numbers={"missing": missing, "planes": len(ordered), "step_mm": float(steps[widest])},
        )
    return np.concatenate([[0], np.cumsum(counts)])


def _line(heights: Vector, places: NDArray[np.int64]) -> tuple[float, float, Vector]:
    """Return spacing and start of the line of least squares, and how far each height lies off it.

    Its slope is not at the mercy of how the first and last position were rounded. The start is relative to the first.
    """
    indices = places - places.mean()
    climbed = heights - heights[0]
    spacing = float(indices @ (climbed - climbed.mean()) / (indices @ indices))
    start = float(climbed.mean() + spacing * indices[0])
    return spacing, start, climbed - (start + spacing * places)


def _even_spacing(
    ordered: Sequence[Plane], heights: Vector, steps: Vector, places: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the plane spacing in mm, and where along the normal the grid starts relative to the first plane."""
    spacing, start, errors = _line(heights, places)
    worst = int(np.argmax(np.abs(errors)))
    if abs(errors[worst]) > min(TOLERANCE_MM, spacing / 10):
        raise UnsoundVolume(
            "irregular_spacing",
            f"plane lies {abs(errors[worst]):.4g} mm off an even spacing of {spacing:.6g} mm"
            f" (steps from {steps.min():.6g} to {steps.max():.6g} mm)",
            sop_instance_uid=ordered[worst].sop_instance_uid,
            numbers={
                "off_mm": float(abs(errors[worst])),
                "spacing_mm": spacing,
                "smallest_step_mm": float(steps.min()),
                "largest_step_mm": float(steps.max()),
            },
        )
    return spacing, start


def _refuse_same_height(ordered: Sequence[Plane], positions: Vector, steps: Vector) -> None:
    """Refuse several planes at one height: side by side, each height equally often (time), or duplicated."""
    repeated = np.flatnonzero(steps < SAME_PLACE_MM)
    if not len(repeated):
        return
    heights = np.split(np.arange(len(ordered)), np.flatnonzero(steps >= SAME_PLACE_MM) + 1)
    times = {len(group) for group in heights}
    twin, plane = ordered[repeated[0]], ordered[repeated[0] + 1]
    apart = float(np.linalg.norm(positions[repeated[0] + 1] - positions[repeated[0]]))
    numbers = {"planes": len(ordered), "positions": len(heights), "twin": twin.sop_instance_uid, "apart_mm": apart}
    beside = f"instance {twin.sop_instance_uid} (frame {twin.frame_number})"
    if apart > TOLERANCE_MM:
        reason, message = "scattered", f"lies in the same plane as {beside}, {apart:.4g} mm beside it"
    elif len(times) == 1:
        reason, message = (
            "temporal",
            f"each of {len(heights)} position(s) occurs {times.pop()} times: several volumes or a time series",
        )
    else:
        reason, message = (
            "duplicate_position",
            f"lies where {beside} lies; {len(repeated)} of {len(ordered)} planes repeat a position",
        )
    raise UnsoundVolume(reason, message, sop_instance_uid=plane.sop_instance_uid, numbers=numbers)


def _refuse_drift(
    ordered: Sequence[Plane], positions: Vector, heights: Vector, normal: Vector, policy: GeometryPolicy
) -> bool:
    """Refuse planes that shift sideways: by the same amount at each step (gantry tilt), or anyhow.

    Returns whether they are tilted, and may be.
    """
    offsets = positions - positions[0] - np.outer(heights - heights[0], normal)
    drift = np.linalg.norm(offsets, axis=1)
    worst = int(np.argmax(drift))
    if drift[worst] <= TOLERANCE_MM:
        return False
    along = (heights - heights[0]) / (heights[-1] - heights[0])
    steady = bool(np.abs(offsets - np.outer(along, offsets[-1])).max() <= max(TOLERANCE_MM, 0.01 * drift[-1]))
    degrees = float(np.degrees(np.arctan2(drift[-1], heights[-1] - heights[0])))
    if steady and policy.tilt is Unevenness.RESAMPLE and degrees <= _LARGEST_TILT_DEGREES:
        return True
    reason, what = ("tilt", f"by {degrees:.3g}° (gantry tilt)") if steady else ("scattered", "unevenly")
    raise UnsoundVolume(
        reason,
        f"positions leave the normal of the planes {what}, {drift[worst]:.4g} mm at most: not a box of voxels",
        sop_instance_uid=ordered[worst].sop_instance_uid,
        numbers={"drift_mm": float(drift[worst]), "degrees": degrees if steady else None},
    )
