"""From what a bundle returns to what it found, on the grid of the source. Only for the model child.

Images of a bundle are (channel, x, y[, z]) with an affine to RAS mm; results here are [plane, row, column] or, for
pictures, [row, column].
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.box_utils import convert_box_mode
from numpy.typing import NDArray

from meddaemon.domain.contract import BoxFrame
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Box, Labels, Landmark
from meddaemon.inference.bundles.channels import Highest, slabs
from meddaemon.inference.bundles.images import Grid, grid_of, resampled
from meddaemon.inference.plan import group

THRESHOLD = 0.5
"""From this probability on a voxel belongs to a segment that may overlap others."""
SUM_TOLERANCE = 1e-2
"""So far may the probabilities of one voxel be from 1 for its classes to exclude each other."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Labels, or masks [segment, ...] in the order of the contract where segments overlap; and what speaks against."""

    labels: Labels | None = None
    masks: NDArray[np.bool_] | None = None
    doubts: tuple[str, ...] = ()


def drawn(prediction: object, grid: Grid, segments: Sequence[int] = (), *, seen: Grid | None = None) -> Drawn:
    """Return a prediction as it lies on `grid`, that of the source. `seen` is that of the image the network saw.

    One channel is a map of labels, or the probability of the one segment that there is. Several are one class each,
    background first, where there is one more than the highest label of `segments` and they exclude each other, and
    else one segment each. A prediction on the grid of the network's image, of a bundle that does not invert what it
    did, is resampled by its affine: labels to the nearest voxel, probabilities linearly. Raises `ModelFailed` for a
    prediction that does not know where it lies or lies on any third grid, for several channels that the contract
    does not explain, and for values that are neither labels nor probabilities.
    """
    unplaced = isinstance(prediction, torch.Tensor | np.ndarray) and not isinstance(prediction, MetaTensor)
    # Where nothing was moved, there is one place for it; after any move it could be meant before or after.
    if unplaced and seen is not None and seen.lies_as(grid):
        prediction = MetaTensor(torch.as_tensor(prediction), affine=torch.from_numpy(_padded(grid.affine)))
    if not isinstance(prediction, MetaTensor):
        raise ModelFailed(f"the prediction is a {type(prediction).__name__} that does not know where it lies")
    image = prediction if prediction.ndim > len(grid.shape) else prediction.unsqueeze(0)
    if image.ndim != len(grid.shape) + 1:
        raise ModelFailed(f"the prediction has the shape {tuple(prediction.shape)}, the source {grid.shape}")
    if (small := _small_labels(image)) is not None and grid_of(image).lies_as(grid):
        return Drawn(labels=small)
    doubts: tuple[str, ...] = ()
    if image.is_floating_point() and (count := _count(image, lambda values: ~torch.isfinite(values))):
        doubts = (f"the prediction holds {count} values that are not finite",)
        image = torch.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    channels = image.shape[0]
    if channels == 1:
        values = _on(image, grid, seen)[0]
        if len(segments) == 1 and not _whole(image) and image.min() >= 0 and image.max() <= 1:
            values = (values >= THRESHOLD).int() * segments[0]
        return Drawn(labels=_labels(values.numpy()), doubts=doubts)
    lowest, highest = float(image.as_tensor().min()), float(image.as_tensor().max())
    probable = lowest >= 0 and highest <= 1
    if segments and channels == max(segments) + 1 and not (probable and _overlapping(image)):
        best = Highest(channels)
        for values in _each_on(image, grid, seen, range(channels)):
            best.add(values)
        return Drawn(labels=_labels(best.labels.numpy()), doubts=doubts)
    if segments and probable and channels in {len(segments), max(segments) + 1}:
        chosen = range(channels) if channels == len(segments) else segments
        masks = np.empty((len(chosen), *reversed(grid.shape)), dtype=np.bool_)
        each = (channel for values in _each_on(image, grid, seen, chosen) for channel in values)
        for mask, channel in zip(masks, each, strict=True):
            np.greater_equal(channel.numpy().transpose(), THRESHOLD, out=mask)
        return Drawn(masks=masks, doubts=doubts)
    raise ModelFailed(
        f"the prediction has the shape {tuple(image.shape)} with values from {lowest:g} to {highest:g}, which is"
        f" neither a map of labels nor one channel for each of the {len(segments)} segments of the contract"
    )


def scores(prediction: object, count: int) -> tuple[float, ...]:
    """Return the numbers of a classifier or of a regression; raises `ModelFailed` unless there are `count` of them."""
    values = np.asarray(_array(prediction), dtype=np.float64).ravel()
    if count and values.size != count:
        raise ModelFailed(f"the prediction is {values.size} numbers, the contract names {count}")
    return tuple(map(float, values))


def score_doubts(values: Sequence[float]) -> tuple[str, ...]:
    """Return what speaks against such numbers."""
    wrong = sum(not np.isfinite(value) for value in values)
    return (f"{wrong} of {len(values)} numbers of the prediction are not finite",) if wrong else ()


@dataclass(frozen=True, kw_only=True)
class Frame:
    """In what a bundle gives places, and where its image and the source lie: affines (4x4, 3x3) to RAS mm."""

    frame: BoxFrame
    image: NDArray[np.float64]
    source: NDArray[np.float64]

    def on_source(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return points (n, dimensions) as (plane, row, column), or (row, column), of the source."""
        homogeneous = np.c_[points, np.ones(len(points))]
        if self.frame is BoxFrame.VOXEL:
            homogeneous = homogeneous @ self.image.T
        elif self.frame is BoxFrame.LPS:
            homogeneous[:, :2] *= -1
        found: NDArray[np.float64] = (homogeneous @ np.linalg.inv(self.source).T)[:, :-1]
        return found[:, ::-1]


def boxes(
    found: Mapping[Any, Any], place: Frame, *, mode: str = "", source: tuple[str, int] | None = None
) -> tuple[Box, ...]:
    """Return the boxes of a detector: tensors named box, label and score in `found`, one row for each object.

    `mode` is MONAI's (`xyzxyz`, `cccwhd`); a corner lies where MONAI's own conversion to the patient has it. Raises
    `ModelFailed` when a tensor is missing, or they are not of one length.
    """
    corners, labels, certain = (_named(found, name) for name in ("box", "label", "score"))
    dimensions = len(place.source) - 1
    if not len(corners) == len(labels) == len(certain) or corners.size != len(labels) * 2 * dimensions:
        raise ModelFailed(f"boxes {corners.shape}, labels {labels.shape} and scores {certain.shape} are not one list")
    if not len(labels):
        return ()
    corners = corners.reshape(len(labels), -1)
    if mode:
        corners = np.asarray(convert_box_mode(corners, src_mode=mode, dst_mode="xyzxyz" if dimensions == 3 else "xyxy"))
    ends = corners.reshape(-1, 2, dimensions)
    result = []
    for end, label, score in zip(ends, labels.ravel(), certain.ravel(), strict=True):
        every = np.array(list(product(*end.T)))
        on_source = place.on_source(every)
        if not np.isfinite(on_source).all():
            raise ModelFailed("a box has a corner that is not finite")
        result.append(
            Box(
                label=int(label),
                score=float(score),
                low=tuple(map(float, on_source.min(axis=0))),
                high=tuple(map(float, on_source.max(axis=0))),
                source=source,
            )
        )
    return tuple(result)


def landmarks(
    prediction: object, place: Frame, sources: Sequence[tuple[str, int] | None] = (None,)
) -> tuple[Landmark, ...]:
    """Return the points of a prediction (points, dimensions) or (dimensions, points), labelled from 1 in their order.

    With several `sources`, frames of one cine, the prediction has one more axis of that length for them. Raises
    `ModelFailed` for any other shape, and for a place that is not finite.
    """
    points = np.asarray(_array(prediction), dtype=np.float64)
    points = points.reshape([size for size in points.shape if size != 1 or points.ndim <= 2])
    dimensions = len(place.source) - 1
    if len(sources) > 1 and points.ndim == 3 and len(sources) in points.shape:
        axis = 1 if points.shape[1] == len(sources) else points.shape.index(len(sources))
        of_frames = list(np.moveaxis(points, axis, 0))
    else:
        of_frames = [points] * 1
    result = []
    for each, source in zip(of_frames, sources[: len(of_frames)], strict=True):
        if each.ndim != 2 or dimensions not in each.shape:
            raise ModelFailed(f"the prediction has the shape {points.shape}: no list of points in {dimensions}-D")
        positions = place.on_source(each if each.shape[1] == dimensions else each.T)
        if not np.isfinite(positions).all():
            raise ModelFailed("a landmark has a place that is not finite")
        result += [
            Landmark(label=label, score=1.0, position=tuple(map(float, position)), source=source)
            for label, position in enumerate(positions, start=1)
        ]
    return tuple(result)


def _on(image: MetaTensor, grid: Grid, seen: Grid | None) -> torch.Tensor:
    """Return the image on `grid`, on the CPU: itself where it lies there, resampled where it lies as `seen` does."""
    if not _moves(image, grid, seen):
        plain: torch.Tensor = image.as_tensor().cpu()
        return plain
    return resampled(image, grid, nearest=_whole(image)).cpu()


def _each_on(image: MetaTensor, grid: Grid, seen: Grid | None, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield the chosen channels of the image on `grid`, so many at a time (channel, x, y[, z]) as should be moved."""
    channels = image.as_tensor()
    if not _moves(image, grid, seen):
        # All of them are there anyway; a choice would be a copy.
        yield from [channels.cpu()] if len(chosen) == len(channels) else (channels[[each]].cpu() for each in chosen)
        return
    nearest = _whole(image)
    size = group(math.prod(grid.shape), channels[0].numel())
    for first in range(0, len(chosen), size):
        part = MetaTensor(channels[list(chosen[first : first + size])], affine=image.affine)
        yield resampled(part, grid, nearest=nearest).cpu()


def _moves(image: MetaTensor, grid: Grid, seen: Grid | None) -> bool:
    """Say whether the image must be moved onto `grid`; raises `ModelFailed` where it lies on neither grid."""
    found = grid_of(image)
    if found.lies_as(grid):
        return False
    if seen is None or not found.lies_as(seen):
        off = np.abs(found.affine - grid.affine).max()
        raise ModelFailed(
            f"the prediction lies on another grid than the source, and than the image that the network saw: its shape"
            f" is {found.shape}, that of the source {grid.shape}, and its affine is {off:.4g} mm off"
        )
    return True


def _padded(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an affine of any dimension as one of three, which `MetaTensor` keeps."""
    kept = [*range(len(affine) - 1), 3]
    padded = np.eye(4)
    padded[np.ix_(kept, kept)] = affine
    return padded


def _whole(image: MetaTensor) -> bool:
    """Say whether all values are whole numbers: labels, or channels of 0 and 1."""
    return not image.is_floating_point() or not _count(image, lambda values: values != values.round())


def _overlapping(image: MetaTensor) -> bool:
    values = image.as_tensor()
    for at in slabs(values):
        sums = values[:, at].sum(dim=0, dtype=torch.float64)
        # Where a bundle padded, no class has any probability, which argmax makes background.
        if bool(((sums - 1).abs() > SUM_TOLERANCE).logical_and(sums > 0).any()):
            return True
    return False


def _count(image: MetaTensor, which: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """Return of how many values it is true, looked at in pieces."""
    values = image.as_tensor()
    return sum(int(which(values[:, at]).sum()) for at in slabs(values))


def _small_labels(image: MetaTensor) -> Labels | None:
    """Return a map of labels up to 255 as such; None for anything else."""
    plain = image.as_tensor()
    if len(plain) != 1:
        return None
    small = plain.to(torch.uint8)
    if not torch.equal(small.to(plain.dtype), plain):
        return None
    labels: Labels = np.ascontiguousarray(small[0].cpu().numpy().transpose())
    return labels


def _labels(values: NDArray[Any]) -> Labels:
    lowest, highest = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if (
        lowest < 0
        or highest > np.iinfo(np.uint16).max
        or (values.dtype.kind == "f" and any((np.rint(plane) != plane).any() for plane in values))
    ):
        raise ModelFailed(f"the prediction holds values from {lowest:g} to {highest:g} that are not labels")
    dtype = np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16
    return np.ascontiguousarray(values.transpose().astype(dtype))


def _named(found: Mapping[Any, Any], name: str) -> NDArray[np.float64]:
    keys = [key for key in found if name in str(key).lower() and isinstance(found[key], torch.Tensor | np.ndarray)]
    # `label_scores` are scores.
    keys = [key for key in keys if name == "score" or "score" not in str(key).lower()]
    if not keys:
        raise ModelFailed(f"the prediction has no {name} among {', '.join(sorted(map(str, found)))}")
    return np.asarray(_array(found[min(keys, key=lambda key: len(str(key)))]), dtype=np.float64)


def _array(value: object) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        plain = value.as_tensor() if isinstance(value, MetaTensor) else value
        return np.asarray(plain.detach().cpu().float().numpy() if plain.is_floating_point() else plain.cpu().numpy())
    if isinstance(value, np.ndarray | int | float):
        return np.asarray(value)
    raise ModelFailed(f"the prediction is a {type(value).__name__}, not numbers")
