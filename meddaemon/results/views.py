"""Square views of what a result lies on, with true proportions: three planes of a volume, or some of the pictures."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.picture import Pictures
from meddaemon.domain.volume import Geometry, Volume
from meddaemon.results.request import EncodingRequest
from meddaemon.results.scene import Mark, Scene
from meddaemon.results.window import window_of

MOST_VIEWS = 3
_LEAST_SHOWN = 0.05
"""A window that shows less than this part of the voxels as grey is not the window of these."""
_SLANT = 0.26  # sine of 15 degrees: less than this is no direction worth a letter
_OPPOSITE = str.maketrans("LRAPHF", "RLPAFH")
_LETTERS = (("L", "R"), ("P", "A"), ("H", "F"))  # towards +x, -x, ... in LPS (PS3.3 C.7.6.1.1.1)


@dataclass(frozen=True, kw_only=True)
class View:
    """One view, `side` pixels high and wide.

    `at` [3, y, x] is which (image, row, column) each pixel shows, in voxel centres; `grey` [y, x] are its values, NaN
    beyond the images, or `colour` [y, x, 3] RGB from 0 to 255. `letters` are the ends of the patient at the left,
    right, top and bottom, None where nobody knows. `millimetre` is the length of one in pixels, None likewise.
    `points` are (mark, x, y) of landmarks that lie here.
    """

    at: NDArray[np.float64]
    grey: NDArray[np.float64]
    colour: NDArray[np.float64] | None
    letters: tuple[str, str, str, str] | None
    millimetre: float | None
    caption: str
    points: tuple[tuple[Mark, float, float], ...]


def views_of(request: EncodingRequest, side: int) -> list[View]:
    """Return the views: through the largest finding, or the middle where there is none; none without pixels."""
    shown, scene = request.shown, request.scene
    if isinstance(shown, Pictures):
        return list(_of_pictures(request, shown, side))
    return list(_of_volume(shown, scene, side)) if shown is not None else []


def brightness(request: EncodingRequest, views: list[View]) -> tuple[float, float]:
    """Return which values are black and white: by the window of the image shown where it fits, else by the values."""
    values = np.concatenate([view.grey[np.isfinite(view.grey)] for view in views] or [np.zeros(0)])
    if not values.size:
        return 0.0, 1.0
    window = _window(request)
    if window is not None:
        low, high = window
        if np.count_nonzero((values > low) & (values < high)) >= _LEAST_SHOWN * values.size:
            return low, high
    low, high = (float(each) for each in np.percentile(values, (1, 99.5)))
    return low, high if high > low else low + 1


def directions(vector: NDArray[np.float64]) -> str:
    """Return the letters of a direction in LPS, the most important first (PS3.3 C.7.6.1.1.1)."""
    order = np.argsort(-np.abs(vector), kind="stable")
    return "".join(_LETTERS[axis][int(vector[axis] < 0)] for axis in order if abs(vector[axis]) > _SLANT)


def _window(request: EncodingRequest) -> tuple[float, float] | None:
    # Windows are in the values of the image; those of a PET volume are SUV by now.
    if request.source.modality not in {"CT", "MR"} or not isinstance(request.shown, Volume):
        return None
    uid, frame = request.scene.images[_key(request.scene)]
    window = window_of(request.source.instance(uid), frame)
    return (window.centre - window.width / 2, window.centre + window.width / 2) if window else None


def _key(scene: Scene) -> int:
    return scene.largest.key if scene.largest else len(scene.images) // 2


def _focus(scene: Scene, mark: Mark | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the (image, row, column) that the views go through, within the mark where there is one."""
    if mark is None:
        return np.array([len(scene.images) // 2, (shape[0] - 1) / 2, (shape[1] - 1) / 2])
    if mark.segment is None or scene.drawing is None:
        return np.array([mark.key, *np.add(mark.low[1:], mark.high[1:]) / 2])
    there = np.argwhere(scene.drawing.mask(mark.segment, mark.key))
    nearest = there[((there - there.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return np.array([mark.key, *nearest], dtype=np.float64)


def _of_volume(volume: Volume, scene: Scene, side: int) -> Iterator[View]:
    geometry = volume.geometry
    focus = _focus(scene, scene.largest, geometry.shape[1:])
    centre = np.array(geometry.point(*focus))
    normal, down, right = geometry.axes.T
    corners = np.array(
        [
            geometry.point(image, row, column)
            for image in (-0.5, geometry.shape[0] - 0.5)
            for row in (-0.5, geometry.shape[1] - 0.5)
            for column in (-0.5, geometry.shape[2] - 0.5)
        ]
    )
    planes = [(right, down)] if geometry.shape[0] == 1 else [(right, down), (right, normal), (down, normal)]
    for number, pair in enumerate(planes):
        across, along = _as_read(*pair)
        spans = [(float((corners @ axis).min()), float((corners @ axis).max())) for axis in (across, along)]
        pixel = max(high - low for low, high in spans) / side
        middle = [sum(span) / 2 - float(centre @ axis) for span, axis in zip(spans, (across, along), strict=True)]
        steps = (np.arange(side) - (side - 1) / 2) * pixel
        offset = (middle[0] + steps)[None, :, None] * across + (middle[1] + steps)[:, None, None] * along
        at = _voxels(geometry, centre + offset)
        thickness = max(np.linalg.norm(geometry.affine_lps[:3, :3], axis=0)) / 2
        points = []
        for mark in scene.marks:
            if mark.is_point:
                away = np.array(geometry.point(*mark.low)) - centre
                if abs(float(away @ np.cross(across, along))) <= thickness:
                    x, y = (float(away @ axis) - each for axis, each in zip((across, along), middle, strict=True))
                    points.append((mark, x / pixel + (side - 1) / 2, y / pixel + (side - 1) / 2))
        yield View(
            at=at,
            grey=_interpolated(volume.voxels, at),
            colour=None,
            letters=(directions(-across), directions(across), directions(-along), directions(along)),
            millimetre=1 / pixel,
            caption=f"plane {round(focus[0]) + 1} of {geometry.shape[0]}" if number == 0 else "reformatted",
            points=tuple(points),
        )


def _as_read(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which of two axes goes to the right and which down, as radiologists look: head up, front up or left,
    the patient's left on the right.
    """  # noqa: D205
    axes = [one, other]
    # Down is what has most of head to foot, where either has; else what has most of front to back.
    upright = max(abs(float(axis[2])) for axis in axes) > np.sqrt(0.5)
    vertical = int(np.argmax([abs(float(axis[2 if upright else 1])) for axis in axes]))
    along, across = axes[vertical], axes[1 - vertical]
    along = -along if (along[2] > 0 if upright else along[1] < 0) else along
    across = -across if across[int(np.argmax(np.abs(across)))] < 0 else across
    return across, along


def _voxels(geometry: Geometry, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (image, row, column) [3, ...] of points [..., 3] in LPS mm, also between uneven or sheared planes."""
    positions, heights = geometry.positions, geometry.heights
    normal = geometry.axes[:, 0]
    height = (points - positions[0]) @ normal
    count = len(heights)
    if count == 1:
        step = float(normal @ geometry.affine_lps[:3, 0])
        image = height / step
    else:
        first, last = heights[1] - heights[0], heights[-1] - heights[-2]
        image = np.interp(height, heights, np.arange(count))
        image = np.where(height < 0, height / first, image)
        image = np.where(height > heights[-1], count - 1 + (height - heights[-1]) / last, image)
    # What is a plane up to rounding is that plane.
    image = np.where(np.abs(image - np.rint(image)) < 1e-6, np.rint(image), image)
    below = np.clip(np.floor(image).astype(np.int64), 0, max(count - 2, 0))
    steps = np.diff(positions, axis=0) if count > 1 else geometry.affine_lps[:3, :1].T
    offset = points - positions[below] - (image - below)[..., None] * steps[below]
    in_plane = np.linalg.pinv(geometry.affine_lps[:3, 1:3])
    row, column = np.moveaxis(offset @ in_plane.T, -1, 0)
    return np.stack([image, row, column])


def _interpolated(voxels: NDArray[np.int16] | NDArray[np.float32], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values between the eight voxels around each point; NaN beyond the outermost by more than half a voxel."""
    limits = np.array(voxels.shape)[:, None, None]
    inside = ((at >= -0.5 - 1e-6) & (at <= limits - 0.5 + 1e-6)).all(axis=0)
    held = np.clip(at, 0, limits - 1)
    below = np.minimum(np.floor(held).astype(np.int64), np.maximum(limits - 2, 0))
    part = held - below
    values = np.zeros(at.shape[1:])
    for corner in np.ndindex(2, 2, 2):
        index = np.minimum(below + np.array(corner)[:, None, None], limits - 1)
        weight = np.prod([part[axis] if up else 1 - part[axis] for axis, up in enumerate(corner)], axis=0)
        # Beyond float64 nothing is lost, and nothing times what is not finite stays out.
        values += np.where(weight > 0, weight * voxels[tuple(index)].astype(np.float64), 0.0)
    return np.where(inside, values, np.nan)


def _of_pictures(request: EncodingRequest, pictures: Pictures, side: int) -> Iterator[View]:
    """Yield the pictures that show the largest findings, or the first ones; in proportion where the image says so."""
    scene = request.scene
    wanted = sorted(scene.marks, key=lambda mark: -mark.size)
    keys = list(dict.fromkeys(mark.key for mark in wanted)) or list(range(len(pictures.frames)))
    for key in keys[:MOST_VIEWS]:
        rows, columns = pictures.frames.shape[1:3]
        row_mm, column_mm = pictures.spacing_mm or (1.0, 1.0)
        pixel = max(rows * row_mm, columns * column_mm) / side
        steps = (np.arange(side) - (side - 1) / 2) * pixel
        row, column = (rows - 1) / 2 + steps / row_mm, (columns - 1) / 2 + steps / column_mm
        at = np.stack(np.broadcast_arrays(np.full((1, 1), float(key)), row[:, None], column[None, :]))
        frame = pictures.frames[key : key + 1]
        here = at - np.array([key, 0, 0])[:, None, None]
        is_grey = frame.ndim == 3
        bands = [_interpolated(frame if is_grey else frame[..., band], here) for band in range(1 if is_grey else 3)]
        yield View(
            at=at,
            grey=bands[0] if is_grey else np.full((side, side), np.nan),
            colour=None if is_grey else np.stack(bands, axis=-1),
            letters=_as_said(request, pictures.sources[key][0]),
            millimetre=None,
            caption=f"image {key + 1} of {len(pictures.frames)}",
            points=tuple(
                (mark, *_on_picture(mark, (rows, columns), (row_mm, column_mm), pixel, side))
                for mark in scene.marks
                if mark.is_point and mark.key == key
            ),
        )


def _as_said(request: EncodingRequest, uid: str) -> tuple[str, str, str, str] | None:
    """Return the letters by the Patient Orientation of an image (PS3.3 C.7.6.1.1.1), if it has one."""
    said = request.source.instance(uid).get("PatientOrientation") or ()
    if (
        isinstance(said, str)
        or len(said) != 2
        or not all(str(each) and set(str(each)) <= set("LRAPHF") for each in said)
    ):
        return None
    right, bottom = (str(each) for each in said)
    return right.translate(_OPPOSITE), right, bottom.translate(_OPPOSITE), bottom


def _on_picture(
    mark: Mark, shape: tuple[int, int], spacing: tuple[float, float], pixel: float, side: int
) -> tuple[float, float]:
    y, x = (
        (place - (size - 1) / 2) * step / pixel + (side - 1) / 2
        for place, size, step in zip(mark.low[1:], shape, spacing, strict=True)
    )
    return x, y
