"""Test-time augmentation: the network is asked again, its input flipped or turned. Only for the model child.

Probabilities are averaged where the bundle has them, before anything makes labels of them; labels go by majority, and
numbers are averaged. How far the answers differ is their standard deviation, that of all of them (not of a sample).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import apply_transform
from monai.utils import CommonKeys
from numpy.typing import NDArray

from meddaemon.domain.contract import Augmentation
from meddaemon.domain.errors import ModelFailed
from meddaemon.domain.result import Labels, Prediction
from meddaemon.inference.bundles import probabilities
from meddaemon.inference.bundles.artefacts import Values
from meddaemon.inference.bundles.outputs import score_doubts
from meddaemon.inference.messages import allocate

MM3_PER_ML = 1000.0
_AXES = "xyz"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One way to change an image (batch, channel, x, y[, z]): axes of it are flipped, or it is turned from x to y."""

    flips: tuple[int, ...] = ()
    quarters: int = 0

    def __str__(self) -> str:
        if self.flips:
            return f"{''.join(_AXES[axis] for axis in self.flips)} flipped"
        return f"turned by {90 * self.quarters}°" if self.quarters else "as it is"

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """Return the image changed; as it is, it is the very same."""
        if self.flips:
            return _plain(image).flip([axis + 2 for axis in self.flips])
        return torch.rot90(_plain(image), self.quarters, (2, 3)) if self.quarters else image

    def undo(self, raw: Any, size: Sequence[int]) -> Any:
        """Return what the network made of the changed image as it lies on the image, which has that size.

        What has no places, numbers for one, stays as it is.
        """
        if isinstance(raw, list | tuple):
            return [self.undo(each, size) for each in raw]
        if isinstance(raw, dict):
            return {key: self.undo(each, size) for key, each in raw.items()}
        if not isinstance(raw, torch.Tensor) or raw.ndim != len(size) + 2:
            return raw
        if self.flips:
            return _plain(raw).flip([axis + 2 for axis in self.flips])
        return torch.rot90(_plain(raw), -self.quarters, (2, 3)) if self.quarters else raw


def changes(augmentation: Augmentation) -> tuple[Change, ...]:
    """Return the changes that a contract asks for, after the image as it is."""
    return (
        Change(),
        *(Change(flips=tuple(_AXES.index(axis) for axis in each)) for each in augmentation.flips),
        *(Change(quarters=each // 90) for each in augmentation.rotations),
    )


def said(augmentation: Augmentation, how: str) -> dict[str, str]:
    """Return what is told of it with the result."""
    made = changes(augmentation)
    return {"augmentation": f"{how} of {len(made)}: {', '.join(map(str, made))}"}


class Mean:
    """The mean of the probabilities of one item, where the postprocessing of the bundle has them, and their spread.

    They are taken behind the first softmax or sigmoid, or as the network gives them when they are probabilities
    already. Without them, each answer goes its own way.
    """

    def __init__(self, postprocessing: Any, key: str) -> None:
        steps = probabilities.steps_of(postprocessing)
        count = probabilities.activation(steps, key)
        self._head, self.rest = steps[:count], steps[count:]
        self._key = key
        self._data: dict[Any, Any] | None = None
        self._count = 0
        self._mean: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self.is_known = True

    def add(self, data: dict[Any, Any]) -> Any:
        """Take the data of one answer, with what the network gave in it; return them after all postprocessing."""
        for step in self._head:
            data = apply_transform(step, data)
        value = data.get(self._at(data))
        self.is_known = self.is_known and (bool(self._head) or probabilities.is_fraction(value))
        if self.is_known and isinstance(value, torch.Tensor):
            self._take(value)
            self._data = self._data or dict(data)
        for step in self.rest:
            data = apply_transform(step, data)
        return data

    def data(self) -> dict[Any, Any]:
        """Return the data as they were behind the softmax, with the mean in them."""
        if self._data is None or self._mean is None:
            raise ModelFailed("the bundle gives nothing that could be averaged")
        return {**self._data, self._at(self._data): self._mean}

    def spread(self) -> torch.Tensor:
        """Return the standard deviation of each probability, as it lies where they do."""
        if self._squares is None or self._mean is None:
            raise ModelFailed("the bundle gives nothing that could be averaged")
        deviation = (self._squares / self._count).clamp_min(0).sqrt()
        return MetaTensor(deviation, meta=dict(self._mean.meta)) if isinstance(self._mean, MetaTensor) else deviation

    def _at(self, data: dict[Any, Any]) -> str:
        return self._key if self._key in data else CommonKeys.PRED

    def _take(self, value: torch.Tensor) -> None:
        """Add one more to mean and spread (Welford 1962): equal values leave the mean as it is, to the last bit."""
        exact = _plain(value).float()
        self._count += 1
        if self._mean is None or self._squares is None:
            mean = exact.clone()
            self._mean = MetaTensor(mean, meta=dict(value.meta)) if isinstance(value, MetaTensor) else mean
            self._squares = torch.zeros_like(exact)
            return
        mean = _plain(self._mean)
        apart = exact - mean
        mean += apart / self._count
        self._squares += apart * (exact - mean)


def mean_of_numbers(each: Sequence[Prediction], asked: Augmentation) -> Prediction:
    """Return the mean of the numbers that were answered, and their spread."""
    numbers = np.array([one.scores for one in each])
    mean = tuple(map(float, numbers.mean(axis=0)))
    return replace(
        each[0],
        scores=mean,
        score_spread=tuple(map(float, numbers.std(axis=0))),
        doubts=score_doubts(mean),
        provenance={**each[0].provenance, **said(asked, "mean")},
    )


def majority(each: Sequence[Prediction], segments: Sequence[int]) -> Prediction:
    """Return the labels, or the masks of segments that overlap, that most predictions have; of equals the lowest."""
    doubts = tuple(dict.fromkeys(doubt for one in each for doubt in one.doubts))
    if any(prediction.masks is not None for prediction in each):
        votes = sum((_masks(prediction, segments).astype(np.uint8) for prediction in each), start=np.uint8(0))
        return replace(each[0], labels=None, masks=np.greater(votes, len(each) / 2), doubts=doubts)
    drawn = [prediction.labels for prediction in each if prediction.labels is not None]
    result: Labels = np.zeros_like(max(drawn, key=lambda labels: labels.dtype.itemsize))
    for plane in range(len(result)):
        planes = np.stack([labels[plane] for labels in drawn])
        known = np.unique(planes)
        counts = np.stack([(planes == label).sum(axis=0) for label in known])
        result[plane] = known[counts.argmax(axis=0)]
    return replace(each[0], labels=result, doubts=doubts)


def spread_of_votes(each: Sequence[Prediction], segments: Sequence[int]) -> dict[int, Values]:
    """Return for each segment how far the predictions differ in each voxel: 0 where all say the same, at most 1/2."""
    found = {}
    for index, label in enumerate(segments):
        first = each[0].labels if each[0].masks is None else each[0].masks[0]
        if first is None:
            raise ModelFailed("the bundle drew nothing that could be compared")
        values = allocate(first.shape, np.float16)
        for plane in range(len(values)):
            votes = [
                prediction.labels[plane] == label
                if prediction.labels is not None
                else _masks(prediction, segments)[index, plane]
                for prediction in each
            ]
            part = np.mean(votes, axis=0)
            values[plane] = np.sqrt(part * (1 - part))
        found[label] = values
    return found


def volumes_ml(prediction: Prediction, segments: Sequence[int]) -> list[float]:
    """Return the volume of each segment on the grid of the source; nothing where it lies nowhere in the patient."""
    if prediction.geometry is None:
        return []
    of_plane = prediction.geometry.voxel_volumes_mm3 / MM3_PER_ML
    found = []
    for index, label in enumerate(segments):
        drawn: NDArray[Any] | None = prediction.labels if prediction.masks is None else prediction.masks[index]
        if drawn is None:
            return []
        wanted: Any = label if prediction.masks is None else True
        counts = np.array([np.count_nonzero(plane == wanted) for plane in drawn])
        found.append(float(counts @ of_plane))
    return found


def _masks(prediction: Prediction, segments: Sequence[int]) -> NDArray[np.bool_]:
    if prediction.masks is not None:
        return prediction.masks
    if prediction.labels is None:
        raise ModelFailed("the bundle drew nothing that could be compared")
    return np.stack([prediction.labels == label for label in segments])


def _plain(image: torch.Tensor) -> torch.Tensor:
    plain: torch.Tensor = image.as_tensor() if isinstance(image, MetaTensor) else image
    return plain
