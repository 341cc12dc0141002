"""Boxes and landmarks of a golden case: where in the patient, or on which picture, something must be found."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np
from numpy.typing import NDArray

from meddaemon.domain.contract import ModelContract
from meddaemon.domain.result import Box, Landmark, Prediction
from meddaemon.domain.volume import Geometry


class NotThere(ValueError):
    """A result is not where its case has it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A box, as two corners opposite each other, or a landmark, as one point.

    In a volume `points` are LPS mm, the corners on edges of voxels, and the box lies along the axes of the volume. On
    a picture they are (row, column), and `image` says which: SOP Instance UID and frame, from 1.
    """

    label: int
    score: float
    points: tuple[tuple[float, ...], ...]
    image: tuple[str, int] | None = None


def places(prediction: Prediction, contract: ModelContract) -> tuple[Place, ...]:
    """Return the boxes or landmarks of a prediction that reach the threshold of the contract.

    Raises NotThere for what the contract does not name, and for what is no number.
    """
    least = {each.label: each.threshold for each in contract.objects}
    found: tuple[Box | Landmark, ...] = (*prediction.boxes, *prediction.landmarks)
    if unknown := {each.label for each in found} - least.keys():
        raise NotThere(f"label {min(unknown)}, which the contract does not name")
    if broken := [each for each in found if not np.isfinite((each.score, *chain(*_corners(each)))).all()]:
        raise NotThere(f"an object of label {broken[0].label} has a score or a place that is no number")
    return tuple(
        Place(label=each.label, score=each.score, points=_points(each, prediction.geometry), image=each.source)
        for each in found
        if each.score >= least[each.label]
    )


def worst_overlap(
    found: Sequence[Place], expected: Sequence[Place], geometry: Geometry | None, *, difference: float
) -> float:
    """Return the smallest intersection over union of the boxes that belong together; 1 where there are none.

    `geometry` is that of the volume, whose axes the boxes lie along; they have the same size in every unit. Raises
    NotThere when there are not as many of a label, or a score is further off than `difference`.
    """
    inverse = None if geometry is None else np.asarray(np.linalg.inv(geometry.affine_lps), np.float64)
    boxes = {id(each): _along_axes(each, inverse) for each in (*found, *expected)}
    pairs = _pairs(found, expected, lambda one, other: -_overlap(boxes[id(one)], boxes[id(other)]), difference)
    return min((_overlap(boxes[id(one)], boxes[id(other)]) for one, other in pairs), default=1.0)


def farthest(found: Sequence[Place], expected: Sequence[Place], *, difference: float) -> float:
    """Return the largest distance of landmarks that belong together: mm in a volume, pixels on a picture.

    Raises NotThere as `worst_overlap` does.
    """
    return max((_distance(one, other) for one, other in _pairs(found, expected, _distance, difference)), default=0.0)


def _corners(found: Box | Landmark) -> tuple[tuple[float, ...], ...]:
    return (found.low, found.high) if isinstance(found, Box) else (found.position,)


def _points(found: Box | Landmark, geometry: Geometry | None) -> tuple[tuple[float, ...], ...]:
    points = _corners(found)
    if found.source is not None or geometry is None:
        return points
    return tuple(geometry.point(*point) for point in points)


def _pairs(
    found: Sequence[Place],
    expected: Sequence[Place],
    apart: Callable[[Place, Place], float],
    difference: float,
) -> Iterator[tuple[Place, Place]]:
    """Yield what belongs together, the nearest of one label and image first."""
    here, there = (Counter((each.label, each.image) for each in of) for of in (found, expected))
    for label, image in sorted({*here, *there}, key=str):
        if here[label, image] != there[label, image]:
            on = "" if image is None else f" on image {image[0]} frame {image[1]}"
            raise NotThere(
                f"{here[label, image]} objects of label {label}{on} were found, the case has {there[label, image]}"
            )
    left = {id(each) for each in (*found, *expected)}
    alike = [
        (one, other) for one, other in product(found, expected) if (one.label, one.image) == (other.label, other.image)
    ]
    for one, other in sorted(alike, key=lambda pair: apart(*pair)):
        if id(one) not in left or id(other) not in left:
            continue
        left -= {id(one), id(other)}
        if not abs(one.score - other.score) <= difference:
            raise NotThere(f"an object of label {one.label} has the score {one.score:.4f}, the case {other.score:.4f}")
        yield one, other


def _along_axes(place: Place, inverse: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the lower and the upper corner, in voxels of the volume."""
    corners = np.array(place.points, np.float64)
    if place.image is None and inverse is not None:
        corners = corners @ inverse[:3, :3].T + inverse[:3, 3]
    return np.stack([corners.min(axis=0), corners.max(axis=0)])


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    both = np.prod(np.clip(np.minimum(one[1], other[1]) - np.maximum(one[0], other[0]), 0, None))
    either = np.prod(one[1] - one[0]) + np.prod(other[1] - other[0]) - both
    return float(both / either) if either > 0 else float(np.array_equal(one, other))


def _distance(one: Place, other: Place) -> float:
    return float(np.linalg.norm(np.subtract(one.points[0], other.points[0])))
